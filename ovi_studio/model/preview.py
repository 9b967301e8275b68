"""A quick picture of video latents: a linear map from a latent to the mean colour of its 16×16 pixels.

The map is fitted once for a VAE, by least squares on a short moving clip sent through the VAE itself, so it
needs no shipped constants and fits whatever weights are loaded. It costs a matrix product; the picture is
blurred, and right in colour and place.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ovi_studio.errors import MediaError
from ovi_studio.files import replacing
from ovi_studio.model.video_vae import encode_frames

_FIT_FRAMES = 9  # three latent frames: the causal first one and two of the common kind
_FIT_SIZE = 256  # pixels a side: 256 latents a frame for about 50 unknowns a colour


@dataclass(frozen=True)
class LatentPreview:
    """Latents to colours: `rgb = latent @ weight + bias`, in 0…1.

    Args:
        weight_C3: float32, on the CPU.
        bias_3: float32, on the CPU.
    """

    weight_C3: Tensor
    bias_3: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, vae: AutoencoderKLWan) -> "LatentPreview":
        """Fits the map to a VAE."""
        frames_1CFHW = _moving_colours(_FIT_FRAMES, _FIT_SIZE)
        latents_CN = encode_frames(vae, frames_1CFHW)[0].flatten(1).cpu()
        # Latent frame 0 stands for frame 0, latent frame i for frames 4i-3 … 4i.
        later = frames_1CFHW[0, :, 1:].unflatten(1, (-1, 4)).mean(dim=2)
        colours_CFHW = torch.cat((frames_1CFHW[0, :, :1], later), dim=1)
        ratio = vae.spatial_compression_ratio
        colours_CFHW = F.avg_pool2d(colours_CFHW, ratio)
        design = torch.cat((latents_CN.T, torch.ones(latents_CN.shape[1], 1)), dim=1)
        target = (colours_CFHW.flatten(1).T + 1) / 2
        solution = torch.linalg.lstsq(design, target, driver="gelsd").solution
        return cls(solution[:-1], solution[-1])

    @classmethod
    def cached(
        cls,
        vae: AutoencoderKLWan,
        folder: Path,
        at_work: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> "LatentPreview":
        """The map of this VAE from `folder`, fitted and kept there if it is not.

        Args:
            vae: whose latents are to be shown.
            folder: made when needed.
            at_work: brings the VAE to its device as long as it is needed, where that must be done.
        """
        path = folder / f"latent-preview-{_fingerprint(vae)}.safetensors"
        try:
            tensors = load_file(path)
            return cls(tensors["weight"], tensors["bias"])
        except (OSError, SafetensorError, KeyError):  # not there, or damaged
            with at_work():
                preview = cls.fit(vae)
        with contextlib.suppress(OSError, MediaError):  # a folder that cannot be written costs the next run a second
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                save_file({"weight": preview.weight_C3.contiguous(), "bias": preview.bias_3.contiguous()}, temporary)
        return preview

    def jpeg(self, latents_1CFHW: Tensor, scale: int = 8) -> bytes:
        """The middle latent frame as a small JPEG, each latent `scale` pixels wide."""
        middle_CHW = latents_1CFHW[0, :, latents_1CFHW.shape[2] // 2].float().cpu()
        colours = (middle_CHW.permute(1, 2, 0) @ self.weight_C3 + self.bias_3).clamp(0, 1)
        picture = PIL.Image.fromarray((colours * 255).to(torch.uint8).numpy())
        picture = picture.resize((picture.width * scale, picture.height * scale), PIL.Image.Resampling.BICUBIC)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=80)
        return data.getvalue()


def _moving_colours(frames: int, size: int) -> Tensor:
    """Soft colour fields that drift, (1, 3, frames, size, size) in -1…1: all colours, in all places."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(-1.2, 1.2, (1, 3, frames // 2, 8, 8)).astype(np.float32))
    smooth = F.interpolate(coarse, size=(frames, size, size), mode="trilinear", align_corners=True)
    return smooth.clamp(-1, 1)


def _fingerprint(vae: AutoencoderKLWan) -> str:
    """Tells VAEs apart by their first values of every tensor, which costs little however large they are."""
    digest = hashlib.sha256()
    for name, tensor in vae.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
