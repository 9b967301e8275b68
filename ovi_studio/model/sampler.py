"""The fused sampler: video and audio latents from noise to clip, as one process with one timestep.

Each step asks the transformer for the velocity of both streams, once with the prompt and once with the
negative prompts (classifier-free guidance, a scale for each stream; the negative pass skips a block), and moves
each stream by its own scheduler. Where neither stream is guided the negative pass is left out. Latents and scheduler
state are float32 whatever the transformer's type.

Noise is drawn on the CPU in float32 from two generators of one seed, so that every device gives the same clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovi_studio.model.schedulers import make_scheduler
from ovi_studio.model.transformer import OviTransformer, TextKeyValues, first_text
from ovi_studio.variants import WHOLE_RUN, Solver, is_guided

NO_GUIDANCE = (1.0, 1.0)


@dataclass(frozen=True)
class Latents:
    """Both streams between two steps, float32; None for a stream that is not made.

    Args:
        video: (1, C, F, H, W), normalized.
        audio: (1, A, C).
    """

    video: Tensor | None
    audio: Tensor | None


@dataclass(frozen=True)
class TextStates:
    """Text encoder states of the prompts, each (1, T, text_dim), zero-padded.

    Args:
        positive: of the prompt, for both streams.
        video_negative: of the video's negative prompt; not read without guidance.
        audio_negative: of the audio's negative prompt; not read without guidance.
    """

    positive: Tensor
    video_negative: Tensor
    audio_negative: Tensor


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance.

    Args:
        video_scale: 1 takes the prompt's velocity as it is; more leads away from the negative prompt.
        audio_scale: the same for audio.
        skip_layer: block that the negative pass skips; 0 skips none.
        batched: run both passes as one batch (faster) instead of one after the other (less memory).
        video_interval: shares of the run's steps, from 0 to 1, between which the picture is guided.
        audio_interval: the same for the sound.
    """

    video_scale: float = 4.0
    audio_scale: float = 3.0
    skip_layer: int = 11
    batched: bool = True
    video_interval: tuple[float, float] = WHOLE_RUN
    audio_interval: tuple[float, float] = WHOLE_RUN

    def scales_at(self, index: int, steps: int) -> tuple[float, float]:
        """The scales of picture and sound in the step `index` of so many."""
        return (
            self.video_scale if is_guided(self.video_interval, index, steps) else 1.0,
            self.audio_scale if is_guided(self.audio_interval, index, steps) else 1.0,
        )


def draw_noise(
    video_shape: tuple[int, int, int, int] | None,
    audio_shape: tuple[int, int] | None,
    generators: Sequence[torch.Generator],
) -> Latents:
    """Initial latents on the CPU, by a generator each; shapes without batch dimension: (C, F, H, W) and (A, C)."""
    video_generator, audio_generator = generators
    return Latents(
        None if video_shape is None else torch.randn(video_shape, generator=video_generator)[None],
        None if audio_shape is None else torch.randn(audio_shape, generator=audio_generator)[None],
    )


