"""The Batch tab: a table is dropped, mended in place, run, and watched until its clips are there.

    bytes ── read_table ──→ cells ── check_table ──→ faults at their cells; mended ones are checked again
                              └── start_batch ──→ jobs ── see_batch … ──→ clips, results

The server keeps nothing of a table that is not run; what runs is in the library, so that a page that is opened anew
finds it again. A table opens no file: its pictures are those that were dropped with it.
"""

import hashlib
import json
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from ovi_studio.errors import InvalidInputError
from ovi_studio.images import MAX_FILE_BYTES
from ovi_studio.outputs import stem_for
from ovi_studio.request import MAX_TAKES, ImageFrame
from ovi_studio.studio.batch import batch_of, results_csv
from ovi_studio.studio.export import Exports
from ovi_studio.studio.frames import Frames
from ovi_studio.studio.job import Job
from ovi_studio.studio.library import Filter
from ovi_studio.studio.pictures import Pictures
from ovi_studio.studio.rows import BatchRow, column_names
from ovi_studio.studio.sheet import EXAMPLE, MAX_BYTES, MAX_ROWS, CheckedSheet, Sheet, check_sheet, read_sheet
from ovi_studio.studio.visits import Person, Visit
from ovi_studio.ui import widgets
from ovi_studio.ui.calls import Answer, Calls, file_bytes
from ovi_studio.ui.create import MissingWeights
from ovi_studio.ui.door import Visits
from ovi_studio.ui.news import title_of
from ovi_studio.variants import VARIANTS, get_variant

_EARLIER = 12  # batches that are offered again; guessed
_MARK = re.compile(r"-[0-9a-f]{6}$")  # what tells batches of the same name apart
_VISITORS_BYTES = 64 << 20  # of the pictures of each visitor; guessed


@dataclass(frozen=True)
class Nothing:
    """A question that says nothing more."""


@dataclass(frozen=True)
class FileAsked:
    """A file: its name, and its content as base64."""

    name: str
    data: str


@dataclass(frozen=True)
class SheetAsked:
    """A table, or rows of it.

    Args:
        header: the labels of its columns.
        rows: their cells.
        variant: for rows that name no model.
        takes: for rows that name no number of takes.
        title: what the batch shall be called.
        only_good: whether it is run without the rows that cannot be made.
    """

    header: list[str]
    rows: list[list[str]]
    variant: str
    takes: int
    title: str = ""
    only_good: bool = False

    def sheet(self) -> Sheet:
        """Its cells. Raises InvalidInputError where there are too many."""
        return Sheet.of(self.header, self.rows)

    def defaults(self) -> dict[str, Any]:
        """What holds for rows that say nothing about it. Raises InvalidInputError where it cannot be."""
        if not 1 <= self.takes <= MAX_TAKES:
            raise InvalidInputError(f"{self.takes} takes cannot be.", f"Choose 1 to {MAX_TAKES}.")
        return {"variant": get_variant(self.variant).name, "takes": self.takes}


@dataclass(frozen=True)
class BatchAsked:
    """A batch by its id, and of its jobs perhaps those in some states."""

    batch: str
    statuses: list[str] = field(default_factory=list)


