"""The script view: rows of who, how and words, read from any text and written back to the character."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ovi_studio.errors import InvalidInputError, PromptError
from ovi_studio.presets import builtin_presets
from ovi_studio.prompt import Dialect, clean_text, parse, to_dialect
from ovi_studio.request import MAX_PROMPT
from ovi_studio.script import COLUMNS, MAX_LINES, Line, Script

PIECES = st.sampled_from(
    [
        *("<S>", "<E>", "<S>Hello<E>", "<AUDCAP>", "<ENDAUDCAP>", "<AUDCAP>wind<ENDAUDCAP>", "Audio:", "Audio: ", "<"),
        *(
            ">",
            "\t",
            "\n",
            "\n\n",
            " ",
            ". ",
            ", ",
            "; ",
            ": ",
            "S>",
            "A fox ",
            "says ",
            "and ",
            "she ",
            "in red hats ",
        ),
        *("男人", "说：", "é", "…", "Mr. ", "smiles"),
    ]
)
SOUP = st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=14).map("".join)
DIALECTS = st.sampled_from(Dialect)
FOX = "Snow falls. A fox turns and says, <S>Hello<E> A crow answers, <S>Go away!<E> It flies off. Audio: Wind."


# ------------------------------------------------------------------------------------------- reading and writing


@given(SOUP, DIALECTS)
@example("<AUDCAP>a<ENDAUDCAP> <S>b<E> <AUDCAP>c<ENDAUDCAP> d", Dialect.AUDIO_PREFIX)
@example("He says <S>Hi<E>. <AUDCAP> wind <ENDAUDCAP> \n", Dialect.AUDIO_PREFIX)
@example("He says <S>Hi. Audio: <S>b<E> wind<ENDAUDCAP>", Dialect.AUDCAP)
@example("<AUDCAP><ENDAUDCAP>", Dialect.AUDIO_PREFIX)
def test_no_text_loses_anything(text: str, dialect: Dialect) -> None:
    assert Script.from_prompt(text).to_prompt(dialect) == to_dialect(text, dialect)


@given(SOUP)
def test_json_gives_back_every_field(text: str) -> None:
    script = Script.from_prompt(text)
    assert Script.from_data(json.loads(json.dumps(script.to_data()))) == script


@given(SOUP)
def test_rows_hold_the_speeches_of_the_prompt(text: str) -> None:
    spoken = [line.words for line in Script.from_prompt(text).lines if line.words is not None]
    assert spoken == [speech.words for speech in parse(text).speeches]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("", Script()),
        ("Rain on a roof.", Script(ending="Rain on a roof.")),
        ("<S>Hi<E>", Script((Line(words="Hi"),))),
        ("<S>One<E> <S>Two<E>", Script((Line(words="One"), Line(" ", words="Two")))),
        (
            "He says <S>Hi<E> and goes. <AUDCAP>Wind.<ENDAUDCAP>\n",
            Script((Line("", "He ", "says ", "Hi"),), " and goes. ", "Wind.", "<AUDCAP>", "\n"),
        ),
        ("Rain. Audio:\n  drops", Script((), "Rain. ", "drops", "Audio:\n  ")),
        ("Rain. Audio:", Script((), "Rain. ", "", "Audio:")),
        (
            "A wide street.\n \nNight.\n\nAnna: <S>Hi<E>\n\nShe goes.\n\nDark.",
            Script(
                (
                    Line("A wide street.\n \n", words=None),
                    Line("Night.\n\n", words=None),
                    Line("", "Anna", ": ", "Hi"),
                    Line("\n\nShe goes.\n\n", words=None),
                ),
                "Dark.",
            ),
        ),
        ("Rain.\n\n", Script(ending="Rain.\n\n")),
    ],
)
def test_fields_are_the_text_to_the_character(text: str, script: Script) -> None:
    assert Script.from_prompt(text) == script


# What stands before a speech, and how it is to be read: lead | who | how.
CELLS = [
    "|A fox |says ",
    "|She |looks straight into the camera, smiles with her eyes and says in a warm, unhurried voice, ",
    "Its beam slides over marble heads. One of them sneezes, |the guard |freezes and whispers, ",
    "|He |waits, turns the beam back and forth, then walks on faster and mutters, ",
    "Sparks run over her goggles; |she |stops, holds it up to the furnace and murmurs, ",
    "She breathes out, the vase swells, and |she |says to somebody out of frame, ",
    "A kite rises into a pale morning sky; |a girl in a green raincoat |runs after its string and calls out, ",
    "The string slips from her hand, |she |stops, laughs and shouts after it, ",
    "Two mechanics in a depot. |The tall man on the left, in blue overalls, |wipes his hands and asks, ",
    "|The short woman on the right, in a yellow vest, |lifts a paper bag and answers, ",
    "|The tall man |shakes his head and says, ",
    "|The man with the round glasses |slowly nods and says, ",
    "|A woman in sunglasses and a hat |smiles and says, ",
    "|A boy and a girl |say together, ",
    "As the camera pushes in, |an old fisherman |says: ",
    "Smiling, |she |says ",
    "Close-up of |a woman in a red dress |saying ",
    "|Mr. Fox |grins and whispers ",
    "The camera moves past them as |a waiter, carrying a tray of glasses, |calls out: ",
    "|A man |is standing by the door and says ",
    "From off screen, |a child's voice |asks, ",
    "|The robot's voice |says ",
    "|A cat |sits on the sofa, looks at the camera and says ",
    "|Anna|: ",
    "Night. |A deep male voice|: ",
    "|Ein alter Mann |sagt ",
    "|男人|说：",
    "|Both kids |shout, ",
    "She turns around. ||",
    " ||",
    "||whispers ",
    "Snow. ||Then suddenly, ",
    "||A man turned and said, ",
    "Snow.\n|A fox\t|quietly yips, ",
    "In the hall\t|a king\t|fumes, ",
]


@pytest.mark.parametrize("cells", CELLS)
def test_the_sentence_before_a_speech_is_read_as_a_person_would(cells: str) -> None:
    line = Script.from_prompt(cells.replace("|", "") + "<S>Hi<E>").lines[0]
    assert f"{line.lead}|{line.who}|{line.how}" == cells


def test_reading_takes_linear_time() -> None:
    for piece in (
        "A fox, in red, ",
        ".",
        "\n\n",
        "\t",
        "<S>",
        "says ",
        "in x, ",
        "a-",
        " ",
        "and the ",
        "\n ",
        "男人说",
    ):
        text = piece * (200_000 // len(piece)) + "<S>Hi<E>"
        start = time.perf_counter()
        Script.from_prompt(text)
        assert time.perf_counter() - start < 3, piece


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Rain <AUDCAP>drops<ENDAUDCAP> and then <S>Hi<E>", "In row 1 stands a <AUDCAP>"),
        ("<S>a <S>b<E>", "In row 1 stands a <S>"),
        ("Rain <AUDCAP>drops<ENDAUDCAP>. She goes.", "After the last row stands a <AUDCAP>"),
        ("<AUDCAP>a<ENDAUDCAP> <AUDCAP>b<ENDAUDCAP>", "After the last row stands a <AUDCAP>"),
        ("He says <S>never closed", "After the last row stands a <S>"),
        ("closed <E> only", "After the last row stands a <E>"),
        ("Rain. Audio: drops <S>Hi<E>", "In the audio caption stands a <S>"),
        ("<S>a<E>" * (MAX_LINES + 1), f"has {MAX_LINES + 1} rows"),
        ("x" * (MAX_PROMPT + 1), f"has {MAX_PROMPT + 1} characters"),
    ],
)
def test_what_has_no_place_in_a_script_is_told(text: str, why: str) -> None:
    script = Script.from_prompt(text)
    assert why in script.misfit
    assert not Script.fits(text)
    with pytest.raises(PromptError):
        script.with_ambience("wind")
    with pytest.raises(PromptError):
        script.with_line_added(0)


def test_presets_fit() -> None:
    for preset in builtin_presets():
        for text in preset.prompts.values():
            assert Script.from_prompt(text).misfit == ""


# ------------------------------------------------------------------------------------------------------- editing


def written(script: Script) -> str:
    return script.to_prompt(Dialect.AUDIO_PREFIX)


def test_typing_a_script_from_nothing() -> None:
    script = Script().with_line_added(0)
    assert written(script) == "<S><E>"
    script = script.with_cell(0, "who", " A  fox ").with_cell(0, "how", "says").with_cell(0, "words", "Hello")
    assert written(script) == "A fox says <S>Hello<E>"
    script = script.with_cell(0, "lead", "Snow falls.").with_ambience("Audio: soft wind ").with_ending("It runs off.")
    assert written(script) == "Snow falls. A fox says <S>Hello<E> It runs off. Audio: soft wind"
    assert script.to_prompt(Dialect.AUDCAP).endswith("<E> It runs off. <AUDCAP>soft wind<ENDAUDCAP>")
    script = script.with_line_added(1, Line("", "A crow", "answers,", "Go!")).with_ambience("").with_ending("")
    assert written(script) == "Snow falls. A fox says <S>Hello<E> A crow answers, <S>Go!<E>"


def test_other_cells_keep_their_white_space() -> None:
    text = "A  fox\nsays  <S> Hi <E>\nA crow  answers <S>Go<E>\n\n"
    script = Script.from_prompt(text)
    assert written(script.with_cell(0, "words", "Ho")) == text.replace(" Hi ", "Ho")
    assert written(script.with_cell(1, "how", "caws")) == "A  fox\nsays  <S> Hi <E>\nA crow caws <S>Go<E>\n\n"
    for row in range(2):
        for column in COLUMNS:
            assert script.with_cell(row, column, f" {getattr(script.lines[row], column)} ") is script


def test_cells_that_the_words_do_not_tell_are_kept_apart_by_a_tab() -> None:
    script = Script().with_line_added(0, Line("In the hall", "Grandma Zorblax", "zorbs", "Zorb"))
    assert written(script) == "In the hall\tGrandma Zorblax\tzorbs <S>Zorb<E>"
    line = Script.from_prompt(written(script)).lines[0]
    assert (line.lead.strip(), line.who.strip(), line.how.strip()) == ("In the hall", "Grandma Zorblax", "zorbs")
    assert clean_text(written(script)) == "In the hall Grandma Zorblax zorbs <S>Zorb<E>"
    assert written(script.with_cell(0, "lead", "").with_cell(0, "how", "says")) == "Grandma Zorblax says <S>Zorb<E>"


def test_cells_can_be_typed_in_any_order() -> None:
    script = Script().with_line_added(0).with_cell(0, "lead", "In the hall").with_cell(0, "who", "Zorblax")
    assert [cell.strip() for cell in (script.lines[0].lead, script.lines[0].who)] == ["In the hall", "Zorblax"]
    script = script.with_cell(0, "how", "zorbs").with_cell(0, "words", "Zorb")
    assert clean_text(written(script)) == "In the hall Zorblax zorbs <S>Zorb<E>"


def test_rows_are_added_moved_and_removed() -> None:
    script = Script.from_prompt(FOX)
    moved = script.with_line_moved(0, 1)
    assert written(moved) == (
        "A crow answers, <S>Go away!<E> Snow falls. A fox turns and says, <S>Hello<E> It flies off. Audio: Wind."
    )
    assert moved.with_line_moved(1, 0) == script
    assert (
        written(script.with_line_removed(1))
        == "Snow falls. A fox turns and says, <S>Hello<E> It flies off. Audio: Wind."
    )
    assert written(script.with_line_removed(0)).startswith("A crow answers, <S>")


def test_descriptions_are_paragraphs() -> None:
    script = Script.from_prompt(FOX).with_line_added(1, Line("The moon rises.", words=None))
    assert "<S>Hello<E> The moon rises.\n\nA crow answers," in written(script)
    assert script.lines[1] == Line(" The moon rises.\n\n", words=None)
    assert len(script.with_cell(1, "lead", "").lines) == 2
    assert "<E> The moon rises. <S>Wow<E> A crow" in written(script.with_cell(1, "words", "Wow"))
    last = Script.from_prompt("He says <S>Hi<E>").with_line_added(1, Line("He goes.", words=None))
    assert (len(last.lines), last.ending) == (1, " He goes.")


def test_chinese_needs_no_spaces() -> None:
    script = Script().with_line_added(0, Line("", "男人", "笑着说：", "你好"))
    assert written(script) in ("男人笑着说： <S>你好<E>", "男人\t笑着说： <S>你好<E>")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("typed", ["a <E> b", "<S>", "<AUDCAP>", "x<ENDAUDCAP>"])
def test_tags_cannot_be_typed(column: str, typed: str) -> None:
    script = Script.from_prompt(FOX)
    with pytest.raises(PromptError, match="cannot be typed"):
        script.with_cell(0, column, typed)
    with pytest.raises(PromptError):
        script.with_ambience(typed)
    with pytest.raises(PromptError):
        script.with_ending(typed)
    with pytest.raises(PromptError):
        script.with_line_added(0, Line(**{column: typed}))


def test_audio_prefix_is_a_word_in_a_speech_and_refused_elsewhere() -> None:
    script = Script.from_prompt(FOX)
    assert script.with_cell(0, "words", "Audio: one, two").lines[0].words == "Audio: one, two"
    with pytest.raises(PromptError):
        script.with_cell(0, "lead", "Audio: one, two")
    with pytest.raises(PromptError, match="meet"):
        script.with_cell(0, "who", "Audio").with_cell(0, "how", ":")


def test_what_cannot_be_done_is_said() -> None:
    script = Script.from_prompt(FOX)
    for edit in (
        lambda: script.with_cell(2, "who", "x"),
        lambda: script.with_cell(-1, "who", "x"),
        lambda: script.with_cell(0, "text", "x"),
        lambda: script.with_line_added(3),
        lambda: script.with_line_removed(2),
        lambda: script.with_line_moved(0, 2),
        lambda: script.with_cell(0, "words", "x" * MAX_PROMPT),
    ):
        with pytest.raises(InvalidInputError):
            edit()
    full = Script.from_prompt("<S>a<E> " * MAX_LINES)
    with pytest.raises(PromptError, match="rows"):
        full.with_line_added(0)


ROWS = st.integers(0, 4)
TYPED = st.one_of(SOUP, PIECES, st.sampled_from(["Zorblax", "She. He", "says", "A fox says", "Audio", ":", "<S", ">x"]))
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("with_cell"), ROWS, st.sampled_from(COLUMNS), TYPED),
        st.tuples(st.just("with_line_added"), ROWS),
        st.tuples(st.just("with_line_added"), ROWS, st.builds(Line, TYPED, TYPED, TYPED, st.one_of(st.none(), TYPED))),
        st.tuples(st.just("with_line_removed"), ROWS),
        st.tuples(st.just("with_line_moved"), ROWS, ROWS),
        st.tuples(st.just("with_ambience"), TYPED),
        st.tuples(st.just("with_ending"), TYPED),
    ),
    max_size=6,
)


@given(SOUP, EDITS, DIALECTS)
def test_an_edited_script_survives_the_way_through_a_prompt(text: str, edits: list, dialect: Dialect) -> None:
    script = Script.from_prompt(text)
    for method, *arguments in edits:
        with suppress(InvalidInputError):
            script = getattr(script, method)(*arguments)
            again = Script.from_prompt(script.to_prompt(dialect))
            assert (again.lines, again.ending) == (script.lines, script.ending)
            assert (again.ambience or "").strip() == (script.ambience or "").strip()
            assert Script.from_data(script.to_data()) == script


@given(st.builds(Line, TYPED, TYPED, TYPED, TYPED))
def test_no_typed_word_is_lost(line: Line) -> None:
    with suppress(PromptError):
        added = Script().with_line_added(0, line).lines[0]
        cells = (line.lead, line.who, line.how)
        assert "".join(added.before.split()) == "".join("".join(cells).split())
        assert added.words == " ".join(line.words.split())
        assert added.before == added.before.lstrip()


PLAIN = st.text("abcdefgh ", min_size=1).map(str.strip).filter(bool)


@given(PLAIN, PLAIN, PLAIN, PLAIN)
def test_cells_with_a_speaker_stay_as_they_were_typed(lead: str, who: str, how: str, words: str) -> None:
    line = Script().with_line_added(0, Line(lead, who, how, words)).lines[0]
    assert [" ".join(cell.split()) for cell in (line.lead, line.who, line.how, line.words)] == [
        " ".join(cell.split()) for cell in (lead, who, how, words)
    ]


# --------------------------------------------------------------------------------------------------- strange data

GOOD = Script.from_prompt(FOX).to_data()
LINE = {"lead": "", "who": "", "how": "", "words": ""}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        {**GOOD, "more": 1},
        {**GOOD, "lines": None},
        {**GOOD, "lines": "ab"},
        {**GOOD, "lines": [1]},
        {**GOOD, "lines": [LINE] * (MAX_LINES + 1)},
        {**GOOD, "lines": [{**LINE, "who": None}]},
        {**GOOD, "lines": [{**LINE, "words": 5}]},
        {**GOOD, "lines": [{**LINE, "words": "a<E>b"}]},
        {**GOOD, "lines": [{**LINE, "extra": ""}]},
        {**GOOD, "ending": 1},
        {**GOOD, "ending": "x" * (MAX_PROMPT + 1)},
        {**GOOD, "lines": [{**LINE, "words": "x" * 999}] * 20},
        {**GOOD, "ambience": ["x"]},
        {**GOOD, "caption_opening": "<script>"},
        {**GOOD, "caption_opening": ""},
        {**GOOD, "ambience": None, "tail": "x"},
        {**GOOD, "tail": "x"},
    ],
)
def test_strange_data_is_refused(data: object) -> None:
    with pytest.raises(InvalidInputError, match="no script"):
        Script.from_data(data)
