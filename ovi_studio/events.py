"""What an engine tells its caller while it works, and how the caller asks it to stop.

    Planned → StageStarted → StepDone … → StageStarted → … → Finished | Failed | Cancelled
              └────────────── once for every stage ───────┘   exactly one of these, and it is the last

Events cross processes: they are small, frozen, picklable, and hold no arrays and no open files.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, get_args

from ovi_studio.errors import CancelledError, OviStudioError

Stage: TypeAlias = Literal["draw frame", "load", "encode text", "first frame", "denoise", "decode", "mux"]
STAGES: tuple[Stage, ...] = get_args(Stage)  # in the order in which a run passes them; it may skip some


class Plan(Protocol):
    """What `Planned` carries. The planner lives in a higher room; here only its plain data is known."""

    def to_json(self) -> dict[str, Any]:
        """The plan as data that `json.dumps` accepts."""


class FinishedClip(Protocol):
    """What `Finished` carries: a `media.Clip`, of which this room only needs to know where it lies."""

    @property
    def path(self) -> Path:
        """A temporary file; the receiver moves it to its final name."""


@dataclass(frozen=True)
class Measured:
    """What a stage really took; the plan holds what was predicted.

    Args:
        gpu_bytes: peak of tensors on the card; 0 on a CPU.
        host_bytes: peak of the process in host memory.
        seconds: from its start to the next stage's.
    """

    gpu_bytes: int
    host_bytes: int
    seconds: float


@dataclass(frozen=True)
class Planned:
    """How the run will use the machine, told before anything is loaded, and again when it must be changed.

    Args:
        plan: the plan that is followed from here on.
        note: why it replaces the one before; empty for the first.
    """

    plan: Plan
    note: str = ""
    name: ClassVar[str] = "planned"


@dataclass(frozen=True)
class StageStarted:
    """The run has entered a stage; the stage before it is over."""

    stage: Stage
    name: ClassVar[str] = "stage started"


@dataclass(frozen=True)
class StepDone:
    """`step` of `steps` of the current stage is done (counted from 1).

    Args:
        step: steps done so far.
        steps: steps of this stage.
        seconds_left: until the whole run is finished; None while there is nothing to judge by.
        preview: a small JPEG of the picture as it looks now, or None when this step has none.
        sound: a WAV file of the sound as it is now, or None when this step has none.
    """

    step: int
    steps: int
    seconds_left: float | None
    preview: bytes | None = None
    sound: bytes | None = None
    name: ClassVar[str] = "step done"


@dataclass(frozen=True)
class FrameDrawn:
    """The first frame is drawn, or was before: the run goes on with it.

    Args:
        path: a PNG in the cache, which keeps the newest ones only: take a copy of it to keep it.
        seed: that it was drawn with.
    """

    path: Path
    seed: int
    name: ClassVar[str] = "frame drawn"


@dataclass(frozen=True)
class Finished:
    """The clip is whole, under a temporary name.

    Args:
        clip: where it lies.
        measured: what every stage took; empty where nobody measures.
    """

    clip: FinishedClip
    measured: Mapping[Stage, Measured] = field(default_factory=dict)
    name: ClassVar[str] = "finished"

    @property
    def peak_gpu_bytes(self) -> int | None:
        """Of the stage that took most on the card; None where nobody measures."""
        return max((took.gpu_bytes for took in self.measured.values()), default=None)

    @property
    def peak_host_bytes(self) -> int | None:
        """The same of host memory."""
        return max((took.host_bytes for took in self.measured.values()), default=None)


@dataclass(frozen=True)
class Failed:
    """The run ended without a clip: the words and the exit code of an `OviStudioError`, as plain data."""

    problem: str
    remedy: str
    exit_code: int = OviStudioError.exit_code
    name: ClassVar[str] = "failed"

    @classmethod
    def from_error(cls, error: OviStudioError) -> "Failed":
        """The event that reports `error`."""
        return cls(error.problem, error.remedy, error.exit_code)


@dataclass(frozen=True)
class Cancelled:
    """The run was stopped by `CancelToken.cancel`; nothing is left behind."""

    name: ClassVar[str] = "cancelled"


Event: TypeAlias = Planned | StageStarted | StepDone | FrameDrawn | Finished | Failed | Cancelled


def to_json(event: Event) -> dict[str, Any]:
    """`event` as one line's worth of JSON data; of picture and sound only their sizes are told."""
    data: dict[str, Any] = {"event": event.name}
    match event:
        case Planned(plan, note):
            data |= {"plan": plan.to_json()} | ({"note": note} if note else {})
        case StageStarted(stage):
            data["stage"] = stage
        case StepDone(step, steps, seconds_left, preview, sound):
            data |= {"step": step, "steps": steps, "seconds_left": seconds_left}
            data["preview_bytes"] = None if preview is None else len(preview)
            data["sound_bytes"] = None if sound is None else len(sound)
        case FrameDrawn(path, seed):
            data |= {"path": str(path), "seed": seed}
        case Finished(clip, measured):
            data |= {"path": str(clip.path), "measured": {stage: asdict(took) for stage, took in measured.items()}}
        case Failed(problem, remedy, exit_code):
            data |= {"problem": problem, "remedy": remedy, "exit_code": exit_code}
        case Cancelled():
            pass
    return data


