"""The page as a program: what is behind it, how it looks, and the server that shows it.

serve(Settings()) → Desk (library, runner, engine in a worker) → Blocks → http://127.0.0.1:7860
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.routing import Route

from ovi_studio import __version__
from ovi_studio.assets import data_path
from ovi_studio.engine import Engine
from ovi_studio.engine.pool import machine_engine
from ovi_studio.errors import EngineError, InvalidInputError
from ovi_studio.folders import app_folders
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.execution_plan import ExecutionPlan, Preferences
from ovi_studio.runtime.hardware import simulate
from ovi_studio.runtime.planner import Planner
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.downloads import Downloads
from ovi_studio.studio.export import Exports
from ovi_studio.studio.forecast import Forecast
from ovi_studio.studio.frames import Frames
from ovi_studio.studio.library import default_library, default_outputs
from ovi_studio.studio.visits import Person
from ovi_studio.ui import theme, widgets
from ovi_studio.ui.batch_tab import BatchTab
from ovi_studio.ui.create import Create, PlanMaker
from ovi_studio.ui.door import Access, Door, Visits, middleware
from ovi_studio.ui.handling import on
from ovi_studio.ui.library_tab import LibraryTab
from ovi_studio.ui.passing import Page
from ovi_studio.ui.programs import Programs
from ovi_studio.ui.queue_tab import QueueTab
from ovi_studio.ui.routes import studio_routes
from ovi_studio.ui.system_tab import SystemTab
from ovi_studio.variants import VARIANTS
from ovi_studio.weights.inventory import adapter_ids, readiness
from ovi_studio.weights.store import Store

PORT = 7860


@dataclass(frozen=True)
class Settings:
    """How the page is opened.

    Args:
        access: who can reach it.
        port: of the server; None takes the first free one from 7860 on.
        open_browser: whether to show it at once.
        mcp: whether its endpoints are tools for language models too.
        simulate: a machine to show plans for instead of this one, see `runtime.hardware.simulate`.
        preferences: what is forced of every plan.
    """

    access: Access = field(default_factory=Access)
    port: int | None = None
    mcp: bool = False
    open_browser: bool = False
    simulate: str | None = None
    preferences: Preferences = field(default_factory=Preferences)


@dataclass(frozen=True)
class Served:
    """A page that is up.

    Args:
        address: on this machine.
        share_address: for everybody; None without a public link.
        notice: what its owner should know, line by line, secrets included.
    """

    address: str
    share_address: str | None
    notice: tuple[str, ...]


@contextlib.contextmanager
def running_page(settings: Settings, make_engine: Callable[[Path], Engine] | None = None) -> Iterator[Served]:
    """The page, served as long as this lasts.

    Raises:
        EngineError: the port is taken.
        InvalidInputError: the settings cannot be, such as a page for everybody without a password.
    """
    _check(settings)
    make_engine = make_engine or partial(machine_engine, preferences=settings.preferences)
    door = Door(settings.access)
    folders = app_folders()
    store = Store(folders.weights)
    with (
        Desk(default_library(), default_outputs(), make_engine) as desk,
        Downloads(store) as downloads,
        contextlib.closing(Exports(folders.cache / "exports")) as exports,
    ):
        plan = _simulated_plan(settings.simulate, folders.cache) if settings.simulate else desk.engine.plan
        house = House(
            desk=desk,
            visits=Visits(desk, door),
            frames=Frames(folders.data / "frames"),
            exports=exports,
            downloads=downloads,
            inbox=folders.cache / "inbox",
            plan=plan,
        )
        page = build_page(house)
        try:
            yield _launch(page, house, door, settings)
        finally:
            page.close(verbose=False)


def serve(settings: Settings, tell: Callable[[str], None]) -> None:
    """Show the page until the process is stopped. Raises as `running_page`."""
    with running_page(settings) as served:
        for line in served.notice:
            tell(line)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@dataclass(frozen=True)
class House:
    """What the tabs of a page work with; see each for what it does with it."""

    desk: Desk
    visits: Visits
    frames: Frames
    exports: Exports
    downloads: Downloads
    inbox: Path
    plan: PlanMaker

    def missing(self, variant: str, person: Person) -> str:
        """Where a model's weights are not here at the moment, how much is to be fetched, and how; else ""."""
        state = readiness(VARIANTS[variant], self.downloads.store)
        if state.ready:
            return ""
        if not person.is_owner:
            return "Its weights are not on this machine. Choose another model, or ask the owner."
        return (
            f"Its weights are not here: about {state.bytes_to_fetch / 1e9:.1f} GB."
            f" Fetch them in the System tab, or with `ovi-studio models download {variant}`."
        )


