"""A LoRA on the model equals the model with the product merged by hand, in every key style, on every tower."""

import copy
import json

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from ovi_studio.errors import WeightsError
from ovi_studio.model import components
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.weights import convert
from ovi_studio.weights.adapters import AdapterUse, fuse, put_on, read_adapter, remarks_on, sampling_of, take_off
from ovi_studio.weights.inventory import DISTILLATION_KEY, Distillation
from ovi_studio.weights.load import Destination, load_component
from tests.weights import toy
from tests.weights.toy import TOY, State

RANK, ALPHA = 4, 2.0
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
BLOCK_LAYERS = tuple(
    f"blocks.{i}.{layer}"
    for i in range(2)
    for layer in (
        *(f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo"),
        "ffn.0",
        "ffn.2",
    )
)
FUSION_LAYERS = ("blocks.0.cross_attn.k_fusion", "blocks.1.cross_attn.v_fusion")
OUTER_LAYERS = ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1")
DIFFUSERS = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}


@pytest.fixture(scope="module")
def base() -> OviTransformer:
    model = components.build_transformer(TOY)
    state = convert.fusion_from_checkpoint(toy.checkpoint("transformer"))
    model.load_state_dict(state)
    return model


def matrices(base: OviTransformer, layers: tuple[str, ...], seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random down and up matrices, by the checkpoint's names of the layers."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer in layers:
        rows, columns = base.get_submodule(ours("video", layer)).weight.shape
        made[layer] = (
            torch.randn(RANK, columns, generator=generator) * 0.2,
            torch.randn(rows, RANK, generator=generator) * 0.2,
        )
    return made


def ours(tower: str, layer: str) -> str:
    return convert.fusion_key(f"{tower}_model.{layer}.weight").removesuffix(".weight")


def diffusers_name(layer: str) -> str:
    for theirs, name in DIFFUSERS.items():
        if layer.endswith(theirs):
            return layer.removesuffix(theirs) + name
    raise KeyError(layer)


def comfy(made: dict, alpha: bool = True) -> State:
    state: State = {}
    for layer, (down, up) in made.items():
        state[f"diffusion_model.{layer}.lora_down.weight"] = down
        state[f"diffusion_model.{layer}.lora_up.weight"] = up
        if alpha:
            state[f"diffusion_model.{layer}.alpha"] = torch.tensor(ALPHA)
    return state


def kohya(made: dict) -> State:
    state: State = {}
    for layer, (down, up) in made.items():
        flat = f"lora_unet_{layer.replace('.', '_')}"
        state |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(ALPHA),
        }
    return state


def dotted(made: dict, prefix: str, rename=lambda layer: layer, infix: str = "") -> State:
    state = {}
    for layer, (down, up) in made.items():
        state[f"{prefix}{rename(layer)}.lora_A{infix}.weight"] = down
        state[f"{prefix}{rename(layer)}.lora_B{infix}.weight"] = up
    return state


def write_style(style: str, made: dict, folder):
    """A file (or folder) in a style, and the factor on its products."""
    path = folder / "lora.safetensors"
    match style:
        case "comfyui":
            return toy.save(comfy(made), path), ALPHA / RANK
        case "comfyui without alpha":
            return toy.save(comfy(made, alpha=False), path), 1.0
        case "comfyui with lora_A":
            return toy.save(dotted(made, "diffusion_model."), path), 1.0
        case "kohya":
            return toy.save(kohya(made), path), ALPHA / RANK
        case "diffusers":
            return toy.save(dotted(made, "transformer.", diffusers_name), path), 1.0
        case "diffusers with a scale":
            settings = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}
            metadata = {"lora_adapter_metadata": json.dumps(settings)}
            return toy.save(dotted(made, "transformer.", diffusers_name), path, metadata), ALPHA / RANK
        case "peft":
            return toy.save(dotted(made, "base_model.model.", infix=".default"), path), 1.0
        case "peft folder":
            toy.save(dotted(made, "base_model.model."), folder / "adapter_model.safetensors")
            settings = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True}
            (folder / "adapter_config.json").write_text(json.dumps(settings))
            return folder, ALPHA / RANK**0.5
    raise KeyError(style)


STYLES = (
    "comfyui",
    "comfyui without alpha",
    "comfyui with lora_A",
    "kohya",
    "diffusers",
    "diffusers with a scale",
    "peft",
    "peft folder",
)


