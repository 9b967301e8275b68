"""The runner over a fake engine: what becomes of jobs, wishes, and disks that fail."""

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovi_studio.errors import EngineError, OutOfMemoryError, StoreError
from ovi_studio.events import (
    CancelToken,
    Event,
    Finished,
    Measured,
    Planned,
    StageStarted,
    StepDone,
)
from ovi_studio.media import read_clip, read_metadata, write_clip
from ovi_studio.request import GenerationRequest
from ovi_studio.studio import claims
from ovi_studio.studio import runner as runner_module
from ovi_studio.studio.clips import is_made
from ovi_studio.studio.job import Job, Memory, Order
from ovi_studio.studio.library import Filter, Library
from ovi_studio.studio.runner import Runner, work_folder
from tests.fakes import FakeEngine

Ask = Callable[..., Job]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_all(runner: Runner) -> list[Job]:
    return list(iter(lambda: runner.run_next(CancelToken()), None))


def test_a_job_becomes_a_clip(library: Library, ask: Ask, runner: Runner, clips: Path, engine: FakeEngine) -> None:
    asked = ask("A dog barks.", seed=5)
    job = runner.run_next(CancelToken())
    assert (job.id, job.status, job.output, job.progress) == (asked.id, "done", clips / "dog.mp4", 1.0)
    assert read_clip(job.output).num_frames == 3
    assert read_metadata(job.output)["request"]["seed"] == 5
    assert library.thumbnail(job.id).startswith(b"\xff\xd8")
    assert job.created <= job.started <= job.finished
    assert (job.runner, job.stage, job.wish, job.seconds_left) == ("", "", "", None)
    assert files(clips) == ["dog.mp4"]
    assert files(engine.folder) == []
    assert runner.run_next(CancelToken()) is None


def test_every_take_has_its_own_seed(library: Library, runner: Runner, clips: Path) -> None:
    library.add([Order(GenerationRequest.create(prompt="a", seed=7, takes=3), clips, "a")])
    jobs = run_all(runner)
    assert [read_metadata(job.output)["request"]["seed"] for job in jobs] == [7, 8, 9]


def test_sound_alone_has_no_thumbnail(library: Library, ask: Ask, clips: Path, tmp_path: Path) -> None:
    ask(modality="audio")
    job = Runner(library, SoundEngine(tmp_path / "work"), tmp_path).run_next(CancelToken())
    assert job.status == "done"
    assert library.thumbnail(job.id) is None


class SoundEngine(FakeEngine):
    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        self.folder.mkdir()
        yield Finished(
            write_clip(
                self.folder / "a.mp4",
                frames=None,
                waveform=np.zeros(1600, np.float32),
                fps=24,
                sample_rate=16_000,
                metadata={"request": request.resolved().embedded()},
            )
        )


# --- What a run tells -----------------------------------------------------------------------------------------


class SomePlan:
    def to_json(self) -> dict[str, Any]:
        return {"device": "cuda:0", "peak_gpu_bytes": 5, "peak_host_bytes": 6}


