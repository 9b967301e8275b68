"""What a node of a cluster does: it has an engine, is driven call by call, and hands its clips over in pieces.

    ClusterEngine (driver)                 │ Node (an actor)
    ready() ───────────────────────────────┼─▶ ends what is left of an earlier run; makes the engine
    start(order, request, picture) ────────┼─▶ thread: engine.generate or engine.draw
    events(seconds) ◀──────────────────────┼── what has happened since
    cancel(), finish_early() ──────────────┼─▶ the token of the run
    read(path, offset) ◀───────────────────┼── a piece of the clip

Nothing here knows Ray. The engine itself is in a process of its own (`worker.py`), which has the model and the cards:
what kills it is told as on one machine, and does not take the node's actor down.
"""

import contextlib
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import psutil

from ovi_studio import __version__
from ovi_studio.engine import Engine
from ovi_studio.engine.worker import WorkerEngine
from ovi_studio.errors import EngineError, OviStudioError, WeightsError
from ovi_studio.events import Cancelled, CancelToken, Event, Failed, Finished, FrameDrawn
from ovi_studio.folders import app_folders
from ovi_studio.request import GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.runtime import memory
from ovi_studio.runtime.execution_plan import ExecutionPlan, Preferences
from ovi_studio.runtime.hardware import Hardware, probe
from ovi_studio.runtime.planner import Planner
from ovi_studio.variants import get_variant
from ovi_studio.weights.image_model import SOURCE, image_model
from ovi_studio.weights.inventory import installed_adapters, readiness
from ovi_studio.weights.store import State, Store

PIECE_BYTES = 1 << 20  # guessed: few round trips for a clip, and nothing to a node's memory
_FOLDER_PREFIX = "ovi-studio-node-"

Kind: TypeAlias = Literal["clip", "frame"]
LAST_EVENTS: dict[Kind, tuple[type[Event], ...]] = {
    "clip": (Finished, Failed, Cancelled),
    "frame": (FrameDrawn, Failed, Cancelled),
}


@dataclass(frozen=True)
class Needs:
    """What must lie in a node's store for some requests.

    Args:
        variants: models.
        adapters: by id.
        image_model: whether first frames are drawn.
    """

    variants: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    image_model: bool = False

    @classmethod
    def of(cls, requests: Iterable[GenerationRequest]) -> "Needs":
        """What these requests need."""
        requests = tuple(requests)
        return cls(
            tuple(sorted({request.variant for request in requests})),
            tuple(sorted({adapter.id for request in requests for adapter in request.adapters})),
            any(isinstance(request.first_frame, GeneratedFrame) for request in requests),
        )

    def missing(self, store: Store) -> tuple[str, ...]:
        """Names of what is not in the store."""
        adapters = {adapter.id for adapter in installed_adapters(store)}
        missing = [name for name in self.variants if not readiness(get_variant(name), store).ready]
        missing += [name for name in self.adapters if name not in adapters]
        if self.image_model and store.status(SOURCE).state is not State.PRESENT:
            missing.append(SOURCE.name)
        return tuple(missing)


def node_engine(output_dir: Path, needs: Needs, shared: Path) -> Engine:
    """The engine of this node, with the weights that are found from here.

    Args:
        output_dir: for its clips.
        needs: what it will be asked for.
        shared: where the driver has its weights; looked at where this node's own folder lacks something.

    Raises:
        WeightsError: neither folder has all that is needed.
    """
    own = app_folders().weights
    folder = next((each for each in (own, shared) if not needs.missing(Store(each))), None)
    if folder is None:
        places = str(own) if own == shared else f"{own}, nor all in {shared}"
        raise WeightsError(
            f"Weights are missing: {', '.join(needs.missing(Store(own)))} not in {places}.",
            "Download them there, or keep the weights on a disk that all nodes share.",
        )
    preferences = _share_of(probe(), probe(environment={}))
    make = partial(_stored_engine, weights=folder, preferences=preferences)
    return WorkerEngine(output_dir, make, _planner(folder, preferences))


def _stored_engine(output_dir: Path, weights: Path, preferences: Preferences) -> Engine:
    """In the worker, where torch is imported."""
    from ovi_studio.engine.engine import OviEngine  # noqa: PLC0415

    return OviEngine(output_dir, app_folders().cache, _planner(weights, preferences), Store(weights))


def _planner(weights: Path, preferences: Preferences) -> Planner:
    return Planner(app_folders().cache, preferences, image_model=partial(image_model, Store(weights)))


