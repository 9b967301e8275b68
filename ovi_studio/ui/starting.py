"""Examples and presets: something to start from, and a way back to what one had."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from ovi_studio.errors import InvalidInputError
from ovi_studio.presets import Preset, builtin_presets, save_preset, user_presets
from ovi_studio.prompt import Dialect, to_dialect
from ovi_studio.request import GenerationRequest
from ovi_studio.ui.form import Form, Values, editor_props
from ovi_studio.ui.handling import on
from ovi_studio.variants import get_variant


class Starting:
    """Make it where it shall stand, inside of `gr.Blocks`."""

    def __init__(self) -> None:
        self._before: gr.State = gr.State(None)  # the request that stood in the form
        with gr.Accordion("Examples and presets", open=False):
            self._choice = gr.Dropdown(_choices(), value=None, label="Start from", filterable=True)
            self._about = gr.Markdown(visible=False)
            with gr.Row():
                self._use = gr.Button("Use its prompt and settings", size="sm")
                self._use_settings = gr.Button("Only its settings", size="sm")
                self._back = gr.Button("Back to what I had", size="sm", visible=False)
            with gr.Row(equal_height=True):
                self._title = gr.Textbox(label="Save what stands here as a preset", placeholder="Title", scale=3)
                self._save = gr.Button("Save", size="sm", scale=1, min_width=80)

    def wire(self, form: Form) -> None:
        """Listen to what happens here; `form` is what is filled."""
        self._form = form
        chosen = form.inputs | {self._choice}
        filled = [*form.all, self._before, self._back]
        on(self._choice.change, _about, self._choice, self._about)
        on(self._use.click, partial(self._take, with_prompt=True), chosen, filled)
        on(self._use_settings.click, partial(self._take, with_prompt=False), chosen, filled)
        on(self._back.click, self._go_back, self._before, filled)
        on(self._save.click, self._store, form.inputs | {self._title}, [self._choice, self._title])

    def _take(self, values: Values, *, with_prompt: bool) -> dict[Any, Any]:
        """Fill the form from the preset; a preset that names no model is about the one that is chosen."""
        preset = _preset(values[self._choice])
        request = preset.request(preset.settings.get("variant", values[self._form.variant]))
        variant = get_variant(request.variant)
        prompt = request.prompt if with_prompt else values[self._form.prompt] or ""
        shown = gr.update(value=to_dialect(prompt, Dialect(variant.caption_dialect)), **editor_props(variant))
        kept = {self._before: self._had(values), self._back: gr.update(visible=True)}
        return self._form.filled_settings(request) | {self._form.prompt: shown} | kept

    def _had(self, values: Values) -> tuple[str, str] | None:
        """What stands in the form, and its prompt, which may be empty; None where it could not be asked for."""
        prompt = values[self._form.prompt] or ""
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

    def _store(self, values: Values) -> tuple[Any, str]:
        preset = save_preset(values[self._title] or "", self._form.request(values))
        gr.Info("The preset is saved: it stands with the others.")
        return gr.update(choices=_choices(), value=preset.name), ""


def _presets() -> Mapping[str, Preset]:
    own, _ = user_presets()
    return {preset.name: preset for preset in (*own, *builtin_presets())}


def _choices() -> list[tuple[str, str]]:
    return [(f"{preset.title} (yours)" if preset.own else preset.title, name) for name, preset in _presets().items()]


def _preset(name: str | None) -> Preset:
    preset = _presets().get(name or "")
    if preset is None:
        raise InvalidInputError("No preset is chosen.", "Choose one to start from.")
    return preset


def _about(name: str | None) -> Any:
    preset = _presets().get(name or "")
    return gr.update(value="" if preset is None else _plain(preset.description), visible=preset is not None)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is: a preset may be a stranger's."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+-.!|~$&" else letter for letter in text)
