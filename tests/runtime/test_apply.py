"""A plan on nano gives the plain pipeline's clip; taken off, it has left nothing behind.

Every exact combination of placement and setting is held to 1e-6 here. Quantized ones are in `test_quantize.py`; what
needs a card is in `tests/gpu/test_apply_gpu.py` and docs/gpu-checklist.md.
"""

import dataclasses
import functools
import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from ovi_studio.errors import EngineError
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.sampler import FusedSampler, Guidance, TextStates
from ovi_studio.runtime.apply import AppliedPlan, must_reload
from ovi_studio.runtime.execution_plan import ComponentPlan, ExecutionPlan, Parallel
from ovi_studio.runtime.step_cache import FirstBlockCache
from ovi_studio.runtime.streaming import ForwardWraps
from ovi_studio.weights.nano import load_nano
from tests.runtime.plans import PLAIN, plan_of, streamed

PROMPT = "A red face says <S>seven<E>. Audio: a clear voice"
STAGED = ComponentPlan("float32", "staged", "host")
STAGED_DISK = ComponentPlan("float32", "staged", "disk")


@pytest.fixture(scope="module")
def nano() -> OviPipeline:
    pipeline = load_nano()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(
    pipeline: OviPipeline,
    plan: ExecutionPlan,
    folder: Path,
    image: bool = False,
    modality: Any = "both",
    steps: int = 2,
    skip_layer: int = 1,
) -> list[torch.Tensor]:
    """Text states, latents and decoded ends of a short run under the plan, on the CPU."""
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    out: list[torch.Tensor] = []
    with torch.no_grad(), AppliedPlan(pipeline, plan, folder) as placed:
        with placed.stage("encode text"):
            text = pipeline.encode_prompts(PROMPT, "dull", "hiss")
        first_frame = None
        if image:
            with placed.stage("first frame"):
                first_frame = pipeline.encode_image(picture, 64, 64)
        with placed.stage("denoise"):
            sampler = FusedSampler(
                pipeline.transformer,
                TextStates(*(x.to(pipeline.transformer.dtype) for x in vars(text).values())),
                Guidance(skip_layer=skip_layer, batched=plan.guidance == "batched"),
                "unipc",
                5.0,
                steps,
                first_frame,
                plan.text_cache,
            )
            latents = sampler.begin(pipeline.prepare_noise(64, 64, 5, 16, modality=modality, seed=3))
            for index in range(steps):
                latents = sampler.step(latents, index)
        with placed.stage("decode"):
            out += [text.positive, *(x for x in (latents.video, latents.audio) if x is not None)]
            if latents.audio is not None:
                out.append(pipeline.decode_audio(latents.audio))
            if latents.video is not None:
                out += list(placed.decode_video(latents.video))
    return [tensor.float().cpu() for tensor in out]


def tensors_of(pipeline: OviPipeline) -> dict[str, torch.Tensor]:
    components = {name: m for name, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
    return {f"{name}.{key}": value for name, m in components.items() for key, value in m.state_dict().items()}


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], error: float = 1e-6) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=error, rtol=error)


EXACT = {
    "resident": plan_of(),
    "all staged": plan_of(default=STAGED),
    "all staged from disk": plan_of(default=STAGED_DISK),
    "transformer streamed": plan_of(transformer=streamed()),
    "transformer streamed, 1 block stays": plan_of(transformer=streamed(resident=1)),
    "transformer streamed, 3 blocks stay": plan_of(transformer=streamed(resident=3)),
    "transformer streamed, all blocks stay": plan_of(transformer=streamed(resident=4)),
    "transformer streamed with what is outside": plan_of(transformer=streamed(outside=False)),
    "transformer streamed from disk": plan_of(transformer=streamed(home="disk", resident=1)),
    "transformer streamed from disk with what is outside": plan_of(transformer=streamed(home="disk", outside=False)),
    "text encoder streamed": plan_of(text_encoder=streamed()),
    "text encoder streamed with what is outside": plan_of(text_encoder=streamed(outside=False, resident=2)),
    "everything streamed or staged": plan_of(default=STAGED, transformer=streamed(), text_encoder=streamed()),
}


@pytest.fixture(scope="module")
def plain(nano: OviPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[torch.Tensor]]:
    """The clip of the plain pipeline, for both ways of guidance."""
    folder = tmp_path_factory.mktemp("plain")
    return {guidance: run(nano, plan_of(guidance=guidance), folder) for guidance in ("batched", "sequential")}


