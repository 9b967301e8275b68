"""The twin DiT: two towers of one shape, video and audio, fused block by block.

Source: the Ovi paper (arXiv 2510.01284, section 3) and the released checkpoints, whose sub-module names are
kept; `weights/convert.py` renames the rest.

        video latents (B,48,F,H,W)                 audio latents (B,A,20)
                │ patch (1,2,2)                            │ small conv net
                ▼                                          ▼
    ┌─ video half ──────────┐                  ┌─ audio half ──────────┐
    │ 1. self-attention     │                  │ 1. self-attention     │
    │ 2. cross: text + ◄────┼── each reads the ┼────► text + cross: 2. │   × num_layers
    │ 3. feed-forward       │  other after 1.  │ 3. feed-forward       │
    └───────────────────────┘                  └───────────────────────┘
                │ head, unpatchify                         │ head
                ▼                                          ▼
        video velocity (B,48,F,H,W)                audio velocity (B,A,20)

Shape suffixes: B batch, C channels, F/H/W latent frames, rows and columns, V video tokens, A audio tokens,
L tokens of either stream, T text tokens, D width, R timestep rows (1, or 2 where the first frame is clean).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ovi_studio.model.attention import (
    CrossAttention,
    KeyValue,
    RotaryTable,
    SelfAttention,
    audio_rotary_table,
    video_rotary_table,
)


@dataclass
class OviTransformerOutput(BaseOutput):
    """Velocities of both streams; None for a stream that was not given.

    Args:
        video: (B, C, F, H, W), the shape of the video latents.
        audio: (B, A, C), the shape of the audio latents.
    """

    video: Tensor | None = None
    audio: Tensor | None = None


class TextKeyValues(NamedTuple):
    """One block's text keys and values, per stream; None for a stream that is not run."""

    video: KeyValue | None
    audio: KeyValue | None


class StreamContext(NamedTuple):
    """What every block needs to know about one stream besides its tokens.

    Args:
        time_BR6D: projected timestep embedding, one row per distinct timestep.
        num_clean: leading tokens at timestep 0 (a given first frame), which use row 1; the others use row 0.
        rotary: positions of the stream's tokens.
        text_BTD: embedded text; not read where text keys and values are given.
    """

    time_BR6D: Tensor
    num_clean: int
    rotary: RotaryTable
    text_BTD: Tensor | None


