"""Whole sampling runs of the tiny fusion model against the recorded ones, float32 within 1e-4."""

from typing import Any

import pytest
import torch

from ovi_studio.model.sampler import FusedSampler, Guidance, Latents, TextStates, draw_noise
from ovi_studio.model.transformer import OviTransformer, OviTransformerOutput
from tests.goldens import cases
from tests.goldens.fusion import load_transformer, padded_text

pytestmark = pytest.mark.golden
FACTS = cases.facts("sampling_tiny")
TENSORS = cases.tensors("sampling_tiny")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def transformer() -> OviTransformer:
    return load_transformer("sampling_tiny")


def make_sampler(transformer: OviTransformer, case: dict[str, Any], **options: Any) -> FusedSampler:
    length = FACTS["video_config"]["text_len"]
    batched = options.pop("batched", True)
    return FusedSampler(
        transformer,
        TextStates(*(padded_text(TENSORS[f"in.text_{name}"], length) for name in ("pos", "video_neg", "audio_neg"))),
        Guidance(case["vg"], case["ag"], case["slg"], batched),
        case["solver"],
        case["shift"],
        case["steps"],
        TENSORS["in.image_latent"][None] if case["i2v"] else None,
        **options,
    )


def noise_of(name: str) -> Latents:
    seed = FACTS["cases"][name]["seed"]
    return draw_noise(
        tuple(TENSORS[f"{name}.video_noise"].shape),
        tuple(TENSORS[f"{name}.audio_noise"].shape),
        (torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)),
    )


@pytest.mark.parametrize("name", FACTS["cases"])
def test_noise(name: str) -> None:
    noise = noise_of(name)
    assert noise.video is not None
    assert noise.audio is not None
    torch.testing.assert_close(noise.video[0], TENSORS[f"{name}.video_noise"], atol=0, rtol=0)
    torch.testing.assert_close(noise.audio[0], TENSORS[f"{name}.audio_noise"], atol=0, rtol=0)


@pytest.mark.parametrize("cache_text", [True, False], ids=["cached text", "text each step"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "sequential"])
@pytest.mark.parametrize("name", FACTS["cases"])
@torch.no_grad()
def test_run(transformer: OviTransformer, name: str, batched: bool, cache_text: bool) -> None:
    sampler = make_sampler(transformer, FACTS["cases"][name], batched=batched, cache_text=cache_text)
    torch.testing.assert_close(sampler.timesteps, TENSORS[f"{name}.timesteps"], atol=0, rtol=0)
    latents = sampler.begin(noise_of(name))
    for index in range(len(sampler.timesteps)):
        cases.assert_close(latents.video[0], TENSORS[f"{name}.step_video_in"][index], TOLERANCE)
        cases.assert_close(latents.audio[0], TENSORS[f"{name}.step_audio_in"][index], TOLERANCE)
        latents = sampler.step(latents, index)
    cases.assert_close(latents.video[0], TENSORS[f"{name}.final_video"], TOLERANCE)
    cases.assert_close(latents.audio[0], TENSORS[f"{name}.final_audio"], TOLERANCE)


@pytest.mark.parametrize("name", FACTS["cases"])
@torch.no_grad()
def test_velocities_of_both_passes(transformer: OviTransformer, name: str) -> None:
    seen: list[Any] = []
    hook = transformer.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output) if isinstance(output, OviTransformerOutput) else None
    )
    sampler = make_sampler(transformer, FACTS["cases"][name], batched=False)
    sampler.step(sampler.begin(noise_of(name)), 0)
    hook.remove()
    for output, kind in zip(seen, ("pos", "neg"), strict=True):
        cases.assert_close(output.video[0], TENSORS[f"{name}.step0_{kind}_video"], TOLERANCE)
        cases.assert_close(output.audio[0], TENSORS[f"{name}.step0_{kind}_audio"], TOLERANCE)
