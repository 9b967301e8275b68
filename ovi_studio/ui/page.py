"""The page as a program: what is behind it, how it looks, and the server that shows it.

serve(Settings()) → Desk (library, runner, engine in a worker) → Blocks → http://127.0.0.1:7860
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ovi_studio import __version__
from ovi_studio.assets import data_path
from ovi_studio.engine import Engine
from ovi_studio.engine.worker import WorkerEngine
from ovi_studio.errors import EngineError
from ovi_studio.folders import app_folders
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.execution_plan import ExecutionPlan, gigabytes
from ovi_studio.runtime.hardware import simulate
from ovi_studio.runtime.planner import Planner
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.frames import Frames
from ovi_studio.studio.library import default_library, default_outputs
from ovi_studio.ui import theme, widgets
from ovi_studio.ui.create import Create, PlanMaker
from ovi_studio.ui.routes import studio_routes
from ovi_studio.variants import VARIANTS
from ovi_studio.weights.inventory import adapter_ids, readiness
from ovi_studio.weights.store import Store

PORT = 7860


@dataclass(frozen=True)
class Settings:
    """How the page is opened.

    Args:
        port: of the server on this machine; None takes the first free one from 7860 on.
        open_browser: whether to show it at once.
        simulate: a machine to show plans for instead of this one, see `runtime.hardware.simulate`.
    """

    port: int | None = None
    open_browser: bool = False
    simulate: str | None = None


@contextlib.contextmanager
def running_page(settings: Settings, make_engine: Callable[[Path], Engine] = WorkerEngine) -> Iterator[str]:
    """The page, served as long as this lasts; gives its address.

    Raises:
        EngineError: the port is taken.
        InvalidInputError: the machine to simulate cannot be understood.
    """
    folders = app_folders()
    store = Store(folders.weights)
    with Desk(default_library(), default_outputs(), make_engine) as desk:
        plan = _simulated_plan(settings.simulate, folders.cache) if settings.simulate else desk.engine.plan
        page = build_page(desk, Frames(folders.data / "frames"), plan, store)
        address = _launch(page, desk, settings)
        try:
            yield address
        finally:
            page.close(verbose=False)


def serve(settings: Settings, tell: Callable[[str], None]) -> None:
    """Show the page until the process is stopped. Raises as `running_page`."""
    with running_page(settings) as address:
        tell(f"open {address} in a browser; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def build_page(desk: Desk, frames: Frames, plan: PlanMaker, store: Store) -> gr.Blocks:
    """The page itself; see `Create` for what it is given."""
    with gr.Blocks(title="Ovi Studio", analytics_enabled=False, fill_width=False) as page:
        gr.HTML(
            f'<header class="ovi-head"><h1>Ovi Studio</h1><p>{__version__}</p></header>',
            apply_default_css=False,
        )
        create = Create(desk, frames, plan, _missing(store), list(adapter_ids(store)))
        create.wire(page)
    return page


def _missing(store: Store) -> dict[str, str]:
    """Of the models whose weights are not here: how much is to be fetched, and by which command."""
    told = {}
    for variant in VARIANTS.values():
        ready = readiness(variant, store)
        if not ready.ready:
            told[variant.name] = (
                f"Its weights are not here: about {gigabytes(ready.bytes_to_fetch)}."
                f" Fetch them with `ovi-studio models download {variant.name}`."
            )
    return told


def _simulated_plan(machine: str, cache: Path) -> PlanMaker:
    hardware = simulate(machine)
    planner = Planner(cache, look=lambda: hardware)

    def plan(request: GenerationRequest) -> ExecutionPlan:
        return planner.plan(request.resolved())

    return plan


def _launch(page: gr.Blocks, desk: Desk, settings: Settings) -> str:
    options: dict[str, Any] = {
        "theme": theme.theme(),
        "css": theme.styles(),
        "head": f"<script>{widgets.script('common')}</script>",
        "favicon_path": str(data_path("assets", "ui", "icon.svg")),
        "footer_links": [],
        "app_kwargs": {"routes": studio_routes(desk)},
        "ssr_mode": False,
        "enable_monitoring": False,
        "run_history": False,
        "max_file_size": "64mb",
    }
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1", server_port=settings.port, inbrowser=settings.open_browser,
            prevent_thread_lock=True, quiet=True, **options,
        )  # fmt: skip
    except OSError as error:
        raise EngineError(
            f"The page cannot be served: {error}", "Close the program on that port, or choose another with --port."
        ) from error
    return str(address)
