"""What the prompt editor asks of the server while somebody writes: remarks, the budget of words, the script view.

Positions go to the browser in UTF-16 units, as its text fields count.
"""

from dataclasses import dataclass
from typing import Any

from ovi_studio.errors import InvalidInputError
from ovi_studio.lint import Finding, lint, repair
from ovi_studio.prompt import Dialect, parse
from ovi_studio.request import MAX_PROMPT
from ovi_studio.script import Script
from ovi_studio.speech import counts_characters, detect_language, speech_seconds, word_budget
from ovi_studio.studio.visits import Visit
from ovi_studio.ui.calls import Answer, Call, Calls
from ovi_studio.ui.door import Visits
from ovi_studio.variants import Variant, get_variant


@dataclass(frozen=True)
class TextAsked:
    """A text, and the model that it is for."""

    text: str
    variant: str


@dataclass(frozen=True)
class ChangeAsked:
    """A change in the script view.

    Args:
        text: before it.
        variant: the model that it is for.
        op: cell, add, remove, move, ambience or ending.
        row: that is changed.
        column: of the cell.
        to: where the row is moved.
        value: what is written there.
    """

    text: str
    variant: str
    op: str
    row: int = 0
    column: str = ""
    to: int = 0
    value: str = ""


def calls(visits: Visits) -> list[Call]:
    """What the editor's script calls."""
    made = Calls(visits).made
    return [made("check", TextAsked, _check), made("edit_script", ChangeAsked, _edit_script)]


def _check(_visit: Visit, asked: TextAsked) -> Answer:
    """Everything that the editor shows about a text: findings, budget, script."""
    text, variant = asked.text[:MAX_PROMPT], get_variant(asked.variant)
    dialect = Dialect(variant.caption_dialect)
    findings = lint(text, dialect, variant.duration) if text.strip() else ()
    return {
        "findings": [_shown(text, finding) for finding in findings],
        "mended": repair(text, findings),
        "budget": _budget(text, variant),
        "script": _script(text),
    }


def _edit_script(_visit: Visit, asked: ChangeAsked) -> Answer:
    """The text after a change in the script view, and its script."""
    variant, script = get_variant(asked.variant), Script.from_prompt(asked.text[:MAX_PROMPT])
    match asked.op, asked.column:
        case "cell", "lead" | "who" | "how" | "words" as column:
            script = script.with_cell(asked.row, column, asked.value)
        case "add", _:
            script = script.with_line_added(len(script.lines))
        case "remove", _:
            script = script.with_line_removed(asked.row)
        case "move", _:
            script = script.with_line_moved(asked.row, asked.to)
        case "ambience", _:
            script = script.with_ambience(asked.value)
        case "ending", _:
            script = script.with_ending(asked.value)
        case _:
            raise InvalidInputError("This cannot be done with a script.", "Open the page again.")
    text = script.to_prompt(Dialect(variant.caption_dialect))
    return {"text": text, "script": _script(text)}


def _shown(text: str, finding: Finding) -> dict[str, Any]:
    return {
        "message": finding.message,
        "severity": finding.severity,
        "start": _utf16(text, finding.start),
        "end": _utf16(text, finding.end),
        "mended": None if finding.repair is None else repair(text, [finding]),
    }


def _utf16(text: str, position: int) -> int:
    return len(text[:position].encode("utf-16-le", "surrogatepass")) // 2


def _budget(text: str, variant: Variant) -> dict[str, Any]:
    """How many words are spoken, and how many would fit."""
    words = " ".join(speech.words for speech in parse(text).speeches)
    language = detect_language(words)
    by_characters = counts_characters(language)
    number = len(words.replace(" ", "")) if by_characters else len(words.split())
    return {
        "words": number,
        "unit": ("character" if by_characters else "word") + "s" * (number != 1),
        "limit": word_budget(variant.duration, language),
        "share": speech_seconds(words) / variant.duration,
        "seconds": round(variant.duration),
    }


def _script(text: str) -> dict[str, Any]:
    """The rows, or why the text cannot be shown in rows."""
    script = Script.from_prompt(text)
    return {"problem": f"{script.misfit} Mend it in the text first."} if script.misfit else script.to_data()
