"""`OviEngine` with tiny models: the order of its events, the clip it leaves, how it fails and stops."""

import dataclasses
import gc
import io
import itertools
import time
import wave
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from ovi_studio import media
from ovi_studio.engine.engine import OviEngine
from ovi_studio.engine.meter import INTERVAL, StageMeter
from ovi_studio.errors import EngineError, OutOfMemoryError, WeightsError
from ovi_studio.events import Cancelled, CancelToken, Event, Failed, Finished, Planned, Stage, StageStarted, StepDone
from ovi_studio.images import image_digest
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.preview import LatentPreview
from ovi_studio.request import Adapter, GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.runtime.execution_plan import ComponentPlan, ExecutionPlan, Preferences
from ovi_studio.runtime.hardware import Held
from ovi_studio.runtime.planner import NOTHING_HELD, Planner
from ovi_studio.variants import Variant, get_variant
from ovi_studio.weights.catalog import ADAPTERS
from ovi_studio.weights.nano import load_nano
from ovi_studio.weights.store import Store

AAC_FRAME = 1024


@pytest.fixture(scope="module")
def nano() -> OviPipeline:
    return load_nano()


@pytest.fixture
def engine(tmp_path: Path, nano: OviPipeline) -> OviEngine:
    return OviEngine(tmp_path, tmp_path / "cache", load=lambda _variant, _store: nano)


def request_of(**fields: Any) -> GenerationRequest:
    settings = {"prompt": "A face says <S>seven<E>.", "seed": 3, "num_inference_steps": 2}
    return GenerationRequest.create(**(settings | fields))


def run(engine: OviEngine, **fields: Any) -> list[Event]:
    return list(engine.generate(request_of(**fields), CancelToken()))


def clip_of(events: list[Event]) -> media.Clip:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1].clip


def picture(path: Path, height: int = 96, width: int = 96) -> ImageFrame:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return ImageFrame(path=str(path), name=path.name, sha256=image_digest(path))


def test_stages_steps_and_clip(engine: OviEngine) -> None:
    events = run(engine)
    clip = clip_of(events)
    assert isinstance(events[0], Planned)
    assert set(events[-1].measured) == set(engine.plan(request_of()).stages)
    assert all(took.host_bytes > 0 and took.seconds >= 0 for took in events[-1].measured.values())
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    assert stages == ["load", "encode text", "denoise", "decode", "mux"]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(s.step, s.steps) for s in steps] == [(1, 2), (2, 2)] + [(n, 13) for n in range(1, 14)]
    assert all(s.preview is not None for s in steps[:2])
    assert all(s.seconds_left is None or s.seconds_left >= 0 for s in steps)
    variant = get_variant("nano")
    assert (clip.num_frames, clip.fps, clip.sample_rate) == (49, 24, 16000)
    assert (clip.height, clip.width) == (96, 96)
    assert abs(clip.num_samples - variant.num_samples) < AAC_FRAME


def test_the_sound_is_heard_from_the_middle_on(engine: OviEngine) -> None:
    events = run(engine, num_inference_steps=6)
    sounds = {event.step: event.sound for event in events if isinstance(event, StepDone) and event.steps == 6}
    assert [step for step, sound in sounds.items() if sound is not None] == [3, 4, 5]
    with wave.open(io.BytesIO(sounds[5])) as wav:
        assert (wav.getframerate(), wav.getnframes()) == (16_000, get_variant("nano").num_samples)
        assert any(wav.readframes(wav.getnframes()))
    silent = run(engine, num_inference_steps=6, modality="video")
    assert all(event.sound is None for event in silent if isinstance(event, StepDone))


