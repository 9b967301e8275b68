"""Stage `vocoder`: the variant's vocoder learns to make waveforms of log10-mels.

Half of each batch are mels of real sounds, half what the audio VAE makes of them, which is what it will be given.
The loss compares spectra at several resolutions, and mels; it knows no phase, as the ear hardly does.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import MMAudioVAE
from torch import Tensor

from ovi_studio.model.vocoder import SpectralVocoder
from ovi_studio.training.audio_vae import encode_sound, to_mel, vary
from ovi_studio.training.loop import Batch, Share, Stage
from ovi_studio.training.toyland import NUM_SAMPLES, Toyland

HOP = 256  # samples a mel frame
FRAMES = 32  # of a training sample
MARGIN = 4  # frames at each end that a mel needs to be that of the whole sound, and that are not compared
BATCH_SIZE = 8
FFT_SIZES = (256, 512, 1024, 2048)
MEL_WEIGHT = 1.0  # guessed
TEST_CLIPS = 12


class VocoderStage(Stage):
    """Trains the vocoder on the toy world's sounds.

    Args:
        vocoder: with fresh weights.
        vae: the trained audio VAE; it stays as it is.
        world: that trains.
        test_world: that measures.
        batch_size: pieces of sound of a step.
    """

    def __init__(
        self,
        vocoder: SpectralVocoder,
        vae: MMAudioVAE,
        world: Toyland,
        test_world: Toyland,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        super().__init__()
        self.vocoder = vocoder
        self.vae = vae.requires_grad_(False)
        self._world, self._test_world, self._batch_size = world, test_world, batch_size

    def batch(self, step: int, share: Share) -> Batch:
        """Pieces of sounds (B, samples), and which of them go through the audio VAE (B,)."""
        indices = share.of(range(step * self._batch_size, (step + 1) * self._batch_size))
        pieces = [self._cut_piece(index) for index in indices]
        decoded = torch.tensor([float(index % 4 >= 2) for index in indices])
        return {"waveform": torch.from_numpy(np.stack(pieces)), "decoded": decoded}

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Distances of spectra and mels between the piece and what the vocoder makes of its mel."""
        waveform, decoded = batch["waveform"], batch["decoded"]
        with torch.no_grad():
            mel = to_mel(self.vae, waveform)
            reconstructed = self.vae.decode(encode_sound(self.vae, waveform).transpose(1, 2)).sample
            mel = torch.where(decoded[:, None, None] > 0, reconstructed, mel)
        inner = slice(MARGIN * HOP, -MARGIN * HOP)
        made = self.vocoder(mel).sample[:, 0]
        spectral = spectral_distance(made[:, inner], waveform[:, inner])
        mels = F.l1_loss(to_mel(self.vae, made), to_mel(self.vae, waveform)) * math.log(10)
        return {"loss": spectral + MEL_WEIGHT * mels, "spectral": spectral, "mel": mels}

    def evaluate(self) -> dict[str, float]:
        """Distance of the log-mels of test clips after the vocoder, in nepers: from real mels, and from the VAE's."""
        waveforms = np.stack([self._test_world.clip(index).waveform for index in range(TEST_CLIPS)])
        waveform = torch.from_numpy(waveforms).to(self.vae.device)
        mel = to_mel(self.vae, waveform)
        decoded = self.vae.decode(encode_sound(self.vae, waveform).transpose(1, 2)).sample
        copied, whole = (to_mel(self.vae, self.vocoder(given).sample[:, 0]) for given in (mel, decoded))
        nepers = math.log(10)
        return {
            "test_copy": float((copied - mel).abs().mean()) * nepers,
            "test_vae": float((whole - mel).abs().mean()) * nepers,
        }

    def save(self, folder: Path) -> None:
        """The vocoder."""
        self.vocoder.save_pretrained(folder)

    def _cut_piece(self, index: int) -> np.ndarray:
        """A piece of a clip; the louder of two places, because much of a clip is silent."""
        rng = np.random.default_rng((self._world.seed, 3, index))
        waveform = vary(self._world.clip(index).waveform, rng)
        length = (FRAMES + 2 * MARGIN) * HOP
        pieces = [waveform[start : start + length] for start in rng.integers(0, NUM_SAMPLES - length, 2)]
        return max(pieces, key=lambda piece: float(np.square(piece).sum()))


def spectral_distance(made_BS: Tensor, given_BS: Tensor) -> Tensor:
    """Mean over several resolutions of the spectra's relative and logarithmic distances (arXiv 1910.11480)."""
    distances = []
    for size in FFT_SIZES:
        made, given = (_magnitudes(waveform, size) for waveform in (made_BS, given_BS))
        # Over each sample by itself, so that a batch is the mean of its parts.
        convergence = (made - given).flatten(1).norm(dim=1) / given.flatten(1).norm(dim=1).clamp_min(1.0)
        distances.append(convergence.mean() + (made.log() - given.log()).abs().mean())
    return torch.stack(distances).mean()


def _magnitudes(waveform_BS: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=waveform_BS.device)
    spectrum = torch.stft(waveform_BS, size, size // 4, window=window, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(-1).clamp_min(1e-6).sqrt()
