"""FLUX.1 step by step is diffusers' `FluxPipeline`; and colours of latents before they are decoded."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from ovi_studio.model.flux import FluxSampler, decode, encode_prompt, fit_preview
from ovi_studio.variants import Size
from tests.flux import tiny_flux

SIZE = Size(48, 96)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return tiny_flux()


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_the_picture_is_the_pipelines_own(guidance_embeds: bool) -> None:
    pipeline = tiny_flux(guidance_embeds)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    expected = pipeline(
        "a red ball", height=48, width=96, num_inference_steps=3, guidance_scale=4.5, generator=generator,
        max_sequence_length=64,
    ).images[0]  # fmt: skip
    text = encode_prompt(pipeline, "a red ball", 64, CPU)
    sampler = FluxSampler(pipeline.transformer, pipeline.scheduler, text, SIZE, 3, 4.5)
    latents = sampler.begin(5)
    for index in range(sampler.steps):
        latents, estimate = sampler.step(latents, index)
    picture = decode(pipeline.vae, sampler.unpacked(latents))
    assert picture.size == (96, 48)
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert torch.allclose(estimate, latents, atol=1e-5), "after the last step nothing is left to estimate"


def test_guidance_is_heard(pipeline: FluxPipeline) -> None:
    text = encode_prompt(pipeline, "a ball", 16, CPU)
    steps = [
        FluxSampler(pipeline.transformer, pipeline.scheduler, text, SIZE, 2, scale).step(torch.zeros(1, 18, 16), 0)[0]
        for scale in (1.0, 4.5)
    ]
    assert not torch.equal(*steps)


def test_the_preview_has_the_pictures_size_in_latents(pipeline: FluxPipeline) -> None:
    preview = fit_preview(pipeline.vae)
    assert preview.weight_C3.shape == (4, 3)
    colours = torch.zeros(1, 4, 1, 6, 12)
    assert preview.jpeg(colours, scale=2)[:2] == b"\xff\xd8"
