"""The ranks of a run on several cards: processes that follow rank 0, which is this one.

    rank 0 (the engine)                        │ rank 1, 2 …   (processes of their own: `main`)
    Crew(devices, …).place(plan) ── Place ─────┼─▶ load, put the plan on
    AppliedPlan … team.send ── order, order ───┼─▶ obey             (`runtime/parallel.py`)
                    ◀═══ torch.distributed: NCCL on cards, gloo on a CPU ═══▶
    watcher thread: a rank that ended ─────────┼─▶ "abandoned", and why: every rank leaves

Orders lie in a TCP store on rank 0, which each rank reads in its own time: nobody waits in a collective for something
to do. Why a rank broke is in the store too. When one dies, the watcher tells the others why, which they log, ends the
exchanges, and rank 0's call raises; the next run starts new ranks. Ranks whose rank 0 is gone lose the store, and
leave.

Where `torchrun` has started the processes (RANK and WORLD_SIZE are set) they are used as they are: rank 0 goes on with
its command, the others serve (`serve_torchrun`), and torchrun itself ends all when one has died.
"""

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch._C._distributed_c10d import Store as KeyStore

from ovi_studio.engine.worker import death
from ovi_studio.errors import EngineError, OviStudioError
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.request import Adapter
from ovi_studio.runtime.apply import AppliedPlan
from ovi_studio.runtime.execution_plan import ExecutionPlan
from ovi_studio.runtime.parallel import EnterStage, Follower, Forward, LeaveStage, Member, ProjectText, Team
from ovi_studio.runtime.split_decode import BeginDecode, DecodeFollower, DecodeFrame
from ovi_studio.variants import Variant, get_variant
from ovi_studio.weights.adapters import AdapterUse, put_on, read_adapter
from ovi_studio.weights.inventory import find_adapter
from ovi_studio.weights.store import Store

Load = Callable[[Variant, Store], OviPipeline]

_START_SECONDS = 180.0  # guessed: for new processes to import torch, on a busy machine too
_WATCH_SECONDS = 0.05  # guessed: how late a death is noticed
_LEAVE_SECONDS = 2.0  # guessed: for ranks that were told why to say so and leave
_LONG = timedelta(days=10)  # to wait for an order, and then again: the loss of the store ends it at once
_REASON_SECONDS = 5.0  # guessed: an exchange breaks before its cause is seen
_ABANDONED = "abandoned"
# What every rank has of the pipeline; all else is rank 0's.
_SHARED = ("transformer", "video_vae")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Load the plan's variant, put adapters and plan on, and follow."""

    plan: ExecutionPlan
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class _Close:
    """Leave."""


@dataclass(frozen=True)
class _Broken:
    """Why a rank left by itself."""

    problem: str
    remedy: str
    out_of_memory: bool


@dataclass(frozen=True)
class Post:
    """What a rank needs to know to begin.

    Args:
        port: of the store on this machine.
        rank: of the process.
        devices: of all ranks.
        cache_dir: folder for weights that are streamed from disk.
        store: has the weights.
        load: gives a variant's pipeline.
    """

    port: int
    rank: int
    devices: tuple[str, ...]
    cache_dir: Path
    store: Store
    load: Load


