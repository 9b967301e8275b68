"""Where a component's weights are, and how they come to the device and leave it.

    Resident   on the device until taken off
    Staged     on the device between `enter` and `leave`, whole
    Streamed   between `enter` and `leave` block by block: each is copied while the one before it runs

A weight's *home* is where it waits: host memory (pinned where it is streamed to a card), or a file that is mapped into
memory. Coming means that the module gets another tensor, leaving that it gets the one at home back: nothing is ever
copied home, and a home that went nowhere is what it was, bit by bit.

diffusers' group offload is not used: it cannot keep some blocks on the device, and pins a model as a whole.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ovi_studio.runtime.homes import HomeStore, WeightSet
from ovi_studio.runtime.memory import PREFETCHED_BLOCKS


class Placed(Protocol):
    """A component that was given a place."""

    def enter(self) -> None:
        """Its stage begins: the weights come."""

    def leave(self) -> None:
        """Its stage ends: the weights go, as far as they do not stay."""

    def remove(self, discard: bool) -> None:
        """Takes the placement off: the weights are in host memory or mapped, or with `discard` nowhere."""


class Resident:
    """On the device until taken off."""

    def __init__(self, component: nn.Module, device: torch.device) -> None:
        self._component = component.to(device)

    def enter(self) -> None:
        """The weights are there already."""

    def leave(self) -> None:
        """The weights stay."""

    def remove(self, discard: bool) -> None:
        """See `Placed`."""
        if discard:
            WeightSet(self._component.modules()).discard()
        else:
            self._component.to("cpu")


class StagedWhole:
    """On the device between `enter` and `leave`, moved by the component itself; home is host memory.

    For bitsandbytes, whose modules keep more than their parameters.
    """

    def __init__(self, component: nn.Module, device: torch.device) -> None:
        self._component = component
        self._device = device

    def enter(self) -> None:
        """See `Placed`."""
        self._component.to(self._device)

    def leave(self) -> None:
        """See `Placed`."""
        self._component.to("cpu")

    def remove(self, discard: bool) -> None:
        """See `Placed`."""
        if not discard:
            self._component.to("cpu")


class Staged:
    """On the device between `enter` and `leave`, whole."""

    def __init__(self, component: nn.Module, device: torch.device, store: HomeStore) -> None:
        component.to("cpu")
        self._device = device
        self._weights = WeightSet(component.modules())
        if store.home == "disk":
            self._weights.move_home(store)

    def enter(self) -> None:
        """See `Placed`."""
        self._weights.bring(self._device)

    def leave(self) -> None:
        """See `Placed`."""
        self._weights.send_home()

    def remove(self, discard: bool) -> None:  # noqa: ARG002  there is nothing on the device
        """See `Placed`."""
        self._weights.send_home()


class Streamed:
    """On the device between `enter` and `leave`, block by block.

    Args:
        component: the whole.
        blocks: its blocks, which are called one after the other.
        resident_blocks: how many of the first blocks stay on the device during the stage.
        outside_resident: whether what is outside of the blocks does; else each module brings its own weights while
            it runs.
        device: where it is run.
        store: home of the weights.
    """

    def __init__(
        self,
        component: nn.Module,
        blocks: Sequence[nn.Module],
        resident_blocks: int,
        outside_resident: bool,
        device: torch.device,
        store: HomeStore,
    ) -> None:
        component.to("cpu")
        inside = {module for block in blocks for module in block.modules()}
        outside = [module for module in component.modules() if module not in inside]
        kept = [module for block in blocks[:resident_blocks] for module in block.modules()]
        self._device = device
        self._wraps = ForwardWraps()
        self._kept = WeightSet([*kept, *(outside if outside_resident else ())])
        self._kept.move_home(store)
        self._stream = BlockStream(blocks[resident_blocks:], device, store, self._wraps)
        self._entered = False
        for module in () if outside_resident else outside:
            weights = WeightSet([module])
            if weights.nbytes:
                weights.move_home(store)
                self._wraps.wrap(module, functools.partial(self._run_with, weights))

    def enter(self) -> None:
        """See `Placed`."""
        self._kept.bring(self._device)
        self._stream.start()
        self._entered = True

    def leave(self) -> None:
        """See `Placed`."""
        self._entered = False
        self._stream.stop()
        self._kept.send_home()

    def remove(self, discard: bool) -> None:  # noqa: ARG002  there is nothing on the device
        """See `Placed`."""
        self.leave()
        self._wraps.remove()

    def _run_with(self, weights: WeightSet, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A module outside of the blocks, with its own weights and no longer than it runs."""
        if not self._entered:
            return forward(*args, **kwargs)
        weights.bring(self._device)
        try:
            return forward(*args, **kwargs)
        finally:
            weights.send_home()


