"""`ovi-studio bench`: what this machine reaches, predicted against measured, kept for every plan from then on."""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovi_studio.cli.console import print_line, say
from ovi_studio.cli.generate import follow, make_display, make_engine
from ovi_studio.errors import EngineError
from ovi_studio.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ovi_studio.events import Event
    from ovi_studio.request import GenerationRequest

RATES = ("matmul", "matmul_fp8", "attention", "convolution", "memory", "host_to_card")
PROMPT = "A red face on the left says <S>seven three<E>. Audio: a low voice."


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio bench`."""
    parser = commands.add_parser(
        "bench",
        help="measure this machine, so that plans and times are right",
        description="Measure this machine's rates and attention kernels, make a clip, and hold it against its plan.",
        epilog="What is measured is kept, and every plan from then on is made with it. It takes about two minutes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", dest="variant", metavar="NAME", default="nano", help=f"of the clip: {', '.join(VARIANTS)} (nano)"
    )
    parser.add_argument("--steps", dest="num_inference_steps", type=int, metavar="N", help="of the clip, 1 to 200")
    parser.add_argument("--json", action="store_true", help="print the result as a line of JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures, keeps, makes a clip, compares."""
    import torch  # noqa: PLC0415

    from ovi_studio.folders import app_folders  # noqa: PLC0415
    from ovi_studio.request import GenerationRequest  # noqa: PLC0415
    from ovi_studio.runtime.calibration import Calibration  # noqa: PLC0415
    from ovi_studio.runtime.hardware import probe  # noqa: PLC0415
    from ovi_studio.runtime.measure import measure_rates  # noqa: PLC0415
    from ovi_studio.runtime.rates import Rates  # noqa: PLC0415

    request = GenerationRequest.create(
        prompt=PROMPT, variant=arguments.variant, num_inference_steps=arguments.num_inference_steps, seed=1
    )
    # 1. rates
    hardware = probe()
    card = hardware.cards[0] if hardware.cards and hardware.torch_cuda else None
    believed = Rates.of(hardware, card)
    say(f"measuring {card.name if card else 'the CPU'}")
    rates = measure_rates(torch.device("cuda:0" if card else "cpu"), believed)
    Calibration(app_folders().cache / "calibration.json").keep(card.name if card else "the CPU", rates)
    # 2. a clip by a plan that stands on them
    predicted, took = _clip(request)
    # 3. the comparison
    result = {
        "device": card.name if card else "the CPU",
        "rates": {name: {"believed": getattr(believed, name), "measured": getattr(rates, name)} for name in RATES},
        "kernels": dict(rates.kernels),
        "stages": {stage: {"predicted": predicted[stage], "measured": took[stage]} for stage in took},
    }
    for line in [json.dumps(result)] if arguments.json else _table(result):
        print_line(line)
    return 0


def _clip(request: "GenerationRequest") -> tuple[dict[str, float], dict[str, float]]:
    """The seconds of each stage of a clip, as planned and as they were; the clip itself is not kept."""
    from ovi_studio.events import CancelToken, Finished, Planned  # noqa: PLC0415
    from ovi_studio.runtime.execution_plan import ExecutionPlan  # noqa: PLC0415

    planned: dict[str, float] = {}

    def noted(events: "Iterable[Event]") -> "Iterator[Event]":
        for event in events:
            if isinstance(event, Planned) and isinstance(event.plan, ExecutionPlan):
                planned.update({stage: part.seconds for stage, part in event.plan.stages.items()})
            yield event

    with (
        tempfile.TemporaryDirectory(prefix="ovi-studio-bench-") as folder,
        contextlib.closing(make_engine(Path(folder))) as engine,
    ):
        last = follow(noted(engine.generate(request, CancelToken())), make_display(1, json_lines=False))
    if not isinstance(last, Finished):
        raise EngineError("The engine stopped without a clip.", "Run it again; report it if it recurs.")
    return planned, {stage: measured.seconds for stage, measured in last.measured.items()}


def _table(result: dict[str, Any]) -> list[str]:
    """For a person."""
    lines = [f"{result['device']:<28}{'believed':>12}{'measured':>12}"]
    for name, pair in result["rates"].items():
        unit = "GB/s" if name in ("memory", "host_to_card") else "TFLOP/s"
        lines.append(f"  {name + ', ' + unit:<26}{pair['believed']:>12.3g}{pair['measured']:>12.3g}")
    lines += [f"  attention kernel {name:<15}{share:>18.0%}" for name, share in result["kernels"].items()]
    lines.append(f"{'seconds of':<28}{'predicted':>12}{'measured':>12}")
    lines += [
        f"  {stage:<26}{pair['predicted']:>12.2f}{pair['measured']:>12.2f}" for stage, pair in result["stages"].items()
    ]
    return lines
