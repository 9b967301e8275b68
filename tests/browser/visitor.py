"""Somebody at the page: opens it, writes, clicks, looks; and notices what no page should do."""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, expect

from ovi_studio.engine import Engine
from ovi_studio.engine.worker import WorkerEngine
from ovi_studio.ui.page import Settings, running_page

PATIENCE = 20_000  # milliseconds that a page may take to answer on a busy machine
RUN_PATIENCE = 90_000  # the same for a clip, the first of which waits for torch
_LEAVING = ("AbortError", "Connection errored out")


@contextlib.contextmanager
def serving(
    home: Path, settings: Settings | None = None, make_engine: Callable[[Path], Engine] = WorkerEngine
) -> Iterator[str]:
    """The page with its own library in `home`, which gradio must not take for a passing place."""
    passing = home / "passing"
    passing.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVI_STUDIO_HOME", str(home / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(tempfile, "tempdir", str(passing))
        with running_page(settings or Settings(), make_engine) as served:
            yield served.address


@contextlib.contextmanager
def visiting(browser: Browser) -> Iterator[Callable[..., "Visitor"]]:
    """A function that opens an address, with what Playwright's `new_context` takes."""
    visitors: list[Visitor] = []

    def open_page(address: str, **options: Any) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        visitors.append(Visitor(context, address))
        return visitors[-1]

    try:
        yield open_page
        for visitor in visitors:
            assert not visitor.complaints, visitor.complaints
    finally:
        for visitor in visitors:
            visitor.context.close()


class Visitor:
    """One browser profile with the page open.

    Args:
        context: the profile.
        address: of the page.
    """

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.context = context
        self.address = address
        self.complaints: list[str] = []
        context.set_default_timeout(PATIENCE)
        self.page = self.open()

    def open(self) -> Page:
        """The page in another tab of the same profile."""
        page = self.context.new_page()
        page.on("console", lambda message: self._note(message.type, f"{message.text} ({message.location['url']})"))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", self._look_at)
        page.goto(self.address)
        self._arrive(page)
        return page

    def reload(self) -> None:
        before = len(self.complaints)
        self.page.reload()
        self._arrive(self.page)
        # what gradio says of its connections when their page goes away
        said = [each for each in self.complaints[before:] if not any(word in each for word in _LEAVING)]
        self.complaints[before:] = said

    def _arrive(self, page: Page) -> None:
        page.wait_for_selector("#generate")
        page.wait_for_selector(".ovi-outlook", state="attached")  # the page's first answer is there

    def _note(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(f"{kind}: {text}")

    def _look_at(self, request: Request) -> None:
        where = urlsplit(request.url)
        if where.scheme not in ("data", "blob") and where.hostname not in ("127.0.0.1", "localhost"):
            self.complaints.append(f"request: {request.url}")

    # --- Writing ----------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> Locator:
        return self.page.get_by_role("textbox", name="Prompt", exact=True)

    def write(self, text: str) -> None:
        self.prompt.fill(text)

    def select(self, words: str) -> None:
        """Select `words` in the prompt."""
        self.prompt.evaluate(
            "(area, words) => { area.focus(); const at = area.value.indexOf(words);"
            " area.setSelectionRange(at, at + words.length); }",
            words,
        )

    def caret(self, at: int) -> None:
        """Put the cursor before the character `at` of the prompt."""
        self.prompt.evaluate("(area, at) => { area.focus(); area.setSelectionRange(at, at); }", at)

    def expect_prompt(self, text: str) -> None:
        expect(self.prompt).to_have_value(text)

    # --- Choosing ---------------------------------------------------------------------------------------------

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def unfold(self, name: str) -> None:
        """Open the part called `name`."""
        self.page.locator("button.label-wrap", has_text=name).click()

    def field(self, label: str) -> Locator:
        return self.page.get_by_label(label, exact=True)

    def tile(self, name: str) -> Locator:
        return self.page.get_by_role("radio", name=re.compile(f"^{re.escape(name)}"))

    def choose(self, tile: str) -> None:
        self.tile(tile).check(force=True)

    def be_quick(self, steps: int = 4) -> None:
        """Few steps, set under Advanced."""
        self.unfold("Advanced")
        self.field("Steps").fill(str(steps))
        self.field("Steps").blur()

    # --- Making and looking -----------------------------------------------------------------------------------

    @property
    def result(self) -> Locator:
        return self.page.locator(".ovi-result")

    @property
    def live(self) -> Locator:
        return self.page.locator(".ovi-live")

    def generate(self) -> None:
        self.page.locator("#generate").click()

    def wait_for_clip(self) -> None:
        """Until a clip is shown and nothing runs any more."""
        expect(self.result).to_be_visible(timeout=RUN_PATIENCE)
        expect(self.live).to_be_hidden(timeout=RUN_PATIENCE)

    def make(self, prompt: str, **steps: int) -> None:
        """Write, and wait for the clip."""
        self.write(prompt)
        self.be_quick(**steps)
        self.generate()
        expect(self.result.locator(".ovi-words")).to_have_text(prompt, timeout=RUN_PATIENCE)
        self.wait_for_clip()

    def fact(self, name: str) -> str:
        """Of the clip that is shown."""
        return self.result.locator(f"dt:text-is('{name}') + dd").inner_text()

    def shown_id(self) -> str:
        return str(self.result.locator("video").evaluate("(video) => video.src.match(/clip.(\\w+)/)[1]"))

    def recent(self) -> Locator:
        return self.page.locator(".ovi-strip li")

    def toast(self, text: str) -> Locator:
        return self.page.locator(".toast-body", has_text=text)
