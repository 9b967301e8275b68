"""Quantized weights: as near to bf16 as measured, the same wherever they are placed, and never back.

Errors are relative L2 of one forward of nano against the same weights in float32 (seeded, random). Thresholds are
the measured error, which stands beside each, and half of it more.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ovi_studio.errors import EngineError
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.runtime.apply import AppliedPlan, must_reload
from ovi_studio.runtime.execution_plan import ComponentPlan
from ovi_studio.runtime.homes import plain_tensors
from ovi_studio.runtime.quantize import Parts, can_become
from ovi_studio.weights.float8 import Float8Linear
from ovi_studio.weights.load import IN_FILES, Destination, load_component
from ovi_studio.weights.nano import load_nano
from tests.runtime.plans import plan_of
from tests.weights import toy

CPU = torch.device("cpu")
# precision → measured error of the video and of the audio velocity
TRANSFORMER_ERRORS = {
    "bf16": (0.0086, 0.0075),
    "fp8_compute": (0.058, 0.051),
    "fp8_storage": (0.044, 0.035),
    "int8": (0.0113, 0.0120),
}
# precision → measured error of text states
TEXT_ERRORS = {"bf16": 0.0108, "int8": 0.0195, "nf4": 0.224}
NEEDS = {"fp8_compute": "torchao", "int8": "torchao", "nf4": "bitsandbytes"}
MARGIN = 1.5


def need(precision: str) -> None:
    if precision in NEEDS:
        pytest.importorskip(NEEDS[precision])


@pytest.fixture(scope="module")
def exact() -> OviPipeline:
    return load_nano()


@pytest.fixture(scope="module")
def pipelines(exact: OviPipeline) -> dict[str, OviPipeline]:
    """A pipeline for each precision, quantized when it is first used."""
    return {}


def pipeline_in(pipelines: dict[str, OviPipeline], precision: str) -> OviPipeline:
    if precision not in pipelines:
        pipelines[precision] = load_nano()
    return pipelines[precision]


def velocities(pipeline: OviPipeline, skip: bool = False) -> list[torch.Tensor]:
    draw, dtype = torch.Generator().manual_seed(1), pipeline.transformer.dtype
    out = pipeline.transformer(
        torch.randn(2, 16, 3, 4, 4, generator=draw).to(dtype),
        torch.randn(2, 16, 8, generator=draw).to(dtype),
        torch.tensor([500.0]),
        torch.randn(2, 32, 128, generator=draw).to(dtype),
        first_frame_is_clean=skip,
        skip_layer=2 if skip else 0,
        skip_from=1 if skip else 0,
    )
    return [out.video.float(), out.audio.float()]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


PLACES = {
    "resident": ("resident", "card", 0, True),
    "staged": ("staged", "host", 0, True),
    "staged from disk": ("staged", "disk", 0, True),
    "streamed": ("streamed", "host", 0, True),
    "streamed, 1 block stays, outside streamed": ("streamed", "host", 1, False),
    "streamed from disk": ("streamed", "disk", 0, True),
}


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("precision", TRANSFORMER_ERRORS)
def test_transformer(
    exact: OviPipeline, pipelines: dict[str, OviPipeline], tmp_path: Path, precision: Any, place: str
) -> None:
    """Within the stated error of float32, and bit by bit the same wherever it is; a block is skipped for one sample."""
    need(precision)
    pipeline = pipeline_in(pipelines, precision)
    placement, home, resident, outside = PLACES[place]
    component: Any = ComponentPlan(precision, placement, home, 4, resident, outside)
    plan = plan_of(transformer=component)
    assert not must_reload(pipeline, plan)
    with AppliedPlan(pipeline, plan, tmp_path) as placed, placed.stage("denoise"):
        assert pipeline.transformer.dtype == torch.bfloat16
        found, skipped = velocities(pipeline), velocities(pipeline, skip=True)
    for name, velocity, expected, measured in zip(
        ("video", "audio"), found, velocities(exact), TRANSFORMER_ERRORS[precision], strict=True
    ):
        assert relative(velocity, expected) < MARGIN * measured, name
    with AppliedPlan(pipeline, plan_of(transformer=ComponentPlan(precision, "resident", "card")), tmp_path):
        for velocity, plain in zip(found + skipped, velocities(pipeline) + velocities(pipeline, True), strict=True):
            assert torch.equal(velocity, plain)


@torch.no_grad()
@pytest.mark.parametrize("place", ["resident", "staged", "streamed"])
@pytest.mark.parametrize("precision", TEXT_ERRORS)
def test_text_encoder(exact: OviPipeline, tmp_path: Path, precision: Any, place: str) -> None:
    need(precision)
    if (precision, place) == ("nf4", "streamed"):
        pytest.skip("bitsandbytes moves a component as a whole; the planner offers no such plan")
    pipeline = load_nano()
    placement, home, resident, outside = PLACES[place]
    component: Any = ComponentPlan(precision, placement, home, 4, resident, outside)
    expected = exact.encode_prompt("two words, and some more")
    with AppliedPlan(pipeline, plan_of(text_encoder=component), tmp_path) as placed, placed.stage("encode text"):
        found = pipeline.encode_prompt("two words, and some more")
    assert relative(found.float(), expected) < MARGIN * TEXT_ERRORS[precision]


@torch.no_grad()
def test_nf4_computes_with_the_weights_it_stands_for(exact: OviPipeline) -> None:
    """Its error is that of 4 bits, and not of how bitsandbytes multiplies."""
    need("nf4")
    functional = pytest.importorskip("bitsandbytes.functional")
    quantized, widened = load_nano(), load_nano()
    encoder: Any = quantized.text_encoder
    Parts(encoder, encoder.encoder.block, "nf4", CPU, CPU).all()
    for layer, plain in zip(encoder.encoder.block.modules(), widened.text_encoder.encoder.block.modules(), strict=True):
        if isinstance(plain, nn.Linear):
            plain.weight.copy_(functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    found, expected = (p.encode_prompt("two words, and some more").float() for p in (quantized, widened))
    assert relative(found, expected) < MARGIN * TEXT_ERRORS["bf16"]


# --- What is quantized ------------------------------------------------------------------------------------


def bytes_of(module: nn.Module) -> int:
    quantized = [plain for tensor in module.parameters() for plain in plain_tensors(tensor)]
    return sum(plain.nbytes for plain in quantized) + sum(buffer.nbytes for buffer in module.buffers())


@pytest.mark.parametrize("precision", ["fp8_compute", "fp8_storage", "int8"])
def test_only_linear_weights_of_blocks_are_quantized(precision: Any) -> None:
    need(precision)
    transformer = load_nano().transformer
    shapes = {name: p.shape for name, p in transformer.named_parameters()}
    linear = {
        f"{name}.weight" for name, m in transformer.named_modules() if isinstance(m, nn.Linear) and "blocks" in name
    }
    Parts(transformer, transformer.blocks, precision, CPU, CPU).all()
    count = 0
    for name, parameter in transformer.named_parameters():
        assert parameter.shape == shapes[name]
        narrow = any(plain.dtype.itemsize == 1 for plain in plain_tensors(parameter))
        assert narrow == (name in linear), name
        assert narrow or parameter.dtype == torch.bfloat16
        count += parameter.numel() * (1 if narrow else 2)
    rows = sum(m.out_features for m in transformer.blocks.modules() if isinstance(m, nn.Linear))
    assert count + 4 * rows <= bytes_of(transformer) <= count + 5 * rows  # int8 also has a zero point a row


def test_fp8_is_multiplied_by_scaled_mm() -> None:
    need("fp8_compute")
    layer = nn.Sequential(nn.Linear(64, 128))
    Parts(layer, [layer], "fp8_compute", CPU, CPU).all()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(torch.randn(3, 64).bfloat16())
    assert "aten::_scaled_mm" in {event.key for event in profile.key_averages()}


def test_fp8_storage_uses_each_rows_full_range() -> None:
    """Without scales, weights of 0.02 would fall into float8's coarse subnormal numbers."""
    layer = nn.Sequential(nn.Linear(256, 64, bias=False))
    with torch.no_grad():
        layer[0].weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    weight = layer[0].weight.detach().clone()
    Parts(layer, [layer], "fp8_storage", CPU, CPU).all()
    widened: Any = layer[0]
    assert relative(widened.widened(torch.float32), weight.bfloat16().float()) < 0.03  # derived: 2^-4 / sqrt(3) = 0.036
    assert relative(weight.to(torch.float8_e4m3fn).float(), weight) > 0.03


