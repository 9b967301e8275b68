"""Examples and presets: something to start from, and a way back to what one had."""

from collections.abc import Iterable
from typing import Any

import gradio as gr

from ovi_studio.errors import InvalidInputError
from ovi_studio.presets import Preset, builtin_presets, save_preset, user_presets
from ovi_studio.prompt import Dialect, to_dialect
from ovi_studio.request import GenerationRequest
from ovi_studio.ui.door import Visits
from ovi_studio.ui.form import Form, Values, editor_props
from ovi_studio.ui.handling import on
from ovi_studio.variants import get_variant


class Starting:
    """Make it where it shall stand, inside of `gr.Blocks`.

    Args:
        visits: who asks; presets that the owner saved are theirs alone.
    """

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._before: gr.State = gr.State(None)  # the request that stood in the form
        with gr.Accordion("Examples and presets", open=False):
            self._choice = gr.Dropdown(_choices(builtin_presets()), value=None, label="Start from", filterable=True)
            self._about = gr.Markdown(visible=False)
            with gr.Row():
                self._use = gr.Button("Use its prompt and settings", size="sm")
                self._use_settings = gr.Button("Only its settings", size="sm")
                self._back = gr.Button("Back to what I had", size="sm", visible=False)
            with gr.Row(equal_height=True) as self.saving:
                self._title = gr.Textbox(label="Save what stands here as a preset", placeholder="Title", scale=3)
                self._save = gr.Button("Save", size="sm", scale=1, min_width=80)

    def wire(self, page: gr.Blocks, form: Form) -> None:
        """Listen to what happens here; `form` is what is filled."""
        self._form = form
        chosen = form.inputs | {self._choice}
        filled = [*form.all, self._before, self._back]
        on(page.load, self._offer, None, self._choice)
        on(self._choice.change, self._tell, self._choice, self._about)
        self.filling = (
            on(self._use.click, self._take_all, chosen, filled, raw=True),
            on(self._use_settings.click, self._take_settings, chosen, filled, raw=True),
            on(self._back.click, self._go_back, self._before, filled),
        )
        on(self._save.click, self._store, form.inputs | {self._title}, [self._choice, self._title], raw=True)

    def _presets(self, request: gr.Request) -> tuple[Preset, ...]:
        """Those that this person may see."""
        own = user_presets()[0] if self._visits.of(request).person.is_owner else ()
        return (*own, *builtin_presets())

    def _offer(self, request: gr.Request) -> Any:
        return gr.update(choices=_choices(self._presets(request)))

    def _tell(self, name: str | None, request: gr.Request) -> Any:
        preset = next((each for each in self._presets(request) if each.name == name), None)
        return gr.update(value="" if preset is None else _plain(preset.description), visible=preset is not None)

    def _take_all(self, values: Values, request: gr.Request) -> dict[Any, Any]:
        return self._take(values, request, with_prompt=True)

    def _take_settings(self, values: Values, request: gr.Request) -> dict[Any, Any]:
        return self._take(values, request, with_prompt=False)

    def _take(self, values: Values, asker: gr.Request, *, with_prompt: bool) -> dict[Any, Any]:
        """Fill the form from the preset; a preset that names no model is about the one that is chosen."""
        preset = next((each for each in self._presets(asker) if each.name == values[self._choice]), None)
        if preset is None:
            raise InvalidInputError("No preset is chosen.", "Choose one to start from.")
        told = self._form.told(values)
        request = preset.request(preset.settings.get("variant", told.variant))
        variant = get_variant(request.variant)
        prompt = request.prompt if with_prompt else told.prompt or ""
        shown = gr.update(value=to_dialect(prompt, Dialect(variant.caption_dialect)), **editor_props(variant))
        kept = {self._before: self._had(values), self._back: gr.update(visible=True)}
        return self._form.filled_settings(request) | {self._form.prompt: shown} | kept

    def _had(self, values: Values) -> tuple[str, str] | None:
        """What stands in the form, and its prompt, which may be empty; None where it could not be asked for."""
        prompt = self._form.told(values).prompt or ""
        try:
            request = self._form.request({**values, self._form.prompt: prompt.strip() or "…"})
        except InvalidInputError:
            return None
        return request.model_dump_json(), prompt

    def _go_back(self, before: tuple[str, str] | None) -> dict[Any, Any]:
        gone = {self._before: None, self._back: gr.update(visible=False)}
        if before is None:
            return gone
        request, prompt = before
        return self._form.filled(GenerationRequest.from_json(request), prompt=prompt) | gone

    def _store(self, values: Values, request: gr.Request) -> tuple[Any, str]:
        self._visits.of(request).check_owner()
        preset = save_preset(str(values[self._title] or ""), self._form.request(values))
        gr.Info("The preset is saved: it stands with the others.")
        return gr.update(choices=_choices(self._presets(request)), value=preset.name), ""


def _choices(presets: Iterable[Preset]) -> list[tuple[str, str]]:
    return [(f"{preset.title} (yours)" if preset.own else preset.title, preset.name) for preset in presets]


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is: a preset may be a stranger's."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+-.!|~$&" else letter for letter in text)
