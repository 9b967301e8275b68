"""Loading: every layout gives the source's tensors, every kind of damage its own error."""

import dataclasses
import gc
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ovi_studio.errors import WeightsError
from ovi_studio.model import components
from ovi_studio.model.sampler import Latents
from ovi_studio.runtime.hardware import private_bytes
from ovi_studio.weights import convert, layouts
from ovi_studio.weights.float8 import Float8Linear, has_float8
from ovi_studio.weights.headers import read_header
from ovi_studio.weights.layouts import WeightFiles
from ovi_studio.weights.load import IN_FILES, Destination, lies_in_files, load_component, load_weights
from tests.weights import toy
from tests.weights.toy import TOY, State

FLOAT32 = Destination("cpu", torch.float32)
NOISE = random.Random(0).randbytes(4000)
COMPONENTS = ("transformer", "text_encoder", "video_vae", "audio_vae", "vocoder")


def assert_holds(module: nn.Module, state: State) -> None:
    """The module has exactly these tensors, equal element by element."""
    ours = module.state_dict()
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor), name


# --- Layouts


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_published_checkpoint_loads_tensor_by_tensor(component, tmp_path):
    state = toy.checkpoint(component)
    module = load_component(component, TOY, [toy.save(state, tmp_path / "m.safetensors")], FLOAT32)
    assert_holds(module, toy.library(component, state))
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
    assert not module.training


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_library_file_in_shards_loads_tensor_by_tensor(component, tmp_path):
    state = toy.library(component, toy.checkpoint(component))
    stored = {name: t for name, t in state.items() if name != "encoder.embed_tokens.weight"}
    files = toy.save_shards(stored, tmp_path, "diffusion_pytorch_model", 3)
    assert_holds(load_component(component, TOY, files, FLOAT32), state)


@pytest.mark.parametrize("component", ["text_encoder", "video_vae", "audio_vae", "vocoder"])
def test_a_pickle_loads_and_is_converted_once(component, tmp_path):
    state = toy.checkpoint(component)
    path = toy.pickle({"generator": state} if component == "vocoder" else state, tmp_path / "m.pth")
    original = path.read_bytes()
    expected = toy.library(component, state)
    assert_holds(load_component(component, TOY, [path], FLOAT32), expected)
    converted = tmp_path / "m.pth.safetensors"
    written = converted.stat()
    assert_holds(load_component(component, TOY, [path], FLOAT32), expected)
    assert converted.stat().st_mtime_ns == written.st_mtime_ns
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pth", "m.pth.safetensors"]
    assert path.read_bytes() == original


def test_two_shards_of_one_transformer_load(tmp_path):
    state = toy.checkpoint("transformer")
    files = toy.save_shards(toy.library("transformer", state), tmp_path, "diffusion_pytorch_model", 2)
    assert_holds(load_component("transformer", TOY, files, FLOAT32), toy.library("transformer", state))


@pytest.mark.parametrize(
    ("video", "audio"),
    [
        ("", "audio_model."),
        ("video_model.", "audio_model."),
        ("model.diffusion_model.", "model.diffusion_model."),
        ("diffusion_model.video_model.", "diffusion_model.audio_model."),
    ],
)
def test_a_transformer_as_two_towers_loads(video, audio, tmp_path):
    state = toy.checkpoint("transformer")
    files = [
        toy.save(toy.tower(state, "audio", audio), tmp_path / "a.safetensors"),
        toy.save(toy.tower(state, "video", video), tmp_path / "v.safetensors"),
    ]
    assert_holds(load_component("transformer", TOY, files, FLOAT32), toy.library("transformer", state))


def test_the_vocoders_new_weight_norm_loads(tmp_path):
    state = toy.checkpoint("vocoder")
    new = {
        n.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): t
        for n, t in state.items()
    }
    module = load_component("vocoder", TOY, [toy.save(new, tmp_path / "v.safetensors")], FLOAT32)
    assert_holds(module, toy.library("vocoder", state))


def test_a_text_encoder_from_a_node_pack_loads_with_its_notes(tmp_path):
    state = toy.library("text_encoder", toy.checkpoint("text_encoder"))
    stored = {n: t for n, t in state.items() if n != "encoder.embed_tokens.weight"}
    stored["spiece_model"] = torch.zeros(10, dtype=torch.uint8)
    module = load_component("text_encoder", TOY, [toy.save(stored, tmp_path / "t.safetensors")], FLOAT32)
    assert_holds(module, state)
    assert module.shared.weight is module.encoder.embed_tokens.weight


