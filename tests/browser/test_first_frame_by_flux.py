"""First frames that FLUX draws, on the real page: a tiny pipeline where the catalog finds it, `nano` in the worker."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pytest
from playwright.sync_api import Browser, expect

from ovi_studio.media import read_clip
from ovi_studio.weights.store import Store
from tests.browser.visitor import RUN_PATIENCE, Visitor, serving, visiting
from tests.flux import SIDE, put_in_store, tiny_flux

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@dataclass(frozen=True)
class Drawing:
    """Somebody at the page, and where weights lie."""

    visitor: Visitor
    store: Store


@pytest.fixture(scope="module")
def drawing(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawing]:
    home = tmp_path_factory.mktemp("drawing")
    with serving(home) as address, visiting(browser) as visit:
        yield Drawing(visit(address), Store(home / "home" / "weights"))


def shown(visitor: Visitor) -> PIL.Image.Image:
    """The picture that stands in the form."""
    picture = visitor.page.locator("#left .image-container img")
    expect(picture).to_be_visible(timeout=RUN_PATIENCE)
    return PIL.Image.open(io.BytesIO(visitor.context.request.get(str(picture.get_attribute("src"))).body()))


def test_from_missing_weights_to_a_clip(drawing: Drawing, tmp_path: Path) -> None:
    visitor = drawing.visitor
    visitor.write("A red face on the left says <S>seven three<E>. Audio: a clear voice")
    visitor.unfold("First frame")

    # 1. Without the weights both ways say what to do; without a card, that they would not help
    refusal = re.compile("models download flux-krea|no usable NVIDIA card")
    visitor.button("Draw it now").click()
    expect(visitor.page.locator(".toast-body")).to_contain_text(refusal, timeout=RUN_PATIENCE)
    visitor.page.locator(".toast-close").first.click()
    drawn_first = visitor.field("Have it drawn by FLUX before the clip is made")
    drawn_first.check()
    visitor.be_quick(steps=3)
    visitor.generate()
    failure = visitor.page.locator("#right .ovi-trouble").filter(visible=True)
    expect(failure).to_contain_text(refusal, timeout=RUN_PATIENCE)
    drawn_first.uncheck()

    # 2. With them it is drawn to be looked at
    put_in_store(tiny_flux(), drawing.store)
    visitor.field("Its seed").fill("5")
    visitor.button("Draw it now").click()
    first = shown(visitor)
    assert max(first.size) <= 2 * SIDE
    expect(drawn_first).not_to_be_checked()
    visitor.button("Remove Image").click()
    visitor.field("Its seed").fill("6")
    visitor.button("Draw it now").click()
    assert shown(visitor).tobytes() != first.tobytes()

    # 3. Drawn, and a clip made from it, in one go
    drawn_first.check()
    visitor.generate()
    visitor.wait_for_clip()
    with visitor.page.expect_download() as waiting:
        visitor.page.get_by_role("link", name="Clip (mp4)").click()
    waiting.value.save_as(tmp_path / "clip.mp4")
    frame = read_clip(tmp_path / "clip.mp4").metadata["request"]["first_frame"]
    assert (frame["kind"], frame["seed"]) == ("generated", 6)
