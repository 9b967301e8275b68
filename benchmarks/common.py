"""What the speed benchmarks share: models of any size, medians measured alternating, the floor, and the last line.

The floor of a piece of work is its matrix operations over the device's measured matrix rate plus its attention
operations over the best measured attention rate at that shape: what no implementation on this device can beat.
"""

import argparse
import dataclasses
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.memory import random_pipeline
from ovi_studio.arithmetic import Cost, forward_cost
from ovi_studio.model import components
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.runtime.hardware import probe
from ovi_studio.runtime.measure import attention_rates, matmul_rate
from ovi_studio.runtime.rates import Rates
from ovi_studio.shapes import TransformerShape
from ovi_studio.variants import Size, Variant, get_variant, parse_size
from ovi_studio.weights.nano import load_nano

MID_SIZE = Size(512, 512)
_NANO = get_variant("nano")
# Width 768, 6 blocks, 2,048 video tokens at 512×512, 29 frames; the rest is nano's.
MID = dataclasses.replace(
    _NANO,
    name="mid",
    transformer=TransformerShape(
        num_attention_heads=6,
        attention_head_dim=128,
        ffn_dim=3072,
        num_layers=6,
        text_dim=128,
        in_channels=16,
        audio_in_channels=8,
    ),
    video_latent_frames=8,
    target_area=MID_SIZE.area,
    default_size=MID_SIZE,
)


def variant_of(name: str) -> Variant:
    """A variant, or `mid`."""
    return MID if name == MID.name else get_variant(name)


def size_of(variant: Variant, text: str | None) -> Size:
    """The clip's size: what was asked for, snapped, or the variant's."""
    return variant.snap_size(*parse_size(text)) if text else variant.default_size


def pipeline_of(variant: Variant, device: str) -> OviPipeline:
    """The embedded one, the same with a larger random transformer, or all random and drawn on the device."""
    if variant.name not in ("nano", MID.name):
        return random_pipeline(variant, device)
    pipeline = load_nano()
    pipeline.set_progress_bar_config(disable=True)
    if variant.name == MID.name:
        torch.manual_seed(0)
        pipeline.register_modules(transformer=components.build_transformer(MID))
    return pipeline


def transformer_of(variant: Variant, device: str) -> OviTransformer:
    """The variant's transformer alone, on the device; in bf16 on a card."""
    transformer = components.build_transformer(variant) if device == "cpu" else None
    if transformer is None:
        with torch.device("meta"):
            transformer = components.build_transformer(variant).to(torch.bfloat16)
        transformer.to_empty(device=device)
        for parameter in transformer.parameters():
            parameter.data.normal_(0, 0.02)
    return transformer.eval()


@dataclasses.dataclass(frozen=True)
class Floor:
    """Rates that no work can beat, in TFLOP/s."""

    matmul: float
    attention: float

    @staticmethod
    def measured(variant: Variant, size: Size, device: str) -> "Floor":
        """At the shape of the variant's self-attention."""
        where = torch.device(device)
        rates = attention_rates(where, variant.video_tokens(*size), 1, variant.transformer.num_attention_heads)
        return Floor(matmul_rate(where), max(rate for name, rate in rates.items() if name != "sage"))

    def seconds(self, cost: Cost) -> float:
        """Of this work."""
        return cost.matmul / self.matmul / 1e12 + cost.attention / self.attention / 1e12


def guided_step(variant: Variant, size: Size) -> Cost:
    """The work of a step with guidance: two passes, one without the skipped block; the text is projected already."""
    forward = forward_cost(variant, size)
    return forward.per_forward() + forward.per_forward(1)


def arguments(doc: str | None, model: str = "nano") -> argparse.ArgumentParser:
    """What every benchmark is asked: which model, what size, on what."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--model", default=model)
    parser.add_argument("--size", metavar="HxW")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser


def clock(device: str) -> float:
    """Seconds, to take differences of.

    On a CPU those that all threads of this process have worked: what others do on the machine meanwhile does not
    count. On a card those of the wall, when the card is done.
    """
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def alternating(
    works: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", *, wall: bool = False
) -> dict[str, list[float]]:
    """Seconds of each piece of work, in rounds: what else happens on the machine happens to all of them.

    Args:
        works: by name.
        rounds: of all of them.
        device: "cpu" or "cuda".
        wall: seconds of the wall also on a CPU, where several threads work, or a floor is of the wall.
    """
    tell = time.perf_counter if wall and device == "cpu" else functools.partial(clock, device)
    took: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = tell()
            work()
            took[name].append(tell() - start)
    return took


def medians(took: Mapping[str, list[float]]) -> dict[str, float]:
    """Of each."""
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def believed_rates() -> Rates:
    """Those of this kind of machine."""
    hardware = probe()
    return Rates.of(hardware, hardware.cards[0] if hardware.cards and hardware.torch_cuda else None)


def finish(result: Mapping[str, Any], device: str) -> None:
    """The last line: one JSON object, with where and when."""
    name = torch.cuda.get_device_name(0) if device != "cpu" else platform.processor() or platform.machine()
    about = {
        "device": name,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({**result, **about}), flush=True)