def _share_of(visible: Hardware, whole: Hardware) -> Preferences:
    """The host memory that an engine may use, where a machine's cards are shared out and each plans for itself.

    Args:
        visible: the machine with this engine's cards only.
        whole: the machine with all its cards.
    """
    if not visible.cards or len(visible.cards) == len(whole.cards):
        return Preferences()
    usable = max(0, whole.free_ram_bytes - memory.HOST_RESERVE_BYTES)
    return Preferences(host_limit_bytes=usable * len(visible.cards) // len(whole.cards))


@dataclass(frozen=True)
class Ready:
    """A node's answer when it is asked for work.

    Args:
        version: of Ovi Studio there.
        fault: why it cannot work; None where it can.
        node: what the cluster calls it.
    """

    version: str
    fault: Failed | None = None
    node: str = ""


class Node:
    """An engine for another process to drive: one run at a time, its methods from several threads.

    Args:
        make_engine: called with the folder for its clips.
    """

    def __init__(self, make_engine: Callable[[Path], Engine]) -> None:
        self._make_engine = make_engine
        self._folder = _own_folder()
        self._engine: Engine | None = None
        self._token = CancelToken()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._thread = threading.Thread()

    def ready(self) -> Ready:
        """Cancel what is left of an earlier run, wait for its end, and see that there is an engine."""
        self._end_run()
        try:
            self._engine = self._engine or self._make_engine(self._folder)
        except OviStudioError as error:
            return Ready(__version__, Failed.from_error(error))
        return Ready(__version__)

    def plan(self, request: str) -> ExecutionPlan | Failed:
        """See `Engine.plan`."""
        try:
            return self._working_engine.plan(GenerationRequest.from_json(request))
        except OviStudioError as error:
            return Failed.from_error(error)

    def start(self, kind: Kind, request: str, picture: bytes | None) -> None:
        """Begin a run; what is left of the one before is removed.

        Args:
            kind: what to make.
            request: JSON of a `GenerationRequest`.
            picture: the content of the image file that is its first frame, if it has one.
        """
        self._end_run()
        asked = GenerationRequest.from_json(request)
        for left in self._folder.iterdir():
            if left.is_file():
                left.unlink()
        if picture is not None and isinstance(asked.first_frame, ImageFrame):
            path = self._folder / "first-frame"
            path.write_bytes(picture)
            asked = asked.replace(first_frame=asked.first_frame.model_copy(update={"path": str(path)}))
        self._token, self._events = CancelToken(), queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(kind, asked, self._token, self._events), daemon=True)
        self._thread.start()

    def events(self, seconds: float) -> list[Event]:
        """What has happened since this was asked last; waits up to some seconds for it."""
        try:
            found = [self._events.get(timeout=seconds)]
        except queue.Empty:
            return []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def cancel(self) -> None:
        """Stop the run."""
        self._token.cancel()

    def finish_early(self) -> None:
        """Make the clip of what there is."""
        self._token.finish_early()

    def read(self, path: str, offset: int) -> bytes:
        """A piece of a file that an event told of, from this byte on; empty at its end."""
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)

    def close(self) -> None:
        """Stop the run, and let go of everything."""
        self._end_run()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _working_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("The node has no engine.", "Ask it first whether it is ready.")
        return self._engine

    def _run(
        self, kind: Kind, request: GenerationRequest, token: CancelToken, events: "queue.SimpleQueue[Event]"
    ) -> None:
        make = self._working_engine.generate if kind == "clip" else self._working_engine.draw
        last: Event | None = None
        try:
            for last in make(request, token):
                events.put(last)
        finally:  # also where the engine raised: then Ray's log of this process has the traceback
            if not isinstance(last, LAST_EVENTS[kind]):
                events.put(Failed("The engine stopped without a clip.", "Run it again; report it if it recurs."))

    def _end_run(self) -> None:
        self._token.cancel()
        if self._thread.is_alive():
            self._thread.join()


def _own_folder() -> Path:
    """A folder for this process; those of dead ones are removed first: a node is often killed, and never asked."""
    root = Path(tempfile.gettempdir())
    for old in root.glob(f"{_FOLDER_PREFIX}*"):
        with contextlib.suppress(ValueError):  # not one of ours
            if not psutil.pid_exists(int(old.name.removeprefix(_FOLDER_PREFIX).partition("-")[0])):
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir=root))
