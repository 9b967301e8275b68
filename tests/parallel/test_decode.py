"""A picture whose tiles are decoded by three processes is the one that is decoded by one."""

import pytest
import torch

from ovi_studio.model.video_vae import decode_frames
from ovi_studio.runtime.parallel import Member
from ovi_studio.runtime.split_decode import DecodeFollower, SplitDecode
from ovi_studio.runtime.teams import assigned
from ovi_studio.weights.nano import load_nano
from tests.parallel.world import CPU, hear, parallel, run_world, tell

pytestmark = pytest.mark.distributed


def test_tiles_of_three_ranks_make_the_picture_of_one():
    ranks = run_world(3, _decode)
    together, alone = ranks[0]
    assert together.shape == alone.shape == (1, 3, 9, 96, 160)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert alone.std() > 0.01


def _decode(rank: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    vae = load_nano().video_vae
    vae.enable_tiling(64, 64, 48, 48)
    ratio = vae.spatial_compression_ratio
    latents = torch.randn(1, vae.config.z_dim, 3, 96 // ratio, 160 // ratio, generator=torch.Generator().manual_seed(0))
    member = Member(parallel(1, 3), rank, CPU)
    with torch.no_grad():
        if rank == 0:
            decode = SplitDecode(member, lambda order: tell(member, order))
            together = torch.cat(list(decode_frames(vae, latents, tiles=decode)), dim=2)
            tell(member, None)
            return together, torch.cat(list(decode_frames(vae, latents)), dim=2)
        follower = DecodeFollower(member, vae)
        while (order := hear(member)) is not None:
            follower.obey(order)
    return None


def test_the_largest_tiles_are_given_away_first():
    areas = {"a": 16, "b": 16, "c": 8, "d": 8, "e": 4}
    assert assigned(areas, 3) == [["a", "e"], ["b"], ["c", "d"]]
    assert assigned({"a": 1}, 3) == [["a"], [], []]
