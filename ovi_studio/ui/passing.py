"""The passing place: uploads on their way to a clip, under names that tell nothing of this machine.

    <gradio's folder>/<hash>/red.png   ←→   passing/<hash>/red.png, which is all that a browser sees

Gradio by itself tells browsers where on the disk a file lies, and fetches whatever address they name as a file's.
"""

import json
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from starlette.types import Message, Receive, Scope, Send

from ovi_studio.errors import InvalidInputError

PASSING = "passing/"
KEPT_SECONDS = 86_400  # that an upload lies there; guessed: a form that was left open overnight
VISITORS_BYTES, EVERYBODYS_BYTES = 512 << 20, 4 << 30  # a day, of a visitor and of all together; guessed
_DAY = 86_400.0
_FILE = "/gradio_api/file="


class Page(gr.Blocks):
    """Gradio's page, which believes nothing that a browser says of files, and tells it nothing of folders."""

    def __init__(self, title: str) -> None:
        super().__init__(
            title=title, analytics_enabled=False, fill_width=False, delete_cache=(KEPT_SECONDS // 24, KEPT_SECONDS)
        )

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        """What a browser sent, with files where they are."""
        return await super().preprocess_data(block_fn, _each_file(inputs, _meant), *rest, **named)

    async def postprocess_data(self, *arguments: Any, **named: Any) -> Any:
        """What a browser gets, with files as it may know them."""
        return _each_file(await super().postprocess_data(*arguments, **named), _told)


def _each_file(data: Any, change: Any) -> Any:
    return traverse(data, change, is_file_obj_with_meta)


def _meant(file: dict[str, Any]) -> dict[str, Any]:
    if is_http_url_like(file["path"]):  # gradio would fetch it
        raise gr.Error("This server fetches nothing from elsewhere.", print_exception=False)
    return {**file, "path": _real(file["path"])}


def _told(file: dict[str, Any]) -> dict[str, Any]:
    path = _alias(file["path"])
    return {**file, "path": path, "url": f"{_FILE}{quote(path)}"}


def _alias(path: str) -> str:
    folder = Path(get_upload_folder())
    return PASSING + Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else Path(path).name


def _real(path: str) -> str:
    """Where it is. Names that lead out of the folder are gradio's to refuse, as are all others."""
    return str(Path(get_upload_folder(), path.removeprefix(PASSING))) if path.startswith(PASSING) else path


# --- Before gradio, and behind it -----------------------------------------------------------------------------


def found(scope: Scope) -> Scope:
    """The same request, for a file where it is.

    Raises:
        InvalidInputError: it asks for an upload that is not there.
    """
    before, mark, name = scope["path"].partition(_FILE)
    if not mark or not name.startswith(PASSING):
        return scope
    path, folder = Path(_real(name)).resolve(), Path(get_upload_folder()).resolve()
    if not path.is_relative_to(folder) or not path.is_file():  # gradio's own answer would tell the folder
        raise InvalidInputError("There is no such upload.", "It is gone after a day: choose the file again.")
    real = f"{before}{mark}{path}"
    return {**scope, "path": real, "raw_path": quote(real).encode()}


def aliased(send: Send) -> Send:
    """For what answers an upload: the list of files, as browsers may know them."""
    start: Message = {}
    content = b""

    async def telling(message: Message) -> None:
        nonlocal start, content
        if message["type"] == "http.response.start":
            start = message
            return
        content += message.get("body", b"")
        if message.get("more_body"):
            return
        if start["status"] == 200:
            content = json.dumps([_alias(path) for path in json.loads(content)]).encode()
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", str(len(content)).encode())]})
        await send({**message, "body": content})

    return telling


class Allowance:
    """What visitors sent within a day, so that they cannot fill the disk."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._sent: dict[str, int] = {}

    def is_spent(self, person: str) -> bool:
        """Whether this person (their id), or all together, have sent what they may."""
        if monotonic() - self._began > _DAY:
            self._began, self._sent = monotonic(), {}
        return self._sent.get(person, 0) >= VISITORS_BYTES or sum(self._sent.values()) >= EVERYBODYS_BYTES

    def counting(self, person: str, receive: Receive) -> Receive:
        """The same body, counted."""

        async def counted() -> Message:
            message = await receive()
            self._sent[person] = self._sent.get(person, 0) + len(message.get("body", b""))
            return message

        return counted
