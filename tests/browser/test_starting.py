"""Before a clip is made: presets, new speeches, the choices, the first frame, and what the run will take."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from playwright.sync_api import Browser, expect

from ovi_studio.ui.page import Settings
from tests.browser.visitor import Visitor, serving, visiting

pytestmark = pytest.mark.browser

Visit = Callable[..., Visitor]

PROMPT = "A tall man says <S>seven three<E> and waits. Audio: a clear voice"


# --- Presets --------------------------------------------------------------------------------------------------


def choose_preset(visitor: Visitor, title: str) -> None:
    visitor.field("Start from").click()
    visitor.page.get_by_role("option", name=title).click()


def test_presets(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.write(PROMPT)
    visitor.field("Takes").fill("3")
    visitor.unfold("Advanced")
    visitor.unfold("Examples and presets")
    choose_preset(visitor, "Distilled")
    expect(visitor.page.get_by_text("Eight steps, one pass each")).to_be_visible()

    visitor.button("Only its settings").click()
    expect(visitor.field("Steps")).to_have_value("8")
    expect(visitor.field("Picture guidance")).to_have_value("1")
    visitor.expect_prompt(PROMPT)
    expect(visitor.field("Takes")).to_have_value("3")  # a preset is not about one clip
    visitor.button("Back to what I had").click()
    expect(visitor.field("Steps")).to_have_value("30")
    expect(visitor.button("Back to what I had")).to_be_hidden()

    choose_preset(visitor, "Two-person dialogue")
    visitor.button("Use its prompt and settings").click()
    expect(visitor.page.locator(".ovi-ink")).to_contain_text("two mechanics")
    expect(visitor.tile("128 × 64")).to_be_checked()
    visitor.button("Back to what I had").click()
    visitor.expect_prompt(PROMPT)
    expect(visitor.tile("Automatic")).to_be_checked()


def test_own_presets(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.write(PROMPT)
    visitor.be_quick(steps=7)
    visitor.unfold("Examples and presets")
    visitor.field("Save what stands here as a preset").fill("My <b>seven</b>")
    visitor.button("Save").click()
    expect(visitor.toast("The preset is saved")).to_be_visible()
    visitor.reload()
    visitor.write("Something else")
    visitor.unfold("Advanced")
    visitor.field("Steps").fill("9")
    visitor.unfold("Examples and presets")
    choose_preset(visitor, "My <b>seven</b> (yours)")
    visitor.button("Use its prompt and settings").click()
    visitor.expect_prompt(PROMPT)
    expect(visitor.field("Steps")).to_have_value("7")
    visitor.prompt.press("Control+z")
    visitor.expect_prompt("Something else")
    visitor.prompt.press("Control+Shift+z")
    visitor.expect_prompt(PROMPT)
    visitor.field("Save what stands here as a preset").fill("My <b>seven</b>")
    visitor.button("Save").click()
    expect(visitor.toast("There is a preset called 'My <b>seven</b>' already. Give another title")).to_be_visible()


# --- New speeches ---------------------------------------------------------------------------------------------


class _ChatServer(http.server.BaseHTTPRequestHandler):
    """Answers every question with two lines for one speech, after a thought."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        content = json.dumps({"choices": [{"message": {"content": '["nine <b>eight</b>"]'}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _ChatServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_rewriting_by_a_server(visit: Visit, studio: str, chat: str) -> None:
    visitor = visit(studio)
    visitor.write(PROMPT)
    visitor.unfold("Rewrite the speeches")
    visitor.field("Theme").fill("counting down")
    visitor.field("Address of any OpenAI-compatible server").fill("http://127.0.0.1:9/v1")
    visitor.field("Model").fill("tiny")
    visitor.button("Rewrite").click()
    expect(visitor.toast("cannot be reached")).to_be_visible()

    visitor.field("Address of any OpenAI-compatible server").fill(chat)
    visitor.button("Rewrite").click()
    difference = visitor.page.locator(".ovi-diff")
    expect(difference).to_be_visible()
    assert difference.locator("del").all_inner_texts() == ["seven three"]
    assert difference.locator("ins").all_inner_texts() == ["nine <b>eight</b>"]
    assert _ChatServer.asked[-1]["model"] == "tiny"
    visitor.button("Leave it").click()
    expect(difference).to_be_hidden()
    visitor.expect_prompt(PROMPT)

    visitor.button("Rewrite").click()
    visitor.button("Take it").click()
    visitor.expect_prompt("A tall man says <S>nine <b>eight</b><E> and waits. Audio: a clear voice")
    expect(difference).to_be_hidden()
    visitor.reload()
    visitor.unfold("Rewrite the speeches")
    expect(visitor.field("Address of any OpenAI-compatible server")).to_have_value(chat)  # kept in the browser


