"""The video VAE's stage: its starting point, the weights of its loss, and its samples."""

import numpy as np
import pytest
import torch

from ovi_studio.model import components
from ovi_studio.training.loop import Share
from ovi_studio.training.video_vae import (
    Phase,
    VideoVaeStage,
    begin,
    decode_unclamped,
    freeze_encoder,
    importance,
    inflate_causally,
    psnr,
    skip_absent_past,
    to_tensor,
)
from ovi_studio.variants import get_variant


def fresh_vae(seed: int = 0):
    torch.manual_seed(seed)
    return components.build_video_vae(get_variant("nano"))


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_an_inflated_vae_sees_every_frame_as_a_picture(frames):
    vae = fresh_vae()
    inflate_causally(vae)
    still = frames[:, :, :1].expand(-1, -1, 9, -1, -1)
    latents = vae.encode(still).latent_dist.mode()
    # The first latent frame is of one frame, the others of four alike; the shortcuts alone tell them apart.
    torch.testing.assert_close(latents[:, :, 1], latents[:, :, 2])
    changed = still.clone()
    changed[:, :, 0] = 0
    torch.testing.assert_close(vae.encode(changed).latent_dist.mode()[:, :, 1:], latents[:, :, 1:])
    decoded = decode_unclamped(vae, latents)
    for frame in range(2, 9):
        torch.testing.assert_close(decoded[:, :, 1], decoded[:, :, frame])


@torch.no_grad()
def test_leaving_out_the_absent_past_changes_nothing(frames):
    plain, quick = fresh_vae(), fresh_vae()
    skip_absent_past(quick)
    latents = plain.encode(frames).latent_dist.mode()
    torch.testing.assert_close(quick.encode(frames).latent_dist.mode(), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decode_unclamped(quick, latents), decode_unclamped(plain, latents), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_decodes_as_the_library_does_up_to_its_clamp(frames):
    vae = fresh_vae()
    latents = vae.encode(frames).latent_dist.mode() * 20
    mine = decode_unclamped(vae, latents)
    assert mine.abs().max() > 1
    torch.testing.assert_close(mine.clamp(-1, 1), vae.decode(latents).sample)


def test_moving_pixels_and_edges_count_more():
    frames = torch.zeros(1, 3, 3, 16, 16)
    frames[:, :, :, :, 4:] = 1  # an edge that stands still
    frames[:, :, 2, 10:12, 10:12] = -1  # something that appears
    weight = importance(frames)
    assert weight.shape == (1, 1, 3, 16, 16)
    assert weight[0, 0, 0, 2, 12] == 1
    assert weight[0, 0, 0, 2, 3] == 4
    assert weight[0, 0, 0, 10, 10] == 1  # it appears two frames later
    assert weight[0, 0, 1, 10, 11] == 7  # the frame before it appears counts too
    assert weight[0, 0, 2, 10, 10] == 10


def test_psnr_of_a_known_error():
    # An error of 0.2 in -1…1 is one of 0.1 in 0…1: 20 dB
    assert float(psnr(torch.tensor(0.04))) == pytest.approx(20)


def stage_of(world, test_world) -> VideoVaeStage:
    phases = (Phase(0.5, 1, 4, 64), Phase(1.0, 5, 2, 96))
    return VideoVaeStage(begin(fresh_vae()), world, test_world, 10, phases)


def test_phases_follow_one_another_and_batches_are_shared(world, test_world):
    stage = stage_of(world, test_world)
    assert stage.batch(4, Share())["frames"].shape == (4, 3, 1, 64, 64)
    late = stage.batch(5, Share())
    assert late["frames"].shape == (2, 3, 5, 96, 96)
    assert late["noise"].shape == (2, 16, 2, 6, 6)
    assert all(torch.equal(late[name], again) for name, again in stage.batch(5, Share()).items())
    for rank in (0, 1):
        part = stage.batch(5, Share(rank, 2))
        assert all(torch.equal(late[name][rank::2], part[name]) for name in late)
    assert not torch.equal(late["frames"], stage.batch(6, Share())["frames"])


def test_crops_show_what_moves(world, test_world):
    frames = stage_of(world, test_world).batch(0, Share())["frames"]
    # Every crop has the black outline of a thing in it.
    assert all((frame.amax(0) < -0.7).sum() > 20 for frame in frames)


def test_its_loss_falls_and_the_vae_it_saves_scales_its_latents(world, test_world, tmp_path):
    stage = stage_of(world, test_world)
    optimizer = torch.optim.Adam(stage.parameters(), 2e-3)
    batch, losses = stage.batch(0, Share()), []
    for _ in range(6):
        loss = stage(**batch)
        loss["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss["reconstruction"].detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_a_frozen_encoder_leaves_the_decoder_to_learn(world, test_world):
    stage = VideoVaeStage(freeze_encoder(fresh_vae()), world, test_world, 10, (Phase(1.0, 5, 2, 64),))
    stage(**stage.batch(0, Share()))["loss"].backward()
    learns = {name.split(".")[1] for name, parameter in stage.named_parameters() if parameter.grad is not None}
    assert learns == {"decoder", "post_quant_conv"}


def test_frames_become_tensors():
    white = np.full((2, 4, 6, 3), 255, np.uint8)
    assert torch.equal(to_tensor(white), torch.ones(3, 2, 4, 6))
