"""Engines: from a request to a clip, in this process or in others, behind one protocol.

Nothing heavy is imported here: whoever only drives an engine need not load what it is made of.
"""

from collections.abc import Iterator
from typing import Protocol

from ovi_studio.events import CancelToken, Event
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.execution_plan import ExecutionPlan


class Engine(Protocol):
    """Anything that turns requests into clips."""

    def plan(self, request: GenerationRequest) -> ExecutionPlan:
        """How a clip would be made now, before anything is loaded.

        Raises:
            InvalidInputError: it cannot be made on this machine; the message says what would be needed.
        """

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        """Makes one clip of one take.

        The last event is `Finished`, `Failed` or `Cancelled`. A finished clip lies under a temporary name and
        belongs to the caller. Errors that a user can meet become `Failed`; nothing is left behind by a run that
        did not finish.
        """

    def draw(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        """Draws the generated first frame of a request, and no clip.

        The last event is `FrameDrawn`, `Failed` or `Cancelled`. A clip made of the same request begins with this
        picture, which need not be drawn again.
        """

    def close(self) -> None:
        """Lets go of the model and its memory."""


def slots(engine: Engine) -> int:
    """How many clips an engine can make at once, each asked for from a thread of its own."""
    return int(getattr(engine, "slots", 1))
