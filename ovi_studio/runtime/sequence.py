"""Sequence parallel: the ranks of a group share the tokens of a clip's picture. Put on a transformer from outside.

    with sequence_parallel(transformer, exchange): transformer(...)   # on every rank, with the same arguments

                 rank 0            rank 1
    video   tokens 0 … n      tokens n+1 … V       every layer of tokens runs on a rank's own
    audio   all A tokens      all A tokens         computed by everybody: there are a hundred times fewer

- The picture's self-attention changes tokens for heads and back (Ulysses, arXiv 2309.14509): between the two
  all-to-alls a rank has all tokens of its heads. Tokens and heads need not divide: shares differ by one.
- The sound reads the picture's keys where they are. Each rank attends to its own, and the results are merged by their
  log-sum-exp (as in ring attention, arXiv 2310.01889): A queries travel instead of V keys.
- The picture reads the sound, and both read the text, without an exchange: those keys are everybody's.
- The head gives patches, 16 times narrower than tokens, and those are gathered.

diffusers' own context parallelism is not used: its plans split inputs evenly and know nothing of a clean first frame,
it changes tokens for heads in every attention alike, also where keys are everybody's, and asks all ranks for their
sizes, with a host synchronization, in each.

Shape suffixes as in `model/attention.py`, and G members of the group.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from ovi_studio.model.attention import AttentionProcessor, KeyValue, RotaryTable
from ovi_studio.model.transformer import FusionBlock, OviTransformer, StreamContext
from ovi_studio.runtime.collectives import Exchange
from ovi_studio.runtime.streaming import ForwardWraps
from ovi_studio.runtime.teams import shares


@contextlib.contextmanager
def sequence_parallel(transformer: OviTransformer, exchange: Exchange) -> Iterator[None]:
    """While this lasts, the transformer's video tokens are shared by the members of the exchange."""
    tokens = _VideoTokens(exchange)
    wraps = ForwardWraps()
    with contextlib.ExitStack() as undo:
        undo.callback(wraps.remove)
        for index, block in enumerate(cast("list[FusionBlock]", list(transformer.blocks))):
            own, reading = block.video.self_attn, block.audio.cross_attn
            _exchange_processor(undo, own, Ulysses(own.processor, tokens))
            _exchange_processor(undo, reading, MergedAttention(reading.processor, exchange))
            # The one place that tells the picture's keys from the text's.
            reading.__dict__["_project_other"] = functools.partial(_in_shards, reading._project_other)
            undo.callback(reading.__dict__.pop, "_project_other")
            wraps.wrap(block, functools.partial(tokens.run_block, index == 0))
        wraps.wrap(transformer.video.head, tokens.run_head)
        yield


def _exchange_processor(undo: contextlib.ExitStack, module: Any, processor: AttentionProcessor) -> None:
    undo.callback(setattr, module, "processor", module.processor)
    module.processor = processor


class _ShardedKeyValue(KeyValue):
    """Keys and values of a rank's own tokens; the other members have the others."""


def _in_shards(project: Callable[..., KeyValue], *args: Any) -> KeyValue:
    return _ShardedKeyValue(*project(*args))


class _VideoTokens:
    """Which of the video tokens are this rank's in the forward under way, and what the blocks are told of them."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.lengths: tuple[int, ...] = ()
        self._whole: StreamContext | None = None
        self._own: StreamContext | None = None

    def run_block(
        self,
        first: bool,
        forward: Callable[..., Any],
        hidden_states: Tensor | None,
        audio_hidden_states: Tensor | None,
        video: StreamContext | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """A block; the first one is given all tokens and takes this rank's."""
        if video is not None and hidden_states is not None:
            if first:
                hidden_states = self._begin(hidden_states, video)
            if video is self._whole:
                video = self._own
        return forward(hidden_states, audio_hidden_states, video, *args, **kwargs)

    def run_head(self, forward: Callable[..., Tensor], x_BLD: Tensor, time_BRD: Tensor, num_clean: int) -> Tensor:
        """The head on this rank's tokens, then everybody's patches."""
        num_clean = num_clean if self._own is None else self._own.num_clean
        patches_BLC = forward(x_BLD, time_BRD, num_clean)
        self._whole = self._own = None
        missing = max(self.lengths) - patches_BLC.shape[1]
        gathered_GBLC = self.exchange.all_gather(nn.functional.pad(patches_BLC, (0, 0, 0, missing)))
        return torch.cat([part[:, :length] for part, length in zip(gathered_GBLC, self.lengths, strict=True)], dim=1)

    def _begin(self, hidden_BVD: Tensor, video: StreamContext) -> Tensor:
        self.lengths = shares(hidden_BVD.shape[1], self.exchange.size)
        start = sum(self.lengths[: self.exchange.place])
        length = self.lengths[self.exchange.place]
        own = slice(start, start + length)
        num_clean = min(max(video.num_clean - start, 0), length)
        rotary = RotaryTable(*(table_QP[own] for table_QP in video.rotary))
        self._whole, self._own = video, video._replace(num_clean=num_clean, rotary=rotary)
        return hidden_BVD[:, own]