def test_tensors_arrive_in_the_wanted_type_and_the_vocoder_in_float32(tmp_path):
    for component in COMPONENTS:
        state = toy.checkpoint(component)
        file = toy.save(state, tmp_path / f"{component}.safetensors")
        module = load_component(component, TOY, [file], Destination("cpu", torch.bfloat16))
        wanted = torch.float32 if component == "vocoder" else torch.bfloat16
        assert {t.dtype for t in (*module.parameters(), *module.buffers())} == {wanted}
        assert_holds(module, {n: t.to(wanted) for n, t in toy.library(component, state).items()})


def test_a_whole_pipeline_loads_and_runs(tmp_path):
    files = WeightFiles(
        toy.save_tokenizer(tmp_path / "tokenizer"),
        *((toy.save(toy.checkpoint(c), tmp_path / f"{c}.safetensors"),) for c in COMPONENTS),
    )
    told: list[str] = []
    pipeline = load_weights(TOY, files, FLOAT32, loaded=told.append)
    assert sorted(told) == sorted(COMPONENTS)
    assert pipeline.variant.name == TOY.name
    text = pipeline.encode_prompt("a cat", 8)
    out = pipeline.transformer(torch.zeros(1, 48, 1, 2, 2), torch.zeros(1, 4, 8), torch.tensor([500.0]), text)
    assert isinstance(Latents(out.video, out.audio), Latents)
    assert out.video.isfinite().all()


# --- Left in the files


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_left_in_their_files_are_the_same(component, dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in toy.checkpoint(component).items()}
    file = toy.save(state, tmp_path / "m.safetensors")
    module = load_component(component, TOY, [file], IN_FILES)
    assert lies_in_files(module)
    if component in ("audio_vae", "vocoder"):  # computed, in float32
        assert {t.dtype for t in module.state_dict().values()} == {torch.float32}
        assert_holds(module, toy.library(component, {n: t.float() for n, t in state.items()}))
    else:
        assert_holds(module, toy.library(component, state))


def test_changing_weights_leaves_their_file_alone(tmp_path):
    file = toy.save(toy.checkpoint("transformer"), tmp_path / "m.safetensors")
    before = file.read_bytes()
    module = load_component("transformer", TOY, [file], IN_FILES)
    for parameter in module.parameters():
        parameter.add_(1)
    del module
    gc.collect()
    assert file.read_bytes() == before


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not tell mapped files apart")
def test_what_is_left_in_files_takes_no_memory(tmp_path):
    wide = dataclasses.replace(TOY, transformer=dataclasses.replace(TOY.transformer, ffn_dim=500_000))
    with torch.device("meta"):
        shapes = convert.fusion_to_checkpoint(components.build_transformer(wide).state_dict())
    file = toy.save({name: torch.ones(t.shape) for name, t in shapes.items()}, tmp_path / "m.safetensors")
    gc.collect()
    before = private_bytes()
    module = load_component("transformer", wide, [file], IN_FILES)
    assert file.stat().st_size > 500e6
    assert sum(float(parameter.sum()) for parameter in module.parameters()) > 100e6
    assert private_bytes() - before < 100e6


# --- Float8


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
@pytest.mark.parametrize(
    ("scaled", "suffix", "rows"),
    [
        (False, "", False),
        (True, "scale_weight", False),
        (True, "weight_scale", False),
        (True, "scale_weight", True),
    ],
)
def test_float8_stays_float8_and_computes_what_the_file_means(component, scaled, suffix, rows, tmp_path):
    stored, meant = toy.float8(toy.checkpoint(component), scaled, suffix, rows)
    if scaled:
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    module = load_component(component, TOY, [toy.save(stored, tmp_path / "m.safetensors")], FLOAT32)
    plain = load_component(component, TOY, [toy.save(meant, tmp_path / "p.safetensors")], FLOAT32)
    narrow = {n: m for n, m in module.named_modules() if isinstance(m, Float8Linear)}
    assert len(narrow) == sum(map(toy.is_block_linear, meant))
    assert all(layer.weight.element_size() == 1 for layer in narrow.values())
    for name, layer in narrow.items():
        assert torch.equal(layer.widened(torch.float32), plain.get_submodule(name).weight)
        assert torch.equal(layer.widened(torch.bfloat16), plain.get_submodule(name).weight.bfloat16())
    wide = {n: t for n, t in module.state_dict().items() if n.rpartition(".")[0] not in narrow}
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in wide.items())

    for dtype in (torch.float32, torch.bfloat16):
        outputs = [run(component, model.to(dtype)) for model in (module, plain)]
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert has_float8(module)
    assert not has_float8(plain)


