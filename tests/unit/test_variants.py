"""The variant table, sizes and aspects, and the promise that none of it imports torch."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi_studio.errors import InvalidInputError
from ovi_studio.variants import (
    MAX_SIDE,
    RECOMMENDED_SIZES,
    SIZE_MULTIPLE,
    VARIANTS,
    Size,
    get_variant,
    parse_aspect,
    parse_size,
    size_for_aspect,
    size_for_image,
    snap_size,
)

REAL = ("720x720_5s", "960x960_5s", "960x960_10s")
EACH = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def test_importing_needs_no_torch():
    code = "import sys, ovi_studio.arithmetic; sys.exit(bool({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the table


def test_names_and_lengths():
    assert list(VARIANTS) == ["nano", *REAL]
    lengths = {name: (v.num_frames, v.num_samples) for name, v in VARIANTS.items()}
    assert lengths == {
        "nano": (49, 32_768),
        "720x720_5s": (121, 80_384),
        "960x960_5s": (121, 80_384),
        "960x960_10s": (241, 160_768),
    }
    assert {name for name, v in VARIANTS.items() if not v.trained} <= {"nano"}


def test_durations_are_not_stretched():
    five, ten = VARIANTS["720x720_5s"], VARIANTS["960x960_10s"]
    assert (five.audio_duration, ten.audio_duration) == (5.024, 10.048)
    assert five.video_duration == pytest.approx(5.0417, abs=1e-4)
    assert ten.video_duration == pytest.approx(10.0417, abs=1e-4)
    assert (five.duration, ten.duration) == (five.video_duration, ten.audio_duration)


@EACH
def test_variant_is_consistent(variant):
    shape, vae = variant.transformer, variant.video_vae
    assert shape.dim % shape.num_attention_heads == 0
    assert shape.in_channels == vae.z_dim == len(vae.latents_mean) == len(vae.latents_std)
    assert vae.in_channels == vae.out_channels == 3 * vae.patch_size**2
    assert vae.patch_size * 2 ** (len(vae.dim_mult) - 1) == variant.spatial_factor == vae.scale_factor_spatial
    assert 2 ** sum(vae.temperal_downsample) == variant.temporal_factor == vae.scale_factor_temporal
    assert shape.audio_in_channels == variant.audio_vae.latent_channels
    assert variant.audio_vae.hop_length * 2 == variant.samples_per_latent
    assert variant.vocoder.hop_length == variant.audio_vae.hop_length
    assert variant.vocoder.num_mels == variant.audio_vae.mel_bins
    assert variant.audio_vae.sample_rate == variant.sample_rate
    assert shape.text_dim == variant.text_encoder.d_model
    assert 0 <= variant.defaults.slg_layer < shape.num_layers
    assert abs(variant.video_duration - variant.audio_duration) < 1 / variant.fps
    assert sum(shape.video_rope_pairs) == shape.attention_head_dim // 2
    assert variant.snap_size(*variant.default_size) == variant.default_size


@EACH
def test_variant_is_frozen(variant):
    with pytest.raises(dataclasses.FrozenInstanceError):
        variant.fps = 25


def test_latent_grid_and_tokens():
    variant = VARIANTS["720x720_5s"]
    assert variant.latent_grid(704, 704) == (31, 44, 44)
    assert variant.video_tokens(704, 704) == 15_004
    assert VARIANTS["960x960_10s"].video_tokens(960, 960) == 54_900
    assert VARIANTS["nano"].video_tokens(96, 96) == 117
    assert [v.audio_tokens for v in VARIANTS.values()] == [64, 157, 157, 314]


@pytest.mark.parametrize("size", [(700, 704), (704, 705), (0, 704), (-32, 704), (16, 16)])
def test_tokens_of_a_size_that_was_not_snapped(size):
    with pytest.raises(InvalidInputError, match=r"multiple of 32.* Snap it"):
        VARIANTS["720x720_5s"].video_tokens(*size)


def test_unknown_variant_lists_names_and_guesses():
    with pytest.raises(InvalidInputError) as caught:
        get_variant("960x960_5")
    assert "Did you mean '960x960_5s'?" in str(caught.value)
    assert all(name in str(caught.value) for name in VARIANTS)
    with pytest.raises(InvalidInputError) as caught:
        get_variant("flux")
    assert "Did you mean" not in str(caught.value)


# --- sizes


def test_recommended_sizes_snap():
    assert Size(720, 720) in RECOMMENDED_SIZES
    small = VARIANTS["720x720_5s"]
    assert small.snap_size(720, 720) == (704, 704)
    assert small.snap_size(448, 1120) == (448, 1152)
    assert str(small.snap_size(448, 1120)) == "448x1152"
    for variant in VARIANTS.values():
        assert len(set(variant.sizes)) == len(variant.sizes)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([96 * 96, 720 * 720, 960 * 960]))
def test_snapped_sizes_are_multiples_near_the_area(height, width, area):
    for snap in (snap_size, size_for_image):
        size = snap(height, width, area)
        assert min(size) >= SIZE_MULTIPLE
        assert not size.height % SIZE_MULTIPLE
        assert not size.width % SIZE_MULTIPLE
        if 0.5 <= width / height <= 2 and area > 96 * 96:
            assert 0.93 * area <= size.area <= 1.07 * area
            assert size.width / size.height == pytest.approx(width / height, rel=0.08)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_snapping_turns_with_the_picture(height, width):
    assert snap_size(width, height, 720 * 720) == snap_size(height, width, 720 * 720)[::-1]


def test_aspects_are_width_to_height():
    assert size_for_aspect("16:9", 960 * 960) == (704, 1280)
    assert size_for_aspect("9:16", 960 * 960) == (1280, 704)
    assert size_for_aspect("1:1", 96 * 96) == (96, 96)
    wide = size_for_aspect("2.39:1", 960 * 960)
    assert wide.width > wide.height
    assert parse_aspect(" 16 : 9 ") == (16, 9)


@pytest.mark.parametrize("text", ["704x1280", "704X1280", " 704 × 1280 ", "704*1280"])
def test_parse_size(text):
    assert parse_size(text) == Size(704, 1280)


@pytest.mark.parametrize(
    "text",
    ["", "704", "704x", "x1280", "-704x1280", "704x-1", "0x0", "8x8", "7.5x9", "704x1280x3", "1280:704", "a x b",
     f"{MAX_SIDE + 1}x1000", "999999x999999", "9" * 5000 + "x9", "4096x512", "32x4096"],
)  # fmt: skip
def test_parse_size_refuses(text):
    with pytest.raises(InvalidInputError) as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["", "16", "16:", "0:9", "9:0", "-16:9", "16x9", "1:1000", "1e9:1", "9" * 400 + ":1"])
def test_parse_aspect_refuses(text):
    with pytest.raises(InvalidInputError) as caught:
        parse_aspect(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("size", [(0, 5), (-4, 8), (8, 0)])
def test_no_size_for_nothing(size):
    for snap in (snap_size, VARIANTS["nano"].size_for_image, VARIANTS["nano"].snap_size):
        with pytest.raises(InvalidInputError):
            snap(*size)