def test_the_clip_gives_its_request_back_and_is_made_again(engine: OviEngine, tmp_path: Path) -> None:
    first = clip_of(run(engine, seed=None))
    embedded = GenerationRequest.from_embedded(media.read_metadata(first.path)["request"])
    assert embedded.seed is not None
    assert embedded.num_inference_steps == 2
    events = list(engine.generate(embedded, CancelToken()))
    assert clip_of(events).path.read_bytes() == first.path.read_bytes()
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".mp4"}


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_one_stream_alone(engine: OviEngine, modality: str) -> None:
    clip = clip_of(run(engine, modality=modality))
    assert (clip.has_picture, clip.has_sound) == (modality == "video", modality == "audio")


def test_first_frame(engine: OviEngine, tmp_path: Path) -> None:
    frame = picture(tmp_path / "first.png", 64, 128)
    events = run(engine, first_frame=frame)
    clip = clip_of(events)
    assert "first frame" in [event.stage for event in events if isinstance(event, StageStarted)]
    assert clip.width > clip.height, "the clip takes the picture's aspect"
    assert str(tmp_path) not in str(media.read_metadata(clip.path))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"first_frame": ImageFrame(name="gone.png")}, "--image"),
        ({"first_frame": GeneratedFrame(prompt="<S>seven<E> Audio: a voice")}, "nothing to draw"),
        ({"takes": 2}, "one clip at a time"),
    ],
)
def test_what_cannot_be_done_is_said(engine: OviEngine, fields: dict[str, Any], words: str) -> None:
    (event,) = run(engine, **fields)
    assert isinstance(event, Failed)
    assert words in f"{event.problem} {event.remedy}"
    assert event.exit_code == 2


def test_another_picture_under_the_same_name_is_refused(engine: OviEngine, tmp_path: Path) -> None:
    frame = picture(tmp_path / "first.png")
    PIL.Image.new("RGB", (96, 96), "red").save(tmp_path / "first.png")
    (event,) = run(engine, first_frame=frame)
    assert isinstance(event, Failed)
    assert "not the picture" in event.problem


def test_missing_weights(tmp_path: Path) -> None:
    store = Store(tmp_path / "weights")
    events = run(OviEngine(tmp_path, tmp_path, AsNano(tmp_path), store), variant="720x720_5s")
    assert isinstance(events[-1], Failed)
    assert events[-1].exit_code == WeightsError.exit_code
    assert "ovi-studio models" in events[-1].remedy


def test_adapters(tmp_path: Path, nano: OviPipeline) -> None:
    """A LoRA from the store changes the clip, and is gone when it is not asked for any more."""
    name = "blocks.0.video.self_attn.q"
    generator = torch.Generator().manual_seed(0)
    dim = nano.transformer.config.num_attention_heads * nano.transformer.config.attention_head_dim
    tensors = {
        f"{name}.lora_A.weight": torch.randn(4, dim, generator=generator),
        f"{name}.lora_B.weight": torch.randn(dim, 4, generator=generator),
    }
    (tmp_path / "weights" / ADAPTERS).mkdir(parents=True)
    save_file(tensors, tmp_path / "weights" / ADAPTERS / "wild.safetensors")
    store = Store(tmp_path / "weights")
    engine = OviEngine(tmp_path, tmp_path / "cache", store=store, load=lambda _variant, _store: load_nano())
    plain = clip_of(run(engine, modality="video")).path.read_bytes()
    adapted = clip_of(run(engine, modality="video", adapters=(Adapter(id="wild"),)))
    assert media.read_metadata(adapted.path)["request"]["adapters"][0]["id"] == "wild"
    frames = [
        np.stack(list(media.decode_frames(path)))
        for path in (adapted.path, clip_of(run(engine, modality="video")).path)
    ]
    assert not np.array_equal(*frames)
    assert clip_of(run(engine, modality="video")).path.read_bytes() == plain
    (failed,) = run(engine, adapters=(Adapter(id="tame"),))
    assert "wild" in failed.problem


