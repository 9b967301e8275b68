"""The streamed decode gives the frames of the whole one, tiled or not, and one part at a time."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from ovi_studio.model import components
from ovi_studio.model.video_vae import decode_frames, encode_frames
from ovi_studio.variants import get_variant


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = components.build_video_vae(get_variant("nano"))
    vae.register_to_config(latents_mean=[0.1] * 16, latents_std=[0.5] * 16)
    return vae


def whole(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents * 0.5 + 0.1).sample


@pytest.mark.parametrize("frames", [1, 2, 5])
@torch.no_grad()
def test_streamed_equals_whole(vae: AutoencoderKLWan, frames: int) -> None:
    latents = torch.randn(1, 16, frames, 4, 6, generator=torch.Generator().manual_seed(frames))
    parts = list(decode_frames(vae, latents))
    assert [part.shape[2] for part in parts] == [1] + [4] * (frames - 1)
    assert torch.equal(torch.cat(parts, dim=2), whole(vae, latents))


@torch.no_grad()
def test_streamed_tiles_equal_whole_tiles(vae: AutoencoderKLWan) -> None:
    latents = torch.randn(1, 16, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    untiled = whole(vae, latents)
    vae.enable_tiling(64, 64, 48, 48)
    try:
        streamed = torch.cat(list(decode_frames(vae, latents)), dim=2)
        tiled = whole(vae, latents)
    finally:
        vae.disable_tiling()
    assert streamed.shape == untiled.shape
    torch.testing.assert_close(streamed, tiled, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(tiled, untiled, atol=1e-3), "the tiles did not tile"


@torch.no_grad()
def test_two_streams_do_not_disturb_each_other(vae: AutoencoderKLWan) -> None:
    first, second = (torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    pairs = list(zip(decode_frames(vae, first), decode_frames(vae, second), strict=True))
    assert torch.equal(torch.cat([pair[0] for pair in pairs], dim=2), whole(vae, first))
    assert torch.equal(torch.cat([pair[1] for pair in pairs], dim=2), whole(vae, second))


@torch.no_grad()
def test_encoding_scales(vae: AutoencoderKLWan) -> None:
    frames = torch.rand(1, 3, 5, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw = vae.encode(frames).latent_dist.mode()
    torch.testing.assert_close(encode_frames(vae, frames), (raw - 0.1) / 0.5)
