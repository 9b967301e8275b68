"""The engine: a request in, events out, and at the end a clip.

    request → load → encode text → first frame → denoise → decode → mux → Finished(clip)

`Engine` is what every door drives. `OviEngine` is the one that runs in this process; it composes the stage
methods of `OviPipeline` and gives the decoded frames straight to the encoder.
"""

import contextlib
import secrets
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Protocol

import PIL.Image
import torch

from ovi_studio.arithmetic import stage_work
from ovi_studio.errors import (
    CancelledError,
    InvalidRequestError,
    OutOfMemoryError,
    OviStudioError,
    WeightsError,
)
from ovi_studio.events import Cancelled, CancelToken, Event, Failed, Finished, Progress, Stage, StageStarted, StepDone
from ovi_studio.images import image_digest, read_image
from ovi_studio.media import ClipEncoder, clip_writer, read_clip
from ovi_studio.model.pipeline import OviPipeline, frames_to_uint8
from ovi_studio.model.preview import LatentPreview
from ovi_studio.model.sampler import FusedSampler, Guidance, TextStates
from ovi_studio.prompt import Dialect, to_dialect
from ovi_studio.request import GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.variants import Size, Variant, get_variant
from ovi_studio.weights.nano import load_nano

_OPERATIONS_PER_SECOND = 5e10  # guessed: two laptop cores in float32. The first steps correct it.


class Engine(Protocol):
    """Anything that turns requests into clips."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        """Makes one clip of one take.

        The last event is `Finished`, `Failed` or `Cancelled`. A finished clip lies under a temporary name and
        belongs to the caller. Errors that a user can meet become `Failed`; nothing is left behind by a run that
        did not finish.
        """

    def close(self) -> None:
        """Lets go of the model and its memory."""


def load_pipeline(variant: Variant) -> OviPipeline:
    """The variant's pipeline with its weights, on the CPU.

    Raises:
        WeightsError: its weights are not on this machine.
    """
    if variant.name != "nano":
        raise WeightsError(
            f"The weights of {variant.name} cannot be loaded by this version.",
            "Choose the embedded model: --model nano.",
        )
    return load_nano()


class OviEngine:
    """The engine in this process. It keeps the last model loaded.

    Args:
        output_dir: existing folder for clips until their caller takes them.
        cache_dir: folder for what is worth keeping between runs; made when needed.
        load: gives a variant's pipeline.
    """

    def __init__(
        self, output_dir: Path, cache_dir: Path, load: Callable[[Variant], OviPipeline] = load_pipeline
    ) -> None:
        self._output_dir = output_dir
        self._cache_dir = cache_dir
        self._load = load
        self._pipeline: OviPipeline | None = None

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.generate`. Closing the generator abandons the run and leaves nothing behind."""
        try:
            yield from self._run(request, cancel)
        except CancelledError:
            yield Cancelled()
        except OviStudioError as error:
            yield Failed.from_error(error)
        except (torch.OutOfMemoryError, MemoryError):
            self.close()
            yield Failed.from_error(
                OutOfMemoryError(
                    "There was not enough memory for this clip.",
                    "Choose a smaller size or model, or close other programs.",
                )
            )

    def close(self) -> None:
        """Lets go of the model and its memory."""
        self._pipeline = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        # 0. Settle what is asked for, before anything is loaded
        _check_supported(request)
        image = _read_first_frame(request)
        request = request.resolved(None if image is None else (image.height, image.width))
        variant, size = get_variant(request.variant), request.clip_size()
        progress = Progress(_estimates(request, variant, size))

        def enter(stage: Stage) -> StageStarted:
            cancel.raise_if_cancelled()
            progress.start_stage(stage)
            return StageStarted(stage)

        # 1. Load
        yield enter("load")
        pipeline = self._pipeline_of(variant)
        preview = None if request.modality == "audio" else LatentPreview.cached(pipeline.video_vae, self._cache_dir)

        with torch.no_grad(), _cancelling(pipeline, cancel):
            # 2. Encode text
            yield enter("encode text")
            prompt = to_dialect(request.prompt, Dialect(variant.caption_dialect))
            text = pipeline.encode_prompts(
                prompt, request.video_negative_prompt or "", request.audio_negative_prompt or ""
            )

            # 3. First frame
            first_frame = None
            if image is not None:
                yield enter("first frame")
                first_frame = pipeline.encode_image(image, *size)

            # 4. Denoise
            yield enter("denoise")
            sampler = _sampler_of(request, pipeline, text, first_frame)
            latents = sampler.begin(pipeline.prepare_noise(*size, modality=request.modality, seed=request.seed))
            steps = len(sampler.timesteps)
            for index in range(steps):
                latents = sampler.step(latents, index)
                cancel.raise_if_cancelled()
                progress.finish_step(index + 1, steps)
                picture = sampler.estimate.video
                jpeg = preview.jpeg(picture) if preview is not None and picture is not None else None
                yield StepDone(index + 1, steps, progress.seconds_left, jpeg)

            # 5. Decode: the sound first, then every frame straight into the file
            yield enter("decode")
            path = self._output_dir / f"{secrets.token_hex(8)}.mp4"
            with clip_writer(
                path,
                size=None if latents.video is None else size,
                waveform=None if latents.audio is None else pipeline.decode_audio(latents.audio).numpy(),
                fps=variant.fps,
                sample_rate=variant.sample_rate,
                metadata={"request": request.embedded()},
            ) as encoder:
                if latents.video is not None:
                    yield from _decode(pipeline, latents.video, encoder, progress, cancel)

                # 6. Mux: the file becomes whole when the block ends
                yield enter("mux")
        yield Finished(read_clip(path))

    def _pipeline_of(self, variant: Variant) -> OviPipeline:
        if self._pipeline is None or self._pipeline.variant != variant:
            self.close()
            self._pipeline = self._load(variant)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline


def _decode(
    pipeline: OviPipeline, video: torch.Tensor, encoder: ClipEncoder, progress: Progress, cancel: CancelToken
) -> Iterator[Event]:
    """Decodes into the file; one step is one latent frame."""
    steps = video.shape[2]
    for index, frames in enumerate(pipeline.decode_video(video)):
        for frame in frames_to_uint8(frames):
            encoder.add_frame(frame)
        cancel.raise_if_cancelled()
        progress.finish_step(index + 1, steps)
        yield StepDone(index + 1, steps, progress.seconds_left)


def _check_supported(request: GenerationRequest) -> None:
    if request.takes != 1:
        raise InvalidRequestError(
            f"An engine makes one clip at a time, not {request.takes} takes.", "Ask for each take by itself."
        )
    if isinstance(request.first_frame, GeneratedFrame):
        raise InvalidRequestError(
            "This version cannot draw a first frame.", "Give an image file, or start from the prompt alone."
        )
    if request.adapters:
        raise InvalidRequestError("This version loads no adapters.", "Leave them out.")


def _read_first_frame(request: GenerationRequest) -> PIL.Image.Image | None:
    """The picture that the request names, checked against the hash it was recorded with."""
    frame = request.first_frame
    if not isinstance(frame, ImageFrame):
        return None
    if frame.path is None:
        raise InvalidRequestError(
            f"The first frame {frame.name!r} is known by name only.", "Give its file again, with --image."
        )
    if frame.sha256 is not None and image_digest(frame.path) != frame.sha256:
        raise InvalidRequestError(
            f"{frame.path} is not the picture that the request was made with.",
            "Give the original file, or start a new request with this one.",
        )
    return read_image(frame.path)


def _sampler_of(
    request: GenerationRequest, pipeline: OviPipeline, text: TextStates, first_frame: torch.Tensor | None
) -> FusedSampler:
    """The sampler for a resolved request."""
    defaults = pipeline.variant.defaults
    return FusedSampler(
        pipeline.transformer,
        text,
        Guidance(
            request.video_guidance_scale or defaults.video_guidance_scale,
            request.audio_guidance_scale or defaults.audio_guidance_scale,
            defaults.slg_layer if request.slg_layer is None else request.slg_layer,
        ),
        request.solver or defaults.solver,
        request.shift or defaults.shift,
        request.num_inference_steps or defaults.num_inference_steps,
        first_frame,
    )


def _estimates(request: GenerationRequest, variant: Variant, size: Size) -> dict[Stage, float]:
    """Seconds of each stage by its operations; `Progress` corrects the machine's speed as it goes."""
    work = stage_work(variant, size, request.modality)
    steps = request.num_inference_steps or variant.defaults.num_inference_steps
    operations: dict[Stage, int] = {
        "encode text": 3 * work["encode_text"].operations,
        "first frame": work["encode_image"].operations if request.first_frame is not None else 0,
        "denoise": 2 * steps * work["denoise"].operations,
        "decode": work["decode_video"].operations + work["decode_audio"].operations,
    }
    return {stage: count / _OPERATIONS_PER_SECOND for stage, count in operations.items()}


@contextlib.contextmanager
def _cancelling(pipeline: OviPipeline, cancel: CancelToken) -> Iterator[None]:
    """While this lasts, every block of the transformer looks at the token first, so a long step can be left."""
    handles = [
        block.register_forward_pre_hook(lambda *_: cancel.raise_if_cancelled()) for block in pipeline.transformer.blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
