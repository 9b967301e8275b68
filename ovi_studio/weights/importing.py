"""Parts that a user has already, linked into the store instead of copied; and the files to load a variant from.

    adopt(found, store)             links, checksums and records, so that it counts as present
    weight_files(variant, store)    → the files of its components: downloaded or imported

What lies as in the hub's repository takes the place of that download; everything else becomes a source `imported-…`.
What a folder holds, `survey.py` finds out. Nothing here imports torch.
"""

import dataclasses
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ovi_studio.arithmetic import COMPONENTS, Component
from ovi_studio.errors import WeightsError
from ovi_studio.folders import make_folder
from ovi_studio.variants import VARIANTS, Variant
from ovi_studio.weights import catalog
from ovi_studio.weights.catalog import License, Source
from ovi_studio.weights.headers import PICKLES, WEIGHTS
from ovi_studio.weights.layouts import WeightFiles
from ovi_studio.weights.store import FileRecord, ListedFile, Listing, State, Store, sha256_of

FoundKind: TypeAlias = Component | Literal["tokenizer", "adapter"]

RELEASED = tuple(name for name, variant in VARIANTS.items() if variant.fusion_file)
ADAPTERS = "adapters"  # folder of the store for LoRAs, which belong to no variant


@dataclass(frozen=True)
class Found:
    """A part that a folder holds whole.

    Args:
        kind: what it is.
        title: the same in words.
        files: its weights (or the tokenizer's files).
        companions: small files that lie with them and belong to them.
        variants: that it can serve; of a transformer one, or in doubt all.
        library: whether its tensors have the library class's names, not the published checkpoint's.
        float8: whether some of it is stored in float8.
    """

    kind: FoundKind
    title: str
    files: tuple[Path, ...]
    companions: tuple[Path, ...]
    variants: tuple[str, ...]
    library: bool = False
    float8: bool = False

    @property
    def in_doubt(self) -> bool:
        """Whether the user must say which variant it is."""
        return self.kind == "transformer" and len(self.variants) > 1

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in (*self.files, *self.companions))


def imported_source(kind: catalog.Kind, variant: str) -> Source:
    """The source that imported files of a kind fill, where they are none of the catalog's."""
    name = f"imported-{kind.replace('_', '-')}" + (f"-{variant}" if kind == "transformer" else "")
    original = License("that of the original", "")
    return Source(name, kind, f"imported/{name}", ("*",), original, note="a link to files of your own")


def plan_adoption(found: Iterable[Found]) -> tuple[dict[str, Found], list[Found]]:
    """What fills which source, by the sources' names; and what is left over, because another fills that one.

    Safetensors come before pickles.
    """
    taken: dict[str, Found] = {}
    left: list[Found] = []
    for part in sorted(found, key=lambda part: part.files[0].suffix in PICKLES):
        name = _adapter_id(part.files[0]) if part.kind == "adapter" else _home(part)[0].name
        if name in taken:
            left.append(part)
        else:
            taken[name] = part
    return taken, left


def adopt(found: Found, store: Store, advance: Callable[[int], None] = lambda _: None) -> None:
    """Links a part into the store and records its checksums, so that it counts as present.

    Args:
        found: what to take; not in doubt.
        store: where to.
        advance: is told the bytes read for the checksums.

    Raises:
        WeightsError: nothing can be linked there, or another process is at it.
    """
    if found.kind == "adapter":
        file = found.files[0]
        _link(file, store.folder / ADAPTERS / f"{_adapter_id(file)}{file.suffix}")
        return
    source, names = _home(found)
    if _is_adopted(source, names, store):
        return
    try:
        with store.locked(source):
            files = []
            for name, file in names.items():
                checksum = sha256_of(file, advance)
                _link(file, store.path(source, name))
                files.append(ListedFile(name, file.stat().st_size, checksum))
                store.write_record(source, FileRecord(source.repo, "", name, files[-1].size, checksum))
            store.write_listing(source, Listing(source.repo, "", tuple(files)))
    except TimeoutError as error:
        raise WeightsError(f"{source.name} is being written by another process.", "Wait for it, or stop it.") from error


