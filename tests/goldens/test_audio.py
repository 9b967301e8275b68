"""Audio VAE, vocoder and mel front end through the key maps: mel within 1e-5, latents and waveforms 1e-4."""

import dataclasses
import math
import re

import pytest
import torch
from diffusers import MMAudioVAE
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioMelSpectrogram
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ovi_studio.model.components import build_audio_vae, build_vocoder
from ovi_studio.model.vocoder import OviVocoder
from ovi_studio.shapes import AudioVaeShape, VocoderShape
from ovi_studio.variants import VARIANTS
from ovi_studio.weights.convert import audio_vae_from_checkpoint, vocoder_from_checkpoint
from tests.goldens import cases

pytestmark = pytest.mark.golden
CONSTANTS = cases.tensors("mmaudio_constants")
MEL = cases.facts("mmaudio_constants")["mel"]
FACTS = cases.facts("mmaudio_tiny")
RECORDED = cases.facts("mmaudio_tiny.weights")
TENSORS = cases.tensors("mmaudio_tiny")
MEL_TOLERANCE, TOLERANCE = 1e-5, 1e-4


def cases_with(suffix: str, prefix: str = "") -> list[str]:
    return [key.removesuffix(suffix) for key in TENSORS if key.startswith(prefix) and key.endswith(suffix)]


def checkpoint(part: str) -> dict[str, torch.Tensor]:
    weights = cases.weights("mmaudio_tiny")
    return {key.removeprefix(part): tensor for key, tensor in weights.items() if key.startswith(part)}


@pytest.fixture(scope="module")
def vae() -> MMAudioVAE:
    """The depth and the widths of the levels are not in the facts; the weights tell them."""
    weights = checkpoint("vae.")
    levels = {int(found[1]) for key in weights if (found := re.match(r"encoder\.down\.(\d+)\.block", key))}
    blocks = {int(found[1]) for key in weights if (found := re.match(r"encoder\.down\.0\.block\.(\d+)", key))}
    widths = [weights[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in sorted(levels)]
    shape = AudioVaeShape(
        mel_bins=RECORDED["data_dim"],
        latent_channels=RECORDED["embed_dim"],
        hidden_channels=RECORDED["hidden_dim"],
        channel_multipliers=tuple(width // RECORDED["hidden_dim"] for width in widths),
        layers_per_block=len(blocks),
        sample_rate=FACTS["waveform"]["sample_rate"],
        n_fft=MEL["n_fft"],
        hop_length=MEL["hop"],
    )
    model = build_audio_vae(dataclasses.replace(VARIANTS["720x720_5s"], audio_vae=shape))
    model.load_state_dict(audio_vae_from_checkpoint(weights))
    return model


@pytest.fixture(scope="module")
def vocoder() -> OviVocoder:
    config = RECORDED["vocoder_config"]
    shape = VocoderShape(
        num_mels=config["num_mels"],
        upsample_initial_channel=config["upsample_initial_channel"],
        upsample_rates=tuple(config["upsample_rates"]),
        upsample_kernel_sizes=tuple(config["upsample_kernel_sizes"]),
        resblock_kernel_sizes=tuple(config["resblock_kernel_sizes"]),
        resblock_dilation_sizes=tuple(tuple(dilations) for dilations in config["resblock_dilation_sizes"]),
    )
    model = build_vocoder(dataclasses.replace(VARIANTS["720x720_5s"], vocoder=shape))
    model.load_state_dict(vocoder_from_checkpoint(checkpoint("vocoder.")))
    return model


def log10_mel(vae: MMAudioVAE, wave: torch.Tensor) -> torch.Tensor:
    """The mel spectrogram that the 16 kHz weights were trained on; the library's front end takes ln."""
    mel: torch.Tensor = vae.mel_converter(wave) / math.log(10)
    return mel


@pytest.mark.parametrize("name", cases_with(".wave"))
def test_mel_front_end(vae: MMAudioVAE, name: str) -> None:
    cases.assert_close(log10_mel(vae, TENSORS[f"{name}.wave"]), TENSORS[f"{name}.mel"], MEL_TOLERANCE)


@pytest.mark.parametrize("name", cases_with(".wave"))
def test_encode(vae: MMAudioVAE, name: str) -> None:
    with torch.no_grad():
        posterior = DiagonalGaussianDistribution(vae.vae.encode(log10_mel(vae, TENSORS[f"{name}.wave"])))
    cases.assert_close(posterior.mean, TENSORS[f"{name}.latent_mean"], TOLERANCE)
    cases.assert_close(posterior.logvar, TENSORS[f"{name}.logvar"], TOLERANCE)


@pytest.mark.parametrize("name", cases_with(".z"))
def test_decode_to_waveform(vae: MMAudioVAE, vocoder: OviVocoder, name: str) -> None:
    with torch.no_grad():
        mel = vae.decode(TENSORS[f"{name}.z"]).sample
        audio = vocoder(mel).sample
    cases.assert_close(mel, TENSORS[f"{name}.mel"], TOLERANCE)
    cases.assert_close(audio, TENSORS[f"{name}.audio"], TOLERANCE)


@pytest.mark.parametrize("name", cases_with(".audio", prefix="voc"))
def test_vocoder_alone(vocoder: OviVocoder, name: str) -> None:
    with torch.no_grad():
        audio = vocoder(TENSORS[f"{name}.mel"]).sample
    cases.assert_close(audio, TENSORS[f"{name}.audio"], TOLERANCE)


@pytest.mark.parametrize("name", [key for key in TENSORS if key.startswith("effective.")])
def test_weights_after_normalisation(vae: MMAudioVAE, vocoder: OviVocoder, name: str) -> None:
    state = {**vae.state_dict(), **{f"vocoder.{key}": tensor for key, tensor in vocoder.state_dict().items()}}
    cases.assert_close(state[name.removeprefix("effective.")], TENSORS[name], 1e-6)


def test_mel_tables() -> None:
    front_end = MMAudioMelSpectrogram(MEL["sampling_rate"], MEL["n_fft"], MEL["num_mels"], MEL["hop"])
    cases.assert_close(front_end.mel_basis, CONSTANTS["mel_basis"], 1e-6)
    cases.assert_close(front_end.hann_window, CONSTANTS["hann_window"], 1e-6)


def test_anti_aliasing_filters(vocoder: OviVocoder) -> None:
    """Of a fresh vocoder, as the checkpoint would only bring its own back."""
    fresh = type(vocoder).from_config(vocoder.config)
    for activation in (fresh.activation_post, fresh.resblocks[0].activations[0]):
        cases.assert_close(activation.upsample.filter.flatten(), CONSTANTS["antialias_filter"], 1e-6)
        down = activation.downsample.lowpass.filter.flatten()
        cases.assert_close(down, CONSTANTS["antialias_down_filter"], 1e-6)


@pytest.mark.skipif(cases.FOLDER != cases.OWN_COPY, reason="the constants are of our own copy's recording")
def test_recorded_mel_statistics_are_those_of_the_checkpoint(vae: MMAudioVAE) -> None:
    cases.assert_close(vae.vae.data_mean.flatten(), CONSTANTS["mel_mean_80"], 0)
    cases.assert_close(vae.vae.data_std.flatten(), CONSTANTS["mel_std_80"], 0)
