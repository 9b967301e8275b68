"""Whether runs keep to their plans: a full-size model with random weights, on a card that is made smaller.

    python benchmarks/memory.py --variant 720x720_5s --cards 24,16,12,8,6 --json
    python benchmarks/memory.py --variant nano --device cpu --json

For each card size torch may have no more than such a card gives, the planner sees that card, and the engine makes a
clip as it always does: it measures every stage, and where memory runs out it goes on with a smaller plan, which
counts as a plan that did not hold. Weights are drawn on the device itself, so that nothing need be downloaded. The
prompt is as long as the text encoder reads, the clip starts from a picture, and a few steps stand for all.
"""

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from transformers import AutoTokenizer

from ovi_studio.assets import data_path
from ovi_studio.engine.engine import OviEngine
from ovi_studio.errors import InvalidInputError
from ovi_studio.events import CancelToken, Failed, Finished, Planned, StageStarted
from ovi_studio.images import image_digest
from ovi_studio.model import components
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.request import GenerationRequest, ImageFrame
from ovi_studio.runtime.execution_plan import ExecutionPlan
from ovi_studio.runtime.hardware import GB, Hardware, probe
from ovi_studio.runtime.memory import CUDA_CONTEXT_BYTES
from ovi_studio.runtime.planner import Planner
from ovi_studio.variants import Size, Variant, get_variant, parse_size
from ovi_studio.weights.store import Store

SCALE = 0.02  # of random weights: small enough that nothing overflows


class SmallerMachine:
    """This machine with a card of fewer bytes, or with none.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._card_bytes = 0

    def shrink(self, card_bytes: int) -> None:
        """From now on the card has this size, for the planner and for torch; CUDA's own share stays outside."""
        self._card_bytes = card_bytes
        if self._device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (card_bytes - CUDA_CONTEXT_BYTES) / total))

    def look(self) -> Hardware:
        """What the planner is told."""
        machine = probe()
        if self._device == "cpu":
            return dataclasses.replace(machine, cards=())
        card = dataclasses.replace(machine.cards[0], total_bytes=self._card_bytes, free_bytes=self._card_bytes)
        return dataclasses.replace(machine, cards=(card,))


