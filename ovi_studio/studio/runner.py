"""The runner: takes the next job, drives an engine, and gives the clip its name.

    claim → already there? → engine.generate → sync → name → done
            └─────────────────────────────────────↗

A kill at any of these moments leaves the job done, or running with a runner that is dead: the next claim
queues it again. Between the naming and the last commit the clip itself tells that it is made, so nothing is
made twice. Names are kept in the library before they are used, and are given to whole files on the disk only.
"""

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from ovi_studio.engine import Engine
from ovi_studio.errors import EngineError, InvalidRequestError, MediaError, StoreError
from ovi_studio.events import (
    Cancelled,
    CancelToken,
    Event,
    Failed,
    Finished,
    Planned,
    StageStarted,
    StepDone,
)
from ovi_studio.files import check_writable, no_room, sync_folder, writing_errors
from ovi_studio.outputs import claim_name
from ovi_studio.studio import claims
from ovi_studio.studio.claims import RunnerName, Standing
from ovi_studio.studio.clips import is_made, small_picture
from ovi_studio.studio.job import Job, Memory, Wish
from ovi_studio.studio.library import Library

_WATCH_SECONDS = 0.25  # guessed: how late a wish is noticed
_TELL_SECONDS = 1.0  # guessed: how often progress is written down; each is a write to the disk
_HEARTBEAT_SECONDS = 5.0  # guessed: a twelfth of what makes others give a runner up
_IDLE_SECONDS = 0.5  # guessed: how late a new job is noticed
_ROOM_BYTES = 32 << 20  # guessed: as `check_writable` has it, a clip of ten seconds
_WORK_PREFIX = ".ovi-studio-"
_FOREIGN_WORK_SECONDS = 86_400.0  # guessed: no clip takes a day

Listener = Callable[[Job, Event], None]


class Runner:
    """Makes the jobs of a library, one at a time. Use it from one thread.

    Args:
        library: where jobs are taken from and told about.
        engine: what makes them.
        work: folder where the engine leaves its clips, see `work_folder`.
        batch: make only the jobs of this batch.
        listen: is told every event of every run; it must not raise.
    """

    def __init__(
        self,
        library: Library,
        engine: Engine,
        work: Path,
        *,
        batch: str | None = None,
        listen: Listener = lambda _job, _event: None,
    ) -> None:
        self.name = RunnerName.new()
        self._library = library
        self._engine = engine
        self._work = work
        self._batch = batch
        self._listen = listen

    def run_next(self, stop: CancelToken) -> Job | None:
        """Make the next job; returns what became of it, or None where nothing is queued.

        A job whose clip cannot be written, for want of room or of its folder, pauses the queue (or the batch):
        the next one would fare no better.

        Args:
            stop: once set, the job is left and queued again.

        Raises:
            StoreError: the library cannot be read or written. The job is queued again by whoever comes next.
        """
        job = claims.claim(self._library, self.name, self._batch)
        if job is None:
            return None
        settled = False
        try:
            self._run(job, stop)
            settled = True
        finally:
            if not settled:
                with contextlib.suppress(StoreError):  # the first error is the one to tell
                    claims.give_back(self._library, job, self.name)
        return self._library.get(job.id)

    def serve(self, stop: CancelToken) -> None:
        """Make what is queued, and wait for more, until `stop` is set. Raises as `run_next`."""
        while not stop.cancelled:
            if self.run_next(stop) is None:
                time.sleep(_IDLE_SECONDS)

    # --- One job ----------------------------------------------------------------------------------------------

    def _run(self, job: Job, stop: CancelToken) -> None:
        # 1. What shall be made, and whether an earlier run made it and could not tell
        try:
            request = job.request
        except InvalidRequestError as error:
            claims.fail(self._library, job, self.name, error.problem, error.remedy)
            return
        if is_made(job.output, request):
            self._shelve(job, job.output)
            return
        try:
            # 2. Whether it could be kept
            check_writable(job.output)
            _copy_of(job).unlink(missing_ok=True)
            # 3. Make it
            match self._make(job, stop):
                case Finished(clip) as finished:
                    # 4. Name it, and then tell
                    self._shelve(job, self._place(clip.path, job), finished)
                case Failed(problem, remedy):
                    self._check_room(job)
                    claims.fail(self._library, job, self.name, problem, remedy)
                case _:
                    self._leave(job, claims.wish_for(self._library, job, self.name))
        except MediaError as error:
            self._pause_all(job, error)

    def _make(self, job: Job, stop: CancelToken) -> Event:
        """Drive the engine; returns its last event."""
        token = CancelToken()
        last: Event | None = None
        with _Watch(self._library, job, self.name, token, stop) as watch:
            for event in self._engine.generate(job.request, token):
                watch.follow(event)
                self._listen(job, event)
                last = event
                if stop.cancelled:
                    token.cancel()
        if not isinstance(last, Finished | Failed | Cancelled):
            error = EngineError("The engine stopped without a clip.", "Run it again; report it if it recurs.")
            return Failed.from_error(error)
        return last

    def _place(self, temporary: Path, job: Job) -> Path:
        """Give the whole clip its name; the name of a file that somebody else put there meanwhile is left to them.

        Raises:
            MediaError: it cannot be written.
        """
        path = job.output
        with writing_errors(path):
            whole = _beside(temporary, path, _copy_of(job))
            with whole.open("rb+") as file:
                os.fsync(file.fileno())
            while not claim_name(whole, path):
                if is_made(path, job.request):  # by another machine, which took this runner for dead
                    break
                path = claims.rename_output(self._library, job)
            sync_folder(path.parent)
            whole.unlink(missing_ok=True)
        return path

    def _shelve(self, job: Job, output: Path, told: Finished | None = None) -> None:
        claims.finish(self._library, job, self.name, output, small_picture(output), told)

    def _leave(self, job: Job, wish: Wish) -> None:
        """The run was cancelled by somebody's wish, or else because this runner stops."""
        if wish == "cancel":
            claims.drop(self._library, job, self.name)
        else:
            claims.give_back(self._library, job, self.name, "paused" if wish == "pause" else "queued")

    def _pause_all(self, job: Job, error: MediaError) -> None:
        self._library.stop_after_this(self._batch, error.problem, error.remedy)
        claims.give_back(self._library, job, self.name, "paused", error.problem, error.remedy)

    def _check_room(self, job: Job) -> None:
        """Whether a run failed because clips cannot be written: then this raises MediaError."""
        for folder in (job.output.parent, self._work):
            check_writable(folder / "clip.mp4")
            _check_space(folder)