def build_page(house: House) -> gr.Blocks:
    """The page itself: five tabs, the last of them for the owner alone."""
    visits = house.visits
    with Page("Ovi Studio") as page:
        gr.HTML(f'<header class="ovi-head"><h1>Ovi Studio</h1><p>{__version__}</p></header>', apply_default_css=False)
        with gr.Tabs(selected="create") as tabs:
            with gr.Tab("Create", id="create"):
                adapters = list(adapter_ids(house.downloads.store))
                create = Create(visits, house.frames, house.plan, house.missing, adapters)
            with gr.Tab("Library", id="library"):
                library = LibraryTab(visits, house.exports)
            with gr.Tab("Queue", id="queue"):
                queue = QueueTab(visits)
            with gr.Tab("Batch", id="batch"):
                batch = BatchTab(visits, house.frames, house.exports, house.inbox, house.missing)
            with gr.Tab("System", id="system", visible=False) as system_door:
                system = SystemTab(visits, house.desk, house.plan, house.downloads)
        for tab in (create, library, queue, batch, system):
            tab.wire(page)
        _connect(tabs, visits, create, library, queue)

        def open_to_owner(request: gr.Request) -> Any:
            return gr.update(visible=visits.of(request).person.is_owner)

        on(page.load, open_to_owner, None, system_door)
        Programs(visits, house.plan)
    return page


def _connect(tabs: gr.Tabs, visits: Visits, create: Create, library: LibraryTab, queue: QueueTab) -> None:
    """What one tab does in another: show a clip, take its settings, edit what waits."""

    def show(picked: str, request: gr.Request) -> dict[Any, Any]:
        visit = visits.of(request)
        return create.viewer.show(visit, visit.job(picked)) | {tabs: gr.update(selected="create")}

    def reuse(picked: str, request: gr.Request) -> dict[Any, Any]:
        return create.form.filled(visits.of(request).job(picked).request) | {tabs: gr.update(selected="create")}

    for widget in (library.gallery, queue.queue):
        on(widget.show, show, widget, [*create.viewer.screen, tabs])
    on(library.gallery.reuse, reuse, library.gallery, [*create.form.all, tabs])
    create.editing.wire(queue, create.form)
    on(queue.queue.edit, lambda: gr.update(selected="create"), None, tabs)


def _simulated_plan(machine: str, cache: Path) -> PlanMaker:
    hardware = simulate(machine)
    planner = Planner(cache, look=lambda: hardware)

    def plan(request: GenerationRequest) -> ExecutionPlan:
        return planner.plan(request.resolved())

    return plan


def _launch(page: gr.Blocks, house: House, door: Door, settings: Settings) -> Served:
    access = settings.access
    options: dict[str, Any] = {
        "theme": theme.theme(),
        "css": theme.styles(),
        "head": f"<script>{widgets.script('common')}</script>",
        "favicon_path": str(data_path("assets", "ui", "icon.svg")),
        "footer_links": [],
        "app_kwargs": {"routes": _routes(house), "middleware": middleware(door)},
        "auth": door.lets_in if door.guarded else None,
        "auth_message": "The owner's name is 'owner'; visitors were told theirs.",
        "share": access.share,
        "mcp_server": settings.mcp,
        "ssr_mode": False,
        "enable_monitoring": False,
        "run_history": False,
        "max_file_size": "64mb",
    }
    _bypass_proxies(access.host)
    try:
        server, address, share_address = page.launch(
            server_name=access.host, server_port=settings.port, inbrowser=settings.open_browser,
            prevent_thread_lock=True, quiet=True, **options,
        )  # fmt: skip
    except OSError as error:
        raise EngineError(
            f"The page cannot be served: {error}", "Close the program on that port, or choose another with --port."
        ) from error
    door.opened(server)
    return Served(address, share_address, tuple(_notice(door, address, share_address)))


def _bypass_proxies(host: str) -> None:
    """Gradio asks its own server whether it is up: a proxy that is meant for the world must not stand in between."""
    named = [os.environ[name] for name in ("NO_PROXY", "no_proxy") if name in os.environ]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys([*named, "localhost", "127.0.0.1", host]))


def _routes(house: House) -> list[Route]:
    forecast = Forecast(house.desk.library, lambda request: house.plan(request).seconds)
    return studio_routes(house.desk, house.visits, house.exports, forecast)


def _notice(door: Door, address: str, share_address: str | None) -> Iterator[str]:
    """What is printed when the page is up."""
    access = door.access
    yield f"open {share_address or address} in a browser; Ctrl-C ends it"
    if access.share and share_address is None:
        yield f"no public link could be made: gradio's servers cannot be reached. The page is at {address} only"
    if door.guarded:
        yield f"the owner logs in as 'owner' with the password {door.owner_password}"
        if access.made_up:
            yield f"visitors log in with any name and the password {door.visitor_password}"
    elif access.leaves_this_machine:
        yield f"everybody who reaches this page can use it; the owner opens {address}?owner={door.owner_token}"


def _check(settings: Settings) -> None:
    if settings.port is not None and not 1 <= settings.port <= 65_535:
        raise InvalidInputError(f"There is no port {settings.port}.", "Give one from 1 to 65535, or none.")
    if not settings.mcp:
        return
    if settings.access.leaves_this_machine:
        raise InvalidInputError("Tools for language models are for this machine only.", "Leave out --mcp, or --share.")
    if find_spec("mcp") is None:
        raise InvalidInputError("The package mcp is not installed.", "Run `pip install 'ovi-studio[mcp]'`.")