def random_pipeline(variant: Variant, device: str) -> OviPipeline:
    """The variant's pipeline on the CPU, its weights drawn on the device; nano's tokenizer serves every prompt."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)

    def build(component: Callable[[Variant], Any], dtype: torch.dtype) -> Any:
        with components.on_meta():
            module = torch.nn.Module.to(component(variant), dtype)
        drawn: dict[int, torch.nn.Parameter] = {}
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for name, old in [(name, old) for name, old in table.items() if old is not None]:
                    if id(old) not in drawn:  # some weights are tied
                        new = torch.empty(old.shape, dtype=old.dtype, device=device)
                        new = new.normal_(0, SCALE, generator=generator) if old.is_floating_point() else new.zero_()
                        drawn[id(old)] = torch.nn.Parameter(new.cpu(), requires_grad=False)
                    table[name] = drawn[id(old)] if isinstance(old, torch.nn.Parameter) else drawn[id(old)].data
        return module

    return OviPipeline(
        tokenizer=AutoTokenizer.from_pretrained(data_path("assets", "nano", "tokenizer"), local_files_only=True),
        text_encoder=build(components.build_text_encoder, dtype),
        transformer=build(components.build_transformer, dtype),
        video_vae=build(components.build_video_vae, dtype),
        audio_vae=build(components.build_audio_vae, torch.float32),
        vocoder=build(components.build_vocoder, torch.float32),
        variant=variant.name,
    )


def request_of(variant: Variant, size: Size, quality: str, steps: int, folder: Path) -> GenerationRequest:
    """A request whose prompt fills the text encoder, and that starts from a picture."""
    picture = folder / "first.png"
    PIL.Image.fromarray(np.full((*size, 3), 128, np.uint8)).save(picture)
    return GenerationRequest.create(
        prompt="a red ball rolls over the floor " * (variant.text_len // 4),
        variant=variant.name,
        size=size,
        quality=quality,
        num_inference_steps=steps,
        seed=1,
        first_frame=ImageFrame(path=str(picture), name=picture.name, sha256=image_digest(picture)),
    )


def run(engine: OviEngine, request: GenerationRequest) -> dict[str, Any]:
    """One clip: the plans that were tried, and every stage of the last one, predicted and measured."""
    plans: list[ExecutionPlan] = []
    result: dict[str, Any] = {"ran_out_in": [], "stages": {}}
    stage, started = "load", time.monotonic()
    for event in engine.generate(request, CancelToken()):
        if isinstance(event, Planned) and isinstance(event.plan, ExecutionPlan):
            result["ran_out_in"] += [stage] if plans else []
            plans.append(event.plan)
        elif isinstance(event, StageStarted):
            stage = event.stage
        elif isinstance(event, Failed):
            result["error"] = event.problem
        elif isinstance(event, Finished):
            Path(event.clip.path).unlink()
            for name, took in event.measured.items():
                planned = plans[-1].stages[name]
                result["stages"][name] = {
                    "predicted_gpu_bytes": planned.peak_gpu_bytes,
                    "measured_gpu_bytes": took.gpu_bytes,
                    "predicted_host_bytes": planned.peak_host_bytes,
                    "measured_host_bytes": took.host_bytes,
                    "seconds": took.seconds,
                }
    result["card_over_prediction"] = max(
        (row["measured_gpu_bytes"] / (row["predicted_gpu_bytes"] or 1) for row in result["stages"].values()),
        default=0.0,
    )
    result["plan"] = [f"{name}: {part.describe()}" for plan in plans[-1:] for name, part in plan.components.items()]
    result["held"] = len(plans) == 1 and "error" not in result
    result["seconds"] = time.monotonic() - started
    return result


def print_run(title: str, result: dict[str, Any]) -> None:
    """The run's table."""
    print(f"\n{title}: {'held' if result['held'] else 'did not hold'}, {result['seconds']:.0f} s")
    print(f"  {'; '.join(result['plan'])}")
    problems = [f"Memory ran out in the stage {stage!r}." for stage in result["ran_out_in"]]
    problems += [result["error"]] if "error" in result else []
    for problem in problems:
        print(f"  {problem}")
    print(f"  {'GB (2^30 bytes)':<14}{'card':>8}{'predicted':>11}{'host':>8}{'predicted':>11}{'seconds':>10}")
    for name, row in result["stages"].items():
        kinds = ("measured_gpu_bytes", "predicted_gpu_bytes", "measured_host_bytes", "predicted_host_bytes")
        gpu, planned_gpu, host, planned_host = (row[kind] / GB for kind in kinds)
        print(f"  {name:<14}{gpu:>8.2f}{planned_gpu:>11.2f}{host:>8.2f}{planned_host:>11.2f}{row['seconds']:>10.1f}")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Runs all card sizes that there is time for; the exit code is 1 where a plan did not hold."""
    parser = argparse.ArgumentParser(description="Predicted against measured memory, on a card made smaller.")
    parser.add_argument("--variant", default="720x720_5s", metavar="NAME", help="model (default: 720x720_5s)")
    parser.add_argument("--size", metavar="HxW", help="of the clip (default: 704x704, or the model's own)")
    parser.add_argument("--cards", default="24,16,12,8,6", help="sizes in GB of 2^30 bytes (default: 24,16,12,8,6)")
    parser.add_argument("--quality", default="auto", help="auto, exact, fast or smallest (default: auto)")
    parser.add_argument("--steps", type=int, default=3, help="of the sampler (default: 3)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cuda or cpu, for nano")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no other size is begun (default: 8)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"{parser.prog}: There is no CUDA device. Use --device cpu --variant nano.", file=sys.stderr)
        return InvalidInputError.exit_code

    variant = get_variant(options.variant)
    asked = options.size or ("704x704" if variant.trained else str(variant.default_size))
    size = variant.snap_size(*parse_size(asked))
    cards = [float(gb) for gb in options.cards.split(",")] if options.device == "cuda" else [0.0]
    machine, started, results = SmallerMachine(options.device), time.monotonic(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = request_of(variant, size, options.quality, options.steps, folder)
        engine = OviEngine(
            folder,
            folder / "cache",
            Planner(folder / "cache", look=machine.look),
            Store(folder / "weights"),
            load=lambda variant, _: random_pipeline(variant, options.device),
        )
        for gb in cards:
            if time.monotonic() - started > 60 * options.minutes:
                break
            machine.shrink(int(gb * GB))
            title = f"{gb:g} GB" if gb else "CPU"
            results[title] = run(engine, request)
            print_run(f"{variant.name} at {size}, {title}", results[title])
        engine.close()
    device = torch.cuda.get_device_name(0) if options.device == "cuda" else platform.machine()
    held = all(result["held"] for result in results.values())
    summary = {"variant": variant.name, "size": str(size), "device": device, "torch": torch.__version__, "held": held}
    if options.json:
        print(json.dumps({**summary, "steps": options.steps, "runs": results}))
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
