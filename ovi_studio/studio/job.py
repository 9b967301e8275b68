"""A job: a clip that was asked for, on its way from the queue to the shelf.

    queued ──→ running ──→ done
      ↑ ↓         │  └───→ failed, cancelled
    paused ←──────┘

A runner that dies leaves its job queued again.
"""

import json
import sqlite3
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ovi_studio.errors import InvalidInputError
from ovi_studio.request import GenerationRequest, ImageFrame

Status: TypeAlias = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
WAITING: tuple[Status, ...] = ("queued", "paused")

# What somebody wants of a running job, for its runner to see to.
Wish: TypeAlias = Literal["", "cancel", "pause", "keep"]


@dataclass(frozen=True)
class Memory:
    """Peaks of a run in bytes; None where nobody knows."""

    gpu_bytes: int | None = None
    host_bytes: int | None = None


@dataclass(frozen=True)
class Order:
    """A clip, or several takes of one, to be put into the queue.

    Args:
        request: what is asked for; each take becomes a job with a seed of its own, written down.
        folder: where the clips go; absolute.
        stem: their file names without suffix; numbers are added so that no two are equal.
        name: what a person calls it.
        tags: words to find it by.
        owner: who asked; "" is the person at this machine.
        parent: the job that this is a re-take of.
        batch: the batch that it belongs to, or "".
        batch_key: what tells its rows and takes apart; unique within the batch.
        batch_row: where it stands in the table, as spreadsheets count.
    """

    request: GenerationRequest
    folder: Path
    stem: str
    name: str = ""
    tags: tuple[str, ...] = ()
    owner: str = ""
    parent: str | None = None
    batch: str = ""
    batch_key: str | None = None
    batch_row: int | None = None


@dataclass(frozen=True)
class Job:
    """A row of the library. Times are seconds since 1970, of this machine's clock.

    Args:
        id: 16 hexadecimal digits.
        status: where it is.
        position: in the queue; smaller is sooner.
        request_json: what was asked for: one take, with its seed.
        seed: the real one, of this take.
        output: the clip's file: before it is there, the name that is kept for it.
        stage: of the running job, else "".
        progress: share of the work that is done, 0 to 1.
        seconds_left: of the running job; None where nobody can say.
        problem: why it failed, waits or was given up; "" where there is nothing to tell.
        remedy: what to do about it.
        created: when it was asked for.
        started: when a runner last took it.
        finished: when it was done, had failed or was cancelled.
        seconds: how long its last run took.
        interruptions: how often a runner died or was stopped over it.
        plan: of its last run, as data.
        predicted: by the plan.
        measured: by the engine.
        stages: seconds and bytes that each stage took, as measured.
        wish: what its runner shall do.
        runner: who works on it, or "".
        favourite: and the fields after it: see `Order`.
    """

    id: str
    status: Status
    position: int
    request_json: str
    seed: int
    output: Path
    stage: str
    progress: float
    seconds_left: float | None
    problem: str
    remedy: str
    created: float
    started: float | None
    finished: float | None
    seconds: float | None
    interruptions: int
    plan: dict[str, Any] | None
    predicted: Memory
    measured: Memory
    stages: dict[str, dict[str, float]] | None
    wish: Wish
    runner: str
    favourite: bool
    name: str
    tags: tuple[str, ...]
    owner: str
    parent: str | None
    batch: str
    batch_key: str | None
    batch_row: int | None

    @cached_property
    def request(self) -> GenerationRequest:
        """What was asked for.

        Raises:
            InvalidRequestError: another version wrote it, and this one cannot make it.
        """
        return GenerationRequest.from_json(self.request_json)

    @property
    def reason(self) -> str:
        """Why it is not done, and what to do about it, in a line; or ""."""
        return f"{self.problem} {self.remedy}".strip()


# What `job_from_row` reads, as SQL; the picture is asked for by itself.
COLUMNS = """
    id, status, position, request AS request_json, seed, output, stage, progress, seconds_left, problem, remedy,
    created, started, finished, seconds, interruptions, plan, stages, predicted_gpu_bytes, predicted_host_bytes,
    measured_gpu_bytes, measured_host_bytes, wish, runner, favourite, name, tags, owner, parent, batch, batch_key,
    batch_row
"""


def job_from_row(row: sqlite3.Row) -> Job:
    """The job in a row that was selected by `COLUMNS`."""
    data = dict(row)
    for kind in ("predicted", "measured"):
        data[kind] = Memory(data.pop(f"{kind}_gpu_bytes"), data.pop(f"{kind}_host_bytes"))
    for name in ("plan", "stages"):
        data[name] = None if row[name] is None else json.loads(row[name])
    data["tags"] = tuple(json.loads(row["tags"]))
    data["output"] = Path(row["output"])
    data["favourite"] = bool(row["favourite"])
    return Job(**data)


def is_answer(made: GenerationRequest, asked: GenerationRequest) -> bool:
    """Whether a clip that was made as `made` is what `asked` wants: equal in all that `asked` settles.

    An open seed is answered by any seed, and the size that an image would give by any size.
    """
    if made.prompt != asked.prompt:  # most are told apart by this
        return False
    if asked.seed is None:
        asked = asked.replace(seed=made.seed)
    open_fields = {"takes"}
    if isinstance(asked.first_frame, ImageFrame):
        if not isinstance(made.first_frame, ImageFrame) or made.first_frame.sha256 != asked.first_frame.sha256:
            return False
        open_fields |= {"first_frame"} if asked.size or asked.aspect else {"first_frame", "size"}
    fields = GenerationRequest.model_fields.keys() - open_fields
    try:
        wanted, made = asked.resolved(), made.resolved()
    except InvalidInputError:
        return False
    return all(getattr(wanted, name) == getattr(made, name) for name in fields)
