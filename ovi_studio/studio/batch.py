"""Batches: rows of a table made as jobs of the library, and told about in a table again.

    rows ── take_up ──→ jobs ── run_batch ──→ clips ── write_results ──→ CSV

A batch is known by its output folder, its clips by what their rows ask for. Taken up again, only what is
missing is made, also where rows were moved, added or changed, or the library was lost and the clips were not.
"""

import csv
import hashlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from ovi_studio.errors import InvalidInputError
from ovi_studio.events import CancelToken
from ovi_studio.files import replacing, writing_errors
from ovi_studio.outputs import stem_for
from ovi_studio.request import SEEDS, GenerationRequest
from ovi_studio.studio.clips import add_clip, clips_in, embedded_request
from ovi_studio.studio.job import WAITING, Job, Order, is_answer
from ovi_studio.studio.library import Filter, Library
from ovi_studio.studio.rows import BatchRow
from ovi_studio.studio.runner import Runner
from ovi_studio.studio.table import harmless

_WAIT_SECONDS = 0.5  # guessed: how late it is noticed that another program has made a clip of the batch

RESULT_COLUMNS = ("row", "take", "status", "path", "seed", "seconds", "error", "prompt")


@dataclass(frozen=True)
class BatchClip:
    """A clip of a batch: which row and take it is (counted from 1), and its job."""

    row: BatchRow
    take: int
    job_id: str


@dataclass(frozen=True)
class Batch:
    """A batch in the library: its name there, and its clips in the order of the table."""

    name: str
    clips: tuple[BatchClip, ...]

    def jobs(self, library: Library) -> list[Job]:
        """The jobs as they are now, one for every clip."""
        jobs = {job.id: job for job in library.find(Filter(batch=self.name))}
        return [jobs[clip.job_id] for clip in self.clips if clip.job_id in jobs]


def batch_name(folder: Path) -> str:
    """What the library calls the batch whose clips go into `folder`."""
    return str(folder.resolve())


def take_up(library: Library, rows: Iterable[BatchRow], folder: Path, owner: str = "") -> Batch:
    """Queue what is missing of a batch.

    A clip that is there stays. What failed, was cancelled or paused, or whose file is gone, is queued again.
    What the table asks for no longer is cancelled, unless it is done.

    Args:
        library: where jobs go.
        rows: the whole table.
        folder: for the clips; it is there.
        owner: who asks.
    """
    name = batch_name(folder)
    known = {job.batch_key: job for job in library.find(Filter(batch=name))}
    wanted = list(_wanted(rows))
    missing = [(row, take, key) for row, take, key in wanted if key not in known]
    found = _adopt(library, name, folder, missing)
    orders = [_order(row, take, key, name, folder, owner) for row, take, key in missing if key not in found]
    ids = found | {key: job.id for key, job in known.items()}
    ids |= {str(job.batch_key): job.id for job in library.add(orders)}
    kept = {ids[key] for _, _, key in wanted}
    for job in known.values():
        if job.id in kept:
            _queue_again(library, job)
        elif job.status in WAITING:
            library.cancel(job.id)
    return Batch(name, tuple(BatchClip(row, take, ids[key]) for row, take, key in wanted))


def run_batch(
    library: Library,
    runner: Runner,
    batch: Batch,
    stop: CancelToken,
    *,
    keep_going: bool,
    tell: Callable[[Job], None] = lambda _job: None,
) -> None:
    """Make a batch's clips until none is left, and wait for those that other programs make.

    Args:
        library: where the jobs are.
        runner: makes this batch's jobs.
        batch: what `take_up` gave.
        stop: once set, the running job is queued again and the rest stays queued.
        keep_going: whether a failed clip lets the others be made; else they are paused.
        tell: is called with every job that is over.

    Raises:
        StoreError: the library cannot be read or written.
    """
    while not stop.cancelled:
        job = runner.run_next(stop)
        if job is None:
            if not library.find(Filter(("running",), batch=batch.name)):
                return
            time.sleep(_WAIT_SECONDS)
            continue
        tell(job)
        if job.status == "failed" and not keep_going:
            library.stop_after_this(batch.name, "A clip before it failed.", "Mend that one, and run the batch again.")
            return


def run_batch_together(
    library: Library,
    runners: Sequence[Runner],
    batch: Batch,
    stop: CancelToken,
    *,
    keep_going: bool,
    tell: Callable[[Job], None] = lambda _job: None,
) -> None:
    """As `run_batch`, by several runners at once, each in a thread of its own; `tell` is called by one at a time.

    The first error sets `stop`, and is raised when all have left their jobs.
    """
    telling = threading.Lock()

    def tell_alone(job: Job) -> None:
        with telling:
            tell(job)

    def run(runner: Runner) -> None:
        run_batch(library, runner, batch, stop, keep_going=keep_going, tell=tell_alone)

    with ThreadPoolExecutor(len(runners), "runner") as threads:
        runs = [threads.submit(run, runner) for runner in runners]
        wait(runs, return_when=FIRST_EXCEPTION)
        if any(each.done() and each.exception() is not None for each in runs):
            stop.cancel()
    for each in runs:
        each.result()


