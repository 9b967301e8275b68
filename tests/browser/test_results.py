"""Clips looked at: takes, comparison, favourites, names, going on from a clip; failures; strangers' words."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from ovi_studio.errors import OutOfMemoryError
from ovi_studio.studio.clips import add_clip
from ovi_studio.studio.library import Library, default_library
from tests.browser.engines import ShownEngine
from tests.browser.visitor import Visitor, serving, visiting
from tests.fakes import FakeEngine

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def engines() -> list[ShownEngine]:
    """The engine of the page, once there is one."""
    return []


@pytest.fixture(scope="module")
def address(engines: list[ShownEngine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    def make(folder: Path) -> ShownEngine:
        engines.append(ShownEngine(folder, steps=3, step_seconds=0.05))
        return engines[-1]

    with serving(tmp_path_factory.mktemp("studio"), make_engine=make) as address:
        yield address


@pytest.fixture
def engine(address: str, engines: list[ShownEngine]) -> Iterator[ShownEngine]:
    yield engines[-1]
    engines[-1].steps, engines[-1].step_seconds, engines[-1].error = 3, 0.05, None


@pytest.fixture
def visitor(browser: Browser, address: str) -> Iterator[Visitor]:
    with visiting(browser) as visit:
        yield visit(address)


def make(visitor: Visitor, prompt: str) -> None:
    visitor.write(prompt)
    visitor.generate()
    expect(visitor.result.locator(".ovi-words")).to_have_text(prompt)
    visitor.wait_for_clip()


def test_live_picture_and_sound(visitor: Visitor, engine: ShownEngine) -> None:
    engine.steps, engine.step_seconds = 600, 0.1  # nobody waits for their end
    visitor.write("Watched.")
    visitor.generate()
    picture, hear = visitor.live.locator("img"), visitor.live.locator(".ovi-hear")
    stop = visitor.button("Stop")
    expect(stop).to_be_visible()
    place = stop.bounding_box()
    expect(hear).to_be_visible()
    visitor.page.wait_for_function("(img) => img.naturalWidth === 96", arg=picture.element_handle())
    assert stop.bounding_box() == place  # nothing moved when picture and sound came
    drawn = "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    visitor.page.wait_for_function(drawn, arg=hear.locator("canvas").element_handle())
    visitor.button("Play the sound as it is now").click()
    audio = hear.locator("audio").element_handle()
    visitor.page.wait_for_function("(audio) => audio.currentTime > 0.1", arg=audio)
    address = audio.evaluate("(audio) => audio.src")
    visitor.page.wait_for_timeout(500)
    assert audio.evaluate("(audio) => audio.src") == address  # what is heard is not cut off by the next one
    expect(visitor.page.get_by_role("progressbar", name="Progress")).to_be_visible()
    visitor.button("Stop").click()
    expect(visitor.live).to_be_hidden()
    assert audio.evaluate("(audio) => audio.paused")


def test_takes_and_comparison(visitor: Visitor) -> None:
    visitor.field("Takes").fill("2")
    visitor.field("Takes").blur()
    before = visitor.recent().count()
    visitor.write("Two takes.")
    visitor.generate()
    expect(visitor.recent()).to_have_count(before + 2)
    expect(visitor.live).to_be_hidden()
    boxes = visitor.page.get_by_role("checkbox", name="Compare Two takes.")
    boxes.nth(0).check()
    expect(visitor.page.locator(".ovi-hint")).to_contain_text("Tick another one")
    boxes.nth(1).check()
    pair = visitor.page.locator(".ovi-compare")
    expect(pair).to_be_visible()
    expect(visitor.result).to_be_hidden()
    visitor.button("Play both").click()
    read = "() => [...document.querySelectorAll('.ovi-compare video')].map((v) => [v.currentTime, v.paused, v.muted])"
    visitor.page.wait_for_function("() => document.querySelector('.ovi-compare video').currentTime > 0.3")
    for _ in range(5):
        (left, _, _), (right, _, _) = times = visitor.page.evaluate(read)
        assert abs(left - right) < 0.1, times
        visitor.page.wait_for_timeout(150)
    assert [each[1:] for each in visitor.page.evaluate(read)] == [[False, False], [False, True]]
    visitor.button("Sound B").click()
    assert [muted for _, _, muted in visitor.page.evaluate(read)] == [True, False]
    expect(visitor.button("Sound B")).to_have_attribute("aria-pressed", "true")
    visitor.button("Pause both").click()
    assert [paused for _, paused, _ in visitor.page.evaluate(read)] == [True, True]
    pair.get_by_label("Place in the clips").fill("500")
    for at, _, _ in visitor.page.evaluate(read):
        assert abs(at - 1.0) < 0.1
    boxes.nth(0).uncheck()
    expect(pair).to_be_hidden()
    expect(visitor.result).to_be_visible()


def test_favourite_name_and_order(visitor: Visitor) -> None:
    make(visitor, "To be named.")
    visitor.button("☆ Favourite").click()
    expect(visitor.button("★ Favourite")).to_be_visible()
    expect(visitor.recent().first).to_contain_text("★")
    visitor.field("Name").fill("The one")
    visitor.field("Name").blur()
    expect(visitor.result.locator("h2")).to_have_text("★ The one")
    visitor.reload()
    expect(visitor.result.locator("h2")).to_have_text("★ The one")
    visitor.button("★ Favourite").click()
    expect(visitor.result.locator("h2")).to_have_text("The one")


def test_going_on_from_a_clip(visitor: Visitor, engine: ShownEngine) -> None:
    visitor.be_quick(steps=9)
    visitor.choose("64 × 128")
    visitor.field("Sound guided during").fill("0:0.8")
    make(visitor, "The beginning.")
    assert engine.requests[-1].audio_guidance_interval == (0, 0.8)
    seed = visitor.fact("Seed")
    visitor.write("Something else.")
    visitor.field("Steps").fill("20")
    visitor.field("Sound guided during").fill("")
    visitor.choose("Automatic")
    visitor.button("Use these settings").click()
    visitor.expect_prompt("The beginning.")
    expect(visitor.field("Steps")).to_have_value("9")
    expect(visitor.field("Sound guided during")).to_have_value("0.0:0.8")
    expect(visitor.tile("64 × 128")).to_be_checked()
    expect(visitor.field("Seed")).to_have_value(seed)
    expect(visitor.field("Keep it")).to_be_checked()

    before = visitor.recent().count()
    visitor.field("Takes").fill("2")
    visitor.button("More takes").click()
    expect(visitor.toast("Queued, with new seeds")).to_be_visible()
    expect(visitor.recent()).to_have_count(before + 2)
    expect(visitor.live).to_be_hidden()
    assert visitor.fact("Seed") != seed

    visitor.field("Takes").fill("1")
    visitor.choose("Automatic")
    visitor.button("Continue from the last frame").click()
    expect(visitor.page.locator(".ovi-outlook")).to_contain_text("64 × 128")  # as the picture is
    expect(visitor.page.locator("#left img[src*='last']")).to_be_visible()  # it unfolds: what counts is seen
    make(visitor, "And so on.")
    assert engine.requests[-1].first_frame.name.endswith("last frame.png")
    assert visitor.fact("Size") == "64 × 128"


def test_failure_and_another_try(visitor: Visitor, engine: ShownEngine) -> None:
    engine.error = OutOfMemoryError(f"The card is full of {EVIL}.", "Choose a smaller size.")
    visitor.write("To fail.")
    visitor.generate()
    trouble = visitor.page.get_by_role("alert").filter(has_text="The card is full of")
    expect(trouble).to_have_text(f"The card is full of {EVIL}. Choose a smaller size.")
    expect(visitor.recent().first).to_contain_text("failed")
    engine.error = None
    visitor.button("Try again").click()
    expect(visitor.result.locator("h2")).to_have_text("To fail.")
    expect(trouble).to_be_hidden()
    expect(visitor.button("Try again")).to_be_hidden()

    visitor.write("A <S>broken one.")
    visitor.generate()
    expect(visitor.toast("never closed")).to_be_visible()
    visitor.write("")
    visitor.generate()
    expect(visitor.toast("The prompt is empty. Describe what to see and hear.")).to_be_visible()
    expect(visitor.live).to_be_hidden()


def test_strangers_words_do_nothing(visitor: Visitor, engine: ShownEngine, tmp_path: Path) -> None:
    """Markup stays text wherever it comes from: prompt, name, and the request in somebody's clip."""
    make(visitor, f"{EVIL} says <S>{EVIL}<E>")
    expect(visitor.result.locator("h2")).to_contain_text(EVIL)
    visitor.field("Name").fill(EVIL)
    visitor.field("Name").press("Enter")
    expect(visitor.result.locator("h2")).to_have_text(EVIL)
    visitor.button("Script").click()
    visitor.button("Text").click()

    stranger = FakeEngine(tmp_path)
    request = engine.requests[-1].replace(prompt=f"Sent: {EVIL}", seed=3)
    with Library(default_library()) as library:
        add_clip(library, stranger._clip(request.resolved()).path, request)
    visitor.reload()
    visitor.page.get_by_role("button", name=f"Show Sent: {EVIL}").click()
    expect(visitor.result.locator(".ovi-words")).to_have_text(f"Sent: {EVIL}")
    for box in visitor.page.locator(".ovi-strip input").all()[:2]:
        box.check()
    expect(visitor.page.locator(".ovi-compare")).to_contain_text(EVIL)
    visitor.page.wait_for_timeout(300)
    assert visitor.page.evaluate("window.hacked") is None
    assert visitor.page.locator("img[src=x]").count() == 0