class OviTransformer(ModelMixin, ConfigMixin, AttentionMixin, CacheMixin, PeftAdapterMixin):
    """Predicts the flow velocity of video and audio latents together, or of one of them alone.

    Args:
        num_attention_heads: heads of each tower.
        attention_head_dim: width of a head; a tower is `num_attention_heads * attention_head_dim` wide.
        ffn_dim: hidden width of the feed-forward layers.
        num_layers: fusion blocks.
        freq_dim: width of the sinusoidal timestep embedding.
        text_dim: width of the text encoder's states.
        in_channels: channels of the video latents.
        audio_in_channels: channels of the audio latents.
        patch_size: latent frames, rows and columns of one video token.
        audio_rope_scale: factor on the audio stream's rotary frequencies.
        eps: of every normalization.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("FusionBlock",)
    _repeated_blocks = ("FusionBlock",)
    _skip_layerwise_casting_patterns = (
        "patch_embedding",
        "text_embedding",
        "time_",
        "norm",
        "modulation",
        "head",
    )

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        ffn_dim: int = 14336,
        num_layers: int = 30,
        freq_dim: int = 256,
        text_dim: int = 4096,
        in_channels: int = 48,
        audio_in_channels: int = 20,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        audio_rope_scale: float = 0.19676,  # noqa: ARG002  read from the config
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        self.video = VideoTower(in_channels, patch_size, dim, freq_dim, text_dim, eps)
        self.audio = AudioTower(audio_in_channels, dim, freq_dim, text_dim, eps)
        self.blocks = nn.ModuleList(FusionBlock(dim, ffn_dim, num_attention_heads, eps) for _ in range(num_layers))
        self.gradient_checkpointing = False
        self._rotary: tuple[object, RotaryTable | None, RotaryTable | None] = (None, None, None)

    def forward(
        self,
        hidden_states: Tensor | None,
        audio_hidden_states: Tensor | None,
        timestep: Tensor | None,
        encoder_hidden_states: Tensor | None = None,
        audio_encoder_hidden_states: Tensor | None = None,
        text_key_values: tuple[TextKeyValues, ...] | None = None,
        first_frame_is_clean: bool = False,
        skip_layer: int = 0,
        skip_from: int = 0,
        only_text: bool = False,
        return_dict: bool = True,
    ) -> OviTransformerOutput | tuple[Tensor | None, Tensor | None] | tuple[TextKeyValues, ...]:
        """One forward pass.

        Latents of one sample and texts of several, with one timestep, give as many velocities as there are texts:
        the latents' way in and all of the first block that does not read the text run once for all of them.

        Args:
            hidden_states: video latents (B, C, F, H, W), or None to run the audio tower alone.
            audio_hidden_states: audio latents (B, A, C), or None to run the video tower alone.
            timestep: (B,) or (1,), in 0…1000, of both streams.
            encoder_hidden_states: text states for video (B, T, text_dim), zero-padded; no mask is applied.
            audio_encoder_hidden_states: the same for audio; by default the video's.
            text_key_values: `project_text` of the two above, which are then not read.
            first_frame_is_clean: whether latent frame 0 is a given picture, at timestep 0 (video only).
            skip_layer: block that is passed over (skip-layer guidance); 0 skips none.
            skip_from: first sample of the batch that passes over it.
            only_text: compute every block's text keys and values and nothing else, see `project_text`. Latents and
                timestep are not read.
            return_dict: whether to return an `OviTransformerOutput` or a tuple.
        """
        if only_text:
            return self._project_text(encoder_hidden_states, audio_encoder_hidden_states)
        if hidden_states is None and audio_hidden_states is None:
            raise ValueError("Neither video nor audio latents were given. Pass at least one of them.")
        if timestep is None:
            raise ValueError("No timestep was given. Pass one for all samples, or one for each.")
        if audio_encoder_hidden_states is None:
            audio_encoder_hidden_states = encoder_hidden_states
        video_rotary, audio_rotary = self._rotary_tables(hidden_states, audio_hidden_states)

        # 1. Latents, text and timestep to tokens and contexts
        video_BVD = audio_BAD = video = audio = None
        grid = (0, 0, 0)
        if hidden_states is not None and video_rotary is not None:
            video_BVD, grid = self.video.embed_latents(hidden_states)
            num_clean = grid[1] * grid[2] if first_frame_is_clean else 0
            video_time = self.video.embed_time(timestep, first_frame_is_clean, video_BVD.dtype)
            text = None if text_key_values is not None else self._embed_text(self.video, encoder_hidden_states)
            video = StreamContext(self.video.project_time(video_time), num_clean, video_rotary, text)
        if audio_hidden_states is not None and audio_rotary is not None:
            audio_BAD = self.audio.embed_latents(audio_hidden_states)
            audio_time = self.audio.embed_time(timestep, False, audio_BAD.dtype)
            text = None if text_key_values is not None else self._embed_text(self.audio, audio_encoder_hidden_states)
            audio = StreamContext(self.audio.project_time(audio_time), 0, audio_rotary, text)

        # 2. Blocks
        for index, block in enumerate(self.blocks):
            text_kv = text_key_values[index] if text_key_values is not None else None
            num_active = skip_from if 0 < skip_layer == index else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                video_BVD, audio_BAD = self._gradient_checkpointing_func(
                    block, video_BVD, audio_BAD, video, audio, text_kv, num_active
                )
            else:
                video_BVD, audio_BAD = block(video_BVD, audio_BAD, video, audio, text_kv, num_active)

        # 3. Tokens to velocities
        video_out = audio_out = None
        if video_BVD is not None and video is not None:
            video_out = self.video.unpatchify(self.video.head(video_BVD, video_time, video.num_clean), grid)
        if audio_BAD is not None:
            audio_out = self.audio.head(audio_BAD, audio_time, 0)
        if not return_dict:
            return video_out, audio_out
        return OviTransformerOutput(video=video_out, audio=audio_out)

    def project_text(
        self, encoder_hidden_states: Tensor | None, audio_encoder_hidden_states: Tensor | None
    ) -> tuple[TextKeyValues, ...]:
        """Every block's text keys and values, which stay the same over all steps of a run.

        Args:
            encoder_hidden_states: text states for video (B, T, text_dim), or None without video.
            audio_encoder_hidden_states: text states for audio, or None without audio.
        """
        # Through `forward`, because offloading attaches to it.
        projected: tuple[TextKeyValues, ...] = self(
            None, None, None, encoder_hidden_states, audio_encoder_hidden_states, only_text=True
        )
        return projected

    def _project_text(
        self, encoder_hidden_states: Tensor | None, audio_encoder_hidden_states: Tensor | None
    ) -> tuple[TextKeyValues, ...]:
        video_BTD = None if encoder_hidden_states is None else self.video.text_embedding(encoder_hidden_states)
        audio_BTD = (
            None if audio_encoder_hidden_states is None else self.audio.text_embedding(audio_encoder_hidden_states)
        )
        return tuple(block(video_BTD, audio_BTD, only_text=True) for block in self.blocks)

    @staticmethod
    def _embed_text(tower: "Tower", encoder_hidden_states: Tensor | None) -> Tensor:
        if encoder_hidden_states is None:
            raise ValueError("No text states were given. Pass `encoder_hidden_states` or `text_key_values`.")
        embedded: Tensor = tower.text_embedding(encoder_hidden_states)
        return embedded

    def _rotary_tables(
        self, video: Tensor | None, audio: Tensor | None
    ) -> tuple[RotaryTable | None, RotaryTable | None]:
        """Tables for these latents' grids, made once per shape and device."""
        given = video if video is not None else audio
        device = given.device if given is not None else self.device
        key = (
            video.shape[2:] if video is not None else None,
            audio.shape[1] if audio is not None else None,
            device,
        )
        if self._rotary[0] != key:
            head_dim = self.config.attention_head_dim
            self._rotary = (
                key,
                video_rotary_table(self.video.grid(video), head_dim, device) if video is not None else None,
                audio_rotary_table(audio.shape[1], head_dim, self.config.audio_rope_scale, device)
                if audio is not None
                else None,
            )
        return self._rotary[1], self._rotary[2]


