"""Pictures of the page: every tab in each of its states, light and dark, on a wide screen and on a narrow one.

    python -m tests.browser.screenshots [FOLDER]        (`make screenshots`)

All of them go to FOLDER/all, which is not kept; the few that the documents show, to FOLDER. The clips in them stand in
for made ones: scenes of the toy world that `nano` learns.
"""

import io
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from playwright.sync_api import Browser, expect, sync_playwright

from ovi_studio.errors import OutOfMemoryError
from ovi_studio.events import CancelToken, Event, StepDone
from ovi_studio.media import Clip, wav_bytes, write_clip
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.execution_plan import ExecutionPlan
from ovi_studio.runtime.planner import Planner
from ovi_studio.studio.clips import add_clip
from ovi_studio.studio.library import Library, default_library, default_outputs
from ovi_studio.training.toyland import COLOURS, FPS, PLACES, SAMPLE_RATE, WALLS, Ball, Face, Lamp, Scene
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.browser.visitor import RUN_PATIENCE, Visitor, serving
from tests.fakes import FakeEngine

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"
KEPT = ("result-light-1440", "library-dark-1440", "queue-dark-1440", "running-dark-390")  # shown by the documents
QUALITY = 86  # of WebP
WIDTHS = {1440: 900, 390: 844}
THEMES = ("light", "dark")
UNFIXED = "#bar { position: static !important; }"  # a picture of a whole page has no foot of the screen
PROMPT = (
    "A red face on the left looks up and says, <S>seven three<E> It waits, then asks, <S>one?<E>"
    " The camera holds still. Audio: a clear voice in a quiet room"
)
CARELESS = 'A man says "hello there" and <s>one two three four five six<e>. Then <S>nobody closes this. Audio: rain'
SHELF = (
    ("A blue ball in the middle bounces three times. Audio: three thuds.", "Bounce, take 3", "ball", True),
    ("A yellow lamp on the right blinks twice. Audio: a tone of 600 Hz.", "", "lamp", False),
    ("A green face in the middle says <S>nine two<E>. Audio: a low voice.", "", "face", False),
    ("A purple ball on the left bounces once. Audio: one thud.", "", "ball", False),
    ("A white lamp in the middle blinks three times. Audio: a tone of 1200 Hz.", "Night signal", "lamp", True),
    ("A blue face on the right says <S>four<E>. Audio: a high voice.", "", "face", False),
    ("A red ball on the right bounces twice. Audio: two thuds.", "", "ball", False),
)
ENDLESS = "A white ball on the left bounces three times. Audio: three thuds."
IMPOSSIBLE = "A mountain on fire, far away. Audio: a deep rumble"
WAITING = (
    "A yellow face in the middle says <S>five six<E>. Audio: a high voice.",
    "A green ball on the right bounces three times. Audio: three thuds.",
    "A red lamp on the left blinks once. Audio: a tone of 300 Hz.",
)
TABLE = (
    "text_prompt,seed,takes,name\n"
    "A red face on the left says <S>seven three<E>. Audio: a low voice.,1,2,Seven three\n"
    "A blue ball in the middle bounces twice. Audio: two thuds.,x,1,Bounce\n"
    "A white lamp on the right blinks once. Audio: a tone of 800 Hz.,3,1,Signal\n"
)


# --- The stand-in ---------------------------------------------------------------------------------------------


@dataclass
class SceneEngine(FakeEngine):
    """Shows a scene of the toy world that has to do with the prompt; its previews come out of noise."""

    def plan(self, request: GenerationRequest) -> ExecutionPlan:
        return Planner(self.folder).plan(request.resolved())

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        self.steps, self.step_seconds = 30, {ENDLESS: 2.0, IMPOSSIBLE: 0.0}.get(request.prompt, 0.15)
        fault = OutOfMemoryError("The card is full.", "Choose a smaller size, or the wish smallest.")
        self.error = fault if request.prompt == IMPOSSIBLE else None
        scene = scene_of(request)
        noise = np.random.default_rng(1).integers(0, 256, (96, 96, 3))
        for event in super().generate(request, cancel):
            if isinstance(event, StepDone):
                clear = min(1.0, 0.25 + event.step / event.steps)
                picture = scene.frames(sound_of(scene), 12, 1)[0] * clear + noise * (1 - clear)
                sound = wav_bytes(sound_of(scene), SAMPLE_RATE) if 2 * event.step > event.steps else None
                event = StepDone(event.step, event.steps, event.seconds_left, jpeg(picture), sound)  # noqa: PLW2901
            yield event

    def _clip(self, request: GenerationRequest) -> Clip:
        path = self.folder / f"{len(self.requests)}-{request.seed}.mp4"
        return written(path, request)


def written(path: Path, request: GenerationRequest) -> Clip:
    """A scene as a clip."""
    scene = scene_of(request)
    sound = sound_of(scene)
    metadata = {"request": request.embedded()}
    return write_clip(
        path, frames=iter(scene.frames(sound)), waveform=sound, fps=FPS, sample_rate=SAMPLE_RATE, metadata=metadata
    )