def test_a_model_on_which_a_plan_could_not_be_put_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part of it may be narrowed, or have adapters fused into it."""
    loaded: list[OviPipeline] = []

    def load(_variant: Variant, _store: Store) -> OviPipeline:
        loaded.append(load_nano())
        return loaded[-1]

    def refuse(*_: object) -> None:
        raise EngineError("The disk is full.", "Make room.")

    engine = OviEngine(tmp_path, tmp_path / "cache", load=load)
    with monkeypatch.context() as patch:
        patch.setattr("ovi_studio.engine.engine.AppliedPlan", refuse)
        assert isinstance(run(engine)[-1], Failed)
    clip_of(run(engine))
    assert len(loaded) == 2


@pytest.mark.parametrize("when", [1, 3, 5, 8, 12])
def test_cancel_leaves_nothing(engine: OviEngine, tmp_path: Path, when: int) -> None:
    cancel = CancelToken()
    events = []
    for count, event in enumerate(engine.generate(request_of(), cancel), 1):
        events.append(event)
        if count == when:
            cancel.cancel()
    assert isinstance(events[-1], Cancelled)
    assert len(events) == when + 1
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_cancel_within_a_step(engine: OviEngine, nano: OviPipeline) -> None:
    """The token is set while block 1 of the first step runs: block 2 is not entered."""
    cancel = CancelToken()
    entered: list[int] = []

    def note(index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            entered.append(index)
            if index == 1 and len(entered) > len(nano.transformer.blocks):  # the first round projects the text
                cancel.cancel()

        return hook

    handles = [block.register_forward_hook(note(i)) for i, block in enumerate(nano.transformer.blocks)]
    events = list(engine.generate(request_of(), cancel))
    for handle in handles:
        handle.remove()
    assert isinstance(events[-1], Cancelled)
    assert entered == [0, 1, 2, 3, 0, 1]
    assert all(not block._forward_pre_hooks for block in nano.transformer.blocks)


def test_an_abandoned_run_leaves_nothing(engine: OviEngine, tmp_path: Path) -> None:
    events = engine.generate(request_of(), CancelToken())
    for event in itertools.islice(events, 9):
        last = event
    assert isinstance(last, StepDone), "the file is open by now"
    events.close()
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


class Ladder(Planner):
    """A planner whose next rung differs in something that a CPU can do."""

    def __init__(self, cache_dir: Path, rungs: int) -> None:
        super().__init__(cache_dir)
        self.rungs = rungs
        self.failed_in: list[str] = []

    def step_down(self, failed: ExecutionPlan, stage: Stage, request: GenerationRequest) -> ExecutionPlan:
        self.failed_in.append(stage)
        if len(self.failed_in) > self.rungs:
            raise OutOfMemoryError("Memory ran out.", "Choose a smaller size, a smaller model, or close programs.")
        return dataclasses.replace(failed, guidance="sequential")


OUT_OF_MEMORY_AT = {
    "encode text": lambda pipeline: pipeline.text_encoder,
    "first frame": lambda pipeline: pipeline.video_vae.encoder,
    "denoise": lambda pipeline: pipeline.transformer.blocks[2],
    "decode": lambda pipeline: pipeline.video_vae.decoder,
}


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("encode text", torch.OutOfMemoryError("no")),
        ("first frame", MemoryError()),
        ("denoise", torch.OutOfMemoryError("no")),
        ("decode", MemoryError()),
        ("denoise", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    ],
)
def test_out_of_memory_steps_down_and_keeps_the_seed(tmp_path: Path, stage: str, error: Exception) -> None:
    def fail_once(*_: object) -> None:
        handle.remove()
        raise error

    first = load_nano()
    # The preview's map is made while loading, by the same VAE: memory runs out after that.
    LatentPreview.cached(first.video_vae, tmp_path / "cache")
    handle = OUT_OF_MEMORY_AT[stage](first).register_forward_pre_hook(fail_once)
    pipelines = [first]

    def load(_variant: Variant, _store: Store) -> OviPipeline:
        return pipelines.pop() if pipelines else load_nano()

    planner = Ladder(tmp_path / "cache", rungs=1)
    engine = OviEngine(tmp_path, tmp_path / "cache", planner, load=load)
    frame = picture(tmp_path / "first.png")
    events = run(engine, first_frame=frame, seed=None)
    plans = [event for event in events if isinstance(event, Planned)]
    assert planner.failed_in == [stage]
    assert [plan.note != "" for plan in plans] == [False, True]
    assert stage in plans[1].note
    seed = media.read_metadata(clip_of(events).path)["request"]["seed"]
    again = run(OviEngine(tmp_path, tmp_path / "cache"), first_frame=frame, seed=seed)
    assert media.read_metadata(clip_of(again).path)["request"]["seed"] == seed
    assert len(list(tmp_path.glob("*.mp4"))) == 2


def test_memory_that_never_suffices_ends_with_what_would_help(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no")

    def load(_variant: Variant, _store: Store) -> OviPipeline:
        pipeline = load_nano()
        if failing:
            pipeline.transformer.register_forward_pre_hook(fail)
        return pipeline

    failing = True
    planner = Ladder(tmp_path / "cache", rungs=2)
    engine = OviEngine(tmp_path, tmp_path / "cache", planner, load=load)
    events = run(engine)
    assert isinstance(events[-1], Failed)
    assert events[-1].remedy.count(",") >= 2
    assert planner.failed_in == ["denoise"] * 3
    failing = False
    assert isinstance(run(engine)[-1], Finished)


def test_the_plan_is_told_before_and_follows_what_is_forced(tmp_path: Path, nano: OviPipeline) -> None:
    planner = Planner(tmp_path / "cache", Preferences(batched_guidance=False, text_cache=False))
    engine = OviEngine(tmp_path, tmp_path / "cache", planner, load=lambda _variant, _store: nano)
    plan = engine.plan(request_of())
    assert (plan.guidance, plan.text_cache, plan.device) == ("sequential", False, "cpu")
    batches: list[int] = []
    handle = nano.transformer.register_forward_pre_hook(lambda _module, args: batches.append(args[0].shape[0]))
    run(engine)
    handle.remove()
    assert batches == [1, 1, 1, 1]


def test_the_meter_sees_what_is_allocated() -> None:
    with StageMeter("cpu") as meter:
        meter.start_stage("encode text")
        held = np.ones(50_000_000)  # 400 MB
        time.sleep(4 * INTERVAL)
        del held
        meter.start_stage("denoise")
        time.sleep(0.01)
        measured = meter.finish()
    assert measured["encode text"].host_bytes - measured["denoise"].host_bytes > 300e6
    assert measured["encode text"].seconds >= 4 * INTERVAL


def test_the_model_is_loaded_once(tmp_path: Path) -> None:
    loads: list[str] = []

    def load(variant: Variant, _store: Store) -> OviPipeline:
        loads.append(variant.name)
        return load_nano()

    engine = OviEngine(tmp_path, tmp_path / "cache", load=load)
    run(engine)
    run(engine, seed=4)
    assert loads == ["nano"]
    engine.close()
    run(engine)
    assert loads == ["nano", "nano"]


class TakesTurns(Planner):
    """Every run is planned otherwise than the one before."""

    def __init__(self, cache_dir: Path) -> None:
        super().__init__(cache_dir)
        placements: list[Any] = [("resident", "card"), ("staged", "host"), ("staged", "disk")]
        self.parts = itertools.cycle([ComponentPlan("float32", *placement) for placement in placements])

    def plan(self, request: GenerationRequest, held: Held = NOTHING_HELD) -> ExecutionPlan:
        plan = super().plan(request)
        return dataclasses.replace(plan, components=dict.fromkeys(plan.components, next(self.parts)))


def alive(engine: OviEngine) -> tuple[int, int]:
    """Tensors, and the process's own bytes."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()), engine._held().host_bytes