# --- What is lost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp8_compute", "fp8_storage", "int8"])
def test_narrowing_that_was_cut_off_goes_on(precision: Any) -> None:
    need(precision)
    module, whole = (nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64)) for _ in range(2))
    whole.load_state_dict(module.state_dict())
    next(Parts(module, module, precision, CPU, CPU).blocks())
    for each in (module, whole):
        Parts(each, each, precision, CPU, CPU).all()
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    assert torch.equal(module(x), whole(x))


@pytest.mark.parametrize("first", ["bf16", "fp8_storage", "int8"])
@pytest.mark.parametrize("then", ["float32", "bf16", "fp8_storage", "int8"])
def test_lost_bits_do_not_come_back(first: Any, then: Any) -> None:
    need(first)
    need(then)
    layer = nn.Sequential(nn.Linear(64, 32))
    assert can_become(layer, then)
    Parts(layer, [layer], first, CPU, CPU).all()
    possible = first == then or (first == "bf16" and then != "float32")
    assert can_become(layer, then) == possible
    if possible:
        Parts(layer, [layer], then, CPU, CPU).all()
    else:
        with pytest.raises(EngineError, match="Load the model again"):
            Parts(layer, [layer], then, CPU, CPU).all()


def test_widening_loses_nothing() -> None:
    layer = nn.Sequential(nn.Linear(64, 32)).bfloat16()
    before = copy.deepcopy(layer.state_dict())
    Parts(layer, [layer], "float32", CPU, CPU).all()
    assert layer[0].weight.dtype == torch.float32
    Parts(layer, [layer], "bf16", CPU, CPU).all()
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def with_adapter() -> OviPipeline:
    """Nano with a random LoRA, in bf16."""
    pipeline = load_nano()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q", "ffn.0", "time_projection.1"], init_lora_weights=False)
        pipeline.transformer.add_adapter(config)
    pipeline.transformer.to(torch.bfloat16)
    return pipeline


