"""`WorkerEngine` over real processes with fake engines: what it tells, how it stops, what it survives.

The fakes below are made in the worker, which imports this module: no torch at its head.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from ovi_studio.engine import Engine
from ovi_studio.engine.worker import WorkerEngine
from ovi_studio.errors import WeightsError
from ovi_studio.events import Cancelled, CancelToken, Event, Failed, Finished, FrameDrawn, StageStarted, StepDone
from ovi_studio.media import read_clip
from ovi_studio.request import GeneratedFrame, GenerationRequest
from tests.fakes import FakeEngine

REPOSITORY = Path(__file__).parents[2]
SOON = 5.0  # seconds within which a death must be told
LONG = 600.0  # seconds that no test waits for


# --- Engines that live in the worker ---------------------------------------------------------------------


class TellingEngine(FakeEngine):
    """Every preview holds the process number of the worker."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        for event in super().generate(request, cancel):
            yield StepDone(event.step, event.steps, None, pid_preview()) if isinstance(event, StepDone) else event


class LongStepEngine(FakeEngine):
    """One step, then a second one that ends only when the token is set, as a real one looks at it in every block."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield StepDone(1, 2, None, pid_preview())
        (self.folder / ".half.part").write_bytes(b"half a clip")
        limit = time.monotonic() + LONG
        while time.monotonic() < limit:
            if cancel.cancelled:
                (self.folder / ".half.part").unlink()
                yield Cancelled()
                return
            time.sleep(0.01)


class PatientEngine(FakeEngine):
    """Goes on denoising until it is asked to finish early."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield StepDone(1, 100, None, pid_preview())
        while not cancel.finishing_early:
            time.sleep(0.01)
        yield from super().generate(request, cancel)


class DeafEngine(FakeEngine):
    """Takes no notice of the token."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield StepDone(1, 2, None, pid_preview())
        (self.folder / ".half.part").write_bytes(b"half a clip")
        time.sleep(LONG)


class DyingEngine(TellingEngine):
    """Seed 0 asks for a death, at its second step; other seeds for a clip."""

    def __init__(self, folder: Path, death: Callable[[], None]) -> None:
        super().__init__(folder)
        self.death = death

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        for event in super().generate(request, cancel):
            if request.seed == 0 and isinstance(event, StepDone) and event.step == 2:
                (self.folder / ".half.part").write_bytes(b"half a clip")
                self.death()
            yield event


class BigPreviewEngine(FakeEngine):
    """Previews far beyond what a pipe holds."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        for event in super().generate(request, cancel):
            big = isinstance(event, StepDone)
            yield StepDone(event.step, event.steps, None, bytes([event.step]) * 3_000_000) if big else event


class SilentEngine(FakeEngine):
    """Forgets the last event."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield StageStarted("load")


class TalkingEngine(FakeEngine):
    """Prints, as libraries do, from Python and from native code."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        print("python speaking", flush=True)  # noqa: T201
        os.write(1, b"native speaking\n")
        print(f"read {sys.stdin.read()!r} {os.read(0, 1)!r}", flush=True)  # noqa: T201
        yield from super().generate(request, cancel)


def raise_unexpected() -> None:
    raise ZeroDivisionError("in the\nmiddle")


def raise_missing_weights(_folder: Path) -> Engine:
    raise WeightsError("There are no weights.", "Download them.")


def raise_missing_library(_folder: Path) -> Engine:
    raise ImportError("libcudart.so.12: cannot open shared object file")


def exit_three() -> None:
    os._exit(3)