@pytest.mark.parametrize("guidance", ["batched", "sequential"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_plans_give_the_plain_clip(
    nano: OviPipeline, plain: dict[str, list[torch.Tensor]], tmp_path: Path, name: str, guidance: Any
) -> None:
    """Block 1 is skipped in the negative pass: for one sample of two when batched, whole when not."""
    plan, expected = dataclasses.replace(EXACT[name], guidance=guidance), plain[guidance]
    before = {key: value.clone() for key, value in tensors_of(nano).items()}
    assert_same(run(nano, plan, tmp_path), expected)
    after = tensors_of(nano)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("skip_layer", [0, 2, 3])
@pytest.mark.parametrize("image", [False, True])
def test_streaming_with_a_first_frame_and_other_skipped_blocks(
    nano: OviPipeline, tmp_path: Path, image: bool, skip_layer: int
) -> None:
    plan = plan_of(default=STAGED, transformer=streamed(resident=1, outside=False), text_cache=False)
    expected = run(nano, plan_of(text_cache=False), tmp_path, image=image, skip_layer=skip_layer)
    assert_same(run(nano, plan, tmp_path, image=image, skip_layer=skip_layer), expected)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_streaming_one_modality(nano: OviPipeline, tmp_path: Path, modality: str) -> None:
    plan = plan_of(transformer=streamed(outside=False), text_encoder=streamed())
    expected = run(nano, plan_of(), tmp_path, modality=modality)
    assert_same(run(nano, plan, tmp_path, modality=modality), expected)


@torch.no_grad()
def test_projected_text_is_that_of_the_plain_model(nano: OviPipeline, tmp_path: Path) -> None:
    states = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(1))
    expected = nano.transformer.project_text(states, states)
    plan = plan_of(transformer=streamed(), step_cache="first_block")
    with AppliedPlan(nano, plan, tmp_path) as placed, placed.stage("denoise"):
        found = nano.transformer.project_text(states, states)
    for block, other in zip(found, expected, strict=True):
        for key_value, plain in zip(block, other, strict=True):
            assert_same(list(key_value), list(plain))


# --- Settings ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("transformer", [PLAIN, streamed(outside=False)], ids=["resident", "streamed"])
@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_feed_forward_in_parts(nano: OviPipeline, tmp_path: Path, chunks: int, transformer: ComponentPlan) -> None:
    """One forward; over a run the guidance scale enlarges what matrix products round differently."""
    draw = torch.Generator().manual_seed(1)
    inputs = (
        torch.randn(2, 16, 3, 4, 4, generator=draw),
        torch.randn(2, 9, 8, generator=draw),
        torch.tensor([500.0]),
        torch.randn(2, 7, 128, generator=draw),
    )
    expected = nano.transformer(*inputs)
    plan = plan_of(ffn_chunks=chunks, transformer=transformer)
    with AppliedPlan(nano, plan, tmp_path) as placed, placed.stage("denoise"):
        found = nano.transformer(*inputs)
    for a, b in ((found.video, expected.video), (found.audio, expected.audio)):
        assert (a - b).norm() / b.norm() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("tiling", ["tiled", "tile_by_tile"])
def test_tiles(nano: OviPipeline, tmp_path: Path, tiling: Any) -> None:
    """As the library's own tiled decode, whatever the order of the tiles; and off again after the stage."""
    vae = nano.video_vae
    latents = torch.randn(1, 16, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    vae.enable_tiling(64, 64, 48, 48)
    expected = vae.decode(latents * std + mean).sample[0].transpose(0, 1)
    vae.disable_tiling()
    with AppliedPlan(nano, plan_of(vae_tiling=tiling), tmp_path) as placed:
        assert not vae.use_tiling
        with placed.stage("decode"):
            frames = torch.cat(list(placed.decode_video(latents)))
        assert not vae.use_tiling
    vae.enable_tiling(256, 256, 192, 192)  # the library's own sizes
    vae.disable_tiling()
    assert_same([frames], [expected])


def test_attention_backend_is_the_transformers_own(nano: OviPipeline, tmp_path: Path) -> None:
    processors = [m.processor for m in nano.transformer.modules() if hasattr(m, "processor")]
    expected = run(nano, plan_of(), tmp_path)
    plan: Any = dataclasses.replace(plan_of(), attention_backend="_native_math")
    with AppliedPlan(nano, plan, tmp_path):
        assert {processor._attention_backend.value for processor in processors} == {"_native_math"}
        assert _AttentionBackendRegistry.get_active_backend()[0].value == "native"
    assert {processor._attention_backend for processor in processors} == {None}
    assert_same(run(nano, plan, tmp_path), expected, 1e-4)


class CountedBlocks:
    """Counts how often each block's own code is run."""

    def __init__(self, pipeline: OviPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = [0] * len(pipeline.transformer.blocks)
        blocks = list(pipeline.transformer.blocks)
        original = type(blocks[0])._run

        def counted(block: Any, *args: Any) -> Any:
            self.counts[blocks.index(block)] += 1
            return original(block, *args)

        monkeypatch.setattr(type(blocks[0]), "_run", counted)


REUSING = plan_of(step_cache="first_block", step_cache_threshold=1e9)


@pytest.mark.parametrize("resident", [0, 1])
@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_step_cache_leaves_blocks_out(
    nano: OviPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guidance: Any, resident: int
) -> None:
    """Where every step counts as similar, the other blocks run in the first step only, and are not streamed after."""
    plan = dataclasses.replace(REUSING, guidance=guidance)
    expected = run(nano, plan, tmp_path, steps=6, skip_layer=0)
    plan = dataclasses.replace(plan, components=plan.components | {"transformer": streamed(resident=resident)})
    for _ in range(2):  # a run starts without the memory of the one before
        counted = CountedBlocks(nano, monkeypatch)
        assert_same(run(nano, plan, tmp_path, steps=6, skip_layer=0), expected)
        passes = 1 if guidance == "batched" else 2
        assert counted.counts == [6 * passes, passes, passes, passes]
        monkeypatch.undo()


@torch.no_grad()
def test_step_cache_serves_both_streams(nano: OviPipeline, tmp_path: Path) -> None:
    """The second forward is its own first block's output plus what the other blocks added in the first forward."""
    blocks = list(nano.transformer.blocks)
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(1, 7, 128, generator=draw)
    steps = [
        (torch.randn(1, 16, 3, 4, 4, generator=draw), torch.randn(1, 9, 8, generator=draw), torch.tensor([t]), text)
        for t in (900.0, 850.0)
    ]
    with AppliedPlan(nano, REUSING, tmp_path) as placed, placed.stage("denoise"):
        _, found = (nano.transformer(*step) for step in steps)

    outputs: list[Any] = []
    handles = [block.register_forward_hook(lambda *args: outputs.append(args[2])) for block in (blocks[0], blocks[-1])]
    nano.transformer(*steps[0])
    for handle in handles:
        handle.remove()
    added = [last - first for first, last in zip(*outputs, strict=True)]
    wraps = ForwardWraps()
    for block in blocks[1:-1]:
        wraps.replace(block, lambda video, audio, *_: (video, audio))
    wraps.replace(blocks[-1], lambda video, audio, *_: (video + added[0], audio + added[1]))
    expected = nano.transformer(*steps[1])
    wraps.remove()
    assert_same([found.video, found.audio], [expected.video, expected.audio], 2e-6)


@torch.no_grad()
def test_step_cache_forgets_what_guidance_no_longer_asks_for(nano: OviPipeline) -> None:
    """A run whose guidance begins late keeps no more than one that is guided throughout."""
    draw = torch.Generator().manual_seed(1)
    video, audio = torch.randn(1, 16, 3, 4, 4, generator=draw), torch.randn(1, 9, 8, generator=draw)
    one, two = torch.randn(1, 7, 128, generator=draw), torch.randn(2, 7, 128, generator=draw)
    cache, kept = FirstBlockCache(1e9), []
    with cache.on(nano.transformer):
        for text in (one, two, one):
            inputs = (video.expand(len(text), -1, -1, -1, -1), audio.expand(len(text), -1, -1))
            nano.transformer(*inputs, torch.tensor([900.0]), text)
            kept.append([samples for _, samples in cache._memories])
    assert kept == [[1], [2], [1]]


def test_step_cache_that_never_hits_is_exact(nano: OviPipeline, tmp_path: Path) -> None:
    expected = run(nano, plan_of(), tmp_path, steps=3)
    never = dataclasses.replace(REUSING, step_cache_threshold=-1.0)
    assert_same(run(nano, never, tmp_path, steps=3), expected)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_step_cache_serves_a_single_stream(
    nano: OviPipeline, tmp_path: Path, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = CountedBlocks(nano, monkeypatch)
    run(nano, REUSING, tmp_path, modality=modality, steps=3, skip_layer=0)
    assert counted.counts == [3, 1, 1, 1]


@pytest.mark.parametrize("changed", [0, 1], ids=["video", "audio"])
@torch.no_grad()
def test_a_change_in_either_stream_runs_all_blocks(
    nano: OviPipeline, tmp_path: Path, changed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = CountedBlocks(nano, monkeypatch)
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(1, 7, 128, generator=draw)
    latents = [torch.randn(1, 16, 3, 4, 4, generator=draw), torch.randn(1, 9, 8, generator=draw)]
    plan = dataclasses.replace(REUSING, step_cache_threshold=0.05)
    with AppliedPlan(nano, plan, tmp_path) as placed, placed.stage("denoise"):
        for _ in range(2):
            nano.transformer(*latents, torch.tensor([900.0]), text)
        assert counted.counts == [2, 1, 1, 1]
        latents[changed] = -latents[changed]
        nano.transformer(*latents, torch.tensor([900.0]), text)
        assert counted.counts == [3, 2, 2, 2]


def test_compiled_blocks(nano: OviPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code inside of streaming and feed-forward parts, down to the operations that a backend is given.

    Generating C++ of them takes minutes and is left out; the card's test has Triton. All blocks share three graphs:
    for latents that both texts share, for two samples, and for the one that does not skip.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    expected = run(nano, plan_of(), tmp_path)
    plan = plan_of(compile=True, ffn_chunks=2, transformer=streamed(resident=1))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_same(run(nano, plan, tmp_path), expected, 1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@torch.no_grad()
def test_compiled_blocks_serve_every_run(nano: OviPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other prompts, seeds, scales and step counts compile nothing; a third size neither: the second was for any."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    with AppliedPlan(nano, plan_of(compile=True), tmp_path) as placed, placed.stage("denoise"):

        def sample(text: torch.Tensor, size: tuple[int, int, int], steps: int, scale: float, seed: int) -> None:
            interval = (0.0, 0.6)  # steps of one pass too
            guidance = Guidance(scale, scale, 1, video_interval=interval, audio_interval=interval)
            sampler = FusedSampler(nano.transformer, TextStates(text, -text, text / 2), guidance, "euler", 5.0, steps)
            latents = sampler.begin(nano.prepare_noise(*size, 16, seed=seed))
            for index in range(steps):
                latents = sampler.step(latents, index)

        states = nano.encode_prompt(PROMPT)
        sample(states, (64, 64, 5), 3, 4.0, 1)
        with torch._dynamo.config.patch(error_on_recompile=True):
            sample(states.flip(2), (64, 64, 5), 5, 2.5, 2)
        sample(states, (64, 96, 9), 3, 4.0, 1)
        with torch._dynamo.config.patch(error_on_recompile=True):
            sample(states, (96, 128, 13), 4, 3.0, 3)


# --- Lifetime ---------------------------------------------------------------------------------------------


def traces(pipeline: OviPipeline) -> list[str]:
    """What a plan could have left on the modules."""
    modules = [m for m in pipeline.components.values() if isinstance(m, torch.nn.Module)]
    return [
        f"{type(part).__name__}.{name}"
        for module in modules
        for part in module.modules()
        for name in ("forward", "_hf_hook", "parts")
        if name in vars(part)
    ] + [type(part).__name__ for module in modules for part in module.modules() if part._forward_pre_hooks]


EVERYTHING = plan_of(
    default=STAGED_DISK,
    transformer=streamed(home="disk", resident=1, outside=False),
    text_encoder=streamed(),
    ffn_chunks=2,
    step_cache="first_block",
    compile=True,
    vae_tiling="tile_by_tile",
)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    pipeline = load_nano()
    before = {key: value.clone() for key, value in tensors_of(pipeline).items()}
    placed = AppliedPlan(pipeline, EVERYTHING, tmp_path)
    assert traces(pipeline)
    assert list(tmp_path.iterdir())
    placed.close()
    placed.close()
    assert not traces(pipeline)
    assert not list(tmp_path.iterdir())
    assert not pipeline.transformer.is_cache_enabled
    after = tensors_of(pipeline)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_stage_that_fails_sends_everything_home(nano: OviPipeline, tmp_path: Path) -> None:
    homes = {key: value.data_ptr() for key, value in tensors_of(nano).items() if key.startswith("video_vae")}
    with AppliedPlan(nano, plan_of(video_vae=STAGED, vae_tiling="tiled"), tmp_path) as placed:
        stage = placed.stage("decode")
        stage.__enter__()
        away = {key: value.data_ptr() for key, value in tensors_of(nano).items() if key in homes}
        assert all(away[key] != homes[key] for key in homes)
        error = ZeroDivisionError()
        assert not stage.__exit__(type(error), error, None)
        assert {key: value.data_ptr() for key, value in tensors_of(nano).items() if key in homes} == homes
        assert not nano.video_vae.use_tiling


def test_a_forward_that_fails_midway_can_be_followed_by_another(nano: OviPipeline, tmp_path: Path) -> None:
    expected = run(nano, plan_of(), tmp_path)
    plan = plan_of(transformer=streamed())

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with AppliedPlan(nano, plan, tmp_path) as placed, torch.no_grad():
        text = nano.encode_prompts(PROMPT, "dull", "hiss")
        noise = nano.prepare_noise(64, 64, 5, 16, seed=3)
        with placed.stage("denoise"):
            sampler = FusedSampler(nano.transformer, text, Guidance(skip_layer=1), "unipc", 5.0, 2)
            latents = sampler.begin(noise)
            hook = nano.transformer.blocks[2].register_forward_pre_hook(fail)
            with pytest.raises(ZeroDivisionError):
                sampler.step(latents, 0)
            hook.remove()
            for index in range(2):
                latents = sampler.step(latents, index)
    assert latents.video is not None
    assert latents.audio is not None
    assert_same([latents.video, latents.audio], expected[1:3])


def test_a_plan_that_cannot_be_put_on_leaves_the_pipeline_alone(nano: OviPipeline, tmp_path: Path) -> None:
    for plan in (
        plan_of(variant="720x720_5s"),
        plan_of(parallel=Parallel(gpus=2)),
    ):
        with pytest.raises(EngineError):
            AppliedPlan(nano, plan, tmp_path)
    missing: Any = dataclasses.replace(EVERYTHING, attention_backend="no such kernel", compile=False)
    with pytest.raises(EngineError, match="no such kernel"):
        AppliedPlan(nano, missing, tmp_path)
    assert not traces(nano)
    assert not list(tmp_path.iterdir())


def test_discarding_lets_go_of_what_is_on_the_device(tmp_path: Path) -> None:
    pipeline = load_nano()
    placed = AppliedPlan(pipeline, plan_of(), tmp_path)
    placed.close("discard")
    assert sum(p.numel() for p in pipeline.transformer.parameters()) == 0


def test_ten_runs_in_a_row_do_not_grow(nano: OviPipeline, tmp_path: Path) -> None:
    """Plans change every time; after a warm-up no tensor is left over, and the process grows by less than a model."""
    plans = [plan_of(), EXACT["everything streamed or staged"], EXACT["transformer streamed from disk"]]
    process = psutil.Process()

    def alive() -> tuple[int, int]:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()), process.memory_info().rss

    for plan in plans:
        run(nano, plan, tmp_path)
    tensors, rss = alive()
    for index in range(10):
        run(nano, plans[index % len(plans)], tmp_path)
    later, rss_later = alive()
    assert later <= tensors
    assert rss_later - rss < 15e6  # the transformer alone has 28 MB


def test_narrowed_weights_must_be_reloaded_for_a_wider_plan(tmp_path: Path) -> None:
    pipeline = load_nano()
    bf16 = plan_of(transformer=ComponentPlan("bf16", "staged", "host"))
    assert not must_reload(pipeline, bf16)
    AppliedPlan(pipeline, bf16, tmp_path).close()
    assert pipeline.transformer.dtype == torch.bfloat16
    assert not must_reload(pipeline, bf16)
    assert must_reload(pipeline, plan_of())
    with pytest.raises(EngineError, match="Load the model again"):
        AppliedPlan(pipeline, plan_of(), tmp_path)
    assert not traces(pipeline)


def test_files_are_gone_when_the_plan_is(nano: OviPipeline) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with AppliedPlan(nano, EXACT["all staged from disk"], Path(folder)):
            assert len(list(Path(folder).iterdir())) == 5
        assert not list(Path(folder).iterdir())