class TellingEngine(FakeEngine):
    """Tells a plan and measurements, and waits in the middle until it is let go on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, steps=4)
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield Planned(SomePlan())
        for event in super().generate(request, cancel):
            measured = {"denoise": Measured(7, 8, 9.5)}
            yield Finished(event.clip, measured) if isinstance(event, Finished) else event
            if isinstance(event, StepDone) and event.step == 2:
                self.reached.set()
                while not self.go_on.wait(0.01) and not cancel.cancelled and not cancel.finishing_early:
                    pass


@pytest.fixture
def telling(library: Library, engine: FakeEngine) -> Iterator[tuple[TellingEngine, Runner]]:
    telling = TellingEngine(engine.folder)
    yield telling, Runner(library, telling, engine.folder)
    telling.go_on.set()


def in_background(runner: Runner, stop: CancelToken | None = None) -> threading.Thread:
    thread = threading.Thread(target=runner.run_next, args=[stop or CancelToken()])
    thread.start()
    return thread


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_progress_plan_and_measurements_are_kept(
    library: Library, ask: Ask, telling: tuple[TellingEngine, Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_TELL_SECONDS", 0.1)
    engine, runner = telling
    job_id = ask().id
    thread = in_background(runner)
    engine.reached.wait(20)
    until(lambda: library.get(job_id).stage == "denoise")
    job = library.get(job_id)
    assert (job.status, job.seconds_left, job.predicted) == ("running", 2.0, Memory(5, 6))
    assert 0 <= job.progress < 1
    assert job.plan["device"] == "cuda:0"
    engine.go_on.set()
    thread.join()
    job = library.get(job_id)
    assert (job.measured, job.stages) == (Memory(7, 8), {"denoise": {"gpu_bytes": 7, "host_bytes": 8, "seconds": 9.5}})
    assert job.plan["device"] == "cuda:0"


@pytest.mark.parametrize(("act", "status"), [("cancel", "cancelled"), ("pause", "paused"), ("cancel_all", "cancelled")])
def test_wishes_reach_a_running_job(
    library: Library, ask: Ask, telling: tuple[TellingEngine, Runner], clips: Path, act: str, status: str
) -> None:
    engine, runner = telling
    job_id = ask().id
    thread = in_background(runner)
    engine.reached.wait(20)
    with Library(library.store.path) as elsewhere:
        elsewhere.cancel_all() if act == "cancel_all" else getattr(elsewhere, act)(job_id)
    thread.join(20)
    assert library.get(job_id).status == status
    assert files(clips) == files(engine.folder) == []


def test_keep_what_there_is(library: Library, ask: Ask, telling: tuple[TellingEngine, Runner]) -> None:
    engine, runner = telling
    heard: list[Event] = []
    runner = Runner(library, engine, engine.folder, listen=lambda _job, event: heard.append(event))
    job_id = ask().id
    thread = in_background(runner)
    engine.reached.wait(20)
    library.keep_what_there_is(job_id)
    thread.join(20)
    job = library.get(job_id)
    assert job.status == "done"
    assert read_clip(job.output).num_frames == 3
    assert [event.step for event in heard if isinstance(event, StepDone)] == [1, 2]


def test_a_stopped_runner_queues_its_job_again(
    library: Library, ask: Ask, telling: tuple[TellingEngine, Runner]
) -> None:
    engine, runner = telling
    first, second = ask("a").id, ask("b").id
    stop = CancelToken()
    thread = in_background(runner, stop)
    engine.reached.wait(20)
    stop.cancel()
    thread.join(20)
    job = library.get(first)
    assert (job.status, job.interruptions, job.progress) == ("queued", 1, 0)
    assert [job.id for job in library.find(Filter(("queued",)))] == [first, second], "it keeps its place"


def test_a_runner_serves_until_it_is_stopped(library: Library, ask: Ask, runner: Runner) -> None:
    stop = CancelToken()
    thread = threading.Thread(target=runner.serve, args=[stop])
    thread.start()
    job_id = ask().id
    until(lambda: library.get(job_id).status == "done")
    stop.cancel()
    thread.join(20)
    assert not thread.is_alive()


# --- What goes wrong ------------------------------------------------------------------------------------------


def test_a_failed_job_says_why_and_the_next_is_made(
    library: Library, ask: Ask, runner: Runner, engine: FakeEngine
) -> None:
    ask("a"), ask("b", stem="b")
    engine.error = OutOfMemoryError("There was not enough memory.", "Choose a smaller size.")
    job = runner.run_next(CancelToken())
    assert (job.status, job.reason) == ("failed", "There was not enough memory. Choose a smaller size.")
    engine.error = None
    assert runner.run_next(CancelToken()).status == "done"
    library.retry(job.id)
    assert runner.run_next(CancelToken()).status == "done"


def test_an_engine_that_stops_without_a_word(library: Library, ask: Ask, tmp_path: Path) -> None:
    class Silent(FakeEngine):
        def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
            yield StageStarted("load")

    ask()
    job = Runner(library, Silent(tmp_path), tmp_path).run_next(CancelToken())
    assert job.status == "failed"
    assert "without a clip" in job.problem


def test_a_job_does_not_stay_with_a_runner_that_broke(library: Library, ask: Ask, tmp_path: Path) -> None:
    class Broken(FakeEngine):
        def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
            raise EngineError("It broke.", "Mend it.")
            yield

    job_id = ask().id
    with pytest.raises(EngineError):
        Runner(library, Broken(tmp_path), tmp_path).run_next(CancelToken())
    assert library.get(job_id).status == "queued"


def test_a_request_of_another_version_fails_alone(library: Library, ask: Ask, runner: Runner) -> None:
    old, new = ask("a").id, ask("b").id
    library.store.change("UPDATE jobs SET request = replace(request, 'nano', 'gone') WHERE id = ?", [old])
    assert [(job.id, job.status) for job in run_all(runner)] == [(old, "failed"), (new, "done")]
    assert len(library.page(Filter()).jobs) == 2


def test_a_folder_that_vanishes_pauses_the_queue(
    library: Library, ask: Ask, runner: Runner, clips: Path, engine: FakeEngine
) -> None:
    ids = [ask(prompt).id for prompt in "abc"]
    engine.before_finish = lambda: shutil.rmtree(clips)
    run_all(runner)
    jobs = library.find(Filter())
    assert [(job.id, job.status) for job in jobs] == [(job_id, "paused") for job_id in ids]
    assert all(str(clips) in job.problem and job.remedy for job in jobs)
    clips.mkdir()
    engine.before_finish = lambda: None
    assert library.resume() == 3
    assert [job.status for job in run_all(runner)] == ["done"] * 3


def test_a_folder_that_is_missing_is_noticed_before_the_run(
    library: Library, ask: Ask, runner: Runner, clips: Path, engine: FakeEngine
) -> None:
    ask()
    clips.rmdir()
    assert runner.run_next(CancelToken()).status == "paused"
    assert engine.requests == []


@contextlib.contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """A disk that takes no longer files: how a full one looks to whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_pauses_the_queue(library: Library, ask: Ask, runner: Runner, clips: Path) -> None:
    """The store still fits; the clip, of noise at 512×512, does not."""
    for prompt in "abc":
        ask(prompt, variant="720x720_5s", size=(512, 512), snap=False)
    with files_of_at_most(400_000):
        jobs = run_all(runner)
    assert [job.status for job in jobs] == ["paused"]
    assert "full" in jobs[0].problem
    assert [job.status for job in library.find(Filter())] == ["paused"] * 3
    assert files(clips) == files(runner._work) == []
    assert library.resume() == 3
    assert [job.status for job in run_all(runner)] == ["done"] * 3


