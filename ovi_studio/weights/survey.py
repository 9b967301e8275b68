"""What a folder of weights holds, without being told: the survey that comes before an import.

    survey(folder) → `Survey`: what was found, what is broken, what is of no use

Any folder will do: upstream's `ckpts/`, a diffusers folder, ComfyUI's `models/`, a hub cache. Components are told by
the names and shapes of their tensors, and each must be whole. Only which variant a transformer is, the tensors do not
tell: the name of its file does, or the checksum of one that the hub listed. In doubt the user must say it.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from ovi_studio.errors import WeightsError
from ovi_studio.variants import VARIANTS, Variant
from ovi_studio.weights.catalog import RELEASED, slots
from ovi_studio.weights.headers import PICKLES, WEIGHTS, TensorInfo, converted_path, joined, read_header
from ovi_studio.weights.importing import Found
from ovi_studio.weights.layouts import Layout, is_adapter, recognise
from ovi_studio.weights.load import check_files
from ovi_studio.weights.pickles import tensors_in
from ovi_studio.weights.store import Store, sha256_of


@dataclass(frozen=True)
class Broken:
    """Files of Ovi that cannot be taken, because they are damaged or incomplete."""

    files: tuple[Path, ...]
    reason: str


@dataclass(frozen=True)
class Unused:
    """Other weights, and why they are of no use."""

    files: tuple[Path, ...]
    reason: str


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    Args:
        found: parts that can be taken.
        broken: parts that cannot.
        unused: the rest.
    """

    found: tuple[Found, ...]
    broken: tuple[Broken, ...]
    unused: tuple[Unused, ...]


@dataclass(frozen=True)
class _Candidate:
    """Files that are a component or one tower, by their headers."""

    files: tuple[Path, ...]
    layout: Layout


@dataclass(frozen=True)
class _Whole:
    """A component, of one file or two towers, and the variants that it may serve."""

    files: tuple[Path, ...]
    layout: Layout
    variants: tuple[str, ...]


# --- Survey -----------------------------------------------------------------------------------------------


def survey(
    folder: Path,
    wanted: str | None = None,
    known: Mapping[str, str] | None = None,
    shapes: Variant | None = None,
    skip: Path | None = None,
) -> Survey:
    """What `folder` (or the one file) holds for Ovi. Reads headers and changes nothing.

    Args:
        folder: where to look; folders in it too, but not in `skip`.
        wanted: the variant of a transformer that does not tell it itself.
        known: checksums of transformers, and their variants: see `known_transformers`.
        shapes: a variant with the shapes to look for.
        skip: the folder of the store, which holds what was imported before.

    Raises:
        WeightsError: there is no such folder, or it cannot be read.
    """
    files = _all_files(folder, skip)
    shapes = shapes or VARIANTS[RELEASED[0]]
    candidates: list[_Candidate] = []
    outcomes: list[Found | Broken | Unused] = []
    for group in _groups(files):
        outcome = _looked_at(folder, group, shapes)
        (candidates if isinstance(outcome, _Candidate) else outcomes).append(outcome)  # type: ignore[arg-type]
    whole, alone = _paired(candidates, wanted, known or {})
    outcomes += [_checked(part, shapes) for part in whole]
    outcomes += alone
    vocabulary = shapes.text_encoder.vocab_size
    outcomes += [Found("tokenizer", "tokenizer", each, (), RELEASED) for each in _tokenizers(files, vocabulary)]
    return Survey(
        tuple(outcome for outcome in outcomes if isinstance(outcome, Found)),
        tuple(outcome for outcome in outcomes if isinstance(outcome, Broken)),
        tuple(outcome for outcome in outcomes if isinstance(outcome, Unused)),
    )


