"""Functions that a widget's script calls: each knows who asks, gets what it expects, and answers with data.

    server.start_batch({…}) → Visits → Visit, SheetAsked → {…}, or {"problem": "…"}

No event of gradio is involved, so nothing of what is asked or answered stands in the page's configuration.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from ovi_studio.errors import InvalidInputError, OviStudioError
from ovi_studio.studio.visits import Visit
from ovi_studio.ui.door import Visits

Asked = TypeVar("Asked")
Answer: TypeAlias = dict[str, Any]
Call: TypeAlias = Callable[[Any, gr.Request], Answer]


class Calls:
    """Makes such functions.

    Args:
        visits: tells who asks.
        owner_only: whether all others are refused.
    """

    def __init__(self, visits: Visits, *, owner_only: bool = False) -> None:
        self._visits = visits
        self._owner_only = owner_only

    def made(self, name: str, kind: type[Asked], answer: Callable[[Visit, Asked], Answer]) -> Call:
        """A function for `server_functions`.

        Args:
            name: by which the script calls it.
            kind: what is asked; anything else is refused.
            answer: gives the answer, as data for JSON.
        """
        expected = TypeAdapter(kind)

        def call(asked: Any, request: gr.Request) -> Answer:
            try:
                visit = self._visits.of(request)
            except InvalidInputError as error:
                return {"problem": str(error)}
            try:
                if self._owner_only:
                    visit.check_owner()
                return answer(visit, expected.validate_python(asked))
            except ValidationError:
                return {"problem": "The page asked for something that cannot be. Open it again."}
            except OviStudioError as error:
                return {"problem": visit.words_of(error)}

        call.__name__ = name
        return call


def file_bytes(encoded: str, most: int) -> bytes:
    """The bytes of a file that came as base64.

    Args:
        encoded: what came.
        most: bytes that are taken.

    Raises:
        InvalidInputError: it is larger, or something else.
    """
    if len(encoded) > most * 4 // 3 + 4:
        raise InvalidInputError(f"The file is larger than {most >> 20} MiB.", "Choose a smaller one.")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError("The file did not arrive as it was.", "Choose it again.") from error
