"""A variant's five components as modules: the classes they are, built from the variant's shapes.

Built with fresh weights and in evaluation mode, on the device of the surrounding `torch.device(...)`. Trained
weights come from `weights/`; a full-size component is built `on_meta()` until they do.
"""

import contextlib
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from torch.utils import _device
from transformers import UMT5Config, UMT5EncoderModel

from ovi_studio.model.transformer import OviTransformer
from ovi_studio.model.vocoder import OviVocoder, SpectralVocoder
from ovi_studio.shapes import SpectralVocoderShape
from ovi_studio.variants import Variant


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Whatever is built meanwhile has shapes and no memory.

    torch notes at its first `with torch.device(...)` which functions make tensors. Where transformers'
    `from_pretrained` was that first user it had a `torch.linspace` of its own in place, and the real one, of which the
    audio VAE makes its front end, would be missed from then on: torch is made to look again.
    """
    _device._device_constructors.cache_clear()
    with torch.device("meta"):
        yield


def build_transformer(variant: Variant) -> OviTransformer:
    """The twin DiT."""
    return OviTransformer(**variant.transformer.config()).eval()


def build_text_encoder(variant: Variant) -> UMT5EncoderModel:
    """The UMT5 encoder: gated GELU (tanh), relative positions of its own in every layer."""
    return UMT5EncoderModel(UMT5Config(**variant.text_encoder.config())).eval()


def build_video_vae(variant: Variant) -> AutoencoderKLWan:
    """Wan2.2's video VAE, with the latent statistics in its config; whoever calls it scales by them."""
    return AutoencoderKLWan(**variant.video_vae.config()).eval()


def build_audio_vae(variant: Variant) -> MMAudioVAE:
    """MMAudio's mel VAE. Its front end takes ln, the 16 kHz weights want log10: divide a mel by ln 10."""
    return MMAudioVAE(**variant.audio_vae.config()).eval()


def build_vocoder(variant: Variant) -> OviVocoder | SpectralVocoder:
    """What makes a waveform of the audio VAE's mel: a BigVGAN generator, or nano's own."""
    kind = SpectralVocoder if isinstance(variant.vocoder, SpectralVocoderShape) else OviVocoder
    return kind(**variant.vocoder.config()).eval()
