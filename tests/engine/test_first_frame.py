"""A first frame that is drawn: text → picture → clip in one go, with tiny models out of a store."""

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from ovi_studio import media
from ovi_studio.engine.engine import OviEngine
from ovi_studio.engine.first_frame import KEPT, FirstFrames
from ovi_studio.events import (
    Cancelled,
    CancelToken,
    Event,
    Failed,
    Finished,
    FrameDrawn,
    Planned,
    Stage,
    StageStarted,
    StepDone,
)
from ovi_studio.images import image_digest
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.request import GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.runtime.execution_plan import ComponentPlan, ExecutionPlan
from ovi_studio.runtime.flux import at_work
from ovi_studio.runtime.planner import Planner
from ovi_studio.variants import Variant
from ovi_studio.weights.image_model import image_model
from ovi_studio.weights.nano import load_nano
from ovi_studio.weights.store import Store
from tests.flux import SIDE, put_in_store, tiny_flux

STEPS = 28
WITH_A_FRAME = ["draw frame", "load", "encode text", "first frame", "denoise", "decode", "mux"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    put_in_store(tiny_flux(), store)
    return store


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests that do not mind what was drawn before."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def nano() -> OviPipeline:
    return load_nano()


class Loads:
    """Loads nano, anew or always the same, and knows which pipelines are alive."""

    def __init__(self, nano: OviPipeline | None = None) -> None:
        self.nano = nano
        self.made: list[weakref.ref[nn.Module]] = []

    def __call__(self, _variant: Variant, _store: Store) -> OviPipeline:
        pipeline = self.nano or load_nano()
        self.made.append(weakref.ref(pipeline.transformer))
        return pipeline


def engine_with(store: Store, folder: Path, cache: Path, load: Callable[..., OviPipeline]) -> OviEngine:
    return OviEngine(folder, cache, Planner(cache, image_model=lambda: image_model(store)), store, load)


@pytest.fixture
def engine(store: Store, tmp_path: Path, cache: Path, nano: OviPipeline) -> OviEngine:
    return engine_with(store, tmp_path, cache, Loads(nano))


def request_of(**fields: Any) -> GenerationRequest:
    settings = {"prompt": "A face says <S>seven<E>. Audio: a voice", "seed": 3, "num_inference_steps": 1}
    return GenerationRequest.create(**({"first_frame": GeneratedFrame(seed=5)} | settings | fields))


def stages(events: list[Event]) -> list[Stage]:
    return [event.stage for event in events if isinstance(event, StageStarted)]


def plans(events: list[Event]) -> list[ExecutionPlan]:
    return [event.plan for event in events if isinstance(event, Planned) and isinstance(event.plan, ExecutionPlan)]


def drawn(events: list[Event]) -> FrameDrawn:
    (event,) = (event for event in events if isinstance(event, FrameDrawn))
    return event


def draw(engine: OviEngine, **fields: Any) -> Path:
    events = list(engine.draw(request_of(**fields), CancelToken()))
    assert isinstance(events[-1], FrameDrawn), events[-1]
    return events[-1].path


def frames(path: Path) -> np.ndarray:
    return np.stack(list(media.decode_frames(path)))


def test_text_picture_clip_in_one_go(store: Store, tmp_path: Path, nano: OviPipeline) -> None:
    engine = engine_with(store, tmp_path, tmp_path / "cache", Loads(nano))
    events = list(engine.generate(request_of(aspect="2:1"), CancelToken()))
    assert isinstance(events[-1], Finished), events[-1]
    assert stages(events) == WITH_A_FRAME
    assert [list(plan.stages) for plan in plans(events)] == [WITH_A_FRAME]
    assert set(events[-1].measured) == set(WITH_A_FRAME)
    picture = drawn(events)
    with PIL.Image.open(picture.path) as image:
        assert image.size == (96, 48), "the clip's aspect at the model's area, in multiples of 16"
    at = events.index(picture)
    steps = [event for event in events[:at] if isinstance(event, StepDone)]
    assert [(step.step, step.steps) for step in steps] == [(n, STEPS) for n in range(1, STEPS + 1)]
    assert all(step.preview[:2] == b"\xff\xd8" and len(step.preview) < 20_000 for step in steps)
    assert steps[-1].seconds_left > 0, "the clip is to come"

    # It goes on exactly as a clip of that image, and comes again out of what the clip carries.
    copy = tmp_path / "copy.png"
    copy.write_bytes(picture.path.read_bytes())
    given = ImageFrame(path=str(copy), name=copy.name, sha256=image_digest(copy))
    other = list(engine.generate(request_of(aspect="2:1", first_frame=given), CancelToken()))[-1]
    assert np.array_equal(frames(other.clip.path), frames(events[-1].clip.path))
    stored = GenerationRequest.from_embedded(media.read_metadata(events[-1].clip.path)["request"])
    assert stored.first_frame == GeneratedFrame(seed=5)
    again = list(engine.generate(stored, CancelToken()))
    assert again[-1].clip.path.read_bytes() == events[-1].clip.path.read_bytes()

    # It was not drawn again: nothing of the image model was planned, loaded or measured.
    assert stages(again) == WITH_A_FRAME[1:]
    assert drawn(again) == picture
    (plan,) = plans(again)
    assert not any(name.startswith("flux") for name in plan.components)
    assert list(plan.stages) == WITH_A_FRAME[1:] == list(again[-1].measured)


def test_the_same_seed_draws_the_same_bytes(store: Store, tmp_path: Path, nano: OviPipeline) -> None:
    files = [
        draw(engine_with(store, tmp_path, tmp_path / name, Loads(nano)), first_frame=frame).read_bytes()
        for name, frame in (
            ("one", GeneratedFrame(seed=5)),
            ("two", GeneratedFrame(seed=5)),
            ("three", GeneratedFrame()),
        )
    ]
    assert files[0] == files[1] != files[2]


def test_what_decides_a_picture(engine: OviEngine) -> None:
    first = draw(engine)
    assert draw(engine, prompt="A face  says <S>anything<E>.", seed=99) != first, "another space is another prompt"
    same = [
        {"seed": 99},
        {"prompt": "A face says <S>another word<E>. Audio: thunder", "num_inference_steps": 4},
        {"first_frame": GeneratedFrame(prompt="A face says .", seed=5)},
        {"prompt": "Nothing alike.", "first_frame": GeneratedFrame(prompt="A face says <S>x<E>.", seed=5)},
    ]
    for fields in same:
        events = list(engine.draw(request_of(**fields), CancelToken()))
        assert events == [FrameDrawn(first, 5)], fields
    with PIL.Image.open(first) as image:
        assert image.size == (SIDE, SIDE)


def test_tags_never_reach_the_image_model(store: Store, tmp_path: Path, nano: OviPipeline) -> None:
    seen = []

    class Recording(FirstFrames):
        def _drawing(self, request: GenerationRequest, plan: ExecutionPlan) -> Any:
            drawing = super()._drawing(request, plan)
            seen.append(drawing.prompt)
            return drawing

    engine = engine_with(store, tmp_path, tmp_path / "cache", Loads(nano))
    engine._frames = Recording(tmp_path / "cache", store)
    draw(engine, prompt="A face <AUDCAP>wind<ENDAUDCAP>says <S>seven<E> and nods. Audio: a voice")
    assert set(seen) == {"A face says  and nods."}


def test_the_two_models_are_never_in_memory_together(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at whenever one of them is loaded: no weights of the other are held anywhere."""
    load = Loads()
    painters: list[weakref.ref[nn.Module]] = []
    seen: list[tuple[str, int]] = []
    original = FluxTransformer2DModel.from_pretrained

    def held(modules: list[weakref.ref[nn.Module]]) -> int:
        alive = [module for module in (reference() for reference in modules) if module is not None]
        return sum(p.nbytes for module in alive for p in module.parameters() if p.device.type != "meta")

    def load_painter(*args: Any, **kwargs: Any) -> Any:
        seen.append(("flux", held(load.made)))
        made = original(*args, **kwargs)
        painters.append(weakref.ref(made[0]))
        return made

    def load_nano_noting(variant: Variant, store: Store) -> OviPipeline:
        seen.append(("nano", held(painters)))
        return load(variant, store)

    monkeypatch.setattr(FluxTransformer2DModel, "from_pretrained", load_painter)
    gc.disable()  # references go by themselves, not when the collector happens to come by
    try:
        engine = engine_with(store, tmp_path, tmp_path / "cache", load_nano_noting)
        assert isinstance(list(engine.generate(request_of(), CancelToken()))[-1], Finished)
        draw(engine, first_frame=GeneratedFrame(seed=6))
        assert seen == [("flux", 0), ("nano", 0), ("flux", 0)]
    finally:
        gc.enable()


def _hook(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """`act` is told, at each forward of the image transformer's third block, how many there have been."""
    original = FluxTransformer2DModel.from_pretrained
    count = 0

    def told(*_: object) -> None:
        nonlocal count
        count += 1
        act(count)

    def load(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        made[0].single_transformer_blocks[0].register_forward_pre_hook(told)
        return made

    monkeypatch.setattr(FluxTransformer2DModel, "from_pretrained", load)


@pytest.mark.parametrize("whole", [True, False], ids=["clip", "frame"])
def test_cancel_within_a_step(
    whole: bool, store: Store, tmp_path: Path, nano: OviPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = CancelToken()
    entered: list[int] = []

    def act(count: int) -> None:
        entered.append(count)
        if count == 2:
            cancel.cancel()

    _hook(monkeypatch, act)
    engine = engine_with(store, tmp_path, tmp_path / "cache", Loads(nano))
    run = engine.generate if whole else engine.draw
    events = list(run(request_of(), cancel))
    assert isinstance(events[-1], Cancelled)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1], "the second step was left"
    assert entered == [1, 2]
    assert list((tmp_path / "cache").rglob("*.png")) == []
    assert list(tmp_path.glob("*.mp4")) == []


class Ladder(Planner):
    """A planner with a second rung."""

    def __init__(self, cache_dir: Path, store: Store) -> None:
        super().__init__(cache_dir, image_model=lambda: image_model(store))
        self.failed_in: list[str] = []

    def step_down(self, failed: ExecutionPlan, stage: Stage, request: GenerationRequest) -> ExecutionPlan:
        self.failed_in.append(stage)
        return self.plan(request)


@pytest.mark.parametrize("whole", [True, False], ids=["clip", "frame"])
def test_out_of_memory_steps_down(
    whole: bool, store: Store, tmp_path: Path, nano: OviPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(count: int) -> None:
        if count == 2:
            raise torch.OutOfMemoryError("no")

    _hook(monkeypatch, act)
    cache = tmp_path / "cache"
    planner = Ladder(cache, store)
    engine = OviEngine(tmp_path, cache, planner, store, Loads(nano))
    events = list((engine.generate if whole else engine.draw)(request_of(), CancelToken()))
    assert isinstance(events[-1], Finished if whole else FrameDrawn)
    assert planner.failed_in == ["draw frame"]
    notes = [event.note for event in events if isinstance(event, Planned)]
    assert notes[0] == ""
    assert "'draw frame'" in notes[1]
    assert stages(events)[:2] == ["draw frame", "draw frame"]


def test_memory_that_runs_out_later_does_not_draw_again(store: Store, tmp_path: Path) -> None:
    def fail_once(*_: object) -> None:
        handle.remove()
        raise MemoryError

    first = load_nano()
    handle = first.transformer.blocks[1].register_forward_pre_hook(fail_once)
    pipelines = [first]
    cache = tmp_path / "cache"
    planner = Ladder(cache, store)
    engine = OviEngine(tmp_path, cache, planner, store, lambda *_: pipelines.pop() if pipelines else load_nano())
    events = list(engine.generate(request_of(), CancelToken()))
    assert isinstance(events[-1], Finished)
    assert planner.failed_in == ["denoise"]
    assert stages(events).count("draw frame") == 1
    assert ["draw frame" in plan.stages for plan in plans(events)] == [True, False]


def test_weights_that_are_missing_are_told_before_anything_happens(
    store: Store, tmp_path: Path, nano: OviPipeline
) -> None:
    empty, load = Store(tmp_path / "empty"), Loads(nano)
    planner = Planner(tmp_path, image_model=lambda: image_model(store))  # the released one would ask for a card
    engine = OviEngine(tmp_path, tmp_path / "cache", planner, empty, load)
    for run in (engine.generate, engine.draw):
        (event,) = run(request_of(), CancelToken())
        assert isinstance(event, Failed)
        assert event.exit_code == 2
        assert "ovi-studio models download flux-krea" in event.remedy
        assert "https://huggingface.co/black-forest-labs/FLUX.1-Krea-dev" in event.remedy
    assert load.made == []


@pytest.mark.parametrize(
    ("frame", "words"),
    [(None, "no first frame to draw"), (ImageFrame(name="a.png"), "no first frame to draw"),
     (GeneratedFrame(prompt="<S>only words<E>"), "nothing to draw")],
)  # fmt: skip
def test_where_there_is_nothing_to_draw(engine: OviEngine, frame: Any, words: str) -> None:
    (event,) = engine.draw(request_of(first_frame=frame), CancelToken())
    assert isinstance(event, Failed)
    assert words in event.problem


def test_the_cache_keeps_the_newest_and_minds_no_damage(engine: OviEngine, cache: Path) -> None:
    path = draw(engine)
    good = path.read_bytes()
    path.write_bytes(b"no picture")
    assert draw(engine) == path
    assert path.read_bytes() == good
    for number in range(KEPT + 5):
        old = path.with_name(f"{number}.png")
        old.write_bytes(good)
        stamp = 1_000_000 + number
        os.utime(old, (stamp, stamp))
    new = draw(engine, first_frame=GeneratedFrame(seed=77))
    kept = {found.name for found in path.parent.glob("*.png")}
    assert len(kept) == KEPT
    assert {path.name, new.name, f"{KEPT + 4}.png"} <= kept
    assert "0.png" not in kept


@pytest.mark.parametrize(
    "planned",
    [
        ComponentPlan("float32", "staged", "disk"),
        ComponentPlan("float32", "streamed", "host", 5),
        ComponentPlan("float32", "streamed", "disk", 5),
        ComponentPlan("int8", "staged", "disk"),
        ComponentPlan("nf4", "staged", "disk"),
    ],
    ids=lambda planned: f"{planned.precision} {planned.placement} {planned.home}",
)
@torch.no_grad()
def test_every_place_gives_the_same_and_leaves_nothing(planned: ComponentPlan, tmp_path: Path) -> None:
    if planned.precision in ("int8", "nf4"):
        pytest.importorskip({"int8": "torchao", "nf4": "bitsandbytes"}[planned.precision])
    transformer = tiny_flux().transformer
    dtype = torch.float32 if planned.precision == "float32" else torch.bfloat16
    nn.Module.to(transformer, dtype)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 16, 16, generator=generator).to(dtype),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([4.5]),
        "pooled_projections": torch.randn(1, 16, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(1, 8, 32, generator=generator).to(dtype),
        "txt_ids": torch.zeros(8, 3),
        "img_ids": torch.zeros(16, 3),
    }
    expected = transformer(**inputs).sample
    with at_work(transformer, planned, torch.device("cpu"), tmp_path):
        for _ in range(2):
            made = transformer(**inputs).sample
    if planned.precision == "float32":
        assert torch.equal(made, expected)
    else:
        error = (made.float() - expected.float()).norm() / expected.float().norm()
        assert 0 < error < (0.02 if planned.precision == "int8" else 0.2)
    assert all(p.device.type == "meta" for p in transformer.parameters())
    assert list(tmp_path.iterdir()) == []