def test_rewriting_by_any_chat(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.write(PROMPT)
    visitor.unfold("Rewrite the speeches")
    visitor.field("Theme").fill("counting down")
    visitor.page.get_by_role("tab", name="By any chat").click()
    visitor.button("Write the instruction").click()
    instruction = visitor.field("Copy this to the chat")
    visitor.page.wait_for_function("(area) => area.value.includes('counting down')", arg=instruction.element_handle())
    assert PROMPT in instruction.input_value()
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.button("Copy it").click()
    assert PROMPT in visitor.page.evaluate("navigator.clipboard.readText()")
    visitor.field("Paste its answer here").fill('Sure! ["three two"]')
    visitor.button("Read the answer").click()
    visitor.button("Take it").click()
    visitor.expect_prompt("A tall man says <S>three two<E> and waits. Audio: a clear voice")
    visitor.field("Paste its answer here").fill("I would rather not")
    visitor.button("Read the answer").click()
    expect(visitor.page.locator(".toast-body")).to_be_visible()


# --- Choices --------------------------------------------------------------------------------------------------


def test_another_model_brings_its_own(visit: Visit, studio: str) -> None:
    """Its defaults, sizes and dialect; what a person has set stays."""
    visitor = visit(studio)
    visitor.write(PROMPT)
    visitor.unfold("Advanced")
    visitor.field("Shift").fill("3")
    visitor.field("Shift").blur()
    visitor.choose("160 × 64")
    visitor.choose("720×720, 5 s")
    expect(visitor.field("Steps")).to_have_value("50")
    expect(visitor.field("Shift")).to_have_value("3")
    expect(visitor.tile("Automatic")).to_be_checked()
    expect(visitor.tile("160 × 64")).to_have_count(0)
    visitor.expect_prompt("A tall man says <S>seven three<E> and waits. <AUDCAP>a clear voice<ENDAUDCAP>")

    visitor.unfold("Examples and presets")
    choose_preset(visitor, "Two-person dialogue")
    visitor.button("Use its prompt and settings").click()
    expect(visitor.page.locator(".ovi-ink")).to_contain_text("<AUDCAP>")


def test_own_size_becomes_a_tile(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.unfold("Advanced")
    visitor.field("Own size").fill("400x1000")
    visitor.field("Own size").press("Enter")
    expect(visitor.tile("64 × 160 your own")).to_be_checked()
    expect(visitor.field("Own size")).to_have_value("")
    expect(visitor.page.locator(".ovi-outlook")).to_contain_text("64 × 160")
    visitor.field("Own size").fill("big")
    visitor.field("Own size").blur()
    expect(visitor.toast("Own size cannot be 'big'. Give width and height")).to_be_visible()
    visitor.field("Own size").fill("")
    visitor.field("Steps").fill("0")
    visitor.field("Steps").blur()
    expect(visitor.page.locator(".ovi-outlook")).to_have_text("Steps cannot be 0. Give a whole number from 1 to 200.")


def test_draft_survives(visit: Visit, studio: str) -> None:
    visitor = visit(studio)
    visitor.write(PROMPT)
    visitor.choose("Sound only")
    visitor.be_quick(steps=11)
    visitor.field("Keep it").check()
    visitor.field("Seed").fill("77")
    visitor.choose("720×720, 5 s")
    expect(visitor.page.locator(".ovi-ink")).to_contain_text("<AUDCAP>")
    visitor.page.wait_for_function("localStorage.length > 0")
    visitor.page.wait_for_timeout(600)
    visitor.reload()
    visitor.expect_prompt("A tall man says <S>seven three<E> and waits. <AUDCAP>a clear voice<ENDAUDCAP>")
    expect(visitor.tile("720×720, 5 s")).to_be_checked()
    expect(visitor.tile("Sound only")).to_be_checked()
    expect(visitor.field("Seed")).to_have_value("77")
    visitor.unfold("Advanced")
    expect(visitor.field("Steps")).to_have_value("11")


# --- First frame ----------------------------------------------------------------------------------------------


def test_first_frame(visit: Visit, studio: str, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (200, 100), (200, 30, 30)).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    visitor = visit(studio)
    visitor.unfold("First frame")
    upload = visitor.page.locator("input[type=file]")
    outlook = visitor.page.locator(".ovi-outlook")
    upload.set_input_files(tmp_path / "broken.png")
    expect(outlook).to_contain_text("broken.png is not an image")
    visitor.generate()
    expect(visitor.toast("broken.png is not an image")).to_be_visible()
    expect(visitor.live).to_be_hidden()
    visitor.button("Remove Image").click()
    expect(outlook).not_to_contain_text("broken.png")
    upload.set_input_files(tmp_path / "red.png")
    expect(outlook).to_contain_text("128 × 64")  # the picture's shape, as the model can make it


# --- What it will take ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "words"),
    [("1x24GB@8.9,ram=64", ["992 × 512, 5 s", "GB card memory on simulated 24 GB card"]), ("1x4GB@8.9,ram=4", ["ram"])],
    ids=["a card", "too small"],
)
def test_plan_of_a_simulated_machine(browser: Browser, tmp_path: Path, machine: str, words: list[str]) -> None:
    with serving(tmp_path, Settings(simulate=machine)) as address, visiting(browser) as visit:
        visitor = visit(address)
        visitor.choose("720×720, 5 s")
        outlook = visitor.page.locator(".ovi-outlook")
        for word in words:
            expect(outlook).to_contain_text(word)
        if machine.startswith("1x24"):
            expect(visitor.page.locator("#bar")).to_contain_text("models download 720x720_5s")
            outlook.locator("summary").click()
            expect(outlook.locator("li").first).to_be_visible()
            before = outlook.locator("b").inner_text()
            visitor.field("Takes").fill("4")
            visitor.field("Takes").blur()
            expect(outlook.locator("b")).not_to_have_text(before)