def run(component: str, model: nn.Module) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    with torch.no_grad():
        if component == "text_encoder":
            return (model(torch.arange(1, 9)[None]).last_hidden_state,)
        dtype = model.video.head.head.weight.dtype
        video, audio, text = torch.randn(1, 48, 2, 4, 4), torch.randn(1, 5, 8), torch.randn(1, 6, 128)
        return model(video.to(dtype), audio.to(dtype), torch.tensor([300.0]), text.to(dtype), return_dict=False)


def test_float8_outside_linear_layers_is_widened(tmp_path):
    state = toy.checkpoint("transformer")
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}
    module = load_component("transformer", TOY, [toy.save(stored, tmp_path / "m.safetensors")], FLOAT32)
    for name, tensor in toy.library("transformer", stored).items():
        stem, _, part = name.rpartition(".")
        layer = module.get_submodule(stem)
        if isinstance(layer, Float8Linear) and part == "weight":
            assert torch.equal(layer.weight.view(torch.float8_e4m3fn).float(), tensor.float())
        else:
            assert torch.equal(module.state_dict()[name], tensor.float())
    assert not isinstance(module.video.patch_embedding, Float8Linear)


def test_float8_survives_casts_and_copies_of_the_module(tmp_path):
    stored, meant = toy.float8(toy.checkpoint("transformer"), scaled=True)
    module = load_component("transformer", TOY, [toy.save(stored, tmp_path / "m.safetensors")], FLOAT32)
    layer = module.blocks[0].video.self_attn.q
    before = layer.widened(torch.float32)
    module.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(layer.widened(torch.float32), before)
    assert torch.equal(before, meant["video_model.blocks.0.self_attn.q.weight"])
    assert module.dtype == torch.float32


# --- Damage


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def damaged(kind: str, path: Path) -> Path:
    """A checkpoint of the toy transformer with one fault."""
    state = toy.checkpoint("transformer")
    victim = "video_model.blocks.1.ffn.0.bias"
    match kind:
        case "missing":
            del state[victim]
        case "extra":
            state["video_model.blocks.2.ffn.0.bias"] = torch.zeros(48)
        case "unknown":
            state["step"] = torch.zeros(1)
        case "shape":
            state[victim] = torch.zeros(47)
        case "dtype":
            state[victim] = torch.zeros(48, dtype=torch.int64)
        case "stray scale":
            state["video_model.blocks.1.ffn.0.scale_weight"] = torch.ones(1)
    toy.save(state, path)
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[:-100])
    if kind == "header cut":
        path.write_bytes(data[:200])
    if kind == "random":
        path.write_bytes(bytes(range(256)) * 20)
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "pointer":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    return path


DAMAGES = {
    "missing": "lacks the tensor 'video_model.blocks.1.ffn.0.bias'",
    "extra": "'video_model.blocks.2.ffn.0.bias' that no transformer has",
    "unknown": "'step' that no transformer has",
    "shape": r"'video_model.blocks.1.ffn.0.bias' has the shape \(47,\) and not \(48,\)",
    "dtype": "'video_model.blocks.1.ffn.0.bias' is of type I64",
    "stray scale": "'video_model.blocks.1.ffn.0.scale_weight' that no transformer has",
    "truncated": "cut short",
    "header cut": "damaged",
    "random": "damaged",
    "empty": "damaged",
    "pointer": "Git LFS",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_kind_of_damage_is_named_with_its_file_and_changes_nothing(kind, tmp_path):
    path = damaged(kind, tmp_path / "model.safetensors")
    before = toy.snapshot(tmp_path)
    with pytest.raises(WeightsError, match=DAMAGES[kind]) as caught:
        load_component("transformer", TOY, [path], FLOAT32)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2
    assert toy.snapshot(tmp_path) == before


def test_every_kind_of_damage_has_an_error_of_its_own():
    assert len({text for kind, text in DAMAGES.items() if kind not in {"header cut", "empty"}}) >= 8


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_runs_nothing(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "Wan2.2_VAE.pth"
    torch.save(toy.checkpoint("video_vae") | {"x": Evil()}, path, _use_new_zipfile_serialization=zipped)
    before = toy.snapshot(tmp_path)
    with pytest.raises(WeightsError, match="would run code") as caught:
        load_component("video_vae", TOY, [path], FLOAT32)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2
    assert toy.snapshot(tmp_path) == before


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + b"\0" * 400, NOISE, b"\x80" + NOISE], ids=range(4))
def test_a_damaged_pickle_is_an_error_and_changes_nothing(data, tmp_path):
    path = tmp_path / "Wan2.2_VAE.pth"
    path.write_bytes(data)
    before = toy.snapshot(tmp_path)
    with pytest.raises(WeightsError) as caught:
        load_component("video_vae", TOY, [path], FLOAT32)
    assert str(path) in str(caught.value)
    assert toy.snapshot(tmp_path) == before


