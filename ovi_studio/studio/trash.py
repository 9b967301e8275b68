"""The trash: what was deleted, kept whole for a month.

    throw_away → <folder of the clip>/.trash/<job>/<its name>  → restore | empty
                 and the job's row in the table `trash`

The row goes first, its file second; back they come the other way round. So a crash leaves both where one of the
two can bring them together again, and never a row without what it tells of. Hidden folders are passed over by
everything that looks for clips.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ovi_studio.errors import InvalidInputError, MediaError, OviStudioError
from ovi_studio.files import writing_errors
from ovi_studio.outputs import claim_name
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.clips import is_made
from ovi_studio.studio.job import Job, Status
from ovi_studio.studio.library import Library
from ovi_studio.studio.records import free_name, insert_row

KEPT_SECONDS = 30 * 86_400.0  # guessed: as systems' own trash bins do
_OVER: tuple[Status, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Trashed:
    """Something in the trash.

    Args:
        id: of the job that it was, and will be again.
        deleted: when, seconds since 1970.
        owner: whose it is; "" is the person at this machine.
        name: what a person called it, or "".
        prompt: what it was made from.
        output: where its file was.
    """

    id: str
    deleted: float
    owner: str
    name: str
    prompt: str
    output: Path

    @property
    def kept(self) -> Path:
        """Where its file is meanwhile."""
        return self.output.parent / ".trash" / self.id / self.output.name


def throw_away(library: Library, job_id: str) -> Trashed:
    """Put a job that is over into the trash, with its clip.

    Raises:
        InvalidInputError: there is no such job, or it waits or runs.
        MediaError: its file cannot be moved; nothing is changed then.
    """
    with library.store.transaction() as connection:
        row = connection.execute("SELECT * FROM jobs WHERE id = ?", [job_id]).fetchone()
        if row is None:
            raise InvalidInputError("This clip is gone.", "Look again at what is there.")
        if row["status"] not in _OVER:
            raise InvalidInputError(f"The job is {row['status']}.", "Cancel it first.")
        data = dict(row)
        thumbnail = data.pop("thumbnail")
        connection.execute(
            "INSERT INTO trash (id, deleted, owner, output, job, thumbnail) VALUES (?, ?, ?, ?, ?, ?)",
            [job_id, time.time(), row["owner"], row["output"], json.dumps(data), thumbnail],
        )
        connection.execute("DELETE FROM jobs WHERE id = ?", [job_id])
    thrown = get(library, job_id)
    try:
        _put_aside(thrown)
    except MediaError:
        restore(library, job_id)
        raise
    return thrown


def restore(library: Library, job_id: str) -> Job:
    """Bring a job back, with its clip; under another file name where somebody else has that one by now.

    Raises:
        InvalidInputError: it is not in the trash.
        MediaError: its file cannot be moved; nothing is changed then.
    """
    with library.store.transaction() as connection:
        thrown = get(library, job_id)
        row = connection.execute("SELECT job, thumbnail FROM trash WHERE id = ?", [job_id]).fetchone()
        data = json.loads(row["job"]) | {"thumbnail": row["thumbnail"]}
        with writing_errors(thrown.output):
            data["output"] = str(_bring_back(connection, thrown))
        known = "SELECT 1 FROM jobs WHERE batch = ? AND batch_key = ?"
        if connection.execute(known, [data["batch"], data["batch_key"]]).fetchone():  # the batch has made it anew
            data |= {"batch": "", "batch_key": None, "batch_row": None}
        del data["position"]
        insert_row(connection, data)
        connection.execute("DELETE FROM trash WHERE id = ?", [job_id])
    _remove(thrown.kept)
    return library.get(job_id)


def get(library: Library, job_id: str) -> Trashed:
    """What is in the trash under this id.

    Raises:
        InvalidInputError: nothing is.
    """
    rows = library.store.rows("SELECT * FROM trash WHERE id = ?", [job_id])
    if not rows:
        raise InvalidInputError("This is not in the trash.", "It was restored already, or deleted for good.")
    return _trashed(rows[0])


def trashed(library: Library, owner: str | None = None) -> tuple[Trashed, ...]:
    """What is in the trash, the newest first; of one owner, or of all."""
    rows = library.store.rows("SELECT * FROM trash WHERE owner = ifnull(?, owner) ORDER BY deleted DESC", [owner])
    return tuple(map(_trashed, rows))


def empty(library: Library, things: Iterable[Trashed]) -> int:
    """Delete things in the trash for good. Returns how many; what cannot be deleted stays.

    A file that a crash left at its old place is put aside first, if it is what the row tells of.
    """
    count = 0
    for thing in things:
        if not _is_at_its_old_place(library, thing):
            with contextlib.suppress(OSError):  # a folder that is closed, say
                _remove(thing.kept)
                count += library.store.change("DELETE FROM trash WHERE id = ?", [thing.id])
    return count


def empty_old(library: Library, seconds: float = KEPT_SECONDS) -> int:
    """Delete for good what has been in the trash for so long. Returns how many."""
    return empty(library, (each for each in trashed(library) if each.deleted < time.time() - seconds))


def bytes_kept(things: Iterable[Trashed]) -> int:
    """What the files of things in the trash take."""
    return sum(each.kept.stat().st_size for each in things if each.kept.is_file())


# --- Files and rows -------------------------------------------------------------------------------------------


def _put_aside(thing: Trashed) -> None:
    if not os.path.lexists(thing.output):
        return
    with writing_errors(thing.output):
        thing.kept.parent.mkdir(parents=True, exist_ok=True)
        thing.output.replace(thing.kept)


def _bring_back(connection: sqlite3.Connection, thing: Trashed) -> Path:
    """Give the file a name again, its own if that is free; a crash may have left it there already."""
    known = connection.execute("SELECT 1 FROM jobs WHERE output = ?", [str(thing.output)]).fetchone()
    if not thing.kept.exists():
        return free_name(connection, thing.output, thing.id) if known else thing.output
    thing.output.parent.mkdir(parents=True, exist_ok=True)
    path = thing.output
    if not known and path.exists() and path.samefile(thing.kept):
        return path
    while connection.execute("SELECT 1 FROM jobs WHERE output = ?", [str(path)]).fetchone() or not claim_name(
        thing.kept, path
    ):
        path = free_name(connection, path, thing.id)
    return path


def _is_at_its_old_place(library: Library, thing: Trashed) -> bool:
    """Whether its file lies where it was, after trying to put it aside; never somebody else's."""
    if thing.kept.exists() or not thing.output.is_file() or library.has_output(thing.output):
        return False
    try:
        (row,) = library.store.rows("SELECT job FROM trash WHERE id = ?", [thing.id])
        if not is_made(thing.output, GenerationRequest.from_json(json.loads(row["job"])["request"])):
            return False
        _put_aside(thing)
    except OviStudioError:
        return True
    return False


def _remove(kept: Path) -> None:
    kept.unlink(missing_ok=True)
    for folder in (kept.parent, kept.parent.parent):
        with contextlib.suppress(OSError):  # others are in it
            folder.rmdir()


def _trashed(row: sqlite3.Row) -> Trashed:
    job = json.loads(row["job"])
    prompt = str(json.loads(job["request"]).get("prompt", ""))
    return Trashed(row["id"], row["deleted"], row["owner"], job["name"], prompt, Path(row["output"]))
