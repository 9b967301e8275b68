"""Every error a user can meet, in one tree.

A message is two sentences: what is wrong, and what to do next. Errors are raised where the fault is
seen, `from` their cause, and shown once, by the door (command line, page, API) that the user came through.
"""


class OviStudioError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: what is wrong, as a sentence.
        remedy: what the user can do about it, as a sentence.
    """

    exit_code = 1  # an error of the run; errors of the input say 2

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}"


class InvalidInputError(OviStudioError, ValueError):
    """What the user asked for cannot be: a bad number, an unknown name, an unreadable file."""

    exit_code = 2


class InvalidRequestError(InvalidInputError):
    """A field of a `GenerationRequest` is wrong."""


class PromptError(InvalidInputError):
    """A prompt's tags cannot be understood."""


class RewriteError(OviStudioError):
    """A language model cannot be reached, or its answer is no rewriting of the prompt."""


class MediaError(InvalidInputError):
    """An image, clip or output path cannot be read or written."""


class WeightsError(OviStudioError):
    """Model weights are missing, damaged or of another model."""

    exit_code = 2


class OutOfMemoryError(OviStudioError):
    """The run needs more GPU or host memory than there is."""


class EngineError(OviStudioError):
    """The engine stopped in the middle of a run."""


class StoreError(OviStudioError):
    """The library's database cannot be opened, read or written."""

    exit_code = 2


class CancelledError(OviStudioError):
    """The user stopped the run. Carries no fault; doors report it as "cancelled"."""

    def __init__(self) -> None:
        super().__init__("The run was cancelled.", "Start it again when you like.")
