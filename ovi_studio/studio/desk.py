"""The desk that a page works at: the library, an engine, and a thread that makes what is queued.

    page ── ask, cancel ──▶ Library ◀── claims ── Runner (thread) ──▶ Engine
      ◀── snapshot(), live() ────────────── events ───┘

What the library keeps is enough to go on after a crash; what is only worth seeing while a clip is in the making
(step, picture, sound) is kept here, in memory, for the run under way.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ovi_studio.engine import Engine, slots
from ovi_studio.errors import EngineError, OviStudioError
from ovi_studio.events import CancelToken, Event, Failed, FrameDrawn, Planned, StageStarted, StepDone
from ovi_studio.folders import make_folder
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.job import WAITING, Job
from ovi_studio.studio.library import Filter, Library
from ovi_studio.studio.runner import Runner, work_folder

_SNAPSHOT_SECONDS = 0.2  # guessed: many pages may ask at once; none needs it sooner
_RETRY_SECONDS = 5.0  # guessed: until the library is tried again after it could not be read
_KEPT_ENDS = 20  # jobs whose end is told to pages that look away for a moment; guessed
_KEPT_FAILURES = 50  # guessed: what a person looks through after a night
_BROKEN = "A fault of the program stopped the queue; its log tells more. Start Ovi Studio again: nothing is lost."

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Live:
    """The run under way, as far as it can be watched.

    Args:
        job: its id; "" while nothing runs.
        stage: of the run.
        step: done in this stage.
        steps: of this stage; 0 where it has none.
        seconds_left: until the clip is there; None while nobody can say.
        note: why the plan was changed, or "".
        picture: a small JPEG of the newest look, or None.
        pictures: how many there have been.
        sound: a WAV file of the newest sound, or None.
        sounds: how many there have been.
    """

    job: str = ""
    stage: str = ""
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    note: str = ""
    picture: bytes | None = None
    pictures: int = 0
    sound: bytes | None = None
    sounds: int = 0

    def after(self, event: Event) -> "Live":
        """What there is to see after one more event."""
        match event:
            case Planned(_, note):
                return replace(self, note=note or self.note)
            case StageStarted(stage):
                return replace(self, stage=stage, step=0, steps=0)
            case StepDone():
                now = replace(self, step=event.step, steps=event.steps, seconds_left=event.seconds_left)
                if event.preview is not None:
                    now = replace(now, picture=event.preview, pictures=now.pictures + 1)
                if event.sound is not None:
                    now = replace(now, sound=event.sound, sounds=now.sounds + 1)
                return now
        return self


@dataclass(frozen=True)
class Snapshot:
    """What happens at the moment, of all programs that work on the library.

    Args:
        running: the jobs in the making.
        waiting: the queued and paused ones, in their order.
        ended: the jobs that ended last, the last one first.
        failed: those that failed last, likewise.
        trouble: why nothing is made although something waits; "" where all is well.
    """

    running: tuple[Job, ...]
    waiting: tuple[Job, ...]
    ended: tuple[Job, ...]
    failed: tuple[Job, ...]
    trouble: str


class Desk:
    """Everything behind a page. Use it as a context; its methods may be called from any thread.

    Args:
        library: the database.
        work: folder where the engine leaves its clips until they get their names; made when needed.
        make_engine: gives the engine that makes the clips; it is closed in the end.
    """

    def __init__(self, library: Path, work: Path, make_engine: Callable[[Path], Engine]) -> None:
        self._closing = contextlib.ExitStack()
        self._stop = CancelToken()
        self._lives: dict[str, Live] = {}  # of the runs under way, the oldest first
        self._trouble = ""
        self._seen: tuple[float, Snapshot] | None = None
        self._looking = threading.Lock()
        self._working = threading.Semaphore(0)  # held by who drives the engine; by a drawing, as a whole
        self.asking = threading.Lock()  # held from the look at what a visitor has to the asking for more
        with contextlib.ExitStack() as closing:
            make_folder(work)
            self.library = closing.enter_context(Library(library))
            folder = closing.enter_context(work_folder(work))
            self.engine = closing.enter_context(contextlib.closing(make_engine(folder)))
            count = slots(self.engine)
            self._working = threading.Semaphore(count)
            self._runners = [Runner(self.library, self.engine, folder, listen=self._listen) for _ in range(count)]
            self._threads = [
                threading.Thread(target=self._serve, args=(runner,), name="runner", daemon=True)
                for runner in self._runners
            ]
            for thread in self._threads:
                thread.start()
            closing.callback(self._end)
            self._closing = closing.pop_all()

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the job under way to whoever comes next, and let go of everything."""
        self._closing.close()

    @property
    def closed(self) -> bool:
        """Whether it is over, or about to be."""
        return self._stop.cancelled

    @property
    def live(self) -> Live:
        """The run under way; where several are, the one that began first."""
        return next(iter(self._lives.copy().values()), Live())

    def snapshot(self) -> Snapshot:
        """What happens at the moment; may be a fifth of a second old.

        Raises:
            StoreError: the library cannot be read.
        """
        with self._looking:
            now = time.monotonic()
            if self._seen is None or now - self._seen[0] > _SNAPSHOT_SECONDS:
                self._seen = now, self._look()
            return self._seen[1]

    def draw(self, request: GenerationRequest) -> Path:
        """The first frame of a request, drawn between two jobs; where it lies until others take its room.

        Raises:
            EngineError: a clip is in the making, or the drawing failed.
        """
        held = 0
        try:
            for _ in self._runners:
                if not self._working.acquire(timeout=_SNAPSHOT_SECONDS):
                    raise EngineError(
                        "A clip is in the making.", "Draw when it is finished, or let the clip's own run draw."
                    )
                held += 1
            for event in self.engine.draw(request, self._stop):
                match event:
                    case FrameDrawn(path):
                        return path
                    case Failed(problem, remedy):
                        raise EngineError(problem, remedy)
        finally:
            for _ in range(held):
                self._working.release()
        raise EngineError("The engine stopped without a picture.", "Try it again.")

    def forget_snapshot(self) -> None:
        """The library was changed: the next snapshot shows it."""
        with self._looking:  # a look under way may be older than the change
            self._seen = None

    def _look(self) -> Snapshot:
        return Snapshot(
            self.library.find(Filter(("running",))),
            self.library.find(Filter(WAITING)),
            self.library.ended(("done", "failed", "cancelled"), _KEPT_ENDS),
            self.library.ended(("failed",), _KEPT_FAILURES),
            self._trouble,
        )

    def _listen(self, job: Job, event: Event) -> None:
        self._lives[job.id] = self._lives.get(job.id, Live(job.id)).after(event)

    def _serve(self, runner: Runner) -> None:
        """Make what is queued until the desk is closed."""
        try:
            self._make_all(runner)
        finally:
            if not self._stop.cancelled:
                self._trouble = _BROKEN

    def _make_all(self, runner: Runner) -> None:
        """One job after the other; a library that cannot be reached is tried again."""
        while not self._stop.cancelled:
            try:
                with self._working:
                    job = runner.run_next(self._stop)
                self._trouble = ""
            except OviStudioError as error:  # the boundary: the page tells it
                self._lives.clear()
                _logger.warning("the queue stands still: %s", error)
                self._trouble = str(error)
                self._wait(_RETRY_SECONDS)
                continue
            if job is None:
                self._wait(_SNAPSHOT_SECONDS)
            else:
                self._lives.pop(job.id, None)
                self.forget_snapshot()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stop.cancelled and time.monotonic() < until:
            time.sleep(0.05)

    def _end(self) -> None:
        self._stop.cancel()
        for thread in self._threads:
            thread.join()