@pytest.mark.slow
def test_ten_runs_in_a_row_do_not_grow(tmp_path: Path) -> None:
    """Under a new plan each time: no tensor is left over, and the process grows by less than the model."""
    loaded = [load_nano()]
    cache = tmp_path / "cache"
    engine = OviEngine(tmp_path, cache, TakesTurns(cache), load=lambda _variant, _store: loaded.pop())
    for _ in range(3):
        clip_of(run(engine, num_inference_steps=1))
    tensors, held = alive(engine)
    for _ in range(12):  # to the same plan again
        clip_of(run(engine, num_inference_steps=1))
    later, held_later = alive(engine)
    assert later <= tensors
    assert held_later - held < 25e6  # the transformer alone has 28 MB, and would be kept more than once
    assert [path for path in cache.rglob("*.weights") if not path.is_relative_to(cache / "preview")]
    engine.close()
    assert not list(cache.rglob("*.weights"))


def test_another_model_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """What the first one held is free before the second one is loaded."""
    first: list[weakref.ref[torch.nn.Module]] = []
    left: list[int] = []

    def load(variant: Variant, _store: Store) -> OviPipeline:
        gc.collect()
        left.append(sum(reference() is not None for reference in first))
        pipeline = OviPipeline(**load_nano().components, variant=variant.name)
        first.extend(
            weakref.ref(module) for module in pipeline.components.values() if isinstance(module, torch.nn.Module)
        )
        return pipeline

    cache = tmp_path / "cache"
    engine = OviEngine(tmp_path, cache, AsNano(cache), load=load)
    small: Any = {"size": (32, 64), "snap": False, "num_inference_steps": 1, "slg_layer": 1, "modality": "video"}
    for variant in ("nano", "720x720_5s", "nano"):
        clip_of(run(engine, variant=variant, **small))
    assert left == [0, 0, 0]


