"""A step of the transformer: time over floor, and where the time goes.

python benchmarks/forward.py --model mid                                          # on a CPU
python benchmarks/forward.py --model 720x720_5s --size 704x704 --device cuda --compile --profile
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    Floor,
    alternating,
    arguments,
    finish,
    guided_step,
    medians,
    size_of,
    transformer_of,
    variant_of,
)
from ovi_studio.model.sampler import FusedSampler, Guidance, TextStates, draw_noise
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.variants import Size, Variant


@torch.no_grad()
def main() -> None:
    """Measures guided steps, batched and one pass after the other."""
    parser = arguments(__doc__, "mid")
    parser.add_argument("--attention", default="native", help="backend (default: native)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print the operators that take most time and bytes")
    options = parser.parse_args()
    variant = variant_of(options.model)
    size = size_of(variant, options.size)
    transformer = transformer_of(variant, options.device)
    if options.attention != "native":
        transformer.set_attention_backend(options.attention)
    if options.compile:
        for block in transformer.blocks:
            block.forward = torch.compile(block.forward)
    steps = {
        name: Step(transformer, variant, size, options.device, batched)
        for name, batched in (("batched", True), ("sequential", False))
    }
    for step in steps.values():
        step()  # warm, and compiled
    took = medians(alternating(steps, options.rounds, options.device, wall=True))
    if options.profile:
        print_profile(steps["batched"], options.device)
    floor = Floor.measured(variant, size, options.device).seconds(guided_step(variant, size))
    for name, seconds in took.items():
        print(f"{variant.name} at {size}, one guided step, {name}: {seconds:.3f} s, {seconds / floor:.2f} x the floor")
    result = {"benchmark": "forward", "model": variant.name, "size": str(size), "floor": floor, "seconds": took}
    finish({**result, "compile": options.compile, "attention": options.attention}, options.device)


class Step:
    """A guided step from fresh noise, with the text projected beforehand."""

    def __init__(self, model: OviTransformer, variant: Variant, size: Size, device: str, batched: bool) -> None:
        draw = torch.Generator().manual_seed(0)
        states = (torch.randn(1, variant.text_len, variant.transformer.text_dim, generator=draw) for _ in range(3))
        dtype = next(model.parameters()).dtype
        text = TextStates(*(state.to(device, dtype) for state in states))
        shape = (variant.transformer.in_channels, *variant.latent_grid(*size))
        self._noise = draw_noise(shape, (variant.audio_latents, variant.transformer.audio_in_channels), (draw, draw))
        self._sampler = FusedSampler(model, text, Guidance(4.0, 3.0, 1, batched), "euler", 5.0, 50)
        self._latents = self._sampler.begin(self._noise)
        self._left = iter(range(50))

    @torch.no_grad()
    def __call__(self) -> Any:
        """The next one."""
        self._latents = self._sampler.step(self._latents, next(self._left))
        return self._latents


def print_profile(step: Step, device: str) -> None:
    """The operators of a step by their own time, and by the bytes that they allocate."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with profile(activities=activities, profile_memory=True) as profiled:
        step()
    kind = "cpu" if device == "cpu" else "device"
    averages = profiled.key_averages()
    for title, attribute, unit in (
        ("time, ms", f"self_{kind}_time_total", 1e3),
        ("bytes, MB", f"self_{kind}_memory_usage", 1e6),
    ):
        total = sum(max(0, getattr(event, attribute)) for event in averages)
        print(f"\nTop operators by {title} (of {total / unit:,.0f})")
        for event in sorted(averages, key=lambda event: -getattr(event, attribute))[:10]:
            value = getattr(event, attribute)
            print(f"  {event.key:<44}{value / unit:>10,.1f}{value / total:>8.1%}{event.count:>7}")
    print()


if __name__ == "__main__":
    main()
