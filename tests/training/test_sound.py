"""The stages of the audio VAE and of the vocoder."""

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import MMAudioVAE
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioMPConv1d

from ovi_studio.model.vocoder import SpectralVocoder
from ovi_studio.training.audio_vae import (
    AudioDecoderStage,
    AudioVaeStage,
    begin,
    distance_of,
    encode_sound,
    peak_distance_of,
    to_mel,
    vary,
)
from ovi_studio.training.loop import Share
from ovi_studio.training.vocoder import VocoderStage, spectral_distance


def fresh_vae() -> MMAudioVAE:
    torch.manual_seed(0)
    return MMAudioVAE(
        mel_bins=80, latent_channels=3, hidden_channels=8, layers_per_block=1, sample_rate=16_000, n_fft=1024,
        hop_length=256, scaling_factor=1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def vae_stage(world, test_world) -> AudioVaeStage:
    return AudioVaeStage(begin(fresh_vae(), world), world, test_world, batch_size=4)


def row_norms(vae: MMAudioVAE) -> torch.Tensor:
    convolutions = (module for module in vae.modules() if isinstance(module, MMAudioMPConv1d))
    return torch.cat([conv.weight.detach().flatten(1).norm(dim=1) for conv in convolutions])


def test_mels_are_decimal_logarithms():
    vae = fresh_vae()
    sound = torch.sin(torch.arange(8192) * 0.3)[None] * 0.5
    mel = to_mel(vae, sound)
    assert mel.shape == (1, 80, 32)
    torch.testing.assert_close(10**mel, torch.exp(vae.mel_converter(sound)))
    assert to_mel(vae, torch.zeros(1, 8192)).min() == pytest.approx(-4.5, abs=0.6)


def test_rows_keep_unit_norm_through_a_step(vae_stage):
    assert torch.allclose(row_norms(vae_stage.vae), torch.ones(()), atol=1e-4)
    with torch.no_grad():
        for parameter in vae_stage.parameters():
            parameter.mul_(1.3)
    vae_stage.after_step()
    assert torch.allclose(row_norms(vae_stage.vae), torch.ones(()), atol=1e-4)


def test_the_vae_standardizes_mels_and_learns(vae_stage):
    batch = vae_stage.batch(0, Share())
    assert batch["waveform"].shape == (4, 32_768)
    standard = (to_mel(vae_stage.vae, batch["waveform"]) - vae_stage.vae.vae.data_mean) / vae_stage.vae.vae.data_std
    assert standard.abs().mean() < 2
    optimizer = torch.optim.Adam(vae_stage.parameters(), 5e-3)
    distances = []
    for _ in range(8):
        losses = vae_stage(**batch)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        vae_stage.after_step()
        distances.append(float(losses["distance"].detach()))
    assert distances[-1] < 0.8 * distances[0]


def test_the_decoder_learns_peaks_while_the_encoder_stays(world, test_world):
    stage = AudioDecoderStage(begin(fresh_vae(), world), world, test_world, batch_size=4)
    stays, statistics = copy.deepcopy(stage.vae.vae.encoder.state_dict()), stage.vae.vae.data_mean.clone()
    batch = stage.batch(0, Share())
    assert torch.equal(batch["waveform"][1], torch.from_numpy(world.clip(1).waveform))
    assert not torch.equal(batch["waveform"][2], torch.from_numpy(world.clip(2).waveform))
    optimizer = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], 5e-3)
    peaks = []
    for _ in range(8):
        losses = stage(**batch)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        stage.after_step()
        peaks.append(float(losses["peak"].detach()))
    assert peaks[-1] < 0.8 * peaks[0]
    assert all(torch.equal(value, stays[name]) for name, value in stage.vae.vae.encoder.state_dict().items())
    assert torch.equal(stage.vae.vae.data_mean, statistics)


def test_a_missing_line_counts_at_the_peak_and_hardly_in_the_mean():
    mel = torch.full((1, 80, 4), -4.0)
    mel[:, 30] = 0.0
    silent = torch.full((1, 80, 4), -4.0)
    assert peak_distance_of(silent, mel) == pytest.approx(4 * math.log(10))
    assert distance_of(silent, mel) == pytest.approx(4 * math.log(10) / 80)


def test_a_latent_covers_512_samples(vae_stage):
    assert encode_sound(vae_stage.vae, torch.zeros(2, 32_768)).shape == (2, 64, 3)


def test_variations_are_repeatable_and_as_long():
    sound = np.sin(np.arange(4000) * 0.2).astype(np.float32) * 0.4
    one, again, other = (vary(sound, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.shape == sound.shape
    assert 0.2 < np.abs(one[:2000]).max() < 0.6


@pytest.fixture(scope="module")
def vocoder_stage(world, test_world) -> VocoderStage:
    torch.manual_seed(0)
    return VocoderStage(SpectralVocoder(dim=32, ffn_dim=64, num_layers=2), fresh_vae(), world, test_world, batch_size=4)


def test_the_vocoder_learns_and_the_vae_stays(vocoder_stage):
    batch = vocoder_stage.batch(0, Share())
    assert batch["decoded"].tolist() == [0, 0, 1, 1]
    losses = vocoder_stage(**batch)
    assert math.isfinite(float(losses["loss"].detach()))
    losses["loss"].backward()
    assert all(parameter.grad is None for parameter in vocoder_stage.vae.parameters())
    assert all(parameter.grad is not None for parameter in vocoder_stage.vocoder.parameters())


def test_the_untrained_vocoder_is_quiet(vocoder_stage):
    with torch.no_grad():
        made = vocoder_stage.vocoder(torch.full((1, 80, 8), -4.0)).sample
    assert made.abs().max() < 0.5


def test_spectral_distance_knows_pitch_and_loudness_but_no_phase():
    t = torch.arange(8192)[None] / 16_000
    tone, shifted, higher = (0.3 * torch.sin(2 * math.pi * f * t + p) for f, p in ((400, 0), (400, 1.5), (500, 0)))
    assert spectral_distance(tone, tone) == 0
    assert spectral_distance(shifted, tone) < 0.3 * spectral_distance(higher, tone)
    assert spectral_distance(0.5 * tone, tone) > 0.3
