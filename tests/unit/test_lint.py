"""The linter: finds each known fault, repairs what it says it can, and is silent on good prompts."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovi_studio.errors import PromptError
from ovi_studio.lint import Code, Severity, lint, repair
from ovi_studio.prompt import Dialect
from ovi_studio.quotes import quoted_speech
from tests.unit.prompt_tables import FAULTY, FIVE, GOOD, Faulty
from tests.unit.test_prompt import SOUP


@pytest.mark.parametrize("case", FAULTY.values(), ids=FAULTY)
def test_a_known_fault_is_found(case: Faulty) -> None:
    findings = lint(case.text, case.dialect, case.seconds)
    assert {finding.code for finding in findings} == case.codes
    for finding in findings:
        assert 0 <= finding.start <= finding.end <= len(case.text)
        assert finding.message.endswith(".")


@pytest.mark.parametrize("case", FAULTY.values(), ids=FAULTY)
def test_a_repair_leaves_nothing_to_find(case: Faulty) -> None:
    findings = lint(case.text, case.dialect, case.seconds)
    repaired = repair(case.text, findings)
    assert repaired == (case.text if case.repaired is None else case.repaired)
    left = lint(repaired, case.dialect, case.seconds)
    assert [finding.code for finding in left] == [finding.code for finding in findings if not finding.repair]


@pytest.mark.parametrize(("dialect", "seconds", "text"), GOOD)
def test_a_good_prompt_is_let_be(dialect: Dialect, seconds: float, text: str) -> None:
    assert lint(text, dialect, seconds) == ()


def test_the_tables_are_as_large_as_they_claim() -> None:
    assert len(FAULTY) >= 40
    assert all(sum(good[0] is dialect for good in GOOD) >= 12 for dialect in Dialect)
    assert {code for case in FAULTY.values() for code in case.codes} == set(Code)


@pytest.mark.parametrize(("dialect", "seconds", "text"), GOOD)
def test_damage_to_a_good_prompt_is_found(dialect: Dialect, seconds: float, text: str) -> None:
    """Take away or misspell one tag of a good prompt: that must show."""
    for tag in ("<S>", "<E>", "<AUDCAP>", "<ENDAUDCAP>"):
        at = text.find(tag)
        if at >= 0:
            for worse in ("", tag.lower(), tag.replace("<", "</")):
                damaged = text[:at] + worse + text[at + len(tag) :]
                assert lint(damaged, dialect, seconds), damaged
            assert lint(text.replace(tag, tag * 2), dialect, seconds)


def test_positions_are_those_of_the_fault() -> None:
    text = 'A man <s>hi<E> says "good morning". Audio: wind'
    found = {finding.code: text[finding.start : finding.end] for finding in lint(text, Dialect.AUDCAP, FIVE)}
    assert found == {
        Code.MALFORMED_TAG: "<s>",
        Code.QUOTED_SPEECH: '"good morning"',
        Code.OTHER_DIALECT: "Audio: wind",
    }


def test_what_is_not_read_begins_where_the_tokens_end() -> None:
    (finding,) = lint("é" * 3000, Dialect.AUDCAP, FIVE)
    assert (finding.code, finding.start, finding.end) == (Code.TOO_LONG, 1024, 3000)
    assert lint("e" * 2048, Dialect.AUDCAP, FIVE) == ()


def test_one_finding_can_be_repaired_alone() -> None:
    text = 'He says "go on" and <S>stop'
    quoted, unclosed = lint(text, Dialect.AUDCAP, FIVE)
    assert repair(text, [quoted]) == "He says <S>go on<E> and <S>stop"
    assert repair(text, [unclosed]) == 'He says "go on" and <S>stop<E>'
    assert repair(text, []) == text


def test_repairs_of_another_text_are_refused() -> None:
    findings = lint("A long prompt that ends <S>badly", Dialect.AUDCAP, FIVE)
    with pytest.raises(PromptError):
        repair("short", findings)


def test_only_what_cannot_be_meant_is_an_error() -> None:
    def severities(text: str) -> set[Severity]:
        return {finding.severity for finding in lint(text, Dialect.AUDCAP, FIVE)}

    assert severities("He says <S>go on") == {Severity.ERROR}
    assert severities("") == {Severity.ERROR}
    assert severities('He says "go on".') == {Severity.WARNING}


def test_the_language_decides_what_fits() -> None:
    spoken = "<S>" + "sana " * 15 + "<E>"
    assert not lint(spoken, Dialect.AUDCAP, FIVE, "en")
    assert [finding.code for finding in lint(spoken, Dialect.AUDCAP, FIVE, "fi")] == [Code.TOO_MANY_WORDS]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(SOUP, st.sampled_from(Dialect))
def test_repairing_any_soup_comes_to_an_end(text: str, dialect: Dialect) -> None:
    for _ in range(8):
        findings = lint(text, dialect, FIVE)
        if not any(finding.repair for finding in findings):
            break
        text = repair(text, findings)
    assert not any(finding.repair for finding in lint(text, dialect, FIVE)), text


@pytest.mark.parametrize("unit", ["<", '"', "\n", "He walks on. ", "“hi ", "<S>a<E> "])
def test_a_megabyte_takes_seconds(unit: str) -> None:
    begin = time.process_time()
    lint(unit * (1_000_000 // len(unit)), Dialect.AUDCAP, FIVE)
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(
    "unit",
    ["<S>", "<E>", "<AUDCAP>", "<ENDAUDCAP>", "Audio: a\n", "<S>a <AUDCAP>b", "<b>a</b>", "<s></s>", 'says "a b" <S>'],
)
def test_time_grows_with_the_number_of_faults_only(unit: str) -> None:
    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        begin = time.process_time()
        repair(text, lint(text, Dialect.AUDCAP, FIVE))
        return time.process_time() - begin

    small = min(seconds(10_000) for _ in range(3))
    large = min(seconds(80_000) for _ in range(3))
    assert large < 40 * max(small, 0.02)  # 8 if linear, 64 if quadratic


# ----------------------------------------------------------------------------------------- speech or writing

SPOKEN = """
A man says "Hello there".
"We should go," she whispers.
She turns. "I can't believe it's over."
He shouts 'Get out of here!' and runs
The woman asks: "Where are you going?"
MAN: "come with me"
Maria, wearing a red cap, says "hi everyone"
The man beside the sign says "Come in."
In front of a sign, a woman smiles and says "Hello"
A robot says “I am alive.”
«Bonjour à tous» dit-elle en souriant
女性が「こんにちは」と言う。
남자가 "안녕하세요"라고 말한다
Женщина говорит: «Добрый день»
El hombre dice "no puedo más"
He says in a calm voice: "Hello"
The dogs' owner says, 'The dogs' bowls are empty.'
A neon sign flickers as a woman says "We're closed."
"Run!" The crowd scatters.
A man in a jacket leans in, "I know what you did."
"Stop right there!" a policeman shouts.
The teacher tells the class "open your books"
""".strip().splitlines()

WRITTEN = """
A sign that says "Welcome to Ohio."
A woman holding a sign that says "We want justice!" walks.
The man is watching "The Matrix" on a 24" monitor.
He sings "Let It Be" on stage.
a T-shirt saying "I love NY"
the note says "Back in five minutes."
She shouts near the "Lucky Star" diner.
A band called "The Quiet Ones" plays rock 'n' roll.
A billboard with "Think different." above the road
Her mug says "World's Best Mom!"
A sign on the wall. "No Smoking."
"Welcome to Ohio." glows on a billboard.
Text on screen: "Chapter one begins here."
humming "Here comes the sun."
"OPEN" reads the sign.
A house said to be "haunted"
He asks about the "incident".
The cake says "Happy Birthday, Tom!" in blue icing.
The headline screams "Aliens land in Paris!"
the children's choir and the 'old town' square
""".strip().splitlines()


@pytest.mark.parametrize("text", SPOKEN)
def test_quoted_speech_is_heard(text: str) -> None:
    assert len(list(quoted_speech(text, 0, len(text)))) == 1


@pytest.mark.parametrize("text", WRITTEN)
def test_what_is_written_is_not_speech(text: str) -> None:
    assert not list(quoted_speech(text, 0, len(text)))
