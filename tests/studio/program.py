"""`ovi-studio` with a fake engine, as a program of its own that tests can kill.

DIE_AT=moment:count makes it kill itself at the count-th time that it comes by that moment; MADE=file collects the
seed of every run of the engine; STEP=seconds is how long a step takes.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovi_studio.cli import generate, main
from ovi_studio.studio import claims, library, runner
from tests.fakes import FakeEngine

# moment: where the function is, its name, and whether it dies after it (or before)
MOMENTS: dict[str, tuple[Any, str, bool]] = {
    "queued": (library.Library, "add", True),
    "claimed": (claims, "claim", True),
    "made": (runner, "claim_name", False),
    "named": (runner, "claim_name", True),
    "telling": (claims, "finish", False),
    "told": (claims, "finish", True),
}


def make_engine(folder: Path, _preferences: object = None) -> FakeEngine:
    engine = FakeEngine(folder, steps=2, step_seconds=float(os.environ.get("STEP", "0")))

    def note() -> None:
        with Path(os.environ["MADE"]).open("a") as file:
            file.write(f"{engine.requests[-1].seed}\n")

    engine.before_finish = note if "MADE" in os.environ else engine.before_finish
    return engine


def die_at(moment: str, count: int) -> None:
    owner, name, after = MOMENTS[moment]
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*arguments, **named) if calls < count or after else None
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    setattr(generate, "make_engine", make_engine)  # noqa: B010  (a fake has less to say)
    if "DIE_AT" in os.environ:
        when, times = os.environ["DIE_AT"].split(":")
        die_at(when, int(times))
    sys.exit(main())
