"""First-block cache: a step whose first block changes little reuses what the other blocks added the step before.

    block 0 → change of what it adds, against the last step that ran all blocks
                small: its output + what blocks 1 … n added then        large: run them, and remember

Approximate, and known from image models. diffusers has one, which looks at one stream; here both streams are looked
at, and the one that changes more decides: sound that changes while the picture stands still is not left stale.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ovi_studio.model.transformer import OviTransformer
from ovi_studio.runtime.streaming import ForwardWraps

Streams: TypeAlias = tuple[Tensor | None, Tensor | None]  # video and audio tokens; None for one that is not run


@dataclass
class _Memory:
    """Of one guidance pass: what its first block and the others added when all of them ran."""

    first: Streams = (None, None)
    first_out: Streams = (None, None)
    others: Streams | None = None


class FirstBlockCache:
    """The memories of a run's passes, told apart by their text.

    Args:
        threshold: change, relative, below which the other blocks are left out.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._memories: dict[tuple[int, int], _Memory] = {}  # by where the text lies, and its samples
        self._memory = _Memory()  # of the pass that runs
        self._skips = False

    @contextlib.contextmanager
    def on(self, transformer: OviTransformer) -> Iterator[None]:
        """While this lasts, the transformer's blocks go through the cache. Put it outside of all other wraps."""
        wraps = ForwardWraps()
        first, *between, last = transformer.blocks
        wraps.wrap(transformer, self._enter)
        wraps.wrap(first, self._run_first)
        for block in between:
            wraps.wrap(block, self._run_other)
        wraps.wrap(last, functools.partial(self._run_other, is_last=True))
        try:
            yield
        finally:
            wraps.remove()
            self.forget()

    def forget(self) -> None:
        """A run is over: the next one starts without memories."""
        self._memories.clear()
        self._memory = _Memory()

    def _enter(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A pass begins: its memory is found by where its text lies, and how many samples it has."""
        text = kwargs.get("text_key_values")
        if text is not None:
            tensor = next(kv.key_BSNK for kv in text[0] if kv is not None)
        else:
            tensor = kwargs.get("encoder_hidden_states", args[3] if len(args) > 3 else None)
        if isinstance(tensor, Tensor) and not kwargs.get("only_text"):
            samples = len(tensor)  # with guidance and without it: what the one remembers is of no use to the other
            self._memories = {key: memory for key, memory in self._memories.items() if key[1] == samples}
            self._memory = self._memories.setdefault((tensor.data_ptr(), samples), _Memory())
        return forward(*args, **kwargs)

    def _run_first(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._skips = False
        out = forward(*args, **kwargs)
        if kwargs.get("only_text"):
            return out
        memory = self._memory
        added = _difference(out, (args[0], args[1]))
        self._skips = memory.others is not None and _change(added, memory.first) <= self._threshold
        if self._skips and memory.others is not None:
            return _sum(out, memory.others)
        memory.first, memory.first_out = added, out
        return out

    def _run_other(self, forward: Callable[..., Any], *args: Any, is_last: bool = False, **kwargs: Any) -> Any:
        if kwargs.get("only_text"):
            return forward(*args, **kwargs)
        if self._skips:
            return args[0], args[1]
        out = forward(*args, **kwargs)
        if is_last:
            self._memory.others = _difference(out, self._memory.first_out)
            self._memory.first_out = (None, None)
        return out


def _difference(one: Streams, other: Streams) -> Streams:
    video, audio = (None if a is None or b is None else a - b for a, b in zip(one, other, strict=True))
    return video, audio


def _sum(one: Streams, other: Streams) -> Streams:
    video, audio = (None if a is None or b is None else a + b for a, b in zip(one, other, strict=True))
    return video, audio


def _change(now: Streams, before: Streams) -> float:
    """Of the stream that changed more: mean of the difference over mean of what was before. Waits for the device."""
    changes = [
        (a - b).abs().mean() / b.abs().mean()
        for a, b in zip(now, before, strict=True)
        if a is not None and b is not None
    ]
    return float(torch.stack(changes).max())
