"""Stages `video-vae` and `video-decoder`: the variant's `AutoencoderKLWan` learns to see the toy world.

It starts from causal inflation (Wan, arXiv 2503.20314, section 4.1.2): a video VAE that treats its frames as single
pictures, whose space is learned first, on single frames, and whose time then on 5, 9 and 17 frames. The loss counts
most where something moves and at edges: these are few pixels, and they are what a clip is about.

Then the decoder alone learns whole clips. It remembers what it drew, and what has never come so late it draws wrong:
after 17 frames of training purple turned green towards the end of 49. Latents that were made stay true.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor, nn

from ovi_studio.training.loop import Batch, Share, Stage, divergence_of, noise_of
from ovi_studio.training.toyland import NUM_FRAMES, SIZE, ToyClip, Toyland

KL_WEIGHT = 1e-4  # guessed: latents that spread about 1, with noise of a few hundredths
EDGE_WEIGHT, MOTION_WEIGHT = 3.0, 6.0  # guessed
FIRST_LOG_VARIANCE = -5.0
BOX = 32  # pixels each way about what moves, on which the gate is measured
TEST_CLIPS = 24
_STATISTICS = 1 << 40  # index of the first clip that latent statistics are taken from: training never gets there


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Args:
        until: part of all steps at which it ends.
        frames: of a sample.
        batch_size: samples of a step.
        crop: side of a sample in pixels; about the thing in the clip, where it is less than the frame's.
    """

    until: float
    frames: int
    batch_size: int
    crop: int


PHASES = (
    Phase(0.3, 1, 16, 64),
    Phase(0.5, 5, 8, 64),
    Phase(0.7, 9, 4, 64),
    Phase(0.9, 17, 2, 64),
    Phase(1.0, 17, 2, SIZE),
)
WHOLE_CLIPS = (Phase(1.0, NUM_FRAMES, 1, SIZE),)


class VideoVaeStage(Stage):
    """Trains the VAE on the toy world.

    Args:
        vae: as `begin` leaves it, or trained. What of it needs no gradients stays.
        world: that trains.
        test_world: that measures.
        steps: of the whole training.
        phases: of the whole training.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        world: Toyland,
        test_world: Toyland,
        steps: int,
        phases: tuple[Phase, ...] = PHASES,
    ) -> None:
        super().__init__()
        self.vae = vae
        self._world, self._test_world = world, test_world
        self._steps, self._phases = steps, phases
        skip_absent_past(vae)

    def batch(self, step: int, share: Share) -> Batch:
        """Pieces of clips, one a clip: frames (B, 3, F, H, W) in -1…1 and the noise of their latents."""
        phase = next(phase for phase in self._phases if step < phase.until * self._steps)
        first = step * max(phase.batch_size for phase in self._phases)
        indices = share.of(range(first, first + phase.batch_size))
        pieces = [
            _cut_piece(self._world.clip(index), phase, np.random.default_rng((self._world.seed, 1, index)))
            for index in indices
        ]
        side, latents = phase.crop // self.vae.spatial_compression_ratio, 1 + (phase.frames - 1) // 4
        noise = noise_of(self._world.seed, indices, (self.vae.config.z_dim, latents, side, side))
        return {"frames": torch.stack(pieces), "noise": noise}

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Reconstruction, weighted by what counts, and the latents' distance from a normal distribution."""
        frames = batch["frames"]
        posterior = self.vae.encode(frames).latent_dist
        decoded = decode_unclamped(self.vae, posterior.mean + posterior.std * batch["noise"])
        weight = importance(frames)
        error = decoded - frames
        weighted = weight * (error.abs() + error.square()).mean(1, keepdim=True)
        reconstruction = (weighted.flatten(1).sum(1) / weight.flatten(1).sum(1)).mean()
        divergence = divergence_of(posterior)
        return {
            "loss": reconstruction + KL_WEIGHT * divergence,
            "reconstruction": reconstruction,
            "divergence": divergence,
            "psnr": psnr(error.square().mean()),
        }

    def evaluate(self) -> dict[str, float]:
        """PSNR of whole test clips in dB: whole frames, and boxes about mouth, ball and bulb."""
        whole, boxes = [], {"face": [], "ball": [], "lamp": []}  # type: ignore[var-annotated]
        for index in range(TEST_CLIPS):
            clip = self._test_world.clip(index)
            frames = to_tensor(clip.frames)[None].to(self.vae.device)
            decoded = decode_unclamped(self.vae, self.vae.encode(frames).latent_dist.mode()).clamp(-1, 1)
            error = (decoded - frames)[0].square().mean(0)
            whole.append(error.mean())
            boxes[clip.scene.kind] += _boxes(clip, error)
        kinds = {f"psnr_{kind}": float(psnr(torch.stack(errors).mean())) for kind, errors in boxes.items() if errors}
        together = torch.stack([error for errors in boxes.values() for error in errors]).mean()
        return {"psnr_whole": float(psnr(torch.stack(whole).mean())), "psnr_box": float(psnr(together)), **kinds}

    def save(self, folder: Path) -> None:
        """The VAE, with the statistics of its latents in its config."""
        mean, std = self._latent_statistics()
        self.vae.register_to_config(latents_mean=mean, latents_std=std)
        self.vae.save_pretrained(folder)

    def _latent_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each latent channel over some clips."""
        latents = torch.cat([self._encode(self._world.clip(_STATISTICS + index)) for index in range(TEST_CLIPS)])
        flat = latents.transpose(0, 1).flatten(1)
        return flat.mean(1).tolist(), flat.std(1).tolist()

    def _encode(self, clip: ToyClip) -> Tensor:
        frames = to_tensor(clip.frames)[None].to(self.vae.device)
        latents: Tensor = self.vae.encode(frames).latent_dist.mode()
        return latents


# --- Starting point ---------------------------------------------------------------------------------------------


def begin(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Where training starts, from fresh weights."""
    narrow_posterior(vae)
    inflate_causally(vae)
    return vae


