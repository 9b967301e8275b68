"""The video VAE through the key map: normalised latents, frames before and after the clamp, within 1e-4."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from ovi_studio.model.components import build_video_vae
from ovi_studio.model.video_vae import decode_frames, encode_frames
from ovi_studio.shapes import VideoVaeShape
from ovi_studio.variants import VARIANTS
from ovi_studio.weights.convert import video_vae_from_checkpoint
from tests.goldens import cases

pytestmark = pytest.mark.golden
CONSTANTS = cases.facts("wan_vae22_constants")
RECORDED = cases.facts("wan_vae22_tiny.weights")
TENSORS = cases.tensors("wan_vae22_tiny")
TOLERANCE = 1e-4


def cases_with(suffix: str) -> list[str]:
    return [key.removesuffix(suffix) for key in TENSORS if key.endswith(suffix)]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    patch, levels = RECORDED["patch_size"], RECORDED["dim_mult"]
    shape = VideoVaeShape(
        base_dim=RECORDED["dim"],
        decoder_base_dim=RECORDED["dec_dim"],
        z_dim=RECORDED["z_dim"],
        dim_mult=tuple(levels),
        num_res_blocks=RECORDED["num_res_blocks"],
        temperal_downsample=tuple(RECORDED["temporal_downsample"]),
        patch_size=patch,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        latents_mean=tuple(CONSTANTS["mean"]),
        latents_std=tuple(CONSTANTS["std"]),
        scale_factor_temporal=2 ** sum(RECORDED["temporal_downsample"]),
        scale_factor_spatial=patch * 2 ** (len(levels) - 1),
    )
    model = build_video_vae(dataclasses.replace(VARIANTS["720x720_5s"], video_vae=shape))
    model.load_state_dict(video_vae_from_checkpoint(cases.weights("wan_vae22_tiny")))
    return model


@pytest.mark.parametrize("name", cases_with(".latent"))
def test_encode(vae: AutoencoderKLWan, name: str) -> None:
    """Frames beyond the last 4k+1 are left out, as in the recording."""
    with torch.no_grad():
        latents = encode_frames(vae, TENSORS[f"{name}.in"])
    cases.assert_close(latents, TENSORS[f"{name}.latent"], TOLERANCE)


@pytest.mark.parametrize("name", cases_with(".out"))
def test_decode(vae: AutoencoderKLWan, name: str) -> None:
    with torch.no_grad():
        frames = torch.cat(list(decode_frames(vae, TENSORS[f"{name}.in"])), dim=2)
    cases.assert_close(frames, TENSORS[f"{name}.out"], TOLERANCE)


@pytest.mark.parametrize("name", cases_with(".raw"))
def test_decode_before_the_clamp(vae: AutoencoderKLWan, name: str) -> None:
    mean, std = (
        torch.tensor(statistic).view(1, -1, 1, 1, 1) for statistic in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        frames = decode_unclamped(vae, TENSORS[f"{name}.in"] * std + mean)
    cases.assert_close(frames, TENSORS[f"{name}.raw"], TOLERANCE)


def decode_unclamped(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`vae.decode` before its last step: one latent frame at a time over the decoder's feature cache."""
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    chunks = [
        vae.decoder(hidden[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=[0], first_chunk=i == 0)
        for i in range(hidden.shape[2])
    ]
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, dim=2), patch_size=vae.config.patch_size)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if VARIANTS[name].fusion_file])
def test_the_variants_carry_the_recorded_latent_statistics(variant: str) -> None:
    shape = VARIANTS[variant].video_vae
    assert list(shape.latents_mean) == CONSTANTS["mean"]
    assert list(shape.latents_std) == CONSTANTS["std"]
    inverse = cases.tensors("wan_vae22_constants")["inv_std_float32"]
    cases.assert_close(1 / torch.tensor(shape.latents_std), inverse, 1e-6)
