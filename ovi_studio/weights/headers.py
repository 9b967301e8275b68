"""What weight files hold, by their headers: names, shapes, types and places of tensors. Without torch.

read_header(path)       one safetensors file
joined(parts)           the shards of one model together
PICKLES                 suffixes of files whose contents only torch can tell: see `pickles.py`
converted_path(path)    where such a file's safetensors are kept
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ovi_studio.errors import WeightsError

PICKLES = frozenset({".pth", ".pt", ".ckpt", ".bin"})
WEIGHTS = PICKLES | {".safetensors"}
FLOATS = frozenset({"F32", "F16", "BF16"})
FLOATS_8 = frozenset({"F8_E4M3", "F8_E5M2"})

_LENGTH_BYTES = 8  # a safetensors file begins with the header's length
_LFS_POINTER = b"version https://git-lfs"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file.

    Args:
        file: that holds it.
        name: there.
        dtype: as safetensors write it: "BF16", "F8_E4M3".
        shape: of the tensor.
        start: its first byte in the file.
        size: bytes.
    """

    file: Path
    name: str
    dtype: str
    shape: Shape
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """A safetensors file's header: its tensors by name, and the texts its maker added."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file. The library checks it: its length, its places, the end of the file.

    Raises:
        WeightsError: the file is missing, cut short, or something else.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(_LENGTH_BYTES))
            entries = json.loads(file.read(length))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    metadata = entries.pop("__metadata__", {})
    return Header({name: _info(path, name, entry, length) for name, entry in entries.items()}, metadata)


def converted_path(path: Path) -> Path:
    """Where the conversion of a pickle to safetensors lies: beside it, or beside the link to it."""
    return path.with_name(f"{path.name}.safetensors")


def converting_paths(path: Path) -> tuple[Path, Path]:
    """The beginning of that conversion, and the lock that is held meanwhile."""
    return path.with_name(f".{converted_path(path).name}.part"), path.with_name(f".{path.name}.lock")


def joined(parts: Iterable[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """The tensors of several files together.

    Raises:
        WeightsError: two files hold a tensor of the same name.
    """
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, info in part.items():
            if name in tensors:
                raise WeightsError(
                    f"The tensor {name!r} is in {tensors[name].file} and again in {info.file}.",
                    "Give the files of one model only.",
                )
            tensors[name] = info
    return tensors


def _info(path: Path, name: str, entry: Mapping[str, Any], header: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    return TensorInfo(path, name, entry["dtype"], tuple(entry["shape"]), _LENGTH_BYTES + header + begin, end - begin)


def _damaged(path: Path, reason: str) -> WeightsError:
    with path.open("rb") as file:
        pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    if pointer:
        return WeightsError(f"{path} is only a pointer of Git LFS, not the weights.", "Fetch the file: git lfs pull.")
    if "not fully covered" in reason:
        return WeightsError(f"{path} is cut short: it ends before its last tensor.", "Copy or download it again.")
    return WeightsError(f"{path} is damaged or no safetensors file ({reason}).", "Copy or download it again.")
