"""Rewrite to a theme: a language model finds new words for the speeches of a prompt; all else stays as it is.

    instruction(prompt, theme, seconds) ──→ a text for any chat model ──→ its answer
    apply_answer(prompt, answer, …) ──────→ Rewrite: the new prompt, what the linter finds in it, the difference
    ask(endpoint, prompt, theme, …) ──────→ both, through an OpenAI-compatible server of the user's

The answer is a stranger's: only words are taken from it, never tags, and nothing is taken before the user has seen
the difference.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, NamedTuple, TypeAlias

from ovi_studio.chat import Endpoint
from ovi_studio.errors import InvalidInputError, PromptError, RewriteError
from ovi_studio.lint import Finding, lint
from ovi_studio.prompt import CAPTION_PREFIX, Dialect, Kind, Segment, parse
from ovi_studio.request import MAX_PROMPT
from ovi_studio.speech import counts_characters, detect_language, speech_seconds, word_budget
from ovi_studio.tags import read_tags

_ASK_AGAIN = "Ask again, or try another model."
MAX_THEME = 500  # characters; guessed: a theme is a sentence or two
MAX_ANSWER = 65_536  # characters of a model's answer, its thoughts included; guessed: six of the longest prompts
_LONGEST_ANSWER = 2.0  # times the clip's length that the new speeches may take; guessed: beyond it, cutting is no use
_LEAST_WORDS = 2  # guessed: a speech of one word can hardly keep to a theme
_MOST_READINGS = 200  # places of an answer where JSON is tried; guessed

Kept: TypeAlias = Literal["same", "removed", "added"]


class Change(NamedTuple):
    """A stretch of a difference: text of both, of the old prompt, or of the new one."""

    kind: Kept
    text: str


@dataclass(frozen=True)
class Rewrite:
    """A rewritten prompt, to be looked at before it is taken.

    Args:
        before: the prompt as it was.
        after: the same with other words.
        findings: what the linter finds in `after`.
        diff: all of `before` and `after`, word by word.
    """

    before: str
    after: str
    findings: tuple[Finding, ...]
    diff: tuple[Change, ...]


# --------------------------------------------------------------------------------------------------- the question


def instruction(prompt: str, theme: str, seconds: float, language: str | None = None, *, ambience: bool = False) -> str:
    """A text that asks any chat model for the speeches of `prompt`, rewritten to `theme`; nothing else is needed.

    Args:
        prompt: with at least one speech.
        theme: what the speeches shall be about, in the user's words.
        seconds: the length of the clip.
        language: what shall be spoken, as a code such as "en"; None keeps that of the prompt.
        ambience: whether the audio caption shall be rewritten too, if there is one.

    Raises:
        PromptError: nothing is spoken in the prompt.
        InvalidInputError: the theme is empty or too long.
    """
    theme = " ".join(theme.split())
    if not theme or len(theme) > MAX_THEME:
        raise InvalidInputError(
            f"A theme has 1 to {MAX_THEME} characters, not {len(theme)}.", "Say in a sentence what it is about."
        )
    speeches = _speeches(prompt)
    spoken_in = language or detect_language(" ".join(speeches))
    unit = "characters" if counts_characters(spoken_in) else "words"
    budgets = _budgets(speeches, seconds, spoken_in)
    numbered = (
        f"{number}. (at most {budget} {unit}) {' '.join(words.split())}"
        for number, (words, budget) in enumerate(zip(speeches, budgets, strict=True), 1)
    )
    shape = _SHAPE_WITH_AMBIENCE if ambience and _caption(prompt) else _SHAPE
    return _INSTRUCTION.format(
        seconds=f"{seconds:g}",
        theme=theme,
        language=language or "the same as now",
        speeches="\n".join(numbered),
        shape=shape.format(count=len(speeches)),
        prompt=prompt.strip(),
    )


_INSTRUCTION = """\
Below is the prompt for a video clip of {seconds} seconds with sound. The words between <S> and <E> are spoken in it.
Write those speeches anew to a theme, and leave the scene, the people and their order as they are: each speech must
suit who speaks and how.

Theme: {theme}
Language of the speeches: {language}

The speeches now, each with the most that may be said in its place:
{speeches}

{shape}
Write only what is spoken: no tags, no names of speakers, no directions, no quotation marks around it.