@torch.no_grad()
def test_adapters_stay_live_on_weights_that_are_not_narrowed(tmp_path: Path) -> None:
    found = []
    for place in ("resident", "streamed"):
        pipeline = with_adapter()
        plan = plan_of(transformer=ComponentPlan("bf16", *PLACES[place][:2]))
        with AppliedPlan(pipeline, plan, tmp_path) as placed, placed.stage("denoise"):
            found.append(velocities(pipeline))
        assert isinstance(pipeline.transformer.get_submodule("blocks.0.video.self_attn.q"), BaseTunerLayer)
    for streamed, resident in zip(*found, strict=True):
        assert torch.equal(streamed, resident)


@torch.no_grad()
@pytest.mark.parametrize("place", ["resident", "staged", "streamed"])
def test_adapters_are_fused_into_weights_that_are_narrowed(place: str, tmp_path: Path) -> None:
    """The numbers are those of weights that were merged by hand before, and nothing of the adapter is left."""
    need("int8")
    pipelines = [with_adapter(), with_adapter()]
    pipelines[1].transformer.fuse_lora()
    pipelines[1].transformer.unload_lora()
    found = []
    for pipeline in pipelines:
        plan = plan_of(transformer=ComponentPlan("int8", *PLACES[place][:2]))
        with AppliedPlan(pipeline, plan, tmp_path) as placed, placed.stage("denoise"):
            found.append(velocities(pipeline))
    for ours, by_hand in zip(*found, strict=True):
        assert torch.equal(ours, by_hand)
    one, other = (dict(pipeline.transformer.named_modules()) for pipeline in pipelines)
    assert {name: type(part) for name, part in one.items()} == {name: type(part) for name, part in other.items()}
    assert not getattr(pipelines[0].transformer, "peft_config", None)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.nn", None)
    layer = nn.Sequential(nn.Linear(64, 32))
    with pytest.raises(EngineError, match="pip install bitsandbytes"):
        Parts(layer, [layer], "nf4", CPU, CPU).all()


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("precision", ["bf16", "fp8_compute", "fp8_storage", "int8"])
def test_a_file_in_float8_stays_what_it_is_under_every_plan(tmp_path: Path, precision: Any, place: str) -> None:
    """Nothing is narrowed twice: the same numbers as the file's without a plan, whatever the plan says."""
    stored, _ = toy.float8(toy.checkpoint("transformer"), scaled=True)
    path = toy.save(
        {name: t if t.itemsize == 1 else t.bfloat16() for name, t in stored.items()}, tmp_path / "m.safetensors"
    )
    plain = load_component("transformer", toy.TOY, [path], Destination())
    pipeline = load_nano()
    pipeline.transformer = load_component("transformer", toy.TOY, [path], IN_FILES)
    codes = {name: layer.weight.clone() for name, layer in float8_layers(pipeline.transformer)}
    assert len(codes) == sum(map(toy.is_block_linear, stored))
    placement, home, resident, outside = PLACES[place]
    component: Any = ComponentPlan(precision, placement, home, 2, resident, outside)
    with AppliedPlan(pipeline, plan_of(transformer=component), tmp_path) as placed, placed.stage("denoise"):
        found = toy_velocities(pipeline.transformer)
        assert all(torch.equal(layer.weight, codes[name]) for name, layer in float8_layers(pipeline.transformer))
    assert len(list(float8_layers(pipeline.transformer))) == len(codes)
    for velocity, expected in zip(found, toy_velocities(plain), strict=True):
        assert torch.equal(velocity, expected)


def float8_layers(module: nn.Module) -> Iterator[tuple[str, Float8Linear]]:
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, Float8Linear))


def toy_velocities(transformer: Any) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    video, audio, text = (torch.randn(shape, generator=draw) for shape in ((1, 48, 2, 4, 4), (1, 5, 8), (1, 6, 128)))
    out = transformer(video.bfloat16(), audio.bfloat16(), torch.tensor([300.0]), text.bfloat16())
    return [out.video, out.audio]


def test_layers_already_stored_in_float8_stay_as_they_are() -> None:
    need("int8")
    layer = nn.Sequential(nn.Linear(64, 32))
    Parts(layer, [layer], "fp8_storage", CPU, CPU).all()
    other = nn.Sequential(layer[0], nn.Linear(32, 32))
    weight = other[0].weight
    Parts(other, [other], "int8", CPU, CPU).all()
    assert other[0].weight is weight
    assert any(plain.dtype == torch.int8 for plain in plain_tensors(other[1].weight))
