"""Who works on which job: claims that no two programs can have, and that end with the program that has them.

    claim ──→ beat … beat ──→ finish | fail | give_back
      └─ a claim whose runner is dead is taken back first, and the job offered again

A runner is alive as long as its process is; on another machine, as long as it tells so every few seconds.
"""

import contextlib
import json
import os
import platform
import secrets
import sqlite3
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ovi_studio.events import Finished
from ovi_studio.studio.job import COLUMNS, Job, Memory, Status, Wish, job_from_row
from ovi_studio.studio.library import Filter, Library
from ovi_studio.studio.records import reserve_name

# Guessed: a runner elsewhere (or with a clock that jumped) is given up after this silence; a beat comes every 5.
LEASE_SECONDS = 60.0
_SAME_START_SECONDS = 10.0  # guessed: start times are worked out from a clock that may have been set


@dataclass(frozen=True)
class RunnerName:
    """Which runner of which process on which machine; as text, what `Job.runner` holds."""

    host: str
    pid: int
    started: float  # of the process, seconds since 1970: another process may get its pid later
    token: str

    @classmethod
    def new(cls) -> "RunnerName":
        """A name for a runner in this process."""
        return cls(platform.node(), os.getpid(), psutil.Process().create_time(), secrets.token_hex(4))

    @classmethod
    def parse(cls, text: str) -> "RunnerName":
        """The name in `text`. Raises ValueError when there is none."""
        host, pid, started, token = text.rsplit("~", 3)
        return cls(host, int(pid), float(started), token)

    def __str__(self) -> str:
        return f"{self.host}~{self.pid}~{self.started:.2f}~{self.token}"

    def is_alive(self, heartbeat: float, lease: float = LEASE_SECONDS) -> bool:
        """Whether it may still be at work.

        Args:
            heartbeat: when it last told so, seconds since 1970.
            lease: seconds of silence after which a runner that cannot be looked at is given up.
        """
        recent = time.time() - heartbeat < lease
        if self.host != platform.node():
            return recent
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return recent or abs(process.create_time() - self.started) < _SAME_START_SECONDS
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # it is there, and somebody else's
            return recent


@dataclass(frozen=True)
class Standing:
    """How far a running job is."""

    stage: str = ""
    progress: float = 0.0
    seconds_left: float | None = None
    plan: dict[str, Any] | None = None
    predicted: Memory = field(default_factory=Memory)


