"""What the store holds: which variants can be loaded and what they lack, and which adapters there are.

    readiness(variant, store)       what is still to fetch, how large it is, and under which licences
    weight_files(variant, store)    the files to load the variant from, downloaded or imported
    installed_adapters(store)       for a list to choose from
    find_adapter(id, store)         the file of one of them

Nothing here imports torch or asks the network.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ovi_studio.arithmetic import COMPONENTS
from ovi_studio.errors import WeightsError
from ovi_studio.variants import Variant
from ovi_studio.weights.catalog import ADAPTERS, License, Source, slots
from ovi_studio.weights.headers import PICKLES, WEIGHTS, converted_path, read_header
from ovi_studio.weights.layouts import WeightFiles
from ovi_studio.weights.store import State, Store, size_on_disk

# --- Variants ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Readiness:
    """Whether a variant can be loaded.

    Args:
        variant: its name.
        missing: the sources to fetch first; none if it is ready.
        bytes_to_fetch: about how much that is, less what has arrived: the hub's sizes where it was asked, else by
            arithmetic (which leaves the tokenizer out).
        licenses: of the missing sources, each once.
    """

    variant: str
    missing: tuple[Source, ...]
    bytes_to_fetch: int
    licenses: tuple[License, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


def readiness(variant: Variant, store: Store) -> Readiness:
    """What of `variant` is not in the store; the embedded one is always ready."""
    parts = [store.filled_by(slot) for slot in slots(variant) if not slot.optional]
    absent = tuple(source for source in parts if store.status(source).state is not State.PRESENT)
    size = sum(_bytes_to_fetch(source, variant, store) for source in absent)
    return Readiness(variant.name, absent, size, tuple(dict.fromkeys(source.license for source in absent)))


def _bytes_to_fetch(source: Source, variant: Variant, store: Store) -> int:
    status = store.status(source)
    return max(0, (status.bytes_total or source.expected_bytes(variant)) - status.bytes_present)


def weight_files(variant: Variant, store: Store) -> WeightFiles:
    """The files to load a variant from.

    Raises:
        WeightsError: a part is not in the store; the message has the command that fetches it.
    """
    chosen: dict[str, tuple[Path, ...]] = {}
    for slot in slots(variant):
        if slot.optional:
            continue
        files = store.paths(store.filled_by(slot))
        if slot.kind in COMPONENTS:
            files = tuple(path for path in files if path.suffix in WEIGHTS)
        chosen[slot.kind] = files
    tokenizer = chosen.pop("tokenizer")[0].parent
    return WeightFiles(tokenizer, **chosen)


# --- Adapters ---------------------------------------------------------------------------------------------

DISTILLATION_KEY = "ovi_studio.distillation"  # in a file's metadata: JSON with num_inference_steps and shift


@dataclass(frozen=True)
class Distillation:
    """How a step-distilled adapter wants to be sampled: few steps, in one pass.

    Args:
        num_inference_steps: steps.
        shift: of the schedule.
        guidance_scale: of both streams; 1 is one pass, without the negative prompts.
    """

    num_inference_steps: int
    shift: float
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class InstalledAdapter:
    """An adapter that can be put on.

    Args:
        id: by which requests name it.
        name: for people: what its file calls itself; else the id.
        path: of its weights.
        size: of them, in bytes.
        distillation: how it asks to be sampled; None for as usual.
    """

    id: str
    name: str
    path: Path
    size: int
    distillation: Distillation | None


def installed_adapters(store: Store) -> tuple[InstalledAdapter, ...]:
    """The adapters that are there, by id. Only headers are read; one that is damaged is told when it is put on."""
    return tuple(_installed(path) for path in _adapter_files(store) if size_on_disk(path) >= 0)


def adapter_ids(store: Store) -> tuple[str, ...]:
    """Ids of all adapters, also of those whose original is gone."""
    return tuple(path.stem for path in _adapter_files(store))


def find_adapter(adapter: str, store: Store) -> Path:
    """The file of an adapter, by its id.

    Raises:
        WeightsError: there is none.
    """
    found = {path.stem: path for path in _adapter_files(store) if size_on_disk(path) >= 0}
    if adapter not in found:
        raise WeightsError(
            f"There is no adapter {adapter!r}; imported ones: {', '.join(found) or 'none'}.",
            "Import its file: ovi-studio models import FILE.",
        )
    return found[adapter]


def distillation_of(path: Path, metadata: Mapping[str, str]) -> Distillation | None:
    """How an adapter asks to be sampled: by its metadata, else by a preset that knows its name.

    Raises:
        WeightsError: the metadata cannot be understood.
    """
    if DISTILLATION_KEY not in metadata:
        return next((preset for pattern, preset in _PRESETS if pattern.search(path.name)), None)
    try:
        told = json.loads(metadata[DISTILLATION_KEY])
        return Distillation(int(told["num_inference_steps"]), float(told["shift"]))
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} does not say in a way that can be read how it wants to be sampled.",
            f"Mend {DISTILLATION_KEY} in its metadata: a JSON object with num_inference_steps and shift.",
        ) from error


# FastWan2.2-TI2V-5B was distilled at the noise levels 1, 0.757 and 0.522 and draws fresh noise between them
# (FastVideo's tests of its configuration). Our schedules have no fresh noise; three steps come nearest to those
# levels with shift 2: 1, 0.8, 0.5. Derived, and not yet seen on a card.
_PRESETS = ((re.compile(r"fast[-_]?wan", re.IGNORECASE), Distillation(3, 2.0)),)


def _adapter_files(store: Store) -> tuple[Path, ...]:
    """The weights in the adapters' folder, links that lead nowhere too, by id; a pickle rather than its conversion."""
    folder = store.folder / ADAPTERS
    files = sorted(path for path in folder.glob("[!.]*") if path.suffix in WEIGHTS)
    made = {converted_path(path) for path in files if path.suffix in PICKLES}
    return tuple({path.stem: path for path in files if path not in made}.values())


def _installed(path: Path) -> InstalledAdapter:
    size = size_on_disk(path)
    try:
        metadata = read_header(path).metadata if path.suffix == ".safetensors" else {}
        return InstalledAdapter(
            path.stem, metadata.get("modelspec.title") or path.stem, path, size, distillation_of(path, metadata)
        )
    except WeightsError:
        return InstalledAdapter(path.stem, path.stem, path, size, None)
