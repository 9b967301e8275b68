"""Widgets of our own: `gr.HTML` with a fixed skeleton from `assets/ui`, and a script that fills it.

assets/ui/<name>.html   the skeleton; it holds no values, so gradio never draws it anew
assets/ui/<name>.js     reads and writes `props.value`, tells by `trigger(…)`, makes text by `textContent` only
assets/ui/common.js     what they share, loaded once with the page
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from ovi_studio.assets import data_path

Choice: TypeAlias = Mapping[str, Any]  # value, label, and if wanted hint, title, shape (height, width) or sign


def editor(value: str, variant: str, dialect: str, functions: Sequence[Callable[..., Any]]) -> gr.HTML:
    """The prompt editor; its value is the prompt. It asks `functions` as somebody writes."""
    return _widget("editor", value, functions, variant=variant, variant_dialect=dialect)


def tiles(legend: str, value: str, choices: Sequence[Choice], kind: str = "") -> gr.HTML:
    """A choice among a few things, drawn as tiles; its value is the chosen one's."""
    return _widget("tiles", value, legend=legend, choices=list(choices), kind=kind)


def stage() -> gr.HTML:
    """The run under way. Its value changes as runs begin and end: the `job` that runs, and the one that is `over`."""
    return _widget("stage", {"job": "", "over": ""})


def result() -> gr.HTML:
    """A finished clip; its value is what `clips.shown_clip` gives."""
    return _widget("result", None)


def strip() -> gr.HTML:
    """The newest clips. Tells `select` when one is clicked or two are ticked."""
    return _widget("strip", {"clips": []})


def compare() -> gr.HTML:
    """Two clips in step; its value is a list of two of what `clips.shown_clip` gives."""
    return _widget("compare", None)


def picture(label: str) -> gr.Image:
    """A picture from a file, the clipboard or a camera; its value is the file as it was handed in.

    It is handed on unread: gradio would fail on a broken one without a word that helps, and write others anew.
    """
    made = gr.Image(label=label, type="filepath", sources=["upload", "clipboard", "webcam"], height=240)
    read = made.preprocess

    def hand_on(handed: Any) -> Any:
        inline = handed is not None and (handed.url or "").startswith("data:")
        return read(handed) if handed is None or inline else handed.path

    made.preprocess = hand_on  # of this one: gradio writes a file beside any module with a class of components
    return made


def shown_picture(path: str | Path) -> str:
    """A file as the value of a `picture`: a copy in the passing place that gradio shows pictures from."""
    return str(save_file_to_cache(path, get_upload_folder()))


def script(name: str) -> str:
    """A script of `assets/ui`."""
    return data_path("assets", "ui", f"{name}.js").read_text(encoding="utf-8")


def _widget(name: str, value: object, functions: Sequence[Callable[..., Any]] = (), **props: Any) -> gr.HTML:
    return gr.HTML(
        value,
        html_template=data_path("assets", "ui", f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=f"(() => {{\n{script(name)}\n}})();",
        server_functions=list(functions) or None,
        apply_default_css=False,
        **props,
    )