def fall_to(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(LONG)


def pid_preview() -> bytes:
    return str(os.getpid()).encode()


# --- Helpers ------------------------------------------------------------------------------------------------

Make = Callable[..., WorkerEngine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes engines on `tmp_path`; afterwards neither process nor file may be left but whole clips."""
    with contextlib.ExitStack() as engines:

        def make(engine: Callable[[Path], Engine], **settings: Any) -> WorkerEngine:
            return engines.enter_context(contextlib.closing(WorkerEngine(tmp_path, engine, **settings)))

        yield make
    assert multiprocessing.active_children() == []
    assert [path for path in tmp_path.iterdir() if path.suffix != ".mp4"] == []


def request_of(seed: int = 1) -> GenerationRequest:
    return GenerationRequest.create(prompt="A face says <S>seven<E>.", seed=seed)


def run(engine: Engine, seed: int = 1) -> list[Event]:
    return list(engine.generate(request_of(seed), CancelToken()))


def pid_in(event: Event) -> int:
    assert isinstance(event, StepDone), event
    return int(event.preview)


def first_step(events: Iterator[Event]) -> int:
    """Follows a run to its first step; returns the worker's process number."""
    return pid_in(next(event for event in events if isinstance(event, StepDone)))


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that waits to be reaped has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends_soon(pid: int) -> bool:
    limit = time.monotonic() + SOON
    while is_running(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    return not is_running(pid)


def leftovers(folder: Path) -> list[Path]:
    """Files anywhere below `folder`."""
    return [path for path in folder.rglob("*") if path.is_file()]


# --- What it tells ------------------------------------------------------------------------------------------


def test_the_events_are_those_of_the_engine(make: Make, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    here = run(FakeEngine(tmp_path / "here", steps=5))
    there = run(make(partial(FakeEngine, steps=5)))
    assert there[:-1] == here[:-1]
    clip, expected = there[-1].clip, here[-1].clip
    assert clip.path.parent == tmp_path
    assert clip.path.read_bytes() == expected.path.read_bytes()
    assert clip == read_clip(clip.path)
    expected.path.unlink()
    expected.path.parent.rmdir()


def test_a_frame_is_drawn_there_and_a_clip_made_after_it(make: Make) -> None:
    engine = make(FakeEngine)
    request = request_of(4).replace(first_frame=GeneratedFrame())
    events = list(engine.draw(request, CancelToken()))
    assert [type(event) for event in events] == [StageStarted, StepDone, StepDone, StepDone, FrameDrawn]
    assert (events[-1].seed, events[-1].path.suffix) == (4, ".png")
    assert events[-1].path.is_file()
    made = list(engine.generate(request, CancelToken()))
    assert events[-1] in made
    assert isinstance(made[-1], Finished), "that a frame was drawn is not the end of a clip"
    failed = list(make(partial(FakeEngine, error=WeightsError("None.", "Fetch."))).draw(request, CancelToken()))
    assert failed[-1] == Failed("None.", "Fetch.", 2)


def test_drawing_is_cancelled_and_abandoned(make: Make) -> None:
    engine = make(partial(FakeEngine, steps=10_000, step_seconds=0.01))
    request = request_of().replace(first_frame=GeneratedFrame())
    cancel = CancelToken()
    events = engine.draw(request, cancel)
    assert isinstance(next(events), StageStarted)
    (busy,) = engine.generate(request, CancelToken())
    assert "busy" in busy.problem
    cancel.cancel()
    assert isinstance(list(events)[-1], Cancelled)
    left = engine.draw(request, CancelToken())
    next(left)
    left.close()
    assert isinstance(next(engine.draw(request, CancelToken())), StageStarted), "the worker is free again"


def test_the_worker_stays_for_the_next_run_and_leaves_at_close(make: Make) -> None:
    engine = make(TellingEngine)
    first, second = run(engine), run(engine, seed=2)
    assert pid_in(first[2]) == pid_in(second[2]) != os.getpid()
    clips = [events[-1].clip.path for events in (first, second)]
    engine.close()
    assert not is_running(pid_in(first[2]))
    assert all(clip.is_file() for clip in clips), "a clip belongs to the caller"
    third = run(engine, seed=3)
    assert isinstance(third[-1], Finished)
    assert pid_in(third[2]) != pid_in(first[2])


def test_large_previews(make: Make) -> None:
    events = run(make(BigPreviewEngine))
    previews = [event.preview for event in events if isinstance(event, StepDone)]
    assert previews == [bytes([step]) * 3_000_000 for step in (1, 2, 3)]
    assert isinstance(events[-1], Finished)


def test_failures_of_the_engine_keep_their_words_and_exit_code(make: Make) -> None:
    error = WeightsError("They are damaged.", "Download them again.")
    engine = make(partial(TellingEngine, error=error))
    first, second = run(engine), run(engine)
    assert first[-1] == Failed.from_error(error)
    assert pid_in(first[2]) == pid_in(second[2]), "an error said in words is no reason for a new process"


def test_what_the_worker_prints_goes_to_stderr_and_it_reads_nothing(make: Make, capfd: Any) -> None:
    assert isinstance(run(make(TalkingEngine))[-1], Finished)
    out, err = capfd.readouterr()
    assert out == ""
    assert "python speaking" in err
    assert "native speaking" in err
    assert "read '' b''" in err


def test_one_run_at_a_time(make: Make) -> None:
    engine = make(TellingEngine)
    events = engine.generate(request_of(), CancelToken())
    next(events)
    others: list[Event] = []
    thread = threading.Thread(target=lambda: others.extend(run(engine)))
    thread.start()
    thread.join(SOON)
    (refused,) = others
    assert isinstance(refused, Failed)
    assert "busy" in refused.problem
    assert isinstance(list(events)[-1], Finished), "the first one goes on"
    assert isinstance(run(engine)[-1], Finished)


# --- How it stops -------------------------------------------------------------------------------------------


def test_cancel_within_a_step(make: Make, tmp_path: Path) -> None:
    engine = make(LongStepEngine)
    cancel = CancelToken()
    events = engine.generate(request_of(), cancel)
    pid = first_step(events)
    threading.Timer(0.2, cancel.cancel).start()
    start = time.monotonic()
    assert list(events) == [Cancelled()]
    assert 0.1 < time.monotonic() - start < 2
    assert is_running(pid), "the model is kept"
    assert leftovers(tmp_path) == []


def test_a_token_of_one_run_does_not_stop_the_next(make: Make) -> None:
    engine = make(partial(TellingEngine, steps=2))
    cancel = CancelToken()
    for event in engine.generate(request_of(), cancel):
        if isinstance(event, StepDone):
            cancel.cancel()
    assert isinstance(event, Cancelled | Finished)
    assert isinstance(run(engine)[-1], Finished)


def test_finish_early(make: Make) -> None:
    engine = make(PatientEngine)
    cancel = CancelToken()
    events = engine.generate(request_of(), cancel)
    first_step(events)
    threading.Timer(0.2, cancel.finish_early).start()
    assert isinstance(list(events)[-1], Finished)


def test_a_run_cancelled_before_it_begins(make: Make) -> None:
    cancel = CancelToken()
    cancel.cancel()
    assert list(make(LongStepEngine).generate(request_of(), cancel))[-1] == Cancelled()


def test_a_deaf_worker_is_killed(make: Make, tmp_path: Path) -> None:
    engine = make(DeafEngine, cancel_grace=0.3)
    cancel = CancelToken()
    events = engine.generate(request_of(), cancel)
    pid = first_step(events)
    cancel.cancel()
    start = time.monotonic()
    assert list(events) == [Cancelled()]
    assert 0.3 <= time.monotonic() - start < 3
    assert not is_running(pid)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="needs SIGSTOP")
def test_a_stopped_worker_is_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovi_studio.engine.worker._LEAVE_SECONDS", 0.3)
    engine = make(LongStepEngine, cancel_grace=0.1)
    cancel = CancelToken()
    events = engine.generate(request_of(), cancel)
    pid = first_step(events)
    os.kill(pid, signal.SIGSTOP)
    cancel.cancel()
    assert list(events) == [Cancelled()]
    assert not is_running(pid)


def test_an_abandoned_run_is_cancelled(make: Make, tmp_path: Path) -> None:
    engine = make(LongStepEngine)
    workers = []
    for _ in range(2):
        events = engine.generate(request_of(), CancelToken())
        workers.append(first_step(events))
        events.close()
        assert leftovers(tmp_path) == []
    assert workers[0] == workers[1], "the model is kept"


def test_a_clip_finished_for_nobody_is_removed(make: Make, tmp_path: Path) -> None:
    engine = make(TellingEngine)
    events = engine.generate(request_of(), CancelToken())
    first_step(events)
    time.sleep(0.5)  # the engine is through by now
    events.close()
    assert leftovers(tmp_path) == []
    assert isinstance(run(engine)[-1], Finished)


def test_close_during_a_run_of_another_thread(make: Make, tmp_path: Path) -> None:
    engine = make(LongStepEngine)
    events = engine.generate(request_of(), CancelToken())
    pid = first_step(events)
    closing = threading.Timer(0.2, engine.close)
    closing.start()
    assert list(events) == [Cancelled()]
    closing.join()
    assert not is_running(pid)
    assert leftovers(tmp_path) == []


def test_close_while_nobody_follows_the_run(make: Make, tmp_path: Path) -> None:
    engine = make(LongStepEngine)
    events = engine.generate(request_of(), CancelToken())
    pid = first_step(events)
    engine.close()
    assert not is_running(pid)
    assert list(events) == [Cancelled()]
    assert leftovers(tmp_path) == []


def test_close_twice_and_before_any_run(make: Make) -> None:
    engine = make(FakeEngine)
    engine.close()
    engine.close()
    assert isinstance(run(engine)[-1], Finished)


# --- What it survives ---------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_killed_in_the_middle_of_a_run(make: Make, tmp_path: Path) -> None:
    engine = make(partial(DyingEngine, death=partial(time.sleep, LONG)))
    events = engine.generate(request_of(seed=0), CancelToken())
    pid = first_step(events)
    while not leftovers(tmp_path):
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    (failed,) = events
    assert isinstance(failed, Failed)
    assert "SIGKILL" in failed.problem
    assert "memory" in failed.problem
    assert "smaller" in failed.remedy
    assert leftovers(tmp_path) == [], "what the worker left is removed"
    again = run(engine)
    assert isinstance(again[-1], Finished)
    assert time.monotonic() - start < SOON, "told, and the next one done"
    assert pid_in(again[2]) != pid


@pytest.mark.parametrize(
    ("death", "words"),
    [
        pytest.param(
            partial(fall_to, signal.SIGSEGV), "SIGSEGV", marks=pytest.mark.skipif(os.name != "posix", reason="signals")
        ),
        (exit_three, "exit code 3"),
    ],
)
def test_crashes(make: Make, tmp_path: Path, death: Callable[[], None], words: str) -> None:
    engine = make(partial(DyingEngine, death=death))
    events = run(engine, seed=0)
    assert isinstance(events[-1], Failed)
    assert words in events[-1].problem
    assert leftovers(tmp_path) == []
    assert isinstance(run(engine)[-1], Finished)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_killed_between_two_runs(make: Make) -> None:
    engine = make(TellingEngine)
    os.kill(pid_in(run(engine)[2]), signal.SIGKILL)
    limit = time.monotonic() + SOON
    while multiprocessing.active_children():  # a process is gone when the last of its threads is
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert isinstance(run(engine)[-1], Finished)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_death_after_cancelling_is_what_was_wanted(make: Make) -> None:
    """As when the whole group of processes is told to end."""
    engine = make(DeafEngine)
    cancel = CancelToken()
    events = engine.generate(request_of(), cancel)
    pid = first_step(events)
    cancel.cancel()
    os.kill(pid, signal.SIGTERM)
    assert list(events) == [Cancelled()]


def test_an_unexpected_exception_is_told_and_its_traceback_shown_once(make: Make, tmp_path: Path, capfd: Any) -> None:
    engine = make(partial(DyingEngine, death=raise_unexpected))
    events = run(engine, seed=0)
    assert isinstance(events[-1], Failed)
    assert "ZeroDivisionError: in the middle." in events[-1].problem
    assert "traceback" in events[-1].remedy
    assert leftovers(tmp_path) == []
    again = run(engine)
    assert isinstance(again[-1], Finished)
    assert pid_in(again[2]) != pid_in(events[2]), "who knows what state the old process was in"
    err = capfd.readouterr().err
    assert err.count("Traceback (most recent call last)") == 1
    assert "raise_unexpected" in err


@pytest.mark.parametrize(
    ("factory", "words", "exit_code"),
    [
        (raise_missing_weights, "There are no weights. Download them.", 2),
        (raise_missing_library, "libcudart.so.12", 1),
        (SilentEngine, "stopped without a clip", 1),
    ],
)
def test_an_engine_that_cannot_be_made_or_forgets_its_end(
    make: Make, factory: Callable[[Path], Engine], words: str, exit_code: int
) -> None:
    failed = run(make(factory))[-1]
    assert isinstance(failed, Failed)
    assert words in f"{failed.problem} {failed.remedy}"
    assert failed.exit_code == exit_code


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    (failed,) = run(WorkerEngine(tmp_path / "gone", FakeEngine))
    assert isinstance(failed, Failed)
    assert "gone" in failed.problem


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_is_for_the_caller_alone(make: Make) -> None:
    engine = make(partial(TellingEngine, steps=5, step_seconds=0.1))
    events = engine.generate(request_of(), CancelToken())
    os.kill(first_step(events), signal.SIGINT)
    assert isinstance(list(events)[-1], Finished)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("engine", ["LongStepEngine", "DeafEngine"])
def test_a_worker_whose_caller_is_killed_ends(tmp_path: Path, engine: str) -> None:
    caller = start_program(
        f"""
        from ovi_studio.engine.worker import WorkerEngine
        from tests.engine.test_worker import *

        engine = WorkerEngine(Path({str(tmp_path)!r}), {engine}, cancel_grace=0.5)
        events = engine.generate(request_of(), CancelToken())
        print(first_step(events), flush=True)
        next(events)
        """
    )
    pid = int(caller.stdout.readline())
    while not leftovers(tmp_path):
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    assert ends_soon(pid)
    assert list(tmp_path.iterdir()) == [], "it has cleared up behind itself"


def test_a_caller_that_forgets_to_close_leaves_no_process(tmp_path: Path) -> None:
    caller = start_program(
        f"""
        from ovi_studio.engine.worker import WorkerEngine
        from tests.engine.test_worker import *

        engine = WorkerEngine(Path({str(tmp_path)!r}), TellingEngine)
        print(pid_in(run(engine)[2]), flush=True)
        """
    )
    out, err = caller.communicate(timeout=30)
    assert (caller.returncode, err) == (0, "")
    assert ends_soon(int(out))


def test_the_caller_never_imports_torch(tmp_path: Path) -> None:
    caller = start_program(
        f"""
        import sys
        from ovi_studio.engine import Engine
        from ovi_studio.engine.worker import WorkerEngine, ovi_engine
        from tests.engine.test_worker import *

        engine = WorkerEngine(Path({str(tmp_path)!r}), FakeEngine)
        print(type(run(engine)[-1]).__name__, "torch" in sys.modules, "ovi_studio.engine.engine" in sys.modules)
        engine.close()
        """
    )
    out, err = caller.communicate(timeout=30)
    assert (out, err) == ("Finished False False\n", "")


def start_program(code: str) -> "subprocess.Popen[str]":
    """A Python process of its own with the lines of `code` as its program."""
    program = textwrap.dedent(code)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, text=True, **pipes)


# --- With the real engine -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_nano_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, it is told and replaced; the clip is that of the engine in this process; cancelled, nothing is left."""
    from ovi_studio.engine.engine import OviEngine  # noqa: PLC0415 - torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    request = request_of().replace(num_inference_steps=2)
    expected = list(OviEngine(here, tmp_path / "cache").generate(request, CancelToken()))
    with contextlib.closing(WorkerEngine(there)) as engine:
        events = engine.generate(request, CancelToken())
        next(event for event in events if isinstance(event, StepDone))
        (worker,) = multiprocessing.active_children()
        worker.kill()
        start = time.monotonic()
        assert isinstance(list(events)[-1], Failed)
        assert time.monotonic() - start < SOON

        whole = list(engine.generate(request, CancelToken()))
        assert [type(event) for event in whole] == [type(event) for event in expected]
        assert [event.preview for event in whole if isinstance(event, StepDone)] == [
            event.preview for event in expected if isinstance(event, StepDone)
        ]
        assert whole[-1].clip.path.read_bytes() == expected[-1].clip.path.read_bytes()
        assert leftovers(there) == [whole[-1].clip.path]

        cancel = CancelToken()
        events = engine.generate(request, cancel)
        while not any(path.suffix == ".part" for path in leftovers(there)):
            next(events)
        cancel.cancel()
        assert list(events)[-1] == Cancelled()
        assert leftovers(there) == [whole[-1].clip.path]
    assert list(there.iterdir()) == [whole[-1].clip.path]