def test_a_disk_too_full_for_the_store_loses_nothing(library: Library, ask: Ask, runner: Runner, clips: Path) -> None:
    ids = [ask(prompt).id for prompt in "abc"]
    with files_of_at_most(4096), pytest.raises(StoreError, match="full or broken"):
        run_all(runner)
    library.check()
    assert [(job.id, job.status) for job in library.find(Filter())] == [(job_id, "queued") for job_id in ids]
    assert [job.status for job in run_all(runner)] == ["done"] * 3


def test_a_store_that_fills_up_during_the_run_loses_nothing(
    library: Library, ask: Ask, runner: Runner, engine: FakeEngine, clips: Path
) -> None:
    """The clip is named, and the library cannot be told: it is found there, and not made again."""
    job_id = ask().id
    limit = contextlib.ExitStack()
    engine.before_finish = lambda: limit.enter_context(files_of_at_most(4096))
    with limit, pytest.raises(StoreError):
        runner.run_next(CancelToken())
    engine.before_finish = lambda: None
    library.check()
    assert files(clips) == ["dog.mp4"]
    assert runner.run_next(CancelToken()).id == job_id
    assert library.get(job_id).status == "done"
    assert len(engine.requests) == 1
    assert files(clips) == ["dog.mp4"]


def test_a_store_that_is_locked_for_long_stops_the_runner_and_loses_nothing(
    library: Library, ask: Ask, runner: Runner, engine: FakeEngine, clips: Path
) -> None:
    job_id = ask().id
    library.store._connection.execute("PRAGMA busy_timeout = 100")
    other = sqlite3.connect(library.store.path, isolation_level=None)
    engine.before_finish = lambda: other.execute("BEGIN IMMEDIATE")  # type: ignore[assignment]
    with pytest.raises(StoreError, match="locked"):
        runner.run_next(CancelToken())
    other.execute("ROLLBACK")
    other.close()
    assert files(clips) == ["dog.mp4"]
    engine.before_finish = lambda: None
    assert runner.run_next(CancelToken()).id == job_id
    assert len(engine.requests) == 1


