"""What the tensors of a piece of work take at its widest moment, traced allocation by allocation.

    with Allocations() as traced:
        pipeline.transformer(...)
    print(traced.peak)

Works on any device, and on "meta", where a full-size model is nothing but shapes: there `FusedAttention` stands for the
kernel that torch would take apart.

What is counted are tensors. What a kernel needs inside of one operation is not: the unfolded input of a CPU's 3-D
convolution, a workspace of cuDNN, the blocks of flash attention. `cpu_allocator_peak` counts that too.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is entered, and die.

    Attributes:
        live: bytes of the tensors alive now.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and notes what it made: storages that none of its arguments has."""
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._storages:
                self._note(storage)
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def died(_: object) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, died)
        self.live += size
        self.peak = max(self.peak, self.live)


class FusedAttention(TorchFunctionMode):
    """Attention as one kernel that allocates nothing but its result."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stands in for `scaled_dot_product_attention`."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else kwargs["query"])
        return func(*args, **kwargs)


def cpu_allocator_peak(work: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator gave out at once while `work` ran, scratch memory included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    results = recorded.profiler.kineto_results if recorded.profiler is not None else None
    events = [event for event in results.events() if event.name() == "[memory]"] if results is not None else []
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
