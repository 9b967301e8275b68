"""`ovi-studio library`: the clips and jobs that there are, what shall become of them, and rebuilding it all."""

import argparse
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ovi_studio.cli.console import print_line, say
from ovi_studio.errors import InvalidInputError, StoreError

if TYPE_CHECKING:
    from ovi_studio.studio.job import Job
    from ovi_studio.studio.library import Library

_SHOWN = 60  # characters of a prompt in a list


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio library` and its own commands."""
    parser = commands.add_parser(
        "library",
        help="list and steer jobs and clips; rebuild the library from the files",
        description="Jobs and clips: what there is, and what shall become of it.",
        allow_abbrev=False,
    )
    parser.add_argument("--library", type=Path, metavar="FILE", help="another library than this user's")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        verb: argparse.ArgumentParser = verbs.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        verb.set_defaults(run=function)
        return verb

    listing = add("list", run_list, "jobs and clips, the newest first")
    listing.add_argument("words", nargs="*", metavar="WORD", help="all of them stand in the prompt, name or tags")
    listing.add_argument("--status", metavar="STATUS", help="queued, running, paused, done, failed or cancelled")
    listing.add_argument("--page", type=int, default=1, metavar="N", help="from 1 (default: 1)")
    listing.add_argument("--json", action="store_true", help="print JSON lines")

    show = add("show", run_show, "all about a job, as JSON")
    show.add_argument("id", metavar="ID")

    pause = add("pause", run_pause, "keep a job from being made; without ID all, after the one that runs")
    pause.add_argument("id", nargs="?", metavar="ID")
    resume = add("resume", run_resume, "queue a paused job again; without ID all")
    resume.add_argument("id", nargs="?", metavar="ID")
    cancel = add("cancel", run_cancel, "give up a job, or all that wait and run")
    cancel.add_argument("id", nargs="?", metavar="ID")
    cancel.add_argument("--all", action="store_true", help="all of them")
    retry = add("retry", run_retry, "queue a job again that failed, was cancelled, or whose clip is gone")
    retry.add_argument("id", metavar="ID")

    rescan = add("rescan", run_rescan, "take up the clips that are on the disk and not in the library")
    rescan.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="default: where its clips are")
    rescan.add_argument("--rebuild", action="store_true", help="put a damaged library aside and make a new one")


def run_list(arguments: argparse.Namespace) -> int:
    """Prints a page of jobs."""
    from ovi_studio.studio.job import Status  # noqa: PLC0415
    from ovi_studio.studio.library import PAGE, Filter  # noqa: PLC0415

    if arguments.status is not None and arguments.status not in get_args(Status):
        raise InvalidInputError(f"There is no status {arguments.status!r}.", f"Give {', '.join(get_args(Status))}.")
    if arguments.page < 1:
        raise InvalidInputError(f"There is no page {arguments.page}.", "Pages count from 1.")
    statuses = (arguments.status,) if arguments.status else ()
    with _open(arguments) as library:
        page = library.page(Filter(statuses, " ".join(arguments.words)), arguments.page - 1)
    for job in page.jobs:
        print_line(json.dumps(_as_data(job)) if arguments.json else _line(job))
    if page.total > len(page.jobs) and not arguments.json:
        say(f"page {arguments.page} of {-(-page.total // PAGE)}; {page.total} in all")
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Prints a job."""
    with _open(arguments) as library:
        print_line(json.dumps(_as_data(library.get(arguments.id)), indent=1))
    return 0


def run_pause(arguments: argparse.Namespace) -> int:
    """Pauses one job, or the queue."""
    with _open(arguments) as library:
        if arguments.id is not None:
            library.pause(arguments.id)
        else:
            say(f"{library.stop_after_this()} jobs paused")
    return 0


def run_resume(arguments: argparse.Namespace) -> int:
    """Queues what was paused."""
    with _open(arguments) as library:
        say(f"{library.resume(arguments.id)} jobs queued again")
    return 0


def run_cancel(arguments: argparse.Namespace) -> int:
    """Gives up one job, or all."""
    if (arguments.id is None) != arguments.all:
        raise InvalidInputError("It is not clear what to cancel.", "Give an ID, or --all.")
    with _open(arguments) as library:
        if arguments.id is not None:
            library.cancel(arguments.id)
        else:
            say(f"{library.cancel_all()} jobs cancelled")
    return 0


def run_retry(arguments: argparse.Namespace) -> int:
    """Queues a job again."""
    with _open(arguments) as library:
        library.retry(arguments.id)
    return 0


def run_rescan(arguments: argparse.Namespace) -> int:
    """Takes up clips; with `--rebuild` into a new library."""
    from ovi_studio.studio.clips import known_folders, put_aside, rescan  # noqa: PLC0415

    if arguments.rebuild:
        path = _path(arguments)
        if path.exists():
            try:
                with _open(arguments) as library:
                    library.check()
            except StoreError:
                say(f"the damaged library is now {put_aside(path)}")
            else:
                raise InvalidInputError(f"The library {path} is sound.", "Leave out --rebuild.")
    with _open(arguments) as library:
        found = rescan(library, arguments.folders or known_folders(library))
    for file, reason in found.skipped:
        say(f"left out {file}: {reason}")
    for file in found.missing:
        say(f"not found: {file}")
    say(f"{found.added} clips added, {found.moved} found elsewhere or settled, {found.known} known")
    return 0


def _path(arguments: argparse.Namespace) -> Path:
    from ovi_studio.studio.library import default_library  # noqa: PLC0415

    return arguments.library or default_library()


def _open(arguments: argparse.Namespace) -> "Library":
    from ovi_studio.studio.library import Library  # noqa: PLC0415

    return Library(_path(arguments))


def _line(job: "Job") -> str:
    """A job in a line: id, status, when, and what."""
    asked = dt.datetime.fromtimestamp(job.created).astimezone().strftime("%Y-%m-%d %H:%M")
    share = f"{job.progress:4.0%}" if job.status == "running" else "    "
    what = " ".join((job.name or json.loads(job.request_json).get("prompt", "")).split())[:_SHOWN]
    more = f"  {job.output}" if job.status == "done" else f"  {job.reason}" if job.reason else ""
    return f"{job.id}  {job.status:9} {share}  {asked}  {what}{more}"


def _as_data(job: "Job") -> dict[str, Any]:
    """A job as JSON data."""
    data = {name: value for name, value in vars(job).items() if name not in {"request_json", "request"}}
    return data | {
        "request": json.loads(job.request_json),
        "output": str(job.output),
        "predicted": vars(job.predicted),
        "measured": vars(job.measured),
    }
