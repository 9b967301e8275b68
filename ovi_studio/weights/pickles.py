"""Pickled checkpoints (`.pth`, `.pt`): looked into without running what they hold, and turned into safetensors once.

    tensors_in(path)        what it holds, read from its index; the data stay on the disk
    as_safetensors(path)    the same tensors in `NAME.pth.safetensors` beside it, written at the first call

The converted file is written tensor by tensor under a passing name and takes its own when it is whole. A run that
was cut off goes on behind the last whole tensor.
"""

import json
import os
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub.utils import WeakFileLock
from torch import Tensor

from ovi_studio.errors import WeightsError
from ovi_studio.weights.headers import TensorInfo, converted_path, converting_paths, read_header

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how torch's checkpoints begin, and those from before version 1.6
_ENTRY = "generator"  # where the vocoder's file, a training checkpoint, keeps the tensors
# What torch's own unpickler raises of a damaged file.
_UNFIT = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
# What it says where the file asks for something to be called or built that is no tensor.
_CODE = re.compile(r"GLOBAL|reduce|NEWOBJ|BUILD|create new object")
_DAMAGED = "Copy or download it again."


def tensors_in(path: Path) -> dict[str, TensorInfo]:
    """What a pickled checkpoint holds. Nothing in it is run.

    Raises:
        WeightsError: it is missing, damaged, or holds more than tensors.
    """
    return {
        name: TensorInfo(path, name, _dtype_name(path, name, tensor), tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in _load(path).items()
    }


def as_safetensors(path: Path) -> Path:
    """The same tensors as a safetensors file beside it; `path` itself, if it is one.

    Raises:
        WeightsError: the checkpoint is missing, damaged or holds more than tensors, or nothing can be written here.
    """
    if path.suffix == ".safetensors":
        return path
    target, (part, lock) = converted_path(path), converting_paths(path)
    if _is_current(target, path):
        return target
    state = _load(path)
    try:
        with WeakFileLock(lock):
            if not _is_current(target, path):  # else another process was quicker
                _write(part, state, _stamp(path))
                part.replace(target)
            lock.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be converted: {target} cannot be written ({error.strerror or error}).",
            "Free some space or mend the permissions; or import the folder, which leaves it as it is.",
        ) from error
    return target


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors, mapped from the disk where the format allows."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_ZIP))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    if beginning != _ZIP and not beginning.startswith(_PICKLE):
        raise WeightsError(f"{path} is damaged or no checkpoint.", _DAMAGED)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=beginning == _ZIP)
    except _UNFIT as error:
        if isinstance(error, pickle.UnpicklingError) and _CODE.search(str(error)):
            raise WeightsError(
                f"{path} holds more than tensors: to load it would run code from the file.",
                "Do not trust it; get the weights as safetensors.",
            ) from error
        raise WeightsError(f"{path} is damaged or cut short.", _DAMAGED) from error
    state = loaded.get(_ENTRY, loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} is no state dict of tensors.", "Give the weights of a model.")
    return {str(name): tensor for name, tensor in state.items()}


def _dtype_name(path: Path, name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPE_NAMES:
        raise WeightsError(f"In {path} the tensor {name!r} is {tensor.dtype}.", "Give weights in a usual precision.")
    return _DTYPE_NAMES[tensor.dtype]


# --- Writing ----------------------------------------------------------------------------------------------


def _stamp(path: Path) -> dict[str, str]:
    """What tells that the original is still the one that was converted."""
    status = path.stat()
    return {"source_size": str(status.st_size), "source_mtime_ns": str(status.st_mtime_ns)}


def _is_current(target: Path, path: Path) -> bool:
    try:
        return target.exists() and path.exists() and read_header(target).metadata == _stamp(path)
    except WeightsError:  # damaged: it can be made again
        return False


def _write(part: Path, state: Mapping[str, Tensor], stamp: Mapping[str, str]) -> None:
    """Writes the file, or the rest of it."""
    header = _header(part, state, stamp)
    with part.open("r+b" if part.exists() else "w+b") as file:
        for tensor in _resume(file, header, state.values()):
            file.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def _header(path: Path, state: Mapping[str, Tensor], stamp: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": stamp}
    end = 0
    for name, tensor in state.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _dtype_name(path, name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes, as the format asks
    return struct.pack("<Q", len(text)) + text


def _resume(file: BinaryIO, header: bytes, tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that are not yet in the file, which is left open at the place of the first of them."""
    remaining = list(tensors)
    if file.read(len(header)) != header:
        file.seek(0)
        file.truncate()
        file.write(header)
        return remaining
    place, size = len(header), file.seek(0, os.SEEK_END)
    while remaining and place + remaining[0].nbytes <= size:
        place += remaining.pop(0).nbytes
    file.seek(place)
    file.truncate()
    return remaining