def batch_of(name: str, jobs: Iterable[Job]) -> Batch:
    """The batch that its jobs make up, where the table is not at hand."""
    clips = [
        BatchClip(
            BatchRow(job.batch_row or 0, job.request, job.name, job.tags),
            int((job.batch_key or "1").rpartition("-")[2]),
            job.id,
        )
        for job in jobs
    ]
    return Batch(name, tuple(sorted(clips, key=lambda clip: (clip.row.number, clip.take))))


def newest_batches(library: Library, owner: str, count: int) -> tuple[str, ...]:
    """The batches that somebody asked for, the newest first."""
    rows = library.store.rows(
        "SELECT batch FROM jobs WHERE batch <> '' AND owner = ? GROUP BY batch ORDER BY max(created) DESC LIMIT ?",
        [owner, count],
    )
    return tuple(row["batch"] for row in rows)


def write_results(batch: Batch, jobs: Sequence[Job], path: Path) -> None:
    """What became of every clip, as `results_csv`, in a file.

    Raises:
        MediaError: it cannot be written.
    """
    text = results_csv(batch, jobs)
    with replacing(path) as temporary, writing_errors(path):
        temporary.write_text(text, encoding="utf-8-sig", errors="replace", newline="")


def results_csv(batch: Batch, jobs: Sequence[Job], *, host: bool = True) -> str:
    """What became of every clip, as CSV that a spreadsheet opens without running anything in it.

    Args:
        batch: its clips.
        jobs: as they are now.
        host: whether what speaks of this machine is told: the folders of clips, and why one failed.
    """
    by_id = {job.id: job for job in jobs}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(RESULT_COLUMNS)
    for clip in batch.clips:
        job = by_id.get(clip.job_id)
        if job is not None:
            done = job.status == "done"
            seconds = f"{job.seconds:.1f}" if done and job.seconds is not None else ""
            path_of = str(job.output if host else job.output.name) if done else ""
            reason = job.reason if host else ""
            cells = (clip.row.number, clip.take, job.status, path_of, job.seed, seconds, reason)
            writer.writerow([harmless(str(cell)) for cell in (*cells, clip.row.request.prompt)])
    return text.getvalue()


# --- What is missing ------------------------------------------------------------------------------------------


def _wanted(rows: Iterable[BatchRow]) -> Iterable[tuple[BatchRow, int, str]]:
    """Every clip of the table: row, take, and the key that finds it again.

    The key is of what is asked for, and of which of several equal rows it is; so rows can be moved.
    """
    seen: Counter[str] = Counter()
    for row in rows:
        request = row.request.embedded() | {"takes": 1}
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]
        seen[digest] += 1
        for take in range(1, row.request.takes + 1):
            yield row, take, f"{digest}-{seen[digest]}-{take}"


def _take(request: GenerationRequest, take: int) -> GenerationRequest:
    """The request of one take: seeds count up from a given one, else each is drawn."""
    seed = None if request.seed is None else (request.seed + take - 1) % SEEDS
    return request.replace(takes=1, seed=seed)


def _order(row: BatchRow, take: int, key: str, batch: str, folder: Path, owner: str) -> Order:
    stem = stem_for(row.name or row.request.prompt)
    request = _take(row.request, take)
    return Order(request, folder, stem, row.name, row.tags, owner, None, batch, key, row.number)


def _adopt(library: Library, batch: str, folder: Path, missing: Sequence[tuple[BatchRow, int, str]]) -> dict[str, str]:
    """Clips in the folder that the library does not know, and that are what is missing: their jobs by key."""
    if not missing:
        return {}
    outputs = library.outputs()
    unknown: list[tuple[Path, GenerationRequest]] = []
    for path in sorted(clips_in(folder.absolute())):
        request = None if path in outputs else _request_in(path)
        if request is not None:
            unknown.append((path, request))
    found: dict[str, str] = {}
    for row, take, key in missing:
        asked = _take(row.request, take)
        match = next((each for each in unknown if is_answer(each[1], asked)), None)
        if match is not None:
            unknown.remove(match)
            columns = {"batch": batch, "batch_key": key, "batch_row": row.number}
            found[key] = add_clip(library, *match, columns)
    return found


def _request_in(path: Path) -> GenerationRequest | None:
    try:
        return embedded_request(path).with_real_seed()
    except InvalidInputError:  # somebody else's file
        return None


def _queue_again(library: Library, job: Job) -> None:
    if job.status == "paused":
        library.resume(job.id)
    elif job.status in ("failed", "cancelled") or (job.status == "done" and not job.output.is_file()):
        library.retry(job.id)
