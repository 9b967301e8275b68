"""Pictures of the Create tab in each of its states: light and dark, on a wide screen and on a narrow one.

    python -m tests.browser.screenshots [FOLDER]        (`make screenshots` puts them into docs/pictures)

The clips in them are `nano`'s own.
"""

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
from playwright.sync_api import Browser, expect, sync_playwright

from ovi_studio.engine import Engine
from ovi_studio.engine.worker import WorkerEngine
from ovi_studio.errors import OutOfMemoryError
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.browser.visitor import RUN_PATIENCE, Visitor, serving
from tests.fakes import FakeEngine

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
COLOURS = 256  # of a picture's palette: interfaces have few, and files stay small
WIDTHS = {1440: 900, 390: 844}
THEMES = ("light", "dark")
PROMPT = (
    "A red face on the left says, <S>seven three<E> A blue face on the right nods and answers, <S>one<E>"
    " The camera holds still. Audio: two clear voices in a quiet room"
)
CARELESS = 'A man says "hello there" and <s>one two three four five six<e>. Then <S>nobody closes this. Audio: rain'


def main() -> int:
    """Makes them all."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for engine, states in ((WorkerEngine, made_by_nano), (failing, failed)):
            here = Path(home) / states.__name__
            here.mkdir()
            with serving(here, make_engine=engine) as address:
                for theme in THEMES:
                    for width in WIDTHS:
                        take_all(browser, f"{address}?__theme={theme}", width, folder / f"{theme}-{width}", states)
        browser.close()
    size = sum(path.stat().st_size for path in folder.glob("*.png"))
    print(f"{len(list(folder.glob('*.png')))} pictures, {size / 1e6:.1f} MB, in {folder}")  # noqa: T201
    return 0


def failing(folder: Path) -> Engine:
    """An engine that runs out of memory."""
    return FakeEngine(
        folder, error=OutOfMemoryError("The card is full.", "Choose a smaller size, or the wish smallest.")
    )


def take_all(
    browser: Browser, address: str, width: int, stem: Path, states: Callable[[Visitor], Iterator[str]]
) -> None:
    """One picture for every state, of the whole page."""
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, reduced_motion="reduce")
    visitor = Visitor(context, address)
    for state in states(visitor):
        visitor.page.evaluate("document.activeElement.blur()")
        visitor.page.mouse.move(0, 0)
        visitor.page.wait_for_timeout(400)
        data = visitor.page.screenshot(full_page=True, animations="disabled")
        picture = PIL.Image.open(io.BytesIO(data)).quantize(COLOURS, dither=PIL.Image.Dither.NONE)
        picture.save(stem.with_name(f"{state}-{stem.name}.png"), optimize=True)
    context.close()


def made_by_nano(visitor: Visitor) -> Iterator[str]:
    """Through the states of the tab; the first visit finds it empty."""
    if not visitor.recent().count():
        yield "empty"
    visitor.write(CARELESS)
    expect(visitor.page.locator(".ovi-mend").first).to_be_visible()
    yield "written"
    visitor.unfold("First frame")
    yield "first-frame"
    visitor.unfold("First frame")
    visitor.be_quick(steps=16)
    yield "advanced"
    visitor.unfold("Advanced")
    visitor.write(PROMPT)
    visitor.button("Script").click()
    expect(visitor.page.locator(".ovi-script fieldset")).to_have_count(2)
    yield "script"
    visitor.button("Text").click()
    visitor.field("Takes").fill("2")
    visitor.field("Takes").blur()
    visitor.generate()
    expect(visitor.live.locator("img")).to_be_visible(timeout=RUN_PATIENCE)
    yield "running"
    expect(visitor.result).to_be_visible(timeout=RUN_PATIENCE)
    visitor.wait_for_clip()
    visitor.button("Pause").click()
    yield "result"
    for box in (0, 1):
        visitor.page.locator(".ovi-strip input").nth(box).check()
    expect(visitor.page.locator(".ovi-compare")).to_be_visible()
    yield "compare"


def failed(visitor: Visitor) -> Iterator[str]:
    """A run that fails."""
    visitor.write(PROMPT)
    visitor.generate()
    expect(visitor.button("Try again")).to_be_visible()
    yield "failure"


if __name__ == "__main__":
    sys.exit(main())