class Crew:
    """The other ranks, as rank 0 has them. Use it from one thread.

    Args:
        devices: of all ranks, this one's first.
        cache_dir: as in `Post`.
        store: see above.
        load: see above.

    Raises:
        EngineError: a process could not be started, or ended at once.
    """

    def __init__(self, devices: Sequence[str], cache_dir: Path, store: Store, load: Load) -> None:
        self.devices = tuple(devices)
        if self.devices[0] != "cpu":
            torch.cuda.set_device(self.devices[0])
        self.failure: Exception | None = None
        self._member: Member | None = None
        self._orders = 0
        self._lost = False  # whether an exchange was left in the middle
        self._processes: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None
        if torchrun_rank() is None:
            own = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            self._tcp: KeyStore = own
            post = Post(own.port, 0, self.devices, cache_dir, store, load)
            self._start(post)
        else:
            self._tcp = _torchrun_store()
            if len(self.devices) > (there := int(os.environ["WORLD_SIZE"])):
                raise EngineError(
                    f"The plan is for {len(self.devices)} cards, and torchrun started {there} ranks.",
                    "Start as many ranks as cards, or name the cards to use, as in --gpus 0,1.",
                )
            for rank in range(1, len(self.devices)):
                _put(self._tcp, f"post/{rank}", pickle.dumps(Post(0, rank, self.devices, cache_dir, store, load)))
        try:
            self._wait_until_ready()
            _join(self._tcp, 0, self.devices)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started here."""
        return [process.pid for process in self._processes]

    @property
    def broken(self) -> bool:
        """Whether it cannot be used any more: a rank is gone, or nobody knows in which exchange the others are."""
        return self.failure is not None or self._lost

    def place(self, plan: ExecutionPlan, adapters: tuple[Adapter, ...]) -> Team:
        """Has the others load and put on a plan, and says what rank 0 needs to put on its own. Raises as `at_work`."""
        with self.at_work():
            self.send(Place(plan, adapters))
            self._member = Member(plan.parallel, 0, torch.device(plan.device))
        return Team(self._member, self.send, self.at_work)

    def send(self, order: object) -> None:
        """Gives an order to all others; in a broken crew nobody would hear it."""
        if self.failure is None and not self._lost:
            _put(self._tcp, f"order/{self._orders}", pickle.dumps(order))
            self._orders += 1

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Around all that exchanges something: a rank that is lost meanwhile is told of as that, from its cause.

        Raises:
            EngineError: a rank is gone.
            MemoryError: a rank had not enough.
        """
        if self.failure is not None:
            raise self.failure
        try:
            yield
        except BaseException as error:
            self._lost = True
            distributed = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
            if distributed and (failure := self._failure_within(_REASON_SECONDS)):
                raise failure from error
            raise
        if self.failure is not None:  # a card's exchange that was ended returns as if all were well
            raise self.failure

    def close(self) -> None:
        """Ends the others; harmless when repeated."""
        broken = self.broken
        self._over.set()
        with contextlib.suppress(dist.DistError, RuntimeError):
            if broken:
                _put(self._tcp, _ABANDONED, b"rank 0 gave the run up")
            else:
                self.send(_Close())
                self._wait_for_leaving()
        if self._member is not None and broken:
            self._member.abort()
        until = time.monotonic() + _LEAVE_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()
            process.wait()
        if self._watcher is not None:
            self._watcher.join()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._member = None

    def _wait_for_leaving(self) -> None:
        """Until the others have read their last order: the store may end with this process."""
        until = time.monotonic() + _LEAVE_SECONDS
        keys = [f"left/{rank}" for rank in range(1, len(self.devices))]
        while not self._tcp.check(keys) and time.monotonic() < until:
            time.sleep(_WATCH_SECONDS)

    # --- Starting -----------------------------------------------------------------------------------------

    def _start(self, post: Post) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        for rank in range(1, len(self.devices)):
            try:
                process = subprocess.Popen(  # noqa: S603 - ourselves
                    [sys.executable, "-c", f"from {__name__} import main; main()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,  # what a rank says goes to stderr
                    env=environment,
                )
            except OSError as error:
                self.close()
                raise EngineError(
                    f"The process of rank {rank} could not be started: {error.strerror or error}.",
                    "Close other programs, and run it again.",
                ) from error
            self._processes.append(process)
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                    pipe.write(pickle.dumps(replace(post, rank=rank)))
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._watcher.start()

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + _START_SECONDS
        keys = [f"ready/{rank}" for rank in range(1, len(self.devices))]
        while not self._tcp.check(keys):
            if self.failure is not None:
                raise self.failure
            if time.monotonic() > until:
                raise EngineError(
                    f"The processes of {len(self.devices)} ranks did not start within {_START_SECONDS:.0f} s.",
                    "Run it again; use one card (--gpus 0) if it recurs.",
                )
            time.sleep(_WATCH_SECONDS)

    # --- Watching -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """A thread: sees the first of the others that ends, and ends the run with its reason."""
        while not self._over.wait(_WATCH_SECONDS):
            for rank, process in enumerate(self._processes, start=1):
                if (code := process.poll()) is not None:
                    failure, words = self._reason(rank, code)
                    with contextlib.suppress(dist.DistError, RuntimeError):
                        _put(self._tcp, _ABANDONED, words.encode())
                    _logger.error("rank 0 gives the run up: %s", words)
                    self.failure = failure
                    self._end_exchanges()
                    return

    def _end_exchanges(self) -> None:
        """Who waits for a tensor gets an error: on cards told by NCCL, on a CPU by the ends of the connections."""
        until = time.monotonic() + _LEAVE_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()
        if self._member is not None:
            self._member.abort()

    def _reason(self, rank: int, code: int) -> tuple[Exception, str]:
        """What became of a rank, as an error and in words."""
        where = f"rank {rank} ({self.devices[rank]})"
        if self._tcp.check([f"broken/{rank}"]):
            broken = pickle.loads(self._tcp.get(f"broken/{rank}"))  # noqa: S301 - from our own process
            words = f"On {where}: {broken.problem}"
            return (MemoryError(words) if broken.out_of_memory else EngineError(words, broken.remedy)), words
        error = death(code, f"The process of {where}")
        return error, error.problem

    def _failure_within(self, seconds: float) -> Exception | None:
        until = time.monotonic() + seconds
        while self.failure is None and time.monotonic() < until:
            time.sleep(_WATCH_SECONDS)
        return self.failure


# --- In the other ranks ---------------------------------------------------------------------------------------


class _Rank:
    """A rank that follows.

    Args:
        post: what it has to know.
        tcp: the store in which orders lie.
    """

    def __init__(self, post: Post, tcp: KeyStore) -> None:
        self._post = post
        self._tcp = tcp
        self._taken = 0
        self._placed: AppliedPlan | None = None
        self._stage = contextlib.ExitStack()
        self._passes: Follower | None = None
        self._decode: DecodeFollower | None = None

    def serve(self) -> None:
        """Obeys until told to leave."""
        _put(self._tcp, f"ready/{self._post.rank}", b"")
        _join(self._tcp, self._post.rank, self._post.devices)
        while not isinstance(order := self._next(), _Close):
            self._obey(order)

    def _next(self) -> object:
        """The next order, waited for as long as it takes."""
        key = f"order/{self._taken}"
        while True:
            with contextlib.suppress(dist.DistStoreError):  # none within this time
                self._tcp.wait([key], _LONG)
                break
        self._taken += 1
        order = pickle.loads(self._tcp.get(key))  # noqa: S301 - from rank 0
        if self._tcp.add(f"taken/{key}", 1) == len(self._post.devices) - 1:  # the last one tidies up
            self._tcp.delete_key(key)
            self._tcp.delete_key(f"taken/{key}")
        return order

    def _obey(self, order: object) -> None:
        match order:
            case Place(plan, adapters):
                self._place(plan, adapters)
            case EnterStage(stage) if self._placed is not None:
                self._stage.enter_context(self._placed.stage(stage))
            case LeaveStage():
                if self._passes is not None:
                    self._passes.forget()
                if self._decode is not None:
                    self._decode.forget()
                self._stage.close()
            case ProjectText() | Forward() if self._passes is not None:
                self._passes.obey(order)
            case BeginDecode() | DecodeFrame() if self._decode is not None:
                self._decode.obey(order)
            case _:
                raise RuntimeError(f"{type(order).__name__} came at the wrong time")

    def _place(self, plan: ExecutionPlan, adapters: tuple[Adapter, ...]) -> None:
        post = self._post
        device = post.devices[post.rank]
        self._stage.close()
        if self._placed is not None:
            self._placed.close("discard")
        member = Member(plan.parallel, post.rank, torch.device(device))
        pipeline = post.load(get_variant(plan.variant), post.store)
        if adapters:
            uses = [AdapterUse(read_adapter(find_adapter(a.id, post.store)), a.strength, a.tower) for a in adapters]
            put_on(pipeline.transformer, uses)
        components = {name: part for name, part in plan.components.items() if name in _SHARED}
        own = replace(plan, device=device, components=components)
        self._placed = AppliedPlan(pipeline, own, post.cache_dir, Team(member))
        self._passes = Follower(member, pipeline.transformer)
        self._decode = DecodeFollower(member, pipeline.video_vae)


def _follow(post: Post, connect: Callable[[], KeyStore]) -> None:
    """A rank's life. It ends with the order to leave, with an error that is told, or with the run.

    Args:
        post: what it has to know.
        connect: to the store; a connection is for one thread.
    """
    tcp = connect()
    if post.devices[post.rank] != "cpu":
        torch.cuda.set_device(post.devices[post.rank])
    threading.Thread(target=_leave_with_the_run, args=(post.rank, connect()), daemon=True).start()
    try:
        _Rank(post, tcp).serve()
        _put(tcp, f"left/{post.rank}", b"")
    except OviStudioError as error:
        _tell_broken(tcp, post.rank, _Broken(error.problem, error.remedy, out_of_memory=False))
    except (RuntimeError, MemoryError) as error:
        words = " ".join(str(error).split())[:200].rstrip(".: ")
        memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in words
        _logger.exception("rank %d met an error that nobody foresaw", post.rank)
        broken = _Broken(f"{type(error).__name__}: {words}.", "Run it again; report it if it recurs.", memory)
        _tell_broken(tcp, post.rank, broken)
    logging.shutdown()
    os._exit(0)  # not by the usual way, which waits for threads of exchanges


def _leave_with_the_run(rank: int, tcp: KeyStore) -> None:
    """A thread: waits for the end of the run, or of rank 0, and leaves whatever the main thread waits for."""
    why = "rank 0 is gone"
    with contextlib.suppress(RuntimeError, dist.DistError):
        while True:
            with contextlib.suppress(dist.DistStoreError):  # not within this time
                tcp.wait([_ABANDONED], _LONG)
                why = tcp.get(_ABANDONED).decode()
                break
    _logger.error("rank %d leaves: %s", rank, why)
    logging.shutdown()
    os._exit(1)


def _tell_broken(tcp: KeyStore, rank: int, broken: _Broken) -> None:
    with contextlib.suppress(RuntimeError, dist.DistError):  # rank 0 is gone
        _put(tcp, f"broken/{rank}", pickle.dumps(broken))
    logging.shutdown()
    os._exit(1)


def _put(tcp: KeyStore, key: str, value: bytes) -> None:
    tcp.set(key, value)  # type: ignore[arg-type]  # its stub knows text only


def _join(tcp: KeyStore, rank: int, devices: Sequence[str]) -> None:
    """Becomes a rank of torch's default group, which all others are made of."""
    backend = "gloo" if devices[0] == "cpu" else "nccl"
    store = PrefixStore("torch", tcp)
    dist.init_process_group(backend, store=store, rank=rank, world_size=len(devices))


# --- torchrun -------------------------------------------------------------------------------------------------


def torchrun_rank() -> int | None:
    """This process's rank where `torchrun` has started it with others; else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return None
    return int(os.environ["RANK"])


def serve_torchrun() -> None:
    """Serves as a rank that `torchrun` has started; the process ends when rank 0 has finished."""
    tcp = _torchrun_store()
    key = f"post/{torchrun_rank()}"
    while True:
        with contextlib.suppress(dist.DistStoreError):  # not within this time
            tcp.wait([key], _LONG)
            break
    if (post := pickle.loads(tcp.get(key))) is not None:  # noqa: S301 - from rank 0
        _follow(post, _torchrun_store)


@contextlib.contextmanager
def leading_torchrun() -> Iterator[None]:
    """Around all that rank 0 does: those who never were needed leave at its end."""
    try:
        yield
    finally:
        tcp = _torchrun_store()
        for rank in range(1, int(os.environ["WORLD_SIZE"])):
            if not tcp.check([f"post/{rank}"]):
                _put(tcp, f"post/{rank}", pickle.dumps(None))


def _torchrun_store() -> KeyStore:
    master = torchrun_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    tcp = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=master, wait_for_workers=False)
    return PrefixStore(f"ovi-studio/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", tcp)


def main() -> None:
    """The life of a rank that `Crew` started: what it has to know comes on standard input."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    post: Post = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - from rank 0
    _follow(post, lambda: TCPStore("127.0.0.1", post.port, is_master=False, wait_for_workers=False))
