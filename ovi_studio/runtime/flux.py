"""Puts a part of FLUX.1 on the device as a plan says, for as long as its turn lasts.

    with at_work(transformer, plan.components["flux_transformer"], device, folder):
        ...

Unlike Ovi's components, whose places last from run to run, nothing is left of a part when its turn is over.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from ovi_studio.runtime.execution_plan import ComponentPlan
from ovi_studio.runtime.homes import HomeStore, WeightSet
from ovi_studio.runtime.quantize import Parts
from ovi_studio.runtime.streaming import Streamed


@contextlib.contextmanager
def at_work(part: nn.Module, planned: ComponentPlan, device: torch.device, folder: Path) -> Iterator[None]:
    """While this lasts, the part is on the device; then it has no weights any more.

    Args:
        part: loaded to the CPU, its weights best mapped from their files.
        planned: its precision and place.
        device: where it runs.
        folder: existing, for weights that are streamed from disk.

    Raises:
        EngineError: a package is missing, or the disk is full.
        OutOfMemoryError: host memory cannot be pinned.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(_free, device)
        undo.callback(lambda: WeightSet(part.modules()).discard())
        if planned.placement != "streamed":
            Parts(part, blocks_of(part), planned.precision, device, device).all()
        else:
            if planned.home == "disk":
                temporary = tempfile.TemporaryDirectory(prefix="flux-", dir=folder, ignore_cleanup_errors=True)
                folder = Path(undo.enter_context(temporary))
            store = HomeStore(planned.home, pin=device.type == "cuda", folder=folder, name=type(part).__name__)
            undo.callback(store.close)
            parts = Parts(part, blocks_of(part), planned.precision, device, torch.device("cpu"))
            streamed = Streamed(parts, planned.resident_blocks, True, device, store)
            undo.callback(streamed.remove, "discard")
            streamed.enter()
        yield


def blocks_of(part: nn.Module) -> Sequence[nn.Module]:
    """What repeats in FLUX.1's transformer and in T5; of other parts nothing does."""
    encoder = getattr(part, "encoder", None)
    lists = (getattr(part, "transformer_blocks", ()), getattr(part, "single_transformer_blocks", ()))
    return [*lists[0], *lists[1], *getattr(encoder, "block", ())]


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
