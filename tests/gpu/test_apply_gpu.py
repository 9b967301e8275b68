"""What only a graphics card can show of a plan on a pipeline; see docs/gpu-checklist.md."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from ovi_studio.runtime import memory
from ovi_studio.runtime.apply import AppliedPlan
from ovi_studio.runtime.execution_plan import ComponentPlan
from ovi_studio.weights.nano import load_nano
from tests.runtime.plans import plan_of
from tests.runtime.test_apply import run
from tests.runtime.test_quantize import NEEDS, PLACES, relative, velocities

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
CARD = "cuda:0"
PRECISIONS = ("float32", "bf16", "fp8_compute", "fp8_storage", "int8")


def need(precision: str) -> None:
    if precision in NEEDS:
        pytest.importorskip(NEEDS[precision])
    if precision == "fp8_compute" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")


def component(precision: str, place: str) -> Any:
    placement, home, resident, outside = PLACES[place]
    values: Any = (precision, placement, home, 4, resident, outside)
    return ComponentPlan(*values)


def on_card(**changes: Any) -> Any:
    return plan_of(CARD, **changes)


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_placements_change_no_bit(tmp_path: Path, precision: str, place: str) -> None:
    """Streaming over pinned memory and a stream of its own gives what the resident model gives, run after run."""
    need(precision)
    pipeline = load_nano()
    plans = [component(precision, name) for name in ("resident", place, place)]
    found = [run(pipeline, on_card(transformer=plan), tmp_path, steps=4) for plan in plans]
    for a, b, c in zip(*found, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b, c)
    assert all(p.device.type == "cpu" for p in pipeline.transformer.parameters())


def test_the_card_gives_the_clip_of_the_cpu(tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    pipeline = load_nano()
    expected = run(pipeline, plan_of(), tmp_path, image=True)
    for placement in ("resident", "staged"):
        default: Any = ComponentPlan("float32", placement, "host")
        found = run(pipeline, plan_of(CARD, default=default), tmp_path, image=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp8_compute", "fp8_storage", "int8"])
def test_quantized_on_the_card_is_quantized_on_the_cpu(tmp_path: Path, precision: str) -> None:
    """The same weights to within bf16's rounding of their products."""
    need(precision)
    found = []
    for device in ("cpu", CARD):
        pipeline = load_nano()
        plan = plan_of(device, transformer=component(precision, "resident"))
        with AppliedPlan(pipeline, plan, tmp_path):
            found.append(run_velocities(pipeline, device))
    for a, b in zip(*found, strict=True):
        assert relative(a, b) < 0.02


def run_velocities(pipeline: Any, device: str) -> list[torch.Tensor]:
    """`velocities`, with inputs drawn on the CPU and moved."""
    transformer = pipeline.transformer
    moved = transformer.register_forward_pre_hook(
        lambda _, args, kwargs: (tuple(x.to(device) for x in args), kwargs), with_kwargs=True
    )
    out = velocities(pipeline)
    moved.remove()
    return [x.cpu() for x in out]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_quantized_text_encoder_takes_turns(tmp_path: Path, precision: str) -> None:
    need(precision)
    pipeline = load_nano()
    plan = on_card(text_encoder=component(precision, "staged"))
    before = torch.cuda.memory_allocated()
    with AppliedPlan(pipeline, plan, tmp_path) as placed:
        states = []
        for _ in range(3):
            with placed.stage("encode text"):
                states.append(pipeline.encode_prompt("two words, and some more").cpu())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    assert states[0].isfinite().all()
    del placed
    assert torch.cuda.memory_allocated() == before


@torch.no_grad()
def test_streaming_holds_two_blocks(tmp_path: Path) -> None:
    """Beside what stays; and nothing after the stage."""
    pipeline = load_nano()
    blocks = memory.transformer_blocks(pipeline.variant, "bf16")
    for resident, outside in ((0, True), (1, True), (0, False)):
        values: Any = ("bf16", "streamed", "host", 4, resident, outside)
        plan = on_card(transformer=ComponentPlan(*values))
        with AppliedPlan(pipeline, plan, tmp_path) as placed:
            others = torch.cuda.memory_allocated()
            with placed.stage("denoise"):
                held = torch.cuda.memory_allocated() - others
            assert torch.cuda.memory_allocated() == others
        expected = (resident + memory.PREFETCHED_BLOCKS) * blocks.block + (blocks.outside if outside else 0)
        assert held == pytest.approx(expected, rel=0.02)  # every tensor begins at a multiple of 512 bytes


@torch.no_grad()
def test_blocks_come_from_pinned_memory_while_others_run(tmp_path: Path) -> None:
    pipeline = load_nano()
    plan = on_card(transformer=component("bf16", "streamed"))
    with AppliedPlan(pipeline, plan, tmp_path) as placed, placed.stage("denoise"):
        assert all(p.is_pinned() for p in pipeline.transformer.blocks.parameters())
        run_velocities(pipeline, CARD)
        with torch.profiler.profile() as profile:
            run_velocities(pipeline, CARD)
            torch.cuda.synchronize()
        events = [event for event in profile.events() if "Memcpy HtoD" in event.name]
    assert sum("Pinned" in event.name for event in events) >= 4
    assert not any(p.is_pinned() for p in pipeline.transformer.parameters())


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "fp8_compute", "int8"])
@pytest.mark.parametrize("place", ["resident", "streamed"])
def test_compiled_blocks(tmp_path: Path, precision: str, place: str) -> None:
    need(precision)
    pipeline = load_nano()
    plain = on_card(transformer=component(precision, place))
    expected = run(pipeline, plain, tmp_path)
    found = run(pipeline, dataclasses.replace(plain, compile=True), tmp_path)
    for a, b in zip(found[1:3], expected[1:3], strict=True):
        assert relative(a, b) < 0.05


@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("place", ["resident", "streamed"])
def test_step_cache_reuses_on_the_card_what_it_reuses_on_the_cpu(tmp_path: Path, place: str, compiled: bool) -> None:
    pipeline = load_nano()
    reusing: Any = {"step_cache": "first_block", "step_cache_threshold": 1e9}
    expected = run(pipeline, plan_of(**reusing), tmp_path, steps=4)
    plan = on_card(transformer=component("float32", place), compile=compiled, **reusing)
    found = run(pipeline, plan, tmp_path, steps=4)
    for a, b in zip(found[1:3], expected[1:3], strict=True):
        assert relative(a, b) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("backend", ["_native_cudnn", "flash", "_flash_3", "sage"])
def test_attention_kernels(tmp_path: Path, backend: Any) -> None:
    pytest.importorskip(
        {"flash": "flash_attn", "_flash_3": "flash_attn_interface", "sage": "sageattention"}.get(backend, "torch")
    )
    pipeline = load_nano()
    plain = on_card(transformer=component("bf16", "resident"))
    expected = run(pipeline, plain, tmp_path)
    found = run(pipeline, dataclasses.replace(plain, attention_backend=backend), tmp_path)
    for a, b in zip(found[1:3], expected[1:3], strict=True):
        assert relative(a, b) < 0.05


def test_ten_runs_leave_nothing_on_the_card(tmp_path: Path) -> None:
    pipeline = load_nano()
    places = list(PLACES)
    run(pipeline, on_card(transformer=component("bf16", "resident")), tmp_path)
    before = torch.cuda.memory_allocated()
    for index in range(10):
        run(pipeline, on_card(transformer=component("bf16", places[index % len(places)])), tmp_path)
        assert torch.cuda.memory_allocated() <= before