def test_a_corrupt_store_stops_the_runner_with_the_clip_kept(
    library: Library, ask: Ask, runner: Runner, engine: FakeEngine, clips: Path
) -> None:
    job = ask()
    library.store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def corrupt() -> None:
        with library.store.path.open("rb+") as file:
            file.write(os.urandom(file.seek(0, 2) or 1)[:100])
            file.seek(0)
            file.write(os.urandom(100_000))

    engine.before_finish = corrupt
    library.store._connection.execute("PRAGMA cache_size = 0")
    with pytest.raises(StoreError, match="rescan --rebuild"):
        runner.run_next(CancelToken())
    assert is_made(clips / "dog.mp4", job.request)


# --- Names ----------------------------------------------------------------------------------------------------


def test_a_file_that_came_meanwhile_keeps_its_name(
    library: Library, ask: Ask, runner: Runner, engine: FakeEngine, clips: Path
) -> None:
    ask()
    engine.before_finish = lambda: (clips / "dog.mp4").write_bytes(b"theirs")  # type: ignore[assignment]
    job = runner.run_next(CancelToken())
    assert (clips / "dog.mp4").read_bytes() == b"theirs"
    assert job.output == clips / "dog-2.mp4"
    assert is_made(job.output, job.request)
    assert files(clips) == ["dog-2.mp4", "dog.mp4"]


def test_a_clip_from_another_disk(library: Library, ask: Ask, clips: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == clips.stat().st_dev:
        pytest.skip("there is no other disk")
    ask()
    with work_folder(shared_memory) as work:
        job = Runner(library, FakeEngine(work), work).run_next(CancelToken())
        assert files(work) == []
    assert is_made(job.output, job.request)
    assert files(clips) == ["dog.mp4"]


def test_work_folders_of_the_dead_are_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    me = claims.RunnerName.new()
    dead = tmp_path / f".ovi-studio-{claims.RunnerName(me.host, 2**22 + 1, 0.0, 'x')}"
    far = tmp_path / f".ovi-studio-{claims.RunnerName('elsewhere', 1, 0.0, 'x')}"
    theirs = tmp_path / ".ovi-studio-notes~today"
    for folder in (dead, far, theirs):
        folder.mkdir()
        (folder / "half.mp4").touch()
    with work_folder(tmp_path) as first, work_folder(tmp_path) as second:
        assert sorted(tmp_path.iterdir()) == sorted([far, theirs, first, second])
    assert sorted(tmp_path.iterdir()) == sorted([far, theirs])


# --- Several at once ------------------------------------------------------------------------------------------

RUNNER = """
import sys
from pathlib import Path
from ovi_studio.events import CancelToken
from ovi_studio.studio.library import Library
from ovi_studio.studio.runner import Runner, work_folder
from tests.fakes import FakeEngine

root = Path(sys.argv[1])
with Library(root / "library.db") as library, work_folder(root) as work:
    engine = FakeEngine(work, steps=1)
    runner = Runner(library, engine, work)
    sys.stdin.read()  # until both are there
    while runner.run_next(CancelToken()):
        pass
    print(len(engine.requests))
"""


@pytest.mark.distributed
def test_two_runners_make_two_hundred_jobs_once_each(library: Library, clips: Path, tmp_path: Path) -> None:
    orders = [
        Order(GenerationRequest.create(prompt=f"clip {n}", size=(32, 32), snap=False), clips, "c") for n in range(200)
    ]
    library.add(orders)
    programs = [
        subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    time.sleep(1)
    for program in programs:
        program.stdin.close()
    made = [int(program.stdout.read()) for program in programs]
    assert [program.wait() for program in programs] == [0, 0]
    assert sum(made) == 200, made
    assert min(made) > 20, made
    jobs = library.find(Filter(("done",)))
    assert len(jobs) == len({job.output for job in jobs}) == len(files(clips)) == 200
    assert all(is_made(job.output, job.request) for job in jobs)
    assert {job.interruptions for job in jobs} == {0}
