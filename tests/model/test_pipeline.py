"""`OviPipeline` on the embedded model: what it makes, what it refuses, what a user of diffusers expects."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from ovi_studio.errors import InvalidInputError
from ovi_studio.model.pipeline import OviPipeline, OviPipelineOutput

PROMPT = "A red face says <S>seven three<E>. Audio: a clear voice"


def latents_of(pipeline: OviPipeline, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    settings: dict[str, Any] = {
        "prompt": PROMPT,
        "num_inference_steps": 2,
        "seed": 7,
        "output_type": "latent",
    }
    out = pipeline(**(settings | options))
    return out.frames, out.audio


def picture(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def test_text_to_clip(nano: OviPipeline) -> None:
    out = nano(PROMPT, num_inference_steps=2, seed=1)
    variant = nano.variant
    assert isinstance(out, OviPipelineOutput)
    assert len(out.frames) == variant.num_frames == 49
    assert out.frames[0].size == (96, 96)
    assert out.audio.shape == (variant.num_samples,) == (32768,)
    assert out.audio.dtype == np.float32
    assert np.abs(out.audio).max() <= 1
    assert (out.fps, out.sample_rate) == (24, 16000)


def test_output_types_agree(nano: OviPipeline) -> None:
    latents = nano(PROMPT, num_inference_steps=2, seed=1, output_type="latent")
    arrays = nano(PROMPT, num_inference_steps=2, seed=1, output_type="np")
    tensors = nano(PROMPT, num_inference_steps=2, seed=1, output_type="pt")
    pictures, waveform = nano(PROMPT, num_inference_steps=2, seed=1, return_dict=False)
    assert latents.frames.shape == (1, 16, 13, 6, 6)
    assert latents.audio.shape == (1, 64, 8)
    assert arrays.frames.shape == (49, 96, 96, 3)
    assert arrays.frames.dtype == np.float32
    assert arrays.frames.min() >= 0
    assert arrays.frames.max() <= 1
    np.testing.assert_array_equal(arrays.frames, tensors.frames.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(np.asarray(pictures[5]) / 255, arrays.frames[5], atol=1.01 / 255)
    np.testing.assert_array_equal(waveform, tensors.audio.numpy())


def test_seed_decides_the_clip(nano: OviPipeline) -> None:
    video, audio = latents_of(nano)
    again_video, again_audio = latents_of(nano)
    other_video, other_audio = latents_of(nano, seed=8)
    assert torch.equal(video, again_video)
    assert torch.equal(audio, again_audio)
    assert not torch.equal(video, other_video)
    assert not torch.equal(audio, other_audio)
    pair = (torch.Generator().manual_seed(7), torch.Generator().manual_seed(7))
    assert torch.equal(video, latents_of(nano, seed=None, generator=pair)[0])
    unseeded = [latents_of(nano, seed=None)[0] for _ in range(2)]
    assert not torch.equal(*unseeded)


@pytest.mark.parametrize("options", [{}, {"image": picture(96, 96)}, {"slg_layer": 0}, {"solver": "euler"}])
def test_batched_and_sequential_guidance_agree(nano: OviPipeline, options: dict[str, Any]) -> None:
    together = latents_of(nano, **options)
    apart = latents_of(nano, batched_guidance=False, **options)
    uncached = latents_of(nano, cache_text=False, **options)
    for one, two, three in zip(together, apart, uncached, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-5)


def test_passes_per_step(nano: OviPipeline) -> None:
    batches: list[int] = []

    def note(_module: object, args: tuple[torch.Tensor, ...]) -> None:
        batches.append(args[0].shape[0])  # at the end: what the passes have in common runs once

    hook = nano.transformer.video.head.register_forward_pre_hook(note)
    counts = {}
    for name, options in {
        "batched": {},
        "sequential": {"batched_guidance": False},
        "no guidance": {"video_guidance_scale": 1.0, "audio_guidance_scale": 1.0},
        "one scale left": {"video_guidance_scale": 1.0},
        "its only scale is 1": {"modality": "video", "video_guidance_scale": 1.0},
    }.items():
        batches.clear()
        latents_of(nano, **options)
        counts[name] = tuple(batches)
    hook.remove()
    assert counts == {
        "batched": (2, 2),
        "sequential": (1, 1, 1, 1),
        "no guidance": (1, 1),
        "one scale left": (2, 2),
        "its only scale is 1": (1, 1),
    }


def test_first_frame_is_kept_in_the_latents(nano: OviPipeline) -> None:
    image = picture(96, 96)
    video, _ = latents_of(nano, image=image)
    torch.testing.assert_close(video[:, :, :1], nano.encode_image(image, 96, 96), atol=0, rtol=0)
    assert not torch.equal(video, latents_of(nano, image=picture(96, 96, seed=1))[0])


def test_a_turned_photograph_is_seen_upright(nano: OviPipeline) -> None:
    image = picture(50, 200)
    image.getexif()[0x0112] = 6  # turn by a quarter
    video, _ = latents_of(nano, image=image)
    assert video.shape[-2] > video.shape[-1]
    turned = picture(50, 200).transpose(PIL.Image.Transpose.ROTATE_270)
    torch.testing.assert_close(video, latents_of(nano, image=turned)[0], atol=0, rtol=0)


def test_the_random_state_of_the_user_is_left_alone(nano: OviPipeline) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    latents_of(nano, seed=None)
    assert torch.equal(torch.rand(1), expected)


def test_clip_takes_the_aspect_of_its_first_frame(nano: OviPipeline) -> None:
    video, _ = latents_of(nano, image=picture(50, 200))
    size = nano.variant.size_for_image(50, 200)
    assert size.width > size.height
    assert video.shape[-2:] == (size.height // 16, size.width // 16)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_one_stream_alone(nano: OviPipeline, modality: str) -> None:
    out = nano(PROMPT, num_inference_steps=2, seed=1, modality=modality, output_type="np")
    assert (out.frames is None) == (modality == "audio")
    assert (out.audio is None) == (modality == "video")
    starting = nano(PROMPT, num_inference_steps=1, seed=1, modality="video", image=picture(96, 96), output_type="np")
    assert starting.frames.shape == (49, 96, 96, 3)


def test_other_lengths(nano: OviPipeline) -> None:
    video, audio = latents_of(nano, num_frames=9, num_audio_latents=11)
    assert video.shape[2] == 3
    assert audio.shape[1] == 11


def test_callback_sees_and_replaces_latents(nano: OviPipeline) -> None:
    calls: list[tuple[int, float]] = []

    def blank_audio(pipeline: OviPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]):
        assert pipeline is nano
        assert set(tensors) == {"audio_latents"}
        calls.append((step, timestep.item()))
        return {"audio_latents": torch.zeros_like(tensors["audio_latents"])}

    _, audio = latents_of(nano, callback_on_step_end=blank_audio, callback_on_step_end_tensor_inputs=("audio_latents",))
    assert [step for step, _ in calls] == [0, 1]
    assert calls[0][1] > calls[1][1]
    assert (audio == 0).all()


def test_save_and_load(nano: OviPipeline, tmp_path: Path) -> None:
    nano.save_pretrained(tmp_path)
    loaded = OviPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.variant == nano.variant
    for before, after in zip(latents_of(nano), latents_of(loaded), strict=True):
        assert torch.equal(before, after)


def test_vocoder_stays_float32_in_a_bf16_pipeline(nano: OviPipeline, tmp_path: Path) -> None:
    nano.save_pretrained(tmp_path)
    loaded = OviPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.transformer.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.vocoder.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": ["one", "two"]}, "not a single text"),
        ({"prompt": None}, "needs a prompt"),
        ({"height": 100, "width": 96}, "multiples of 32"),
        ({"height": -32, "width": 96}, "multiples of 32"),
        ({"height": 96}, "Only one"),
        ({"num_frames": 10}, "4k\\+1"),
        ({"num_frames": 0}, "4k\\+1"),
        ({"num_audio_latents": 0}, "no sound"),
        ({"video_guidance_scale": float("nan")}, "not possible"),
        ({"audio_guidance_scale": 0.5}, "not possible"),
        ({"slg_layer": 99}, "no block 99"),
        ({"slg_layer": -1}, "no block -1"),
        ({"shift": 0.0}, "shift"),
        ({"shift": float("inf"), "solver": "euler"}, "shift"),
        ({"seed": 1.5}, "seed"),
        ({"image": "a.png"}, "cannot be a str"),
        ({"image": np.zeros((96, 96), np.uint8)}, "cannot be a ndarray"),
        ({"num_inference_steps": 0}, "at least one step"),
        ({"num_inference_steps": 10_000}, "repeat a timestep"),
        ({"modality": "smell"}, "no modality"),
        ({"modality": "audio", "image": picture(96, 96)}, "cannot start from a picture"),
        ({"solver": "heun"}, "no solver"),
        ({"seed": -1}, "seed"),
        ({"generator": torch.Generator()}, "only one of them"),
        ({"seed": None, "generator": torch.Generator()}, "must be a pair"),
        ({"output_type": "gif"}, "no output type"),
        ({"callback_on_step_end_tensor_inputs": ("noise",)}, "cannot have"),
    ],
)
def test_wrong_inputs_are_refused_with_a_remedy(nano: OviPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        latents_of(nano, **options)
    assert caught.value.remedy
