"""What several cards gain: seconds of a step of the loop on one and on all of them, beside what was predicted.

    python benchmarks/parallel.py --gpus 4 --json                        # 720x720_5s at 704×704 with random weights
    python benchmarks/parallel.py --model nano --device cpu --gpus 2     # processes of this CPU: shows that it runs

The engine makes whole clips as it always does, first on one card, then on all; each the second time, when everything is
loaded. The last line is one JSON object.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from ovi_studio.engine.engine import OviEngine
from ovi_studio.events import CancelToken, Finished, Planned
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime import teams
from ovi_studio.runtime.execution_plan import ExecutionPlan, Parallel, Preferences
from ovi_studio.runtime.hardware import Held, probe
from ovi_studio.runtime.memory import Workload
from ovi_studio.runtime.planner import NOTHING_HELD, Planner
from ovi_studio.variants import Variant, get_variant
from ovi_studio.weights.store import Store


def load_on_card(variant: Variant, _store: Store) -> OviPipeline:
    """Random weights, drawn on a card; every rank draws the same."""
    return common.pipeline_of(variant, "cuda")


def load_on_cpu(variant: Variant, _store: Store) -> OviPipeline:
    """The same without a card."""
    return common.pipeline_of(variant, "cpu")


class CpuTeam(Planner):
    """Plans for processes of this CPU, which no plan for use would choose."""

    def __init__(self, folder: Path, ranks: int) -> None:
        super().__init__(folder)
        self._ranks = ranks

    def plan(self, request: GenerationRequest, held: Held = NOTHING_HELD) -> ExecutionPlan:
        """As for one process, shared by all."""
        plan = super().plan(request, held)
        if self._ranks == 1:
            return plan
        groups = 2 if self._ranks % 2 == 0 else 1
        parallel = Parallel(self._ranks, groups, self._ranks // groups, ("cpu",) * self._ranks)
        return dataclasses.replace(plan, parallel=parallel, guidance="split" if groups == 2 else plan.guidance)


def main() -> None:
    """Measures one card, then all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="720x720_5s")
    parser.add_argument("--size", metavar="HxW", default=None)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--gpus", type=int, default=2, metavar="N")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args()
    variant = get_variant(options.model)
    size = common.size_of(variant, options.size)
    request = GenerationRequest.create(
        prompt="a red ball rolls over the floor", variant=variant.name, size=tuple(size), quality="exact",
        num_inference_steps=options.steps, seed=1,
    ).resolved()  # fmt: skip
    alone, plan = measured(request, 1, options.device)
    together, shared = measured(request, options.gpus, options.device)
    result: dict[str, Any] = {
        "benchmark": "parallel", "model": variant.name, "size": list(size), "cards": options.gpus,
        "device": plan.device_name, "layout": [shared.parallel.guidance_groups, shared.parallel.sequence],
        "step_seconds": [alone["denoise"] / options.steps, together["denoise"] / options.steps],
        "decode_seconds": [alone["decode"], together["decode"]],
        "efficiency": alone["denoise"] / together["denoise"] / options.gpus,
    }  # fmt: skip
    if options.device == "cuda":
        result["predicted"] = teams.efficiencies(Workload.of(request, variant), probe(), [options.gpus])[0]
    if not options.json:
        print(f"a step: {result['step_seconds'][0]:.3f} s on one, {result['step_seconds'][1]:.3f} s on {options.gpus}")
    print(json.dumps(result))


def measured(request: GenerationRequest, ranks: int, device: str) -> tuple[dict[str, float], ExecutionPlan]:
    """Seconds of every stage of the second clip, and its plan."""
    from benchmarks.parallel import load_on_card, load_on_cpu  # noqa: PLC0415  # names that other ranks can import

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preferences = Preferences(gpus=tuple(range(ranks)))
        planner = Planner(folder, preferences) if device == "cuda" else CpuTeam(folder, ranks)
        load = load_on_card if device == "cuda" else load_on_cpu
        engine = OviEngine(folder, folder / "cache", planner, Store(folder), load)
        with contextlib.closing(engine):
            list(engine.generate(request, CancelToken()))
            events = list(engine.generate(request, CancelToken()))
    if not isinstance(last := events[-1], Finished):
        raise SystemExit(f"The run failed: {last}")
    plan = next(event.plan for event in events if isinstance(event, Planned))
    if not isinstance(plan, ExecutionPlan):
        raise TypeError(plan)
    return {stage: took.seconds for stage, took in last.measured.items()}, plan


if __name__ == "__main__":
    main()
