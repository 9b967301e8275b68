"""What the stages of a run hold beside their weights: traced against predicted, at full size, without a card.

    python benchmarks/activations.py [--json]

The real modules run on meta tensors, which have a shape and no data; attention is taken as one kernel that allocates
its result. Two blocks and three latent frames are enough: the widest moment is the same in every block, and from the
third latent frame on. `tests/runtime/test_memory.py` does the same with data, on a smaller model.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.allocations import Allocations, FusedAttention
from ovi_studio.model import components
from ovi_studio.model.sampler import FusedSampler, Guidance, Latents, TextStates
from ovi_studio.model.video_vae import decode_frames, encode_frames
from ovi_studio.runtime import memory
from ovi_studio.runtime.memory import VaeTiling, Workload
from ovi_studio.variants import Size, Variant, get_variant

STEPS = 3  # then the solver keeps all that it ever keeps
SOLVER_TABLES = 2 * 6 * 1000 * 4  # of training's timesteps, by the library; beside a card they are in host memory
PROMPTS = 3

Model = TypeVar("Model", bound=torch.nn.Module)


@dataclass(frozen=True)
class Case:
    """A stage to trace.

    Args:
        title: for a person.
        work: the stage; what it needs was built before.
        predicted: bytes that the planner reckons with, without weights.
    """

    title: str
    work: Callable[[], object]
    predicted: int

    def peak(self) -> int:
        """Bytes that the stage's tensors took at its widest moment."""
        with torch.no_grad(), Allocations() as traced:
            self.work()
        return traced.peak


