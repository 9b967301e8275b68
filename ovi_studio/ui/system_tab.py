"""The System tab: what the machine has, what runs will take and took, the weights, what is wrong, and the settings.

Only the owner sees any of it: every function refuses everybody else, and nothing of it stands in the page until it is
asked for.
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gradio as gr

from ovi_studio import __version__
from ovi_studio.errors import InvalidInputError, OviStudioError
from ovi_studio.folders import HOME_VARIABLE, app_folders, set_weights_folder
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.hardware import Hardware, probe
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.doctor import Check, examine, look_around
from ovi_studio.studio.downloads import Downloads
from ovi_studio.studio.job import Job
from ovi_studio.studio.library import Filter, default_outputs
from ovi_studio.studio.visits import Visit
from ovi_studio.ui import widgets
from ovi_studio.ui.calls import Answer, Calls
from ovi_studio.ui.create import PlanMaker
from ovi_studio.ui.door import Visits
from ovi_studio.ui.news import title_of
from ovi_studio.variants import VARIANTS, Variant, get_variant
from ovi_studio.weights.catalog import RELEASED, SOURCES, Slot, Source, slots
from ovi_studio.weights.inventory import InstalledAdapter, installed_adapters
from ovi_studio.weights.store import Store

_RUNS = 24  # in the history; guessed: what a chart shows well
_FAILURES = 5  # newest, in the text to copy; guessed

Act: TypeAlias = Literal["download", "verify", "remove", "cancel"]


@dataclass(frozen=True)
class Nothing:
    """A question that says nothing more."""


@dataclass(frozen=True)
class PlanAsked:
    """How a clip of this model would be made, as it comes."""

    variant: str


@dataclass(frozen=True)
class WeightsAsked:
    """Something to be done with a model, or with a part."""

    act: Act
    name: str = ""


@dataclass(frozen=True)
class FolderAsked:
    """Where weights shall lie; "" is the usual place."""

    folder: str


class SystemTab:
    """The tab; make it inside of `gr.Tab`, then `wire` it.

    Args:
        visits: who asks.
        desk: where jobs are.
        plan: how a request would be made.
        downloads: fetches weights.
        look: finds out what the machine has; told a path on the disk of the weights.
    """

    def __init__(
        self,
        visits: Visits,
        desk: Desk,
        plan: PlanMaker,
        downloads: Downloads,
        look: Callable[[Path], Hardware] = probe,
    ) -> None:
        self._desk = desk
        self._plan = plan
        self._downloads = downloads
        self._look = look
        made = Calls(visits, owner_only=True).made
        self.widget = widgets.system(
            [
                made("see_machine", Nothing, self._see_machine),
                made("see_plan", PlanAsked, self._see_plan),
                made("see_history", Nothing, self._see_history),
                made("see_weights", Nothing, self._see_weights),
                made("see_errand", Nothing, self._see_errand),
                made("change_weights", WeightsAsked, self._change_weights),
                made("see_doctor", Nothing, self._see_doctor),
                made("see_settings", Nothing, self._see_settings),
                made("change_folder", FolderAsked, self._change_folder),
            ]
        )

    def wire(self, page: gr.Blocks) -> None:
        """Nothing: the widget asks for all that it shows."""

    # --- The machine ------------------------------------------------------------------------------------------

    def _see_machine(self, _visit: Visit, _asked: Nothing) -> Answer:
        folder = self._downloads.store.folder
        hardware = self._look(folder)
        disk = shutil.disk_usage(_existing(folder))
        return {
            "cards": [
                {"name": c.name, "capability": c.capability, "total": c.total_bytes, "free": c.free_bytes}
                for c in hardware.cards
            ],
            "ram": {"total": hardware.ram_bytes, "free": hardware.free_ram_bytes},
            "disk": {"total": disk.total, "free": disk.free, "kind": hardware.disk},
            "cores": hardware.cores,
            "notes": hardware.notes,
        }

    def _see_plan(self, _visit: Visit, asked: PlanAsked) -> Answer:
        variant = get_variant(asked.variant)
        models = [{"name": name, "title": each.title} for name, each in VARIANTS.items()]
        try:
            plan = self._plan(GenerationRequest.create(prompt="any", variant=variant.name))
        except OviStudioError as error:  # it does not fit here: that is what is asked
            return {"models": models, "refusal": str(error)}
        height, width = plan.size
        return {
            "models": models,
            "what": f"{width} × {height}, {variant.duration:.0f} s, on {plan.device_name}",
            "seconds": plan.seconds,
            "gpu": {"peak": plan.peak_gpu_bytes, "budget": plan.gpu_budget_bytes},
            "host": {"peak": plan.peak_host_bytes, "budget": plan.host_budget_bytes},
            "components": [{"name": name, "how": part.describe()} for name, part in plan.components.items()],
            "stages": [{"name": name, **dataclasses.asdict(stage)} for name, stage in plan.stages.items()],
            "reasons": [*plan.reasons, *plan.rejected],
        }

    def _see_history(self, _visit: Visit, _asked: Nothing) -> Answer:
        """The newest runs whose plan is known, oldest first."""
        jobs = self._desk.library.page(Filter(("done",)), size=_RUNS * 4).jobs
        runs = [_run(job) for job in jobs if job.plan is not None and job.seconds is not None]
        return {"runs": runs[:_RUNS][::-1]}

    # --- The weights ------------------------------------------------------------------------------------------

    def _see_weights(self, _visit: Visit, _asked: Nothing) -> Answer:
        store = self._downloads.store
        return {
            "folder": str(store.folder),
            "models": [self._model(variant) for variant in VARIANTS.values()],
            "parts": [self._part(source) for source in SOURCES.values() if _is_shown(source, store)],
            "adapters": [self._adapter(each) for each in installed_adapters(store)],
            "errand": self._errand(),
        }

    def _model(self, variant: Variant) -> Answer:
        store, needed = self._downloads.store, [slot for slot in slots(variant) if not slot.optional]
        parts = [self._part(store.filled_by(slot)) for slot in needed]
        states = {part["state"] for part in parts} or {"built in"}
        return {
            "name": variant.name,
            "title": variant.title,
            "description": variant.description,
            "trained": variant.trained,
            "state": states.pop() if len(states) == 1 else "partial",
            "present": sum(part["present"] for part in parts),
            "total": sum(part["total"] for part in parts),
            "exact": all(part["exact"] for part in parts),
            "lacks": [part["name"] for part in parts if part["state"] != "present"],
            "whole": any(part["state"] == "present" for part in parts),
            "licenses": list({part["license"]["name"]: part["license"] for part in parts}.values()),
            "removable": self._removable(variant.name),
        }

    def _part(self, source: Source) -> Answer:
        status = self._downloads.store.status(source)
        exact = status.bytes_total > 0
        return {
            "name": source.name,
            "kind": source.kind.replace("_", " ").replace("vae", "VAE"),
            "role": _role(source),
            "state": status.state.value,
            "present": status.bytes_present,
            "total": status.bytes_total if exact else source.expected_bytes(VARIANTS[RELEASED[0]]),
            "exact": exact,
            "page": source.page,
            "license": dataclasses.asdict(source.license),
            "gated": source.gated,
            "imported": source.imported,
            "note": source.note,
            "removable": self._removable(source.name),
        }

    def _adapter(self, adapter: InstalledAdapter) -> Answer:
        return {"name": adapter.id, "title": adapter.name, "total": adapter.size, "removable": adapter.size}

    def _removable(self, name: str) -> int:
        """Bytes that removing it would set free; of linked files only the links count."""
        store = self._downloads.store
        paths = [path for source in self._downloads.removable(name) for path in store.removable(source)]
        return sum(path.lstat().st_size for path in paths)

    def _see_errand(self, _visit: Visit, _asked: Nothing) -> Answer:
        return self._errand()

    def _errand(self) -> Answer:
        """How far it is; what went wrong stands in one sentence, apart from problems of the asking itself."""
        told = dataclasses.asdict(self._downloads.standing)
        return told | {
            "busy": self._downloads.standing.busy,
            "fault": f"{told.pop('problem')} {told.pop('remedy')}".strip(),
        }

    def _change_weights(self, _visit: Visit, asked: WeightsAsked) -> Answer:
        match asked.act:
            case "download":
                self._downloads.fetch([asked.name])
            case "verify":
                self._downloads.verify([asked.name])
            case "remove":
                self._downloads.remove(asked.name)
            case "cancel":
                self._downloads.cancel()
        return self._errand()

    # --- What is wrong, and the settings ----------------------------------------------------------------------

    def _see_doctor(self, _visit: Visit, _asked: Nothing) -> Answer:
        folder = self._downloads.store.folder
        hardware = self._look(folder)
        checks = list(examine(hardware, look_around(folder)))
        return {"checks": [dataclasses.asdict(check) for check in checks], "text": self._text(hardware, checks)}

    def _text(self, hardware: Hardware, checks: list[Check]) -> str:
        """All that somebody who helps should know, without the name of the user's home."""
        lines = [f"Ovi Studio {__version__}", hardware.describe(), ""]
        for check in checks:
            lines += [
                f"{check.state:8} {check.name}: {check.text}",
                *([f"         → {check.remedy}"] * bool(check.remedy)),
            ]
        failed = self._desk.library.page(Filter(("failed",)), size=_FAILURES).jobs
        lines += ["", "Newest failures", *(f"  {job.reason}" for job in failed)] if failed else []
        return "\n".join(lines).replace(str(Path.home()), "~")

    def _see_settings(self, _visit: Visit, _asked: Nothing) -> Answer:
        folders = app_folders()
        return {
            "version": __version__,
            "weights": str(folders.weights),
            "weights_now": str(self._downloads.store.folder),
            "usual_weights": folders.weights == folders.data / "weights",
            "folders": [
                {"what": "Clips", "path": str(default_outputs())},
                {"what": "Library and first frames", "path": str(folders.data)},
                {"what": "Cache", "path": str(folders.cache)},
                {"what": "Settings file", "path": str(folders.settings)},
            ],
            "home_variable": HOME_VARIABLE,
        }

    def _change_folder(self, visit: Visit, asked: FolderAsked) -> Answer:
        text = asked.folder.strip()
        if text and ("\0" in text or not Path(text).expanduser().is_absolute()):
            raise InvalidInputError("That is not a whole path.", "Give one from the root of a disk on, or one with ~.")
        set_weights_folder(Path(text) if text else None)
        return self._see_settings(visit, Nothing())


def _existing(folder: Path) -> Path:
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def _is_shown(source: Source, store: Store) -> bool:
    """Imported ones only where there are any."""
    return not source.imported or bool(store.listing(source).files)


def _role(source: Source) -> str:
    """What it is among those that can take its place."""
    for slot in _all_slots():
        if source in slot.choices:
            first = slot.choices[0]
            return "optional" if slot.optional else "" if source is first else f"instead of {first.name}"
    return ""


def _all_slots() -> list[Slot]:
    return [slot for variant in VARIANTS.values() for slot in slots(variant)]


def _run(job: Job) -> Answer:
    """A run, as it was planned and as it went; None where nobody measured."""
    plan: dict[str, Any] = job.plan or {}
    return {
        "id": job.id,
        "title": title_of(job),
        "model": str(plan.get("variant", "")),
        "when": job.finished,
        "seconds": [plan.get("seconds"), job.seconds],
        "gpu": [job.predicted.gpu_bytes, job.measured.gpu_bytes],
        "host": [job.predicted.host_bytes, job.measured.host_bytes],
    }