# --- Streaming --------------------------------------------------------------------------------------------


@dataclass
class _Slot:
    """Memory on the device for one block, and which block is in it (-1: none).

    Args:
        memory: bytes.
        index: of the block.
        copied: on a card, when the block is there.
        used: on a card, when the block has run.
    """

    memory: Tensor
    index: int = -1
    copied: torch.cuda.Event | None = None
    used: torch.cuda.Event | None = None


class BlockStream:
    """Copies the block after the one that runs, on a CUDA stream of its own, into one of two slots.

    While block i runs, block i+1 comes into the slot that block i-1 has left; after the last comes the first, for the
    next forward. Any order of calls is right, only slower: a block that is in no slot is fetched when it is called.
    The copy is queued after the block's kernels, so that a copy that makes the host wait (from a file) waits while
    the card works.

    Args:
        blocks: those to stream.
        device: where they run. On a CPU the copies are made all the same, without a stream.
        store: home of their weights.
        wraps: where the wrappers around the blocks' `forward` are noted.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device, store: HomeStore, wraps: "ForwardWraps"
    ) -> None:
        self._device = device
        self._weights = [WeightSet(block.modules()) for block in blocks]
        self._slots: list[_Slot] = []  # the one used longest ago comes first
        self._copies: torch.cuda.Stream | None = None
        for index, (block, weights) in enumerate(zip(blocks, self._weights, strict=True)):
            weights.move_home(store)
            wraps.wrap(block, functools.partial(self._run, index))

    def start(self) -> None:
        """Makes the slots; the first block is on its way."""
        self.stop()
        size = max((weights.nbytes for weights in self._weights), default=0)
        count = min(PREFETCHED_BLOCKS, len(self._weights))
        self._slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=self._device)) for _ in range(count)]
        if self._device.type == "cuda":
            self._copies = torch.cuda.Stream(self._device)
            self._copies.wait_stream(torch.cuda.current_stream(self._device))  # what the memory was used for before
        if self._slots:
            self._fetch(0)

    def stop(self) -> None:
        """Gives the slots back."""
        if self._copies is not None:
            self._copies.synchronize()
        self._copies = None
        self._slots = []

    def _run(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._slots:
            return forward(*args, **kwargs)
        slot = self._fetch(index)
        if slot.copied is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.copied)
        weights = self._weights[index]
        weights.put(weights.views(slot.memory))
        try:
            output = forward(*args, **kwargs)
        finally:
            weights.send_home()
            self._mark_used(slot)
        self._fetch((index + 1) % len(self._weights))
        return output

    def _fetch(self, index: int) -> _Slot:
        """The slot that the block is in, or will be in when the slot's copy is done."""
        for slot in self._slots:
            if slot.index == index:
                return slot
        slot = self._slots[0]
        slot.index = -1
        if self._copies is None:
            self._weights[index].copy_to(slot.memory)
        else:
            if slot.used is not None:
                self._copies.wait_event(slot.used)
            with torch.cuda.stream(self._copies):
                self._weights[index].copy_to(slot.memory)
                slot.copied = torch.cuda.Event()
                slot.copied.record(self._copies)
        slot.index = index
        return slot

    def _mark_used(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        self._slots.append(slot)
        if self._copies is not None:
            slot.used = torch.cuda.Event()
            slot.used.record(torch.cuda.current_stream(self._device))


class ForwardWraps:
    """Functions put around modules' `forward`, taken off again in reverse order.

    Not torch's hooks, because what wraps last must be outermost: a step cache that leaves a block out also leaves out
    its streaming, and compiled code begins inside of both.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, object]] = []

    def wrap(self, module: nn.Module, around: Callable[..., Any]) -> None:
        """From now on `module(...)` is `around(forward, ...)`."""
        self.replace(module, functools.partial(around, module.forward))

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """From now on `module(...)` is `forward(...)`."""
        self._before.append((module, vars(module).get("forward")))
        module.forward = forward

    def remove(self) -> None:
        """Every `forward` is what it was."""
        while self._before:
            module, before = self._before.pop()
            vars(module).pop("forward", None)
            if before is not None:
                vars(module)["forward"] = before
