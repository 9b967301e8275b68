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
from ovi_studio.errors import InvalidInputError

Choice: TypeAlias = Mapping[str, Any]  # value, label, and if wanted hint, title, shape (height, width) or sign


def editor(value: str, variant: str, dialect: str, functions: Sequence[Callable[..., Any]]) -> gr.HTML:
    """The prompt editor; its value is the prompt. It asks `functions` as somebody writes.

    Its `conversion` is a prompt and what becomes of it, unless somebody has written on meanwhile.
    """
    return _widget("editor", value, functions, variant=variant, variant_dialect=dialect, conversion=["", ""])


def tiles(legend: str, value: str, choices: Sequence[Choice], kind: str = "") -> gr.HTML:
    """A choice among a few things, drawn as tiles; its value is the chosen one's."""
    return _widget("tiles", value, legend=legend, choices=list(choices), kind=kind)


def stage() -> gr.HTML:
    """The run under way. Its value changes as runs begin and end: the `job` that runs, and the one that is `over`."""
    return _widget("stage", {"job": "", "over": "", "at": 0})


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
    """A picture from a file, the clipboard or a camera. Read it raw, see `handling.on`."""
    return gr.Image(label=label, type="filepath", sources=["upload", "clipboard", "webcam"], height=240)


def uploaded(value: Mapping[str, Any]) -> Path:
    """Where the picture of a `picture` lies. A browser is believed only within the place of uploads.

    Raises:
        InvalidInputError: it names another file.
    """
    path = Path(str(value.get("path"))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise InvalidInputError("This picture was not uploaded here.", "Choose it again.")
    return path


def shown_picture(path: str | Path) -> str:
    """A file as the value of a `picture`: a copy in the passing place that gradio shows pictures from."""
    return str(save_file_to_cache(path, get_upload_folder()))


def batch(functions: Sequence[Callable[..., Any]]) -> gr.HTML:
    """A table on its way to clips. All that it shows, it asks `functions` for."""
    return _widget("batch", None, functions)


def system(functions: Sequence[Callable[..., Any]]) -> gr.HTML:
    """The machine, the weights and the settings. All that it shows, it asks `functions` for."""
    return _widget("system", None, functions)


def gallery(functions: Sequence[Callable[..., Any]]) -> gr.HTML:
    """The finished clips. All that it shows and changes, it asks `functions` for.

    Tells `reuse`, `show` and `compare` (of two); its value is then the job's id, or two with a space between them.
    """
    return _widget("gallery", "", functions)


def queue(functions: Sequence[Callable[..., Any]]) -> gr.HTML:
    """What runs and waits, as the news have it. All that it changes, it asks `functions` for.

    Tells `edit` and `show`; its value is then the job's id.
    """
    return _widget("queue", "", functions)


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
