"""Stages `audio-vae` and `audio-decoder`: the variant's `MMAudioVAE` learns the mel spectrograms of the toy world.

Its convolutions keep magnitudes (EDM2, arXiv 2312.02696) and expect weights whose rows have unit norm. The class has
no normalization for training, so rows are put back to unit norm after each step.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import MMAudioVAE
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioMPConv1d
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ovi_studio.training.loop import Batch, Share, Stage, divergence_of, noise_of
from ovi_studio.training.toyland import NUM_SAMPLES, Toyland
from ovi_studio.training.voices import Waveform

BATCH_SIZE = 16
KL_WEIGHT = 3e-3  # guessed: latents with a standard deviation near 1
PEAK_WEIGHT = 0.3  # guessed: an empty loudest band then counts as much as 24 of the 80
TEST_CLIPS = 48
_STATISTICS = 1 << 40  # index of the first clip that statistics are taken from: training never gets there


class AudioVaeStage(Stage):
    """Trains the VAE on the toy world's sounds.

    Args:
        vae: that has begun.
        world: that trains.
        test_world: that measures.
        batch_size: clips of a step.
    """

    def __init__(self, vae: MMAudioVAE, world: Toyland, test_world: Toyland, batch_size: int = BATCH_SIZE) -> None:
        super().__init__()
        self.vae = vae
        self._world, self._test_world, self._batch_size = world, test_world, batch_size

    def batch(self, step: int, share: Share) -> Batch:
        """Whole sounds (B, samples) and the noise of their latents (B, C, latents)."""
        indices = share.of(range(step * self._batch_size, (step + 1) * self._batch_size))
        sounds = [self.sound(index) for index in indices]
        shape = (self.vae.config.latent_channels, NUM_SAMPLES // self.vae.latent_hop_length)
        noise = noise_of(self._world.seed, indices, shape)
        return {"waveform": torch.from_numpy(np.stack(sounds)), "noise": noise}

    def sound(self, index: int) -> Waveform:
        """Of a training clip, varied."""
        return vary(self._world.clip(index).waveform, np.random.default_rng((self._world.seed, 2, index)))

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Distance of the log-mels, in nepers, and the latents' distance from a normal distribution."""
        mel, posterior, decoded = self._decoded(batch)
        distance, divergence = distance_of(decoded, mel), divergence_of(posterior)
        return {"loss": distance + KL_WEIGHT * divergence, "distance": distance, "divergence": divergence}

    def _decoded(self, batch: Batch) -> tuple[Tensor, DiagonalGaussianDistribution, Tensor]:
        """Mels, what their latents may be, and the mels of one such latent."""
        mel = to_mel(self.vae, batch["waveform"])
        posterior = DiagonalGaussianDistribution(self.vae.vae.encode(mel))
        return mel, posterior, self.vae.vae.decode(posterior.mean + posterior.std * batch["noise"])

    def after_step(self) -> None:
        """Puts every row of the convolutions back to unit norm."""
        normalize_rows(self.vae)

    def evaluate(self) -> dict[str, float]:
        """Distance of the log-mels of test clips, whole and at their peaks, in nepers; the spread of their latents."""
        waveforms = np.stack([self._test_world.clip(index).waveform for index in range(TEST_CLIPS)])
        mel = to_mel(self.vae, torch.from_numpy(waveforms).to(self.vae.device))
        latents = DiagonalGaussianDistribution(self.vae.vae.encode(mel)).mode()
        decoded = self.vae.vae.decode(latents)
        spread = latents.transpose(0, 1).flatten(1).std(1)
        return {
            "test_distance": float(distance_of(decoded, mel)),
            "test_peak": float(peak_distance_of(decoded, mel)),
            "latent_mean": float(latents.mean()),
            "latent_std_min": float(spread.min()),
            "latent_std_max": float(spread.max()),
        }

    def save(self, folder: Path) -> None:
        """The VAE."""
        self.vae.save_pretrained(folder)


