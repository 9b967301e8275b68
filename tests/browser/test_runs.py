"""Clips made on the page by `nano` in its worker: asked for, watched, heard, stopped, kept, found again."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import psutil
import pytest
from playwright.sync_api import expect

from ovi_studio.media import read_clip
from tests.browser.visitor import RUN_PATIENCE, Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

Visit = Callable[..., Visitor]

LONG = 200  # steps, as many as can be asked for: nobody waits for their end
DECODED = """
async (address) => {
    const answer = await fetch(address);
    if (!answer.ok) return { status: answer.status };
    try {
        const bytes = await answer.arrayBuffer();
        const audio = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
        const samples = audio.getChannelData(0);
        const rms = Math.sqrt(samples.reduce((sum, sample) => sum + sample ** 2, 0) / samples.length);
        return { type: answer.headers.get("content-type"), samples: samples.length, rms };
    } catch (error) {
        return { type: answer.headers.get("content-type"), silent: true };
    }
}
"""


def heard(visitor: Visitor, link: str) -> dict[str, Any]:
    """What the browser decodes from the download called `link`."""
    href = visitor.page.get_by_role("link", name=link).get_attribute("href")
    return visitor.page.evaluate(DECODED, href)


def download(visitor: Visitor, link: str, folder: Path) -> Path:
    with visitor.page.expect_download() as started:
        visitor.page.get_by_role("link", name=link).click()
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def begin_long_run(visitor: Visitor, prompt: str) -> None:
    visitor.write(prompt)
    visitor.be_quick(steps=LONG)
    visitor.generate()
    expect(visitor.page.locator(".ovi-standing")).to_contain_text(f"of {LONG}", timeout=RUN_PATIENCE)
    expect(visitor.button("Stop")).to_be_visible()


@contextlib.contextmanager
def held_up() -> Iterator[None]:
    """The engine's process stands still."""
    children = psutil.Process().children()
    workers = [child for child in children if "multiprocessing.spawn" in " ".join(child.cmdline())]
    assert workers
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()


def test_write_watch_and_hear(visit: Visit, studio: str, tmp_path: Path) -> None:
    visitor = visit(studio)
    visitor.be_quick(steps=40)
    visitor.prompt.fill("A red face says ")
    visitor.prompt.press("End")
    visitor.page.keyboard.type("<S>seven<E>")
    visitor.page.keyboard.press("Control+Enter")  # at once: what was typed last is part of it
    expect(visitor.live).to_be_visible()
    numbers = set()
    picture = visitor.live.locator("img")
    while visitor.live.is_visible():
        numbers.add(picture.get_attribute("data-number"))
        visitor.page.wait_for_timeout(60)
    assert len(numbers - {None}) >= 3  # the picture changed while it was made
    visitor.wait_for_clip()

    expect(visitor.result.locator("h2")).to_have_text("A red face says “seven”")
    expect(visitor.result.locator(".ovi-words")).to_have_text("A red face says <S>seven<E>")
    clip = read_clip(download(visitor, "Clip (mp4)", tmp_path))
    assert clip.metadata["request"]["prompt"] == "A red face says <S>seven<E>"
    assert clip.metadata["request"]["num_inference_steps"] == 40
    assert visitor.fact("Seed") == str(clip.metadata["request"]["seed"]) == visitor.field("Seed").input_value()
    assert clip.path.name == "a-red-face-says.mp4"

    for link, kind in (("Clip (mp4)", "video/mp4"), ("Sound (wav)", "audio/wav")):
        sound = heard(visitor, link)
        assert sound["type"] == kind
        assert abs(sound["samples"] - 32_768) <= 1024
        assert sound["rms"] > 0
    for link in ("First frame", "Last frame"):
        path = download(visitor, link, tmp_path)
        assert path.name == f"a-red-face-says {link.lower()}.png"
        assert PIL.Image.open(path).size == (96, 96)
    video = visitor.result.locator("video")
    visitor.page.wait_for_function("(video) => video.currentTime > 0.2", arg=video.element_handle())
    visitor.button("Pause").click()
    place = visitor.page.get_by_role("slider", name="Place in the clip")
    place.press("Home")
    place.press("ArrowRight")
    assert abs(video.evaluate("(video) => video.currentTime") - 0.2) < 0.05


