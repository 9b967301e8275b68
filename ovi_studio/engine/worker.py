"""The engine in a process of its own: what happens to it there, the caller lives on and says what it was.

    caller, without torch              │ worker
    WorkerEngine.generate ── _Generate ┼─▶ listener ──▶ main thread: engine.generate (or _Draw: engine.draw)
                          ── _Cancel ──┼─▶    └─ cancels the token of the run (or _FinishEarly)
                          ◀────────────┼─────────────── events, or _Broken
    WorkerEngine.close ───── _Close ───┼─▶    └─ the same, and leave

The worker starts with the first run and keeps its model between runs. One that died, or that met an error
nobody foresaw, is replaced at the next run: after a CUDA error a process is of no more use. A worker whose
caller is gone reads the end of the pipe and leaves too.

Each worker writes into a folder of its own inside the caller's. A finished clip is moved out of it; all else
goes with the worker, however that ended.
"""

import contextlib
import faulthandler
import logging
import math
import multiprocessing
import os
import pickle
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import ClassVar, TypeAlias

from ovi_studio.engine import Engine
from ovi_studio.errors import EngineError, OviStudioError
from ovi_studio.events import Cancelled, CancelToken, Event, Failed, Finished, FrameDrawn
from ovi_studio.files import writing_errors
from ovi_studio.folders import app_folders
from ovi_studio.media import read_clip
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.execution_plan import ExecutionPlan, Preferences
from ovi_studio.runtime.hardware import memory_of
from ovi_studio.runtime.planner import NOTHING_HELD, Planner

_POLL_SECONDS = 0.05  # guessed: how late a cancelled token is noticed; no person feels it
_LEAVE_SECONDS = 5.0  # guessed: for an idle worker to leave when asked, and again when told
_UNFINISHED = (Failed, Cancelled)  # last events of any run

_logger = logging.getLogger(__name__)


def ovi_engine(output_dir: Path, preferences: Preferences | None = None) -> Engine:
    """An `OviEngine`; only here, in the worker, torch is imported."""
    from ovi_studio.engine.engine import OviEngine  # noqa: PLC0415

    cache = app_folders().cache
    return OviEngine(output_dir, cache, Planner(cache, preferences))


class WorkerEngine:
    """An `Engine` whose work is done by another process. See the head of this file.

    Args:
        output_dir: existing folder for clips until their caller takes them.
        make_engine: called in the worker with the folder for its clips. It travels pickled: a function of a
            module, or a `functools.partial` of one.
        planner: tells beforehand how a run would be made; the worker's engine decides for itself.
        cancel_grace: seconds a cancelled run may take to end by itself; then its process is killed. The default
            is guessed: many times the longest wait of a healthy run, which is for a block or for a file.
    """

    def __init__(
        self,
        output_dir: Path,
        make_engine: Callable[[Path], Engine] = ovi_engine,
        planner: Planner | None = None,
        cancel_grace: float = 30.0,
    ) -> None:
        self._output_dir = output_dir.absolute()
        self._make_engine = pickle.dumps(make_engine)
        self._planner = planner or Planner(app_folders().cache)
        self._cancel_grace = cancel_grace
        self._worker: _Worker | None = None
        self._changing = threading.Lock()  # held while `_worker` is exchanged
        self._running = threading.Lock()  # held by the run under way

    def plan(self, request: GenerationRequest) -> ExecutionPlan:
        """See `Engine.plan`. What the worker holds is counted as free: it would give it back."""
        worker = self._worker
        held = NOTHING_HELD if worker is None else memory_of(worker.pid)
        return self._planner.plan(request.resolved(), held)

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.generate`. One run at a time: another one, from whatever thread, fails at once.

        Closing the generator cancels the run, and returns when that is over.
        """
        yield from self._one_at_a_time(_Generate(request.model_dump_json()), cancel)

    def draw(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.draw`, and `generate`. The picture is where the worker's engine keeps it."""
        yield from self._one_at_a_time(_Draw(request.model_dump_json()), cancel)

    def _one_at_a_time(self, order: "_Order", cancel: CancelToken) -> Iterator[Event]:
        if not self._running.acquire(blocking=False):
            yield Failed("The engine is busy with another clip.", "Wait until that is finished, or cancel it.")
            return
        try:
            yield from self._run(order, cancel)
        except OviStudioError as error:
            yield Failed.from_error(error)
        finally:
            self._running.release()

    def close(self) -> None:
        """Ends the worker, from any thread; a run under way is cancelled. The next run starts a new one."""
        with self._changing:  # to the end: two workers at once may not fit into the card
            self._drop_worker()

    def _run(self, order: "_Order", cancel: CancelToken) -> Iterator[Event]:
        worker = self._living_worker()
        worker.send(order)
        over = False
        try:
            for event in worker.follow(order, cancel):
                over = isinstance(event, order.last_events)
                yield self._taken(event) if isinstance(event, Finished) else event
        finally:
            if not over:
                worker.abandon(order)

    def _living_worker(self) -> "_Worker":
        with self._changing:
            if self._worker is not None and not self._worker.alive:
                self._drop_worker()
            if self._worker is None:
                self._worker = _Worker(self._output_dir, self._make_engine, self._cancel_grace)
            return self._worker

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _taken(self, event: Finished) -> Finished:
        """The same with the clip moved out of the worker's folder: it may outlive the worker."""
        path = self._output_dir / event.clip.path.name
        with writing_errors(path):
            event.clip.path.replace(path)
        return replace(event, clip=read_clip(path))


