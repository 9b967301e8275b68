"""How much work a clip is: operations of every stage, and what the components weigh.

    python benchmarks/flops.py --model 960x960_10s --size 960x960 [--json]

Nothing is measured and no weights are needed: the numbers are worked out from the model's shapes. With
`--json` the last line is a JSON object for programs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ovi_studio.arithmetic import (
    COMPONENTS,
    PRECISIONS,
    Cost,
    component_bytes,
    component_weights,
    forward_cost,
    stage_work,
    text_cache_bytes,
)
from ovi_studio.errors import InvalidInputError
from ovi_studio.variants import VARIANTS, Size, Variant, get_variant, parse_size

STAGE_TITLES = {
    "encode_text": "encode one prompt (once)",
    "encode_image": "encode a first frame (once)",
    "denoise": "one forward (two a step)",
    "decode_video": "decode the picture (once)",
    "decode_audio": "decode the sound (once)",
}


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables for the command line's model and size; returns the exit code."""
    parser = argparse.ArgumentParser(description="Operations and weights of a clip, worked out from the shapes.")
    parser.add_argument("--model", default="720x720_5s", metavar="NAME", help=f"one of: {', '.join(VARIANTS)}")
    parser.add_argument("--size", metavar="HxW", help="size of the clip; snaps as in generation (default: the model's)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(arguments)
    try:
        variant = get_variant(options.model)
        size = variant.snap_size(*parse_size(options.size)) if options.size else variant.default_size
    except InvalidInputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    print_tables(variant, size)
    if options.json:
        print(json.dumps(facts(variant, size)))
    return 0


def facts(variant: Variant, size: Size) -> dict[str, Any]:
    """All numbers of the tables, for programs. A forward is one guidance pass; cached text is not in it."""
    stages = stage_work(variant, size)
    forward = forward_cost(variant, size)
    return {
        "model": variant.name,
        "size": str(size),
        "frames": variant.num_frames,
        "video_tokens": variant.video_tokens(*size),
        "audio_tokens": variant.audio_tokens,
        "tflop_per_forward": tera(stages["denoise"].operations),
        "tflop_per_forward_matmul": tera(stages["denoise"].matmul),
        "tflop_per_forward_attention": tera(stages["denoise"].attention),
        "tflop_per_run_cached_text": tera(forward.per_run.operations),
        "parts_tflop": {name: tera(cost.operations) for name, cost in vars(forward).items() if isinstance(cost, Cost)},
        "stages_tflop": {stage: tera(cost.operations) for stage, cost in stages.items()},
        "parameters": {name: cost.parameters for name, cost in component_weights(variant).items()},
        "bytes": {name: {p: component_bytes(variant, name, p) for p in PRECISIONS} for name in COMPONENTS},
        "text_cache_bytes": text_cache_bytes(variant),
    }


def print_tables(variant: Variant, size: Size) -> None:
    """Three tables: stages, the parts of one forward, and weights."""
    stages = stage_work(variant, size)
    print(f"{variant.name} at {size}, {variant.num_frames} frames: ", end="")
    print(f"{variant.video_tokens(*size):,} video and {variant.audio_tokens} audio tokens\n")

    unit, scale = ("TFLOP", 1e12) if stages["denoise"].operations > 1e12 else ("GFLOP", 1e9)
    print(f"{unit:<32}{'matrix products':>16}{'attention':>12}{'total':>12}")
    for stage, cost in stages.items():
        print_row(STAGE_TITLES[stage], cost, scale)
    steps = variant.defaults.num_inference_steps
    print_row(f"{steps} steps, two forwards each", 2 * steps * stages["denoise"], scale)

    print("\nOf one forward (text_* is the same at every step: computed once and kept)")
    for name, cost in vars(forward_cost(variant, size)).items():
        if isinstance(cost, Cost) and cost.operations:
            print_row(f"  {name}", cost, scale)

    print(f"\n{'Weights, MB':<16}{'parameters':>16}" + "".join(f"{precision:>11}" for precision in PRECISIONS))
    for component, cost in component_weights(variant).items():
        sizes = (component_bytes(variant, component, precision) / 1e6 for precision in PRECISIONS)
        print(f"  {component:<14}{cost.parameters:>16,}" + "".join(f"{megabytes:>11,.1f}" for megabytes in sizes))
    print(f"Text keys and values of two prompts: {text_cache_bytes(variant) / 1e6:,.1f} MB in bfloat16")


def print_row(title: str, cost: Cost, scale: float) -> None:
    """One row of a table of operations, in units of `scale`."""
    matmul, attention, total = (value / scale for value in (cost.matmul, cost.attention, cost.operations))
    print(f"{title:<32}{matmul:>16,.3f}{attention:>12,.3f}{total:>12,.3f}")


def tera(operations: int) -> float:
    """Operations in units of 10¹²."""
    return operations / 1e12


if __name__ == "__main__":
    sys.exit(main())