def _is_adopted(source: Source, names: Mapping[str, Path], store: Store) -> bool:
    """Whether these very files are the source already."""
    return store.status(source).state is State.PRESENT and all(
        (link := store.path(source, name)).exists() and link.samefile(file) for name, file in names.items()
    )


def find_adapter(adapter: str, store: Store) -> Path:
    """The file of an imported adapter, by the id that requests name it by.

    Raises:
        WeightsError: there is none.
    """
    folder = store.folder / ADAPTERS
    for suffix in sorted(WEIGHTS):
        path = folder / f"{adapter}{suffix}"
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*"))) or "none"
    raise WeightsError(
        f"There is no adapter {adapter!r}; imported ones: {known}.", "Import its file: ovi-studio models import FILE."
    )


def _adapter_id(file: Path) -> str:
    """By what requests name the adapter: its file's name, without what an id cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "adapter"


def weight_files(variant: Variant, store: Store) -> WeightFiles:
    """The files to load a variant from.

    Raises:
        WeightsError: a part is not in the store; the message has the command that fetches it.
    """
    chosen: dict[str, tuple[Path, ...]] = {}
    for slot in catalog.slots(variant):
        if slot.optional:
            continue
        source = _filled(variant, slot, store)
        files = store.paths(source)
        if slot.kind in COMPONENTS:
            files = tuple(path for path in files if path.suffix in WEIGHTS)
        chosen[slot.kind] = files
    tokenizer = chosen.pop("tokenizer")[0].parent
    return WeightFiles(tokenizer, **chosen)


def missing(variant: Variant, store: Store) -> tuple[Source, ...]:
    """The sources to fetch before the variant can be loaded."""
    sources = (_filled(variant, slot, store) for slot in catalog.slots(variant) if not slot.optional)
    return tuple(source for source in sources if store.status(source).state is not State.PRESENT)


def _filled(variant: Variant, slot: catalog.Slot, store: Store) -> Source:
    imported = imported_source(slot.kind, variant.name)
    return store.filled_by(dataclasses.replace(slot, choices=(*slot.choices, imported)))


def _home(found: Found) -> tuple[Source, dict[str, Path]]:
    """The source that the part fills, and its files by their names there."""
    variant = found.variants[0]
    everything = (*found.files, *found.companions)
    slot = next(slot for slot in catalog.slots(VARIANTS[variant]) if slot.kind == found.kind)
    for source in slot.choices:
        names = {_name_in(source, file): file for file in everything}
        if "" not in names and _is_alike(source, found):
            return source, names
    names = {file.name: file for file in found.files}
    if len(names) < len(found.files):  # two towers in two folders, of one name
        names = {f"{index}-{file.name}": file for index, file in enumerate(found.files)}
    return imported_source(slot.kind, variant), names


def _is_alike(source: Source, found: Found) -> bool:
    """Whether the source's own files are named and stored like these: its repository and precision tell."""
    if found.kind == "tokenizer":
        return True
    return source.repo.endswith("-Diffusers") == found.library and (source.precision == "fp8") == found.float8


def _name_in(source: Source, file: Path) -> str:
    """The file's name in the source's repository, if it lies as it does there; else ""."""
    for pattern in source.patterns:
        name = "/".join(file.parts[-pattern.count("/") - 1 :])
        if source.selects(name):
            return name
    return ""


def _link(file: Path, target: Path) -> None:
    """Makes `target` a link to `file`: a symbolic one, or a hard one where the system has no others."""
    file = file.absolute()
    if target.exists() and not target.is_symlink() and not target.samefile(file):
        raise WeightsError(f"{target} is there already.", "Remove it first: ovi-studio models remove.")
    make_folder(target.parent)
    passing = target.with_name(f".{secrets.token_hex(8)}.link")
    try:
        passing.symlink_to(file)
    except OSError:
        try:
            os.link(os.path.realpath(file), passing)
        except OSError as error:
            raise WeightsError(
                f"{file} cannot be linked into {target.parent}: {error.strerror or error}.",
                "On Windows turn on developer mode, or keep weights on the same disk: ovi-studio models where --set.",
            ) from error
    passing.replace(target)