class _Watch:
    """Beside a run: tells the library how far it is, and the run what is wished of it.

    Where the library cannot be reached meanwhile, the run goes on: at its end that is told.
    """

    def __init__(self, library: Library, job: Job, runner: RunnerName, token: CancelToken, stop: CancelToken) -> None:
        self._library = library
        self._job = job
        self._runner = runner
        self._token = token
        self._stop = stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{job.id}", daemon=True)
        self._started = time.monotonic()
        self._standing = Standing()

    def follow(self, event: Event) -> None:
        """An event of the run."""
        now = self._standing
        match event:
            case Planned(plan):
                data = plan.to_json()
                predicted = Memory(data.get("peak_gpu_bytes"), data.get("peak_host_bytes"))
                self._standing = Standing(now.stage, now.progress, now.seconds_left, data, predicted)
            case StageStarted(stage):
                self._standing = Standing(stage, now.progress, now.seconds_left, now.plan, now.predicted)
            case StepDone(_, _, seconds_left) if seconds_left is not None:
                elapsed = time.monotonic() - self._started
                share = max(now.progress, elapsed / (elapsed + seconds_left)) if elapsed else 0.0
                self._standing = Standing(now.stage, share, seconds_left, now.plan, now.predicted)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(StoreError):
            claims.beat(self._library, self._job, self._runner, self._standing)

    def _watch(self) -> None:
        told, last = time.monotonic(), self._standing
        while not self._over.wait(_WATCH_SECONDS):
            if self._stop.cancelled:
                self._token.cancel()
            with contextlib.suppress(StoreError):
                self._grant(claims.wish_for(self._library, self._job, self._runner))
                since, standing = time.monotonic() - told, self._standing
                if since > _HEARTBEAT_SECONDS or (since > _TELL_SECONDS and standing != last):
                    claims.beat(self._library, self._job, self._runner, standing)
                    told, last = time.monotonic(), standing

    def _grant(self, wish: Wish) -> None:
        if wish == "keep":
            self._token.finish_early()
        elif wish:
            self._token.cancel()


# --- Files ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def work_folder(root: Path) -> Iterator[Path]:
    """A passing folder in `root`, best on the disk of the outputs, for clips in the making.

    Those that killed runners left behind are removed first.

    Raises:
        MediaError: it cannot be made.
    """
    for old in root.glob(f"{_WORK_PREFIX}*~*"):
        with contextlib.suppress(ValueError, OSError):  # not one of ours, or already gone
            owner = RunnerName.parse(old.name.removeprefix(_WORK_PREFIX))
            if not owner.is_alive(old.stat().st_mtime, lease=_FOREIGN_WORK_SECONDS):
                shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{_WORK_PREFIX}{RunnerName.new()}"
    with writing_errors(folder):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_of(job: Job) -> Path:
    """Where a clip from another disk is copied to before it gets its name."""
    return job.output.with_name(f".{job.id}.part")


def _beside(temporary: Path, path: Path, copy: Path) -> Path:
    """The clip on the disk of `path`, so that it can be named in one step."""
    if temporary.stat().st_dev == path.parent.stat().st_dev:
        return temporary
    shutil.copyfile(temporary, copy)
    temporary.unlink()
    return copy


def _check_space(folder: Path) -> None:
    """Whether a clip's bytes can be had: a quota or a limit on files does not show in the disk's free space."""
    if not hasattr(os, "posix_fallocate"):
        return
    probe = folder / f".{os.getpid()}.room.part"
    try:
        with writing_errors(folder), probe.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, _ROOM_BYTES)
            except OSError as error:
                if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                    raise no_room(folder) from error
    finally:
        probe.unlink(missing_ok=True)
