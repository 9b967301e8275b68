"""The script view of a prompt: rows of who speaks, how and what, and a line of ambience.

    text ──Script.from_prompt──→ Script ──with_cell, with_line_added, …──→ Script ──to_prompt──→ text

A script is one reading of a text: its fields, put together, are that text to the character, and a script that was
edited is the reading of the text it makes, so rows survive the way through a prompt. Fields keep the white space of
the text; a cell that a person types is tidied, and spaces are put where it meets its neighbours.

Where the words alone would be read into other cells than they were typed in, a tab stands between the cells: white
space is all one to the models (`ovi_studio.prompt.clean_text`). A blank line ends a row that only describes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args
from unicodedata import east_asian_width, name

from ovi_studio.errors import InvalidInputError, PromptError
from ovi_studio.prompt import (
    CAPTION_CLOSE,
    CAPTION_OPEN,
    CAPTION_PREFIX,
    SPEECH_CLOSE,
    SPEECH_OPEN,
    Dialect,
    Kind,
    Segment,
    parse,
    to_dialect,
)
from ovi_studio.quotes import sentence_start, speaker
from ovi_studio.request import MAX_PROMPT

Column: TypeAlias = Literal["lead", "who", "how", "words"]
COLUMNS: tuple[Column, ...] = get_args(Column)
MAX_LINES = 64  # guessed: ten seconds hold about 30 words

_TAG = re.compile(f"{SPEECH_OPEN}|{SPEECH_CLOSE}|{CAPTION_OPEN}|{CAPTION_CLOSE}")
_PREFIX = re.compile(rf"(?<![A-Za-z0-9_]){CAPTION_PREFIX}")
_PARAGRAPH_END = re.compile(r"(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n)\s+")  # a blank line behind something
_ATTACHED = tuple(",.;:!?…)’”»、。，：；！？）」』")  # no space stands before these


@dataclass(frozen=True)
class Line:
    """A row: one speech with what leads up to it, or a description.

    Args:
        lead: what is seen before the sentence in which somebody speaks.
        who: who speaks; "" where the words do not tell.
        how: the rest up to the speech, such as "turns and whispers, ".
        words: what is spoken, without tags; None in a row that only describes, which has a `lead` alone.
    """

    lead: str = ""
    who: str = ""
    how: str = ""
    words: str | None = ""

    @property
    def text(self) -> str:
        """The row as it stands in a prompt."""
        return self.before + ("" if self.words is None else f"{SPEECH_OPEN}{self.words}{SPEECH_CLOSE}")

    @property
    def before(self) -> str:
        """All before the speech."""
        return self.lead + self.who + self.how


_NEW_LINE = Line()


@dataclass(frozen=True)
class Script:
    """A prompt as rows. Make it with `from_prompt` or `from_data`, edit it with the `with_…` methods.

    Args:
        lines: the rows, in order.
        ending: what stands between the last row and the caption or the end.
        ambience: the words of the audio caption; None without a caption.
        caption_opening: the tag that opens the caption, as it was written.
        tail: white space behind the caption.
    """

    lines: tuple[Line, ...] = ()
    ending: str = ""
    ambience: str | None = None
    caption_opening: str = CAPTION_OPEN
    tail: str = ""

    # --- From a prompt, and back --------------------------------------------------------------------------

    @classmethod
    def from_prompt(cls, text: str) -> "Script":
        """The rows of any text. What a script has no place for stays in the fields as it was written: see `misfit`."""
        scene, caption, tail = _caption_apart(parse(text).segments)
        lines: list[Line] = []
        before = ""
        for segment in scene:
            if segment.kind is Kind.SPEECH:
                *descriptions, before = _paragraphs(before)
                lines += [Line(description, words=None) for description in descriptions]
                lines.append(Line(*_cells(before), segment.words))
                before = ""
            else:
                before += segment.text
        *descriptions, ending = _paragraphs(before)
        if descriptions and not ending:
            ending = descriptions.pop()
        lines += [Line(description, words=None) for description in descriptions]
        if caption is None:
            return cls(tuple(lines), ending)
        return cls(tuple(lines), ending, caption.words, caption.opening, tail)

    def to_prompt(self, dialect: Dialect) -> str:
        """The prompt, its caption written as `dialect` wants it."""
        return to_dialect(self._written(), dialect)

    @property
    def misfit(self) -> str:
        """Why this script cannot be edited, as a sentence: a tag where no tag can be, or too much; "" if it can."""
        length = len(self._written())
        if length > MAX_PROMPT:
            return f"The prompt has {length} characters, and at most {MAX_PROMPT} are taken."
        if len(self.lines) > MAX_LINES:
            return f"The prompt has {len(self.lines)} rows, and a script has at most {MAX_LINES}."
        for row, line in enumerate(self.lines, 1):
            found = _TAG.search(line.before) or _TAG.search(line.words or "")
            if found:
                return f"In row {row} stands a {found.group()} that rows have no place for."
        found = _TAG.search(self.ending) or _TAG.search(self.ambience or "")
        if found:
            where = "After the last row" if _TAG.search(self.ending) else "In the audio caption"
            return f"{where} stands a {found.group()} that a script has no place for."
        return ""

    @classmethod
    def fits(cls, text: str) -> bool:
        """Whether `text` can be edited as a script; if not, `from_prompt(text).misfit` says why."""
        return not cls.from_prompt(text).misfit

    def _written(self) -> str:
        """The prompt in the dialect it was read in."""
        closing = CAPTION_CLOSE if self.caption_opening == CAPTION_OPEN else ""
        caption = "" if self.ambience is None else f"{self.caption_opening}{self.ambience}{closing}{self.tail}"
        return "".join(line.text for line in self.lines) + self.ending + caption

    # --- Editing: each returns another script -----------------------------------------------------------------

    def with_cell(self, row: int, column: Column, text: str) -> "Script":
        """With `text` typed into a cell. What a cell shows, typed again, changes nothing.

        Anything but a scene makes a row that only describes a speech. A cell that tells more than it should is
        read again: a speaker typed at the beginning of `how` goes to an empty `who`.

        Raises:
            PromptError: `text` holds a tag, or the script is a `misfit` or becomes one.
            InvalidInputError: there is no such cell.
        """
        self._check_row(row, len(self.lines) - 1)
        if column not in COLUMNS:
            raise InvalidInputError(f"A script has no column {column!r}.", f"Use one of: {', '.join(COLUMNS)}.")
        line = self.lines[row]
        typed = _typed(text, with_prefix=column == "words")
        if typed == _tidied(getattr(line, column) or ""):
            return self
        if column == "words" and line.words is not None:
            changed = replace(line, words=typed)
        else:
            cells: dict[str, Any] = {"words": line.words if column == "lead" else line.words or "", column: typed}
            changed = _laid_out(replace(line, **cells), _margin(line.before))
        return self._edited([*self.lines[:row], changed, *self.lines[row + 1 :]])

    def with_ending(self, text: str) -> "Script":
        """With `text` typed after the last row. Raises as `with_cell`."""
        self._check_fits()
        typed = _typed(text)
        if typed == _tidied(self.ending):
            return self
        return replace(self, ending=typed)._edited(self.lines)

    def with_ambience(self, text: str) -> "Script":
        """With `text` as the words of the audio caption; "" takes the caption away. Raises as `with_cell`."""
        self._check_fits()
        typed = _typed(text, with_prefix=True).removeprefix(CAPTION_PREFIX).lstrip()
        if typed == _tidied(self.ambience or ""):
            return self
        ending = self.ending if typed else self.ending.rstrip()
        return Script(self.lines, ending, typed or None)._edited(self.lines)

    def with_line_added(self, at: int, line: Line = _NEW_LINE) -> "Script":
        """With a typed row before row `at` (the number of rows: at the end). Raises as `with_cell`."""
        self._check_row(at, len(self.lines))
        typed = {column: _typed(getattr(line, column) or "", with_prefix=column == "words") for column in COLUMNS}
        added = Line(**typed) if line.words is not None else Line(typed["lead"], words=None)
        return self._edited([*self.lines[:at], _laid_out(added), *self.lines[at:]])

    def with_line_removed(self, at: int) -> "Script":
        """Without row `at`. Raises as `with_cell`."""
        self._check_row(at, len(self.lines) - 1)
        return self._edited([*self.lines[:at], *self.lines[at + 1 :]])

    def with_line_moved(self, at: int, to: int) -> "Script":
        """With row `at` at the place `to`. Raises as `with_cell`."""
        self._check_row(at, len(self.lines) - 1)
        self._check_row(to, len(self.lines) - 1)
        others = [*self.lines[:at], *self.lines[at + 1 :]]
        return self._edited([*others[:to], self.lines[at], *others[to:]])

    def _check_row(self, row: int, last: int) -> None:
        self._check_fits()
        if not 0 <= row <= last:
            raise InvalidInputError(f"The script has no row {row + 1}.", "Read the prompt again, then edit it.")

    def _check_fits(self) -> None:
        if self.misfit:
            raise PromptError(self.misfit, "Mend it in the text; then it can be edited as a script.")

    def _edited(self, lines: Sequence[Line]) -> "Script":
        """With other lines, and white space where things meet: the reading of what it makes."""
        laid: list[Line] = []
        for line in lines:
            if line.words is not None or line.lead.strip():
                laid.append(replace(line, lead=_placed(line, laid)))
        ending = self.ending
        if laid and laid[-1].words is None and not ending.strip():
            ending = laid.pop().lead.rstrip()
        ending = _placed(Line(ending, words=None), laid)
        if self.ambience is not None and (ending or laid) and not ending[-1:].isspace():
            ending += " "
        script = replace(self, lines=tuple(laid), ending=ending)
        if script.misfit:
            raise PromptError(script.misfit, "Undo this, or say it in less.")
        if any(_read_alike(script) != _read_alike(Script.from_prompt(script.to_prompt(way))) for way in Dialect):
            raise PromptError("Where these words meet their neighbours they make a tag.", "Write them without it.")
        return script

    # --- As data ------------------------------------------------------------------------------------------

    def to_data(self) -> dict[str, Any]:
        """As JSON data, every field to the character."""
        return {
            "lines": [{column: getattr(line, column) for column in COLUMNS} for line in self.lines],
            "ending": self.ending,
            "ambience": self.ambience,
            "caption_opening": self.caption_opening,
            "tail": self.tail,
        }

    @classmethod
    def from_data(cls, data: object) -> "Script":
        """A script from what `to_data` gave, which may have come back from anywhere.

        Raises:
            InvalidInputError: it is something else, too long, or not the rows that its own text would have.
        """
        fields = _fields(data, ("lines", "ending", "ambience", "caption_opening", "tail"), "a script")
        lines = fields["lines"]
        if not isinstance(lines, list) or len(lines) > MAX_LINES:
            raise _no_script(f"its lines are no list of at most {MAX_LINES}")
        script = cls(
            tuple(Line(**_texts(_fields(line, COLUMNS, "a line"), "words")) for line in lines),
            **_texts({field: fields[field] for field in fields if field != "lines"}, "ambience"),
        )
        if len(script._written()) > MAX_PROMPT:
            raise _no_script(f"its text has more than {MAX_PROMPT} characters")
        if cls.from_prompt(script._written()) != script:
            raise _no_script("its rows are not those that its text has")
        return script


# ----------------------------------------------------------------------------------------------- reading a text


def _caption_apart(segments: Sequence[Segment]) -> tuple[Sequence[Segment], Segment | None, str]:
    """What stands before the caption that ends a prompt, the caption, and the white space behind it."""
    last = segments[-1] if segments else None
    tail = last.text if last and last.kind is Kind.TEXT and not last.text.strip() else ""
    scene = segments[:-1] if tail else segments
    if scene and scene[-1].kind is Kind.CAPTION:
        return scene[:-1], scene[-1], tail
    return segments, None, ""


def _paragraphs(text: str) -> list[str]:
    """`text` cut behind every blank line that follows something; at least one piece, the last may be empty."""
    cuts = [0, *(match.end() for match in _PARAGRAPH_END.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def _cells(text: str) -> tuple[str, str, str]:
    """Lead, who and how of all that stands before a speech, to the character."""
    margin = _margin(text)
    marked, tab, how = text[len(margin) :].rpartition("\t")
    if not tab:
        start, end = speaker(text)
        return text[:start], text[start:end], text[end:]
    lead, tab, who = marked.rpartition("\t")
    if tab:
        return f"{margin}{lead}\t", f"{who}\t", how
    start = sentence_start(marked)
    return margin + marked[:start], f"{marked[start:]}\t", how


def _margin(text: str) -> str:
    """The white space that `text` begins with."""
    return text[: len(text) - len(text.lstrip())]


# ------------------------------------------------------------------------------------------------ typing a cell


def _tidied(text: str) -> str:
    return " ".join(text.split())


def _typed(text: str, *, with_prefix: bool = False) -> str:
    """A cell as it was typed, tidied; with no tag in it, nor `Audio:` where that would begin a caption."""
    found = _TAG.search(text) or (None if with_prefix else _PREFIX.search(text))
    if found:
        raise PromptError(
            f"{found.group()} cannot be typed here: the script writes the tags itself.",
            "Leave it out, and use the rows and the ambience.",
        )
    return _tidied(text)


def _laid_out(line: Line, margin: str = "") -> Line:
    """A row of tidied cells, spaces between them, in the cells that will be read from its text."""
    if line.words is None:
        return Line(f"{margin}{line.lead}\n\n", words=None)
    wanted = tuple(map(_tidied, (line.lead, line.who, line.how)))
    lead, who, how = wanted
    plain = _joined(_joined(lead, who), how)
    marked = [f"{_joined(lead, who)}\t{how}"] if who else []
    marked += [f"{lead}\t{who}\t{how}"] if lead else []
    for text in (plain, *marked):
        cells = _cells(f"{margin}{text} " if text else margin)
        if tuple(map(_tidied, cells)) == wanted:
            return Line(*cells, line.words)
    return Line(*_cells(f"{margin}{plain} "), line.words)


def _joined(left: str, right: str) -> str:
    """Two texts with a space between them, where one belongs there."""
    if not left or not right or right.startswith(_ATTACHED) or (_is_unspaced(left[-1]) and _is_unspaced(right[0])):
        return left + right
    return f"{left} {right}"


def _is_unspaced(character: str) -> bool:
    """Whether it is of a script that puts no spaces between words."""
    return east_asian_width(character) == "W" and not name(character, "").startswith("HANGUL")


def _placed(line: Line, before: Sequence[Line]) -> str:
    """The lead of `line` with the white space that it needs behind the rows `before`."""
    if not before or before[-1].words is None:
        return line.lead.lstrip()
    text = line.before
    if text[:1].isspace() or text.startswith(_ATTACHED) or (not text and line.words is None):
        return line.lead
    return f" {line.lead}"


def _read_alike(script: Script) -> tuple[tuple[Line, ...], str, bool, str]:
    """What must be the same in every dialect; the white space around a caption's words need not be."""
    return script.lines, script.ending, script.ambience is None, (script.ambience or "").strip()


# ------------------------------------------------------------------------------------------------- strange data


def _fields(data: object, names: Sequence[str], what: str) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != set(names):
        raise _no_script(f"{what} has the fields {', '.join(names)} and no others")
    return data


def _texts(fields: Mapping[str, Any], may_be_none: str) -> dict[str, Any]:
    for field, value in fields.items():
        if not isinstance(value, str) and not (value is None and field == may_be_none):
            raise _no_script(f"its {field} is no text")
        if value and len(value) > MAX_PROMPT:
            raise _no_script(f"its {field} has more than {MAX_PROMPT} characters")
    return dict(fields)


def _no_script(why: str) -> InvalidInputError:
    return InvalidInputError(f"This is no script: {why}.", "Read the prompt again, then edit it.")