class Ulysses(AttentionProcessor):
    """Self-attention over all members' tokens: each member attends with a share of the heads.

    Args:
        inner: attends, on whatever kernel was chosen.
        tokens: how the tokens are shared.
    """

    def __init__(self, inner: AttentionProcessor, tokens: _VideoTokens) -> None:
        super().__init__()
        self._inner = inner
        self._tokens = tokens

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # exchanges are not for a compiler
    def __call__(self, query_BQNK: Tensor, memory: KeyValue) -> Tensor:
        """See `AttentionProcessor`; queries, keys and values are of this member's tokens."""
        exchange, lengths = self._tokens.exchange, self._tokens.lengths
        batch, own, heads, width = query_BQNK.shape
        head_shares = shares(heads, exchange.size)
        mine = head_shares[exchange.place]

        # 1. Heads out, tokens in: queries, keys and values in one message
        packed = torch.stack((query_BQNK, memory.key_BSNK, memory.value_BSNK))
        parts = exchange.all_to_all(
            packed.split(head_shares, dim=3), [(3, batch, length, mine, width) for length in lengths]
        )
        query, key, value = torch.cat(parts, dim=2).unbind(0)

        # 2. All tokens of these heads
        attended = query
        if mine:
            attended = self._inner(query, KeyValue(key, value)).unflatten(-1, (mine, width))

        # 3. Tokens out, heads in
        parts = exchange.all_to_all(
            attended.split(lengths, dim=1), [(batch, own, share, width) for share in head_shares]
        )
        return torch.cat(parts, dim=2).flatten(2)


class MergedAttention(AttentionProcessor):
    """Attention of everybody's queries to keys that lie with the members, merged by log-sum-exp.

    Keys that are everybody's are attended to as ever.

    Args:
        inner: attends to those.
        exchange: the members.
    """

    def __init__(self, inner: AttentionProcessor, exchange: Exchange) -> None:
        super().__init__()
        self._inner = inner
        self._exchange = exchange

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # exchanges are not for a compiler
    def __call__(self, query_BQNK: Tensor, memory: KeyValue) -> Tensor:
        """See `AttentionProcessor`."""
        if not isinstance(memory, _ShardedKeyValue):
            return self._inner(query_BQNK, memory)
        attended_BQNK, lse_BQN = attention_with_lse(query_BQNK, memory)
        packed = torch.cat((attended_BQNK, lse_BQN[..., None]), dim=-1)
        gathered = self._exchange.all_gather(packed)
        return merge_by_lse(gathered[..., :-1], gathered[..., -1]).flatten(2).to(query_BQNK.dtype)


def merge_by_lse(attended_GBQNK: Tensor, lse_GBQN: Tensor) -> Tensor:
    """Attention to all keys, from attention to parts of them and the log-sum-exp of each part's scores; float32.

    A part without keys has a log-sum-exp of minus infinity and counts nothing; one part at least has keys.
    """
    weight_GBQN1 = torch.softmax(lse_GBQN.float(), dim=0)[..., None]
    return (attended_GBQNK.float() * weight_GBQN1).sum(dim=0)


def attention_with_lse(query_BQNK: Tensor, memory: KeyValue) -> tuple[Tensor, Tensor]:
    """Attention (B, Q, N, K) and the log-sum-exp of its scores (B, Q, N), both float32.

    On a card by the kernels that tell the latter: FlashAttention's in 16 bits, the memory-efficient one in float32.
    On a CPU, and where there are no keys, by plain products.
    """
    query, key, value = (x.transpose(1, 2) for x in (query_BQNK, *memory))
    if query.device.type == "cuda" and key.shape[2]:
        attended, lse = _on_a_card(query, key, value)
    else:
        scores = (query.float() @ key.float().transpose(-1, -2)) * query.shape[-1] ** -0.5
        lse = scores.logsumexp(dim=-1)
        attended = (scores - lse[..., None]).exp() @ value.float()
    return attended.transpose(1, 2).float(), lse.transpose(1, 2).float()


def _on_a_card(query_BNQK: Tensor, key_BNSK: Tensor, value_BNSK: Tensor) -> tuple[Tensor, Tensor]:
    if query_BNQK.dtype == torch.float32 or torch.cuda.get_device_capability(query_BNQK.device) < (8, 0):
        attended, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query_BNQK, key_BNSK, value_BNSK, None, compute_log_sumexp=True
        )
        return attended, lse[..., : query_BNQK.shape[2]]  # padded to the kernel's blocks
    attended, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query_BNQK, key_BNSK, value_BNSK)
    return attended, lse
