"""The vocoder: log10-mel spectrogram in, 16 kHz waveform out.

The released 16 kHz generator is a BigVGAN v2 whose last convolution has a bias and ends in tanh; diffusers'
`MMAudioVocoder` is the 44.1 kHz one, without the bias and with a clamp. Everything else is the library's.
"""

from typing import Any

import torch
from diffusers import MMAudioVocoder
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  a pipeline's `from_pretrained` looks for it here
from torch import nn


class OviVocoder(MMAudioVocoder):
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

    def forward(self, mel: torch.Tensor, return_dict: bool = True) -> Any:
        """Mel (batch, num_mels, frames) → `DecoderOutput` of the waveform (batch, 1, samples) in [-1, 1]."""
        return super().forward(mel.to(self.dtype), return_dict=return_dict)

    def to(self, *args: Any, **kwargs: Any) -> "OviVocoder":
        """Move as any module does, but never cast: a pipeline's `.to("cuda", torch.bfloat16)` moves it."""
        kwargs.pop("dtype", None)
        return super().to(*(arg for arg in args if not isinstance(arg, torch.dtype)), **kwargs)


class TanhConv1d(nn.Conv1d):
    """A convolution that ends in tanh, which makes the clamp that follows in the library's `forward` idle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Filtered `x`, squashed into [-1, 1]."""
        return torch.tanh(super().forward(x))
