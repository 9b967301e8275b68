"""The Batch and System tabs on a small page of their own, and somebody who looks at them."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request

from ovi_studio.studio.desk import Desk
from ovi_studio.studio.downloads import Downloads
from ovi_studio.studio.export import Exports
from ovi_studio.studio.forecast import Forecast
from ovi_studio.studio.frames import Frames
from ovi_studio.studio.visits import OWNER, Person, Visit
from ovi_studio.ui import theme, widgets
from ovi_studio.ui.batch_tab import BatchTab
from ovi_studio.ui.door import HasCookies, Visits
from ovi_studio.ui.routes import studio_routes
from ovi_studio.ui.system_tab import SystemTab
from ovi_studio.weights.hub import Hub
from ovi_studio.weights.store import Store
from tests.browser.visitor import PATIENCE
from tests.fakes import FakeEngine

VISITOR_COOKIE = "ovi-test-visitor"


class CookieVisits(Visits):
    """Whoever sends the test's cookie is a visitor, everybody else the owner."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def of(self, request: HasCookies) -> Visit:
        name = request.cookies.get(VISITOR_COOKIE, "")
        return Visit(self.desk, Person(f"visitor:{name}", name) if name else OWNER)


@dataclass
class Workshop:
    """The page: its address and what is behind it."""

    address: str
    desk: Desk
    downloads: Downloads
    engines: list[FakeEngine]
    home: Path


@contextlib.contextmanager
def workshop(home: Path, hub: Hub | None = None, **engine: object) -> Iterator[Workshop]:
    """Serve both tabs, with a fake engine that is made with `engine`."""
    engines: list[FakeEngine] = []

    def make_engine(folder: Path) -> FakeEngine:
        engines.append(FakeEngine(folder, **engine))
        return engines[-1]

    passing = home / "passing"
    passing.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as closing:
        patch.setenv("OVI_STUDIO_HOME", str(home / "home"))
        patch.setattr(tempfile, "tempdir", str(passing))
        desk = closing.enter_context(Desk(home / "home/library.db", home / "home/clips", make_engine))
        downloads = closing.enter_context(Downloads(Store(home / "home/weights"), hub))
        visits, exports = CookieVisits(desk), Exports(home / "exports")
        with gr.Blocks(title="Workshop", analytics_enabled=False) as page, gr.Tabs():
            with gr.Tab("Batch"):
                batch = BatchTab(visits, Frames(home / "frames"), exports, home / "inbox", lambda *_: "")
            with gr.Tab("System"):
                system = SystemTab(visits, desk, desk.engine.plan, downloads)
        with page:
            batch.wire(page)
            system.wire(page)
        forecast = Forecast(desk.library, lambda request: desk.engine.plan(request).seconds)
        _, address, _ = page.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, theme=theme.theme(), css=theme.styles(),
            head=f"<script>{widgets.script('common')}</script>", footer_links=[], ssr_mode=False,
            app_kwargs={"routes": studio_routes(desk, visits, exports, forecast)},
        )  # fmt: skip
        closing.callback(page.close, verbose=False)
        yield Workshop(address, desk, downloads, engines, home)


@dataclass
class Guest:
    """A browser profile with the page open, which notices what no page should do."""

    context: BrowserContext
    address: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))
        self.page.on("dialog", lambda dialog: self._note("error", f"dialog: {dialog.message}"))
        self.page.on("request", self._look_at)
        self.page.goto(self.address)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    def _look_at(self, request: Request) -> None:
        where = urlsplit(request.url)
        if where.scheme not in ("data", "blob") and where.hostname not in ("127.0.0.1", "localhost"):
            self.complaints.append(f"request: {request.url}")


@contextlib.contextmanager
def guests(browser: Browser) -> Iterator[Callable[..., Guest]]:
    """A function that opens an address; `visitor` names somebody who is not the owner."""
    there: list[Guest] = []

    def come(address: str, visitor: str = "", **options: object) -> Guest:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        if visitor:
            context.add_cookies([{"name": VISITOR_COOKIE, "value": visitor, "url": address}])
        there.append(Guest(context, address))
        return there[-1]

    try:
        yield come
        for guest in there:
            assert guest.complaints == []
    finally:
        for guest in there:
            guest.context.close()