def claim(library: Library, runner: RunnerName, batch: str | None = None) -> Job | None:
    """The next queued job, now this runner's; None where nothing is queued.

    Args:
        library: where to look.
        runner: who takes it.
        batch: only its jobs.
    """
    queued, values = Filter(("queued",), batch=batch).sql()
    now = time.time()
    with library.store.transaction() as connection:
        _take_back(connection, idle=str(runner))
        row = connection.execute(f"SELECT id FROM jobs WHERE {queued} ORDER BY position LIMIT 1", values).fetchone()
        if row is None:
            return None
        connection.execute(
            "UPDATE jobs SET status = 'running', runner = ?, heartbeat = ?, started = ?, stage = '', progress = 0,"
            " wish = '', problem = '', remedy = '' WHERE id = ?",
            [str(runner), now, now, row["id"]],
        )
        return job_from_row(connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", [row["id"]]).fetchone())


def beat(library: Library, job: Job, runner: RunnerName, standing: Standing) -> None:
    """Tell that the runner is alive, and how far it is."""
    library.store.change(
        "UPDATE jobs SET heartbeat = ?, stage = ?, progress = ?, seconds_left = ?, plan = ?,"
        " predicted_gpu_bytes = ?, predicted_host_bytes = ? WHERE id = ? AND runner = ?",
        [
            time.time(),
            standing.stage,
            standing.progress,
            standing.seconds_left,
            None if standing.plan is None else json.dumps(standing.plan),
            standing.predicted.gpu_bytes,
            standing.predicted.host_bytes,
            job.id,
            str(runner),
        ],
    )


def wish_for(library: Library, job: Job, runner: RunnerName) -> Wish:
    """What the runner shall do with its job; "cancel" where the job is its own no longer."""
    rows = library.store.rows("SELECT wish FROM jobs WHERE id = ? AND runner = ?", [job.id, str(runner)])
    wish: Wish = rows[0]["wish"] if rows else "cancel"
    return wish


def rename_output(library: Library, job: Job) -> Path:
    """Another file name for the job's clip: somebody else's file has its own."""
    with library.store.transaction() as connection:
        return reserve_name(connection, job)


def finish(
    library: Library, job: Job, runner: RunnerName, output: Path, thumbnail: bytes | None, told: Finished | None
) -> bool:
    """The clip is at `output`. Returns whether the job was still this runner's.

    Args:
        library: where the job is.
        job: what was made.
        runner: who made it.
        output: the clip.
        thumbnail: of it, a JPEG.
        told: the run's last event; None where an earlier run made the clip.
    """
    measured = {} if told is None else {stage: asdict(took) for stage, took in told.measured.items()}
    return _settle(
        library,
        job,
        runner,
        "done",
        progress=1.0,
        output=str(output),
        thumbnail=thumbnail,
        measured_gpu_bytes=told.peak_gpu_bytes if told else None,
        measured_host_bytes=told.peak_host_bytes if told else None,
        stages=json.dumps(measured) if measured else None,
    )


def fail(library: Library, job: Job, runner: RunnerName, problem: str, remedy: str) -> bool:
    """The job cannot be done as it is. Returns whether it was still this runner's."""
    return _settle(library, job, runner, "failed", problem=problem, remedy=remedy)


def drop(library: Library, job: Job, runner: RunnerName) -> bool:
    """The job was cancelled. Returns whether it was still this runner's."""
    return _settle(library, job, runner, "cancelled", progress=0.0)


def give_back(
    library: Library, job: Job, runner: RunnerName, status: Status = "queued", problem: str = "", remedy: str = ""
) -> bool:
    """The job was not done: queue it again, at its old place, or pause it. Returns whether it was this runner's.

    Args:
        library: where it is.
        job: what was not done.
        runner: who had it.
        status: "queued" or "paused".
        problem: why it has to wait.
        remedy: what to do about it.
    """
    with library.store.transaction() as connection:
        return _give_back(connection, job.id, str(runner), {"status": status, "problem": problem, "remedy": remedy}) > 0


def _settle(library: Library, job: Job, runner: RunnerName, status: Status, **columns: object) -> bool:
    now = time.time()
    columns |= {"status": status, "finished": now, "seconds": now - (job.started or now), **_IDLE}
    assignments = ", ".join(f"{name} = ?" for name in columns)
    changed = library.store.change(
        f"UPDATE jobs SET {assignments} WHERE id = ? AND runner = ? AND status = 'running'",
        [*columns.values(), job.id, str(runner)],
    )
    return changed > 0


_IDLE = {"runner": "", "heartbeat": None, "stage": "", "seconds_left": None, "wish": ""}


_AFTER: dict[Wish, Status] = {"cancel": "cancelled", "pause": "paused"}


def _take_back(connection: sqlite3.Connection, idle: str) -> None:
    """The jobs of dead runners, and of the `idle` one that asks: queued again, or what was wished of them before."""
    running = connection.execute("SELECT id, runner, heartbeat, wish FROM jobs WHERE status = 'running'").fetchall()
    for row in running:
        with contextlib.suppress(ValueError):  # a name that cannot be read is nobody's
            if row["runner"] != idle and RunnerName.parse(row["runner"]).is_alive(row["heartbeat"] or 0.0):
                continue
        _give_back(connection, row["id"], row["runner"], {"status": _AFTER.get(row["wish"], "queued")})


def _give_back(connection: sqlite3.Connection, job_id: str, runner: str, changes: dict[str, str]) -> int:
    columns = {**_IDLE, "progress": 0.0, **changes}
    assignments = ", ".join(f"{name} = ?" for name in columns)
    return connection.execute(
        f"UPDATE jobs SET {assignments}, interruptions = interruptions + 1"
        " WHERE id = ? AND runner = ? AND status = 'running'",
        [*columns.values(), job_id, runner],
    ).rowcount
