"""The engine: a request in, events out, and at the end a clip.

    request → plan → (draw frame →) load → encode text → first frame → denoise → decode → mux → Finished(clip)

`OviEngine` is the `Engine` that runs in this process. It puts a plan on the pipeline, composes the pipeline's stage
methods, and gives the decoded frames straight to the encoder.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import PIL.Image
import torch

from ovi_studio.engine.crew import Crew
from ovi_studio.engine.encodings import Encodings
from ovi_studio.engine.feeder import FrameFeeder
from ovi_studio.engine.first_frame import DrawnFrame, FirstFrames, only_drawing, seen, without_drawing
from ovi_studio.engine.looks import Looks
from ovi_studio.engine.meter import StageMeter
from ovi_studio.errors import (
    InvalidRequestError,
    OutOfMemoryError,
)
from ovi_studio.events import (
    CancelToken,
    Event,
    Finished,
    Planned,
    Progress,
    Stage,
    StageStarted,
    StepDone,
    ending_in_words,
)
from ovi_studio.folders import app_folders, make_folder
from ovi_studio.images import image_digest, read_image
from ovi_studio.media import ClipEncoder, clip_writer, read_clip
from ovi_studio.model.pipeline import OviPipeline, frames_to_uint8
from ovi_studio.model.preview import LatentPreview
from ovi_studio.model.sampler import FusedSampler, Guidance, TextStates
from ovi_studio.prompt import Dialect, to_dialect
from ovi_studio.request import Adapter, GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.runtime.apply import AppliedPlan, must_reload
from ovi_studio.runtime.execution_plan import ExecutionPlan
from ovi_studio.runtime.hardware import Held, memory_of, private_bytes
from ovi_studio.runtime.memory import CUDA_CONTEXT_BYTES
from ovi_studio.runtime.parallel import Team
from ovi_studio.runtime.planner import Planner
from ovi_studio.variants import Variant, get_variant
from ovi_studio.weights.adapters import AdapterUse, put_on, read_adapter, remarks_on, sampling_of
from ovi_studio.weights.inventory import find_adapter, weight_files
from ovi_studio.weights.load import IN_FILES, load_weights
from ovi_studio.weights.nano import load_nano
from ovi_studio.weights.store import Store

# What of a plan is put on the pipeline; the rest is the sampler's, or prediction.
_ON_PIPELINE = (
    "variant", "device", "components", "attention_backend", "vae_tiling", "compile", "step_cache",
    "step_cache_threshold", "ffn_chunks", "parallel",
)  # fmt: skip
MAX_ATTEMPTS = 4  # plans to try, each smaller than the one before, until memory suffices; guessed


def load_pipeline(variant: Variant, store: Store) -> OviPipeline:
    """The variant's pipeline with its weights: those of the package, or of the store, mapped from their files.

    Raises:
        WeightsError: its weights are not on this machine, or damaged.
    """
    if variant.fusion_file is None:
        return load_nano()
    return load_weights(variant, weight_files(variant, store), IN_FILES)


class OviEngine:
    """The engine in this process. It keeps the last model loaded, and the plan that was put on it.

    Args:
        output_dir: existing folder for clips until their caller takes them.
        cache_dir: folder for what is worth keeping between runs; made when needed.
        planner: decides how runs use this machine; by default with nothing forced.
        store: has the weights and the imported adapters; by default the application's.
        load: gives a variant's pipeline.
    """

    def __init__(
        self,
        output_dir: Path,
        cache_dir: Path,
        planner: Planner | None = None,
        store: Store | None = None,
        load: Callable[[Variant, Store], OviPipeline] = load_pipeline,
    ) -> None:
        self._output_dir = output_dir
        self._cache_dir = cache_dir
        self._planner = planner or Planner(cache_dir)
        self._store = store or Store(app_folders().weights)
        self._load = load
        self._frames = FirstFrames(cache_dir, self._store)
        self._encodings = Encodings()
        self._pipeline: OviPipeline | None = None
        self._placed: AppliedPlan | None = None
        self._crew: Crew | None = None  # the other ranks, of a plan for several cards
        self._adapters: tuple[Adapter, ...] = ()  # those on the pipeline's transformer

    def plan(self, request: GenerationRequest) -> ExecutionPlan:
        """See `Engine.plan`."""
        return self._planner.plan(request.resolved(), self._held())

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.generate`. Closing the generator abandons the run and leaves nothing behind."""
        yield from ending_in_words(self._make(request, cancel))

    def draw(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.draw`. Closing the generator as in `generate`."""
        yield from ending_in_words(self._draw(request, cancel))

    def close(self) -> None:
        """Lets go of the model and its memory."""
        if self._placed is not None:
            self._placed.close("discard")
        self._placed = self._pipeline = None
        self._adapters = ()
        self._dismiss()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _make(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        """A clip, by the best plan."""
        _check_supported(request)
        image = _read_first_frame(request)
        uses = [
            AdapterUse(read_adapter(find_adapter(adapter.id, self._store)), adapter.strength, adapter.tower)
            for adapter in request.adapters
        ]
        request, note = _sampled_as_distilled(request, uses)
        request = request.resolved(None if image is None else (image.height, image.width))
        plan = self._planner.plan(request, self._held())
        kept: DrawnFrame | None = None

        def needed(plan: ExecutionPlan) -> ExecutionPlan:
            nonlocal kept
            kept = self._frames.kept(request, plan)
            return plan if kept is None else without_drawing(plan)

        def work(plan: ExecutionPlan, meter: StageMeter) -> Iterator[Event]:
            drawn = kept
            if drawn is not None:
                yield drawn.told
            elif "draw frame" in plan.stages:
                drawn = yield from self._drawn(request, plan, meter, cancel)
            yield from self._run(request, image if drawn is None else drawn.image, uses, plan, meter, cancel)

        yield from self._attempt(request, plan, needed, work, note)

    def _draw(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        """The first frame alone, by what of the clip's plan draws it."""
        seen(request)
        request = request.resolved()
        plan = self._planner.plan(request, self._held())
        if (kept := self._frames.kept(request, plan)) is not None:
            yield kept.told
            return

        def work(plan: ExecutionPlan, meter: StageMeter) -> Iterator[Event]:
            yield from self._drawn(request, plan, meter, cancel)

        yield from self._attempt(request, plan, only_drawing, work)

    def _drawn(
        self, request: GenerationRequest, plan: ExecutionPlan, meter: StageMeter, cancel: CancelToken
    ) -> Generator[Event, None, DrawnFrame]:
        """The first frame, drawn: nothing of Ovi is in memory meanwhile, and nothing of the image model afterwards."""
        progress, enter = _course(plan, meter, cancel)
        self.close()
        yield enter("draw frame")
        drawn = yield from self._frames.draw(request, plan, progress, cancel)
        yield drawn.told
        return drawn

    def _attempt(
        self,
        request: GenerationRequest,
        plan: ExecutionPlan,
        needed: Callable[[ExecutionPlan], ExecutionPlan],
        work: Callable[[ExecutionPlan, StageMeter], Iterator[Event]],
        note: str = "",
    ) -> Iterator[Event]:
        """Works by a plan; where memory runs out all the same, by the next smaller, with the same seed.

        Args:
            request: resolved.
            plan: the first to try.
            needed: what of a plan there is to do.
            work: does it.
            note: on the first plan.
        """
        for _ in range(MAX_ATTEMPTS):
            plan = needed(plan)
            yield Planned(plan, note)
            with StageMeter(plan.device) as meter:
                try:
                    yield from work(plan, meter)
                except (RuntimeError, MemoryError) as error:
                    if not _says_out_of_memory(error):
                        raise
                else:
                    return
            self.close()
            plan = self._planner.step_down(plan, meter.stage, request)
            note = f"Memory ran out in the stage {meter.stage!r}: starting again with a smaller plan and the same seed."
        raise OutOfMemoryError(
            f"Memory ran out with each of {MAX_ATTEMPTS} plans.",
            "Choose a smaller size, choose the quality 'smallest', or close other programs that use the card.",
        )

    @torch.no_grad()
    def _run(
        self,
        request: GenerationRequest,
        image: PIL.Image.Image | None,
        uses: Sequence[AdapterUse],
        plan: ExecutionPlan,
        meter: StageMeter,
        cancel: CancelToken,
    ) -> Iterator[Event]:
        """One resolved request by one plan."""
        variant, size = get_variant(request.variant), request.clip_size()
        progress, enter = _course(plan, meter, cancel)

        # 1. Load
        yield enter("load")
        placed = self._place(variant, plan, request.adapters, uses)
        pipeline = placed.pipeline
        preview = None
        if request.modality != "audio":
            preview = LatentPreview.cached(pipeline.video_vae, self._cache_dir, lambda: placed.stage("first frame"))

        with _cancelling(placed, cancel):
            # 2. Encode text
            yield enter("encode text")
            prompt = to_dialect(request.prompt, Dialect(variant.caption_dialect))
            texts = (prompt, request.video_negative_prompt or "", request.audio_negative_prompt or "")
            text = self._encodings.prompts(pipeline, plan, texts, placed.stage)

            # 3. First frame
            first_frame = None
            if image is not None:
                yield enter("first frame")
                first_frame = self._encodings.first_frame(pipeline, plan, image, size, placed.stage)

            # 4. Denoise
            yield enter("denoise")
            made: dict[str, object] = {"request": request.embedded()}
            with placed.stage("denoise"):
                sampler = _sampler_of(request, plan, pipeline, text, first_frame)
                latents = sampler.begin(pipeline.prepare_noise(*size, modality=request.modality, seed=request.seed))
                looks, steps = Looks(placed, preview), len(sampler.timesteps)
                for index in range(steps):
                    latents = sampler.step(latents, index)
                    _wait_for(plan.device)
                    cancel.raise_if_cancelled()
                    progress.finish_step(index + 1, steps)
                    picture, sound = looks.picture(sampler.estimate), looks.sound(sampler.estimate, index + 1, steps)
                    yield StepDone(index + 1, steps, progress.seconds_left, picture, sound)
                    if cancel.finishing_early:
                        latents, made = sampler.estimate, made | {"steps_done": index + 1}
                        break
                del sampler  # its text keys and values are not needed any more

            # 5. Decode: the sound first, then every frame straight into the file
            yield enter("decode")
            path = self._output_dir / f"{secrets.token_hex(8)}.mp4"
            with (
                placed.stage("decode"),
                clip_writer(
                    path,
                    size=None if latents.video is None else size,
                    waveform=None if latents.audio is None else pipeline.decode_audio(latents.audio).numpy(),
                    fps=variant.fps,
                    sample_rate=variant.sample_rate,
                    metadata=made,
                ) as encoder,
            ):
                if latents.video is not None:
                    yield from _decode(placed, latents.video, encoder, progress, cancel)

                # 6. Mux: the file becomes whole when the block ends
                yield enter("mux")
        measured = meter.finish()
        self._planner.learn(plan, {stage: took.seconds for stage, took in measured.items()})
        yield Finished(read_clip(path), measured)

    def _place(
        self, variant: Variant, plan: ExecutionPlan, adapters: tuple[Adapter, ...], uses: Sequence[AdapterUse]
    ) -> AppliedPlan:
        """The variant's pipeline with adapters and plan put on; all is kept as long as it serves."""
        if self._crew is not None and self._crew.broken:
            self.close()
        if self._placed is not None and _same_on_pipeline(self._placed.plan, plan) and adapters == self._adapters:
            return self._placed
        fused = self._placed is not None and _narrows_transformer(self._placed.plan)
        if (
            self._pipeline is None
            or self._pipeline.variant != variant
            or must_reload(self._pipeline, plan)
            or (fused and adapters != self._adapters)
        ):
            self.close()
            self._pipeline = self._load(variant, self._store)
            self._encodings.loaded(self._pipeline)
            self._pipeline.set_progress_bar_config(disable=True)
        elif self._placed is not None:
            self._placed.close("stay")
            self._placed = None
        if adapters != self._adapters:
            put_on(self._pipeline.transformer, uses)
            self._adapters = adapters
        make_folder(self._cache_dir)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)  # part of it may be narrowed, and adapters fused
            team = self._team(plan, adapters)
            self._placed = AppliedPlan(self._pipeline, plan, self._cache_dir, team)
            undo.pop_all()
        return self._placed

    def _team(self, plan: ExecutionPlan, adapters: tuple[Adapter, ...]) -> Team | None:
        """The ranks of a plan for several cards, who load and put it on meanwhile; None for one card."""
        devices = plan.parallel.devices
        if self._crew is not None and self._crew.devices != devices:
            self._dismiss()
        if plan.parallel.gpus == 1:
            return None
        self._crew = self._crew or Crew(devices, self._cache_dir, self._store, self._load)
        return self._crew.place(plan, adapters)

    def _dismiss(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _held(self) -> Held:
        """What this engine has of the machine's memory; between runs that is its process, and what a plan keeps."""
        if self._placed is None:
            return Held(private_bytes())
        if self._crew is not None:
            return memory_of(os.getpid())  # and of the other ranks, which it started
        device = self._placed.plan.device
        on_card = 0 if device == "cpu" else torch.cuda.memory_reserved(device) + CUDA_CONTEXT_BYTES
        return Held(private_bytes(), {device: on_card})


def _course(
    plan: ExecutionPlan, meter: StageMeter, cancel: CancelToken
) -> tuple[Progress, Callable[[Stage], StageStarted]]:
    """The seconds left of a run, and what enters its next stage."""
    progress = Progress({stage: planned.seconds for stage, planned in plan.stages.items()})

    def enter(stage: Stage) -> StageStarted:
        cancel.raise_if_cancelled()
        progress.start_stage(stage)
        meter.start_stage(stage)
        return StageStarted(stage)

    return progress, enter


def _says_out_of_memory(error: Exception) -> bool:
    """Torch has a class for it; the driver, cuBLAS and cuDNN say it in words."""
    words = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def _wait_for(device: str) -> None:
    """Lets a card finish what it was given, so that steps are timed and cancelled when they are done."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def _narrows_transformer(plan: ExecutionPlan) -> bool:
    return plan.components["transformer"].precision not in ("float32", "bf16")


def _same_on_pipeline(one: ExecutionPlan, other: ExecutionPlan) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in _ON_PIPELINE)


def _decode(
    placed: AppliedPlan, video: torch.Tensor, encoder: ClipEncoder, progress: Progress, cancel: CancelToken
) -> Iterator[Event]:
    """Decodes into the file, which is encoded meanwhile; one step is one latent frame."""
    steps = video.shape[2]
    with FrameFeeder(encoder) as feeder:
        for index, frames in enumerate(placed.decode_video(video)):
            feeder.add(frames_to_uint8(frames))
            cancel.raise_if_cancelled()
            progress.finish_step(index + 1, steps)
            yield StepDone(index + 1, steps, progress.seconds_left)


def _check_supported(request: GenerationRequest) -> None:
    if request.takes != 1:
        raise InvalidRequestError(
            f"An engine makes one clip at a time, not {request.takes} takes.", "Ask for each take by itself."
        )
    if isinstance(request.first_frame, GeneratedFrame):
        seen(request)


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


def _sampled_as_distilled(request: GenerationRequest, uses: Sequence[AdapterUse]) -> tuple[GenerationRequest, str]:
    """The request as a step-distilled adapter wants it where the request leaves it open, and what to know of them."""
    note, wish = " ".join(remarks_on(uses)), sampling_of(uses)
    if wish is None:
        return request, note
    fields = {
        "num_inference_steps": wish.num_inference_steps,
        "shift": wish.shift,
        "video_guidance_scale": wish.guidance_scale,
        "audio_guidance_scale": wish.guidance_scale,
    }
    opened = {name: value for name, value in fields.items() if getattr(request, name) is None}
    return request.replace(**opened), note


def _sampler_of(
    request: GenerationRequest,
    plan: ExecutionPlan,
    pipeline: OviPipeline,
    text: TextStates,
    first_frame: torch.Tensor | None,
) -> FusedSampler:
    """The sampler for a resolved request, as the plan wants it."""
    defaults = pipeline.variant.defaults
    return pipeline.prepare_sampler(
        text,
        Guidance(
            request.video_guidance_scale or defaults.video_guidance_scale,
            request.audio_guidance_scale or defaults.audio_guidance_scale,
            defaults.slg_layer if request.slg_layer is None else request.slg_layer,
            plan.guidance != "sequential",
            request.video_guidance_interval or defaults.video_guidance_interval,
            request.audio_guidance_interval or defaults.audio_guidance_interval,
        ),
        request.solver or defaults.solver,
        request.shift or defaults.shift,
        request.num_inference_steps or defaults.num_inference_steps,
        first_frame,
        plan.text_cache,
    )


@contextlib.contextmanager
def _cancelling(placed: AppliedPlan, cancel: CancelToken) -> Iterator[None]:
    """While this lasts, every block of the transformer looks at the token first, so a long step can be left.

    Not in a team: who left the middle of a step would leave the others waiting. They stop between steps.
    """
    blocks = placed.pipeline.transformer.blocks if placed.team is None else ()
    handles = [block.register_forward_pre_hook(lambda *_: cancel.raise_if_cancelled()) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
