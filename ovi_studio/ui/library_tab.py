"""The Library tab: every clip that was made; found again, named, compared, taken up, exported, deleted and restored.

    gallery ── see_shelf, change_clips, see_trash, pack_clips ──→ Calls → Visit → Library
            └─ events reuse, show: for the tab where clips are made;  compare: shown here

What is deleted goes into the trash, and comes back from it by Undo or from the list of what was deleted.
"""

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ovi_studio.errors import InvalidInputError, OviStudioError
from ovi_studio.studio.export import Exports
from ovi_studio.studio.job import Job
from ovi_studio.studio.library import PAGE, Filter
from ovi_studio.studio.visits import Visit
from ovi_studio.ui import widgets
from ovi_studio.ui.calls import Answer, Calls
from ovi_studio.ui.clips import shown_pair
from ovi_studio.ui.door import Visits
from ovi_studio.ui.handling import on
from ovi_studio.ui.news import has_picture, mark_of, model_of, short_title, title_of
from ovi_studio.variants import VARIANTS

_MOST_PAGES = 1000  # guessed: nobody looks further


@dataclass(frozen=True)
class ShelfAsked:
    """Which clips to show.

    Args:
        text: each of its words stands in the prompt, the name or the tags.
        variant: made by this model; "" by any.
        tag: with this tag; "" with any or none.
        favourite: favourites only.
        oldest: the oldest first.
        pages: how many, from the first.
        skip: how many of those are known already.
    """

    text: str = ""
    variant: str = ""
    tag: str = ""
    favourite: bool = False
    oldest: bool = False
    pages: int = 1
    skip: int = 0


@dataclass(frozen=True)
class ChangeAsked:
    """What shall become of clips.

    Args:
        what: favourite, plain (no favourite any more), label, tag, delete, restore, or empty (the trash).
        ids: of the jobs.
        name: for `label`.
        tags: for `label` all of them; for `tag` those to be added.
    """

    what: str
    ids: list[str] = field(default_factory=list)
    name: str = ""
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClipsAsked:
    """Some clips, by their jobs' ids."""

    ids: list[str] = field(default_factory=list)


class LibraryTab:
    """The tab; make it inside of `gr.Tab`, then `wire` it.

    Args:
        visits: who asks.
        exports: where zips wait to be fetched.
    """

    def __init__(self, visits: Visits, exports: Exports) -> None:
        self._visits = visits
        self._exports = exports
        calls = Calls(visits)
        with gr.Column(visible=False, elem_classes="ovi-beside") as self._beside:
            self._compare = widgets.compare()
            self._close = gr.Button("Close the comparison", size="sm", elem_id="close-comparison")
        self.gallery = widgets.gallery(
            [
                calls.made("see_shelf", ShelfAsked, _see_shelf),
                calls.made("change_clips", ChangeAsked, _change),
                calls.made("see_trash", ClipsAsked, _see_trash),
                calls.made("pack_clips", ClipsAsked, self._pack),
            ]
        )

    def wire(self, page: gr.Blocks) -> None:  # noqa: ARG002 (as the other tabs have it)
        """Listen to what happens here."""
        on(self.gallery.compare, self._show_pair, self.gallery, [self._beside, self._compare])
        on(self._close.click, lambda: (gr.update(visible=False), None), None, [self._beside, self._compare])

    def _show_pair(self, picked: str, request: gr.Request) -> tuple[Any, Any]:
        visit = self._visits.of(request)
        jobs = [visit.job(job_id) for job_id in picked.split()]
        if len(jobs) != 2:
            raise InvalidInputError("Two clips are compared.", "Select two.")
        return gr.update(visible=True), shown_pair(jobs)

    def _pack(self, visit: Visit, asked: ClipsAsked) -> Answer:
        packed = self._exports.make([visit.job(job_id) for job_id in asked.ids], visit.person.id)
        gone = []
        if packed.missing:
            gone.append(f"{_number(packed.missing, 'clip')} left out: not where it was made.")
        if packed.frames_missing:
            gone.append(f"{_number(packed.frames_missing, 'first frame')} gone: give the table another picture.")
        return {"address": f"studio/export/{packed.token}.zip", "clips": packed.clips, "note": " ".join(gone)}


# --- Answers --------------------------------------------------------------------------------------------------


def _see_shelf(visit: Visit, asked: ShelfAsked) -> Answer:
    wanted = Filter(
        ("done",),
        text=asked.text,
        variant=asked.variant or None,
        tag=asked.tag or None,
        favourite=True if asked.favourite else None,
    )
    size = PAGE * min(max(1, asked.pages), _MOST_PAGES)
    page = visit.page(wanted, 0, size, "oldest" if asked.oldest else "newest")
    return {
        "clips": [_card(visit, job) for job in page.jobs[max(0, asked.skip) :]],
        "total": page.total,
        "tags": list(visit.tags()),
        "models": [{"value": each.name, "label": each.title} for each in VARIANTS.values()],
        "trash": len(visit.trashed()),
    }


def _card(visit: Visit, job: Job) -> Answer:
    return {
        "id": job.id,
        "title": title_of(job),
        "name": job.name,
        "tags": list(job.tags),
        "favourite": job.favourite,
        "model": model_of(job),
        "seed": job.seed,
        "made": job.finished or job.created,
        "has_picture": has_picture(job),
        "visitor": mark_of(job.owner) if visit.person.is_owner else "",
    }


def _see_trash(visit: Visit, _asked: ClipsAsked) -> Answer:
    return {
        "things": [
            {"id": each.id, "title": short_title(each.name, each.prompt), "deleted": each.deleted}
            for each in visit.trashed()
        ]
    }


def _change(visit: Visit, asked: ChangeAsked) -> Answer:
    """Change one clip after the other; what was done stays done, and the first problem is told."""
    if asked.what == "empty":
        return {"changed": [], "count": visit.empty_trash()}
    changed: list[str] = []
    for job_id in asked.ids:
        try:
            _change_one(visit, job_id, asked)
        except OviStudioError as error:
            return {"changed": changed, "problem": visit.words_of(error)}
        changed.append(job_id)
    return {"changed": changed}


def _change_one(visit: Visit, job_id: str, asked: ChangeAsked) -> None:
    match asked.what:
        case "favourite" | "plain":
            visit.set_favourite(job_id, asked.what == "favourite")
        case "label":
            visit.rename(job_id, asked.name.strip())
            visit.set_tags(job_id, asked.tags)
        case "tag":
            visit.set_tags(job_id, [*visit.job(job_id).tags, *asked.tags])
        case "delete":
            visit.delete(job_id)
        case "restore":
            visit.restore(job_id)
        case _:
            raise InvalidInputError("This cannot be done with clips.", "Open the page again.")


def _number(count: int, thing: str) -> str:
    return f"1 {thing}" if count == 1 else f"{count} {thing}s"
