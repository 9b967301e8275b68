"""`ovi-studio batch`: a clip for every row of a table; running it again makes only what is missing."""

import argparse
import contextlib
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovi_studio.cli import generate
from ovi_studio.cli.console import TerminalLine, minutes, print_line, say
from ovi_studio.cli.plan import add_gpus, preferences_of
from ovi_studio.errors import InvalidInputError, MediaError
from ovi_studio.variants import VARIANTS, get_variant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ovi_studio.engine import Engine
    from ovi_studio.events import CancelToken, Event
    from ovi_studio.studio.batch import Batch
    from ovi_studio.studio.job import Job
    from ovi_studio.studio.library import Library
    from ovi_studio.studio.rows import CheckedBatch
    from ovi_studio.studio.table import Fault

_WIDE = 60  # characters of a cell in the table of faults


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio batch`."""
    parser = commands.add_parser(
        "batch",
        help="make a clip for every row of a table",
        description="Make a clip for every row of a CSV or TSV file. Run again, it makes only what is missing.",
        epilog="Columns: text_prompt, image_path, and any setting by its name: seed, steps, size, model, takes …",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the table, .csv or .tsv; images are relative to it")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the clips and the result table")
    add("--model", dest="variant", metavar="NAME", help=f"for rows that name none: {', '.join(VARIANTS)}")
    add("--takes", type=int, metavar="N", help="for rows that name no number of takes (default: 1)")
    add("--resume", action="store_true", help="only go on: refuse a folder in which this was never begun")
    add("--keep-going", action="store_true", help="after a clip that failed, make the others all the same")
    add(
        "--cluster",
        metavar="ADDRESS",
        help="spread the rows over a Ray cluster: auto (the one of this machine, or a new one), or ray://HOST:10001",
    )
    add("--cluster-gpus", type=int, default=1, metavar="N", help="cards that a clip has on a node (default: 1)")
    add("--library", type=Path, metavar="FILE", help="the library to use (default: the one of this user)")
    add_gpus(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Makes what is missing of the batch."""
    from ovi_studio.files import check_writable  # noqa: PLC0415
    from ovi_studio.folders import make_folder  # noqa: PLC0415
    from ovi_studio.studio.batch import batch_name, take_up, write_results  # noqa: PLC0415
    from ovi_studio.studio.library import Filter, Library, default_library  # noqa: PLC0415

    # 1. look at every row before anything is made
    checked = _check(arguments)
    # 2. where clips go
    make_folder(arguments.output)
    results = arguments.output / f"{arguments.file.stem}-results.csv"
    check_writable(results)
    with Library(arguments.library or default_library()) as library:
        # 3. what is missing
        if arguments.resume and not library.find(Filter(batch=batch_name(arguments.output))):
            raise InvalidInputError(
                f"Nothing was begun in {arguments.output}.", "Leave out --resume to begin, or give the other folder."
            )
        batch = take_up(library, checked.rows, arguments.output)
        jobs = batch.jobs(library)
        missing = sum(job.status != "done" for job in jobs)
        say(f"{len(jobs)} clips, {missing} of them to be made")
        # 4. make it
        with generate.stopped_by_signals() as stop:
            if missing:
                _make(library, batch, arguments, stop)
            # 5. tell what became of it
            jobs = batch.jobs(library)
            try:
                write_results(batch, jobs, results)
            except MediaError as error:  # the folder is gone, say: the rows tell so too
                say(str(error))
            stop.raise_if_cancelled()
    return _tell(batch, jobs, results)


def _check(arguments: argparse.Namespace) -> "CheckedBatch":
    """The table's rows, all of them good.

    Raises:
        InvalidInputError: some are not; they were shown.
    """
    from ovi_studio.studio.rows import ImageFolders, check_batch, read_batch_file  # noqa: PLC0415

    given = {"variant": arguments.variant, "takes": arguments.takes}
    defaults = {name: value for name, value in given.items() if value is not None}
    get_variant(defaults.get("variant", "nano"))
    # Upstream's tables name images from where the program was started.
    images = ImageFolders((arguments.file.absolute().parent, Path.cwd()))
    checked = check_batch(read_batch_file(arguments.file), images, defaults)
    if checked.faults:
        for line in _fault_table(checked.faults):
            print_line(line)
        raise InvalidInputError(
            f"Nothing was made: faults in {arguments.file}: {len(checked.faults)}.", "Mend them and run it again."
        )
    if checked.ignored:
        say(f"columns that say nothing here: {', '.join(checked.ignored)}")
    if checked.remarks:
        say(f"remarks on the prompts: {checked.remarks}; `ovi-studio lint` tells them")
    for name in sorted({row.request.variant for row in checked.rows}):
        if not get_variant(name).trained:
            say(f"{name} is untrained: expect noise")
    return checked


def _fault_table(faults: "Sequence[Fault]") -> list[str]:
    """Row, column, what is wrong, what would mend it: in columns."""
    head = ("row", "column", "what is wrong", "what would mend it")
    cells = [head, *((str(f.row) if f.row else "-", f.column or "-", f.problem, f.remedy) for f in faults)]
    plain = [[" ".join(cell.split()) for cell in row] for row in cells]
    widths = [min(max(len(row[i]) for row in plain), _WIDE) for i in range(3)]
    return ["  ".join([*(f"{row[i]:<{widths[i]}}" for i in range(3)), row[3]]) for row in plain]


def _make(library: "Library", batch: "Batch", arguments: argparse.Namespace, stop: "CancelToken") -> None:
    from ovi_studio.studio.batch import run_batch_together  # noqa: PLC0415
    from ovi_studio.studio.runner import Runner, work_folder  # noqa: PLC0415

    with work_folder(arguments.output) as work, _engine(work, batch, arguments) as (engine, at_once):
        display = _Display(batch, batch.jobs(library), at_once)
        runners = [Runner(library, engine, work, batch=batch.name, listen=display.show) for _ in range(at_once)]
        run_batch_together(library, runners, batch, stop, keep_going=arguments.keep_going, tell=display.finish)
    display.end()


@contextlib.contextmanager
def _engine(work: Path, batch: "Batch", arguments: argparse.Namespace) -> "Iterator[tuple[Engine, int]]":
    """What makes the clips, and how many at once."""
    from ovi_studio.engine import slots  # noqa: PLC0415

    if arguments.cluster is None:
        with contextlib.closing(_engine_here(work, arguments)) as engine:
            yield engine, slots(engine)
        return

    from ovi_studio.engine.node import Needs, node_engine  # noqa: PLC0415
    from ovi_studio.engine.ray_session import connected  # noqa: PLC0415
    from ovi_studio.folders import app_folders  # noqa: PLC0415

    if arguments.gpus is not None:
        raise InvalidInputError("--gpus names cards of this machine.", "With --cluster, give --cluster-gpus N.")
    needs = Needs.of(clip.row.request for clip in batch.clips)
    with connected(arguments.cluster):
        from ovi_studio.engine.cluster import ClusterEngine  # noqa: PLC0415

        make = partial(node_engine, needs=needs, shared=app_folders().weights.absolute())
        with contextlib.closing(ClusterEngine(work, make, arguments.cluster_gpus)) as cluster:
            say(f"clips at once on the cluster: {cluster.slots}")
            yield cluster, cluster.slots


def _engine_here(work: Path, arguments: argparse.Namespace) -> "Engine":
    """This machine's: every card makes clips of its own where as many are missing, see `engine/pool.py`."""
    from ovi_studio.engine.pool import machine_engine, usable_cards  # noqa: PLC0415
    from ovi_studio.runtime.hardware import probe  # noqa: PLC0415

    preferences = preferences_of((), arguments.gpus)
    if len(usable_cards(probe(), preferences)) > 1:
        return machine_engine(work, preferences)
    return generate.make_engine(work, preferences)


def _tell(batch: "Batch", jobs: "Sequence[Job]", results: Path) -> int:
    """Why what is missing is missing, and the exit code."""
    rows = {clip.job_id: clip.row.number for clip in batch.clips}
    left = [job for job in jobs if job.status != "done"]
    for job in left:
        say(f"row {rows[job.id]}: {job.status}. {job.reason}")
    say(f"{len(jobs) - len(left)} of {len(jobs)} clips are there; {results} lists them")
    return 1 if left else 0


class _Display:
    """On a terminal a line that follows the run that told last; the path of every clip on stdout."""

    BAR = 24  # characters

    def __init__(self, batch: "Batch", jobs: "Sequence[Job]", at_once: int) -> None:
        self._rows = {clip.job_id: clip.row.number for clip in batch.clips}
        self._total = len(jobs)
        self._at_once = at_once
        self._over = sum(job.status == "done" for job in jobs)
        self._seconds: list[float] = []  # of the clips made in this run
        self._stages: dict[str, str] = {}  # of the jobs under way
        self._line = TerminalLine()
        self._showing = threading.Lock()

    def show(self, job: "Job", event: "Event") -> None:
        """An event of a run."""
        from ovi_studio.events import StageStarted, StepDone  # noqa: PLC0415

        with self._showing:
            place = f"clip {self._over + 1} of {self._total}, row {self._rows.get(job.id, '?')}"
            match event:
                case StageStarted(stage):
                    self._stages[job.id] = stage
                    self._line.write(f"{place}: {stage}{self._all_left(None)}")
                case StepDone(step, steps, seconds_left):
                    bar = "#" * (self.BAR * step // steps)
                    left = "" if seconds_left is None else f", {minutes(seconds_left)} left"
                    text = f"{place}: {self._stages.get(job.id, '')} [{bar:<{self.BAR}}] {step}/{steps}{left}"
                    self._line.write(text + self._all_left(seconds_left))

    def finish(self, job: "Job") -> None:
        """A job is over."""
        with self._showing:
            self._line.write("")
            place = f"row {self._rows.get(job.id, '?')}"
            if job.status == "done":
                self._over += 1
                self._seconds.append(job.seconds or 0.0)
                say(f"{place}: {self._over} of {self._total} done, {job.seconds or 0.0:.1f} s")
                print_line(job.output)
            else:
                say(f"{place}: {job.status}. {job.reason}")

    def end(self) -> None:
        """Nothing more will come."""
        self._line.write("")

    def _all_left(self, seconds_left: float | None) -> str:
        """How long the whole batch will take, once a clip of it is done."""
        if not self._seconds:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        to_come = (self._total - self._over - 1) / self._at_once
        return f"; all {minutes((mean if seconds_left is None else seconds_left) + mean * to_come)}"