def merged_by_hand(base, towers, made, factor, biases=None) -> OviTransformer:
    model = copy.deepcopy(base)
    with torch.no_grad():
        for tower in towers:
            for layer, (down, up) in made.items():
                if tower == "audio" and layer.startswith("head."):
                    continue
                linear = model.get_submodule(ours(tower, layer))
                linear.weight += factor * up @ down
                if biases and layer in biases:
                    linear.bias += biases[layer]
    return model


def outputs(model: OviTransformer) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    video, audio = torch.randn(1, 48, 2, 4, 4, generator=generator), torch.randn(1, 5, 8, generator=generator)
    text = torch.randn(1, 6, 128, generator=generator)
    with torch.no_grad():
        return model(video, audio, torch.tensor([400.0]), text, return_dict=False)


def assert_same(model: OviTransformer, expected: OviTransformer) -> None:
    for ours_, theirs in zip(outputs(model), outputs(expected), strict=True):
        torch.testing.assert_close(ours_, theirs, **TOLERANCE)


@pytest.mark.parametrize(
    ("tower", "fused"), [("video", False), ("audio", False), ("both", False), ("both", True), ("audio", True)]
)
@pytest.mark.parametrize("style", STYLES)
def test_every_style_on_every_tower_equals_the_product_merged_by_hand(style, tower, fused, base, tmp_path):
    made = matrices(base, (*BLOCK_LAYERS, "time_projection.1"))
    path, factor = write_style(style, made, tmp_path)
    towers = ("video", "audio") if tower == "both" else (tower,)
    expected = merged_by_hand(base, towers, made, 0.7 * factor)
    model = copy.deepcopy(base)
    put_on(model, [AdapterUse(read_adapter(path), 0.7, tower)])
    assert sum(isinstance(part, BaseTunerLayer) for part in model.modules()) == len(made) * len(towers)
    if fused:
        fuse(model)
    assert_same(model, expected)
    before, after = outputs(base), outputs(model)
    assert not torch.allclose(before[0], after[0], atol=1e-3) or not torch.allclose(before[1], after[1], atol=1e-3)
    if fused:
        assert model.state_dict().keys() == base.state_dict().keys()
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], tensor, **TOLERANCE)


def test_a_lora_of_some_layers_is_enough(base, tmp_path):
    made = matrices(base, ("blocks.1.cross_attn.v", "blocks.1.ffn.2"))
    for style in ("comfyui", "kohya", "diffusers", "peft"):
        path, factor = write_style(style, made, tmp_path)
        model = copy.deepcopy(base)
        put_on(model, [AdapterUse(read_adapter(path))])
        assert_same(model, merged_by_hand(base, ("video", "audio"), made, factor))


def test_layers_outside_the_blocks_and_biases_are_taken(base, tmp_path):
    layers = (*BLOCK_LAYERS, *OUTER_LAYERS, "head.head")
    made = matrices(base, layers)
    state = comfy(made, alpha=False)
    sizes = {"blocks.0.self_attn.q": 32, "head.head": 192, "text_embedding.2": 32}
    biases = {layer: torch.linspace(-1, 1, size) for layer, size in sizes.items()}
    state |= {f"diffusion_model.{layer}.diff_b": bias for layer, bias in biases.items()}
    path = toy.save(state, tmp_path / "lora.safetensors")
    model, expected = copy.deepcopy(base), merged_by_hand(base, ("video", "audio"), made, 1.0, biases)
    put_on(model, [AdapterUse(read_adapter(path))])
    assert_same(model, expected)
    fuse(model)
    assert_same(model, expected)


