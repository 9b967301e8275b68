"""What only a graphics card can show of the pipeline; see docs/gpu-checklist.md."""

from typing import Any

import pytest
import torch

from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.sampler import FusedSampler, Guidance
from ovi_studio.weights.nano import load_nano
from tests.goldens import cases
from tests.goldens.fusion import load_transformer, padded_text

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
PROMPT = "A red face says <S>seven<E>. Audio: a clear voice"


def nano(device: str | None = "cuda") -> OviPipeline:
    pipeline = load_nano()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline if device is None else pipeline.to(device)


def latents_of(pipeline: OviPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    out: Any = pipeline(PROMPT, num_inference_steps=4, seed=7, output_type="latent")
    return out.frames.cpu(), out.audio.cpu()


def test_noise_and_float32_clip_are_those_of_the_cpu() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for on_card, on_cpu in zip(latents_of(nano()), latents_of(nano("cpu")), strict=True):
        torch.testing.assert_close(on_card, on_cpu, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_bf16_forward_is_as_near_as_the_reference() -> None:
    facts, tensors = cases.facts("fusion_tiny"), cases.tensors("fusion_tiny")
    model = load_transformer("fusion_tiny").to("cuda", torch.bfloat16)
    for name in ("t2v", "i2v", "slg"):
        case = facts["cases"][name]
        out = model(
            tensors[case["vid"]].cuda().bfloat16()[None],
            tensors[case["audio"]].cuda().bfloat16()[None],
            torch.tensor(case["t"], device="cuda"),
            padded_text(tensors[case["vid_context"]].cuda().bfloat16(), facts["video_config"]["text_len"]),
            first_frame_is_clean=case.get("first_frame_is_clean", False),
            skip_layer=case.get("slg_layer", 0),
        )
        for stream, value in (("vid", out.video), ("audio", out.audio)):
            expected = tensors[f"{name}.float32.{stream}"].cuda()
            error = (value[0].float() - expected).norm() / expected.norm()
            assert error < 1.25 * facts["bf16_vs_float32"][name][f"bf16.{stream}"]["rel_l2"]


@torch.no_grad()
def test_no_sync_inside_the_transformer() -> None:
    """`set_sync_debug_mode("error")` raises at any call that waits for the card."""
    pipeline = nano()
    text = pipeline.encode_prompts(PROMPT, "", "")
    sampler = FusedSampler(pipeline.transformer, text, Guidance(skip_layer=1), "unipc", 5.0, 4)
    latents = sampler.begin(pipeline.prepare_noise(96, 96, seed=1))
    latents = sampler.step(latents, 0)
    timestep = sampler.timesteps[1:2].cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pipeline.transformer(latents.video, latents.audio, timestep, text.positive, skip_layer=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_model_cpu_offload_changes_nothing() -> None:
    plain = latents_of(nano())
    pipeline = nano(None)
    pipeline.enable_model_cpu_offload()
    for offloaded, expected in zip(latents_of(pipeline), plain, strict=True):
        torch.testing.assert_close(offloaded, expected, atol=1e-5, rtol=1e-5)
    clip: Any = pipeline(PROMPT, num_inference_steps=1, seed=7, output_type="np")
    assert clip.frames.shape == (49, 96, 96, 3)
    assert clip.audio.shape == (32_768,)
