"""New rows of the library's table: file names that nobody else has, and the columns that a person writes.

    insert(connection, names, order) → a job that is queued
    insert_row(connection, row)      any other row

All of it happens within a transaction of the store.
"""

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from ovi_studio.errors import InvalidInputError
from ovi_studio.studio.job import Job, Order

MAX_NAME = 200  # characters; guessed
MAX_TAGS, MAX_TAG = 32, 50  # tags of a clip, characters of each; guessed
_NUMBERED_NAMES = 100  # tried before a name gets the job's id instead: 10,000 equal prompts must not take 10,000² looks


def insert(connection: sqlite3.Connection, names: "Names", order: Order) -> str:
    """A new row for a request of one take; its id."""
    job_id = secrets.token_hex(8)
    request = order.request.with_real_seed()
    folder = order.folder.absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"The folder {str(folder)!r} has no readable name.", "Rename it.") from error
    row = {
        "id": job_id,
        "status": "queued",
        "created": time.time(),
        "variant": request.variant,
        "seed": request.seed,
        "output": str(names.free(folder, order.stem, job_id)),
        "owner": order.owner,
        "parent": order.parent,
        "batch": order.batch,
        "batch_key": order.batch_key,
        "batch_row": order.batch_row,
        "request": request.model_dump_json(),
        **labels(request.prompt, order.name, order.tags),
    }
    insert_row(connection, row)
    return job_id


def insert_row(connection: sqlite3.Connection, row: dict[str, object]) -> None:
    """A new row at the end of the queue; what is left out takes the table's default."""
    columns, marks = ", ".join(row), ", ".join("?" * len(row))
    connection.execute(
        f"INSERT INTO jobs (position, {columns}) SELECT ifnull(max(position), 0) + 1, {marks} FROM jobs",
        list(row.values()),
    )


class Names:
    """File names for clips that neither the library nor the disk has, within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._next: dict[Path, int] = {}

    def free(self, folder: Path, stem: str, job_id: str) -> Path:
        """`stem.mp4`, else `stem-2.mp4` and so on, else one with the job's id."""
        path = folder / f"{stem}.mp4"
        for number in range(self._next.get(path, 1), _NUMBERED_NAMES):
            self._next[path] = number + 1
            candidate = path if number == 1 else folder / f"{stem}-{number}.mp4"
            if not self._taken(candidate):
                return candidate
        return folder / f"{stem}-{job_id}.mp4"

    def _taken(self, path: Path) -> bool:
        known = self._connection.execute("SELECT 1 FROM jobs WHERE output = ?", [str(path)]).fetchone()
        return known is not None or os.path.lexists(path)


def reserve_name(connection: sqlite3.Connection, job: Job) -> Path:
    """Another file name for a job, beside the one that it cannot have; within a transaction."""
    path = free_name(connection, job.output, job.id)
    connection.execute("UPDATE jobs SET output = ? WHERE id = ?", [str(path), job.id])
    return path


def free_name(connection: sqlite3.Connection, path: Path, job_id: str) -> Path:
    """A name like `path` that no job and no file has; within a transaction."""
    return Names(connection).free(path.parent, path.stem, f"{job_id}-{secrets.token_hex(4)}")


def labels(prompt: str, name: str, tags: Sequence[str]) -> dict[str, object]:
    """The columns of name and tags. Raises as `check_labels`."""
    tags = tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    check_labels(name, tags)
    return {"name": name, "tags": json.dumps(tags), "search": search_text(prompt, name, tags)}


def check_labels(name: str, tags: Sequence[str]) -> None:
    """Refuse what is too long to be a name or a tag.

    Raises:
        InvalidInputError: that it is.
    """
    if len(name) > MAX_NAME:
        raise InvalidInputError(f"A name of {len(name)} characters is too long.", f"Give at most {MAX_NAME}.")
    if len(tags) > MAX_TAGS or any(len(tag) > MAX_TAG for tag in tags):
        raise InvalidInputError(
            "There are too many tags, or one is too long.", f"Give at most {MAX_TAGS} of {MAX_TAG} characters."
        )


def search_text(prompt: str, name: str, tags: Sequence[str]) -> str:
    """What a search looks into."""
    return "\n".join((prompt, name, *tags)).casefold()