def scene_of(request: GenerationRequest) -> Scene:
    """Thing, colour and place as the prompt names them; the wall as the seed has it."""
    words = request.prompt
    colour = next((each for each in COLOURS if each in words), "red")
    place = next((each for each in PLACES if each in words), "in the middle")
    wall = WALLS[(request.seed or 0) % len(WALLS)]
    if "ball" in words:
        impacts = (0.5, 1.1, 1.5)[: 3 if "three" in words else 2 if "twice" in words else 1]
        return Ball(colour, place, wall, PLACES[place], 68, impacts, 40, 0.7)
    if "lamp" in words:
        return Lamp(colour, place, wall, PLACES[place], 44, ((0.3, 0.8), (1.2, 1.7)), 600)
    return Face(colour, place, wall, PLACES[place], 46, ("seven", "three"), (0.3, 1.0), "low", "en", 150)


def sound_of(scene: Scene) -> np.ndarray:
    """Its own, or for a face something as loud as speech; nobody hears a picture."""
    if not isinstance(scene, Face):
        return scene.waveform({})
    seconds = np.arange(32_768) / SAMPLE_RATE
    loud = sum(np.exp(-(((seconds - at) / 0.09) ** 2)) for at in (0.42, 0.63, 1.12, 1.34, 1.6))
    tone = np.sin(2 * np.pi * 140 * seconds) + 0.5 * np.sin(2 * np.pi * 710 * seconds)
    return (0.5 * loud * tone).astype(np.float32)


def jpeg(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    PIL.Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def fill_shelf() -> None:
    """Clips of the days before."""
    default_outputs().mkdir(parents=True, exist_ok=True)
    with Library(default_library()) as library:
        for number, (prompt, name, tag, favourite) in enumerate(SHELF):
            request = GenerationRequest.create(prompt=prompt, seed=40 + number).resolved()
            job = add_clip(library, written(default_outputs() / f"{tag}-{number}.mp4", request).path, request)
            library.rename(job, name)
            library.set_tags(job, [tag])
            library.set_favourite(job, favourite)


# --- The pictures ---------------------------------------------------------------------------------------------


def main() -> int:
    """Makes them all."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    (folder / "all").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for theme in THEMES:
            for width in WIDTHS:
                here = Path(home) / f"{theme}-{width}"
                here.mkdir()
                with serving(here, make_engine=SceneEngine) as address:
                    take_all(browser, f"{address}?__theme={theme}", width, folder / "all" / f"{theme}-{width}")
        browser.close()
    for name in KEPT:
        shutil.copyfile(folder / "all" / f"{name}.webp", folder / f"{name}.webp")
    sizes = [path.stat().st_size for path in (folder / "all").glob("*.webp")]
    print(f"{len(sizes)} pictures of up to {max(sizes) >> 10} kB in {time.monotonic() - started:.0f} s")  # noqa: T201
    return 0


def take_all(browser: Browser, address: str, width: int, stem: Path) -> None:
    """One picture for every state, of the whole page."""
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, reduced_motion="reduce")
    visitor = Visitor(context, address)
    for state in itertools.chain(created(visitor), others(visitor)):
        visitor.page.evaluate("document.activeElement.blur()")
        visitor.page.mouse.move(0, 0)
        visitor.page.wait_for_timeout(500)
        data = visitor.page.screenshot(full_page=True, animations="disabled", style=UNFIXED if width < 760 else None)
        PIL.Image.open(io.BytesIO(data)).save(stem.with_name(f"{state}-{stem.name}.webp"), quality=QUALITY, method=6)
    context.close()


def created(visitor: Visitor) -> Iterator[str]:
    """Through the states of the tab in which clips are made."""
    yield "empty"
    visitor.write(CARELESS)
    expect(visitor.page.locator(".ovi-mend").first).to_be_visible()
    yield "written"
    visitor.unfold("First frame")
    yield "first-frame"
    visitor.unfold("First frame")
    visitor.unfold("Advanced")
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
    expect(visitor.live.locator(".ovi-hear")).to_be_visible(timeout=RUN_PATIENCE)
    yield "running"
    visitor.wait_for_clip()
    visitor.button("Pause").click()
    yield "result"
    for box in (0, 1):
        visitor.page.locator(".ovi-strip input").nth(box).check()
    expect(visitor.page.locator(".ovi-compare")).to_be_visible()
    yield "compare"
    visitor.field("Takes").fill("1")
    visitor.write(IMPOSSIBLE)
    visitor.generate()
    expect(visitor.button("Try again")).to_be_visible(timeout=RUN_PATIENCE)
    yield "failed"


def others(visitor: Visitor) -> Iterator[str]:
    """The other tabs, with what a week leaves in them."""
    page = visitor.page
    fill_shelf()
    for prompt in (ENDLESS, *WAITING):
        visitor.write(prompt)
        visitor.generate()
        page.wait_for_timeout(500)
    visitor.reload()
    page.get_by_role("tab", name="Library").click()
    expect(page.locator(".ovi-clip")).to_have_count(len(SHELF) + 2)
    page.wait_for_function("[...document.querySelectorAll('.ovi-watch img')].every((each) => each.complete)")
    yield "library"
    page.get_by_role("tab", name="Queue").click()
    expect(page.locator(".ovi-lineup .ovi-job")).to_have_count(len(WAITING))
    yield "queue"
    page.get_by_role("tab", name="Batch").click()
    page.locator(".ovi-batch input[type=file]").first.set_input_files(
        {"name": "faces.csv", "mimeType": "text/csv", "buffer": TABLE.encode()}
    )
    expect(page.locator("td.ovi-wrong")).to_have_count(1)
    yield "batch"
    page.get_by_role("tab", name="System").click()
    expect(page.locator(".ovi-models article")).to_have_count(4)
    page.wait_for_timeout(1500)
    yield "system"


if __name__ == "__main__":
    sys.exit(main())