class FusionBlock(nn.Module):
    """One layer of both towers and the exchange between them."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.video = StreamHalf(dim, ffn_dim, num_heads, eps)
        self.audio = StreamHalf(dim, ffn_dim, num_heads, eps)

    def forward(
        self,
        hidden_states: Tensor | None,
        audio_hidden_states: Tensor | None,
        video: StreamContext | None = None,
        audio: StreamContext | None = None,
        text_key_values: TextKeyValues | None = None,
        num_active: int | None = None,
        only_text: bool = False,
    ) -> tuple[Tensor | None, Tensor | None] | TextKeyValues:
        """Runs the block on video tokens (B, V, D) and audio tokens (B, A, D), either of which may be None.

        Args:
            hidden_states: video tokens; embedded text for video where `only_text`.
            audio_hidden_states: audio tokens; embedded text for audio where `only_text`.
            video: context of the video stream.
            audio: context of the audio stream.
            text_key_values: text keys and values, where they were computed beforehand.
            num_active: how many samples, from the first, run; the others leave as they came. None: all.
            only_text: compute the text keys and values and nothing else. This goes through `forward` because
                offloading, streaming and sharding attach to it.
        """
        if only_text:
            return TextKeyValues(
                None if hidden_states is None else self.video.cross_attn.project_text(hidden_states),
                None if audio_hidden_states is None else self.audio.cross_attn.project_text(audio_hidden_states),
            )
        if num_active is None:
            return self._run(hidden_states, audio_hidden_states, video, audio, text_key_values)
        if num_active == 0:
            return hidden_states, audio_hidden_states
        ran = self._run(
            None if hidden_states is None else hidden_states[:num_active],
            None if audio_hidden_states is None else audio_hidden_states[:num_active],
            None if video is None else _first_samples(video, num_active),
            None if audio is None else _first_samples(audio, num_active),
            None if text_key_values is None else first_text(text_key_values, num_active),
        )
        video_out, audio_out = (
            None if new is None or old is None else torch.cat((new, old[num_active:]))
            for new, old in zip(ran, (hidden_states, audio_hidden_states), strict=True)
        )
        return video_out, audio_out

    def _run(
        self,
        hidden_states: Tensor | None,
        audio_hidden_states: Tensor | None,
        video: StreamContext | None,
        audio: StreamContext | None,
        text_key_values: TextKeyValues | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        # 1. Self-attention
        v_BVD = a_BAD = None
        if hidden_states is not None and video is not None:
            video_mod = self.video.modulation(video.time_BR6D)
            v_BVD = self.video.attend_self(hidden_states, video_mod, video)
        if audio_hidden_states is not None and audio is not None:
            audio_mod = self.audio.modulation(audio.time_BR6D)
            a_BAD = self.audio.attend_self(audio_hidden_states, audio_mod, audio)

        # 2. Cross step: both read the other stream as step 1 left it
        video_text, audio_text = text_key_values or (None, None)
        out_BVD = out_BAD = None
        if v_BVD is not None and video is not None:
            out_BVD = self.video.attend_cross(v_BVD, video, video_text, a_BAD, audio)
        if a_BAD is not None and audio is not None:
            out_BAD = self.audio.attend_cross(a_BAD, audio, audio_text, v_BVD, video)
        del v_BVD, a_BAD

        # 3. Feed-forward
        if out_BVD is not None and video is not None:
            out_BVD = self.video.feed_forward(out_BVD, video_mod, video)
        if out_BAD is not None and audio is not None:
            out_BAD = self.audio.feed_forward(out_BAD, audio_mod, audio)
        return out_BVD, out_BAD


class StreamHalf(nn.Module):
    """One stream's half of a fusion block: self-attention, cross step, feed-forward."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=True)
        self.cross_attn = CrossAttention(dim, num_heads, eps)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = BlockModulation(dim)

    def attend_self(self, x_BLD: Tensor, mod: "Modulation", stream: StreamContext) -> Tensor:
        """Step 1, gated by the timestep."""
        normed = modulated_norm(x_BLD, mod.shift_attn, mod.scale_attn, stream.num_clean, self.eps)
        return gated_add(x_BLD, self.self_attn(normed, stream.rotary), mod.gate_attn, stream.num_clean)

    def attend_cross(
        self,
        x_BLD: Tensor,
        stream: StreamContext,
        text: KeyValue | None,
        other_BLD: Tensor | None,
        other: StreamContext | None,
    ) -> Tensor:
        """Step 2: the text and the other stream, added without a gate."""
        if text is None and stream.text_BTD is not None:
            text = self.cross_attn.project_text(stream.text_BTD)
        other_rotary = other.rotary if other is not None else None
        crossed: Tensor = x_BLD + self.cross_attn(self.norm3(x_BLD), text, stream.rotary, other_BLD, other_rotary)
        return crossed

    def feed_forward(self, x_BLD: Tensor, mod: "Modulation", stream: StreamContext) -> Tensor:
        """Step 3, gated by the timestep."""
        normed = modulated_norm(x_BLD, mod.shift_ffn, mod.scale_ffn, stream.num_clean, self.eps)
        return gated_add(x_BLD, self.ffn(normed), mod.gate_ffn, stream.num_clean)


