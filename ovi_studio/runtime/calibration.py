"""What runs on this machine taught: its real rates, kept in a file, so that the next prediction is nearer.

A stage that took twice as long as predicted halves the rates that its prediction stood on, in part: a single run
may have been disturbed.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from ovi_studio.errors import InvalidInputError, MediaError
from ovi_studio.events import Stage
from ovi_studio.files import replacing
from ovi_studio.runtime.execution_plan import ExecutionPlan
from ovi_studio.runtime.hardware import Hardware
from ovi_studio.runtime.rates import Rates

TRUST = 0.5  # of a single run, as the exponent of its ratio; guessed
MIN_SECONDS = 0.2  # shorter stages are ruled by start-up costs that rates do not describe; guessed
LARGEST_CHANGE = 4.0  # by one run; guessed

# Which rates a stage's seconds mostly stand on.
_RATES_OF: Mapping[Stage, tuple[str, ...]] = {
    "load": ("disk",),
    "encode text": ("matmul",),
    "denoise": ("matmul", "matmul_fp8", "attention", "memory"),
    "decode": ("convolution",),
}


class Calibration:
    """The rates of every device of this machine, as far as runs have shown them.

    Args:
        file: JSON; it need not exist yet. What cannot be read is as good as absent.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rates = _read(file)

    def rates(self, hardware: Hardware) -> Rates | None:
        """The rates of the machine's device if runs have taught some; None leaves it to the defaults.

        Machines with unlike cards are left to the defaults: the planner takes one set of rates.
        """
        names = {card.name for card in hardware.cards} or {"the CPU"}
        return self._rates.get(names.pop()) if len(names) == 1 else None

    def learn(self, plan: ExecutionPlan, seconds: Mapping[Stage, float], hardware: Hardware) -> None:
        """Mends the rates of the plan's device by how long its stages really took, and keeps them.

        A run on several cards teaches nothing: its seconds stand on their link too, which has no rate of its own here.
        """
        if plan.parallel.gpus > 1:
            return
        card = next((card for card in hardware.cards if card.name == plan.device_name), None)
        rates = self._rates.get(plan.device_name) or Rates.of(hardware, card)
        for stage, names in _RATES_OF.items():
            predicted = plan.stages[stage].seconds if stage in plan.stages else 0.0
            took = seconds.get(stage, 0.0)
            told_by_rates = stage != "denoise" or plan.step_cache == "none"  # what it leaves out differs by the clip
            if told_by_rates and min(predicted, took) >= MIN_SECONDS:
                ratio = min(max(predicted / took, 1 / LARGEST_CHANGE), LARGEST_CHANGE) ** TRUST
                rates = dataclasses.replace(rates, **{name: getattr(rates, name) * ratio for name in names})
        self.keep(plan.device_name, dataclasses.replace(rates, origin="calibrated by runs on this machine"))

    def keep(self, device_name: str, rates: Rates) -> None:
        """Takes these for the device's rates from now on."""
        self._rates[device_name] = rates
        text = json.dumps({name: rates.to_json() for name, rates in self._rates.items()}, indent=1)
        with contextlib.suppress(OSError, MediaError):  # it is a convenience: a run must not fail for it
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._file) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _read(file: Path) -> dict[str, Rates]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {name: Rates.from_json(rates) for name, rates in data.items()} if isinstance(data, dict) else {}
    except (OSError, ValueError, InvalidInputError):  # not there, damaged or of another version: learn anew
        return {}
