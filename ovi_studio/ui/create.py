"""The Create tab: write, choose, generate, watch, look.

left   prompt, presets, rewriting, first frame, choices, advanced; at its foot what it will take, and Generate
right  the run, the clip, recent clips: `viewer.py`
"""

import html
import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from ovi_studio.errors import InvalidInputError, OviStudioError, PromptError
from ovi_studio.images import read_image
from ovi_studio.lint import Code, Severity, lint
from ovi_studio.prompt import Dialect
from ovi_studio.request import GenerationRequest, ImageFrame
from ovi_studio.runtime.execution_plan import ExecutionPlan, gigabytes
from ovi_studio.studio.frames import Frames
from ovi_studio.studio.visits import OWNER, Person
from ovi_studio.ui import editor, form, widgets
from ovi_studio.ui.adapters import AdapterChoice
from ovi_studio.ui.door import Visits
from ovi_studio.ui.form import Form, Values
from ovi_studio.ui.handling import on, on_any, without_folders
from ovi_studio.ui.queue_tab import Editing
from ovi_studio.ui.rewriting import Rewriting
from ovi_studio.ui.starting import Starting
from ovi_studio.ui.viewer import Viewer
from ovi_studio.variants import VARIANTS, get_variant

_EXAMPLE = "A red face on the left says <S>seven three<E>. Audio: a low voice."

PlanMaker = Callable[[GenerationRequest], ExecutionPlan]
MissingWeights = Callable[[str, Person], str]  # a model's name → what a person can do to have its weights, or ""


class Create:
    """The tab; make it inside of `gr.Blocks`, then `wire` it.

    Args:
        visits: who asks for clips and finds them.
        frames: keeps pictures that clips start from.
        plan: how a request would be made.
        missing: which weights are not here at the moment.
        adapters: ids of the adapters that are installed.
    """

    def __init__(
        self, visits: Visits, frames: Frames, plan: PlanMaker, missing: MissingWeights, adapters: list[str]
    ) -> None:
        self._visits = visits
        self._frames = frames
        self._plan = plan
        self._missing = missing
        self._draft = gr.BrowserState(None, storage_key="ovi-studio-draft", secret="draft")  # noqa: S106 (hides nothing)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=340, elem_id="left"):
                self.editing = Editing(visits)
                self._form = self._build(adapters)
            with gr.Column(scale=5, min_width=340, elem_id="right"):
                with gr.Row(elem_id="bar"):
                    self._outlook = gr.HTML(min_height=20, apply_default_css=False)
                    self._generate = gr.Button(
                        "Generate", variant="primary", elem_id="generate", min_width=150, scale=0
                    )
                self._viewer = Viewer(visits)

    @property
    def form(self) -> Form:
        """The settings, for what fills them from elsewhere."""
        return self._form

    @property
    def viewer(self) -> Viewer:
        """The right side, for what shows a clip there from elsewhere."""
        return self._viewer

    def _build(self, adapters: list[str]) -> Form:
        """The left side, from top to bottom."""
        variant = get_variant(form.START)
        prompt = widgets.editor(_EXAMPLE, variant.name, variant.caption_dialect, editor.calls(self._visits))
        with gr.Column(elem_classes="ovi-card"):
            self._starting = Starting(self._visits)
            self._rewriting = Rewriting(self._visits)
            parts = form.build_first_frame()
        parts |= form.build_choices(self._absent())
        seed_and_takes, self._roll = form.build_seed_and_takes()
        parts |= seed_and_takes
        with gr.Column(elem_classes="ovi-card"), gr.Accordion("Advanced", open=False):
            parts |= form.build_advanced()
            self._adapters = AdapterChoice(adapters)
        return Form(
            frames=self._frames, prompt=prompt, adapters=self._adapters.table, chosen_adapters=self._adapters.choice,
            shown_variant=gr.Textbox(form.START, visible=False), **parts,
        )  # fmt: skip

    def wire(self, page: gr.Blocks) -> None:
        """Listen to everything."""
        wanted = self._form
        self._viewer.wire(page)
        self._starting.wire(page, wanted)
        self._rewriting.wire(page, wanted.prompt, wanted.variant)
        self._adapters.wire()

        # 1. Choosing, and what it will take
        on(wanted.variant.change, wanted.for_variant, wanted.inputs, wanted.all, raw=True)
        size = {wanted.size, wanted.own_size}
        on_any([wanted.own_size.blur, wanted.own_size.submit], wanted.for_own_size, {*size, wanted.variant}, [*size])
        on(self._roll.click, lambda: (form.new_seed(), True), None, [wanted.seed, wanted.keep_seed])
        deciding = [component.change for component in wanted.that_change_the_plan]
        on_any(deciding, self._look_ahead, wanted.inputs, self._outlook, raw=True)

        # 2. Making
        asked = on(self._generate.click, self._ask, wanted.inputs, [wanted.seed, *self._viewer.screen], raw=True)

        # 3. Going on from a clip
        on(self._viewer.more.click, self._more, [self._viewer.shown, wanted.takes], self._viewer.strip)
        picture = [wanted.image, wanted.draw_frame, wanted.first_frame]
        filling = [
            on(self._viewer.reuse.click, self._reuse, self._viewer.shown, wanted.all),
            on(self._viewer.go_on.click, self._go_on, self._viewer.shown, picture),
            on(wanted.draw_now.click, self._draw, wanted.inputs, picture, raw=True),
            *self._starting.filling,
        ]

        # 4. What a visitor may not do is not offered, and what was downloaded since is
        for_owner = [wanted.draw_now, self._starting.saving]

        def offer(request: gr.Request) -> dict[Any, Any]:
            offered = dict.fromkeys(for_owner, gr.update(visible=self._visits.of(request).person.is_owner))
            return offered | {wanted.variant: gr.update(choices=form.variant_choices(self._absent()))}

        on(page.load, offer, None, [*for_owner, wanted.variant])

        # 5. What was written survives the browser's being closed
        on_any([wanted.prompt.input, *deciding], self._put_by, wanted.inputs, self._draft, raw=True)
        recalling = on(page.load, self._recall, self._draft, wanted.all)
        for filled in (recalling, *filling):  # what lies folded up tells no change
            on(filled.then, self._look_ahead, wanted.inputs, self._outlook, raw=True)
        for filled in (asked, *filling):
            on(filled.then, self._put_by, wanted.inputs, self._draft, raw=True)

    # --- What happens -----------------------------------------------------------------------------------------

    def _absent(self) -> list[str]:
        """Models whose weights are not here."""
        return [name for name in VARIANTS if self._missing(name, OWNER)]

    def _look_ahead(self, values: Values, asking: gr.Request) -> str:
        """What the run will take, in a line; more on a click."""
        try:
            request = self._form.request({**values, self._form.prompt: values[self._form.prompt] or "…"})
            plan = self._plan(_sized(request).replace(takes=1))
            return _outlook(request, plan, self._missing(request.variant, self._visits.of(asking).person))
        except OviStudioError as error:
            words = html.escape(without_folders(str(error)))
            return f'<div class="ovi-outlook"><span class="ovi-bad">{words}</span></div>'

    def _ask(self, values: Values, request: gr.Request) -> dict[Any, Any]:
        """Put it into the queue; the seed that is drawn is shown."""
        visit, wanted = self._visits.of(request), self._form.request(values)
        check_prompt(wanted)
        running = visit.snapshot().running
        first, *_ = visit.ask(wanted)
        seed = {self._form.seed: first.seed}
        if not running and not visit.ahead():
            return seed | self._viewer.cleared(visit)
        gr.Info("It is queued, and is made after what waits before it.")
        return seed

    def _reuse(self, shown: str, request: gr.Request) -> dict[Any, Any]:
        return self._form.filled(self._visits.of(request).job(shown).request)

    def _more(self, shown: str, takes: int | None, request: gr.Request) -> Any:
        visit = self._visits.of(request)
        visit.again(shown, takes or 1)
        gr.Info("Queued, with new seeds.")
        return self._viewer.recent(visit)

    def _go_on(self, shown: str, request: gr.Request) -> tuple[Any, ...]:
        clip = self._visits.of(request).job(shown).output
        gr.Info("The last frame is the new clip's first one. Write what happens next.")
        return widgets.shown_picture(self._frames.keep_last(clip)), False, gr.update(open=True)

    def _draw(self, values: Values, request: gr.Request) -> tuple[Any, ...]:
        """The first frame at once, to be looked at before the clip is asked for."""
        visit = self._visits.of(request)
        drawn = visit.draw(self._form.request({**values, self._form.draw_frame: True}))
        return widgets.shown_picture(drawn), False, gr.update(open=True)

    def _put_by(self, values: Values, request: gr.Request) -> Any:
        """What stands in the form, for the browser to keep; a visitor's names no file of this machine."""
        try:
            wanted = self._form.request(values)
            owner = self._visits.of(request).person.is_owner
            return wanted.model_dump_json() if owner else json.dumps(wanted.embedded())
        except InvalidInputError:  # half-written: the last whole draft is kept
            return gr.skip()

    def _recall(self, draft: Any, request: gr.Request) -> dict[Any, Any]:
        """What was written the last time, as the browser kept it. Of a visitor's, no path is believed."""
        seed = {self._form.seed: form.new_seed()}
        if not isinstance(draft, str):
            return seed
        try:
            wanted = GenerationRequest.from_json(draft)
            if not self._visits.of(request).person.is_owner:
                wanted = GenerationRequest.from_embedded(wanted.embedded())
            return seed | self._form.filled(wanted)
        except InvalidInputError:  # another version wrote it
            return seed


