"""A small page with the Library and Queue tabs, a tiny editor to wire them to, and a fast fake engine behind it."""

import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Page

from ovi_studio.engine import Engine
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.clips import add_clip
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.export import Exports
from ovi_studio.studio.forecast import Forecast
from ovi_studio.studio.job import Job, Order
from ovi_studio.studio.library import default_library, default_outputs
from ovi_studio.ui import theme, widgets
from ovi_studio.ui.door import Access, Door, Visits, middleware
from ovi_studio.ui.form import Values
from ovi_studio.ui.handling import on
from ovi_studio.ui.library_tab import LibraryTab
from ovi_studio.ui.queue_tab import Editing, QueueTab
from ovi_studio.ui.routes import studio_routes
from tests.browser.visitor import Visitor
from tests.fakes import FakeEngine


@dataclass(frozen=True)
class TinyForm:
    """As much of the editor's form as an editor needs."""

    prompt: gr.Textbox
    seed: gr.Number

    @property
    def inputs(self) -> set[Any]:
        return {self.prompt, self.seed}

    @property
    def all(self) -> list[Any]:
        return [self.prompt, self.seed]

    def request(self, values: Values) -> GenerationRequest:
        return GenerationRequest.create(prompt=values[self.prompt], seed=int(values[self.seed]))

    def filled(self, request: GenerationRequest) -> dict[Any, Any]:
        return {self.prompt: request.prompt, self.seed: request.seed}


@dataclass(frozen=True)
class Tabs:
    """A page that is up."""

    address: str
    desk: Desk
    engines: list[FakeEngine]

    def ask(self, *prompts: str, **order: Any) -> list[Job]:
        """Put clips into the queue."""
        requests = [GenerationRequest.create(prompt=prompt, seed=7) for prompt in prompts]
        jobs = self.desk.library.add([Order(each, default_outputs(), "clip", **order) for each in requests])
        self.desk.forget_snapshot()
        return list(jobs)

    def wait(self, jobs: list[Job]) -> None:
        """Until they are over."""
        until = time.monotonic() + 30
        while any(self.desk.library.get(job.id).finished is None for job in jobs):
            assert time.monotonic() < until
            time.sleep(0.05)

    def many_like(self, job: Job, count: int) -> None:
        """Finished clips that are copies of one."""
        for number in range(count):
            path = job.output.with_name(f"copy-{number}.mp4")
            shutil.copyfile(job.output, path)
            add_clip(self.desk.library, path, job.request)


@contextlib.contextmanager
def serving_tabs(
    home: Path, make_engine: Callable[[Path], FakeEngine] = FakeEngine, access: Access | None = None
) -> Iterator[Tabs]:
    """The page with its own library in `home`."""
    (home / "passing").mkdir(parents=True)
    door = Door(access or Access())
    engines: list[FakeEngine] = []

    def making(folder: Path) -> Engine:
        engines.append(make_engine(folder))
        return engines[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVI_STUDIO_HOME", str(home / "home"))
        patch.setattr(tempfile, "tempdir", str(home / "passing"))
        exports = Exports(home / "exports")
        with Desk(default_library(), default_outputs(), making) as desk, contextlib.closing(exports):
            visits = Visits(desk, door)
            forecast = Forecast(desk.library, lambda request: desk.engine.plan(request).seconds)
            page = _page(visits, exports)
            server, address, _ = page.launch(
                server_name="127.0.0.1", server_port=_free_port(), prevent_thread_lock=True, quiet=True,
                theme=theme.theme(), css=theme.styles(), head=f"<script>{widgets.script('common')}</script>",
                footer_links=[], ssr_mode=False, enable_monitoring=False, auth=door.lets_in if door.guarded else None,
                app_kwargs={
                    "routes": studio_routes(desk, visits, exports, forecast), "middleware": middleware(door),
                },
            )  # fmt: skip
            door.opened(server)
            try:
                yield Tabs(address, desk, engines)
            finally:
                page.close(verbose=False)


def _page(visits: Visits, exports: Exports) -> gr.Blocks:
    with gr.Blocks(title="Tabs", analytics_enabled=False) as page, gr.Tabs():
        with gr.Tab("Library"):
            library = LibraryTab(visits, exports)
        with gr.Tab("Queue"):
            queue = QueueTab(visits)
        with gr.Tab("Editor"):
            editing = Editing(visits)
            form = TinyForm(gr.Textbox(label="Prompt"), gr.Number(label="Seed", precision=0))
            told = gr.Textbox(label="Told")

        def use(picked: str, request: gr.Request) -> dict[Any, Any]:
            return form.filled(visits.of(request).job(picked).request) | {told: f"reuse {picked}"}

        library.wire(page)
        queue.wire(page)
        editing.wire(queue, form)
        on(library.gallery.reuse, use, library.gallery, [*form.all, told])
        on(library.gallery.show, lambda picked: f"show {picked}", library.gallery, told)
        on(queue.queue.show, lambda picked: f"show {picked}", queue.queue, told)
    return page


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TabsVisitor(Visitor):
    """Somebody at this page."""

    def _arrive(self, page: Page) -> None:
        page.get_by_role("tab", name="Library").wait_for()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()
