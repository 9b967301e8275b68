"""The library: every clip that was asked for, from the queue to the shelf, in one table.

    add → queued ─── runner (claims.py) ──→ done → found, named, tagged, made again
           edit, move, pause, resume, cancel

Every change is one transaction and is refused where the job is no longer in a state that allows it: what a
person sees may be a second old, and other programs work on the same table.
"""

import glob
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from ovi_studio.errors import InvalidInputError
from ovi_studio.folders import app_folders, make_folder
from ovi_studio.outputs import stem_for
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.job import COLUMNS, WAITING, Job, Order, Status, Wish, job_from_row
from ovi_studio.studio.records import Names, insert, labels, search_text
from ovi_studio.studio.store import BUSY_SECONDS, Store

PAGE = 48  # clips; guessed: three screens of a gallery

Sorting: TypeAlias = Literal["newest", "oldest", "queue"]
_ORDER_BY: dict[Sorting, str] = {"newest": "created DESC", "oldest": "created", "queue": "position"}


def default_library() -> Path:
    """The database that the page and the commands share."""
    return app_folders().data / "library.db"


def default_outputs() -> Path:
    """The folder for clips where nobody names another."""
    return app_folders().data / "clips"


@dataclass(frozen=True)
class Filter:
    """Which jobs to list; what is left out does not matter.

    Args:
        statuses: any of these.
        text: each of its words must stand in the prompt, the name or the tags, in any case.
        variant: made by this model.
        tag: has this tag.
        favourite: is one, or is none.
        owner: asked for by.
        batch: belongs to it.
    """

    statuses: tuple[Status, ...] = ()
    text: str = ""
    variant: str | None = None
    tag: str | None = None
    favourite: bool | None = None
    owner: str | None = None
    batch: str | None = None

    def sql(self) -> tuple[str, list[object]]:
        """A condition, and what its question marks stand for."""
        conditions: list[str] = []
        values: list[object] = []
        if self.statuses:
            conditions.append(f"status IN ({', '.join('?' * len(self.statuses))})")
            values += self.statuses
        for column in ("variant", "favourite", "owner", "batch"):
            value = getattr(self, column)
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        if self.tag is not None:
            # the first is quick, the second right
            conditions += ["instr(tags, ?)", "EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)"]
            values += [json.dumps(self.tag), self.tag]
        for word in self.text.casefold().split():
            conditions.append("search GLOB ?")  # measured: a third quicker than instr
            values.append(f"*{glob.escape(word)}*")
        return " AND ".join(conditions) or "1", values


@dataclass(frozen=True)
class Page:
    """Some of the jobs that were asked for, and how many there are of them in all."""

    jobs: tuple[Job, ...]
    total: int


