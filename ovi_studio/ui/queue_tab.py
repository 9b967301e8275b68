"""The Queue tab: what runs, what waits and for how long, what failed and why; and a waiting job's way into the editor.

    studio/live ──→ queue ── change_queue ──→ Calls → Visit → Library
                          └─ event edit → Editing: the job stands in the editor until it is put back or left

Nothing is asked for to show the queue: the news bring it, and only what has changed of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gradio as gr

from ovi_studio.errors import InvalidInputError
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.job import WAITING
from ovi_studio.studio.visits import Visit
from ovi_studio.ui import widgets
from ovi_studio.ui.calls import Answer, Calls
from ovi_studio.ui.door import Visits
from ovi_studio.ui.form import Values
from ovi_studio.ui.handling import on
from ovi_studio.ui.news import title_of


@dataclass(frozen=True)
class QueueAsked:
    """What shall become of a job, or of the queue.

    Args:
        what: move, pause, resume, cancel, keep, retry, duplicate, delete, restore; and without a job stop_after_this,
            resume_all.
        id: of the job.
        before: of the job that it is moved before; "" is the end.
    """

    what: str
    id: str = ""
    before: str = ""


class QueueTab:
    """The tab; make it inside of `gr.Tab`, then `wire` it.

    Args:
        visits: who asks.
    """

    def __init__(self, visits: Visits) -> None:
        self.queue = widgets.queue([Calls(visits).made("change_queue", QueueAsked, _change)])

    def wire(self, page: gr.Blocks) -> None:
        """Nothing is listened to here: the widget follows the news, and asks by itself."""


def _change(visit: Visit, asked: QueueAsked) -> Answer:
    acts: dict[str, Callable[[], Any]] = {
        "move": lambda: visit.move(asked.id, asked.before or None),
        "pause": lambda: visit.pause(asked.id),
        "resume": lambda: visit.resume(asked.id),
        "cancel": lambda: visit.cancel(asked.id),
        "keep": lambda: visit.keep_what_there_is(asked.id),
        "retry": lambda: visit.retry(asked.id),
        "duplicate": lambda: visit.duplicate(asked.id),
        "delete": lambda: visit.delete(asked.id),
        "restore": lambda: visit.restore(asked.id),
        "stop_after_this": visit.stop_after_this,
        "resume_all": visit.resume_all,
    }
    if asked.what not in acts:
        raise InvalidInputError("This cannot be done with the queue.", "Open the page again.")
    acts[asked.what]()
    visit.look_anew()
    return {}


# --- A job in the editor --------------------------------------------------------------------------------------


class FormLike(Protocol):
    """What `Editing` fills and reads: `Form`, or a smaller one."""

    @property
    def inputs(self) -> set[Any]:
        """All that a person fills in."""

    @property
    def all(self) -> list[Any]:
        """All that `filled` changes."""

    def request(self, values: Values) -> GenerationRequest:
        """What the form asks for."""

    def filled(self, request: GenerationRequest) -> dict[Any, Any]:
        """Updates that make the form show `request`."""


class Editing:
    """A bar over the editor while a waiting job stands in it. Make it where it shall stand, inside of `gr.Blocks`.

    Args:
        visits: who asks.
    """

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self.job = gr.State("")  # id of the job that stands in the editor
        with gr.Row(visible=False, elem_classes="ovi-editing") as self._bar:
            self._what = gr.Textbox(show_label=False, container=False, interactive=False, lines=1, max_lines=1)
            self._save = gr.Button("Save in its place", variant="primary", size="sm", min_width=130, scale=0)
            self._leave = gr.Button("Leave it as it was", size="sm", min_width=130, scale=0)

    def wire(self, queue: QueueTab, form: FormLike) -> None:
        """Listen to the queue's `edit`, and to the bar."""
        self._form = form
        bar = [self.job, self._bar, self._what]
        on(queue.queue.edit, self._begin, queue.queue, [*form.all, *bar])
        on(self._save.click, self._put, form.inputs | {self.job}, bar, raw=True)
        on(self._leave.click, self._end, None, bar)

    def _begin(self, picked: str, request: gr.Request) -> dict[Any, Any]:
        job = self._visits.of(request).job(picked)
        if job.status not in WAITING:
            raise InvalidInputError("It waits no longer.", "Look at the queue again.")
        return self._form.filled(job.request) | {
            self.job: job.id,
            self._bar: gr.update(visible=True),
            self._what: f"Changing, in the queue: {title_of(job)}",
        }

    def _put(self, values: Values, request: gr.Request) -> dict[Any, Any]:
        wanted = self._form.request(values).replace(takes=1)
        visit = self._visits.of(request)
        visit.edit(values[self.job], wanted)
        visit.look_anew()
        gr.Info("It waits at its old place, changed.")
        return self._end()

    def _end(self) -> dict[Any, Any]:
        return {self.job: "", self._bar: gr.update(visible=False), self._what: ""}
