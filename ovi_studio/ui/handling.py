"""How the page listens to its events: quietly, privately, and with errors told as sentences."""

import html
import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, get_type_hints

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from ovi_studio.errors import InvalidInputError, OviStudioError

_PATH = re.compile(r"(?:(?<![\w.:/])/|\b[A-Za-z]:\\)[^\s'\":,;]*[/\\][^\s'\":,;]*[^\s'\":,;.]")
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def on(event: Any, handler: Callable[..., Any], inputs: Any = None, outputs: Any = None, *, raw: bool = False) -> Any:
    """Call `handler` at `event`: no overlay hides the page, and no program can call it by name.

    It goes through gradio's queue, where it waits for nothing: only there messages reach the page, and errors do
    without being failures of the connection too.

    Args:
        event: such as `button.click`.
        handler: gets what stands in the inputs.
        inputs: components; a set of them is handed over as one mapping.
        outputs: components.
        raw: hand it over as the browser tells it, which is then to be checked. Else gradio reads pictures first, and a
            broken one fails there, without a word that helps.

    Returns:
        What listens; its `then` is the event of being done.
    """
    return event(
        told(handler), inputs, outputs, preprocess=not raw, show_progress="hidden", concurrency_limit=None,
        api_visibility="private",
    )  # fmt: skip


def on_any(
    events: Sequence[Any], handler: Callable[..., Any], inputs: Any = None, outputs: Any = None, *, raw: bool = False
) -> None:
    """The same at any of several events, one call at a time: of those that come meanwhile the last one counts.

    No click may be among them: gradio makes up for a call that had to wait by sending the event of the call before it
    again, to all that listen to it. A clip would be asked for twice.
    """
    on(partial(gr.on, events, trigger_mode="always_last"), handler, inputs, outputs, raw=raw)


def without_folders(text: str) -> str:
    """The same with names in place of absolute paths: whoever reads it need not know where things lie."""
    return _PATH.sub(lambda path: re.split(r"[/\\]", path.group())[-1], text)


def told(handler: Callable[Arguments, Answer], *, markup: bool = True) -> Callable[Arguments, Answer]:
    """The boundary of the page: our errors become a message on it, in which files go by their names alone.

    A request may be written by hand: what it says is held against the handler's annotations first.

    Args:
        handler: what may raise them.
        markup: whether messages are shown as markup, as the page does: then what they hold is escaped.
    """
    expected = _expected(handler)

    @wraps(handler)
    def guarded(*arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
        try:
            checked = [kind.validate_python(each) for kind, each in zip(expected, arguments, strict=False)]
        except ValidationError as error:
            words = "The page asked for something that cannot be. Open it again."
            raise gr.Error(words, title="Please change this", print_exception=False) from error
        try:
            return handler(*checked, *arguments[len(checked) :], **named)  # type: ignore[arg-type]
        except OviStudioError as error:
            title = "Please change this" if isinstance(error, InvalidInputError) else "That did not work"
            message = without_folders(str(error))
            message = html.escape(message) if markup else message
            raise gr.Error(message, title=title, print_exception=False) from error

    return guarded


def _expected(handler: Callable[..., Any]) -> list[TypeAdapter[Any]]:
    """What its arguments must be, in their order; anything where nothing is said."""
    hints = get_type_hints(handler)
    kinds = [hints.get(name, Any) for name in inspect.signature(handler).parameters]
    return [TypeAdapter(Any if kind is gr.Request else kind) for kind in kinds]
