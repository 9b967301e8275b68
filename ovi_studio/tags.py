"""What a prompt's tags were meant to be: every near-tag in a text, and the spans they form once mended.

`ovi_studio.prompt.parse` reads the tags that the models know. This module reads the ones people write: `<s>`,
`</S>`, `<AUDCAPS>`, `[S]…[E]`, a tag without its bracket, a closer that never comes. Each thing amiss becomes
a `Fault` with the edits that mend it; spans are those of the mended text, at positions of the original.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

from ovi_studio.prompt import CAPTION_CLOSE, CAPTION_OPEN, CAPTION_PREFIX, SPEECH_CLOSE, SPEECH_OPEN
from ovi_studio.quotes import unmarked_speech_start


class Code(StrEnum):
    """What can be wrong with a prompt."""

    EMPTY_PROMPT = "empty-prompt"
    UNCLOSED_TAG = "unclosed-tag"
    STRAY_TAG = "stray-tag"
    NESTED_TAG = "nested-tag"
    MISMATCHED_TAG = "mismatched-tag"
    MALFORMED_TAG = "malformed-tag"
    UNKNOWN_TAG = "unknown-tag"
    EMPTY_SPEECH = "empty-speech"
    EMPTY_CAPTION = "empty-caption"
    QUOTED_SPEECH = "quoted-speech"
    OTHER_DIALECT = "other-dialect"
    SEVERAL_CAPTIONS = "several-captions"
    SPEECH_IN_CAPTION = "speech-in-caption"
    TEXT_AFTER_CAPTION = "text-after-caption"
    TOO_MANY_WORDS = "too-many-words"
    TOO_LONG = "too-long"


@dataclass(frozen=True, order=True)
class Edit:
    """Replace `text[start:end]` by `replacement`."""

    start: int
    end: int
    replacement: str


@dataclass(frozen=True)
class Fault:
    """Something amiss at `start` to `end`, and the edits that mend it (none: no rule can)."""

    code: Code
    start: int
    end: int
    message: str
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Span:
    """A speech or a caption as it was meant. `prefix`: a caption written `Audio: …`."""

    start: int
    inner_start: int
    inner_end: int
    end: int
    prefix: bool = False


@dataclass(frozen=True)
class Tag:
    """A tag as it was meant: `mark` is one of the five of the grammar.

    `doubtful`: in brackets that have other uses, such as `(E)`; it counts only beside its partner.
    """

    mark: str
    start: int
    end: int
    doubtful: bool = False


@dataclass(frozen=True)
class Reading:
    """All tags, spans and faults of a text. Speeches may lie inside captions."""

    tags: tuple[Tag, ...]
    speeches: tuple[Span, ...]
    captions: tuple[Span, ...]
    faults: tuple[Fault, ...]


def read_tags(text: str) -> Reading:
    """Read the tags of `text` as they were meant, in linear time."""
    tags, faults, unknown = _scan(text)
    reader = _Reader(text, tags)
    reader.read()
    faults += [_malformed(text, tag) for tag in tags if text[tag.start : tag.end] != tag.mark]
    faults += [_unknown(text, match, reader.speeches) for match in unknown]
    captions = sorted(reader.captions, key=lambda span: span.start)
    return Reading(tuple(tags), tuple(reader.speeches), tuple(captions), tuple(faults + reader.faults))


# ------------------------------------------------------------------------------------------ finding the tags

_LEFT, _RIGHT = r"(?:<|&lt;|＜|〈|⟨|‹)", r"(?:>|&gt;|＞|〉|⟩|›)"
_CANDIDATE = re.compile(
    rf"(?P<full>(?P<left>{_LEFT}{{1,3}})(?P<pad>\s{{0,3}})(?P<slash>[/\\]?)\s{{0,3}}"
    rf"(?P<name>[^\W\d_][\w .,:;='\"!?-]{{0,200}}?)\s{{0,3}}(?P<selfclosed>[/\\]?)\s{{0,3}}{_RIGHT}{{1,3}})"
    r"|(?P<other>[\[{(*]\s?(?P<other_slash>/?)(?P<other_name>[SE]|[se](?=\])|(?i:(?:END)?[ _]?AUDCAPS?))\s?[\]})*])"
    r"|(?P<caption>[</]{0,2}\b(?i:(?P<caption_end>END[ _]?)?AUDCAPS?)\b:?>?)"
    r"|(?P<half><(?P<half_slash>/?)(?P<half_name>[SE])(?=[\s\"“.,!?]|[A-Z¿¡][a-z']|$))"
    r"|(?P<tail>(?:(?<![A-Za-z</&;])S|(?<![A-Z</&;])E)>)"
    rf"|(?P<prefix>(?<![A-Za-z0-9_]){CAPTION_PREFIX})"
    r"|(?P<near>(?<![A-Za-z0-9_])(?i:audio(?:[ \t](?:caption|description|track|prompt))?)"
    r"[ \t]{0,2}(?:[:：]|[–—-](?=\s)))"
)
_ALIASES = {
    SPEECH_OPEN: "S SS SP SPEECH SPEAK SPOKEN SAY SAYS TALK VOICE DIALOGUE DIALOG START SPEECHSTART STARTSPEECH",
    SPEECH_CLOSE: "E EE ES END ENDS ENDE ENDSPEECH SPEECHEND ENDSAY",
    CAPTION_OPEN: "AUDCAP AUDIO AUDIOCAP AUDIOCAPTION AUDCAPTION CAPTION CAP AUD",
    CAPTION_CLOSE: "ENDAUDCAP ENDAUDIO ENDAUDIOCAP ENDAUDIOCAPTION ENDCAPTION ENDCAP ENDAUD AUDCAPEND AUDIOEND",
}
_MARKS = {alias: mark for mark, aliases in _ALIASES.items() for alias in aliases.split()}
_CLOSER_OF = {SPEECH_OPEN: SPEECH_CLOSE, CAPTION_OPEN: CAPTION_CLOSE}
_MARKUP = {"b", "i", "u", "p", "br", "hr", "em", "strong", "span", "div", "font", "sub", "sup", "speak", "prosody"}
_ALIKE = 0.8  # guessed: allows AUDCAP one letter more, fewer or swapped, ENDAUDCAP two
_SENTENCE_START = re.compile(r"(?:^|[\n.!?…。！？>)\"”\]*])\s*$")
_WHOLE_IN_ONE = re.compile(r"(?P<name>S|SPEECH|AUDCAP)(?:\s*:\s*|\s+)(?P<words>.+)", re.DOTALL)


def _scan(text: str) -> tuple[list[Tag], list[Fault], list[re.Match[str]]]:
    """The tags of `text`, faults that concern one tag alone, and what looks like a tag and is none."""
    tags: list[Tag] = []
    faults: list[Fault] = []
    unknown: list[re.Match[str]] = []
    for match in _CANDIDATE.finditer(text):
        tag = _tag(text, match)
        if tag:
            tags.append(tag)
        elif match["full"] and (whole := _WHOLE_IN_ONE.fullmatch(match["name"])) and not match["slash"]:
            faults.append(_whole_in_one(match, whole))
        elif match["full"] and match["left"] in ("<", "&lt;") and not match["pad"]:
            unknown.append(match)
    around = zip([None, *tags], tags, [*tags[1:], None], strict=False)
    return [tag for before, tag, after in around if _is_meant(tag, before, after)], faults, unknown


def _is_meant(tag: Tag, before: Tag | None, after: Tag | None) -> bool:
    """Whether a candidate is a tag, going by its neighbours."""
    opened = before is not None and before.mark == SPEECH_OPEN
    closed = after is not None and after.mark == SPEECH_CLOSE
    if tag.mark == CAPTION_PREFIX:
        return not (opened and closed)  # inside a speech it is a spoken word
    return not tag.doubtful or (closed if tag.mark == SPEECH_OPEN else opened)


def _tag(text: str, match: re.Match[str]) -> Tag | None:
    """The tag that a candidate was meant to be."""
    start, end = match.span()
    mark, doubtful = None, False
    if match["full"]:
        mark = None if len(match["name"]) > 24 else _mark_of(match["name"], bool(match["slash"]))
    elif match["prefix"]:
        mark = CAPTION_PREFIX
    elif match["near"]:
        begins = _SENTENCE_START.search(text[max(0, start - 24) : start])
        mark = CAPTION_PREFIX if begins else None
    elif match["other"]:
        mark = _mark_of(match["other_name"], bool(match["other_slash"]))
        doubtful = mark in (SPEECH_OPEN, SPEECH_CLOSE)
    elif match["caption"]:
        mark = CAPTION_CLOSE if match["caption_end"] or "/" in match.group() else CAPTION_OPEN
    else:
        mark = SPEECH_OPEN if match["half_name"] == "S" or match["tail"] == "S>" else SPEECH_CLOSE
        mark = SPEECH_CLOSE if match["half_slash"] else mark
    return Tag(mark, start, end, doubtful) if mark else None


def _mark_of(name: str, closing: bool) -> str | None:
    """The tag of the grammar that `name` stands for, however it is spelt."""
    key = re.sub(r"[\W_]|(?<=^[SE])\d$", "", name.upper())
    mark = _MARKS.get(key)
    if mark is None and len(key) <= 12:
        alike = {
            known: SequenceMatcher(None, key, known.strip("<>")).ratio() for known in (CAPTION_OPEN, CAPTION_CLOSE)
        }
        best = max(alike, key=alike.__getitem__)
        mark = best if alike[best] >= _ALIKE else None
    return _CLOSER_OF.get(mark, mark) if closing and mark else mark


def _malformed(text: str, tag: Tag) -> Fault:
    message = f"{text[tag.start : tag.end]!r} is not how the model knows this tag: it is written {tag.mark}."
    return Fault(Code.MALFORMED_TAG, tag.start, tag.end, message, (Edit(tag.start, tag.end, tag.mark),))


def _whole_in_one(match: re.Match[str], whole: re.Match[str]) -> Fault:
    speech = whole["name"] != "AUDCAP"
    opening, closing = (SPEECH_OPEN, SPEECH_CLOSE) if speech else (CAPTION_OPEN, CAPTION_CLOSE)
    message = f"The words stand inside the tag, where no model looks: they belong between {opening} and {closing}."
    words = whole["words"].strip().strip('"')
    edit = Edit(match.start(), match.end(), opening + words + closing)
    return Fault(Code.MALFORMED_TAG, match.start(), match.end(), message, (edit,))


def _unknown(text: str, match: re.Match[str], speeches: list[Span]) -> Fault:
    """A tag that no model knows: markup goes, other words lose only their brackets unless they would be said."""
    start, end = match.span()
    name = match["name"]
    at = bisect_right(speeches, start, key=lambda span: span.start) - 1
    spoken = at >= 0 and start < speeches[at].end
    if spoken or match["slash"] or match["selfclosed"] or _is_markup(name) or _is_paired(text, match):
        blank_before = start == 0 or text[start - 1].isspace()
        edit = Edit(start, end + 1 if blank_before and text[end : end + 1] == " " else end, "")
    else:
        edit = Edit(start, end, name)
    message = f"No model knows the tag {match.group()!r}: it would be read, or even said, as it stands."
    return Fault(Code.UNKNOWN_TAG, start, end, message, (edit,))


def _is_markup(name: str) -> bool:
    return "=" in name or name.lower() in _MARKUP


def _is_paired(text: str, match: re.Match[str]) -> bool:
    return text.find(f"</{match['name']}>", match.end(), match.end() + 1000) >= 0


# ----------------------------------------------------------------------------------------- pairing the tags

# Where a speech that was never closed gives way to narration again; guessed, and only proposed.
_NARRATION = re.compile(
    r"[.!?…][\"”'’]?(?=\s+(?:He|She|They|The|A|An|His|Her|Their|Then|Camera|Cut|In the|Behind)\b)|\n"
)
_SENTENCE_GAP = re.compile(r"[.!?…]\s+|\n\s*|[。！？]")
_SPOKEN_FOR = 400  # characters before a stray closer in which its opener may belong; guessed
_VISIBLE = re.compile(  # what is seen, not heard: no part of an audio caption
    r"(?P<camera>(?i:(?<!\w)camera (?:\w+ly )?"
    r"(?:pans|zooms|tilts|dollies|tracks|pulls|pushes|moves|follows|cuts|circles|drifts|rises|lingers|orbits)\b"
    r"|\b(?:wide|medium|close-up|tracking|aerial|static) shot\b|\bclose-up (?:of|on)\b))"
    r"|[.!?\n]\s{0,4}(?:Then )?(?:He|She|They|(?:The|A) (?:man|woman|boy|girl|couple)) (?:then )?"
    r"(?:smiles|nods|looks|gazes|stares|grins|frowns|blinks|winks|points|wears|waves|walks|turns|stands|sits)\b"
)

_NEW_LINE = re.compile(r"\n(?P<blank>\n)?(?P<line>[^\n]{1,400})")
_SCENE_STARTS = re.compile(r"\s{0,8}(?:The|An?|He|She|They|Then|His|Her|Camera|Cut to)\b")
_SOUND = re.compile(
    r"(?i:sound|nois|hum\b|humming|music|voice|speech|wind|rain|thunder|echo|ambien|horn|bark|buzz|click|whir|creak"
    r"|footstep|chirp|murmur|chatter|ring|hiss|rustl|rumbl|crackl|splash|drip|whistl|drum|piano|guitar|violin|melod"
    r"|tone|beat|laugh|applau|cheer|siren|engine|bell|silence|quiet|loud|soft)"
)


def _is_scene(line: re.Match[str]) -> bool:
    """Whether a new line after a caption is not more of the caption."""
    return bool(line["blank"]) or bool(_SCENE_STARTS.match(line["line"]) and not _SOUND.search(line["line"]))


class _Reader:
    """Pairs tags from left to right. Each method takes an index into `tags` and returns where to go on."""

    def __init__(self, text: str, tags: list[Tag]) -> None:
        self.text, self.tags = text, tags
        self.speeches: list[Span] = []
        self.captions: list[Span] = []
        self.faults: list[Fault] = []
        self._prefixes: list[Tag] = []
        self._done: set[int] = set()  # tags dealt with ahead of their turn

    def read(self) -> None:
        index = 0
        while index < len(self.tags):
            mark = self.tags[index].mark
            if mark == SPEECH_OPEN:
                index = self._speech(index)
            elif mark == CAPTION_OPEN:
                index = self._caption(index)
            else:
                if mark == CAPTION_PREFIX:
                    self._prefixes.append(self.tags[index])
                elif index not in self._done:
                    self._stray(index)
                index += 1
        self._end_prefixes()

    def _mark(self, index: int) -> str:
        return self.tags[index].mark if index < len(self.tags) else ""

    def _blank(self, start: int, end: int) -> bool:
        return not self.text[start:end].strip()

    def _last(self, start: int, end: int) -> int:
        """The position after the last visible character of `text[start:end]`."""
        return start + len(self.text[start:end].rstrip())

    def _fault(self, code: Code, tag: Tag, message: str, *edits: Edit) -> None:
        self.faults.append(Fault(code, tag.start, tag.end, message, edits))

    def _drop(self, code: Code, index: int, message: str) -> None:
        tag = self.tags[index]
        self._fault(code, tag, message, Edit(tag.start, tag.end, ""))

    def _swap(self, index: int, mark: str) -> None:
        tag = self.tags[index]
        message = f"{tag.mark} cannot end what stands before it: that is ended by {mark}."
        self._fault(Code.MISMATCHED_TAG, tag, message, Edit(tag.start, tag.end, mark))

    # -- speech

    def _speech(self, index: int, inside_caption: bool = False) -> int:
        opener, at = self.tags[index], index + 1
        while True:
            mark, follower = self._mark(at), self._mark(at + 1)
            if mark == SPEECH_CLOSE:
                return self._end_speech(opener, at)
            if mark == SPEECH_OPEN and self._is_nested(at):
                at = self._drop_nested(at)
            elif mark == SPEECH_OPEN and follower != SPEECH_CLOSE:
                self._swap(at, SPEECH_CLOSE)
                return self._end_speech(opener, at)
            elif mark == CAPTION_CLOSE and not inside_caption:
                if follower != SPEECH_CLOSE:
                    self._swap(at, SPEECH_CLOSE)
                    return self._end_speech(opener, at)
                self._drop(Code.STRAY_TAG, at, "This ends a caption where none is open, and would be said aloud.")
                at += 1
            elif mark == CAPTION_OPEN and follower == CAPTION_CLOSE and self._mark(at + 2) == SPEECH_CLOSE:
                return self._end_before_caption(opener, at)
            else:
                self._close_speech(opener, self.tags[at].start if mark else len(self.text))
                return at

    def _is_nested(self, index: int) -> bool:
        """Whether an opener inside its like is a repetition or has a closer of its own."""
        opener = self.tags[index]
        closer = _CLOSER_OF[opener.mark]
        doubled = self._blank(self.tags[index - 1].end, opener.start)
        return doubled or (self._mark(index + 1) == closer and self._mark(index + 2) == closer)

    def _drop_nested(self, index: int) -> int:
        """Drop an opener inside its like, and its closer if it has one; returns the next index to look at."""
        what = "speech" if self.tags[index].mark == SPEECH_OPEN else "caption"
        message = f"A {what} cannot stand inside another: the model never saw nested tags."
        doubled = self._blank(self.tags[index - 1].end, self.tags[index].start)
        pair = self.tags[index : index + (1 if doubled else 2)]
        self._fault(Code.NESTED_TAG, pair[0], message, *(Edit(tag.start, tag.end, "") for tag in pair))
        return index + len(pair)

    def _end_speech(self, opener: Tag, index: int) -> int:
        closer = self.tags[index]
        self.speeches.append(Span(opener.start, opener.end, closer.start, closer.end))
        return index + 1

    def _end_before_caption(self, opener: Tag, index: int) -> int:
        """`<S>words <AUDCAP>sounds<ENDAUDCAP><E>`: the speech ends where the caption begins."""
        caption, closer = self.tags[index], self.tags[index + 2]
        end = self._last(opener.end, caption.start)
        message = "A caption cannot stand inside a speech: it would be said aloud."
        edits = (Edit(end, end, SPEECH_CLOSE), Edit(closer.start, closer.end, ""))
        self._fault(Code.NESTED_TAG, caption, message, *edits)
        self.speeches.append(Span(opener.start, opener.end, end, end))
        self._done.add(index + 2)
        return index

    def _close_speech(self, opener: Tag, limit: int) -> None:
        """A speech without its closer ends where narration seems to begin, at the latest at `limit`."""
        message = f"{SPEECH_OPEN} is never closed by {SPEECH_CLOSE}: the model cannot tell where the speech ends."
        if self._blank(opener.end, limit):
            self._fault(Code.UNCLOSED_TAG, opener, message, Edit(opener.start, opener.end, ""))
            return
        first = self._last(opener.end, limit) - len(self.text[opener.end : limit].strip())
        narration = _NARRATION.search(self.text, first, limit)
        end = self._last(opener.end, narration.end() if narration else limit)
        self._fault(Code.UNCLOSED_TAG, opener, message, Edit(end, end, SPEECH_CLOSE))
        self.speeches.append(Span(opener.start, opener.end, end, end))

    # -- captions

    def _caption(self, index: int) -> int:
        opener, at = self.tags[index], index + 1
        while (mark := self._mark(at)) and mark != CAPTION_CLOSE:
            if mark != CAPTION_OPEN:
                at += 1
            elif self._is_nested(at):
                at = self._drop_nested(at)
            elif self._next_caption_mark(at + 1) != CAPTION_CLOSE:
                self._swap(at, CAPTION_CLOSE)
                break
            else:
                return self._close_caption(index, at)
        if not mark:
            return self._close_caption(index, at)
        self._inside_caption(index + 1, at)
        closer = self.tags[at]
        self.captions.append(Span(opener.start, opener.end, closer.start, closer.end))
        return at + 1

    def _next_caption_mark(self, index: int) -> str:
        while (mark := self._mark(index)) and mark not in (CAPTION_OPEN, CAPTION_CLOSE):
            index += 1
        return mark

    def _inside_caption(self, index: int, end: int) -> None:
        """Speeches and strays between the tags of a caption."""
        while index < end:
            mark = self.tags[index].mark
            if mark == SPEECH_OPEN:
                index = self._speech(index, inside_caption=True)
                continue
            if mark == SPEECH_CLOSE:
                self._drop(Code.STRAY_TAG, index, f"{SPEECH_CLOSE} ends a speech, and none is open here.")
            elif mark == CAPTION_PREFIX:
                message = f"{CAPTION_PREFIX} is the other way to write a caption, and this one has its tags."
                self._drop(Code.NESTED_TAG, index, message)
            index += 1

    def _close_caption(self, index: int, at: int) -> int:
        """A caption without its closer ends at a wrong closer, before a speech, or at `at`."""
        opener = self.tags[index]
        for inner in range(index + 1, at):
            if self.tags[inner].mark == SPEECH_CLOSE:
                self._swap(inner, CAPTION_CLOSE)
                closer = self.tags[inner]
                self.captions.append(Span(opener.start, opener.end, closer.start, closer.end))
                return inner + 1
            if self.tags[inner].mark in (SPEECH_OPEN, CAPTION_PREFIX):
                at = inner
                break
        limit = self.tags[at].start if self._mark(at) else len(self.text)
        message = f"{CAPTION_OPEN} is never closed by {CAPTION_CLOSE}: the model cannot tell where the caption ends."
        end = self._last(opener.end, limit)
        if self._blank(opener.end, limit):
            self._fault(Code.UNCLOSED_TAG, opener, message, Edit(opener.start, opener.end, ""))
        else:
            self._fault(Code.UNCLOSED_TAG, opener, message, Edit(end, end, CAPTION_CLOSE))
            self.captions.append(Span(opener.start, opener.end, end, end))
        return at

    def _end_prefixes(self) -> None:
        """Where each `Audio:` caption ends: at the next caption, or where something else plainly begins."""
        openers = sorted([tag.start for tag in self._prefixes] + [span.start for span in self.captions])
        for tag in self._prefixes:
            following = bisect_right(openers, tag.start)
            limit = openers[following] if following < len(openers) else len(self.text)
            end = self._last(tag.end, self._prefix_limit(tag.end, limit))
            self.captions.append(Span(tag.start, tag.end, end, end, prefix=True))

    def _prefix_limit(self, start: int, limit: int) -> int:
        first = limit - len(self.text[start:limit].lstrip())
        at = bisect_right(self.speeches, start, key=lambda span: span.start)
        speech = self.speeches[at].start if at < len(self.speeches) and self.speeches[at].start < limit else None
        stops = [limit]
        if speech is not None:  # the sentence that leads to the speech is narration too
            stops += [gap.end() for gap in _SENTENCE_GAP.finditer(self.text, first, speech)][-1:]
        for visible in _VISIBLE.finditer(self.text, first, limit):
            if visible["camera"] or not _SOUND.search(self.text, visible.end(), visible.end() + 120):
                gaps = [gap.end() for gap in _SENTENCE_GAP.finditer(self.text, first, visible.end())]
                stops += gaps[-1:]
                break
        stops += [line.start() for line in _NEW_LINE.finditer(self.text, first, limit) if _is_scene(line)][:1]
        return min(stops)

    # -- closers without an opener

    def _stray(self, index: int) -> None:
        tag = self.tags[index]
        before = max(self.tags[index - 1].end if index else 0, tag.start - _SPOKEN_FOR)
        message = f"{tag.mark} ends something that was never begun."
        start = None
        if tag.mark == SPEECH_CLOSE:
            start = unmarked_speech_start(self.text, before, tag.start)
        elif not self._prefixes:
            start = self._caption_start(index, before, tag.start)
        if start is None or self._blank(start, tag.start):
            self._drop(Code.STRAY_TAG, index, message)
            return
        opening, spans = (SPEECH_OPEN, self.speeches) if tag.mark == SPEECH_CLOSE else (CAPTION_OPEN, self.captions)
        self._fault(Code.STRAY_TAG, tag, message, Edit(start, start, opening))
        spans.append(Span(start, start, tag.start, tag.end))

    def _caption_start(self, index: int, start: int, end: int) -> int | None:
        """The last sentence before a stray <ENDAUDCAP>, if it is not all there is."""
        last = self._last(start, end)
        gaps = [gap.end() for gap in _SENTENCE_GAP.finditer(self.text, start, max(start, last - 1))]
        begin = gaps[-1] if gaps else start
        begin += len(self.text[begin:end]) - len(self.text[begin:end].lstrip(" \t\n.,;"))
        return begin if index or gaps else None
