"""Sizes as the reference computes them, row by row.

`image_area_argument` is only a record of how the reference read its option; ours takes a number.
"""

from typing import Any

import pytest

from ovi_studio.errors import InvalidInputError
from ovi_studio.variants import (
    VARIANTS,
    scale_to_area,
    size_for_aspect,
    size_for_image,
    snap_size,
)
from tests.goldens import cases

pytestmark = pytest.mark.golden


def rows(name: str) -> list[dict[str, Any]]:
    """The recorded rows of one function; a recording may leave a function out."""
    recorded: list[dict[str, Any]] = cases.facts("preprocessing")["rows"].get(name, [])
    return recorded


@pytest.mark.parametrize("row", rows("snap_hw_to_multiple_of_32"), ids=str)
def test_snap_size(row):
    area = row["area"] or None  # the reference takes 0 for "no area" too
    if "error" in row:
        with pytest.raises(InvalidInputError):
            snap_size(row["h"], row["w"], area)
    else:
        assert list(snap_size(row["h"], row["w"], area)) == row["out"]


@pytest.mark.parametrize("row", rows("scale_hw_to_area_divisible"), ids=str)
def test_scale_to_area(row):
    if "error" in row:
        with pytest.raises(InvalidInputError):
            scale_to_area(row["h"], row["w"], row["area"], row["n"])
    else:
        assert list(scale_to_area(row["h"], row["w"], row["area"], row["n"])) == row["out"]


@pytest.mark.parametrize("row", rows("calc_dims_from_area"), ids=str)
def test_size_for_aspect(row):
    down, across = row["aspect"].split(":")  # the reference's labels are height:width
    assert list(size_for_aspect(f"{across}:{down}", row["total_area"])) == row["out"]


@pytest.mark.parametrize("row", rows("image_target_hw"), ids=str)
def test_size_for_image(row):
    assert list(size_for_image(row["h"], row["w"], row["area"])) == row["out"]


def test_size_for_image_on_the_recorded_pictures():
    for case in cases.facts("image_preprocess")["cases"]:
        if case["area"]:
            assert list(size_for_image(case["h"], case["w"], case["area"])) == case["out"][2:]


@pytest.mark.parametrize("name", ["720x720_5s", "960x960_5s", "960x960_10s"])
def test_variants_are_the_recorded_ones(name):
    facts, variant = cases.facts("facts"), VARIANTS[name]
    model, shapes, defaults = facts["models"][name], facts["shapes"], facts["defaults"]

    assert variant.fusion_file == "Ovi/" + model["file"]
    assert variant.video_latent_frames == model["video_latent_length"]
    assert variant.audio_latents == model["audio_latent_length"]
    assert variant.target_area == model["target_area"]
    assert variant.caption_dialect == ("audcap" if model["formatter"].endswith("<ENDAUDCAP>") else "audio_prefix")

    assert variant.num_frames == shapes["video_frames"][str(variant.video_latent_frames)]
    assert variant.num_samples == shapes["audio_samples"][str(variant.audio_latents)]
    assert variant.transformer.in_channels == variant.video_vae.z_dim == shapes["latent_channels_video"]
    assert variant.transformer.audio_in_channels == shapes["latent_channels_audio"]
    assert variant.audio_vae.latent_channels == shapes["latent_channels_audio"]
    assert [variant.temporal_factor, variant.spatial_factor, variant.spatial_factor] == shapes["vae_stride"]
    assert list(variant.transformer.patch_size) == shapes["patch"]
    assert (variant.fps, variant.sample_rate) == (shapes["fps"], shapes["sample_rate"])
    assert variant.samples_per_latent == shapes["audio_samples_per_latent"]
    assert variant.text_len == shapes["text_len"]
    assert variant.transformer.text_dim == variant.text_encoder.d_model == shapes["text_dim"]

    ours = variant.defaults
    assert ours.num_inference_steps == defaults["sample_steps"]
    for field in (
        "solver", "shift", "video_guidance_scale", "audio_guidance_scale", "slg_layer",
        "video_negative_prompt", "audio_negative_prompt",
    ):  # fmt: skip
        assert getattr(ours, field) == defaults[field]


def test_latent_statistics_are_the_recorded_ones():
    constants = cases.facts("wan_vae22_constants")
    for variant in VARIANTS.values():
        if variant.video_vae.z_dim == 48:
            assert list(variant.video_vae.latents_mean) == constants["mean"]
            assert list(variant.video_vae.latents_std) == constants["std"]


@pytest.mark.parametrize(("table", "head_dim"), [("fusion_full_tables", 128), ("fusion_tiny", None)])
def test_rope_pairs_are_as_wide_as_the_recorded_tables(table, head_dim):
    facts = cases.facts(table)
    shape = VARIANTS["720x720_5s"].transformer
    prefix = "" if head_dim else "freqs."
    if head_dim is None:
        config = facts["video_config"]
        head_dim = config["dim"] // config["num_heads"]
    shape = type(shape)(attention_head_dim=head_dim)
    assert sum(shape.video_rope_pairs) == facts["tensors"][f"{prefix}video.real"]["shape"][1]
    assert shape.audio_rope_pairs == facts["tensors"][f"{prefix}audio.real"]["shape"][1]
    assert shape.audio_rope_scale == cases.facts("fusion_tiny")["audio_config"]["temporal_rope_scaling_factor"]
