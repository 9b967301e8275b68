"""Downloads: sources from the hub into the store, several files at a time, each resumed and verified.

    download(sources, store) → DownloadStarted → DownloadProgress … FileFinished … → DownloadFinished

A file has its final name only after its length and checksum were found right; until then it is a `.part`. Whatever
happens, the next run goes on from there. Nothing here imports torch.
"""

import contextlib
import dataclasses
import os
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from ovi_studio.errors import CancelledError, WeightsError
from ovi_studio.events import CancelToken
from ovi_studio.files import sync_folder
from ovi_studio.folders import make_folder
from ovi_studio.weights.catalog import Source
from ovi_studio.weights.hub import Hub
from ovi_studio.weights.store import FileRecord, ListedFile, Listing, State, Store, git_sha1_of, sha256_of, size_on_disk

PARALLEL_FILES = 4
_REPORT_SECONDS = 0.25
_SPEED_SECONDS = 10.0  # speed is that of the last seconds: long enough to be calm, short enough to be true; guessed


@dataclass(frozen=True)
class WaitingForOther:
    """Another process is writing a source; this one waits for it and then takes what it fetched."""

    source: str
    name: ClassVar[str] = "waiting"


@dataclass(frozen=True)
class DownloadStarted:
    """What there is to do is known, and the disk has room for it. `bytes_done` of `bytes_total` are already there."""

    files: int
    bytes_done: int
    bytes_total: int
    folder: str
    name: ClassVar[str] = "download started"


@dataclass(frozen=True)
class DownloadProgress:
    """How far all files together are; speed and seconds left are None until there is something to judge by."""

    bytes_done: int
    bytes_total: int
    bytes_per_second: float | None
    seconds_left: float | None
    name: ClassVar[str] = "download progress"


@dataclass(frozen=True)
class Retrying:
    """An attempt failed; another one follows."""

    file: str
    problem: str
    attempt: int
    name: ClassVar[str] = "retrying"


@dataclass(frozen=True)
class FileFinished:
    """A file is whole, verified, and under its final name."""

    source: str
    path: str
    size: int
    sha256: str
    name: ClassVar[str] = "file finished"


@dataclass(frozen=True)
class DownloadFinished:
    """All sources are present."""

    sources: tuple[str, ...]
    name: ClassVar[str] = "download finished"


DownloadEvent: TypeAlias = (
    WaitingForOther | DownloadStarted | DownloadProgress | Retrying | FileFinished | DownloadFinished
)


def to_json(event: DownloadEvent) -> dict[str, Any]:
    """`event` as one line's worth of JSON data."""
    return {"event": event.name, **dataclasses.asdict(event)}


def download(
    sources: Sequence[Source],
    store: Store,
    hub: Hub | None = None,
    *,
    cancel: CancelToken | None = None,
    parallel_files: int = PARALLEL_FILES,
) -> Generator[DownloadEvent, None, None]:
    """Bring every source into the store; those that are there already are left alone.

    Closing the generator stops the download, as `cancel` does. What has arrived stays for the next run.

    Raises:
        WeightsError: the hub cannot be reached or refuses, something else came than it told, or the disk is too small.
        CancelledError: `cancel` was used.
    """
    hub, cancel, stop, transfer = hub or Hub(), cancel or CancelToken(), threading.Event(), _Transfer()
    wanted = sorted({source.name: source for source in sources}.values(), key=lambda source: source.name)
    absent = [source for source in wanted if store.status(source).state is not State.PRESENT]
    known = {source.name: store.listing(source) for source in absent}
    with _threads(parallel_files, stop) as pool, contextlib.ExitStack() as locks:
        # 1. ask the hub what there is; a refusal here leaves no trace
        answers = [pool.submit(hub.list_files, s, known[s.name].revision, transfer, stop) for s in absent]
        yield from _followed(answers, transfer, cancel)
        fresh = [answer.result() for answer in answers]
        _check_room(store, absent, fresh)
        # 2. hold the sources, in the order of their names so that two processes never wait for each other
        for source in absent:
            yield from _lock(store, source, locks, cancel)
        try:
            # 3. fetch what is missing
            jobs = [job for s, new in zip(absent, fresh, strict=True) for job in _jobs(store, s, known[s.name], new)]
            done = sum(store.bytes_present(job.source, job.file) for job in jobs)
            transfer.start(done, sum(job.file.size for job in jobs))
            yield DownloadStarted(len(jobs), done, transfer.total, str(store.folder))
            fetched = [pool.submit(_obtain, job, store, hub, transfer, stop) for job in jobs]
            yield from _followed(fetched, transfer, cancel)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            for source in absent:
                store.tidy(source)
    yield DownloadFinished(tuple(source.name for source in wanted))


