"""Clips as latents: what is stored is what the VAEs make, and a run that was stopped goes on."""

import pytest
import torch
from diffusers import MMAudioVAE

from ovi_studio.errors import OviStudioError
from ovi_studio.model import components
from ovi_studio.model.video_vae import encode_frames
from ovi_studio.training import latents
from ovi_studio.training.audio_vae import encode_sound
from ovi_studio.training.latents import LatentSet, make_latents
from ovi_studio.training.video_vae import to_tensor
from ovi_studio.variants import get_variant


@pytest.fixture(scope="module")
def audio_vae() -> MMAudioVAE:
    torch.manual_seed(0)
    return components.build_audio_vae(get_variant("nano"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 2)
    monkeypatch.setattr(latents, "GROUP", 2)


@torch.no_grad()
def test_latents_are_those_of_the_clips(world, audio_vae, tmp_path):
    torch.manual_seed(0)
    video_vae = components.build_video_vae(get_variant("nano"))
    told: list[int] = []
    make_latents(tmp_path, world, 2, audio_vae, video_vae, told.append)
    stored, clip = LatentSet.load(tmp_path), world.clip(1)
    assert told == [2]
    assert len(stored) == 2
    assert stored.captions[1] == clip.caption
    assert stored.audio.shape == (2, 64, 8)
    assert stored.video.shape == (2, 16, 13, 6, 6)
    sound = encode_sound(audio_vae, torch.from_numpy(clip.waveform)[None])[0]
    torch.testing.assert_close(stored.audio[1].float(), sound, atol=5e-3, rtol=5e-3)
    picture = encode_frames(video_vae, to_tensor(clip.frames)[None])[0]
    torch.testing.assert_close(stored.video[1].float(), picture, atol=5e-3, rtol=5e-3)


def test_shards_that_are_there_stay(world, audio_vae, tmp_path):
    make_latents(tmp_path, world, 2, audio_vae, None, lambda _: None)
    first = (tmp_path / "00000.safetensors").stat().st_mtime_ns
    make_latents(tmp_path, world, 6, audio_vae, None, lambda _: None)
    assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == first
    stored = LatentSet.load(tmp_path)
    assert stored.video is None
    assert stored.captions == tuple(world.clip(index).caption for index in range(6))


def test_an_empty_folder_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(OviStudioError, match=r"no latents in .* Run the stage"):
        LatentSet.load(tmp_path)
