"""The stage that draws a first frame: FLUX.1's parts in turn, and a cache of what was drawn.

    FirstFrames.kept(request, plan)   → the picture, if the same one was drawn before
    FirstFrames.draw(request, plan)   → one `StepDone` after the other, and the picture in the end

Ovi must be out of memory while it draws. What decides a picture's pixels is its key in the cache.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from torch import nn

from ovi_studio import flux
from ovi_studio.errors import InvalidRequestError, MediaError
from ovi_studio.events import CancelToken, FrameDrawn, Progress, Stage, StepDone
from ovi_studio.files import replacing
from ovi_studio.folders import make_folder
from ovi_studio.images import read_image
from ovi_studio.model.flux import FluxSampler, decode, encode_prompt, fit_preview
from ovi_studio.prompt import strip_tags
from ovi_studio.request import GeneratedFrame, GenerationRequest
from ovi_studio.runtime.execution_plan import ComponentName, ExecutionPlan, StagePlan
from ovi_studio.runtime.flux import at_work, blocks_of
from ovi_studio.variants import Size
from ovi_studio.weights.flux import load_scheduler, load_text_encoders, load_transformer, load_vae
from ovi_studio.weights.image_model import image_model, image_model_digest, image_model_folder
from ovi_studio.weights.store import Store

KEPT = 64  # pictures in the cache; guessed: some 100 MB
PREVIEW_SCALE = 2  # pixels a latent each way: 256 of 1024
_PARTS: tuple[ComponentName, ...] = ("flux_text_encoder", "flux_transformer", "flux_vae")


@dataclass(frozen=True)
class DrawnFrame:
    """A picture, where it is kept, and the seed that it was drawn with."""

    image: PIL.Image.Image
    path: Path
    seed: int

    @property
    def told(self) -> FrameDrawn:
        """The event that tells of it."""
        return FrameDrawn(self.path, self.seed)


@dataclass(frozen=True)
class Drawing:
    """All that decides the pixels of a picture.

    Args:
        prompt: without speech and captions.
        seed: of the noise.
        size: of the picture, which is not the clip's.
        precisions: of the parts.
        weights: tells one download from another.
        steps: of the schedule.
        guidance_scale: for the model.
    """

    prompt: str
    seed: int
    size: Size
    precisions: tuple[str, ...]
    weights: str
    steps: int = flux.STEPS
    guidance_scale: float = flux.GUIDANCE_SCALE

    @property
    def key(self) -> str:
        """A hash of it."""
        return hashlib.sha256(json.dumps(dataclasses.astuple(self)).encode()).hexdigest()


def seen(request: GenerationRequest) -> str:
    """The words that a generated first frame is drawn from: what can be seen.

    Raises:
        InvalidRequestError: there are none, or no frame is to be drawn.
    """
    frame = request.first_frame
    if not isinstance(frame, GeneratedFrame):
        raise InvalidRequestError("The request has no first frame to draw.", "Ask for a generated one.")
    words = strip_tags(frame.prompt or request.prompt)
    if not words:
        raise InvalidRequestError(
            "Beside speech and sound the prompt has nothing to draw.", "Describe the first frame by itself."
        )
    return words


def without_drawing(plan: ExecutionPlan) -> ExecutionPlan:
    """The plan of the same run when its first frame is drawn."""
    stages: dict[Stage, StagePlan] = {name: stage for name, stage in plan.stages.items() if name != "draw frame"}
    components = {name: planned for name, planned in plan.components.items() if name not in _PARTS}
    return dataclasses.replace(plan, stages=stages, components=components)


def only_drawing(plan: ExecutionPlan) -> ExecutionPlan:
    """What of the plan draws the first frame."""
    components = {name: plan.components[name] for name in _PARTS}
    return dataclasses.replace(plan, stages={"draw frame": plan.stages["draw frame"]}, components=components)


class FirstFrames:
    """Draws first frames, and keeps the newest.

    Args:
        cache_dir: folder of the application's cache; made when needed.
        store: has the image model.
    """

    def __init__(self, cache_dir: Path, store: Store) -> None:
        self._cache_dir = cache_dir
        self._folder = cache_dir / "frames"
        self._store = store

    def kept(self, request: GenerationRequest, plan: ExecutionPlan) -> DrawnFrame | None:
        """The first frame of a resolved request, if the plan is to draw it and it was drawn before by one like it.

        Raises:
            WeightsError: it has to be drawn, and the image model is not here.
        """
        if "draw frame" not in plan.stages:
            return None
        drawing = self._drawing(request, plan)
        path = self._path(drawing)
        try:
            image = read_image(path)
            os.utime(path)  # the newest are kept
        except (MediaError, OSError):  # not there, or damaged
            image_model_folder(self._store)
            return None
        return DrawnFrame(image, path, drawing.seed)

    def draw(
        self, request: GenerationRequest, plan: ExecutionPlan, progress: Progress, cancel: CancelToken
    ) -> Generator[StepDone, None, DrawnFrame]:
        """Draws the first frame of a resolved request, step by step, and keeps it.

        Raises:
            WeightsError: the image model is not here, or damaged.
            MediaError: the cache cannot be written.
            CancelledError: the token was set.
        """
        drawing = self._drawing(request, plan)
        make_folder(self._folder)
        image = yield from _draw(drawing, plan, image_model_folder(self._store), self._cache_dir, progress, cancel)
        path = self._path(drawing)
        with replacing(path) as temporary:
            image.save(temporary, "PNG")
        self._prune()
        return DrawnFrame(image, path, drawing.seed)

    def _drawing(self, request: GenerationRequest, plan: ExecutionPlan) -> Drawing:
        prompt, frame = seen(request), request.first_frame
        seed = frame.seed if isinstance(frame, GeneratedFrame) and frame.seed is not None else request.seed
        return Drawing(
            prompt,
            seed or 0,
            image_model(self._store).frame_size(request.clip_size()),
            tuple(plan.components[name].precision for name in _PARTS),
            image_model_digest(self._store),
        )

    def _path(self, drawing: Drawing) -> Path:
        return self._folder / f"{drawing.key}.png"

    def _prune(self) -> None:
        ages = []
        for path in self._folder.glob("*.png"):
            with contextlib.suppress(OSError):  # another process was faster
                ages.append((path.stat().st_mtime, path))
        for _, path in sorted(ages, reverse=True)[KEPT:]:
            path.unlink(missing_ok=True)


@torch.no_grad()
def _draw(
    drawing: Drawing, plan: ExecutionPlan, weights: Path, scratch: Path, progress: Progress, cancel: CancelToken
) -> Generator[StepDone, None, PIL.Image.Image]:
    """The parts in turn; each is gone before the next large one comes."""
    device, parts = torch.device(plan.device), plan.components
    dtype = torch.float32 if parts["flux_vae"].precision == "float32" else torch.bfloat16

    # 1. Encode the prompt
    writer = load_text_encoders(weights, dtype)
    words, summary = writer.text_encoder_2, writer.text_encoder
    with (
        at_work(summary, dataclasses.replace(parts["flux_text_encoder"], placement="staged"), device, scratch),
        at_work(words, parts["flux_text_encoder"], device, scratch),
        _cancelling(words, cancel),
    ):
        text = encode_prompt(writer, drawing.prompt, flux.TEXT_LEN, device)
    del writer, words, summary
    cancel.raise_if_cancelled()

    # 2. Denoise
    vae = load_vae(weights, dtype)
    with at_work(vae, parts["flux_vae"], device, scratch):
        preview = fit_preview(vae)
        transformer = load_transformer(weights, dtype)
        with at_work(transformer, parts["flux_transformer"], device, scratch), _cancelling(transformer, cancel):
            sampler = FluxSampler(
                transformer, load_scheduler(weights), text, drawing.size, drawing.steps, drawing.guidance_scale
            )
            latents = sampler.begin(drawing.seed)
            for index in range(sampler.steps):
                latents, estimate = sampler.step(latents, index)
                jpeg = preview.jpeg(sampler.unpacked(estimate).unsqueeze(2), PREVIEW_SCALE)
                cancel.raise_if_cancelled()
                progress.finish_step(index + 1, sampler.steps)
                yield StepDone(index + 1, sampler.steps, progress.seconds_left, jpeg)
            latents = sampler.unpacked(latents)
        del transformer, sampler, text

        # 3. Decode
        return decode(vae, latents)


@contextlib.contextmanager
def _cancelling(part: nn.Module, cancel: CancelToken) -> Iterator[None]:
    """While this lasts, every block looks at the token first, so a long step can be left."""
    handles = [block.register_forward_pre_hook(lambda *_: cancel.raise_if_cancelled()) for block in blocks_of(part)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
