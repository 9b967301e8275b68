"""The command line: one module a command, each with `add_parser(commands)` and `run(arguments)`.

Everything heavy is imported inside the command that needs it, so that `--help` answers at once.

Exit codes: 0 done · 1 the run failed, or the linter found an error · 2 wrong input · 130 stopped by Ctrl-C.
"""

import os
from collections.abc import Sequence

from ovi_studio import __version__
from ovi_studio.cli import attention, batch, bench, doctor, frame, generate, library, lint, models, page, plan
from ovi_studio.cli.console import Parser, say
from ovi_studio.errors import CancelledError, OviStudioError

COMMANDS = (page, generate, batch, frame, plan, bench, lint, attention, library, models, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. An error ends in one line on stderr, not in a traceback."""
    parser = Parser(
        prog="ovi-studio",
        description="A prompt in, a short clip out whose picture and sound were made together.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ovi-studio {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    page.add_options(parser)  # without a command the page is opened
    parser.set_defaults(run=page.run)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except OviStudioError as error:
        say("cancelled" if isinstance(error, CancelledError) else str(error))
        return error.exit_code
    except KeyboardInterrupt:  # before a run has begun to listen to it
        return 130
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes stdout at exit
        return 1
