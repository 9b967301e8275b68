"""Sharded weights: every card of a run keeps a share of each block, and has a block whole only while it runs.

torch's `fully_shard`, block by block: while one block runs the shares of the next are gathered. What is outside of the
blocks, a fiftieth of the model, is on every card.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from ovi_studio.runtime.homes import WeightSet
from ovi_studio.runtime.quantize import Parts, spend
from ovi_studio.runtime.streaming import Leaving


class Sharded:
    """On the cards of a run, a share on each, until taken off: then the component has to be loaded again.

    Args:
        component: whose blocks are called one after the other, on all cards in the same order.
        parts: the same, in float32 or bf16 and kept on the device: blocks come whole and are cut there.
        mesh: the cards.
    """

    def __init__(self, component: nn.Module, parts: Parts, mesh: DeviceMesh) -> None:
        self._component = component
        spend(component)
        for block in parts.blocks():
            fully_shard(block, mesh=mesh)
        outside = {parameter for module in parts.outside() for parameter in module.parameters(recurse=False)}
        fully_shard(component, mesh=mesh, ignored_params=outside)

    def enter(self) -> None:
        """See `Placed`: they stay."""

    def leave(self) -> None:
        """See `Placed`: they stay."""

    def remove(self, leaving: Leaving) -> None:  # noqa: ARG002  nobody has the whole of them
        """See `Placed`."""
        with torch.no_grad():
            WeightSet(self._component.modules()).discard()
