"""The owner and a visitor at one page, each in a browser of their own. Requests by hand: `tests/ui/test_visitors`."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import PIL.Image
import pytest
from playwright.sync_api import Browser, Request, expect

from ovi_studio.events import CancelToken, Event
from ovi_studio.request import GenerationRequest
from ovi_studio.ui.door import Access
from ovi_studio.ui.page import Settings
from tests.browser.engines import ShownEngine
from tests.browser.visitor import Visitor, serving, visiting

pytestmark = pytest.mark.browser

PASSWORDS = {"owner": "the owner's", "ann": "ann's"}
ACCESS = Access(host="0.0.0.0", accounts=(("ann", PASSWORDS["ann"]),), owner_password=PASSWORDS["owner"])


class PacedEngine(ShownEngine):
    """Takes its time over a prompt that says "slowly"."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        slow = "slowly" in request.prompt
        self.steps, self.step_seconds = (10**6, 0.05) if slow else (3, 0.0)
        return super().generate(request, cancel)


@dataclass(frozen=True)
class Shared:
    """Both of them, at the page.

    Args:
        owner: who it belongs to.
        ann: a visitor.
        heard: every text that Ann's browser got, by its address.
    """

    owner: Visitor
    ann: Visitor
    heard: list[tuple[str, str]]


@pytest.fixture(scope="module")
def shared(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    home = tmp_path_factory.mktemp("roles")
    heard: list[tuple[str, str]] = []

    def listen(request: Request) -> None:
        response = request.response()
        kind = response.headers.get("content-type", "") if response else ""
        if response and re.search("text/|json|javascript", kind) and "/assets/" not in request.url:
            heard.append((request.url, response.text()))

    with serving(home, Settings(access=ACCESS), PacedEngine) as address, visiting(browser) as visit:
        owner, ann = (visit(address, storage_state=logged_in(address, name)) for name in PASSWORDS)
        ann.page.on("requestfinished", listen)
        ann.reload()
        yield Shared(owner, ann, heard)
        ann.page.wait_for_timeout(500)  # for what is on its way
        ann.page.remove_listener("requestfinished", listen)
        ways = {urlsplit(url).path.strip("/") for url, _ in heard}
        assert {"", "gradio_api/queue/data", "gradio_api/component_server", "gradio_api/upload"} <= ways
        for secret in (str(home), str(Path.home()), "Traceback"):
            around = f".{{,60}}{re.escape(secret)}.{{,60}}"
            assert [(url, *re.findall(around, text)) for url, text in heard if secret in text] == []


def logged_in(address: str, name: str) -> dict[str, list[dict[str, object]]]:
    """The cookies of a browser that has logged in."""
    with httpx2.Client(base_url=address) as http:
        http.get("/")
        assert http.post("/login", data={"username": name, "password": PASSWORDS[name]}).status_code == 200
        place = {"domain": "localhost", "path": "/"}
        return {"cookies": [{"name": each.name, "value": each.value, **place} for each in http.cookies.jar]}


def tab(who: Visitor, name: str) -> None:
    who.page.get_by_role("tab", name=name, exact=True).click()


def make(who: Visitor, prompt: str) -> None:
    """A clip, at once."""
    tab(who, "Create")
    who.write(prompt)
    who.generate()
    expect(who.result.locator("h2")).to_have_text(prompt)


def test_each_sees_their_own_and_the_owner_everything(shared: Shared, tmp_path: Path) -> None:
    owner, ann = shared.owner, shared.ann
    make(owner, "A fox of the owner's.")
    theirs = owner.shown_id()
    PIL.Image.new("RGB", (200, 100), (200, 30, 30)).save(tmp_path / "red.png")
    ann.unfold("First frame")
    ann.page.locator("#left input[type=file]").set_input_files(tmp_path / "red.png")
    expect(ann.page.locator(".ovi-outlook")).to_contain_text("128 × 64")
    make(ann, "A bird of Ann's.")
    expect(ann.recent()).to_have_count(1)
    ann.reload()
    expect(ann.result.locator("h2")).to_have_text("A bird of Ann's.")
    expect(ann.recent()).to_have_count(1)
    tab(ann, "Library")
    cards = ".ovi-shelf li"
    expect(ann.page.locator(cards)).to_have_count(1)
    expect(ann.page.get_by_role("tab", name="System")).to_be_hidden()

    owner.reload()
    tab(owner, "Library")
    expect(owner.page.locator(cards)).to_have_count(2)
    expect(owner.page.locator(cards).filter(has_text="Visitor")).to_have_count(1)
    expect(owner.page.get_by_role("tab", name="System")).to_be_visible()
    for address in (f"clip/{theirs}.mp4", f"clip/{theirs}/first.png", f"thumb/{theirs}.jpg"):
        assert owner.context.request.get(f"{owner.address}studio/{address}").ok
        assert ann.context.request.get(f"{ann.address}studio/{address}").status == 404


def test_the_run_of_somebody_else_is_a_number(shared: Shared) -> None:
    owner, ann = shared.owner, shared.ann
    tab(owner, "Create")
    owner.write("A fox of the owner's, slowly.")
    owner.generate()
    expect(owner.live.locator("img")).to_be_visible()
    tab(ann, "Create")
    ann.write("A bird of Ann's, after it.")
    ann.generate()
    expect(ann.toast("It is queued")).to_be_visible()
    expect(ann.live).to_be_hidden()
    tab(ann, "Queue")
    queue = ann.page.get_by_role("tabpanel").filter(visible=True)
    expect(queue).to_contain_text("A bird of Ann's, after it.")
    expect(queue).not_to_contain_text("fox")
    tab(owner, "Queue")
    expect(owner.page.get_by_role("tabpanel").filter(visible=True)).to_contain_text("A bird of Ann's, after it.")
    tab(owner, "Create")
    owner.button("Stop").click()
    tab(ann, "Create")
    expect(ann.result.locator("h2")).to_have_text("A bird of Ann's, after it.")


def test_what_is_the_owners_to_do_is_not_offered_or_refused(shared: Shared) -> None:
    ann = shared.ann
    tab(ann, "Create")
    ann.reload()
    ann.write("A bird says <S>one two<E>.")
    ann.unfold("Rewrite the speeches")
    ann.field("Model").fill("tiny")
    ann.button("Rewrite").click()
    expect(ann.toast("Only the owner of this page can do that")).to_be_visible()
    ann.unfold("Examples and presets")
    expect(ann.button("Use its prompt and settings")).to_be_visible()
    expect(ann.button("Save")).to_be_hidden()
    ann.unfold("First frame")
    expect(ann.field("What FLUX draws")).to_be_visible()
    expect(ann.button("Draw it now")).to_be_hidden()
    ann.choose("960×960, 5 s")
    expect(ann.page.get_by_text("Choose another model, or ask the owner")).to_be_visible()
    ann.choose("nano")


def test_what_is_no_picture_is_refused_where_it_is_chosen(shared: Shared, tmp_path: Path) -> None:
    ann = shared.ann
    tab(ann, "Create")
    ann.reload()
    program = tmp_path / "face.png"
    program.write_bytes(Path(sys.executable).resolve().read_bytes()[: 1 << 20])
    ann.write("A bird.")
    ann.unfold("First frame")
    ann.page.locator("#left input[type=file]").set_input_files(program)
    expect(ann.page.locator(".ovi-outlook")).to_contain_text("face.png is not an image")
    ann.generate()
    expect(ann.toast("face.png is not an image")).to_be_visible()