class AudioDecoderStage(AudioVaeStage):
    """Trains the decoder on: every second sound as it is, and the loudest band of each moment counts by itself.

    A pure tone is a line in two of 80 bands, and a decoder that leaves it out errs in no other: 1,000 Hz, which lies
    on a frequency of the Fourier transform and leaks into none beside it, came out silent. The encoder stays, and
    with it all latents.

    Args:
        vae: that the stage before has trained.
        world: as there, and so the rest.
        test_world: see above.
        batch_size: see above.
    """

    def __init__(self, vae: MMAudioVAE, world: Toyland, test_world: Toyland, batch_size: int = BATCH_SIZE) -> None:
        super().__init__(vae, world, test_world, batch_size)
        vae.vae.encoder.requires_grad_(False)

    def sound(self, index: int) -> Waveform:
        """Of a training clip, as it is or varied."""
        return self._world.clip(index).waveform if index % 2 else super().sound(index)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Distance of the log-mels, in nepers, over all and at their peaks."""
        mel, _, decoded = self._decoded(batch)
        distance, peak = distance_of(decoded, mel), peak_distance_of(decoded, mel)
        return {"loss": distance + PEAK_WEIGHT * peak, "distance": distance, "peak": peak}

    def after_step(self) -> None:
        """Puts every row of the decoder's convolutions back to unit norm."""
        normalize_rows(self.vae.vae.decoder)


def begin(vae: MMAudioVAE, world: Toyland) -> MMAudioVAE:
    """Gives a fresh VAE the statistics of the world's mels, and its convolutions their norm."""
    waveforms = [world.clip(_STATISTICS + index).waveform for index in range(TEST_CLIPS)]
    mel_BMT = to_mel(vae, torch.from_numpy(np.stack(waveforms)))
    vae.vae.data_mean.copy_(mel_BMT.mean((0, 2))[None, :, None])
    vae.vae.data_std.copy_(mel_BMT.std((0, 2))[None, :, None])
    normalize_rows(vae)
    return vae


def distance_of(decoded_BMT: Tensor, mel_BMT: Tensor) -> Tensor:
    """Mean distance of log10-mels, in nepers."""
    return F.l1_loss(decoded_BMT, mel_BMT) * math.log(10)


def peak_distance_of(decoded_BMT: Tensor, mel_BMT: Tensor) -> Tensor:
    """Mean distance in the band that is truly the loudest at a moment, in nepers."""
    loudest = mel_BMT.argmax(1, keepdim=True)
    return distance_of(decoded_BMT.gather(1, loudest), mel_BMT.gather(1, loudest))


def to_mel(vae: MMAudioVAE, waveform_BS: Tensor) -> Tensor:
    """Waveforms (B, samples) to log10-mels (B, bins, samples / 256), in which this model's audio VAE thinks.

    The class's own front end takes natural logarithms.
    """
    mel: Tensor = vae.mel_converter(waveform_BS) / math.log(10)
    return mel


def encode_sound(vae: MMAudioVAE, waveform_BS: Tensor) -> Tensor:
    """Waveforms (B, samples) to audio latents (B, A, C), one per 512 samples, without sampling."""
    posterior = DiagonalGaussianDistribution(vae.vae.encode(to_mel(vae, waveform_BS)))
    latents: Tensor = posterior.mode().transpose(1, 2)
    return latents


def normalize_rows(module: nn.Module) -> None:
    """Gives every output channel of the magnitude-preserving convolutions a kernel of norm 1."""
    with torch.no_grad():
        for conv in module.modules():
            if isinstance(conv, MMAudioMPConv1d):
                conv.weight.div_(conv.weight.flatten(1).norm(dim=1)[:, None, None] + 1e-8)


def vary(waveform: Waveform, rng: np.random.Generator) -> Waveform:
    """The same sound up to 15 % faster and higher, or slower and lower, and up to 3 dB louder or quieter."""
    rate = rng.uniform(0.85, 1.15)
    positions = np.arange(len(waveform)) * rate
    gain = 10 ** (rng.uniform(-3, 3) / 20)
    varied = np.interp(positions, np.arange(len(waveform)), waveform, right=0.0) * gain
    return np.clip(varied, -1, 1).astype(np.float32)