class BatchTab:
    """The tab; make it inside of `gr.Tab`, then `wire` it.

    Args:
        visits: who asks.
        frames: keeps pictures that clips start from.
        exports: packs clips.
        inbox: folder for the pictures that come with tables; it may be any that can be made again.
        missing: which weights are not here at the moment.
    """

    def __init__(self, visits: Visits, frames: Frames, exports: Exports, inbox: Path, missing: MissingWeights) -> None:
        self._frames = frames
        self._exports = exports
        self._inbox = inbox
        self._missing = missing
        made = Calls(visits).made
        self.widget = widgets.batch(
            [
                made("open_batches", Nothing, self._open),
                made("read_table", FileAsked, self._read),
                made("check_table", SheetAsked, self._check),
                made("table_file", SheetAsked, self._file),
                made("keep_picture", FileAsked, self._keep_picture),
                made("forget_pictures", Nothing, self._forget_pictures),
                made("start_batch", SheetAsked, self._start),
                made("see_batch", BatchAsked, self._see),
                made("stop_batch", BatchAsked, self._stop),
                made("retry_batch", BatchAsked, self._retry),
                made("batch_results", BatchAsked, self._results),
                made("batch_zip", BatchAsked, self._zip),
            ]
        )

    def wire(self, page: gr.Blocks) -> None:
        """Nothing: the widget asks for all that it shows."""

    # --- The table --------------------------------------------------------------------------------------------

    def _open(self, visit: Visit, _asked: Nothing) -> Answer:
        """What a page needs to begin, and the batches there are."""
        models = [{"name": name, "title": each.title} for name, each in VARIANTS.items()]
        return {
            "columns": column_names(),
            "models": models,
            "most_takes": MAX_TAKES,
            "most_rows": MAX_ROWS,
            "most_bytes": MAX_BYTES,
            "most_picture_bytes": MAX_FILE_BYTES,
            "example": EXAMPLE,
            "pictures": self._pictures(visit).names(),
            "batches": [_summary(name, _jobs(visit, name)) for name in visit.batches(_EARLIER)],
        }

    def _read(self, _visit: Visit, asked: FileAsked) -> Answer:
        sheet = read_sheet(file_bytes(asked.data, MAX_BYTES))
        return {"title": Path(asked.name).stem[:80], "header": sheet.header, "rows": sheet.rows}

    def _check(self, visit: Visit, asked: SheetAsked) -> Answer:
        sheet = asked.sheet()
        checked = check_sheet(sheet, self._pictures(visit).folder, asked.defaults())
        rows: list[Answer] = [
            {"clips": checked.rows[number].request.takes if number in checked.rows else 0, "faults": []}
            for number in range(len(sheet.rows))
        ]
        head: list[Answer] = []
        for mend in checked.mends:
            told = {"column": mend.column, "problem": mend.problem, "remedy": mend.remedy}
            (head if mend.row < 0 else rows[mend.row]["faults"]).append(told)
        return {"head": head, "rows": rows, "ignored": checked.ignored, "notes": self._notes(checked, visit.person)}

    def _file(self, _visit: Visit, asked: SheetAsked) -> Answer:
        return {"name": f"{stem_for(asked.title or 'table')}.csv", "text": asked.sheet().to_csv()}

    def _notes(self, checked: CheckedSheet, person: Person) -> list[str]:
        """What is worth knowing about the models that the rows ask for."""
        names = sorted({row.request.variant for row in checked.rows.values()})
        untrained = [f"{name} is untrained: expect noise." for name in names if not get_variant(name).trained]
        remarks = [f"The linter has {checked.remarks} remarks on the prompts: the editor under Create tells them."]
        return [
            *untrained,
            *(f"{name}: {told}" for name in names if (told := self._missing(name, person))),
            *remarks * bool(checked.remarks),
        ]

    def _keep_picture(self, visit: Visit, asked: FileAsked) -> Answer:
        pictures = self._pictures(visit)
        pictures.keep(asked.name, file_bytes(asked.data, MAX_FILE_BYTES))
        return {"pictures": pictures.names()}

    def _forget_pictures(self, visit: Visit, _asked: Nothing) -> Answer:
        pictures = self._pictures(visit)
        pictures.forget()
        return {"pictures": pictures.names()}

    def _pictures(self, visit: Visit) -> Pictures:
        """Those of one person."""
        person = visit.person
        if person.is_owner:
            return Pictures(self._inbox / "owner")
        return Pictures(self._inbox / hashlib.sha256(person.id.encode()).hexdigest()[:32], _VISITORS_BYTES)

    # --- The batch --------------------------------------------------------------------------------------------

    def _start(self, visit: Visit, asked: SheetAsked) -> Answer:
        """Run the table: all of its rows, or the good ones."""
        checked = check_sheet(asked.sheet(), self._pictures(visit).folder, asked.defaults())
        bad = len({mend.row for mend in checked.mends})
        if not checked.header_is_good or (bad and not asked.only_good):
            raise InvalidInputError("Nothing was run: the table has faults.", "Mend them, or run only the good rows.")
        if not checked.rows:
            raise InvalidInputError("There is no row that can be made.", "Add one.")
        name = visit.ask_batch([self._kept(row) for row in checked.rows.values()], _new_name(asked.title))
        return self._seen(visit, name)

    def _kept(self, row: BatchRow) -> BatchRow:
        """The row with its picture where it stays."""
        frame = row.request.first_frame
        if not isinstance(frame, ImageFrame) or frame.path is None:
            return row
        kept = row.request.replace(first_frame=self._frames.keep(frame.path))
        return BatchRow(row.number, kept, row.name, row.tags)

    def _see(self, visit: Visit, asked: BatchAsked) -> Answer:
        return self._seen(visit, _named(visit, asked.batch))

    def _stop(self, visit: Visit, asked: BatchAsked) -> Answer:
        name = _named(visit, asked.batch)
        visit.stop_batch(name)
        return self._seen(visit, name)

    def _retry(self, visit: Visit, asked: BatchAsked) -> Answer:
        name = _named(visit, asked.batch)
        for job in _jobs(visit, name):
            if job.status in asked.statuses and job.status in ("failed", "cancelled"):
                visit.retry(job.id)
        return self._seen(visit, name)

    def _results(self, visit: Visit, asked: BatchAsked) -> Answer:
        name = _named(visit, asked.batch)
        jobs = _jobs(visit, name)
        return {
            "name": f"{Path(name).name}-results.csv",
            "text": results_csv(batch_of(name, jobs), jobs, host=visit.person.is_owner),
        }

    def _zip(self, visit: Visit, asked: BatchAsked) -> Answer:
        name = _named(visit, asked.batch)
        packed = self._exports.make(_jobs(visit, name), visit.person.id)
        return {"url": f"studio/export/{packed.token}.zip", "clips": packed.clips, "missing": packed.missing}

    def _seen(self, visit: Visit, name: str) -> Answer:
        jobs = _jobs(visit, name)
        return _summary(name, jobs) | {"jobs": [_told(job, visit.person.is_owner) for job in jobs]}