The prompt:
{prompt}"""
_SHAPE = "Answer with nothing but a JSON list of strings, as many as there are speeches ({count}), in the same order."
_SHAPE_WITH_AMBIENCE = """\
Answer with nothing but a JSON object: "speeches", a list of strings, as many as there are speeches ({count}), in the
same order, and "ambience", a string: the sounds of the audio caption, changed where the theme changes them."""


def _speeches(prompt: str) -> list[str]:
    speeches = [speech.words for speech in parse(prompt).speeches]
    if not speeches:
        raise PromptError("Nothing is spoken in this prompt.", "Put what is to be spoken between <S> and <E> first.")
    return speeches


def _caption(prompt: str) -> Segment | None:
    """The caption that can be rewritten: the only one, with words in it and no speech."""
    captions = parse(prompt).captions
    plain = len(captions) == 1 and captions[0].words.strip() and not read_tags(captions[0].words).tags
    return captions[0] if plain else None


def _budgets(speeches: Sequence[str], seconds: float, language: str) -> list[int]:
    """How many words each speech may have, by how long it takes now; together as many as the clip holds."""
    total = word_budget(seconds, language)
    lengths = [max(speech_seconds(words), 0.5) for words in speeches]  # an empty one is to be filled too
    return [max(_LEAST_WORDS, int(total * length / sum(lengths))) for length in lengths]


# ----------------------------------------------------------------------------------------------------- the answer


def apply_answer(
    prompt: str,
    answer: str,
    *,
    dialect: Dialect,
    seconds: float,
    language: str | None = None,
    ambience: bool = False,
) -> Rewrite:
    """The prompt with the speeches of a model's answer: a JSON list, alone, fenced, or with prose around it.

    Args:
        prompt: the one that `instruction` was made from.
        answer: what the model wrote.
        dialect: how the chosen variant reads captions, for the linter.
        seconds: the length of the clip.
        language: what was to be spoken; None goes by the script of each speech.
        ambience: whether the audio caption may change; it stays if the answer has none.

    Raises:
        RewriteError: the answer has no such list, another number of speeches, or speeches that cannot be taken.
        PromptError: nothing is spoken in the prompt.
    """
    speeches = _speeches(prompt)
    found, sounds = _read_answer(answer, len(speeches))
    spoken = [_spoken(words, number) for number, words in enumerate(found, 1)]
    needed = sum(speech_seconds(words, language) for words in spoken)
    if needed > max(_LONGEST_ANSWER * seconds, 2.0):
        raise RewriteError(
            f"Saying what the model wrote takes about {needed:.0f} seconds and the clip lasts {seconds:.0f}.",
            "Ask again, or for shorter speeches.",
        )
    sounds = _sounds(sounds) if ambience else ""
    caption = _caption(prompt) if sounds else None
    after, diff, fresh = [], [], iter(spoken)
    for segment in parse(prompt).segments:
        words = segment.words
        if segment.kind is Kind.SPEECH:
            words = next(fresh)
        elif segment == caption:
            words = sounds
        after.append(segment.opening + words + segment.closing)
        diff += [Change("same", segment.opening), *_word_changes(segment.words, words), Change("same", segment.closing)]
    text = "".join(after)
    if len(text) > MAX_PROMPT:
        raise RewriteError(f"The new prompt has {len(text)} characters, and {MAX_PROMPT} are taken.", _ASK_AGAIN)
    return Rewrite(prompt, text, lint(text, dialect, seconds, language), _merged(diff))


_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」", "‘": "’"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")  # also halves of characters, which JSON may hold


def _read_answer(answer: str, count: int) -> tuple[list[str], str]:
    """The speeches in a model's answer, and the sounds ("" without)."""
    if len(answer) > MAX_ANSWER:
        raise RewriteError(f"The answer has {len(answer)} characters: that is no list of speeches.", _ASK_AGAIN)
    spoken = answer.rpartition("</think>")[2]  # what a reasoning model thinks first
    readings = [reading for value in _json_values(spoken) if (reading := _speeches_of(value))]
    for reading in reversed(readings):
        if len(reading[0]) == count:
            return reading
    if readings:
        wrong = len(readings[-1][0])
        raise RewriteError(f"The model wrote {wrong} speeches, and the prompt has {count}.", _ASK_AGAIN)
    raise RewriteError("The answer holds no JSON list of speeches.", _ASK_AGAIN)


