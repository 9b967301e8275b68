"""Clips as the engine makes them: seconds of every stage, planned and measured, time over floor, clips an hour.

    python benchmarks/whole_run.py --takes 2                                       # nano on a CPU
    python benchmarks/whole_run.py --model 720x720_5s --size 704x704 --device cuda --quality exact --takes 2

Takes after the first find the model loaded and their prompts encoded; clips an hour are of those.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Floor, arguments, finish, guided_step, pipeline_of, size_of, variant_of
from ovi_studio.cli.plan import preferences_of
from ovi_studio.engine.engine import OviEngine
from ovi_studio.events import CancelToken, Finished, Planned
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.execution_plan import ExecutionPlan
from ovi_studio.runtime.planner import Planner
from ovi_studio.weights.store import Store


def main() -> None:
    """Makes the takes."""
    parser = arguments(__doc__)
    parser.add_argument("--quality", default="exact")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--takes", type=int, default=2)
    parser.add_argument("--set", dest="preferences", action="append", default=[], metavar="PART=VALUE")
    options = parser.parse_args()
    variant = variant_of(options.model)
    size = size_of(variant, options.size)
    request = GenerationRequest.create(
        prompt="a red ball rolls over the floor",
        variant=variant.name,
        size=tuple(size),
        quality=options.quality,
        num_inference_steps=options.steps,
        seed=1,
    )
    takes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planner = Planner(folder, preferences_of(options.preferences))
        engine = OviEngine(
            folder, folder / "cache", planner, Store(folder), lambda chosen, _: pipeline_of(chosen, options.device)
        )
        for take in request.replace(takes=options.takes).each_take():
            start = time.perf_counter()
            *events, last = engine.generate(take, CancelToken())
            if not isinstance(last, Finished):
                raise SystemExit(f"The run failed: {last}")
            plan = next(
                event.plan for event in events if isinstance(event, Planned) and isinstance(event.plan, ExecutionPlan)
            )
            stages = {stage: measured.seconds for stage, measured in last.measured.items()}
            takes.append({"seconds": time.perf_counter() - start, "stages": stages})
        engine.close()
    steps = request.resolved().num_inference_steps or 1
    floor = steps * Floor.measured(variant, size, options.device).seconds(guided_step(variant, size))
    last_take = takes[-1]
    for stage, seconds in last_take["stages"].items():
        print(f"{stage:<14}{plan.stages[stage].seconds:>9.2f} s planned{seconds:>9.2f} s measured")
    ratio = last_take["stages"]["denoise"] / floor
    print(f"denoise: {ratio:.2f} x the floor; {3600 / last_take['seconds']:.0f} clips an hour")
    result = {
        "benchmark": "whole_run",
        "model": variant.name,
        "size": str(size),
        "quality": options.quality,
        "steps": steps,
    }
    result |= {"floor": floor, "takes": takes, "clips_per_hour": 3600 / last_take["seconds"]}
    finish(
        {**result, "torch_peak": torch.cuda.max_memory_allocated() if options.device == "cuda" else 0}, options.device
    )


if __name__ == "__main__":
    main()