def freeze_encoder(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Leaves the decoder to be trained."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


def inflate_causally(vae: AutoencoderKLWan) -> None:
    """Makes a VAE for pictures of a fresh VAE for video: what is past does not count yet.

    Convolutions look at the present frame alone, with the variance that they had. The encoder's halvings of time
    are means of two frames, the decoder's doublings are copies.
    """
    with torch.no_grad():
        for name, module in vae.named_modules():
            if not isinstance(module, WanCausalConv3d) or module.kernel_size[0] == 1:
                continue
            if name.endswith("time_conv"):
                module.bias.zero_()
                module.weight.zero_()
                taps = module.weight[..., 0, 0]  # (out, in, 3)
                if module.stride[0] == 2:
                    taps[:, :, 1:] = 0.5 * torch.eye(len(taps))[:, :, None]
                else:
                    taps[:, :, 2] = torch.eye(len(taps) // 2).repeat(2, 1)
            else:
                module.weight[:, :, :2] = 0
                module.weight[:, :, 2] *= math.sqrt(3)


def narrow_posterior(vae: AutoencoderKLWan) -> None:
    """Starts with latents that say something: of a fresh VAE's, the noise is as large as all they could be.

    Measured: 1 dB more after 250 steps.
    """
    with torch.no_grad():
        vae.quant_conv.bias[vae.config.z_dim :] = FIRST_LOG_VARIANCE


def skip_absent_past(vae: nn.Module) -> None:
    """Lets causal convolutions of a first frame leave out the zeros before it: the same result, in half the time."""
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3 and module.stride[0] == 1:
            module.forward = functools.partial(_convolve, module)


def _convolve(conv: WanCausalConv3d, x_BCFHW: Tensor, cache_x: Tensor | None = None) -> Tensor:
    if x_BCFHW.shape[2] > 1 or cache_x is not None:
        whole: Tensor = WanCausalConv3d.forward(conv, x_BCFHW, cache_x)
        return whole
    padding = (conv._padding[2], conv._padding[0])
    return F.conv2d(x_BCFHW[:, :, 0], conv.weight[:, :, 2], conv.bias, padding=padding)[:, :, None]


# --- Parts of the loss ------------------------------------------------------------------------------------------


def decode_unclamped(vae: AutoencoderKLWan, latents_BCFHW: Tensor) -> Tensor:
    """Frames (B, 3, F, H, W) of latents as they are before scaling. `vae.decode` ends in a clamp without gradients."""
    return torch.cat(list(_decode_each(vae, latents_BCFHW)), dim=2)


def _decode_each(vae: AutoencoderKLWan, latents_BCFHW: Tensor) -> Iterator[Tensor]:
    vae.clear_cache()
    features = vae._feat_map
    for index, latent in enumerate(vae.post_quant_conv(latents_BCFHW).split(1, dim=2)):
        decoded = vae.decoder(latent, feat_cache=features, feat_idx=[0], first_chunk=index == 0)
        yield unpatchify(decoded, patch_size=vae.config.patch_size)
    vae.clear_cache()


def importance(frames_BCFHW: Tensor) -> Tensor:
    """Weights (B, 1, F, H, W) of the pixels: 1, and more at edges and where the picture changes."""
    across = F.pad((frames_BCFHW[..., 1:] - frames_BCFHW[..., :-1]).abs(), (0, 1))
    down = F.pad((frames_BCFHW[..., 1:, :] - frames_BCFHW[..., :-1, :]).abs(), (0, 0, 0, 1))
    change = (frames_BCFHW[:, :, 1:] - frames_BCFHW[:, :, :-1]).abs()
    change = torch.maximum(F.pad(change, (0, 0, 0, 0, 1, 0)), F.pad(change, (0, 0, 0, 0, 0, 1)))
    edge, motion = (_spread(x.amax(1, keepdim=True)) for x in (across + down, change))
    return 1 + EDGE_WEIGHT * edge + MOTION_WEIGHT * motion


def _spread(strength_B1FHW: Tensor) -> Tensor:
    """1 within a pixel of where something is, else 0."""
    return F.max_pool3d((strength_B1FHW > 0.15).float(), (1, 3, 3), stride=1, padding=(0, 1, 1))


def psnr(squared_error: Tensor) -> Tensor:
    """In dB, of a mean squared error of values in -1…1."""
    return 10 * torch.log10(4 / squared_error.detach().clamp_min(1e-10))


# --- Samples ----------------------------------------------------------------------------------------------------


def to_tensor(frames_FHWC: np.ndarray) -> Tensor:
    """Frames (F, H, W, 3) in 0…255 to (3, F, H, W) in -1…1."""
    return torch.from_numpy(frames_FHWC).permute(3, 0, 1, 2).float() / 127.5 - 1


def _cut_piece(clip: ToyClip, phase: Phase, rng: np.random.Generator) -> Tensor:
    """Some frames of a clip; a crop is somewhere about what moves."""
    start = int(rng.integers(0, NUM_FRAMES - phase.frames + 1))
    frames = clip.scene.frames(clip.waveform, start, phase.frames)
    middle = clip.scene.animation(clip.waveform)[start + phase.frames // 2]
    left, top = (
        int(np.clip(centre - phase.crop / 2 + rng.integers(-16, 17), 0, SIZE - phase.crop))
        for centre in clip.scene.focus(float(middle))
    )
    return to_tensor(frames[:, top : top + phase.crop, left : left + phase.crop])


def _boxes(clip: ToyClip, error_FHW: Tensor) -> list[Tensor]:
    """Mean squared error of each frame in the box about what moves."""
    errors = []
    for frame, state in zip(error_FHW, clip.scene.animation(clip.waveform), strict=True):
        left, top = (int(np.clip(c - BOX / 2, 0, SIZE - BOX)) for c in clip.scene.focus(float(state)))
        errors.append(frame[top : top + BOX, left : left + BOX].mean())
    return errors