def _json_values(text: str) -> Iterator[object]:
    """Every JSON list and object in `text` that is not inside another."""
    decoder = json.JSONDecoder(strict=False)
    position = 0
    for _ in range(_MOST_READINGS):
        opening = re.compile(r"[\[{]").search(text, position)
        if not opening:
            return
        try:
            value, position = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            position = opening.end()
        else:
            yield value


def _speeches_of(value: object) -> tuple[list[str], str] | None:
    """The speeches, and the sounds, that a JSON value holds: a list, an object with one, or an object of texts."""
    if isinstance(value, list):
        texts = [_text_of(item) for item in value]
        return ([text for text in texts if text is not None], "") if texts and None not in texts else None
    if not isinstance(value, dict):
        return None
    sounds = value.get("ambience")
    found = value.get("speeches") or next((inner for inner in value.values() if isinstance(inner, list)), None)
    speeches = _speeches_of(found if found is not None else [text for key, text in value.items() if key.isdigit()])
    return (speeches[0], sounds if isinstance(sounds, str) else "") if speeches else None


def _text_of(item: object) -> str | None:
    """A speech of a list: a text, or an object that holds one under a name that models use."""
    if isinstance(item, dict):
        item = next((item[name] for name in ("speech", "words", "text", "line") if name in item), None)
    return item if isinstance(item, str) else None


def _spoken(words: str, number: int) -> str:
    """A speech of the answer, out of the tags or quotation marks that were put around all of it."""
    text = " ".join(_CONTROL.sub(" ", words).split())
    wrapped = parse(text)
    if len(wrapped.segments) == 1 and wrapped.speeches:
        text = wrapped.speeches[0].words.strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    _refuse_tags(text, f"Speech {number} of the answer")
    if not re.search(r"[^\W_]", text):
        raise RewriteError(f"Speech {number} of the answer is empty.", _ASK_AGAIN)
    return text


def _sounds(words: str) -> str:
    """The new words of the caption."""
    text = " ".join(_CONTROL.sub(" ", words).split()).removeprefix(CAPTION_PREFIX).lstrip()
    _refuse_tags(text, "The ambience of the answer")
    return text


def _refuse_tags(text: str, where: str) -> None:
    tag = next((tag for tag in read_tags(text).tags if tag.mark != CAPTION_PREFIX), None)
    if tag:
        raise RewriteError(f"{where} has a tag in it, {text[tag.start : tag.end]}.", _ASK_AGAIN)


# ------------------------------------------------------------------------------------------------- the difference

_TOKEN = re.compile(r"\s*(?:\w+(?:['’-]\w+)*|[^\w\s])|\s+")
_MOST_PAIRS = 1_000_000  # of words compared; guessed: a second. Beyond it a speech is shown as wholly replaced


def _word_changes(before: str, after: str) -> list[Change]:
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    if before == after:
        return [Change("same", before)]
    if len(old) * len(new) > _MOST_PAIRS:
        return [Change("removed", before), Change("added", after)]
    changes = []
    for kind, start, end, new_start, new_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            changes.append(Change("same", "".join(old[start:end])))
        else:
            changes.append(Change("removed", "".join(old[start:end])))
            changes.append(Change("added", "".join(new[new_start:new_end])))
    return changes


def _merged(changes: Sequence[Change]) -> tuple[Change, ...]:
    """The same with neighbours of a kind made one, and nothing empty."""
    merged: list[Change] = []
    for change in changes:
        if merged and merged[-1].kind == change.kind:
            merged[-1] = Change(change.kind, merged[-1].text + change.text)
        elif change.text:
            merged.append(change)
    return tuple(merged)


# ----------------------------------------------------------------------------------------------------- all in one


def ask(
    endpoint: Endpoint,
    prompt: str,
    theme: str,
    *,
    dialect: Dialect,
    seconds: float,
    language: str | None = None,
    ambience: bool = False,
) -> Rewrite:
    """The prompt rewritten by the model at `endpoint`; blocks until it has answered. Arguments as in `instruction`.

    Raises:
        RewriteError: the server cannot be reached, refuses, or its answer cannot be taken.
        PromptError: nothing is spoken in the prompt.
        InvalidInputError: the theme is empty or too long.
    """
    question = instruction(prompt, theme, seconds, language, ambience=ambience)
    answer = endpoint.answer(question)
    return apply_answer(prompt, answer, dialect=dialect, seconds=seconds, language=language, ambience=ambience)
