"""The words of a prompt: its tag grammar, its two dialects, and how it is cleaned for the models.

A prompt is plain text with two kinds of marked spans:

    speech    <S>words<E>                          in every variant
    caption   <AUDCAP>sounds<ENDAUDCAP>            for the 720x720_5s checkpoint
              Audio: sounds … to the end           for the 960x960 checkpoints

`parse` never fails and never loses a character: a tag without its partner is plain text, and saying so is
the business of `ovi_studio.lint`.
"""

import html
import re
from dataclasses import dataclass
from enum import StrEnum

SPEECH_OPEN, SPEECH_CLOSE = "<S>", "<E>"
CAPTION_OPEN, CAPTION_CLOSE = "<AUDCAP>", "<ENDAUDCAP>"
CAPTION_PREFIX = "Audio:"

_CLOSING = {SPEECH_OPEN: SPEECH_CLOSE, CAPTION_OPEN: CAPTION_CLOSE}
_OPENING = re.compile(rf"{SPEECH_OPEN}|{CAPTION_OPEN}|(?<![A-Za-z0-9_]){CAPTION_PREFIX}\s*")


class Dialect(StrEnum):
    """How a checkpoint was taught to read the audio caption."""

    AUDCAP = "audcap"
    AUDIO_PREFIX = "audio_prefix"


class Kind(StrEnum):
    """What a segment of a prompt is."""

    TEXT = "text"
    SPEECH = "speech"
    CAPTION = "caption"


@dataclass(frozen=True)
class Segment:
    """A stretch of one kind. `opening + words + closing` is exactly what stands in the prompt at `start`."""

    kind: Kind
    start: int
    words: str
    opening: str = ""
    closing: str = ""

    @property
    def text(self) -> str:
        """The segment as it is written, tags included."""
        return self.opening + self.words + self.closing

    @property
    def end(self) -> int:
        """The position after the segment."""
        return self.start + len(self.opening) + len(self.words) + len(self.closing)

    @property
    def words_start(self) -> int:
        """The position of the first character between the tags."""
        return self.start + len(self.opening)


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt: segments in order, without gaps. `str(prompt)` is the text it was parsed from."""

    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def speeches(self) -> tuple[Segment, ...]:
        """What is spoken, in order."""
        return tuple(segment for segment in self.segments if segment.kind is Kind.SPEECH)

    @property
    def captions(self) -> tuple[Segment, ...]:
        """The audio captions; a good prompt has at most one."""
        return tuple(segment for segment in self.segments if segment.kind is Kind.CAPTION)


def parse(text: str) -> Prompt:
    """Split a prompt into its segments, in linear time; `str(parse(text)) == text` for any text.

    The first closing tag ends a span, whatever stands between. An `Audio:` caption runs to the end.
    """
    segments: list[Segment] = []
    never_closed: set[str] = set()
    plain = position = 0
    while match := _OPENING.search(text, position):
        opening, begin = match.group(), match.end()
        closing = _CLOSING.get(opening, "")
        if not closing:
            end = len(text)
        elif opening in never_closed or (end := text.find(closing, begin)) < 0:
            never_closed.add(opening)
            position = begin
            continue
        if plain < match.start():
            segments.append(Segment(Kind.TEXT, plain, text[plain : match.start()]))
        kind = Kind.SPEECH if opening == SPEECH_OPEN else Kind.CAPTION
        segments.append(Segment(kind, match.start(), text[begin:end], opening, closing))
        plain = position = end + len(closing)
    if plain < len(text):
        segments.append(Segment(Kind.TEXT, plain, text[plain:]))
    return Prompt(tuple(segments))


def to_dialect(text: str, dialect: Dialect) -> str:
    """The prompt with every audio caption written as `dialect` wants it; all else stays as it is.

    Only the tags change. Where a caption stands in the middle of a prompt, the `Audio:` dialect reads all
    that follows as part of it: the linter warns of that and offers to move the caption.
    """
    return "".join(_in_dialect(segment, dialect) for segment in parse(text).segments)


def _in_dialect(segment: Segment, dialect: Dialect) -> str:
    if segment.kind is not Kind.CAPTION:
        return segment.text
    written_in = Dialect.AUDCAP if segment.closing else Dialect.AUDIO_PREFIX
    return segment.text if written_in is dialect else caption(segment.words, dialect)


def caption(words: str, dialect: Dialect) -> str:
    """An audio caption as `dialect` writes it."""
    if dialect is Dialect.AUDCAP:
        return f"{CAPTION_OPEN}{words}{CAPTION_CLOSE}"
    return f"{CAPTION_PREFIX} {words}"


def strip_tags(text: str) -> str:
    """What can be seen: the prompt without speech and captions, for an image model."""
    return "".join(segment.text for segment in parse(text).segments if segment.kind is Kind.TEXT).strip()


def clean_text(text: str) -> str:
    """The prompt as the tokenizer wants it: mended by ftfy, HTML escapes undone twice, one space between words."""
    import ftfy  # noqa: PLC0415  (only the text encoder's side needs it)

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text))).strip())
