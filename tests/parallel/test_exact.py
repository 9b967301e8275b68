"""Every way to share a clip gives what one process gives: two, three and four gloo processes on this CPU."""

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch

from ovi_studio.model.attention import KeyValue
from ovi_studio.runtime.memory import Workload
from ovi_studio.runtime.parallel import Member
from ovi_studio.runtime.sequence import attention_with_lse, merge_by_lse
from ovi_studio.runtime.teams import shares, traffic
from ovi_studio.shapes import TransformerShape
from ovi_studio.variants import Size, get_variant
from tests.parallel.world import CPU, Clip, Sent, parallel, run_world, sample_together, toy

pytestmark = pytest.mark.distributed

ERROR = 1e-5
EVEN = Clip((6, 8, 8), 157)  # 96 video tokens: by 2, 3 and 4
UNEVEN = Clip((7, 22, 2), 157)  # 77: by none of them
CLIPS = {
    "t2v": UNEVEN,
    "t2v, even": EVEN,
    "i2v": replace(UNEVEN, first_frame=True),
    "i2v, even": replace(EVEN, first_frame=True),
    "10 s of sound": replace(UNEVEN, audio=314),
    "no skip-layer": replace(UNEVEN, skip_layer=0),
    "sequential": replace(UNEVEN, batched=False),
    "without text cache": replace(UNEVEN, cache_text=False, first_frame=True),
    "without guidance": replace(UNEVEN, scales=(1.0, 1.0)),
    "guidance in the middle": replace(UNEVEN, steps=4, video_interval=(0.25, 0.75)),
    "picture alone": replace(UNEVEN, audio=None),
    "sound alone": replace(UNEVEN, video=None),
    "fewer tokens than ranks": Clip((1, 2, 6), 157),
}


# Whatever the mode; the others where both kinds of sharing meet them.
ALWAYS = ("t2v", "i2v", "10 s of sound")


@dataclass(frozen=True)
class Mode:
    """A way to share the work, how many heads there are to share, and which clips are made so."""

    guidance_groups: int
    sequence: int
    sharded: bool = False
    heads: int = 4
    compiled: bool = False
    clips: tuple[str, ...] = ALWAYS

    @property
    def size(self) -> int:
        return self.guidance_groups * self.sequence


MODES = {
    "guidance": Mode(2, 1, clips=tuple(CLIPS)),
    "sequence 2": Mode(1, 2, clips=tuple(CLIPS)),
    "sequence 2, 3 heads": Mode(1, 2, heads=3),
    "sequence 2, compiled": Mode(1, 2, compiled=True, clips=("i2v",)),
    "sharded 2": Mode(2, 1, sharded=True),
    "sequence 2, sharded": Mode(1, 2, sharded=True),
    "sequence 3": Mode(1, 3),
    "sequence 3, 2 heads": Mode(1, 3, heads=2),
    "sequence 4": Mode(1, 4, clips=(*ALWAYS, "t2v, even", "fewer tokens than ranks")),
    "guidance, sequence 2": Mode(2, 2, clips=(*ALWAYS, "i2v, even", "guidance in the middle", "without text cache")),
    "guidance, sequence 2, sharded": Mode(2, 2, sharded=True, heads=3),
}


def _all_cases(rank: int) -> dict[tuple[str, str], tuple[float, Sent]]:
    size = torch.distributed.get_world_size()
    cases = {}
    for name, mode in MODES.items():
        if mode.size != size:
            continue
        member = Member(parallel(mode.guidance_groups, mode.sequence), rank, CPU)
        for title in mode.clips:
            clip = CLIPS[title]
            for exchange in member.exchanges:
                exchange.sent_bytes = 0
            expected = clip.sample(toy(mode.heads)) if rank == 0 else []
            together, sent = sample_together(member, clip, toy(mode.heads), mode.sharded, mode.compiled)
            error = max((_error(a, b) for a, b in zip(together, expected, strict=True)), default=0.0)
            cases[name, title] = error, sent
    return cases