class FusedSampler:
    """One run of the sampler: `begin`, then `step` for every index, on frozen `Latents`.

    Attributes:
        estimate: the finished latents as the last step foresaw them, for previews.

    Args:
        transformer: the twin DiT.
        text: states of the prompts, on the transformer's device.
        guidance: how strongly the prompts are followed.
        solver: name of the solver, see `make_scheduler`.
        shift: of the schedule.
        num_inference_steps: of the schedule.
        first_frame: normalized latent (1, C, 1, H, W) of a given first picture. It replaces the first latent
            frame before every step and after the last.
        cache_text: keep every block's text keys and values over the run (755 MB at full size in bf16) instead
            of projecting them at every step.

    Raises:
        InvalidInputError: the schedule is impossible, see `make_scheduler`.
    """

    def __init__(
        self,
        transformer: OviTransformer,
        text: TextStates,
        guidance: Guidance,
        solver: Solver,
        shift: float,
        num_inference_steps: int,
        first_frame: Tensor | None = None,
        cache_text: bool = True,
    ) -> None:
        self.transformer = transformer
        self.guidance = guidance
        self.first_frame = None if first_frame is None else first_frame.float()
        self.cache_text = cache_text
        self._video_scheduler = make_scheduler(solver, shift, num_inference_steps)
        self._audio_scheduler = make_scheduler(solver, shift, num_inference_steps)
        self.estimate = Latents(None, None)
        self._sigmas: list[float] = self._video_scheduler.sigmas.tolist()
        self._text = text
        self._guided: tuple[_Pass, ...] = ()
        self._plain: tuple[_Pass, ...] = ()
        self._steps = num_inference_steps
        self._timesteps = self.timesteps

    @property
    def timesteps(self) -> Tensor:
        """(steps,), on the CPU, from about 1000 down."""
        timesteps: Tensor = self._video_scheduler.timesteps
        return timesteps

    def begin(self, noise: Latents) -> Latents:
        """Moves the noise to the text's device, sets the first frame and prepares the text. Call it once."""
        device = self._text.positive.device
        start = Latents(*(None if x is None else x.to(device, torch.float32) for x in (noise.video, noise.audio)))
        self._timesteps = self.timesteps.to(device)
        self.first_frame = None if self.first_frame is None else self.first_frame.to(device)
        made = (start.video is not None, start.audio is not None)
        scales = [self._scales(made, index) for index in range(self._steps)]
        guided, self._plain = self._plan_passes(start, is_guided=any(scale != NO_GUIDANCE for scale in scales))
        self._guided = guided or self._plain
        return self._pin_first_frame(start)

    def step(self, latents: Latents, index: int) -> Latents:
        """Moves both streams from timestep `index` to the next; indices must come in order."""
        scales = self._scales((latents.video is not None, latents.audio is not None), index)
        video_velocity, audio_velocity = self._velocities(latents, self._timesteps[index : index + 1], scales)
        self.estimate = self._pin_first_frame(self._foresee(latents, video_velocity, audio_velocity, index))
        timestep = self.timesteps[index]
        video = audio = None
        if latents.video is not None:
            video = self._video_scheduler.step(video_velocity, timestep, latents.video, return_dict=False)[0]
        if latents.audio is not None:
            audio = self._audio_scheduler.step(audio_velocity, timestep, latents.audio, return_dict=False)[0]
        return self._pin_first_frame(Latents(video, audio))

    def _scales(self, made: tuple[bool, bool], index: int) -> tuple[float, float]:
        """Of picture and sound in a step; a stream that is not made needs no guidance."""
        video, audio = self.guidance.scales_at(index, self._steps)
        return video if made[0] else 1.0, audio if made[1] else 1.0

    def _velocities(
        self, latents: Latents, timestep: Tensor, scales: tuple[float, float]
    ) -> tuple[Tensor | None, Tensor | None]:
        passes = self._plain if scales == NO_GUIDANCE else self._guided
        outputs = [self._velocity(latents, timestep, p) for p in passes]
        video = [video for video, _ in outputs if video is not None]
        audio = [audio for _, audio in outputs if audio is not None]
        return (
            _guide(torch.cat(video), scales[0]) if video else None,
            _guide(torch.cat(audio), scales[1]) if audio else None,
        )

    def _velocity(self, latents: Latents, timestep: Tensor, p: "_Pass") -> tuple[Tensor | None, Tensor | None]:
        """Velocities of one pass in float32, batch first the prompt's, then the negative prompts'."""
        dtype = self._text.positive.dtype
        video, audio = (None if x is None else x.to(dtype) for x in (latents.video, latents.audio))
        out = self.transformer(
            video,
            audio,
            timestep,
            None if p.key_values is not None else p.video_text,
            None if p.key_values is not None else p.audio_text,
            text_key_values=p.key_values,
            first_frame_is_clean=self.first_frame is not None and video is not None,
            skip_layer=p.skip_layer,
            skip_from=p.skip_from,
        )
        return (
            None if out.video is None else out.video.float(),
            None if out.audio is None else out.audio.float(),
        )

    def _foresee(self, latents: Latents, video: Tensor | None, audio: Tensor | None, index: int) -> Latents:
        """Follows the velocities straight to the end: the flow's clean latents are `x - sigma * v`."""
        sigma = self._sigmas[index]
        return Latents(
            None if latents.video is None or video is None else latents.video - sigma * video,
            None if latents.audio is None or audio is None else latents.audio - sigma * audio,
        )

    def _plan_passes(self, start: Latents, is_guided: bool) -> tuple[tuple["_Pass", ...], tuple["_Pass"]]:
        """The passes of a guided step (a batch of two, or two), and the one of a step without guidance.

        The latter takes the prompt's text, and its keys and values, from the former.
        """
        text, guidance = self._text, self.guidance
        plain = _Pass(text.positive, text.positive)
        if not is_guided:
            return (), (self._prepare(plain, start),)
        negative = _Pass(text.video_negative, text.audio_negative, guidance.skip_layer)
        if not guidance.batched:
            plain = self._prepare(plain, start)
            return (plain, self._prepare(negative, start)), (plain,)
        both = _Pass(
            torch.cat((plain.video_text, negative.video_text)),
            torch.cat((plain.audio_text, negative.audio_text)),
            guidance.skip_layer,
            skip_from=1,
        )
        both = self._prepare(both, start)
        key_values = None if both.key_values is None else tuple(first_text(block, 1) for block in both.key_values)
        return (both,), (replace(plain, key_values=key_values),)

    def _prepare(self, p: "_Pass", start: Latents) -> "_Pass":
        if not self.cache_text:
            return p
        key_values = self.transformer.project_text(
            None if start.video is None else p.video_text, None if start.audio is None else p.audio_text
        )
        return replace(p, key_values=key_values)

    def _pin_first_frame(self, latents: Latents) -> Latents:
        if self.first_frame is None or latents.video is None:
            return latents
        return replace(latents, video=torch.cat((self.first_frame, latents.video[:, :, 1:]), dim=2))


@dataclass(frozen=True)
class _Pass:
    """The text of one transformer pass, (batch, T, text_dim) each, and what it skips."""

    video_text: Tensor
    audio_text: Tensor
    skip_layer: int = 0
    skip_from: int = 0
    key_values: tuple[TextKeyValues, ...] | None = None


def _guide(velocity: Tensor, scale: float) -> Tensor:
    """Combines (prompt, negative) velocities of a batch of two; a batch of one is returned as it is."""
    if velocity.shape[0] == 1:
        return velocity
    positive, negative = velocity.chunk(2)
    return positive if scale == 1.0 else negative + scale * (positive - negative)