def _jobs(visit: Visit, batch: str) -> list[Job]:
    """In the order of the table."""
    jobs = visit.find(Filter(batch=batch))
    return sorted(jobs, key=lambda job: (job.batch_row or 0, _take(job)))


def _take(job: Job) -> int:
    return int((job.batch_key or "1").rpartition("-")[2])


def _named(visit: Visit, batch_id: str) -> str:
    """The batch of theirs that has this id.

    Raises:
        InvalidInputError: there is none, or it is an old one.
    """
    found = next((name for name in visit.batches(_EARLIER) if _id(name) == batch_id), None)
    if found is None:
        raise InvalidInputError("There is no such batch.", "Look again at those that are there.")
    return found


def _id(name: str) -> str:
    """What a page calls a batch: its name in the library is a path."""
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:16]


def _new_name(title: str) -> str:
    return f"{stem_for(title or 'batch')}-{secrets.token_hex(3)}"  # as `_MARK` knows it


def _summary(name: str, jobs: Sequence[Job]) -> Answer:
    return {
        "id": _id(name),
        "title": _MARK.sub("", Path(name).name),
        "created": min((job.created for job in jobs), default=0.0),
        "counts": dict(Counter(job.status for job in jobs)),
        "seconds": [job.seconds for job in jobs if job.status == "done" and job.seconds is not None],
    }


def _told(job: Job, owner: bool) -> Answer:
    """A job as the page shows it. Why one failed may name files of this machine: the owner's business."""
    return {
        "id": job.id,
        "row": job.batch_row,
        "take": _take(job),
        "title": title_of(job),
        "status": job.status,
        "progress": round(job.progress, 3),
        "seconds": job.seconds,
        "seed": job.seed,
        "reason": job.reason if owner else job.problem and "It could not be made.",
        "has_picture": json.loads(job.request_json).get("modality") != "audio",
    }
