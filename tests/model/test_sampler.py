"""Nothing is computed twice, and guidance works where it is asked for: exactness of what the sampler leaves out."""

from typing import Any

import pytest
import torch

from ovi_studio.model.sampler import FusedSampler, Guidance, Latents, TextStates, draw_noise
from ovi_studio.model.transformer import OviTransformer, StreamHalf
from tests.model.test_transformer import small_inputs, small_model

DRAWN = torch.Generator().manual_seed(5)
TEXT = TextStates(*(torch.randn(1, 5, 16, generator=DRAWN) for _ in range(3)))
NOISE = draw_noise((4, 3, 4, 6), (7, 3), (DRAWN, DRAWN))
STEPS = 6


class CountedPasses:
    """Samples of every call of the transformer."""

    def __init__(self, model: OviTransformer) -> None:
        self.samples: list[int] = []
        model.register_forward_hook(self._note)

    def _note(self, module: Any, args: Any, out: Any) -> None:
        if hasattr(out, "video"):
            self.samples.append(len(out.video if out.video is not None else out.audio))


@torch.no_grad()
def sample(model: OviTransformer, guidance: Guidance, noise: Latents = NOISE, cache_text: bool = True) -> Latents:
    sampler = FusedSampler(model, TEXT, guidance, "euler", 5.0, STEPS, cache_text=cache_text)
    latents = sampler.begin(noise)
    for index in range(STEPS):
        latents = sampler.step(latents, index)
    return latents


def assert_close(found: Latents, expected: Latents, error: float = 1e-5) -> None:
    for a, b in zip(vars(found).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(a, b, atol=error, rtol=error)


@pytest.mark.parametrize("clean", [False, True], ids=["t2v", "i2v"])
@torch.no_grad()
def test_latents_of_one_sample_serve_all_texts(clean: bool) -> None:
    """As if they had been given once for each, though the first block's context-free half runs once."""
    model, inputs = small_model(3), small_inputs()
    inputs["encoder_hidden_states"] = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    settings = {"first_frame_is_clean": clean, "skip_layer": 1, "skip_from": 1}
    shared = model(**inputs, **settings)
    twice = {
        name: inputs[name].repeat(2, *[1] * (inputs[name].ndim - 1))
        for name in ("hidden_states", "audio_hidden_states")
    }
    expected = model(**(inputs | twice), **settings)
    torch.testing.assert_close(shared.video, expected.video, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared.audio, expected.audio, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_first_blocks_context_free_half_runs_for_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = small_model(3), small_inputs()
    inputs["encoder_hidden_states"] = torch.zeros(2, 5, 16)
    samples: list[int] = []
    attend_self = StreamHalf.attend_self

    def noting(self: StreamHalf, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        samples.append(len(x))
        return attend_self(self, x, *rest)

    monkeypatch.setattr(StreamHalf, "attend_self", noting)
    model(**inputs)
    assert samples == [1, 1, 2, 2, 2, 2]  # video and audio of three blocks


@torch.no_grad()
def test_samples_may_have_timesteps_of_their_own() -> None:
    """One timestep for all is a norm with weights, several are not; both give the same."""
    model, inputs = small_model(), small_inputs(batch=2)
    expected = model(**inputs)
    found = model(**(inputs | {"timestep": torch.tensor([500, 500])}), first_frame_is_clean=False)
    torch.testing.assert_close(found.video, expected.video, atol=1e-5, rtol=1e-5)
    mixed = model(**(inputs | {"timestep": torch.tensor([500, 100])}))
    torch.testing.assert_close(mixed.video[:1], expected.video[:1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed.video[1:], expected.video[1:], atol=1e-3)


@pytest.mark.parametrize("cache_text", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_steps_outside_of_both_intervals_run_one_pass(batched: bool, cache_text: bool) -> None:
    model = small_model(3)
    counted = CountedPasses(model)
    guidance = Guidance(4.0, 3.0, 1, batched, video_interval=(0.0, 0.5), audio_interval=(0.34, 0.67))
    latents = sample(model, guidance, cache_text=cache_text)
    guided = [2] if batched else [1, 1]
    assert counted.samples == 4 * guided + 2 * [1]
    other = Guidance(4.0, 3.0, 1, not batched, guidance.video_interval, guidance.audio_interval)
    assert_close(latents, sample(model, other, cache_text=not cache_text))


def test_the_whole_run_is_plain_guidance_and_none_is_no_guidance() -> None:
    model = small_model(3)
    assert_close(
        sample(model, Guidance(4.0, 3.0, 1, True, (0.0, 1.0), (0.0, 1.0))), sample(model, Guidance(4.0, 3.0, 1))
    )
    assert_close(
        sample(model, Guidance(4.0, 3.0, 1, True, (0.0, 0.0), (1.0, 1.0))), sample(model, Guidance(1.0, 1.0, 1))
    )


def test_an_interval_is_of_its_stream_alone() -> None:
    """Guided by the picture's interval alone, the sound of the first step is the prompt's."""
    model = small_model(3)

    @torch.no_grad()
    def first_step(guidance: Guidance) -> Latents:
        sampler = FusedSampler(model, TEXT, guidance, "euler", 5.0, STEPS)
        return sampler.step(sampler.begin(NOISE), 0)

    one = first_step(Guidance(4.0, 3.0, 1, audio_interval=(0.5, 1.0)))
    both, none = first_step(Guidance(4.0, 3.0, 1)), first_step(Guidance(1.0, 1.0, 1))
    torch.testing.assert_close(one.video, both.video, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.audio, none.audio, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both.audio, none.audio, atol=1e-4)


def test_a_stream_that_is_not_made_needs_no_guidance() -> None:
    model = small_model(3)
    counted = CountedPasses(model)
    sample(model, Guidance(4.0, 3.0, 1, video_interval=(0.0, 0.0)), Latents(NOISE.video, None))
    assert counted.samples == STEPS * [1]
