"""Rotary positions and the two attentions of a fusion block.

Shape suffixes: B batch, Q query tokens, S key tokens, T text tokens, D width, N heads, K head dim, P = K/2
rotary pairs. Attention runs through diffusers' `dispatch_attention_fn`, so `set_attention_backend` chooses
the kernel (native SDPA, FlashAttention, Sage, …) from outside.
"""

from typing import NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

ROPE_THETA = 10_000.0


class RotaryTable(NamedTuple):
    """Cosines and sines of one token grid, each float32 of shape (tokens, head_dim / 2)."""

    cos_QP: Tensor
    sin_QP: Tensor


class KeyValue(NamedTuple):
    """Keys and values ready to be attended to, each of shape (B, S, N, K)."""

    key_BSNK: Tensor
    value_BSNK: Tensor


def video_rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> RotaryTable:
    """The 3-D table of a token grid (frames, height, width); its pairs are split over the three axes.

    Height and width get a third of the pairs each and time the rest: 22 / 21 / 21 of 64 at full size.
    """
    pairs = head_dim // 2
    spatial = pairs // 3
    axis_pairs = (pairs - 2 * spatial, spatial, spatial)
    positions = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * _frequencies(n)[None, :] for axis, n in zip(positions, axis_pairs, strict=True)]
    return _table(torch.cat(angles, dim=1), device)


def audio_rotary_table(length: int, head_dim: int, scale: float, device: torch.device) -> RotaryTable:
    """The 1-D table of `length` audio tokens.

    Only as many pairs rotate as time has in the video table, their frequencies multiplied by `scale`, so that
    both streams tell time alike (paper, section 3.1). The other pairs stand still: cosine 1, sine 0.
    """
    pairs = head_dim // 2
    rotating = pairs - 2 * (pairs // 3)
    angles = torch.zeros(length, pairs, dtype=torch.float64)
    angles[:, :rotating] = torch.arange(length, dtype=torch.float64)[:, None] * (scale * _frequencies(rotating))
    return _table(angles, device)


def _frequencies(pairs: int) -> Tensor:
    return ROPE_THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


def _table(angles_QP: Tensor, device: torch.device) -> RotaryTable:
    return RotaryTable(angles_QP.cos().float().to(device), angles_QP.sin().float().to(device))


def apply_rotary(x_BQNK: Tensor, table: RotaryTable) -> Tensor:
    """Rotates neighbouring pairs of the head dimension, in float32, and returns the type of `x`.

    A pair is a complex number that is multiplied by a phase: one kernel. A compiler, which has none for complex
    numbers, gets the same products one by one and fuses them.
    """
    pairs = x_BQNK.float().unflatten(-1, (-1, 2))
    cos, sin = table.cos_QP[:, None], table.sin_QP[:, None]
    if torch.compiler.is_compiling():
        even, odd = pairs.unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return rotated.flatten(-2).to(x_BQNK.dtype)


class AttentionProcessor:
    """Runs one attention for a module, on the kernel and over the cards that were chosen from outside."""

    def __init__(self) -> None:
        # Written by diffusers' `set_attention_backend` and `enable_parallelism`.
        self._attention_backend = None
        self._parallel_config = None

    def __call__(self, query_BQNK: Tensor, memory: KeyValue) -> Tensor:
        """Attends, and joins the heads: (B, Q, D)."""
        attended_BQNK: Tensor = dispatch_attention_fn(
            query_BQNK,
            memory.key_BSNK,
            memory.value_BSNK,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attended_BQNK.flatten(2).to(query_BQNK.dtype)


class SelfAttention(nn.Module, AttentionModuleMixin):
    """Attention of a stream to itself; query and key are normalized over all heads at once."""

    _default_processor_cls = AttentionProcessor
    _available_processors = (AttentionProcessor,)
    _supports_qkv_fusion = False
    processor: AttentionProcessor

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)
        self.processor = AttentionProcessor()

    def forward(self, x_BQD: Tensor, rotary: RotaryTable) -> Tensor:
        """(B, Q, D) to the same."""
        query = apply_rotary(self._heads(self.norm_q(self.q(x_BQD))), rotary)
        key = apply_rotary(self._heads(self.norm_k(self.k(x_BQD))), rotary)
        return self.o(self.processor(query, KeyValue(key, self._heads(self.v(x_BQD)))))

    def _heads(self, x_BQD: Tensor) -> Tensor:
        return x_BQD.unflatten(-1, (self.num_heads, -1))


class CrossAttention(SelfAttention):
    """Attention of a stream to the text and, through the fusion weights, to the other stream.

    One query and one output projection serve both; the two results are added. The text has no positions and
    no mask (its zero padding is attended), the other stream has its own rotary table.
    """

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__(dim, num_heads, eps)
        self.k_fusion = nn.Linear(dim, dim)
        self.v_fusion = nn.Linear(dim, dim)
        self.pre_attn_norm_fusion = nn.LayerNorm(dim, eps=eps)
        self.norm_k_fusion = nn.RMSNorm(dim, eps=eps)

    def forward(  # type: ignore[override]
        self,
        x_BQD: Tensor,
        text: KeyValue,
        rotary: RotaryTable,
        other_BSD: Tensor | None,
        other_rotary: RotaryTable | None,
    ) -> Tensor:
        """(B, Q, D) to the same; without the other stream's tokens (B, S, D), to the text alone.

        Tokens of one sample serve all samples of the text: nothing that is the same for all is computed twice.
        """
        query = self._heads(self.norm_q(self.q(x_BQD)))
        samples = text.key_BSNK.shape[0]
        # Not a view without a stride: some attention kernels refuse it.
        attended = self.processor(query if len(query) == samples else query.repeat(samples, 1, 1, 1), text)
        if other_BSD is not None and other_rotary is not None:
            fused = self.processor(apply_rotary(query, rotary), self._project_other(other_BSD, other_rotary))
            attended = attended + fused
        return self.o(attended)

    def project_text(self, text_BTD: Tensor) -> KeyValue:
        """Keys and values of the embedded text; they do not depend on the timestep."""
        return KeyValue(self._heads(self.norm_k(self.k(text_BTD))), self._heads(self.v(text_BTD)))

    def _project_other(self, other_BSD: Tensor, rotary: RotaryTable) -> KeyValue:
        other = self.pre_attn_norm_fusion(other_BSD)
        key = apply_rotary(self._heads(self.norm_k_fusion(self.k_fusion(other))), rotary)
        return KeyValue(key, self._heads(self.v_fusion(other)))
