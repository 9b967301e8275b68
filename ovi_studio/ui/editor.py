"""What the prompt editor asks of the server while somebody writes: remarks, the budget of words, the script view.

Positions go to the browser in UTF-16 units, as its text fields count.
"""

from typing import Any

from ovi_studio.errors import InvalidInputError
from ovi_studio.lint import Finding, lint, repair
from ovi_studio.prompt import Dialect, parse
from ovi_studio.request import MAX_PROMPT
from ovi_studio.script import Script
from ovi_studio.speech import counts_characters, detect_language, speech_seconds, word_budget
from ovi_studio.variants import Variant, get_variant

Asked = dict[str, Any]


def check(asked: Asked) -> dict[str, Any]:
    """Everything that the editor shows about a text: findings, budget, script.

    Args:
        asked: `text` and `variant`.
    """
    text, variant = _asked(asked)
    dialect = Dialect(variant.caption_dialect)
    findings = lint(text, dialect, variant.duration) if text.strip() else ()
    return {
        "findings": [_shown(text, finding) for finding in findings],
        "mended": repair(text, findings),
        "budget": _budget(text, variant),
        "script": _script(text),
    }


def edit_script(asked: Asked) -> dict[str, Any]:
    """The text after a change in the script view, and its script; or the problem that keeps it as it is.

    Args:
        asked: `text`, `variant`, and what to do: `op` with `row`, `column`, `to`, `value` as it needs them.
    """
    text, variant = _asked(asked)
    script = Script.from_prompt(text)
    try:
        match asked:
            case {
                "op": "cell",
                "row": int(row),
                "column": "lead" | "who" | "how" | "words" as column,
                "value": str(value),
            }:
                script = script.with_cell(row, column, value)
            case {"op": "add"}:
                script = script.with_line_added(len(script.lines))
            case {"op": "remove", "row": int(row)}:
                script = script.with_line_removed(row)
            case {"op": "move", "row": int(row), "to": int(to)}:
                script = script.with_line_moved(row, to)
            case {"op": "ambience", "value": str(value)}:
                script = script.with_ambience(value)
            case {"op": "ending", "value": str(value)}:
                script = script.with_ending(value)
    except InvalidInputError as error:
        return {"problem": str(error)}
    text = script.to_prompt(Dialect(variant.caption_dialect))
    return {"text": text, "script": _script(text)}


def _asked(asked: Asked) -> tuple[str, Variant]:
    return str(asked.get("text", ""))[:MAX_PROMPT], get_variant(str(asked.get("variant", "")))


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
    return {
        "words": len(words.replace(" ", "")) if by_characters else len(words.split()),
        "unit": "characters" if by_characters else "words",
        "limit": word_budget(variant.duration, language),
        "share": speech_seconds(words) / variant.duration,
        "seconds": round(variant.duration),
    }


def _script(text: str) -> dict[str, Any]:
    """The rows, or why the text cannot be shown in rows."""
    script = Script.from_prompt(text)
    return {"problem": f"{script.misfit} Mend it in the text first."} if script.misfit else script.to_data()
