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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ovi_studio.runtime.homes import HomeStore, WeightSet
from ovi_studio.runtime.memory import PREFETCHED_BLOCKS
from ovi_studio.runtime.quantize import Parts

# Where weights that are on the device are when a plan has been taken off: in host memory; still there, for the plan
# that follows; or nowhere. All others are at home.
Leaving: TypeAlias = Literal["home", "stay", "discard"]


class Placed(Protocol):
    """A component that was given a place."""

    def enter(self) -> None:
        """Its stage begins: the weights come."""

    def leave(self) -> None:
        """Its stage ends: the weights go, as far as they do not stay."""

    def remove(self, leaving: Leaving) -> None:
        """Takes the placement off."""


class Resident:
    """On the device until taken off; the weights are there already."""

    def __init__(self, component: nn.Module) -> None:
        self._component = component

    def enter(self) -> None:
        """See `Placed`: they stay."""

    def leave(self) -> None:
        """See `Placed`: they stay."""

    def remove(self, leaving: Leaving) -> None:
        """See `Placed`."""
        if leaving == "discard":
            WeightSet(self._component.modules()).discard()
        elif leaving == "home":
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

    def remove(self, leaving: Leaving) -> None:
        """See `Placed`."""
        if leaving != "discard":
            self._component.to("cpu")


class Staged:
    """On the device between `enter` and `leave`, whole.

    Args:
        parts: the component.
        device: where it is run.
        store: home of the weights.
        move: whether they move there; else they are in host memory and stay where they are.
    """

    def __init__(self, parts: Parts, device: torch.device, store: HomeStore, *, move: bool) -> None:
        self._device = device
        self._weights = [self._at_home(block.modules(), store, move) for block in parts.blocks()]
        self._weights.append(self._at_home(parts.outside(), store, move))

    @staticmethod
    def _at_home(modules: Iterable[nn.Module], store: HomeStore, move: bool) -> WeightSet:
        weights = WeightSet(modules)
        if move:
            weights.move_home(store)
        return weights

    def enter(self) -> None:
        """See `Placed`."""
        for weights in self._weights:
            weights.bring(self._device)

    def leave(self) -> None:
        """See `Placed`."""
        for weights in self._weights:
            weights.send_home()

    def remove(self, leaving: Leaving) -> None:  # noqa: ARG002  there is nothing on the device
        """See `Placed`."""
        self.leave()


class Streamed:
    """On the device between `enter` and `leave`, block by block.

    Args:
        parts: the component, whose blocks are called one after the other.
        resident_blocks: how many of the first blocks stay on the device during the stage.
        outside_resident: whether what is outside of the blocks does; else each module brings its own weights while
            it runs.
        device: where it is run.
        store: home of the weights.
    """

    def __init__(
        self, parts: Parts, resident_blocks: int, outside_resident: bool, device: torch.device, store: HomeStore
    ) -> None:
        self._device = device
        self._wraps = ForwardWraps()
        self._stream = BlockStream(device, self._wraps)
        self._kept: list[WeightSet] = []
        self._entered = False
        for index, block in enumerate(parts.blocks()):
            weights = WeightSet(block.modules())
            weights.move_home(store)
            if index < resident_blocks:
                self._kept.append(weights)
            else:
                self._stream.add(block, weights)
        outside = parts.outside()
        for modules in [outside] if outside_resident else [[module] for module in outside]:
            weights = WeightSet(modules)
            weights.move_home(store)
            if outside_resident:
                self._kept.append(weights)
            elif weights.nbytes:
                self._wraps.wrap(modules[0], functools.partial(self._run_with, weights))

    def enter(self) -> None:
        """See `Placed`."""
        for weights in self._kept:
            weights.bring(self._device)
        self._stream.start()
        self._entered = True

    def leave(self) -> None:
        """See `Placed`."""
        self._entered = False
        self._stream.stop()
        for weights in self._kept:
            weights.send_home()

    def remove(self, leaving: Leaving) -> None:  # noqa: ARG002  there is nothing on the device
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


@dataclass(eq=False)  # a slot is itself alone: equal memory is another place
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
        device: where the blocks run. On a CPU the copies are made all the same, without a stream.
        wraps: where the wrappers around the blocks' `forward` are noted.
    """

    def __init__(self, device: torch.device, wraps: "ForwardWraps") -> None:
        self._device = device
        self._wraps = wraps
        self._weights: list[WeightSet] = []
        self._slots: list[_Slot] = []  # the one used longest ago comes first
        self._copies: torch.cuda.Stream | None = None

    def add(self, block: nn.Module, weights: WeightSet) -> None:
        """The next block to stream, and its weights, which are at home."""
        self._wraps.wrap(block, functools.partial(self._run, len(self._weights)))
        self._weights.append(weights)

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
