"""What every knob gains and costs: speed beside the exact run of the same round, and distance from its clip.

    python benchmarks/quality_of_speed.py --model nano
    python benchmarks/quality_of_speed.py --model mid --steps 8 --rounds 1 --latents-only
    python benchmarks/quality_of_speed.py --model 720x720_5s --size 704x704 --device cuda

Distance: relative L2 of the latents; PSNR (dB) and SSIM of the frames; mean difference of the log-mel spectrogram, in
units of the natural logarithm. nano's weights are trained; those of the others are random here, whose distances tell
knobs apart and no more.
"""

import copy
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import arguments, clock, finish, pipeline_of, size_of, variant_of
from ovi_studio.errors import EngineError
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.sampler import Guidance, Latents, TextStates
from ovi_studio.runtime.apply import AppliedPlan
from ovi_studio.runtime.execution_plan import ComponentPlan, ExecutionPlan, Parallel
from ovi_studio.runtime.memory import Precision
from ovi_studio.variants import Size

SEED = 1
PROMPT = "A red face on the left says <S>seven three<E>. Audio: a low voice."


@dataclasses.dataclass(frozen=True)
class Knobs:
    """One way to run; the defaults are exact."""

    batched: bool = True
    text_cache: bool = True
    compile: bool = False
    attention: str = "native"
    threshold: float = 0.0  # of the first-block cache; 0: none
    interval: tuple[float, float] = (0.0, 1.0)  # of the picture's guidance
    audio_interval: tuple[float, float] | None = None  # of the sound's; by default the same
    steps: float = 1.0  # share of the exact run's
    precision: Precision | None = None


ALL = {
    "exact": Knobs(),
    "one pass after the other": Knobs(batched=False),
    "no text cache": Knobs(text_cache=False),
    "compiled": Knobs(compile=True),
    "cache below 0.05": Knobs(threshold=0.05),
    "cache below 0.1": Knobs(threshold=0.1),
    "cache below 0.2": Knobs(threshold=0.2),
    "guidance 0:0.8": Knobs(interval=(0.0, 0.8)),
    "guidance 0.1:0.9": Knobs(interval=(0.1, 0.9)),
    "guidance 0:0.5": Knobs(interval=(0.0, 0.5)),
    "picture guided 0:0.5, sound not": Knobs(interval=(0.0, 0.5), audio_interval=(0.0, 0.0)),
    "sound guided 0:0.5, picture not": Knobs(interval=(0.0, 0.0), audio_interval=(0.0, 0.5)),
    "half the steps": Knobs(steps=0.5),
    "a quarter of the steps": Knobs(steps=0.25),
    "fp8 storage": Knobs(precision="fp8_storage"),
    "fp8 compute": Knobs(precision="fp8_compute", compile=True),
    "int8": Knobs(precision="int8"),
    "sage": Knobs(attention="sage"),
    "cache 0.1 + int8": Knobs(threshold=0.1, precision="int8"),
    "cache 0.1 + fp8 compute": Knobs(threshold=0.1, precision="fp8_compute", compile=True),
    "cache 0.1 + fp8 compute + sage": Knobs(threshold=0.1, precision="fp8_compute", compile=True, attention="sage"),
    "cache 0.1 + guidance 0:0.8": Knobs(threshold=0.1, interval=(0.0, 0.8)),
    "cache 0.1 + guidance 0:0.8 + half the steps": Knobs(threshold=0.1, interval=(0.0, 0.8), steps=0.5),
}
# fp8 products and Sage run on cards only; on a CPU compiling takes minutes, and is measured by `--only`.
ON_CARD = {name for name, knobs in ALL.items() if knobs.compile or knobs.attention == "sage"}


class Runner:
    """Runs of one pipeline by any knobs.

    Args:
        pipeline: with its weights as loaded.
        size: of the clip.
        device: "cpu" or "cuda".
        steps: of the exact run.
    """

    def __init__(self, pipeline: OviPipeline, size: Size, device: str, steps: int) -> None:
        self._pipeline = pipeline
        self._narrow: dict[Precision, OviPipeline] = {}
        self._size = size
        self._device = device
        self._steps = steps
        chosen = pipeline.variant.defaults
        self._text = pipeline.encode_prompts(PROMPT, chosen.video_negative_prompt, chosen.audio_negative_prompt)

    @torch.no_grad()
    def __call__(self, knobs: Knobs, variant: Any, folder: Path) -> tuple[float, Latents]:
        """Seconds of denoising, and the latents."""
        pipeline = self._of(knobs.precision)
        with AppliedPlan(pipeline, self._plan(knobs), folder) as placed, placed.stage("denoise"):
            dtype = pipeline.transformer.dtype
            text = TextStates(*(state.to(self._device, dtype) for state in vars(self._text).values()))
            chosen = variant.defaults
            scales = (chosen.video_guidance_scale, chosen.audio_guidance_scale)
            guidance = Guidance(*scales, 1, knobs.batched, knobs.interval, knobs.audio_interval or knobs.interval)
            steps = max(1, round(knobs.steps * self._steps))
            sampler = pipeline.prepare_sampler(text, guidance, "unipc", 5.0, steps, None, knobs.text_cache)
            frames, audio = variant.num_frames, variant.audio_latents
            noise = pipeline.prepare_noise(*self._size, frames, audio, seed=SEED)
            start = clock(self._device)
            latents = sampler.begin(noise)
            for index in range(steps):
                latents = sampler.step(latents, index)
            return clock(self._device) - start, latents

    def _of(self, precision: Precision | None) -> OviPipeline:
        """The pipeline whose transformer is in this precision; narrowing loses bits, so it has a copy."""
        if precision is None:
            return self._pipeline
        if precision not in self._narrow:
            parts = dict(self._pipeline.components)
            parts["transformer"] = copy.deepcopy(parts["transformer"])
            self._narrow[precision] = OviPipeline(**parts, variant=self._pipeline.config.variant)
        return self._narrow[precision]

    def _plan(self, knobs: Knobs) -> ExecutionPlan:
        plain: Precision = "float32" if self._device == "cpu" else "bf16"
        return ExecutionPlan(
            variant=self._pipeline.variant.name,
            size=self._size,
            quality="auto",
            device=self._device,
            device_name=self._device,
            components={"transformer": ComponentPlan(knobs.precision or plain, "resident", "card")},
            attention_backend=knobs.attention,  # type: ignore[arg-type]
            vae_tiling="none",
            text_cache=knobs.text_cache,
            guidance="batched" if knobs.batched else "sequential",
            compile=knobs.compile,
            step_cache="first_block" if knobs.threshold else "none",
            step_cache_threshold=knobs.threshold or 1.0,
            ffn_chunks=1,
            parallel=Parallel(),
            stages={},
            gpu_budget_bytes=0,
            host_budget_bytes=0,
        )


