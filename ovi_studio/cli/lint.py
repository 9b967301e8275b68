"""`ovi-studio lint`: what is wrong with a prompt, where, and how to mend it."""

import argparse
import json
import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ovi_studio.cli.console import print_line, read_prompt
from ovi_studio.variants import VARIANTS, get_variant

if TYPE_CHECKING:
    from ovi_studio.lint import Finding

CONTEXT = 40  # characters of the prompt shown before a fault, and twice that after it


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio lint`."""
    parser = commands.add_parser(
        "lint",
        help="check a prompt",
        description="Check a prompt's tags and words. The exit code is 1 when there is an error.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="the prompt; - reads it from standard input")
    add("--model", dest="variant", metavar="NAME", default="nano", help=f"{', '.join(VARIANTS)} (default: nano)")
    add("--fix", action="store_true", help="print the repaired prompt on stdout, what remains on stderr")
    add("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints what is wrong with a prompt, or the mended prompt."""
    from ovi_studio.lint import Severity, repair  # noqa: PLC0415

    prompt = read_prompt(arguments.prompt)
    findings = findings_of(prompt, arguments.variant)
    if arguments.fix:
        prompt = repair(prompt, findings)
        findings = findings_of(prompt, arguments.variant)
    if arguments.json:
        print_line(json.dumps({"prompt": prompt, "findings": [_as_data(prompt, found) for found in findings]}))
    else:
        if arguments.fix:
            print_line(prompt)
        for found in findings:
            text = "\n".join(_explained(prompt, found))
            print(text, file=sys.stderr) if arguments.fix else print_line(text)  # noqa: T201
    return 1 if any(found.severity is Severity.ERROR for found in findings) else 0


def findings_of(prompt: str, name: str) -> "tuple[Finding, ...]":
    """What the linter finds in a prompt for the model `name`."""
    from ovi_studio.lint import lint  # noqa: PLC0415
    from ovi_studio.prompt import Dialect  # noqa: PLC0415

    variant = get_variant(name)
    return lint(prompt, Dialect(variant.caption_dialect), variant.duration)


def _as_data(prompt: str, found: "Finding") -> dict[str, Any]:
    """A finding as JSON data; positions count characters from 0, lines and columns from 1."""
    line, column = position_of(prompt, found.start)
    edits = found.repair.edits if found.repair else ()
    return {
        "code": found.code.value,
        "severity": found.severity.value,
        "start": found.start,
        "end": found.end,
        "line": line,
        "column": column,
        "message": found.message,
        "edits": [{"start": edit.start, "end": edit.end, "replacement": edit.replacement} for edit in edits],
    }


def _explained(prompt: str, found: "Finding") -> Iterator[str]:
    """Position and message, then the place itself with carets under it."""
    line, column = position_of(prompt, found.start)
    yield f"{line}:{column}: {found.severity.value}: {found.message} [{found.code.value}]"
    text = prompt.split("\n")[line - 1]
    begin = max(column - 1 - CONTEXT, 0)
    shown = text[begin : column - 1 + 2 * CONTEXT]
    at = column - 1 - begin
    marked = shown[at : at + max(found.end - found.start, 1)]
    yield "    " + "".join(char if char.isprintable() else " " for char in shown)
    yield "    " + " " * _columns(shown[:at]) + "^" * max(_columns(marked), 1)


def position_of(prompt: str, index: int) -> tuple[int, int]:
    """Line and column of a character, from 1."""
    return prompt.count("\n", 0, index) + 1, index - prompt.rfind("\n", 0, index)


def _columns(text: str) -> int:
    """How wide a terminal draws it: East Asian characters take two columns, combining marks none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
