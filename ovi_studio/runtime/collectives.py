"""Exchanges of tensors between the ranks of a run, and how many bytes they send.

Sizes are known to every rank before an exchange, so none is asked for: no rank waits for a number from a card.
Counted is the payload that leaves a rank, whatever way the backend takes it: of an all-to-all what goes to others,
of an all-gather its own part once for each of the others, of a broadcast the tensor once for each receiver.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Exchange:
    """Ranks of a run that exchange tensors, this one among them. Every one of them calls the same methods in order.

    Args:
        ranks: of the run, in the order in which this exchange counts its members.
        group: torch's group of them; None for a rank that is alone, which has nothing to exchange.
        rank: this process's, in the run.

    Attributes:
        sent_bytes: by this rank since it was set.
    """

    def __init__(self, ranks: Sequence[int], group: dist.ProcessGroup | None, rank: int) -> None:
        self.ranks = tuple(ranks)
        self.place = self.ranks.index(rank)
        self.group = group
        self.sent_bytes = 0

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.ranks)

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Gives part i to member i, and returns what member i gave, of `shapes[i]`. Parts may be empty."""
        sent = torch.cat([part.reshape(-1) for part in parts])
        counts = [torch.Size(shape).numel() for shape in shapes]
        received = sent.new_empty(sum(counts))
        dist.all_to_all_single(received, sent, counts, [part.numel() for part in parts], group=self.group)
        self.sent_bytes += (sent.numel() - parts[self.place].numel()) * sent.element_size()
        return [flat.view(*shape) for flat, shape in zip(received.split(counts), shapes, strict=True)]

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Everybody's tensor, all of one shape: (members, …)."""
        gathered = tensor.new_empty((self.size, *tensor.shape))
        dist.all_gather(list(gathered.unbind(0)), tensor.contiguous(), group=self.group)
        self.sent_bytes += (self.size - 1) * tensor.nbytes
        return gathered

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Member `source`'s tensor, written into everybody's, which is contiguous."""
        dist.broadcast(tensor, self.ranks[source], group=self.group)
        self.sent_bytes += (self.size - 1) * tensor.nbytes if self.place == source else 0
        return tensor

    def send(self, tensor: Tensor, to: int) -> None:
        """A tensor to a member, which receives it."""
        dist.send(tensor.contiguous(), self.ranks[to], group=self.group)
        self.sent_bytes += tensor.nbytes

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        """What a member sends, written into a contiguous tensor of the right shape."""
        dist.recv(tensor, self.ranks[source], group=self.group)
        return tensor
