"""The tag grammar: parsing without loss, dialects, stripping; and how long speech takes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi_studio.prompt import Dialect, Kind, Segment, parse, strip_tags, to_dialect
from ovi_studio.speech import detect_language, speech_seconds, word_budget

PIECES = st.sampled_from(
    [
        "<S>",
        "<E>",
        "<AUDCAP>",
        "<ENDAUDCAP>",
        "Audio:",
        "Audio: ",
        "<s>",
        "</S>",
        "<",
        ">",
        '"',
        "says ",
        "a b",
        ". ",
        "\n",
        "é",
    ]
)
SOUP = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join))


@given(SOUP)
def test_printing_gives_back_what_was_parsed(text: str) -> None:
    prompt = parse(text)
    assert str(prompt) == text
    position = 0
    for segment in prompt.segments:
        assert segment.start == position < segment.end
        assert text[segment.start : segment.end] == segment.text
        assert text[segment.words_start :].startswith(segment.words)
        position = segment.end
    assert position == len(text)


def test_segments_have_kinds_words_and_positions() -> None:
    prompt = parse("He says <S>Hi<E>. <AUDCAP>wind<ENDAUDCAP>")
    assert prompt.segments == (
        Segment(Kind.TEXT, 0, "He says "),
        Segment(Kind.SPEECH, 8, "Hi", "<S>", "<E>"),
        Segment(Kind.TEXT, 16, ". "),
        Segment(Kind.CAPTION, 18, "wind", "<AUDCAP>", "<ENDAUDCAP>"),
    )
    assert [speech.words for speech in prompt.speeches] == ["Hi"]
    assert [caption.words_start for caption in prompt.captions] == [26]


@pytest.mark.parametrize(
    "text", ["<S>never closed", "closed <E> only", "<AUDCAP>open", "MyAudio: x", "audio: x", "<s>x</s>"]
)
def test_what_is_no_tag_is_text(text: str) -> None:
    assert [segment.kind for segment in parse(text).segments] == [Kind.TEXT]


def test_prefix_inside_speech_is_spoken() -> None:
    text = "<S>Audio: one two<E> ok"
    assert [segment.kind for segment in parse(text).segments] == [Kind.SPEECH, Kind.TEXT]
    assert to_dialect(text, Dialect.AUDCAP) == text


@given(st.text(alphabet="ab <>\n:.", max_size=40), st.text(alphabet="ab \n.", max_size=20).map(str.lstrip))
def test_a_caption_at_the_end_goes_to_the_other_dialect_and_back(scene: str, sounds: str) -> None:
    tagged = f"{scene} <AUDCAP>{sounds}<ENDAUDCAP>"
    prefixed = to_dialect(tagged, Dialect.AUDIO_PREFIX)
    assert prefixed == f"{scene} Audio: {sounds}"
    assert to_dialect(prefixed, Dialect.AUDCAP) == tagged


@given(SOUP.filter(lambda text: "<ENDAUDCAP>" not in text), st.sampled_from(Dialect))
def test_a_prompt_in_its_dialect_stays_as_it_is(text: str, dialect: Dialect) -> None:
    once = to_dialect(text, dialect)
    assert to_dialect(once, dialect) == once


def test_an_image_model_sees_the_scene_only() -> None:
    assert strip_tags("A cat. <S>Meow<E> It yawns. Audio: purring <S>mew<E>") == "A cat.  It yawns."


@pytest.mark.parametrize("unit", ["<S>", "<AUDCAP>", "<S>a<E>", "<", " ", "<AUDCAP>a<ENDAUDCAP>", "<S><AUDCAP>"])
def test_a_megabyte_is_parsed_in_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    begin = time.process_time()
    assert len(str(parse(text))) == len(text)
    assert time.process_time() - begin < 10  # quadratic would take hours


# ------------------------------------------------------------------------------------------------- speaking


@pytest.mark.parametrize(
    ("words", "language"),
    [
        ("Hello there", "en"), ("Привет", "ru"), ("你好", "zh"), ("こんにちは世界", "ja"), ("안녕하세요", "ko"),
        ("สวัสดี", "th"), ("مرحبا", "ar"), ("שלום", "he"), ("καλημέρα", "el"), ("नमस्ते", "hi"), ("", "en"),
    ],
)  # fmt: skip
def test_the_script_tells_the_language(words: str, language: str) -> None:
    assert detect_language(words) == language


def test_a_minute_of_english_is_183_words() -> None:
    assert speech_seconds("word " * 183, "en") == pytest.approx(60)
    assert word_budget(60.01, "en") == 183


def test_scripts_without_spaces_are_counted_by_character() -> None:
    assert speech_seconds("天气很好", "zh") == pytest.approx(4 * 60 / (255 * 183 / 228))
    assert speech_seconds("天气很好。") == speech_seconds("天气很好", "zh")
    assert speech_seconds("天气很好 and cold") > speech_seconds("天气很好")


def test_contractions_and_hyphens_make_one_word() -> None:
    assert speech_seconds("don't re-enter") == speech_seconds("two words")


def test_an_unstudied_language_gets_the_mean() -> None:
    assert speech_seconds("saya suka ini", "id") == pytest.approx(3 * 60 / (184 * 183 / 228))
    assert speech_seconds("olá", "pt-BR") == speech_seconds("olá", "pt")


@pytest.mark.parametrize("language", ["en", "fi", "zh", "ja", "ko", "th", "xx", None])
def test_the_budget_fits_and_no_more_would(language: str | None) -> None:
    budget = word_budget(5, language)
    unit = "字" if language in ("zh", "ja", "ko", "th") else "word "
    assert speech_seconds(unit * budget, language) <= 5 < speech_seconds(unit * (budget + 1), language)


def test_nothing_takes_no_time() -> None:
    assert speech_seconds(" … !") == 0
    assert word_budget(0) == 0