@contextlib.contextmanager
def _threads(count: int, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Threads that are told to stop, and waited for, when the block ends."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="download")
    try:
        yield pool
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _followed(futures: "Sequence[Future[Any]]", transfer: "_Transfer", cancel: CancelToken) -> Iterator[DownloadEvent]:
    """What the threads report until all are done. The first that fails ends it, with its error."""
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, _REPORT_SECONDS, FIRST_EXCEPTION)
        yield from transfer.news()
        # Of several errors, one that says why rather than one of a thread that was merely stopped.
        errors = [error for future in finished if (error := future.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, CancelledError)):
            raise error
        cancel.raise_if_cancelled()


@dataclass(frozen=True)
class _Job:
    source: Source
    revision: str
    file: ListedFile


class _Transfer:
    """What the fetching threads report, for the one that tells it on: a `hub.Watcher`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.events: queue.SimpleQueue[DownloadEvent] = queue.SimpleQueue()
        self._clock = clock
        self._lock = threading.Lock()
        self.done = self.total = 0
        self._marks: deque[tuple[float, int]] = deque()  # (when, bytes done), over the last seconds

    def start(self, done: int, total: int) -> None:
        """The transfer begins, with so many bytes already there."""
        self.done, self.total = done, total
        self._marks.append((self._clock(), done))

    def gained(self, size: int) -> None:
        """So many bytes more are there."""
        with self._lock:
            self.done += size

    def retrying(self, what: str, problem: str, attempt: int) -> None:
        """Another attempt follows."""
        self.events.put(Retrying(what, problem, attempt))

    def news(self) -> Iterator[DownloadEvent]:
        """What happened since the last time, and how far it is now."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self.events.get_nowait()
        if self.total:
            yield self._progress()

    def _progress(self) -> DownloadProgress:
        now = self._clock()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _SPEED_SECONDS:
            self._marks.popleft()
        since, done_then = self._marks[0]
        speed = (self.done - done_then) / (now - since) if now > since else 0.0
        if speed <= 0:
            return DownloadProgress(self.done, self.total, None, None)
        return DownloadProgress(self.done, self.total, speed, (self.total - self.done) / speed)


def _check_room(store: Store, sources: Sequence[Source], listings: Sequence[Listing]) -> None:
    """Refuse what the disk has no room for, less what is already there."""
    needed = sum(
        file.size - store.bytes_present(source, file)
        for source, listing in zip(sources, listings, strict=True)
        for file in listing.files
    )
    existing = next(folder for folder in (store.folder.absolute(), *store.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise WeightsError(
            f"{needed / 1e9:.1f} GB are to be fetched, and the disk of {store.folder} has {free / 1e9:.1f} GB free.",
            "Free some space, or keep the weights elsewhere: ovi-studio models where --set FOLDER.",
        )


def _lock(store: Store, source: Source, locks: contextlib.ExitStack, cancel: CancelToken) -> Iterator[WaitingForOther]:
    told = False
    while True:
        try:
            locks.enter_context(store.locked(source))
        except TimeoutError:
            if not told:
                yield WaitingForOther(source.name)
            told = True
            cancel.raise_if_cancelled()
        else:
            return


def _jobs(store: Store, source: Source, known: Listing, fresh: Listing) -> list[_Job]:
    """What is still to be fetched of a source, now that it is held; its listing is written down.

    Another process may have written a listing meanwhile, of another revision: then that one counts, because some
    of its files are here already.
    """
    now = store.listing(source)
    listing = now if now not in {known, Listing(source.repo, "", ())} else fresh
    jobs = [_Job(source, listing.revision, file) for file in listing.files]
    for job in jobs:
        store.path(source, job.file.path)  # refuses an unsafe name before anything is written
    store.write_listing(source, listing)
    return [job for job in jobs if not store.complete(source, job.file)]


def _obtain(job: _Job, store: Store, hub: Hub, transfer: _Transfer, stop: threading.Event) -> None:
    """One file, from wherever it is to its final name and record."""
    source, file = job.source, job.file
    path, part = store.path(source, file.path), store.part_path(source, file)
    if stop.is_set():
        raise CancelledError
    make_folder(path.parent)
    if _lies_there(path, file):
        sha256 = sha256_of(path)
        transfer.gained(file.size - max(0, size_on_disk(part)))
        part.unlink(missing_ok=True)
    else:
        sha256 = hub.fetch(source, job.revision, file, part, transfer, stop)
        _settle(part, path)
    store.write_record(source, FileRecord(source.repo, job.revision, file.path, file.size, sha256))
    transfer.events.put(FileFinished(source.name, file.path, file.size, sha256))


def _settle(part: Path, path: Path) -> None:
    """Give a whole file its final name, so that a power cut cannot leave that name with less than the whole."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def _lies_there(path: Path, file: ListedFile) -> bool:
    """Whether the whole file is there without a record: put there by hand, or by a run that was killed just then."""
    if size_on_disk(path) != file.size:
        return False
    return sha256_of(path) == file.sha256 if file.sha256 else git_sha1_of(path) == file.git_sha1
