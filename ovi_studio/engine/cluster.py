"""The engines of a cluster behind one protocol: Ray finds the nodes, starts them again, and tells which are lost.

    ClusterEngine.generate ── a free slot ──▶ Node (an actor in a placement group, `node.py`)
       once in each thread ◀── events, the clip in pieces ──┘
                           ── lost? the next free slot, from the beginning

A slot is an actor and the question whether it is ready, asked after every run: Ray answers when the actor lives, on
whatever node it was started again. On cards, a slot is a bundle of cards, each a placement group of its own. Where no
node has one, a node is a slot, with all its processors, and no two slots share a node.

Ray is imported here: see `ray_session.py`.
"""

import contextlib
import logging
import math
import platform
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ovi_studio import __version__
from ovi_studio.engine import Engine
from ovi_studio.engine.node import LAST_EVENTS, Kind, Node, Ready
from ovi_studio.errors import CancelledError, EngineError, InvalidInputError, MediaError
from ovi_studio.events import Cancelled, CancelToken, Event, Failed, Finished, FrameDrawn, Planned, ending_in_words
from ovi_studio.files import replacing, writing_errors
from ovi_studio.media import read_clip
from ovi_studio.request import GenerationRequest, ImageFrame
from ovi_studio.runtime.execution_plan import ExecutionPlan

MAX_LOSSES = 3  # guessed: a run that has lost so many nodes may be what takes them down
_POLL_SECONDS = 0.05  # guessed: how late a cancelled token is noticed; no person feels it
_LISTEN_SECONDS = 2.0  # guessed: how long a node keeps a question for events; each is a round trip
_CANCEL_SECONDS = 60.0  # guessed: twice what a worker's engine is given to end a cancelled run
_GATHER_SECONDS = 60.0  # guessed: for all nodes to answer at the start; who comes later works too
_CLOSE_SECONDS = 10.0  # guessed: for nodes to clear away
_CALLS = 8  # at once to an actor: a run has three at most

_LOST = (RayActorError, NodeDiedError, ObjectLostError)
_Bundle = dict[str, float]

_logger = logging.getLogger(__name__)