@dataclass(frozen=True)
class Bench:
    """Builds cases on a device, in a type."""

    device: str = "meta"
    dtype: torch.dtype = torch.bfloat16

    @property
    def _width(self) -> int:
        return self.dtype.itemsize

    def _built(self, build: Callable[[Variant], Model], variant: Variant) -> Model:
        with torch.device(self.device):
            model = build(variant)
        torch.nn.Module.to(model, self.dtype)
        return model

    def _run(self, work: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            with FusedAttention() if self.device == "meta" else contextlib.nullcontext():
                work()

        return run

    def _case(self, title: str, load: Workload, work: Callable[[], object], predicted: int) -> Case:
        name = "float32" if self._width == 4 else "bf16"
        return Case(f"{title}, {load.variant.name} at {load.size}, {name}", self._run(work), predicted)

    def denoising(self, load: Workload, batched: bool, text_cache: bool) -> Case:
        """The denoising stage, beginning with the text states that the stage before it left."""
        variant, shape = load.variant, load.variant.transformer
        transformer = self._built(components.build_transformer, variant)
        frames, rows, columns = variant.latent_grid(*load.size)
        scales = (4.0, 3.0) if load.passes == 2 else (1.0, 1.0)

        def random(*sizes: int) -> torch.Tensor:
            return torch.randn(sizes, device=self.device, dtype=self.dtype)

        def denoise() -> None:
            text = TextStates(*(random(1, variant.text_len, shape.text_dim) for _ in range(PROMPTS)))
            first_frame = random(1, shape.in_channels, 1, rows, columns) if load.first_frame == "image" else None
            guidance = Guidance(*scales, skip_layer=1, batched=batched)
            sampler = FusedSampler(transformer, text, guidance, "unipc", 5.0, STEPS, first_frame, text_cache)
            noise = Latents(
                None if load.modality == "audio" else random(1, shape.in_channels, frames, rows, columns),
                None if load.modality == "video" else random(1, variant.audio_latents, shape.audio_in_channels),
            )
            latents = sampler.begin(noise)
            del noise
            for index in range(STEPS):
                latents = sampler.step(latents, index)

        batch = load.passes if batched else 1
        predicted = memory.denoise_activation_bytes(load, batch, self._width, text_cache) + SOLVER_TABLES
        predicted += memory.text_cache_bytes(load, self._width) if text_cache else 0
        words = [
            "one pass" if load.passes == 1 else "both passes at once" if batched else "one pass after the other",
            *(["a first frame"] if load.first_frame == "image" else []),
            *([] if text_cache else ["no text cache"]),
            *([] if load.modality == "both" else [f"{load.modality} only"]),
        ]
        return self._case(f"denoise, {', '.join(words)}", load, denoise, predicted)

    def encoding_text(self, load: Workload) -> Case:
        """Encoding three prompts of full length."""
        variant = load.variant
        encoder = self._built(components.build_text_encoder, variant)

        def encode() -> list[torch.Tensor]:
            ids = torch.zeros(1, variant.text_len, dtype=torch.long, device=self.device)
            return [encoder(ids).last_hidden_state for _ in range(PROMPTS)]

        predicted = memory.text_activation_bytes(variant.text_encoder, variant.text_len, self._width)
        predicted += memory.text_state_bytes(variant, PROMPTS - 1, self._width)
        return self._case("encode text", load, encode, predicted)

    def encoding_first_frame(self, load: Workload) -> Case:
        """Encoding a picture."""
        vae = self._built(components.build_video_vae, load.variant)

        def encode() -> torch.Tensor:
            return encode_frames(vae, torch.zeros(1, 3, 1, *load.size, device=self.device))

        return self._case("encode a first frame", load, encode, memory.image_encode_bytes(load, self._width))

    def decoding_picture(self, load: Workload, tiling: VaeTiling) -> Case:
        """Decoding as a stream; the frames that were made last are the caller's."""
        variant = load.variant
        vae = self._built(components.build_video_vae, variant)
        if tiling != "none":
            vae.enable_tiling()

        def decode() -> None:
            latents = torch.zeros(1, variant.video_vae.z_dim, *variant.latent_grid(*load.size), device=self.device)
            for frames in decode_frames(vae, latents, tile_by_tile=tiling == "tile_by_tile"):
                if frames.shape[-2:] != load.size:
                    raise ValueError(frames.shape)

        words = {"none": "whole", "tiled": "tiled", "tile_by_tile": "tile by tile"}[tiling]
        predicted = memory.decode_bytes(load, tiling, self._width)
        return self._case(f"decode the picture, {words}", load, decode, predicted)

    def decoding_sound(self, load: Workload) -> Case:
        """Decoding the sound, which is in float32 always."""
        variant = load.variant
        audio_vae = self._built(components.build_audio_vae, variant)
        vocoder = self._built(components.build_vocoder, variant)

        def decode() -> None:
            latents = torch.zeros(1, variant.audio_vae.latent_channels, variant.audio_latents, device=self.device)
            vocoder(audio_vae.decode(latents).sample)

        return self._case("decode the sound", load, decode, memory.vocoder_bytes(load))


def full_size() -> Iterator[Case]:
    """The rows of the table in `docs/memory.md`."""
    short, long = (_with_two_blocks(get_variant(name)) for name in ("720x720_5s", "960x960_10s"))
    small, large = Workload(short, Size(704, 704)), Workload(long, Size(960, 960))
    bf16, float32 = Bench(), Bench(dtype=torch.float32)
    yield bf16.encoding_text(small)
    yield bf16.encoding_first_frame(small)
    yield bf16.encoding_first_frame(large)
    for load in (small, large):
        yield bf16.denoising(load, batched=True, text_cache=True)
        yield bf16.denoising(load, batched=False, text_cache=True)
        yield bf16.denoising(load, batched=False, text_cache=False)
        yield bf16.denoising(replace(load, first_frame="image"), batched=True, text_cache=True)
    yield bf16.denoising(replace(small, modality="video"), batched=True, text_cache=True)
    yield float32.denoising(small, batched=True, text_cache=True)
    for load in (small, large):
        three_frames = replace(load, variant=replace(load.variant, video_latent_frames=3))
        yield bf16.decoding_picture(three_frames, "none")
        yield bf16.decoding_picture(three_frames, "tiled")
        yield float32.decoding_picture(three_frames, "none")
    yield float32.decoding_sound(large)


def _with_two_blocks(variant: Variant) -> Variant:
    return replace(
        variant,
        transformer=replace(variant.transformer, num_layers=2),
        text_encoder=replace(variant.text_encoder, num_layers=2),
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code, which is 1 where a prediction is off by more than 5 %."""
    parser = argparse.ArgumentParser(description="Traced against predicted activations at full size, on meta tensors.")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    print(f"{'GB (10^9 bytes), without weights':<92}{'traced':>10}{'predicted':>10}")
    rows, worst = [], 0.0
    for case in full_size():
        peak = case.peak()
        worst = max(worst, abs(case.predicted / peak - 1))
        rows.append({"case": case.title, "traced_bytes": peak, "predicted_bytes": case.predicted})
        print(f"{case.title:<92}{peak / 1e9:>10.3f}{case.predicted / 1e9:>10.3f}", flush=True)
    print(f"The farthest prediction is off by {worst:.2%}.")
    if options.json:
        print(json.dumps({"rows": rows, "worst_relative_error": worst, "torch": torch.__version__}))
    return int(worst > 0.05)


if __name__ == "__main__":
    sys.exit(main())
