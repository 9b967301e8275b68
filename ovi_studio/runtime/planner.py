"""The planner of one machine: `plan` with what this machine has, is told, and has learnt. Without torch."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from ovi_studio.events import Stage
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.calibration import Calibration
from ovi_studio.runtime.execution_plan import ExecutionPlan, Preferences
from ovi_studio.runtime.hardware import Hardware, probe
from ovi_studio.runtime.plan import plan, step_down
from ovi_studio.variants import get_variant


class Planner:
    """Plans runs on this machine as it is at the moment.

    Args:
        cache_dir: folder that keeps the calibration.
        preferences: what is forced.
        look: finds out what the machine has.
    """

    def __init__(
        self, cache_dir: Path, preferences: Preferences | None = None, look: Callable[[], Hardware] = probe
    ) -> None:
        self._preferences = preferences
        self._look = look
        self._calibration = Calibration(cache_dir / "calibration.json")

    def plan(self, request: GenerationRequest, held_gpu_bytes: int = 0, held_host_bytes: int = 0) -> ExecutionPlan:
        """The best plan for a resolved request.

        Args:
            request: what is asked for.
            held_gpu_bytes: of the card's memory in use, what the caller can give back.
            held_host_bytes: of host memory in use, what the caller can give back.

        Raises:
            InvalidInputError: nothing fits, or what is forced is impossible.
        """
        hardware = self._hardware(held_gpu_bytes, held_host_bytes)
        rates = self._calibration.rates(hardware)
        return plan(request, get_variant(request.variant), hardware, self._preferences, rates)

    def step_down(self, failed: ExecutionPlan, stage: Stage, request: GenerationRequest) -> ExecutionPlan:
        """The next plan after `stage` ran out of memory, when all that was held has been given back.

        Raises:
            OutOfMemoryError: there is none that needs less.
        """
        hardware, variant = self._hardware(0, 0), get_variant(request.variant)
        rates = self._calibration.rates(hardware)
        return step_down(failed, stage, request, variant, hardware, self._preferences, rates)

    def learn(self, followed: ExecutionPlan, seconds: Mapping[Stage, float]) -> None:
        """Takes a finished run's seconds into account from now on."""
        self._calibration.learn(followed, seconds, self._look())

    def _hardware(self, held_gpu_bytes: int, held_host_bytes: int) -> Hardware:
        """The machine with what is held counted as free; of several cards, the first holds it."""
        hardware = self._look()
        cards = tuple(
            dataclasses.replace(card, free_bytes=min(card.total_bytes, card.free_bytes + held_gpu_bytes))
            if index == 0
            else card
            for index, card in enumerate(hardware.cards)
        )
        free_ram = min(hardware.ram_bytes, hardware.free_ram_bytes + held_host_bytes)
        return dataclasses.replace(hardware, cards=cards, free_ram_bytes=free_ram)