def _looked_at(folder: Path, files: tuple[Path, ...], shapes: Variant) -> "_Candidate | Found | Broken | Unused":
    """What one file, or the shards of one model, are by their headers."""
    try:
        _check_shards(files)
        tensors = joined(_tensors(file) for file in files)
    except WeightsError as error:
        return (Broken if _may_be_ours(folder, files[0]) else Unused)(files, str(error))
    try:
        return _Candidate(files, recognise(tensors, shapes))
    except WeightsError as error:
        if _is_fitting_adapter(tensors, shapes):
            config = files[0].with_name("adapter_config.json")  # PEFT's, if the file is in a folder that it saved
            companions = (config,) if files[0].stem == "adapter_model" and config.is_file() else ()
            return Found("adapter", "adapter (LoRA)", files, companions, RELEASED)
        return Unused(files, error.problem)


def _checked(part: "_Whole", shapes: Variant) -> "Found | Broken":
    """The part, if it has every tensor that it needs."""
    try:
        layout = check_files(part.layout.component, shapes, part.files)
    except WeightsError as error:
        return Broken(part.files, str(error))
    library = layout.naming == "library"
    companions = _companions(part.files) if library else ()
    return Found(layout.component, layout.title, part.files, companions, part.variants, library, layout.float8)


def known_transformers(store: Store) -> dict[str, str]:
    """Checksums of the transformers that the hub has listed for this store, and their variants."""
    return {
        file.sha256: name
        for name in RELEASED
        for source in slots(VARIANTS[name])[0].choices
        if not source.imported
        for file in store.listing(source).files
        if file.sha256
    }