def test_stop(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    begin_long_run(visitor, "To be stopped.")
    visitor.page.keyboard.press("Escape")
    expect(visitor.live).to_be_hidden(timeout=RUN_PATIENCE)
    expect(visitor.button("Stop")).to_be_hidden()
    expect(visitor.button("Show To be stopped.")).to_have_count(0)
    visitor.field("Steps").fill("3")
    visitor.write("After it.")
    visitor.generate()  # and the page goes on
    expect(visitor.button("Stop")).to_be_enabled()
    visitor.wait_for_clip()
    expect(visitor.result.locator("h2")).to_have_text("After it.")
    expect(visitor.button("Show After it.")).to_have_count(1)


def test_reload_queue_and_keep(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    begin_long_run(visitor, "The first of two.")
    with held_up():
        visitor.reload()
        expect(visitor.page.locator(".ovi-standing")).to_contain_text("Denoising")  # the run is shown again
        visitor.expect_prompt("The first of two.")
        expect(visitor.result).to_be_hidden()

        visitor.be_quick(steps=199)
        visitor.write("The second of two.")
        visitor.generate()
        expect(visitor.toast("It is queued")).to_be_visible()
        expect(visitor.page.locator(".ovi-waiting")).to_have_text("1 more waiting")
    visitor.button("Keep what there is").click()
    expect(visitor.result.locator("h2")).to_have_text("The first of two.", timeout=RUN_PATIENCE)
    expect(visitor.live).to_be_visible()  # the second is in the making meanwhile, and the first stays
    expect(visitor.page.locator(".ovi-standing")).to_contain_text("of 199", timeout=RUN_PATIENCE)
    expect(visitor.result.locator("h2")).to_have_text("The first of two.")
    visitor.button("Stop").click()
    expect(visitor.live).to_be_hidden(timeout=RUN_PATIENCE)
    expect(visitor.result.locator("h2")).to_have_text("The first of two.")
    assert int(re.findall(r"\d+", visitor.fact("Steps"))[0]) == LONG


def test_sound_only_and_picture_only(visit: Visit, studio: str, tmp_path: Path) -> None:
    visitor = visit(studio)
    visitor.choose("Sound only")
    expect(visitor.page.locator(".ovi-outlook")).to_contain_text("sound only")
    visitor.make("Steps on gravel.", steps=3)
    expect(visitor.result.locator(".ovi-player")).to_be_hidden()
    assert heard(visitor, "Sound (wav)")["rms"] > 0
    expect(visitor.page.get_by_role("link", name="First frame")).to_have_count(0)
    expect(visitor.button("Continue from the last frame")).to_be_hidden()
    assert visitor.fact("Model").startswith("nano")

    PIL.Image.new("RGB", (200, 100), (200, 30, 30)).save(tmp_path / "red.png")
    visitor.choose("Picture only")
    visitor.unfold("First frame")
    visitor.page.locator("#left input[type=file]").set_input_files(tmp_path / "red.png")
    expect(visitor.page.locator(".ovi-outlook")).to_contain_text("128 × 64")
    visitor.write("A red surface.")
    visitor.generate()
    expect(visitor.result.locator("h2")).to_have_text("A red surface.", timeout=RUN_PATIENCE)
    expect(visitor.page.get_by_role("link", name="Sound (wav)")).to_have_count(0)
    assert heard(visitor, "Clip (mp4)") == {"type": "video/mp4", "silent": True}
    clip = read_clip(download(visitor, "Clip (mp4)", tmp_path))
    assert clip.metadata["request"]["first_frame"]["name"] == "red.png"
    assert visitor.fact("Size") == "128 × 64"
