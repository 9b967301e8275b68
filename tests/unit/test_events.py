import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import pytest

from ovi_studio.errors import CancelledError, InvalidRequestError
from ovi_studio.events import (
    STAGES,
    Cancelled,
    CancelToken,
    Event,
    Failed,
    Finished,
    FrameDrawn,
    Planned,
    Progress,
    StageStarted,
    StepDone,
    to_json,
)


@dataclass(frozen=True)
class SomePlan:
    peak: int

    def to_json(self) -> dict[str, Any]:
        return {"peak": self.peak}


@dataclass(frozen=True)
class SomeClip:
    path: Path


EVENTS: list[tuple[Event, dict[str, Any]]] = [
    (Planned(SomePlan(7)), {"event": "planned", "plan": {"peak": 7}}),
    (StageStarted("encode text"), {"event": "stage started", "stage": "encode text"}),
    (
        StepDone(3, 50, 12.5, b"\xff\xd8jpeg", b"RIFF"),
        {"event": "step done", "step": 3, "steps": 50, "seconds_left": 12.5, "preview_bytes": 6, "sound_bytes": 4},
    ),
    (
        StepDone(1, 50, None),
        {
            "event": "step done",
            "step": 1,
            "steps": 50,
            "seconds_left": None,
            "preview_bytes": None,
            "sound_bytes": None,
        },
    ),
    (FrameDrawn(Path("a.png"), 7), {"event": "frame drawn", "path": "a.png", "seed": 7}),
    (Finished(SomeClip(Path("a.mp4"))), {"event": "finished", "path": "a.mp4", "measured": {}}),
    (
        Failed("It broke.", "Try again.", 2),
        {"event": "failed", "problem": "It broke.", "remedy": "Try again.", "exit_code": 2},
    ),
    (Cancelled(), {"event": "cancelled"}),
]


@pytest.mark.parametrize(("event", "expected"), EVENTS, ids=lambda value: type(value).__name__)
def test_events_cross_processes_and_print_as_json_lines(event: Event, expected: dict[str, Any]) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    assert json.loads(json.dumps(to_json(event))) == expected


def test_events_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        StageStarted("load").stage = "mux"  # type: ignore[misc]


def test_failed_tells_what_the_error_says() -> None:
    failed = Failed.from_error(InvalidRequestError("No steps.", "Give 1 to 200."))
    assert failed == Failed("No steps.", "Give 1 to 200.", exit_code=2)


def test_cancel_token() -> None:
    token = CancelToken()
    token.raise_if_cancelled()
    assert not token.cancelled
    token.cancel()
    token.cancel()
    assert token.cancelled
    with pytest.raises(CancelledError):
        token.raise_if_cancelled()


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run_steps(progress: Progress, clock: FakeClock, seconds: list[float], steps: int) -> list[Any]:
    """Seconds left as told after each step that took the given seconds."""
    told: list[Any] = []
    for step, spent in enumerate(seconds, start=1):
        clock.now += spent
        progress.finish_step(step, steps)
        told.append(progress.seconds_left)
    return told


def test_nothing_is_told_while_nothing_is_known() -> None:
    progress = Progress(clock=FakeClock())
    assert progress.seconds_left is None
    progress.start_stage("denoise")
    assert progress.seconds_left is None


def test_the_slow_first_step_is_ignored() -> None:
    clock = FakeClock()
    progress = Progress(clock=clock)
    progress.start_stage("denoise")
    told = run_steps(progress, clock, [30.0] + [2.0] * 49, steps=50)
    assert told[0] is None  # the first step says nothing about the others
    assert told[1:] == [2.0 * left for left in range(48, -1, -1)]


def test_a_run_of_one_step() -> None:
    clock = FakeClock()
    progress = Progress({"decode": 4.0}, clock)
    progress.start_stage("denoise")
    assert run_steps(progress, clock, [30.0], steps=1) == [4.0]


def test_a_hiccup_changes_nothing_and_a_lasting_change_is_followed() -> None:
    clock = FakeClock()
    progress = Progress(clock=clock)
    progress.start_stage("denoise")
    told = run_steps(progress, clock, [1.0] * 10 + [60.0] + [1.0] * 9 + [3.0] * 10, steps=50)
    assert told[10] == 1.0 * 39
    assert told[29] == 3.0 * 20


def test_stages_to_come_are_counted_at_the_speed_of_the_machine() -> None:
    clock = FakeClock()
    progress = Progress({"load": 1.0, "denoise": 10.0, "decode": 4.0, "mux": 1.0}, clock)
    assert progress.seconds_left == 16.0
    clock.now += 0.5
    assert progress.seconds_left == 15.5
    progress.start_stage("denoise")
    assert progress.seconds_left == 15.0
    # The machine is three times slower than the estimates say: 10 steps of 3 s.
    told = run_steps(progress, clock, [9.0, 3.0, 3.0], steps=10)
    assert told[0] == pytest.approx(9.0 + 5.0)  # the first step alone does not overrule the estimate
    assert told[1] == pytest.approx(8 * 3.0 + 15.0)
    assert told[2] == pytest.approx(7 * 3.0 + 15.0)
    progress.start_stage("decode")
    assert progress.seconds_left == pytest.approx(15.0)


def test_a_run_begins_with_the_first_stage_that_it_has() -> None:
    estimates = {"load": 1.0, "denoise": 10.0}
    assert Progress(estimates, FakeClock()).seconds_left == 11.0
    assert Progress({"denoise": 10.0, "draw frame": 5.0, "load": 1.0}, FakeClock()).seconds_left == 16.0


def test_time_runs_down_between_steps_and_never_below_zero() -> None:
    clock = FakeClock()
    progress = Progress(clock=clock)
    progress.start_stage("denoise")
    run_steps(progress, clock, [2.0, 2.0], steps=3)
    clock.now += 1.5
    assert progress.seconds_left == pytest.approx(0.5)
    clock.now += 10
    assert progress.seconds_left == 0.0


def test_within_a_tenth_from_the_third_step_on() -> None:
    """A run whose steps vary by 5 % around one second: what is told early is what comes true."""
    clock = FakeClock()
    progress = Progress({"denoise": 4.0, "decode": 2.0}, clock)  # a guess, and far off: 30 s and 15 s
    progress.start_stage("denoise")
    seconds = [5.0] + [1.05 if step % 2 else 0.95 for step in range(29)]
    told = run_steps(progress, clock, seconds, steps=30)
    for step in range(3, 30):
        assert told[step - 1] == pytest.approx(sum(seconds[step:]) + 15.0, rel=0.1)


def test_stage_names_and_no_torch() -> None:
    assert STAGES == ("draw frame", "load", "encode text", "first frame", "denoise", "decode", "mux")
    code = "import ovi_studio.events, sys; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]
