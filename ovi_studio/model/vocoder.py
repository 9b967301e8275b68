"""The vocoders: log10-mel spectrogram in, 16 kHz waveform out.

    OviVocoder        of the released models, a BigVGAN: builds the waveform sample by sample
    SpectralVocoder   of `nano`, after Vocos: draws a spectrum for each mel frame, and inverts it

The released 16 kHz generator is a BigVGAN v2 whose last convolution has a bias and ends in tanh; diffusers'
`MMAudioVocoder` is the 44.1 kHz one, without the bias and with a clamp. Everything else is the library's.

`nano` has another one because it is trained on a processor, where a step of the first, at a size that fits, takes ten
times as long.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, MMAudioVocoder, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

QUIET = -4.0  # logarithm of the magnitudes that fresh weights draw


class _StaysFloat32:
    """A model that moves as any does, but is never cast: a pipeline's `.to("cuda", torch.bfloat16)` moves it."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Moves the model and leaves its type alone."""
        kwargs.pop("dtype", None)
        return super().to(*(arg for arg in args if not isinstance(arg, torch.dtype)), **kwargs)  # type: ignore[misc]


class OviVocoder(_StaysFloat32, MMAudioVocoder):
    """BigVGAN generator of the 16 kHz checkpoint; the product of the rates is the mel hop of 256 samples.

    It computes in float32 whatever the pipeline around it computes in, because bf16 costs 2.5–3.7 % of
    relative error in the waveform: neither `from_pretrained(torch_dtype=...)` nor `.to(dtype)` casts it.
    """

    _keep_in_fp32_modules = ["conv_pre", "ups", "resblocks", "activation_post", "conv_post"]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        num_mels: int = 80,
        upsample_initial_channel: int = 1536,
        upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2),
        upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4),
        resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11),
        resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
    ) -> None:
        super().__init__(
            num_mels=num_mels,
            upsample_initial_channel=upsample_initial_channel,
            upsample_rates=upsample_rates,
            upsample_kernel_sizes=upsample_kernel_sizes,
            resblock_kernel_sizes=resblock_kernel_sizes,
            resblock_dilation_sizes=resblock_dilation_sizes,
        )
        channels = upsample_initial_channel // 2 ** len(upsample_rates)
        self.conv_post = TanhConv1d(channels, 1, 7, padding=3)

    def forward(self, mel: Tensor, return_dict: bool = True) -> Any:
        """Mel (batch, num_mels, frames) → `DecoderOutput` of the waveform (batch, 1, samples) in [-1, 1]."""
        return super().forward(mel.to(self.dtype), return_dict=return_dict)


class TanhConv1d(nn.Conv1d):
    """A convolution that ends in tanh, which makes the clamp that follows in the library's `forward` idle."""

    def forward(self, x: Tensor) -> Tensor:
        """Filtered `x`, squashed into [-1, 1]."""
        return torch.tanh(super().forward(x))


class SpectralVocoder(_StaysFloat32, ModelMixin, ConfigMixin):
    """ConvNeXt blocks over mel frames, then magnitudes and phases, and the inverse transform (arXiv 2306.00814).

    All layers work at one step a mel frame, 256 times fewer than there are samples. Float32, as the other vocoder.

    Args:
        num_mels: bands of the mel.
        dim: width of the blocks.
        ffn_dim: their hidden width.
        num_layers: blocks.
        n_fft: samples of a spectrum's window.
        hop_length: samples from one window to the next, which is the mel's.
    """

    _keep_in_fp32_modules = ["conv_in", "norm_in", "blocks", "norm_out", "proj_out"]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        num_mels: int = 80,
        dim: int = 144,
        ffn_dim: int = 432,
        num_layers: int = 5,
        n_fft: int = 1024,
        hop_length: int = 256,
    ) -> None:
        super().__init__()
        self._n_fft, self._hop = n_fft, hop_length
        self.conv_in = nn.Conv1d(num_mels, dim, 7, padding=3)
        self.norm_in = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNextBlock(dim, ffn_dim, 1 / num_layers) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(dim, eps=1e-6)
        self.proj_out = nn.Linear(dim, n_fft + 2)
        nn.init.constant_(self.proj_out.bias[: n_fft // 2 + 1], QUIET)

    def forward(self, mel: Tensor, return_dict: bool = True) -> Any:
        """Mel (batch, num_mels, frames) → `DecoderOutput` of the waveform (batch, 1, samples) in [-1, 1]."""
        states_BTD = self.norm_in(self.conv_in(mel.to(self.dtype)).transpose(1, 2))
        for block in self.blocks:
            states_BTD = block(states_BTD)
        magnitude, phase = self.proj_out(self.norm_out(states_BTD)).transpose(1, 2).chunk(2, dim=1)
        spectrum = torch.polar(magnitude.exp().clamp(max=100.0), phase)
        window = torch.hann_window(self._n_fft, device=mel.device)
        waveform = torch.istft(spectrum, self._n_fft, self._hop, window=window, length=mel.shape[-1] * self._hop)
        sample = waveform.clamp(-1, 1)[:, None]
        return DecoderOutput(sample=sample) if return_dict else (sample,)


class ConvNextBlock(nn.Module):
    """A convolution of each channel over time, and a feed-forward layer of each step (arXiv 2201.03545).

    Args:
        dim: width.
        ffn_dim: hidden width.
        scale: what the block adds begins as this part of it.
    """

    def __init__(self, dim: int, ffn_dim: int, scale: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, ffn_dim)
        self.proj_out = nn.Linear(ffn_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, states_BTD: Tensor) -> Tensor:
        """States, and what the block adds to them."""
        mixed = self.norm(self.conv(states_BTD.transpose(1, 2)).transpose(1, 2))
        return states_BTD + self.scale * self.proj_out(F.gelu(self.proj_in(mixed)))