class _Worker:
    """One worker process and its folder, as its caller sees them.

    Raises:
        MediaError: the folder cannot be made.
        EngineError: the system gives no process.
    """

    def __init__(self, output_dir: Path, make_engine: bytes, cancel_grace: float) -> None:
        with writing_errors(output_dir):
            self._folder = Path(tempfile.mkdtemp(prefix=".worker-", dir=output_dir))
        self._cancel_grace = cancel_grace
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._unwanted = False  # whether `end` was called
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, make_engine, self._folder, cancel_grace)
        # daemon: ended with its caller even where that forgot to close it
        self._process = context.Process(target=_serve, args=arguments, name="ovi-studio worker", daemon=True)
        try:
            self._process.start()
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise EngineError(
                f"The engine's process could not be started: {error.strerror or error}.",
                "Close other programs, and run it again.",
            ) from error
        finally:
            theirs.close()  # or the end of the pipe would never be seen

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.is_alive()

    def send(self, message: "_Message") -> None:
        """Tells the worker something; if it is dead, the next `follow` finds out."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(message)

    def follow(self, order: "_Order", cancel: CancelToken) -> Iterator[Event]:
        """The events of the run that was ordered. The last one is made up here when the worker cannot tell it."""
        early, deadline = False, math.inf
        while True:
            if cancel.finishing_early and not early:
                early = True
                self.send(_FinishEarly())
            if cancel.cancelled and deadline == math.inf:
                self.send(_Cancel())
                deadline = time.monotonic() + self._cancel_grace
            if time.monotonic() > deadline:
                self.end(patience=0.0)
                yield Cancelled()
                return
            try:
                event = self._receive()
            except EOFError:
                wanted = not (cancel.cancelled or self._unwanted)
                exit_code = self.end()
                yield Failed.from_error(death(exit_code)) if wanted else Cancelled()
                return
            if isinstance(event, _Broken):
                self.end()
                event = event.failed
            if event is not None:
                yield event
            if isinstance(event, order.last_events):
                return

    def abandon(self, order: "_Order") -> None:
        """Cancels the run that was ordered and waits until it is over; nothing is kept of it."""
        cancel = CancelToken()
        cancel.cancel()
        for event in self.follow(order, cancel):
            if isinstance(event, Finished):
                event.clip.path.unlink(missing_ok=True)

    def end(self, patience: float = _LEAVE_SECONDS) -> int | None:
        """Ends the process, by asking, telling and killing, and removes its folder; harmless when repeated.

        Args:
            patience: seconds to wait after asking.

        Returns:
            Its exit code, negative for a signal; None when the system does not tell.
        """
        self._unwanted = True
        with self._ending:
            self.send(_Close())
            self._process.join(patience)
            for stop in (self._process.terminate, self._process.kill):
                if self.alive:
                    stop()
                    self._process.join(_LEAVE_SECONDS)
            shutil.rmtree(self._folder, ignore_errors=True)
            return self._process.exitcode

    def _receive(self) -> "Event | _Broken | None":
        """What the worker told; None when it has been silent for a moment.

        Raises:
            EOFError: it is dead.
        """
        ready = wait([self._connection, self._process.sentinel], _POLL_SECONDS)
        if self._connection in ready:
            try:
                return self._connection.recv()
            except OSError as error:  # killed while it was writing
                raise EOFError from error
        if ready or not self.alive:  # a process that the worker forked may hold pipe and sentinel open
            raise EOFError
        return None


def death(exit_code: int | None, who: str = "The engine's process") -> EngineError:
    """What became of a process that ended unasked."""
    report = "Run it again; if it recurs, report it with what stands on the terminal."
    if exit_code is None:
        return EngineError(f"{who} has vanished.", report)
    if exit_code >= 0:
        return EngineError(f"{who} ended with exit code {exit_code}.", report)
    name = {number.value: number.name for number in signal.Signals}.get(-exit_code, f"signal {-exit_code}")
    if name == "SIGKILL":
        return EngineError(
            f"{who} was killed by the system, most likely for lack of memory (SIGKILL).",
            "Choose a smaller size or model, or close other programs, and run it again.",
        )
    return EngineError(f"{who} was ended by {name}.", report)


# --- What is said -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Generate:
    """Make a clip; `request` is the JSON of a `GenerationRequest`."""

    request: str
    last_events: ClassVar[tuple[type[Event], ...]] = (Finished, *_UNFINISHED)

    def events(self, engine: Engine, cancel: CancelToken) -> Iterator[Event]:
        """In the worker: does it."""
        return engine.generate(GenerationRequest.from_json(self.request), cancel)


@dataclass(frozen=True)
class _Draw:
    """Draw a first frame; `request` as in `_Generate`."""

    request: str
    last_events: ClassVar[tuple[type[Event], ...]] = (FrameDrawn, *_UNFINISHED)

    def events(self, engine: Engine, cancel: CancelToken) -> Iterator[Event]:
        """In the worker: does it."""
        return engine.draw(GenerationRequest.from_json(self.request), cancel)


@dataclass(frozen=True)
class _FinishEarly:
    """Make the clip of what there is; of no effect if the run is over."""


@dataclass(frozen=True)
class _Cancel:
    """Stop the run asked for last; of no effect if it is over."""


@dataclass(frozen=True)
class _Close:
    """Stop the run and leave."""


_Order: TypeAlias = _Generate | _Draw
_Message: TypeAlias = _Order | _FinishEarly | _Cancel | _Close


@dataclass(frozen=True)
class _Broken:
    """The answer of a worker that cannot go on: the last event of its run; then it leaves."""

    failed: Failed


# --- In the worker ----------------------------------------------------------------------------------------

_Runs: TypeAlias = "queue.SimpleQueue[tuple[_Order, CancelToken] | None]"  # None: leave


def _serve(connection: Connection, make_engine: bytes, folder: Path, cancel_grace: float) -> None:
    """The worker's main function. It ends when it is told to, when the engine breaks, or when the caller is gone."""
    _leave_the_terminal()
    runs: _Runs = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, runs, folder, cancel_grace), daemon=True).start()
    try:
        _work(connection, make_engine, folder, runs)
    except OviStudioError as error:
        _tell(connection, _Broken(Failed.from_error(error)))
    except Exception as error:
        _logger.exception("the engine met an error that nobody foresaw")
        _tell(connection, _Broken(Failed.from_error(_unforeseen(error))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _work(connection: Connection, make_engine: bytes, folder: Path, runs: _Runs) -> None:
    """Makes the engine, and with it one clip after another."""
    with contextlib.closing(pickle.loads(make_engine)(folder)) as engine:  # noqa: S301 - from our own caller
        while (run := runs.get()) is not None:
            order, cancel = run
            event = None
            for event in order.events(engine, cancel):
                _tell(connection, event)
            if not isinstance(event, order.last_events):
                raise EngineError("The engine stopped without a clip.", "Run it again; report it if it recurs.")


def _listen(connection: Connection, runs: _Runs, folder: Path, patience: float) -> None:
    """A thread of the worker: hears what the caller says while the main thread works."""
    cancel = CancelToken()
    message: _Message | None = None
    while not isinstance(message, _Close):
        try:
            message = connection.recv()
        except (EOFError, OSError):  # the caller is gone
            message = _Close()
        match message:
            case _Generate() | _Draw():
                cancel = CancelToken()
                runs.put((message, cancel))
            case _FinishEarly():
                cancel.finish_early()
            case _Cancel():
                cancel.cancel()
            case _Close():
                cancel.cancel()
                runs.put(None)
    time.sleep(patience)  # in vain where the main thread ends the process before
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _tell(connection: Connection, event: Event | _Broken) -> None:
    with contextlib.suppress(OSError):  # the caller is gone: the listener sees it too, and cancels
        connection.send(event)


def _leave_the_terminal() -> None:
    """Ctrl-C is for the caller, and so are its standard input and output; what is printed here goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    if sys.stderr is None:  # a program without a terminal
        os.dup2(nowhere, 1)
    else:
        os.dup2(2, 1)
        faulthandler.enable()  # a crash in native code leaves a traceback, and only this way


def _unforeseen(error: Exception) -> EngineError:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return EngineError(
        f"The engine met an unexpected error: {words[:200].rstrip('.: ')}.",
        "Run it again; if it recurs, report it with the traceback on the terminal.",
    )