def test_weights_on_the_disk_are_not_held_in_memory(tmp_path: Path) -> None:
    """They lie in mapped files, which `private_bytes` leaves out: only memory would be given back for another run."""
    cache = tmp_path / "cache"
    pipeline = load_nano()
    engine = OviEngine(tmp_path, cache, TakesTurns(cache), load=lambda _variant, _store: pipeline)
    mapped = {}
    for place in ("card", "host", "disk"):
        clip_of(run(engine, num_inference_steps=1, modality="audio"))
        mapped[place] = {in_a_file(parameter) for parameter in pipeline.transformer.parameters()}
    assert mapped == {"card": {False}, "host": {False}, "disk": {True}}


def in_a_file(parameter: torch.Tensor) -> bool:
    """Whether it lies in a mapped file of weights."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(address, 16) for address in line.split()[0].split("-"))
        if first <= parameter.data_ptr() < last:
            return line.endswith(".weights")
    raise LookupError("not in this process")


class AsNano(Planner):
    """Plans whatever is asked for as if it were nano: the models of these tests are that small."""

    def plan(self, request: GenerationRequest, held: Held = NOTHING_HELD) -> ExecutionPlan:
        return dataclasses.replace(super().plan(request_of().resolved()), variant=request.variant)


@pytest.mark.parametrize(("name", "frames", "samples"), [("720x720_5s", 121, 80_384), ("960x960_10s", 241, 160_768)])
def test_real_lengths(tmp_path: Path, nano: OviPipeline, name: str, frames: int, samples: int) -> None:
    """nano's components in a real variant's geometry, at small pixels."""
    pipeline = OviPipeline(**nano.components, variant=name)
    real = get_variant(name)
    assert (real.num_frames, real.num_samples) == (frames, samples)
    cache = tmp_path / "cache"
    engine = OviEngine(tmp_path, cache, AsNano(cache), load=lambda _variant, _store: pipeline)
    clip = clip_of(run(engine, variant=name, size=(32, 64), snap=False, num_inference_steps=1, slg_layer=1))
    assert clip.num_frames == frames == sum(1 for _ in media.decode_frames(clip.path))
    assert clip.fps == 24
    assert abs(clip.num_samples - samples) <= AAC_FRAME
    assert dataclasses.asdict(clip)["metadata"]["request"]["variant"] == name