def main() -> None:
    """Runs every knob beside the exact run, `rounds` times, and compares what came of it."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a knob; repeatable")
    parser.add_argument("--latents-only", action="store_true", help="leave out the decoding")
    options = parser.parse_args()
    variant = variant_of(options.model)
    size = size_of(variant, options.size)
    pipeline = pipeline_of(variant, options.device)
    run = Runner(pipeline, size, options.device, options.steps or variant.defaults.num_inference_steps)
    chosen = {name: knobs for name, knobs in ALL.items() if options.only is None or name in options.only}
    table: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(ALL["exact"], variant, folder)  # warm
        for title, knobs in chosen.items():
            if options.device == "cpu" and title in ON_CARD and not options.only:
                continue
            try:
                table[title] = beside_exact(
                    run, knobs, variant, folder, options.rounds, None if options.latents_only else pipeline
                )
            except (EngineError, ImportError) as error:
                print(f"{title}: left out, {error}")
                continue
            print(f"{title:<46}" + "".join(f"{key} {value:>8.4g}  " for key, value in table[title].items()), flush=True)
    finish({"benchmark": "quality_of_speed", "model": variant.name, "size": str(size), "knobs": table}, options.device)


def beside_exact(
    run: Runner, knobs: Knobs, variant: Any, folder: Path, rounds: int, decoder: OviPipeline | None
) -> dict[str, float]:
    """The ratio of the medians of alternating runs, and the distances."""
    took: tuple[list[float], list[float]] = ([], [])
    run(knobs, variant, folder)  # warm, and compiled
    for _ in range(rounds):
        exact_seconds, exact = run(ALL["exact"], variant, folder)
        seconds, latents = run(knobs, variant, folder)
        took[0].append(exact_seconds)
        took[1].append(seconds)
    found = {"times as fast": statistics.median(took[0]) / statistics.median(took[1])}
    found["video L2"] = relative(latents.video, exact.video)
    found["audio L2"] = relative(latents.audio, exact.audio)
    return found | (distances(decoder, latents, exact) if decoder is not None else {})


def relative(found: Tensor | None, expected: Tensor | None) -> float:
    """Relative L2."""
    if found is None or expected is None:
        raise ValueError("a stream is missing")
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def distances(pipeline: OviPipeline, found: Latents, exact: Latents) -> dict[str, float]:
    """Of frames and of sound."""
    if found.video is None or exact.video is None or found.audio is None or exact.audio is None:
        raise ValueError("a stream is missing")
    pairs = zip(pipeline.decode_video(found.video), pipeline.decode_video(exact.video), strict=True)
    psnr, ssim = zip(*(compare((a.float() + 1) / 2, (b.float() + 1) / 2) for a, b in pairs), strict=True)
    sounds = (found.audio, exact.audio)
    vae = pipeline.audio_vae
    mels = [vae.decode(sound.transpose(1, 2).to(vae.device)).sample for sound in sounds]
    return {
        "PSNR": statistics.mean(psnr),
        "SSIM": statistics.mean(ssim),
        "log-mel": float((mels[0] - mels[1]).abs().mean()),
    }


def compare(a: Tensor, b: Tensor) -> tuple[float, float]:
    """PSNR and SSIM of frames in 0…1, (n, 3, H, W); SSIM over windows of 8 × 8 pixels."""
    error = float((a - b).square().mean())
    psnr = 100.0 if error == 0 else min(100.0, -10 * torch.tensor(error).log10().item())
    mean_a, mean_b = F.avg_pool2d(a, 8, 4), F.avg_pool2d(b, 8, 4)
    var_a = F.avg_pool2d(a * a, 8, 4) - mean_a**2
    var_b = F.avg_pool2d(b * b, 8, 4) - mean_b**2
    both = F.avg_pool2d(a * b, 8, 4) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return psnr, float(ssim.mean())


if __name__ == "__main__":
    main()