def ending_in_words(events: Iterator[Event]) -> Iterator[Event]:
    """The same events; what ends them early becomes the last one."""
    try:
        yield from events
    except CancelledError:
        yield Cancelled()
    except OviStudioError as error:
        yield Failed.from_error(error)


class CancelToken:
    """The caller's way to stop a run: set from any thread or signal handler, looked at within every step."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._early = threading.Event()

    def cancel(self) -> None:
        """Ask the run to stop. It cannot be taken back."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has been called."""
        return self._event.is_set()

    def finish_early(self) -> None:
        """Ask the run to end its denoising after this step, and to make the clip of what there is."""
        self._early.set()

    @property
    def finishing_early(self) -> bool:
        """Whether `finish_early` has been called."""
        return self._early.is_set()

    def raise_if_cancelled(self) -> None:
        """Raise `CancelledError` once `cancel` has been called."""
        if self.cancelled:
            raise CancelledError


class Progress:
    """Seconds left of a run, right after its first few steps.

    Time left = steps left × the median of the stage's recent steps + the stages to come. The first step of
    a stage pays for compilation, allocation and cold caches: nothing is concluded from it.
    The estimates given for whole stages come from arithmetic and are off by one common factor (the
    machine's speed); once the current stage has been timed, the stages to come are scaled by that factor.

    Args:
        estimates: expected seconds of every stage that the run will pass, as far as they are known.
        clock: seconds from any fixed point, monotonic.
    """

    RECENT = 9  # steps looked at: enough for a median to shrug off hiccups, few enough to follow a change

    def __init__(
        self, estimates: Mapping[Stage, float] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._estimates = dict(estimates or {})
        self._clock = clock
        self._factor = 1.0
        self.start_stage(min(self._estimates, key=STAGES.index, default="load"))

    def start_stage(self, stage: Stage) -> None:
        """The run enters `stage`."""
        self._stage: Stage = stage
        self._step = self._steps = 0
        self._step_seconds: list[float] = []
        self._last = self._clock()

    def finish_step(self, step: int, steps: int) -> None:
        """`step` of `steps` of the current stage is done."""
        now = self._clock()
        self._step_seconds.append(now - self._last)
        self._step, self._steps, self._last = step, steps, now
        expected = self._estimates.get(self._stage)
        if expected and len(self._step_seconds) > 1:
            self._factor = self._seconds_per_step() * steps / expected

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run ends; None when the current stage has neither two steps nor an estimate."""
        since_last = self._clock() - self._last
        expected = self._estimates.get(self._stage)
        last_step = 0 < self._step == self._steps
        if len(self._step_seconds) > 1 or last_step:
            in_stage = self._seconds_per_step() * (self._steps - self._step)
        elif expected is None:
            return None
        else:
            share_left = 1 - self._step / self._steps if self._steps else 1.0
            in_stage = self._factor * expected * share_left
        to_come = STAGES[STAGES.index(self._stage) + 1 :]
        later = self._factor * sum(self._estimates.get(stage, 0.0) for stage in to_come)
        return max(in_stage - since_last, 0.0) + later

    def _seconds_per_step(self) -> float:
        settled = self._step_seconds[1:] or self._step_seconds
        return statistics.median(settled[-self.RECENT :])
