"""Sets of weights that move together, and the homes they have: host memory or mapped files.

A set knows its weights as the plain tensors that they consist of, and can lay them out one after the other in a piece
of memory of any kind: pinned, a file's, or a card's.
"""

import ctypes
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ovi_studio.errors import EngineError, OutOfMemoryError
from ovi_studio.runtime.execution_plan import Home

_ALIGNMENT = 256  # bytes; what CUDA gives an allocation of its own
_PAGE = 4096  # bytes; memory is pinned by pages


@dataclass
class _Weight:
    """A parameter or buffer at home, and the places in modules that hold it (several, where weights are tied)."""

    home: Tensor
    holders: list[tuple[dict[str, Any], str]]


class WeightSet:
    """The parameters and buffers that belong to some modules themselves (not to their children), moved together."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found: dict[int, _Weight] = {}
        for module in modules:
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        found.setdefault(id(tensor), _Weight(tensor, [])).holders.append((table, name))
        self._weights = list(found.values())

    @property
    def nbytes(self) -> int:
        """Bytes of a slot that holds them all."""
        return sum(_aligned(plain.nbytes) for weight in self._weights for plain in plain_tensors(weight.home))

    def put(self, tensors: Iterable[Tensor]) -> None:
        """The modules hold these, in the order of the set, instead of what is at home."""
        for weight, tensor in zip(self._weights, tensors, strict=True):
            new = tensor
            if isinstance(weight.home, nn.Parameter) and not isinstance(tensor, nn.Parameter):
                new = nn.Parameter(tensor, requires_grad=weight.home.requires_grad)
            for table, name in weight.holders:
                table[name] = new

    def send_home(self) -> None:
        """The modules hold what is at home."""
        self.put(weight.home for weight in self._weights)

    def bring(self, device: torch.device) -> None:
        """The modules hold copies on `device`."""
        self.put(
            [
                reassembled(weight.home, (plain.to(device, copy=True) for plain in plain_tensors(weight.home)))
                for weight in self._weights
            ]
        )

    def views(self, memory: Tensor) -> list[Tensor]:
        """The weights as they lie in `memory` after `copy_to`."""
        plain = _views(memory, [plain for weight in self._weights for plain in plain_tensors(weight.home)])
        return [reassembled(weight.home, plain) for weight in self._weights]

    def copy_to(self, memory: Tensor) -> None:
        """Copies what is at home to `memory`, a byte tensor on any device."""
        plain = [plain for weight in self._weights for plain in plain_tensors(weight.home)]
        for view, source in zip(_views(memory, plain), plain, strict=True):
            view.copy_(source, non_blocking=True)

    def move_home(self, store: "HomeStore") -> None:
        """Moves their home to memory or a file of the store, in one piece."""
        if not self._weights:
            return
        memory = store.allocate(self.nbytes)
        self.copy_to(memory)
        for weight, tensor in zip(self._weights, self.views(memory), strict=True):
            self._replace_home(weight, tensor)
        self.send_home()

    def discard(self) -> None:
        """The modules hold nothing any more."""
        self.put([torch.empty(0, device="meta") for _ in self._weights])

    @staticmethod
    def _replace_home(weight: _Weight, tensor: Tensor) -> None:
        if isinstance(weight.home, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=weight.home.requires_grad)
        weight.home = tensor


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors that a quantized one consists of; of any other one, itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor.detach()]
    names, _ = tensor.__tensor_flatten__()
    return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]


def reassembled(like: Tensor, plain: Iterator[Tensor]) -> Tensor:
    """A tensor as `like`, consisting of the next ones of `plain`."""
    if not is_traceable_wrapper_subclass(like):
        return next(plain)
    names, context = like.__tensor_flatten__()
    inner = {name: reassembled(getattr(like, name), plain) for name in names}
    return type(like).__tensor_unflatten__(inner, context, like.size(), like.stride())


def _views(memory: Tensor, plain: Iterable[Tensor]) -> Iterator[Tensor]:
    """Views of a byte tensor, one after the other, shaped as these tensors; strides are kept where they are dense."""
    start = 0
    for tensor in plain:
        view = memory[start : start + tensor.nbytes].view(tensor.dtype)
        dense = torch.empty_like(tensor, device="meta").stride()
        yield view.as_strided(tensor.size(), dense)
        start += _aligned(tensor.nbytes)


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def give_back_freed() -> None:
    """Returns to the system what the C library keeps of freed memory, where it can be told to (glibc).

    It keeps a lot where large pieces of changing sizes come and go: while 0.4 GB of layers were narrowed to 0.2 GB it
    kept 1.1 GB (measured, glibc 2.36).
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


class HomeStore:
    """Where streamed and staged weights are at home: host memory, pinned for a card, or files that are mapped.

    Files rather than the released ones, because quantized weights are in no file, and because a block's tensors
    should lie side by side. They are written once, read as often as they are streamed, and left to the operating
    system to keep in memory or not.

    Args:
        home: "host" or "disk".
        pin: whether host memory is pinned.
        folder: for the files; whoever made it removes it.
        name: of the files.
    """

    def __init__(self, home: Home, *, pin: bool, folder: Path, name: str) -> None:
        self.home = home
        self._pin = pin
        self._folder = folder
        self._name = name
        self._files = 0
        self._pinned: list[Tensor] = []

    def allocate(self, count: int) -> Tensor:
        """A byte tensor of `count` elements.

        Raises:
            OutOfMemoryError: memory cannot be pinned.
            EngineError: the disk is full.
        """
        if self.home == "disk":
            if count > shutil.disk_usage(self._folder).free:  # a mapped file that cannot grow kills the process
                raise EngineError(
                    f"The disk of {self._folder} has no room for {count / 2**30:.1f} GB of weights more.",
                    "Make room there, choose a smaller model, or close programs so that the weights fit in RAM.",
                )
            self._files += 1
            path = self._folder / f"{self._name}-{self._files}.weights"
            return torch.from_file(str(path), shared=True, size=count, dtype=torch.uint8)
        if not self._pin:
            return torch.empty(count, dtype=torch.uint8)
        # Whole pages, as neighbours cannot share one that is pinned. Not torch's pinned memory: its allocator
        # rounds up to a power of two, a third more at full size, and never gives back.
        pages = -(-count // _PAGE) * _PAGE
        memory = torch.empty(pages + _PAGE, dtype=torch.uint8)
        start = -memory.data_ptr() % _PAGE
        memory = memory[start : start + pages]
        error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), pages, 0)
        if int(error) != 0:
            raise OutOfMemoryError(
                f"{pages / 2**30:.1f} GB of host memory could not be pinned ({error}).",
                "Close other programs, raise the limit of locked memory (ulimit -l), or stream from disk.",
            )
        self._pinned.append(memory)
        return memory[:count]

    def close(self) -> None:
        """Unpins the memory; what lies in it stays."""
        while self._pinned:
            torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(self._pinned.pop().data_ptr())))