@pytest.mark.parametrize("style", ["comfyui", "kohya", "peft", "ours"])
def test_a_lora_trained_on_ovi_stays_on_the_towers_that_it_names(style, base, tmp_path):
    layers = BLOCK_LAYERS + FUSION_LAYERS
    video, audio = matrices(base, layers, seed=1), matrices(base, layers, seed=2)
    factor = 1.0
    if style == "ours":
        state = dotted(video, "", lambda layer: ours("video", layer))
        state |= dotted(audio, "", lambda layer: ours("audio", layer))
    else:
        named = {f"video_model.{layer}": pair for layer, pair in video.items()}
        named |= {f"audio_model.{layer}": pair for layer, pair in audio.items()}
        factor = 1.0 if style == "peft" else ALPHA / RANK
        state = {"comfyui": comfy, "kohya": kohya, "peft": lambda m: dotted(m, "base_model.model.")}[style](named)
    weights = read_adapter(toy.save(state, tmp_path / "lora.safetensors"))
    assert set(weights.towers) == {"video", "audio"}
    both = merged_by_hand(merged_by_hand(base, ["video"], video, factor), ["audio"], audio, factor)
    model = copy.deepcopy(base)
    put_on(model, [AdapterUse(weights)])
    assert_same(model, both)
    put_on(model, [AdapterUse(weights, tower="audio")])
    assert_same(model, merged_by_hand(base, ["audio"], audio, factor))


def test_several_adapters_add_up_each_with_its_strength_and_tower(base, tmp_path):
    first, second = matrices(base, BLOCK_LAYERS, seed=1), matrices(base, BLOCK_LAYERS[3:9], seed=2)
    one = read_adapter(toy.save(comfy(first), tmp_path / "a.safetensors"))
    two = read_adapter(toy.save(dotted(second, "transformer.", diffusers_name), tmp_path / "b.safetensors"))
    expected = merged_by_hand(base, ["video"], first, 0.5 * ALPHA / RANK)
    expected = merged_by_hand(expected, ["video", "audio"], second, -1.5)
    model = copy.deepcopy(base)
    put_on(model, [AdapterUse(one, 0.5, "video"), AdapterUse(two, -1.5)])
    assert_same(model, expected)
    fuse(model)
    assert_same(model, expected)


def test_a_block_is_fused_by_itself_and_its_weights_are_replaced(base, tmp_path):
    """The tensors that were there, which may be mapped from a file, are not written to."""
    made = matrices(base, BLOCK_LAYERS)
    model = copy.deepcopy(base)
    put_on(model, [AdapterUse(read_adapter(toy.save(comfy(made), tmp_path / "a.safetensors")))])
    before = {name: tensor for name, tensor in model.named_parameters() if name.endswith("base_layer.weight")}
    kept = {name: tensor.clone() for name, tensor in before.items()}
    storage = {name: tensor.data_ptr() for name, tensor in before.items()}
    memory = [tensor.data for tensor in before.values()]
    fuse(model.blocks[0])
    assert not any(isinstance(part, BaseTunerLayer) for part in model.blocks[0].modules())
    assert any(isinstance(part, BaseTunerLayer) for part in model.blocks[1].modules())
    assert all(torch.equal(tensor, kept[name]) for tensor, name in zip(memory, before, strict=True))
    fused = model.get_submodule(ours("video", "blocks.0.self_attn.q")).weight
    assert fused.data_ptr() not in storage.values()
    fuse(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert_same(model, merged_by_hand(base, ("video", "audio"), made, ALPHA / RANK))


def test_an_adapter_that_is_not_finite_is_an_error(base, tmp_path):
    made = {layer: (down, up * float("inf")) for layer, (down, up) in matrices(base, BLOCK_LAYERS[:1]).items()}
    model = copy.deepcopy(base)
    put_on(model, [AdapterUse(read_adapter(toy.save(comfy(made), tmp_path / "a.safetensors")))])
    with pytest.raises(WeightsError, match="not finite"):
        fuse(model)


def test_live_adapters_come_off_without_a_trace_and_are_replaced(base, tmp_path):
    made = matrices(base, BLOCK_LAYERS)
    weights = read_adapter(toy.save(comfy(made), tmp_path / "a.safetensors"))
    model = copy.deepcopy(base)
    put_on(model, [AdapterUse(weights, 2.0)])
    put_on(model, [AdapterUse(weights, 1.0)])
    assert_same(model, merged_by_hand(base, ("video", "audio"), made, ALPHA / RANK))
    take_off(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), outputs(base), strict=True))
    take_off(model)


