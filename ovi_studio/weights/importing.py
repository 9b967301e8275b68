"""Parts that a user has already, linked into the store instead of copied.

    plan_adoption(found)    which part fills which source
    adopt(found, store)     links, checksums and records, so that it counts as present

What lies as in the hub's repository takes the place of that download; everything else becomes a source `imported-…`,
and a LoRA an adapter. What a folder holds, `survey.py` finds out. Nothing here imports torch.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ovi_studio.errors import WeightsError
from ovi_studio.folders import make_folder
from ovi_studio.variants import VARIANTS
from ovi_studio.weights.catalog import ADAPTER_CONFIG, SOURCES, Kind, Source, adapter_source, imported_source, slots
from ovi_studio.weights.headers import PICKLES
from ovi_studio.weights.store import FileRecord, ListedFile, Listing, State, Store, sha256_of


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

    kind: Kind
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


def plan_adoption(found: Iterable[Found]) -> tuple[dict[str, Found], list[Found]]:
    """What fills which source, by the sources' names; and what is left over, because another fills that one.

    Safetensors come before pickles.
    """
    taken: dict[str, Found] = {}
    left: list[Found] = []
    for part in sorted(found, key=lambda part: part.files[0].suffix in PICKLES):
        name = _home(part)[0].name
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
    source, names = _home(found)
    if _is_adopted(source, names, store):
        return
    try:
        with store.locked(source):
            files = []
            for name, file in names.items():
                checksum, target = sha256_of(file, advance), store.path(source, name)
                files.append(ListedFile(name, file.stat().st_size, checksum))
                _check_free(file, target)
                # The record comes first: without a file it counts for nothing, but a link without one is nobody's.
                store.write_record(source, FileRecord(source.repo, "", name, files[-1].size, checksum))
                _link(file, target)
            store.write_listing(source, Listing(source.repo, "", tuple(files)))
    except TimeoutError as error:
        raise WeightsError(f"{source.name} is being written by another process.", "Wait for it, or stop it.") from error


def _is_adopted(source: Source, names: Mapping[str, Path], store: Store) -> bool:
    """Whether these very files are the source already."""
    return store.status(source).state is State.PRESENT and all(
        (link := store.path(source, name)).exists() and link.samefile(file) for name, file in names.items()
    )


def _home(found: Found) -> tuple[Source, dict[str, Path]]:
    """The source that the part fills, and its files by their names there."""
    if found.kind == "adapter":
        return _adapter_home(found)
    variant = found.variants[0]
    everything = (*found.files, *found.companions)
    slot = next(slot for slot in slots(VARIANTS[variant]) if slot.kind == found.kind)
    for source in (choice for choice in slot.choices if not choice.imported):
        names = {_name_in(source, file): file for file in everything}
        if "" not in names and _is_alike(source, found):
            return source, names
    names = {file.name: file for file in found.files}
    if len(names) < len(found.files):  # two towers in two folders, of one name
        names = {f"{index}-{file.name}": file for index, file in enumerate(found.files)}
    return imported_source(slot.kind, variant), names


# What files and folders are called by programs, not by people: diffusers' and PEFT's names, a hub cache's folders.
_SAYS_NOTHING = re.compile(r"adapter_model|pytorch_lora_weights|[0-9a-f]{40}|snapshots")


def _adapter_home(found: Found) -> tuple[Source, dict[str, Path]]:
    """The adapter's source and files; its id is its file's name, or its folder's, without what an id cannot have."""
    file = found.files[0]
    names = (file.stem, *(part.removeprefix("models--") for part in reversed(file.absolute().parts[:-1])))
    told = next(name for name in names if not _SAYS_NOTHING.fullmatch(name))
    adapter = re.sub(r"[^A-Za-z0-9._-]+|--", "-", told)[:100].strip("-._") or "adapter"
    if adapter in SOURCES or adapter in VARIANTS:
        adapter = f"adapter-{adapter}"
    links = {f"{adapter}{file.suffix}": file, **{f"{adapter}{ADAPTER_CONFIG}": config for config in found.companions}}
    return adapter_source(adapter), links


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


def _check_free(file: Path, target: Path) -> None:
    """Makes the folder of `target`, where there must be nothing, a link, or `file` itself."""
    if target.exists() and not target.is_symlink() and not target.samefile(file):
        raise WeightsError(f"{target} is there already.", "Remove it first: ovi-studio models remove.")
    make_folder(target.parent)


def _link(file: Path, target: Path) -> None:
    """Makes `target` a link to `file`: a symbolic one, or a hard one where the system has no others."""
    file = file.absolute()
    if target.exists() and not target.is_symlink():  # a hard link to it, or the file itself: a link would destroy it
        return
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