class Modulation(NamedTuple):
    """Timestep-dependent shifts, scales and gates of a block, float32, each (B, R, D)."""

    shift_attn: Tensor
    scale_attn: Tensor
    gate_attn: Tensor
    shift_ffn: Tensor
    scale_ffn: Tensor
    gate_ffn: Tensor


class BlockModulation(nn.Module):
    """A block's learned offset to the projected timestep. A module of its own, so that offloading sees it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))

    def forward(self, time_BR6D: Tensor) -> Modulation:
        """The projected timestep, offset."""
        return Modulation(*(self.modulation.float() + time_BR6D.float()).unbind(-2))


class Head(nn.Module):
    """Final norm, modulated by the timestep, and projection of tokens to patches."""

    def __init__(self, dim: int, out_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / math.sqrt(dim))

    def forward(self, x_BLD: Tensor, time_BRD: Tensor, num_clean: int) -> Tensor:
        """Tokens (B, L, D) to patches (B, L, out_dim)."""
        shift, scale = (self.modulation.float() + time_BRD.float()[:, :, None]).unbind(-2)
        projected: Tensor = self.head(modulated_norm(x_BLD, shift, scale, num_clean, self.eps))
        return projected


class Tower(nn.Module):
    """What a stream owns outside the blocks: its way in, its text and timestep embeddings, its head."""

    def __init__(self, dim: int, out_dim: int, freq_dim: int, text_dim: int, eps: float) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.head = Head(dim, out_dim, eps)

    def embed_time(self, timestep: Tensor, with_clean: bool, dtype: torch.dtype) -> Tensor:
        """Embeds the timestep (B,) to (B, R, D): row 0 for it, row 1, where asked for, for timestep 0."""
        rows_BR = torch.stack((timestep, torch.zeros_like(timestep)), dim=1) if with_clean else timestep[:, None]
        embedded: Tensor = self.time_embedding(sinusoidal_embedding(rows_BR, self.freq_dim).to(dtype))
        return embedded

    def project_time(self, time_BRD: Tensor) -> Tensor:
        """Projects the embedded timestep to the six modulations of a block, (B, R, 6, D)."""
        projected: Tensor = self.time_projection(time_BRD)
        return projected.unflatten(-1, (6, -1))


class VideoTower(Tower):
    """The video stream's way in and out: a 3-D patch embedding and its inverse."""

    def __init__(
        self,
        channels: int,
        patch_size: tuple[int, int, int],
        dim: int,
        freq_dim: int,
        text_dim: int,
        eps: float,
    ) -> None:
        super().__init__(dim, channels * math.prod(patch_size), freq_dim, text_dim, eps)
        frames, height, width = patch_size  # a list, when it comes from a config file
        self.patch_size = (frames, height, width)
        self.patch_embedding = nn.Conv3d(channels, dim, kernel_size=self.patch_size, stride=self.patch_size)

    def grid(self, latents_BCFHW: Tensor) -> tuple[int, int, int]:
        """Tokens along time, height and width.

        Raises:
            ValueError: the latents do not divide into patches.
        """
        sizes = latents_BCFHW.shape[2:]
        if any(size % patch for size, patch in zip(sizes, self.patch_size, strict=True)):
            raise ValueError(
                f"Video latents of {tuple(sizes)} do not divide into patches of {self.patch_size}. "
                "Choose a height and width that are multiples of 32 pixels."
            )
        frames, height, width = (size // patch for size, patch in zip(sizes, self.patch_size, strict=True))
        return frames, height, width

    def embed_latents(self, latents_BCFHW: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Latents to tokens (B, V, D) and their grid."""
        tokens = self.patch_embedding(latents_BCFHW)
        return tokens.flatten(2).transpose(1, 2).contiguous(), self.grid(latents_BCFHW)

    def unpatchify(self, patches_BVD: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Patches (B, V, pixels × channels) to latents (B, C, F, H, W)."""
        patches = patches_BVD.unflatten(-1, (*self.patch_size, -1)).unflatten(1, grid)
        # B f h w (pf ph pw) C  →  B C (f pf) (h ph) (w pw)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class AudioTower(Tower):
    """The audio stream's way in: one token a latent, through a small conv net."""

    def __init__(self, channels: int, dim: int, freq_dim: int, text_dim: int, eps: float) -> None:
        super().__init__(dim, channels, freq_dim, text_dim, eps)
        self.patch_embedding = nn.Sequential(
            nn.Conv1d(channels, dim, kernel_size=7, padding=3),
            nn.SiLU(),
            ConvMLP(dim, 4 * dim, kernel_size=7),
        )

    def embed_latents(self, latents_BAC: Tensor) -> Tensor:
        """Latents to tokens (B, A, D)."""
        tokens: Tensor = self.patch_embedding(latents_BAC.transpose(1, 2))
        return tokens.transpose(1, 2).contiguous()


class ConvMLP(nn.Module):
    """A gated MLP of 1-D convolutions, (B, D, A) to (B, D, A); two thirds of `hidden_dim`, rounded up to 256."""

    def __init__(self, dim: int, hidden_dim: int, kernel_size: int) -> None:
        super().__init__()
        hidden = 256 * math.ceil(2 * hidden_dim // 3 / 256)
        padding = kernel_size // 2
        self.w1 = nn.Conv1d(dim, hidden, kernel_size, padding=padding, bias=False)
        self.w2 = nn.Conv1d(hidden, dim, kernel_size, padding=padding, bias=False)
        self.w3 = nn.Conv1d(dim, hidden, kernel_size, padding=padding, bias=False)

    def forward(self, x_BDA: Tensor) -> Tensor:
        """(B, D, A) to the same."""
        mixed: Tensor = self.w2(F.silu(self.w1(x_BDA)) * self.w3(x_BDA))
        return mixed


def sinusoidal_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of each timestep at `dim / 2` frequencies, in float64: (…) to (…, dim)."""
    half = dim // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.double()[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def modulated_norm(x_BLD: Tensor, shift_BRD: Tensor, scale_BRD: Tensor, num_clean: int, eps: float) -> Tensor:
    """Layer norm without weights, then scaled and shifted by the timestep, in float32; returns the type of `x`.

    The first `num_clean` tokens use row 1, the others row 0; a scale of 0 changes nothing. With one timestep for all
    samples the modulation is the norm's weight and bias, and all of it one kernel.
    """
    rows = [(slice(None), 0)] + ([(slice(num_clean), 1)] if num_clean else [])
    width, parts = x_BLD.shape[-1:], []
    for tokens, row in rows:
        scale, shift = 1 + scale_BRD[:, row], shift_BRD[:, row]
        if len(scale) == 1:
            parts.append(F.layer_norm(x_BLD[:, tokens].float(), width, scale[0], shift[0], eps))
        else:
            normed = F.layer_norm(x_BLD[:, tokens].float(), width, eps=eps)
            parts.append(torch.addcmul(shift[:, None], normed, scale[:, None]))
    return _with_clean(parts, num_clean).to(x_BLD.dtype)


def gated_add(x_BLD: Tensor, y_BLD: Tensor, gate_BRD: Tensor, num_clean: int) -> Tensor:
    """Adds `y`, weighted by `gate` as in `modulated_norm`, in float32, and returns the type of `x`."""
    parts = [torch.addcmul(x_BLD.float(), y_BLD, gate_BRD[:, :1])]
    if num_clean:
        clean = slice(num_clean)
        parts.append(torch.addcmul(x_BLD[:, clean].float(), y_BLD[:, clean], gate_BRD[:, 1:]))
    return _with_clean(parts, num_clean).to(x_BLD.dtype)


def _with_clean(parts: list[Tensor], num_clean: int) -> Tensor:
    """All tokens, the first of them replaced by those that were worked out apart, if any were."""
    out_BLD, *clean = parts
    for part in clean:
        out_BLD[:, :num_clean] = part
    return out_BLD


def _first_samples(stream: StreamContext, count: int) -> StreamContext:
    text = None if stream.text_BTD is None else stream.text_BTD[:count]
    return stream._replace(time_BR6D=stream.time_BR6D[:count], text_BTD=text)


def first_text(text: TextKeyValues, count: int) -> TextKeyValues:
    """The keys and values of the first samples."""
    return TextKeyValues(*(None if kv is None else KeyValue(*(x[:count] for x in kv)) for kv in text))
