"""The right side of the Create tab: the run under way, the clip that is looked at, two clips compared, recent clips."""

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ovi_studio.errors import OviStudioError
from ovi_studio.studio.job import Job
from ovi_studio.studio.library import Filter
from ovi_studio.studio.visits import Visit
from ovi_studio.ui import widgets
from ovi_studio.ui.clips import shown_clip, shown_pair, shown_strip
from ovi_studio.ui.door import Visits
from ovi_studio.ui.handling import on, on_any

_RECENT = 24  # clips in the strip; guessed
Updates = dict[Any, Any]


@dataclass(frozen=True)
class StageTold:
    """What the stage tells: which job runs, and which one did before; "" where there is none."""

    job: str
    over: str


@dataclass(frozen=True)
class StripTold:
    """What the strip tells: clips to show or to compare, by their ids."""

    picked: str
    ids: list[str]


class Viewer:
    """Make it where it shall stand, inside of `gr.Blocks`.

    Args:
        visits: who looks.
    """

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self.shown = gr.State("")  # id of the job that is looked at
        self._stage = widgets.stage()
        with gr.Row(visible=False) as self._run_buttons:
            self._stop = gr.Button("Stop", elem_id="stop", size="sm")
            self._keep = gr.Button("Keep what there is", size="sm")
        self._compare = widgets.compare()
        self._result = widgets.result()
        with gr.Row(visible=False, elem_classes="ovi-tools") as self._tools:
            self._favourite = gr.Button("☆ Favourite", size="sm", min_width=90)
            self.reuse = gr.Button("Use these settings", size="sm", min_width=90)
            self.more = gr.Button("More takes", size="sm", min_width=90)
            self.go_on = gr.Button("Continue from the last frame", size="sm", min_width=90)
        self._name = gr.Textbox(label="Name", placeholder="Name this clip", max_lines=1, visible=False)
        self._failure = gr.HTML(visible=False)
        self._retry = gr.Button("Try again", size="sm", visible=False)
        self.strip = widgets.strip()

    def wire(self, page: gr.Blocks) -> None:
        """Listen to what happens here, and to the page being opened."""
        screen = self.screen
        on(page.load, self._open, None, screen)
        run_buttons = [self._run_buttons, self._stop, self._keep]
        on(self._stage.change, self._follow, [self._stage, self.shown], [*screen, *run_buttons])
        on(self._stop.click, self._cancel, self._stage, self._stop)
        on(self._keep.click, self._keep_what_there_is, self._stage, self._keep)
        on(self.strip.select, self._pick, [self.strip, self.shown], screen)
        on(self._favourite.click, self._mark, self.shown, screen)
        on_any([self._name.submit, self._name.blur], self._rename, [self.shown, self._name], screen)
        on(self._retry.click, self._try_again, self.shown, screen)

    @property
    def screen(self) -> list[Any]:
        """All that changes with what is looked at, as an event's outputs."""
        return [
            self._compare, self._result, self._tools, self._favourite, self.go_on, self._name, self._failure,
            self._retry, self.strip, self.shown,
        ]  # fmt: skip

    def cleared(self, visit: Visit) -> Updates:
        """Updates of the screen that make room for a new run."""
        return self._nothing(visit) | {self._compare: None}

    def show(self, visit: Visit, job: Job) -> Updates:
        """Updates of the screen that show the job's clip, or why there is none."""
        if job.status == "done":
            try:
                clip = shown_clip(job)
            except OviStudioError as error:  # its file was moved, say: the page still opens
                return self._show_failure(visit, job, visit.words_of(error))
            return self._nothing(visit) | {
                self._result: clip,
                self._tools: gr.update(visible=True),
                self._favourite: "★ Favourite" if job.favourite else "☆ Favourite",
                self.go_on: gr.update(visible=clip["has_picture"]),
                self._name: gr.update(value=job.name, visible=True),
                self.shown: job.id,
            }
        return (
            self._show_failure(visit, job, visit.words_of(job.reason))
            if job.status == "failed"
            else self._nothing(visit)
        )

    def recent(self, visit: Visit) -> dict[str, Any]:
        """The strip's value as it is now."""
        return shown_strip(visit.page(Filter(("done", "failed")), size=_RECENT).jobs)

    # --- Showing ----------------------------------------------------------------------------------------------

    def _open(self, request: gr.Request) -> Updates:
        """For somebody who has just come: the newest clip, unless one is in the making."""
        return self._newest(self._visits.of(request))

    def _newest(self, visit: Visit) -> Updates:
        if visit.snapshot().running:
            return self._nothing(visit)
        newest = visit.page(Filter(("done",)), size=1).jobs
        return self.show(visit, newest[0]) if newest else self._nothing(visit)

    def _show_failure(self, visit: Visit, job: Job, why: str) -> Updates:
        text = f'<div class="ovi-trouble ovi-failure" role="alert">{html.escape(why)}</div>'
        return self._nothing(visit) | {
            self._failure: gr.update(value=text, visible=True),
            self._retry: gr.update(visible=True),
            self.shown: job.id,
        }

    def _nothing(self, visit: Visit) -> Updates:
        return {
            self._result: None,
            self._tools: gr.update(visible=False),
            self._name: gr.update(visible=False),
            self._failure: gr.update(visible=False),
            self._retry: gr.update(visible=False),
            self.strip: self.recent(visit),
            self.shown: "",
        }

    # --- What happens -----------------------------------------------------------------------------------------

    def _follow(self, told: StageTold, shown: str, request: gr.Request) -> Updates:
        """A run began, ended, or gave way to the next."""
        updates: Updates = {
            self._run_buttons: gr.update(visible=bool(told.job)),
            self._stop: gr.update(value="Stop", interactive=True),
            self._keep: gr.update(value="Keep what there is", interactive=True),
        }
        if not told.over:
            return updates
        visit = self._visits.of(request)
        job = visit.job(told.over)
        return updates | (self.show(visit, job) if job.status in ("done", "failed") else self._show_again(visit, shown))

    def _show_again(self, visit: Visit, shown: str) -> Updates:
        return self.show(visit, visit.job(shown)) if shown else self._newest(visit)

    def _pick(self, told: StripTold, shown: str, request: gr.Request) -> Updates:
        """A clip of the strip was clicked, or two were ticked."""
        visit = self._visits.of(request)
        jobs = [visit.job(each) for each in told.ids]
        if told.picked == "show" and jobs:
            return self.show(visit, jobs[0]) | {self._compare: None}
        if len(jobs) == 2:
            return self._nothing(visit) | {self._compare: shown_pair(jobs), self.shown: shown}
        return self._show_again(visit, shown) | {self._compare: None}

    def _cancel(self, told: StageTold, request: gr.Request) -> Any:
        self._visits.of(request).cancel(told.job)
        return gr.update(value="Stopping …", interactive=False)

    def _keep_what_there_is(self, told: StageTold, request: gr.Request) -> Any:
        self._visits.of(request).keep_what_there_is(told.job)
        return gr.update(value="Ending …", interactive=False)

    def _mark(self, shown: str, request: gr.Request) -> Updates:
        visit = self._visits.of(request)
        visit.set_favourite(shown, not visit.job(shown).favourite)
        return self.show(visit, visit.job(shown))

    def _rename(self, shown: str, name: str | None, request: gr.Request) -> Updates:
        visit = self._visits.of(request)
        if not shown or (name or "").strip() == visit.job(shown).name:
            return {self.shown: shown}
        visit.rename(shown, name or "")
        return self.show(visit, visit.job(shown))

    def _try_again(self, shown: str, request: gr.Request) -> Updates:
        visit = self._visits.of(request)
        visit.retry(shown)
        return self._nothing(visit)