def test_a_truncated_pickle_is_an_error_and_changes_nothing(tmp_path):
    path = toy.pickle(toy.checkpoint("video_vae"), tmp_path / "Wan2.2_VAE.pth")
    path.write_bytes(path.read_bytes()[:-2000])
    before = toy.snapshot(tmp_path)
    with pytest.raises(WeightsError, match="damaged or cut short"):
        load_component("video_vae", TOY, [path], FLOAT32)
    assert toy.snapshot(tmp_path) == before


def test_a_missing_file_is_named(tmp_path):
    for name in ("none.safetensors", "none.pth"):
        with pytest.raises(WeightsError, match=name):
            load_component("vocoder", TOY, [tmp_path / name], FLOAT32)


def test_one_tower_alone_is_not_a_transformer(tmp_path):
    path = toy.save(toy.tower(toy.checkpoint("transformer"), "video", ""), tmp_path / "v.safetensors")
    with pytest.raises(WeightsError, match="video tower"):
        load_component("transformer", TOY, [path], FLOAT32)


def test_another_component_is_told_apart(tmp_path):
    path = toy.save(toy.checkpoint("vocoder"), tmp_path / "v.safetensors")
    with pytest.raises(WeightsError, match="holds a vocoder and no audio VAE"):
        load_component("audio_vae", TOY, [path], FLOAT32)


def test_another_models_text_encoder_is_told_by_its_shape(tmp_path):
    state = toy.checkpoint("text_encoder")
    state["token_embedding.weight"] = torch.zeros(32, 128)
    with pytest.raises(WeightsError, match=r"of another model: 'token_embedding\.weight' is 32×128 and not 1024×128"):
        load_component("text_encoder", TOY, [toy.save(state, tmp_path / "t.safetensors")], FLOAT32)


def test_a_wan_model_without_sound_is_told(tmp_path):
    state = {n: t for n, t in toy.tower(toy.checkpoint("transformer"), "video", "").items() if "fusion" not in n}
    with pytest.raises(WeightsError, match="without Ovi's audio tower"):
        load_component("transformer", TOY, [toy.save(state, tmp_path / "w.safetensors")], FLOAT32)


# --- Conversion


def test_a_conversion_that_was_killed_goes_on_where_it_stopped(tmp_path):
    state = toy.checkpoint("video_vae")
    path = toy.pickle(state, tmp_path / "vae.pth")
    load_component("video_vae", TOY, [path], FLOAT32)
    whole = (tmp_path / "vae.pth.safetensors").read_bytes()
    (tmp_path / "vae.pth.safetensors").unlink()
    part = tmp_path / ".vae.pth.safetensors.part"
    half = bytearray(whole[: len(whole) // 2])
    half[-1] ^= 0xFF  # in the tensor that was being written: it is written again
    part.write_bytes(half)
    assert_holds(load_component("video_vae", TOY, [path], FLOAT32), toy.library("video_vae", state))
    assert (tmp_path / "vae.pth.safetensors").read_bytes() == whole
    assert not part.exists()


def test_a_changed_original_is_converted_again(tmp_path):
    path = toy.pickle(toy.checkpoint("video_vae"), tmp_path / "vae.pth")
    load_component("video_vae", TOY, [path], FLOAT32)
    newer = toy.checkpoint("video_vae", seed=1)
    toy.pickle(newer, path)
    assert_holds(load_component("video_vae", TOY, [path], FLOAT32), toy.library("video_vae", newer))


def test_recognising_safetensors_imports_no_torch(tmp_path):
    path = toy.save(toy.checkpoint("vocoder"), tmp_path / "v.safetensors")
    code = (
        "import sys; from pathlib import Path; from ovi_studio.weights import headers, layouts;"
        f"headers.read_header(Path({json.dumps(str(path))})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_layout_says_what_it_is_in_words(tmp_path):
    stored, _ = toy.float8(toy.checkpoint("transformer"), scaled=True)
    path = toy.save(toy.tower(stored, "audio", "audio_model."), tmp_path / "a.safetensors")
    layout = layouts.recognise(read_header(path).tensors, TOY)
    assert layout.title == "audio tower of a transformer, in float8 with scales"