class Library:
    """The jobs of one database.

    Args:
        path: the file.
        timeout: seconds to wait for another program's writing.

    Raises:
        StoreError: it cannot be opened; and every method, where it cannot be read or written.
    """

    def __init__(self, path: Path, timeout: float = BUSY_SECONDS) -> None:
        self.store = Store(path, timeout)

    def __enter__(self) -> "Library":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.store.close()

    def check(self) -> None:
        """Read the whole database, and tell whether it is sound; raises StoreError when not."""
        self.store.check()

    # --- Finding ----------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            InvalidInputError: there is none.
        """
        rows = self.store.rows(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", [job_id])
        if not rows:
            raise _no_such_job(job_id)
        return job_from_row(rows[0])

    def find(self, wanted: Filter, sorting: Sorting = "queue") -> tuple[Job, ...]:
        """All jobs of a kind; for the queue or a batch. For the shelf, which may be large, see `page`."""
        condition, values = wanted.sql()
        order = _ORDER_BY[sorting]
        rows = self.store.rows(f"SELECT {COLUMNS} FROM jobs WHERE {condition} ORDER BY {order}", values)
        return tuple(map(job_from_row, rows))

    def page(self, wanted: Filter, number: int = 0, size: int = PAGE, sorting: Sorting = "newest") -> Page:
        """Page `number`, from 0, of `size` jobs."""
        condition, values = wanted.sql()
        order = _ORDER_BY[sorting]
        # Other indexes would have it look into every clip's row.
        table = "jobs" if sorting == "queue" else "jobs INDEXED BY jobs_by_age"
        rowids = f"SELECT rowid FROM {table} WHERE {condition} ORDER BY {order}"
        if wanted.text or wanted.tag is not None:  # slow to find: one walk gives both the total and the page
            found = self.store.numbers(rowids, values)
            total, chosen = len(found), found[number * size : (number + 1) * size]
        else:
            (total,) = self.store.numbers(f"SELECT count(*) FROM {table} WHERE {condition}", values)
            chosen = self.store.numbers(f"{rowids} LIMIT ? OFFSET ?", [*values, size, number * size])
        marks = ", ".join("?" * len(chosen))
        rows = self.store.rows(f"SELECT {COLUMNS} FROM jobs WHERE rowid IN ({marks}) ORDER BY {order}", chosen)
        return Page(tuple(map(job_from_row, rows)), total)

    def ended(self, statuses: Sequence[Status], size: int) -> tuple[Job, ...]:
        """The jobs that ended last in one of these ways, the last one first."""
        marks = ", ".join("?" * len(statuses))
        rows = self.store.rows(
            f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_by_end WHERE finished IS NOT NULL AND status IN ({marks})"
            " ORDER BY finished DESC LIMIT ?",
            [*statuses, size],
        )
        return tuple(map(job_from_row, rows))

    def newest_seconds(self, variant: str, size: int) -> list[float]:
        """How long the newest clips of a model took."""
        rows = self.store.rows(
            "SELECT seconds FROM jobs INDEXED BY jobs_by_end"
            " WHERE finished IS NOT NULL AND status = 'done' AND variant = ? AND seconds IS NOT NULL"
            " ORDER BY finished DESC LIMIT ?",
            [variant, size],
        )
        return [row["seconds"] for row in rows]

    def tags(self, owner: str | None = None) -> tuple[str, ...]:
        """The tags of finished clips, by name.

        Args:
            owner: only those of their clips.
        """
        condition, values = Filter(("done",), owner=owner).sql()
        rows = self.store.rows(
            f"SELECT DISTINCT each.value AS tag FROM jobs INDEXED BY jobs_by_age, json_each(jobs.tags) AS each"
            f" WHERE {condition} AND jobs.tags <> '[]' ORDER BY each.value COLLATE NOCASE",
            values,
        )
        return tuple(str(row["tag"]) for row in rows)

    def outputs(self) -> set[Path]:
        """The files of all clips, made or to be made."""
        return {Path(row["output"]) for row in self.store.rows("SELECT output FROM jobs")}

    def has_output(self, path: Path) -> bool:
        """Whether a job's clip is at `path`, or will be."""
        return bool(self.store.rows("SELECT 1 FROM jobs WHERE output = ?", [str(path)]))

    def thumbnail(self, job_id: str) -> bytes | None:
        """A small JPEG of the clip; None where there is no picture, or no clip yet."""
        rows = self.store.rows("SELECT thumbnail FROM jobs WHERE id = ?", [job_id])
        if not rows:
            raise _no_such_job(job_id)
        data: bytes | None = rows[0]["thumbnail"]
        return data

    # --- Asking -----------------------------------------------------------------------------------------------

    def add(self, orders: Iterable[Order]) -> tuple[Job, ...]:
        """Put clips into the queue, all or none, each take as a job of its own.

        Raises:
            InvalidInputError: a name or tag is too long.
        """
        ids = []
        with self.store.transaction() as connection:
            names = Names(connection)
            for order in orders:
                parent = order.parent
                for request in order.request.each_take():
                    ids.append(insert(connection, names, replace(order, request=request, parent=parent)))
                    parent = parent or ids[-1]
        return tuple(self.get(job_id) for job_id in ids)

    def ask(self, request: GenerationRequest, *, folder: Path | None = None, owner: str = "") -> tuple[Job, ...]:
        """Put one request into the queue; its clips are named after the prompt. The usual folder is made if need be."""
        if folder is None:
            folder = default_outputs()
            make_folder(folder)
        return self.add([Order(request, folder, stem_for(request.prompt), owner=owner)])

    def again(self, job_id: str, takes: int) -> tuple[Job, ...]:
        """More takes of a job, with new seeds; they know what they are takes of."""
        job = self.get(job_id)
        return self.add([_order_like(job, job.request.replace(seed=None, takes=takes), parent=job.id)])

    def duplicate(self, job_id: str) -> Job:
        """The same once more, seed and all, at the end of the queue: to be edited."""
        job = self.get(job_id)
        return self.add([_order_like(job, job.request, parent=job.parent)])[0]

    def edit(self, job_id: str, request: GenerationRequest) -> Job:
        """Ask for something else in a waiting job's place.

        Raises:
            InvalidInputError: it is being made already, or asks for several takes.
        """
        if request.takes != 1:
            raise InvalidInputError("A job is one clip.", "Ask for more takes of it by themselves.")
        request = request.with_real_seed()
        with self.store.transaction() as connection:
            job = _locked(connection, job_id, WAITING)
            connection.execute(
                "UPDATE jobs SET request = ?, variant = ?, seed = ?, search = ? WHERE id = ?",
                [
                    request.model_dump_json(),
                    request.variant,
                    request.seed,
                    search_text(request.prompt, job.name, job.tags),
                    job_id,
                ],
            )
        return self.get(job_id)

    # --- The queue --------------------------------------------------------------------------------------------

    def move(self, job_id: str, before: str | None = None) -> None:
        """Put a waiting job right before another one, or at the end.

        Raises:
            InvalidInputError: one of them waits no longer.
        """
        with self.store.transaction() as connection:
            _locked(connection, job_id, WAITING)
            if before is not None:
                _locked(connection, before, WAITING)
            rows = connection.execute("SELECT id FROM jobs WHERE status IN ('queued', 'paused') ORDER BY position")
            ids = [row["id"] for row in rows if row["id"] != job_id]
            ids.insert(ids.index(before) if before is not None and before != job_id else len(ids), job_id)
            (highest,) = connection.execute("SELECT max(position) FROM jobs").fetchone()
            connection.executemany(
                "UPDATE jobs SET position = ? WHERE id = ?", [(highest + 1 + i, each) for i, each in enumerate(ids)]
            )

    def pause(self, job_id: str) -> None:
        """Keep a job from being made until it is resumed; one that is being made starts anew then."""
        with self.store.transaction() as connection:
            job = _locked(connection, job_id, (*WAITING, "running"))
            if job.status == "running":
                _wish(connection, job_id, "pause")
            else:
                connection.execute("UPDATE jobs SET status = 'paused' WHERE id = ?", [job_id])

    def stop_after_this(self, batch: str | None = None, problem: str = "", remedy: str = "") -> int:
        """Pause all that is queued; what is being made is finished. Returns how many.

        Args:
            batch: only the jobs of this batch.
            problem: why, kept with the jobs; see `Job`.
            remedy: what to do about it.
        """
        condition, values = Filter(("queued",), batch=batch).sql()
        return self.store.change(
            f"UPDATE jobs SET status = 'paused', problem = ?, remedy = ? WHERE {condition}", [problem, remedy, *values]
        )

    def resume(self, job_id: str | None = None) -> int:
        """Queue a paused job again, or all of them. Returns how many."""
        if job_id is not None:
            self.get(job_id)
        return self.store.change(
            "UPDATE jobs SET status = 'queued', problem = '', remedy = ''"
            " WHERE status = 'paused' AND id = ifnull(?, id)",
            [job_id],
        )

    def retry(self, job_id: str) -> None:
        """Queue a job again that failed, was cancelled, or whose clip is gone.

        Raises:
            InvalidInputError: it waits or runs, or its clip is there.
        """
        with self.store.transaction() as connection:
            job = _locked(connection, job_id, ("failed", "cancelled", "done"))
            if job.status == "done" and job.output.exists():
                raise InvalidInputError(f"The clip {job.output} is there.", "Ask for another take of it.")
            connection.execute(
                "UPDATE jobs SET status = 'queued', problem = '', remedy = '', progress = 0, finished = NULL"
                " WHERE id = ?",
                [job_id],
            )

    def cancel(self, job_id: str) -> None:
        """Give up a job that waits or runs.

        Raises:
            InvalidInputError: it is over already.
        """
        with self.store.transaction() as connection:
            job = _locked(connection, job_id, (*WAITING, "running"))
            if job.status == "running":
                _wish(connection, job_id, "cancel")
            else:
                connection.execute(
                    "UPDATE jobs SET status = 'cancelled', finished = ? WHERE id = ?", [time.time(), job_id]
                )

    def cancel_all(self, owner: str | None = None, batch: str | None = None) -> int:
        """Give up all that waits or runs. Returns how many."""
        condition, values = Filter(WAITING, owner=owner, batch=batch).sql()
        running, ids = Filter(("running",), owner=owner, batch=batch).sql()
        with self.store.transaction() as connection:
            waiting = connection.execute(
                f"UPDATE jobs SET status = 'cancelled', finished = ? WHERE {condition}", [time.time(), *values]
            ).rowcount
            return waiting + connection.execute(f"UPDATE jobs SET wish = 'cancel' WHERE {running}", ids).rowcount

    def keep_what_there_is(self, job_id: str) -> None:
        """Let a running job end now with the picture and sound it has got so far.

        Raises:
            InvalidInputError: it is not running.
        """
        with self.store.transaction() as connection:
            _locked(connection, job_id, ("running",))
            _wish(connection, job_id, "keep")

    # --- The shelf --------------------------------------------------------------------------------------------

    def set_favourite(self, job_id: str, favourite: bool) -> None:
        """Mark a job, or take the mark away."""
        self._change_one(job_id, lambda _job: {"favourite": favourite})

    def rename(self, job_id: str, name: str) -> None:
        """Call it by another name; its file keeps its own. Raises InvalidInputError when too long."""
        self._change_one(job_id, lambda job: labels(job.request.prompt, name, job.tags))

    def set_tags(self, job_id: str, tags: Sequence[str]) -> None:
        """Give it these tags and no others. Raises InvalidInputError for too many or too long ones."""
        self._change_one(job_id, lambda job: labels(job.request.prompt, job.name, tags))

    def forget(self, job_id: str) -> None:
        """Take a job out of the library. A clip's file stays.

        Raises:
            InvalidInputError: it is being made.
        """
        with self.store.transaction() as connection:
            _locked(connection, job_id, (*WAITING, "done", "failed", "cancelled"))
            connection.execute("DELETE FROM jobs WHERE id = ?", [job_id])

    def _change_one(self, job_id: str, changes: Callable[[Job], dict[str, object]]) -> None:
        with self.store.transaction() as connection:
            changed = changes(_locked(connection, job_id))
            columns = ", ".join(f"{name} = ?" for name in changed)
            connection.execute(f"UPDATE jobs SET {columns} WHERE id = ?", [*changed.values(), job_id])


# --- Rows -----------------------------------------------------------------------------------------------------


def _locked(connection: sqlite3.Connection, job_id: str, allowed: Sequence[Status] = ()) -> Job:
    """The job as it is now, within a transaction, if it is in an allowed state (empty: any)."""
    row = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", [job_id]).fetchone()
    if row is None:
        raise _no_such_job(job_id)
    job = job_from_row(row)
    if allowed and job.status not in allowed:
        raise InvalidInputError(
            f"The job is {job.status}: this can be done while it is {' or '.join(allowed)}.", "Look at the list again."
        )
    return job


def _wish(connection: sqlite3.Connection, job_id: str, wish: Wish) -> None:
    connection.execute("UPDATE jobs SET wish = ? WHERE id = ?", [wish, job_id])


def _order_like(job: Job, request: GenerationRequest, parent: str | None) -> Order:
    stem = stem_for(job.name or request.prompt)
    return Order(request, job.output.parent, stem, job.name, job.tags, job.owner, parent)


def _no_such_job(job_id: str) -> InvalidInputError:
    return InvalidInputError(f"There is no job {job_id!r}.", "`ovi-studio library list` shows all.")
