"""The preview's linear map: it finds one where there is one, and keeps what it fitted."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLWan

from ovi_studio.model import components, preview
from ovi_studio.model.preview import LatentPreview
from ovi_studio.variants import get_variant


class LinearVae:
    """A VAE whose latents are a linear map of the mean colours, so that a perfect preview exists."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.mixing = torch.randn(8, 3, generator=generator)
        self.spatial_compression_ratio = 16


@pytest.fixture
def linear_vae(monkeypatch: pytest.MonkeyPatch) -> LinearVae:
    def encode(vae: LinearVae, frames: torch.Tensor) -> torch.Tensor:
        later = frames[0, :, 1:].unflatten(1, (-1, 4)).mean(dim=2)
        colours = torch.nn.functional.avg_pool2d(torch.cat((frames[0, :, :1], later), dim=1), 16)
        return torch.einsum("zc,cfhw->zfhw", vae.mixing, colours)[None] + 0.3

    monkeypatch.setattr(preview, "encode_frames", encode)
    return LinearVae()


def test_a_linear_vae_is_inverted(linear_vae: LinearVae) -> None:
    fitted = LatentPreview.fit(linear_vae)
    wanted = torch.tensor([0.9, 0.2, 0.4])
    latent = linear_vae.mixing @ (wanted * 2 - 1) + 0.3
    frame = latent[None, :, None, None, None].expand(1, 8, 3, 4, 6)
    picture = np.asarray(PIL.Image.open(io.BytesIO(fitted.jpeg(frame))))
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture.reshape(-1, 3).mean(axis=0) / 255 - wanted.numpy()).max() < 0.02


def test_it_is_fitted_once_for_each_vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[AutoencoderKLWan] = []
    fit = LatentPreview.fit

    def noted(vae: AutoencoderKLWan) -> LatentPreview:
        fits.append(vae)
        return fit(vae)

    monkeypatch.setattr(LatentPreview, "fit", noted)
    torch.manual_seed(0)
    one, other = (components.build_video_vae(get_variant("nano")) for _ in range(2))
    first = LatentPreview.cached(one, tmp_path / "cache")
    again = LatentPreview.cached(one, tmp_path / "cache")
    LatentPreview.cached(other, tmp_path / "cache")
    assert fits == [one, other]
    assert torch.equal(first.weight_C3, again.weight_C3)
    assert len(list((tmp_path / "cache").iterdir())) == 2