def _groups(files: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Files of weights, shards of one model together. Nothing is given twice, whatever links there are."""
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    seen: set[str] = set()
    for path in (path for path in files if path.suffix in WEIGHTS):
        real = os.path.realpath(path)
        special = path.exists() and not path.is_file()  # such as a pipe, which would be waited for
        if real in seen or special or converted_path(path).exists():
            continue
        seen.add(real)
        shard = _SHARD.fullmatch(path.name)
        groups[path.parent, shard["stem"] if shard else path.name].append(path)
    yield from (tuple(group) for group in groups.values())


def _all_files(folder: Path, skip: Path | None) -> list[Path]:
    """Every file below, through links to folders too, in order; of a file, itself.

    Raises:
        WeightsError: there is no such folder, or it cannot be read.
    """
    try:
        if folder.is_file():
            return [folder]
        os.scandir(folder).close()
    except FileNotFoundError as error:
        raise WeightsError(f"There is no folder {folder}.", "Check the path.") from error
    except OSError as error:
        raise WeightsError(f"{folder} cannot be read: {error.strerror}.", "Check the path.") from error
    files: list[Path] = []
    seen = {os.path.realpath(skip)} if skip else set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back, or the store
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in {".git", "blobs"})
        files += (Path(root, name) for name in sorted(names) if not name.startswith("."))
    return files


_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def _check_shards(files: Sequence[Path]) -> None:
    shard = _SHARD.fullmatch(files[0].name)
    if shard and len(files) != int(shard["count"]):
        raise WeightsError(
            f"{files[0].parent} has {len(files)} of the {int(shard['count'])} shards of {shard['stem']}.",
            "Copy or download the others.",
        )


def _tensors(path: Path) -> Mapping[str, TensorInfo]:
    return tensors_in(path) if path.suffix in PICKLES else read_header(path).tensors


_OURS = re.compile(r"(?<![a-z])ovi(?![a-z])|umt5|wan[-_]?2[._]?2|mmaudio|netg|v1-16", re.IGNORECASE)
_LIBRARY = re.compile(r".*(text_encoder|transformer|vae|vocoder)/(diffusion_pytorch_)?model[^/]*")


def _may_be_ours(folder: Path, path: Path) -> bool:
    """Whether a file that cannot be read would be missed: by its name, or because it was named itself."""
    name = "/".join(path.parts[-2:])
    return path == folder or bool(_OURS.search(name) or _LIBRARY.fullmatch(name))


def _is_fitting_adapter(tensors: Mapping[str, TensorInfo], shapes: Variant) -> bool:
    """Whether it is a LoRA for towers of this width."""
    attention = re.compile(r".*blocks[._]\d+.*(self_attn|attn1).*\.(lora_A|lora_down)\b.*")
    width = shapes.transformer.dim
    return is_adapter(tensors) and any(attention.match(n) and width in info.shape for n, info in tensors.items())


def _companions(files: Sequence[Path]) -> tuple[Path, ...]:
    """The index and the configuration that lie with a library class's weights."""
    shards = [shard for file in files if (shard := _SHARD.fullmatch(file.name))]
    names = {"config.json", *(f"{shard['stem']}.safetensors.index.json" for shard in shards)}
    return tuple(path for name in sorted(names) if (path := files[0].with_name(name)).is_file())


def _tokenizers(files: Sequence[Path], vocabulary: int) -> Iterator[tuple[Path, ...]]:
    """Folders of tokenizers whose vocabulary is the text encoder's (which has some rows more)."""
    for settings in (path for path in files if path.name == "tokenizer_config.json"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(settings.parent, local_files_only=True, trust_remote_code=False)
        except Exception:  # noqa: BLE001, S112  another program's, of which the library raises just that
            continue
        if vocabulary // 2 < len(tokenizer) <= vocabulary:
            yield tuple(sorted(path for path in settings.parent.iterdir() if path.is_file()))


# --- Which variant ----------------------------------------------------------------------------------------


def _paired(
    candidates: Sequence[_Candidate], wanted: str | None, known: Mapping[str, str]
) -> tuple[list[_Whole], list[Broken]]:
    """Whole components, and towers that remain without their other half."""
    whole: list[_Whole] = []
    towers: dict[tuple[str, ...], list[_Candidate]] = defaultdict(list)
    for candidate in candidates:
        files, layout = candidate.files, candidate.layout
        if layout.component != "transformer":
            whole.append(_Whole(files, layout, RELEASED))
        elif layout.part == "whole":
            whole.append(_Whole(files, layout, _variants_of(files, wanted, known)))
        else:
            towers[_variants_of(files, wanted, known)].append(candidate)
    alone: list[Broken] = []
    for variants, halves in towers.items():
        files = tuple(file for half in halves for file in half.files)
        parts = sorted(half.layout.part for half in halves)
        if parts == ["audio", "video"]:
            whole.append(_Whole(files, halves[0].layout, variants))
        elif len(set(parts)) == 1:
            alone.append(Broken(files, f"Only the {halves[0].layout.title} is here; the other tower is missing."))
        else:
            alone.append(Broken(files, "There are several towers, and which belong together cannot be told."))
    return whole, alone


def _variants_of(files: Sequence[Path], wanted: str | None, known: Mapping[str, str]) -> tuple[str, ...]:
    """The variant of a transformer by its file's name, its pipeline's index, a known checksum, or the user's word."""
    hint = _hint(files[0])
    if hint is None and known:
        hint = known.get(sha256_of(files[0]))
    hint = hint or wanted
    return RELEASED if hint is None else (hint,)


def _hint(path: Path) -> str | None:
    """The variant that a file's name or its surroundings tell; None where they tell nothing."""
    name, folders = path.stem.lower(), [part.lower() for part in path.parts[-5:-1]]
    if "960" in name and re.search(r"(?<!\d)10\s?s", name):
        return "960x960_10s"
    if "960" in name and (re.search(r"(?<!\d)5\s?s", name) or name == "model_960x960"):
        return "960x960_5s"
    if "720" in name:
        return "720x720_5s"
    if name in {"model", "model_fp8_e4m3fn"} and any(re.search(r"(^|-)ovi($|[-_])", folder) for folder in folders):
        return "720x720_5s"
    index = path.parent.parent / "model_index.json"
    try:
        told = json.loads(index.read_text(encoding="utf-8")).get("variant")
    except (OSError, ValueError, AttributeError):
        return None
    return told if told in RELEASED else None