def check_prompt(request: GenerationRequest) -> None:
    """Refuse a prompt whose tags cannot be what was meant.

    Raises:
        PromptError: with the first such finding.
    """
    variant = get_variant(request.variant)
    for finding in lint(request.prompt, Dialect(variant.caption_dialect), variant.duration):
        if finding.severity is Severity.ERROR and finding.code is not Code.OTHER_DIALECT:
            raise PromptError(finding.message, "Mend it under the prompt.")


def _sized(request: GenerationRequest) -> GenerationRequest:
    """With the size that its first frame gives it, where nothing else does: plans do not read pictures."""
    frame = request.first_frame
    if request.size or request.aspect or not isinstance(frame, ImageFrame) or frame.path is None:
        return request
    width, height = read_image(frame.path).size
    return request.replace(size=tuple(request.clip_size((height, width))))


def _outlook(request: GenerationRequest, plan: ExecutionPlan, missing: str) -> str:
    variant = get_variant(request.variant)
    height, width = plan.size
    picture = "sound only" if request.modality == "audio" else f"{width} × {height}"
    memory = plan.peak_gpu_bytes or plan.peak_host_bytes
    where = "card memory" if plan.peak_gpu_bytes else "memory"
    line = f"<b>{_time(plan.seconds * request.takes)}</b>, {gigabytes(memory)} {where}"
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in (*plan.reasons, *plan.rejected))
    first = f'<p class="ovi-bad">{html.escape(missing)}</p>' if missing else ""
    return (
        f'{first}<details class="ovi-outlook"><summary>{picture}, {variant.duration:.0f} s · about {line} on '
        f"{html.escape(plan.device_name)}</summary><ul>{reasons}</ul></details>"
    )


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
