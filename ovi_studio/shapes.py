"""The shapes of the five components a model variant is made of.

A shape is a frozen dataclass whose fields have the names of the arguments of the class that it builds:
`OviTransformer(**shape.config())`. Nothing here imports torch, so that planning and progress can
reckon with a model that is not loaded.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Base of the component shapes."""

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build the component, ready for JSON (tuples become lists)."""
        return {f.name: _jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass(frozen=True)
class TransformerShape(Shape):
    """Arguments of `OviTransformer`: two towers of the same width, fused block by block.

    Args:
        num_attention_heads: heads of each tower.
        attention_head_dim: width of one head; half of it is the number of rotated pairs.
        ffn_dim: hidden width of the feed-forward layers.
        num_layers: fusion blocks; each owns a video and an audio half.
        freq_dim: width of the sinusoidal timestep embedding.
        text_dim: width of the text encoder's states.
        in_channels: channels of the video latents.
        audio_in_channels: channels of the audio latents.
        patch_size: latent frames, rows and columns of one video token. An audio token is one latent.
        audio_rope_scale: factor on audio positions: 31.25 audio latents go with 6 video latents a second.
    """

    num_attention_heads: int = 24
    attention_head_dim: int = 128
    ffn_dim: int = 14336
    num_layers: int = 30
    freq_dim: int = 256
    text_dim: int = 4096
    in_channels: int = 48
    audio_in_channels: int = 20
    patch_size: tuple[int, int, int] = (1, 2, 2)
    audio_rope_scale: float = 0.19676

    @property
    def dim(self) -> int:
        """Width of a tower."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def video_rope_pairs(self) -> tuple[int, int, int]:
        """Rotated pairs of a head for time, height and width: thirds, and time takes the remainder."""
        pairs = self.attention_head_dim // 2
        third = pairs // 3
        return pairs - 2 * third, third, third

    @property
    def audio_rope_pairs(self) -> int:
        """Rotated pairs of an audio head: as many as video has for time. The others stay as they are."""
        return self.video_rope_pairs[0]

    @property
    def audio_patch_hidden_dim(self) -> int:
        """Hidden width of the gated conv MLP that embeds audio: 8/3 of `dim`, up to a multiple of 256."""
        return 256 * math.ceil(8 * self.dim // 3 / 256)


@dataclass(frozen=True)
class VideoVaeShape(Shape):
    """Arguments of `diffusers.AutoencoderKLWan` (argument names are the library's, its spelling too)."""

    base_dim: int
    decoder_base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temperal_downsample: tuple[bool, ...]  # one per step between the levels of `dim_mult`
    patch_size: int
    in_channels: int  # 3 colours × patch_size²
    out_channels: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    is_residual: bool = True
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 16


@dataclass(frozen=True)
class AudioVaeShape(Shape):
    """Arguments of `diffusers.MMAudioVAE`, whose latents decode to twice as many mel frames."""

    latent_channels: int
    hidden_channels: int
    layers_per_block: int
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    mel_bins: int = 80
    sample_rate: int = 16_000
    n_fft: int = 1024
    hop_length: int = 256
    scaling_factor: float = 1.0


@dataclass(frozen=True)
class VocoderShape(Shape):
    """Arguments of `OviVocoder`, the 16 kHz BigVGAN. The product of the rates is the mel hop: 256 samples."""

    upsample_initial_channel: int = 1536
    num_mels: int = 80
    upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))

    @property
    def hop_length(self) -> int:
        """Samples a mel frame."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class SpectralVocoderShape(Shape):
    """Arguments of `SpectralVocoder`."""

    dim: int = 144
    ffn_dim: int = 432
    num_layers: int = 5
    num_mels: int = 80
    n_fft: int = 1024
    hop_length: int = 256


@dataclass(frozen=True)
class TextEncoderShape(Shape):
    """Arguments of `transformers.UMT5Config` for a `UMT5EncoderModel`."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128


def _jsonable(value: Any) -> Any:
    return [_jsonable(item) for item in value] if isinstance(value, tuple) else value