BLOCK_ELEMENTS = sum(parameter.numel() for parameter in toy().blocks[0].parameters())
# torch shards rows: what has fewer rows than there are ranks is padded. Of a block, the two modulations (1, 6, dim).
PADDED = 2 * 6 * 64


def _expected(mode: Mode, clip: Clip, rank: int) -> tuple[int, int]:
    """Bytes that a rank exchanges in a run, and of weights, by the formulas."""
    shape = TransformerShape(mode.heads, 16, 96, 2, 32, 24, 4, 5)
    assert clip.video is not None
    frames, rows, columns = clip.video
    variant = replace(
        get_variant("nano"), transformer=shape, video_latent_frames=frames, audio_latents=clip.audio, text_len=6
    )
    load = Workload(variant, Size(16 * rows, 16 * columns), steps=clip.steps, skipped_blocks=int(clip.skip_layer > 0))
    step = traffic(load, parallel(mode.guidance_groups, mode.sequence), 4, rank=rank)
    text = 0 if rank else (mode.size - 1) * 2 * 2 * 6 * 24 * 4  # once, of both streams and samples
    forwards = clip.steps + 1  # and the text
    weights = forwards * 2 * (mode.size - 1) * 4 * (BLOCK_ELEMENTS + PADDED * (mode.size - 1)) // mode.size
    return clip.steps * step.waited_for + text, weights if mode.sharded else 0


COUNTED = ("t2v", "10 s of sound", "t2v, even", "no skip-layer")


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Absolute for small numbers, relative for large ones, as `allclose` has it."""
    return ((found - expected).abs() / (1 + expected.abs())).max().item()


@pytest.mark.timeout(900)  # half a minute on free cores; ranks that wait for each other suffer most from others
@pytest.mark.parametrize("size", sorted({mode.size for mode in MODES.values()}))
def test_shared_work_gives_the_clip_of_one_process(size):
    """And sends what the formulas say. One world does all cases of its size: joining processes is what takes long."""
    ranks = run_world(size, _all_cases)
    assert {case: error for case, (error, _) in ranks[0].items() if not error <= ERROR} == {}
    for (mode, clip), (rank, cases) in product(ranks[0], enumerate(ranks)):
        if clip not in COUNTED:
            continue
        sent, (exchanged, weights) = cases[mode, clip][1], _expected(MODES[mode], CLIPS[clip], rank)
        assert (sent.exchanged, sent.counted) == (exchanged, exchanged), (mode, clip, rank)
        if MODES[mode].heads == 4:  # of other widths the rows do not divide
            assert sent.weights == weights, (mode, clip, rank)


def test_the_toy_is_no_trivial_one():
    """Latents move, and what the modes must not get wrong matters: skip layer, first frame, the other stream."""
    plain, others = UNEVEN.sample(toy()), ("no skip-layer", "i2v", "without guidance")
    assert all(0.1 < x.std() < 50 for x in plain)
    for name in others:
        assert max((a - b).abs().max() for a, b in zip(plain, CLIPS[name].sample(toy()), strict=True)) > 100 * ERROR
    alone = CLIPS["sound alone"].sample(toy())[0]
    assert (plain[1] - alone).abs().max() > 100 * ERROR


@pytest.mark.parametrize(
    ("count", "ranks", "expected"), [(77, 4, (20, 19, 19, 19)), (3, 4, (1, 1, 1, 0)), (6, 3, (2,) * 3)]
)
def test_shares_are_even(count, ranks, expected):
    assert shares(count, ranks) == expected


def test_parts_merge_to_the_attention_of_the_whole():
    torch.manual_seed(0)
    query, key, value = 3 * torch.randn(2, 5, 3, 8), 3 * torch.randn(2, 11, 3, 8), torch.randn(2, 11, 3, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2).double() for x in (query, key, value))
    )
    parts = [
        attention_with_lse(query, KeyValue(key[:, own], value[:, own])) for own in (slice(7), slice(7, 11), slice(0))
    ]
    merged = merge_by_lse(*(torch.stack(list(each)) for each in zip(*parts, strict=True)))
    torch.testing.assert_close(merged.double(), expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
