"""What is wrong with a prompt, where, why it matters, and how to mend it.

`lint` reports findings in the order of the text; `repair` applies what they propose. Repairs of one run never
collide: two findings that would change the same place propose the same edit.

The page and the command line show findings; only an `ERROR` should keep a prompt from being generated.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from ovi_studio.errors import PromptError
from ovi_studio.prompt import CAPTION_OPEN, SPEECH_CLOSE, SPEECH_OPEN, Dialect, caption
from ovi_studio.quotes import quoted_speech
from ovi_studio.speech import counts_characters, detect_language, speech_seconds, word_budget
from ovi_studio.tags import Code, Edit, Fault, Reading, Span, read_tags

__all__ = ["Code", "Edit", "Finding", "Repair", "Severity", "lint", "repair"]

_GRACE = 1.1  # guessed: people hurry a little; speech may take a tenth longer than the clip before it is a fault
_READ_BY_MODEL = 16_384  # characters; derived: the encoder reads 512 tokens, and none stands for 32 characters
_READ_BYTES = 2048  # guessed: 512 tokens of four bytes, as English has them, and most other scripts in UTF-8
_ERRORS = frozenset((Code.EMPTY_PROMPT, Code.UNCLOSED_TAG, Code.STRAY_TAG, Code.NESTED_TAG, Code.MISMATCHED_TAG))
_REWRITING = frozenset(  # their edits write whole spans anew, closing tags included
    (
        Code.EMPTY_SPEECH,
        Code.EMPTY_CAPTION,
        Code.OTHER_DIALECT,
        Code.SEVERAL_CAPTIONS,
        Code.SPEECH_IN_CAPTION,
        Code.TEXT_AFTER_CAPTION,
    )
)
_WORD_CHARACTER = re.compile(r"[^\W_]")


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"  # the prompt does not say what is meant
    WARNING = "warning"  # it does, but the model will make something else of it


@dataclass(frozen=True)
class Repair:
    """Edits that belong together, at positions of the linted text."""

    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Finding:
    """One fault of a prompt. `message` is a sentence; `repair` is None where only the writer can decide."""

    code: Code
    start: int
    end: int
    message: str
    severity: Severity
    repair: Repair | None


def lint(text: str, dialect: Dialect, seconds: float, language: str | None = None) -> tuple[Finding, ...]:
    """Everything wrong with a prompt, in the order of the text; in linear time.

    Args:
        text: the prompt as the user wrote it.
        dialect: how the chosen variant reads captions.
        seconds: the length of the clip.
        language: what is spoken, as a code such as "en"; None goes by the script of each speech.
    """
    # 1. the tags, as they were meant
    reading = read_tags(text)
    faults = list(reading.faults)
    # 2. what is, or should be, spoken
    faults += _empty_speeches(text, reading)
    quoted = _quoted_speeches(text, reading)
    faults += quoted
    faults += _too_many_words(text, reading, quoted, seconds, language)
    # 3. one caption, in the right dialect, with nothing after it
    faults = _settled(faults)
    faults = _settled(faults + _arrangement(text, reading, faults, dialect))
    # 4. nothing at all, or more than is read
    faults += _too_long(text)
    if not _WORD_CHARACTER.search(_outside_tags(text, reading)):
        message = "The prompt is empty: the model needs a scene, a speech or a sound to make."
        faults.append(Fault(Code.EMPTY_PROMPT, 0, len(text), message))
    findings = (_finding(fault) for fault in faults)
    return tuple(sorted(findings, key=lambda finding: (finding.start, finding.end, finding.code)))


def repair(text: str, findings: Iterable[Finding]) -> str:
    """`text` with the repairs of `findings` applied; findings without one change nothing.

    Raises:
        PromptError: the findings were made from another text.
    """
    edits = {edit for finding in findings if finding.repair for edit in finding.repair.edits}
    ordered = sorted(edits)
    ends = [0, *(edit.end for edit in ordered)]
    if any(edit.start < end for edit, end in zip(ordered, ends, strict=False)) or ends[-1] > len(text):
        raise PromptError("These repairs belong to another text.", "Check the prompt again, then repair it.")
    return _edited(text, ordered, 0, len(text))


def _finding(fault: Fault) -> Finding:
    severity = Severity.ERROR if fault.code in _ERRORS else Severity.WARNING
    proposal = Repair(fault.edits) if fault.edits else None
    return Finding(fault.code, fault.start, fault.end, fault.message, severity, proposal)


def _edited(text: str, edits: list[Edit], start: int, end: int) -> str:
    """`text[start:end]` after the sorted `edits`."""
    parts = []
    for edit in edits:
        parts += [text[start : edit.start], edit.replacement]
        start = edit.end
    return "".join([*parts, text[start:end]])


def _settled(faults: list[Fault]) -> list[Fault]:
    """The same faults with edits that are equal or apart: an edit inside a larger one gives way to it."""
    entries = sorted(
        (edit.start, -edit.end, fault.code is Code.MALFORMED_TAG, edit, fault.code)
        for fault in faults
        for edit in fault.edits
    )
    stands_for: dict[tuple[Edit, bool], Edit] = {}
    widest, absorbs = Edit(-1, -1, ""), False
    for _, _, malformed, edit, code in entries:
        inside = edit.start < widest.end
        if edit.start == edit.end:
            at_start = edit.start == widest.start and edit.replacement != CAPTION_OPEN
            inside = not at_start and (inside or (absorbs and edit.start == widest.end))
        stands_for[edit, malformed] = widest if inside else edit
        if not inside and edit.start < edit.end:
            widest, absorbs = edit, code in _REWRITING
    settled = []
    for fault in faults:
        malformed = fault.code is Code.MALFORMED_TAG
        edits = tuple(dict.fromkeys(stands_for[edit, malformed] for edit in fault.edits))
        settled.append(fault if edits == fault.edits else replace(fault, edits=edits))
    return settled


# ------------------------------------------------------------------------------------------------- the words


def _has_words(text: str) -> bool:
    return bool(_WORD_CHARACTER.search(text))


def _outside_tags(text: str, reading: Reading, start: int = 0) -> str:
    """The words of `text` from `start` on, without any tags."""
    tags = reading.tags[bisect_left(reading.tags, start, key=lambda tag: tag.start) :]
    ends = [start, *(tag.end for tag in tags)]
    starts = [*(tag.start for tag in tags), len(text)]
    return " ".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def _empty_speeches(text: str, reading: Reading) -> list[Fault]:
    message = f"There are no words between {SPEECH_OPEN} and {SPEECH_CLOSE}: the model would babble to fill it."
    faults = []
    for span in reading.speeches:
        if not _has_words(text[span.inner_start : span.inner_end]):
            blank_before = span.start == 0 or text[span.start - 1].isspace()
            end = span.end + (blank_before and text[span.end : span.end + 1] == " ")
            edit = Edit(span.start, end, "")
            faults.append(Fault(Code.EMPTY_SPEECH, span.start, span.end, message, (edit,)))
    return faults


def _plain_stretches(text: str, reading: Reading) -> Iterable[tuple[int, int]]:
    """Where plain prose stands: outside speeches, captions and tags."""
    taken = [(span.start, span.end) for span in (*reading.speeches, *reading.captions)]
    taken += [(tag.start, tag.end) for tag in reading.tags]
    position = 0
    for start, end in [*sorted(taken), (len(text), len(text))]:
        if position < start:
            yield position, start
        position = max(position, end)


def _quoted_speeches(text: str, reading: Reading) -> list[Fault]:
    message = f"This reads as speech, but only words between {SPEECH_OPEN} and {SPEECH_CLOSE} are spoken reliably."
    faults = []
    for start, end in _plain_stretches(text, reading):
        if start >= _READ_BY_MODEL:
            break
        for quote in quoted_speech(text, start, min(end, _READ_BY_MODEL)):
            edits = (
                Edit(quote.start, quote.inner_start, SPEECH_OPEN),
                Edit(quote.inner_end, quote.end, SPEECH_CLOSE),
            )
            faults.append(Fault(Code.QUOTED_SPEECH, quote.start, quote.end, message, edits))
    return faults


def _too_long(text: str) -> list[Fault]:
    start = len(text.encode(errors="replace")[:_READ_BYTES].decode(errors="ignore"))
    message = (
        "The model reads 512 tokens, which end about here: what follows, a sound caption too, may not be seen or heard."
        " Shorten the prompt."
    )
    return [Fault(Code.TOO_LONG, start, len(text), message)] if start < len(text) else []


def _too_many_words(
    text: str, reading: Reading, quoted: list[Fault], seconds: float, language: str | None
) -> list[Fault]:
    spans = [(span.start, span.inner_start, span.inner_end, span.end) for span in reading.speeches]
    spans += [(quote.start, quote.start + 1, quote.end - 1, quote.end) for quote in quoted]
    spoken = [text[begin:end] for _, begin, end, _ in sorted(spans)]
    needed = sum(speech_seconds(words, language) for words in spoken)
    if needed <= seconds * _GRACE:
        return []
    language = language or detect_language(" ".join(spoken))
    unit = "characters" if counts_characters(language) else "words"
    message = (
        f"Saying all this takes about {needed:.1f} seconds at a normal pace and the clip lasts {seconds:.1f}: "
        f"the speech will be rushed or cut off, so keep it to about {word_budget(seconds, language)} {unit}."
    )
    start, end = min(span[0] for span in spans), max(span[3] for span in spans)
    return [Fault(Code.TOO_MANY_WORDS, start, end, message)]


# ----------------------------------------------------------------------------------------------- the caption


def _arrangement(text: str, reading: Reading, faults: list[Fault], dialect: Dialect) -> list[Fault]:
    """Faults of the captions; all are mended at once, by writing one caption in `dialect` at the end."""
    if not reading.captions:
        return []
    found: list[Fault] = []
    filled = {span: None for span in reading.captions if _has_words(_own_words(text, span, reading))}
    for span in reading.captions:
        if span.prefix is (dialect is Dialect.AUDCAP):
            wanted = caption("…", dialect)
            message = f"This caption is written for another model; the chosen one knows it as {wanted}."
            found.append(Fault(Code.OTHER_DIALECT, span.start, span.end, message))
        if span not in filled:
            message = "The caption says nothing: leave it out, or name the sounds to be heard."
            found.append(Fault(Code.EMPTY_CAPTION, span.start, span.end, message))
    for span in list(filled)[1:]:
        message = "There is a caption already: the model was taught prompts with one, at the end."
        found.append(Fault(Code.SEVERAL_CAPTIONS, span.start, span.end, message))
    found += _misplaced(text, reading)
    if not found:
        return []
    edit = Edit(reading.captions[0].start, len(text), _arranged(text, reading, faults, dialect))
    return [replace(fault, edits=(edit,)) for fault in found]


def _inner_speeches(span: Span, reading: Reading) -> list[Span]:
    """The speeches between the tags of a caption, in order."""
    first = bisect_left(reading.speeches, span.inner_start, key=lambda speech: speech.start)
    past = bisect_left(reading.speeches, span.inner_end, key=lambda speech: speech.start)
    return list(reading.speeches[first:past])


def _own_words(text: str, span: Span, reading: Reading) -> str:
    position, parts = span.inner_start, []
    for speech in _inner_speeches(span, reading):
        parts.append(text[position : speech.start])
        position = speech.end
    return " ".join([*parts, text[position : span.inner_end]])


def _misplaced(text: str, reading: Reading) -> list[Fault]:
    """Speech inside captions, and whatever follows the last one."""
    last = reading.captions[-1]
    found = []
    for span in reading.captions:
        speeches = _inner_speeches(span, reading)
        if span is last and span.prefix:  # an `Audio:` caption runs to the end: all later speech is in it
            speeches = [speech for speech in reading.speeches if speech.start >= span.start]
        for speech in speeches:
            message = "Speech belongs to the scene, before the caption: the caption only describes the sound."
            found.append(Fault(Code.SPEECH_IN_CAPTION, speech.start, speech.end, message))
    tail = _outside_tags(text, reading, last.end)
    if last.prefix:  # all speech in it is reported already
        tail = _own_words(text, replace(last, inner_start=last.end, inner_end=len(text)), reading)
    if _has_words(tail):
        message = "Nothing may follow the caption: the model takes it for sound, or says it aloud."
        found.append(Fault(Code.TEXT_AFTER_CAPTION, last.end, len(text), message))
    return found


def _arranged(text: str, reading: Reading, faults: list[Fault], dialect: Dialect) -> str:
    """What stands from the first caption on, mended, with all captions merged into one at the end."""
    edits = sorted({edit for fault in faults for edit in fault.edits if edit.start < edit.end})
    starts = [edit.start for edit in edits]

    def plain(start: int, end: int) -> str:
        first, past = bisect_left(starts, start), bisect_left(starts, end)
        return _edited(text, [edit for edit in edits[first:past] if edit.end <= end], start, end)

    def spoken(speech: Span) -> str:
        words = plain(speech.inner_start, speech.inner_end)
        return f"{SPEECH_OPEN}{words}{SPEECH_CLOSE}" if _has_words(words) else ""

    captions = set(reading.captions)
    inner = {speech for span in reading.captions for speech in _inner_speeches(span, reading)}
    said = {spoken(speech) for speech in reading.speeches if speech not in inner}
    position = reading.captions[0].start
    scene: list[list[str]] = [[]]  # one list for each stretch between captions
    sounds: list[str] = []
    for span in sorted(captions.union(reading.speeches) - inner, key=lambda span: span.start):
        if span.start < position:
            continue
        scene[-1].append(plain(position, span.start))
        if span in captions:
            begin, words = span.inner_start, []
            for speech in _inner_speeches(span, reading):
                words.append(plain(begin, speech.start).strip())
                begin = speech.end
                scene += [[spoken(speech)]] if spoken(speech) not in said else []
                said.add(spoken(speech))
            sounds.append(" ".join([*words, plain(begin, span.inner_end).strip()]).strip())
            scene.append([])
        else:
            scene[-1].append(spoken(span))
        position = span.end
    scene[-1].append(plain(position, len(text)))
    stretches = ["".join(parts).strip(" \t\n").lstrip(".,; ") for parts in scene]
    written = caption(_one_caption(sounds), dialect) if any(map(_has_words, sounds)) else ""
    if position and text[reading.captions[0].start - 1 : reading.captions[0].start].isalnum():
        stretches.insert(0, " ")
    return " ".join(part for part in [*stretches, written] if part).strip(" ")


def _one_caption(captions: list[str]) -> str:
    """The words of several captions as one, each said once, with a stop between them."""
    sentences = [words for words in dict.fromkeys(captions) if _has_words(words)]
    ended = [words if words[-1] in ".!?…。！？" else f"{words}." for words in sentences[:-1]]
    return " ".join([*ended, *sentences[-1:]])
