"""The planner of one machine: `plan` with what this machine has, is told, and has learnt. Without torch."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ovi_studio.events import Stage
from ovi_studio.flux import ImageModel
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.calibration import Calibration
from ovi_studio.runtime.execution_plan import ExecutionPlan, Preferences
from ovi_studio.runtime.hardware import Hardware, Held, probe
from ovi_studio.runtime.plan import plan, step_down
from ovi_studio.variants import get_variant
from ovi_studio.weights.image_model import installed_image_model

NOTHING_HELD = Held()


class Planner:
    """Plans runs on this machine as it is at the moment.

    Args:
        cache_dir: folder that keeps the calibration.
        preferences: what is forced.
        look: finds out what the machine has.
        image_model: finds out what draws first frames; by default the application's.
    """

    def __init__(
        self,
        cache_dir: Path,
        preferences: Preferences | None = None,
        look: Callable[[], Hardware] = probe,
        image_model: Callable[[], ImageModel] = installed_image_model,
    ) -> None:
        self._preferences = preferences
        self._look = look
        self._image_model = image_model
        self._calibration = Calibration(cache_dir / "calibration.json")

    def plan(self, request: GenerationRequest, held: Held = NOTHING_HELD) -> ExecutionPlan:
        """The best plan for a resolved request.

        Args:
            request: what is asked for.
            held: of the memory in use, what the caller has itself.

        Raises:
            InvalidInputError: nothing fits, or what is forced is impossible.
        """
        hardware = held.freed(self._look())
        rates = self._calibration.rates(hardware)
        variant = get_variant(request.variant)
        return plan(request, variant, hardware, self._preferences, rates, self._image_model())

    def step_down(self, failed: ExecutionPlan, stage: Stage, request: GenerationRequest) -> ExecutionPlan:
        """The next plan after `stage` ran out of memory, when all that was held has been given back.

        Raises:
            OutOfMemoryError: there is none that needs less.
        """
        hardware, variant = self._look(), get_variant(request.variant)
        rates = self._calibration.rates(hardware)
        return step_down(failed, stage, request, variant, hardware, self._preferences, rates, self._image_model())

    def learn(self, followed: ExecutionPlan, seconds: Mapping[Stage, float]) -> None:
        """Takes a finished run's seconds into account from now on."""
        self._calibration.learn(followed, seconds, self._look())
