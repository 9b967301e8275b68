"""Writing a prompt on the page: helpers, colours, remarks, the budget of words, the script view."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from ovi_studio.prompt import parse
from tests.browser.visitor import Visitor

pytestmark = pytest.mark.browser

Visit = Callable[..., Visitor]

NASTY = (
    "",
    "plain",
    "<S>a<E><S>b<E>",
    "<S>never closed. Audio: rain",
    "<S>a<S>b<E>c<E>",
    "<AUDCAP>x<ENDAUDCAP> Audio: y <S>z<E>",
    "an Audio: b <AUDCAP>c<ENDAUDCAP>",
    "preAudio: no, _Audio: no, éAudio: yes",
    "Audio:\x1c\x85\ufeff\u3000x",
    "Audio:\ufeff x",
    "<s>small<e> < S>spaced< E>",
    "<S><E><AUDCAP><ENDAUDCAP>",
    "<AUDCAP><S>in<E><ENDAUDCAP>",
    "👩‍🚀 <S>𝔘nicode 你好<E> Audio: 🎵",
    "<img src=x onerror=window.hacked=1><S></span><script>1</script><E>",
    "Audio:\n\nlines\n<S>a\nb<E>",
    "<S>" * 2000,
    "Audio:" * 500,
)


def test_colours_follow_the_grammar(visit: Visit, studio: str) -> None:
    """What the browser colours is what `parse` reads, and behind the text stands the text."""
    visitor = visit(studio)
    read = "(area, text) => area.closest('.ovi-editor').parentElement.segments(text)"
    for text in NASTY:
        wanted = [
            {"kind": str(each.kind), "text": each.words}
            | ({"opening": each.opening, "closing": each.closing} if each.opening else {})
            for each in parse(text).segments
        ]
        assert visitor.prompt.evaluate(read, text) == wanted, text
    for text in ("a <S>b<E> c\n\nAudio: d  e", NASTY[14], NASTY[13]):
        visitor.write(text)
        expect(visitor.page.locator(".ovi-ink")).to_have_text(text, use_inner_text=False)
    assert visitor.page.locator(".ovi-ink .ovi-speech").all_inner_texts() == ["<S>𝔘nicode 你好<E>"]
    assert visitor.page.evaluate("window.hacked") is None


def test_speech_helper(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.write("A man says hello there.")
    visitor.select("hello there")
    visitor.button("Speech").click()
    visitor.expect_prompt("A man says <S>hello there<E>.")
    visitor.page.keyboard.press("Control+z")
    visitor.expect_prompt("A man says hello there.")

    visitor.caret(len("A man says "))
    visitor.page.keyboard.press("Alt+s")
    visitor.page.keyboard.type("well, ")
    visitor.expect_prompt("A man says <S>well, <E>hello there.")


def test_sound_helper_writes_the_dialect_of_the_model(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.write("A dog runs through rain.")
    visitor.button("Sound caption").click()
    visitor.page.keyboard.type("splashes")
    visitor.expect_prompt("A dog runs through rain. Audio: splashes")
    visitor.select("rain")
    visitor.button("Sound caption").click()  # goes to the caption that is there
    visitor.expect_prompt("A dog runs through . Audio: splashes, rain")

    visitor.choose("720×720, 5 s")
    visitor.expect_prompt("A dog runs through . <AUDCAP>splashes, rain<ENDAUDCAP>")
    visitor.write("A dog runs.")
    visitor.button("Sound caption").click()
    visitor.page.keyboard.type("barking")
    visitor.expect_prompt("A dog runs. <AUDCAP>barking<ENDAUDCAP>")
    visitor.choose("nano")
    visitor.expect_prompt("A dog runs. Audio: barking")


def test_remarks_and_mending(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.write('A man says "hello you" and <s>well<e>. Then <S>oops')
    remarks = visitor.page.locator(".ovi-findings li:not(.ovi-all)")
    expect(remarks).to_have_count(4)
    remarks.filter(has_text="'<s>'").get_by_role("button", name="Mend").click()
    visitor.expect_prompt('A man says "hello you" and <S>well<e>. Then <S>oops')
    visitor.button("Mend all").click()
    visitor.expect_prompt("A man says <S>hello you<E> and <S>well<E>. Then <S>oops<E>")
    expect(remarks).to_have_count(0)
    visitor.prompt.press("Control+z")
    visitor.expect_prompt('A man says "hello you" and <S>well<e>. Then <S>oops')

    remarks.filter(has_text="never closed").get_by_role("button", name="never closed").click()
    selected = visitor.prompt.evaluate("(area) => area.value.slice(area.selectionStart, area.selectionEnd)")
    assert selected.startswith("<S>")


def test_budget_of_words(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    budget = visitor.page.get_by_role("meter", name="Spoken words")
    note = visitor.page.locator(".ovi-budget small")
    visitor.write("She says <S>two words<E>")
    expect(note).to_have_text("2 spoken words; about 6 fit into 2 s")
    expect(budget).to_have_attribute("aria-valuenow", "2")
    expect(budget).not_to_have_class("ovi-meter ovi-over")
    visitor.write("She says <S>one two three four five six seven eight nine ten<E>")
    expect(note).to_have_text("10 spoken words; about 6 fit into 2 s")
    expect(budget).to_have_class("ovi-meter ovi-over")
    expect(visitor.page.locator(".ovi-findings")).to_contain_text("takes about")
    visitor.choose("960×960, 10 s")
    expect(budget).to_have_class("ovi-meter")
    visitor.write("She says <S>well<E>")
    expect(note).to_contain_text("1 spoken word;")
    visitor.write("Nobody speaks")
    expect(budget).to_be_hidden()


def test_script_view(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    text = "Rain on a roof. A man says <S>hi  there<E>. A cat answers, <S>no<E> They leave. Audio: rain"
    visitor.write(text)
    visitor.button("Script").click()
    lines = visitor.page.locator(".ovi-script fieldset")
    expect(lines).to_have_count(2)
    expect(lines.nth(0).get_by_label("Who")).to_have_value("A man")
    visitor.button("Text").click()
    visitor.expect_prompt(text)  # looking changes nothing

    visitor.button("Script").click()
    lines.nth(0).get_by_label("Words").fill("good day")
    visitor.button("+ Line").click()  # the cell is told and the line added, whichever the server hears first
    expect(lines).to_have_count(3)
    lines.nth(2).get_by_label("Who").fill("The roof")
    lines.nth(2).get_by_label("How").fill("creaks,")
    lines.nth(2).get_by_label("Words").fill("ouch")
    visitor.field("Ambience").fill("wind")
    visitor.field("Ambience").press("Enter")
    visitor.button("Text").click()
    visitor.expect_prompt(
        "Rain on a roof. A man says <S>good day<E>. A cat answers, <S>no<E> The roof creaks, <S>ouch<E>"
        " They leave. Audio: wind"
    )

    visitor.button("Script").click()
    visitor.button("Move up: line 3").click()
    expect(lines.nth(1).get_by_label("Words")).to_have_value("ouch")
    visitor.button("Remove this line: line 1").click()
    expect(lines).to_have_count(2)
    visitor.field("Ambience").fill("a <S>tag<E>")
    visitor.field("Ambience").press("Enter")
    expect(visitor.page.locator(".ovi-problem")).to_contain_text("cannot be typed here")
    visitor.field("Ambience").fill("")
    visitor.field("Ambience").press("Enter")
    expect(visitor.page.locator(".ovi-problem")).to_be_hidden()
    visitor.button("Text").click()
    visitor.expect_prompt("The roof creaks, <S>ouch<E>. A cat answers, <S>no<E> They leave.")


def test_a_text_that_is_no_script(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.write("A <S>broken one")
    visitor.button("Script").click()
    expect(visitor.page.locator(".ovi-script")).to_contain_text("Mend it in the text first")
    visitor.button("Text").click()
    visitor.expect_prompt("A <S>broken one")