def slots_of(nodes: Sequence[Mapping[str, Any]], gpus: int) -> list[list[_Bundle]]:
    """What to ask of a cluster: placement groups, each a list of bundles that must lie on different nodes.

    Args:
        nodes: as `ray.nodes()` tells.
        gpus: cards of a slot.

    Raises:
        EngineError: no node has the cards, or no processor is for us.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(each.get("GPU", 0) for each in resources):
        bundles = [{"CPU": each["CPU"]} for each in resources if each.get("CPU", 0) >= 1]
        groups = [bundles] if bundles else []
    else:
        groups = []
        for each in resources:
            count = int(each.get("GPU", 0)) // gpus
            processors = each.get("CPU", 0) // count if count else 0
            groups += [[{"GPU": float(gpus)} | ({"CPU": processors} if processors else {})]] * count
    if not groups:
        raise EngineError(
            f"No node of the cluster has {gpus} cards, or any processor.",
            "Start nodes with `ray start`, and let them offer their cards.",
        )
    return groups


class ClusterEngine:
    """An `Engine` whose work is done by the nodes of a cluster. See the head of this file.

    Runs may be asked for from several threads at a time, `slots` of them are done at once; more wait.

    Args:
        output_dir: existing folder for clips until their caller takes them.
        make_engine: called on the nodes with the folder for their clips. It travels pickled: a function of a module,
            or a `functools.partial` of one.
        gpus: cards that each engine has, on one node.
        patience: seconds to wait for a node while none works.

    Raises:
        EngineError: there is no node, none answers, or one of them cannot work; the message names it.
    """

    def __init__(
        self, output_dir: Path, make_engine: Callable[[Path], Engine], gpus: int = 1, patience: float = 300.0
    ) -> None:
        if gpus < 1:
            raise InvalidInputError(f"An engine cannot have {gpus} cards.", "Give 1 or more.")
        self._output_dir = output_dir.absolute()
        self._patience = patience
        self._changing = threading.Lock()
        self._busy = 0
        self._groups: list[PlacementGroup] = []
        self._all: list[_Slot] = []
        self._idle: list[_Slot] = []
        try:
            for bundles in slots_of(ray.nodes(), gpus):
                group = placement_group(bundles, strategy="STRICT_SPREAD")
                self._groups.append(group)
                self._all += [_Slot(_actor(group, n, bundle, make_engine)) for n, bundle in enumerate(bundles)]
            self._idle = list(self._all)
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        """Runs that can be done at once when all nodes are there."""
        return len(self._all)

    def plan(self, request: GenerationRequest) -> ExecutionPlan:
        """See `Engine.plan`; for whichever node is free."""
        with self._free_slot(CancelToken()) as slot:
            answer = ray.get(slot.actor.plan.remote(request.model_dump_json()))
        if isinstance(answer, Failed):
            raise InvalidInputError(f"On the node {slot.name}: {answer.problem}", answer.remedy)
        return answer

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.generate`. Closing the generator cancels the run."""
        yield from _ending_in_words(self._somewhere("clip", request, cancel))

    def draw(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.draw`. The picture is brought into the folder for clips."""
        yield from _ending_in_words(self._somewhere("frame", request, cancel))

    def close(self) -> None:
        """Ends the engines of all nodes, runs under way too."""
        slots = self._all
        self._all, self._idle = [], []
        answers = [slot.actor.close.remote() for slot in slots if slot.answered]  # others have no node yet
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=_CLOSE_SECONDS)
        for slot in slots:
            ray.kill(slot.actor)
        for group in self._groups:
            remove_placement_group(group)
        self._groups = []

    # --- A run ------------------------------------------------------------------------------------------------

    def _somewhere(self, kind: Kind, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        """The run on a free node, and again on another one if that is lost."""
        picture, note = _picture_of(request), ""
        for _ in range(MAX_LOSSES):
            with self._free_slot(cancel) as slot:
                try:
                    yield from self._follow(slot, kind, request, picture, cancel, note)
                except _LOST as error:
                    cancel.raise_if_cancelled()
                    note = f"The node {slot.name} was lost: starting again elsewhere, with the same seed."
                    _logger.info("%s (%s)", note, error)
                except RayTaskError as error:
                    raise EngineError(
                        f"On the node {slot.name}: {error.cause}.", "Run it again; if it recurs, look into Ray's logs."
                    ) from error
                else:
                    return
        raise EngineError(
            f"{MAX_LOSSES} nodes were lost over this clip.",
            "Look into Ray's logs; if memory ran out, choose a smaller size or model.",
        )

    def _follow(
        self,
        slot: "_Slot",
        kind: Kind,
        request: GenerationRequest,
        picture: bytes | None,
        cancel: CancelToken,
        note: str,
    ) -> Iterator[Event]:
        """The run's events, what they tell of brought here."""
        actor = slot.actor
        ray.get(actor.start.remote(kind, request.model_dump_json(), picture))
        answer = actor.events.remote(_LISTEN_SECONDS)
        early, deadline = False, math.inf
        while True:
            if cancel.finishing_early and not early:
                early = True
                actor.finish_early.remote()
            if cancel.cancelled and deadline == math.inf:
                actor.cancel.remote()
                deadline = time.monotonic() + _CANCEL_SECONDS
            if not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
                if time.monotonic() > deadline:
                    yield Cancelled()
                    return
                continue
            for event in ray.get(answer):
                yield self._here(slot, event, note)
                if isinstance(event, LAST_EVENTS[kind]):
                    return
            answer = actor.events.remote(_LISTEN_SECONDS)

    def _here(self, slot: "_Slot", event: Event, note: str) -> Event:
        """The event, as it is on this machine."""
        match event:
            case Planned() if note:
                return replace(event, note=f"{note} {event.note}".rstrip())
            case Finished(clip):
                return replace(event, clip=read_clip(self._fetch(slot, clip.path)))
            case FrameDrawn(path):
                return replace(event, path=self._fetch(slot, path))
            case Failed(problem):
                return replace(event, problem=f"On the node {slot.name}: {problem}")
        return event

    def _fetch(self, slot: "_Slot", path: Path) -> Path:
        """A node's file, piece by piece; it is here whole or not at all."""
        target = self._output_dir / path.name
        with replacing(target) as temporary, writing_errors(target), temporary.open("wb") as file:
            while piece := ray.get(slot.actor.read.remote(str(path), file.tell())):
                file.write(piece)
        return target

    # --- Slots ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """See whether the nodes can work; those that do not answer in time may come later.

        Raises:
            EngineError: one cannot, or none answers.
        """
        refs = [slot.ready for slot in self._idle]
        ray.wait(refs, num_returns=len(refs), timeout=min(_GATHER_SECONDS, self._patience))
        answers, _ = ray.wait(refs, timeout=self._patience)
        if not answers:
            raise self._nobody()
        faults = [fault for slot in self._idle if slot.answered and (fault := slot.fault())]
        if faults:
            raise EngineError(" ".join(fault.problem for fault in faults), faults[0].remedy)

    @contextlib.contextmanager
    def _free_slot(self, cancel: CancelToken) -> Iterator["_Slot"]:
        """A node for as long as this lasts."""
        slot = self._take(cancel)
        try:
            yield slot
        finally:
            if self._all:  # else closed meanwhile
                slot.ask()  # which ends what runs there
            with self._changing:
                self._busy -= 1
                self._idle.append(slot)

    def _take(self, cancel: CancelToken) -> "_Slot":
        last_busy = time.monotonic()
        while True:
            cancel.raise_if_cancelled()
            if not self._all:  # closed meanwhile
                raise CancelledError
            with self._changing:
                slot = next((slot for slot in self._idle if slot.answered and self._works(slot)), None)
                if slot is not None:
                    self._idle.remove(slot)
                    self._busy += 1
                    return slot
                if self._busy:
                    last_busy = time.monotonic()
            if time.monotonic() - last_busy > self._patience:
                raise self._nobody()
            time.sleep(_POLL_SECONDS)

    def _works(self, slot: "_Slot") -> bool:
        """Whether a slot that has answered can work; one that cannot, after it was started again, is left out."""
        fault = slot.fault()
        if fault is not None and not slot.left_out:
            slot.left_out = True
            _logger.warning("%s %s", fault.problem, fault.remedy)
        return fault is None

    def _nobody(self) -> EngineError:
        return EngineError(
            f"No node of the cluster has been free for {self._patience:.0f} s.",
            "See `ray status`: its nodes must be up, and not all in use by others.",
        )


class _Slot:
    """An actor, and the question whether it is ready to work.

    Attributes:
        actor: its handle.
        ready: the question, which Ray keeps through losses of the node until it is answered.
        name: of the node where it is, once it has answered.
        left_out: whether it was told that it cannot work.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.name = ""
        self.left_out = False
        self.ask()

    def ask(self) -> None:
        """Ask anew, after a run or a loss."""
        self.ready = self.actor.ready.options(max_task_retries=-1).remote()

    @property
    def answered(self) -> bool:
        """Whether the answer is there."""
        return bool(ray.wait([self.ready], timeout=0)[0])

    def fault(self) -> Failed | None:
        """What the answer is, waited for: why it cannot work, or None."""
        try:
            answer: Ready = ray.get(self.ready)
        except (*_LOST, RayTaskError) as error:
            words = str(error).strip().splitlines()[-1].strip().rstrip(".")  # of a traceback, what it was
            return Failed(
                f"A node cannot run Ovi Studio: {words}.", f"Install the same version there: ovi-studio {__version__}."
            )
        self.name = answer.node
        if answer.version != __version__:
            return Failed(
                f"The node {self.name} has Ovi Studio {answer.version}, and this machine {__version__}.",
                "Install the same version on both.",
            )
        fault = answer.fault
        return None if fault is None else replace(fault, problem=f"On the node {self.name}: {fault.problem}")


class _NodeActor(Node):
    """A `Node` as Ray runs it: it knows what the cluster calls its machine."""

    def __init__(self, make_engine: Callable[[Path], Engine]) -> None:
        super().__init__(make_engine)
        here = ray.get_runtime_context().get_node_id()
        called = next((node["NodeName"] for node in ray.nodes() if node["NodeID"] == here), here)
        self._name = f"{platform.node()} ({called})"

    def ready(self) -> Ready:
        """See `Node.ready`."""
        return replace(super().ready(), node=self._name)


def _actor(group: PlacementGroup, index: int, bundle: _Bundle, make_engine: Callable[[Path], Engine]) -> Any:
    """A new actor in a bundle of a group; Ray starts it again wherever it finds a place for the bundle."""
    actor_class: Any = ray.remote(_NodeActor)
    return actor_class.options(
        max_restarts=-1,
        max_concurrency=_CALLS,
        num_cpus=bundle.get("CPU", 0),
        num_gpus=bundle.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
    ).remote(make_engine)


def _picture_of(request: GenerationRequest) -> bytes | None:
    """The first frame's file as it is, for a node that has none; None where there is none."""
    frame = request.first_frame
    if not isinstance(frame, ImageFrame) or frame.path is None:
        return None
    try:
        return Path(frame.path).read_bytes()
    except OSError as error:
        raise MediaError(f"{frame.path} cannot be read: {error.strerror}.", "Choose another image.") from error


def _ending_in_words(events: Iterator[Event]) -> Iterator[Event]:
    """As `ending_in_words`; the cluster itself may fail too."""
    try:
        yield from ending_in_words(events)
    except (RayError, ConnectionError) as error:  # its head is gone, or the way to it
        words = " ".join(str(error).split())[:200].rstrip(".: ")
        yield Failed(f"The cluster has failed: {words}.", "See `ray status`, and run it again.")