def test_adapters_are_live_on_float8_weights_and_not_fused(tmp_path):
    stored, meant = toy.float8(toy.checkpoint("transformer"), scaled=True)
    file = toy.save(stored, tmp_path / "m.safetensors")
    model = load_component("transformer", TOY, [file], Destination("cpu", torch.float32))
    wide = components.build_transformer(TOY)
    wide.load_state_dict(convert.fusion_from_checkpoint(meant))
    made = matrices(wide, BLOCK_LAYERS)
    weights = read_adapter(toy.save(comfy(made), tmp_path / "a.safetensors"))
    put_on(model, [AdapterUse(weights)])
    live = sum(isinstance(part, BaseTunerLayer) for part in model.modules())
    fuse(model)
    assert sum(isinstance(part, BaseTunerLayer) for part in model.modules()) == live > 0
    assert_same(model, merged_by_hand(wide, ("video", "audio"), made, ALPHA / RANK))


# --- Distilled


def test_a_distilled_adapter_brings_its_sampling_and_warns_of_the_sound(base, tmp_path):
    metadata = {DISTILLATION_KEY: json.dumps({"num_inference_steps": 6, "shift": 7.5})}
    weights = read_adapter(toy.save(comfy(matrices(base, BLOCK_LAYERS)), tmp_path / "x.safetensors", metadata))
    assert sampling_of([AdapterUse(weights, tower="video")]) == Distillation(6, 7.5, 1.0)
    remarks = " ".join(remarks_on([AdapterUse(weights, tower="video")]))
    assert "x.safetensors asks for 6 steps" in remarks
    assert "audio tower was not" in remarks


def test_a_known_distilled_adapter_needs_no_metadata(base, tmp_path):
    path = tmp_path / "Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors"
    weights = read_adapter(toy.save(comfy(matrices(base, BLOCK_LAYERS)), path))
    assert weights.distillation == Distillation(3, 2.0, 1.0)


def test_usual_adapters_leave_the_sampling_alone(base, tmp_path):
    weights = read_adapter(toy.save(comfy(matrices(base, BLOCK_LAYERS)), tmp_path / "x.safetensors"))
    assert sampling_of([AdapterUse(weights)]) is None
    assert remarks_on([AdapterUse(weights)]) == ()


def test_two_ways_of_sampling_exclude_each_other(base, tmp_path):
    uses = []
    for steps in (3, 4):
        metadata = {DISTILLATION_KEY: json.dumps({"num_inference_steps": steps, "shift": 5})}
        path = tmp_path / f"{steps}.safetensors"
        uses.append(AdapterUse(read_adapter(toy.save(comfy(matrices(base, BLOCK_LAYERS)), path, metadata))))
    with pytest.raises(WeightsError, match="different ways"):
        sampling_of(uses)


# --- What does not fit


def test_what_cannot_be_taken_is_noted_and_zeros_are_not(base, tmp_path):
    state = comfy(matrices(base, BLOCK_LAYERS))
    state["diffusion_model.blocks.0.self_attn.norm_q.diff"] = torch.zeros(32)
    state["diffusion_model.patch_embedding.diff"] = torch.ones(32)
    weights = read_adapter(toy.save(state, tmp_path / "x.safetensors"))
    (remark,) = remarks_on([AdapterUse(weights)])
    assert "whole weights" in remark


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("diffusion_model.blocks.0.ffn.0.lora_up.weight"), "half"),
        (lambda s: s.update({"diffusion_model.blocks.7.ffn.0.lora_up.weight": torch.ones(48, 4)}), "half"),
        (lambda s: s.update({"diffusion_model.img_emb.proj.9.lora_down.weight": torch.ones(4, 4)}), "unknown"),
        (lambda s: s.update({"diffusion_model.blocks.0.ffn.0.lora_down.weight": torch.ones(4, 31)}), "does not fit"),
        (lambda s: s.clear(), "no LoRA"),
    ],
)
def test_a_file_that_is_no_fitting_lora_is_an_error_and_leaves_the_model_alone(change, message, base, tmp_path):
    state = comfy(matrices(base, BLOCK_LAYERS), alpha=False)
    change(state)
    model = copy.deepcopy(base)
    with pytest.raises(WeightsError, match=message) as caught:
        put_on(model, [AdapterUse(read_adapter(toy.save(state, tmp_path / "x.safetensors")))])
    assert "x.safetensors" in str(caught.value)
    assert model.state_dict().keys() == base.state_dict().keys()


def test_a_damaged_file_is_an_error(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(WeightsError, match="damaged"):
        read_adapter(path)
