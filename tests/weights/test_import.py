"""Import: what users have already is recognised, linked and loaded; nothing broken is, and nothing is copied."""

import json
import os
from pathlib import Path

import pytest
import torch

from ovi_studio import cli
from ovi_studio.errors import WeightsError
from ovi_studio.variants import VARIANTS
from ovi_studio.weights import catalog
from ovi_studio.weights import survey as survey_module
from ovi_studio.weights.float8 import Float8Linear
from ovi_studio.weights.importing import adopt, plan_adoption
from ovi_studio.weights.inventory import find_adapter, readiness, weight_files
from ovi_studio.weights.load import Destination, load_component, load_weights
from ovi_studio.weights.store import Finding, ListedFile, Listing, State, Store, sha256_of
from ovi_studio.weights.survey import Survey, survey
from tests.weights import toy
from tests.weights.toy import TOY
from tests.weights.toy import State as Tensors

FLOAT32 = Destination("cpu", torch.float32)
COMPONENTS = ("transformer", "text_encoder", "video_vae", "audio_vae", "vocoder")


def look(folder: Path, **options) -> Survey:
    return survey(folder, shapes=TOY, **options)


def take(folder: Path, store: Store, **options) -> dict:
    seen = look(folder, **options)
    assert not seen.broken
    taken, _ = plan_adoption(seen.found)
    for part in taken.values():
        adopt(part, store)
    return taken


def assert_loads(variant: str, store: Store, meant: dict[str, Tensors]) -> None:
    """The store's files make components that equal these checkpoints tensor by tensor."""
    files = weight_files(VARIANTS[variant], store)
    for component, state in meant.items():
        module = load_component(component, TOY, files.of(component), FLOAT32)
        ours = module.state_dict()
        for name, tensor in toy.library(component, state).items():
            layer = module.get_submodule(name.rpartition(".")[0])
            narrow = isinstance(layer, Float8Linear) and name.endswith(".weight")
            held = layer.widened(torch.float32) if narrow else ours[name]
            assert torch.equal(held, tensor), name


def checkpoints(seed: int = 0) -> dict[str, Tensors]:
    return {component: toy.checkpoint(component, seed) for component in COMPONENTS}


# --- Layouts


def write_ckpts(root: Path) -> dict[str, Tensors]:
    """Upstream's folder, as its download script leaves it."""
    states = checkpoints()
    toy.save(states["transformer"], root / "Ovi" / "model_960x960_10s.safetensors")
    toy.save(toy.checkpoint("transformer", 1), root / "Ovi" / "model.safetensors")
    toy.save(toy.checkpoint("transformer", 2), root / "Ovi" / "model_960x960.safetensors")
    wan = root / "Wan2.2-TI2V-5B"
    toy.pickle(states["text_encoder"], wan / "models_t5_umt5-xxl-enc-bf16.pth")
    toy.pickle(states["video_vae"], wan / "Wan2.2_VAE.pth")
    toy.save_tokenizer(wan / "google" / "umt5-xxl")
    toy.pickle(states["audio_vae"], root / "MMAudio" / "ext_weights" / "v1-16.pth")
    toy.pickle({"generator": states["vocoder"]}, root / "MMAudio" / "ext_weights" / "best_netG.pt")
    return states


def test_upstreams_ckpts_take_the_place_of_the_downloads_and_load(tmp_path):
    states = write_ckpts(tmp_path / "ckpts")
    before = toy.snapshot(tmp_path / "ckpts")
    store = Store(tmp_path / "store")
    taken = take(tmp_path / "ckpts", store)
    assert set(taken) == {
        "fusion-720x720_5s",
        "fusion-960x960_5s",
        "fusion-960x960_10s",
        "text-encoder-original",
        "tokenizer-original",
        "video-vae-original",
        "audio-vae",
        "vocoder",
    }
    for name in taken:
        source = catalog.SOURCES[name]
        assert store.status(source).state is State.PRESENT
        assert {finding for _, finding in store.verify(source)} == {Finding.INTACT}
        assert all(path.is_symlink() for path in store.paths(source))
    assert_loads("960x960_10s", store, states)
    assert_loads("720x720_5s", store, {"transformer": toy.checkpoint("transformer", 1)})
    assert_loads("960x960_5s", store, {"transformer": toy.checkpoint("transformer", 2)})
    assert toy.snapshot(tmp_path / "ckpts") == before  # pickles were converted beside their links


def test_a_diffusers_folder_loads(tmp_path):
    write_ckpts(tmp_path / "ckpts")
    first = Store(tmp_path / "first")
    take(tmp_path / "ckpts", first)
    pipeline = load_weights(TOY, weight_files(VARIANTS["960x960_10s"], first), FLOAT32)
    pipeline.register_to_config(variant="960x960_10s")
    pipeline.save_pretrained(tmp_path / "diffusers", max_shard_size="300KB")
    assert len(list((tmp_path / "diffusers" / "transformer").glob("*.safetensors"))) > 2

    store = Store(tmp_path / "store")
    taken = take(tmp_path / "diffusers", store)
    assert {part.variants for part in taken.values() if part.kind == "transformer"} == {("960x960_10s",)}
    assert {"text-encoder", "tokenizer"} <= set(taken)
    assert_loads("960x960_10s", store, checkpoints())


def test_a_library_folder_of_the_wan_repository_fills_its_sources(tmp_path):
    root = tmp_path / "Wan2.2-TI2V-5B-Diffusers"
    text = toy.library("text_encoder", toy.checkpoint("text_encoder"))
    text.pop("encoder.embed_tokens.weight")
    toy.save_shards(text, root / "text_encoder", "model", 3)
    (root / "text_encoder" / "config.json").write_text("{}")
    toy.save(
        toy.library("video_vae", toy.checkpoint("video_vae")), root / "vae" / "diffusion_pytorch_model.safetensors"
    )
    toy.save_tokenizer(root / "tokenizer")
    store = Store(tmp_path / "store")
    assert set(take(root, store)) == {"text-encoder", "video-vae", "tokenizer"}
    names = {path.name for path in store.paths(catalog.SOURCES["text-encoder"])}
    assert {"config.json", "model.safetensors.index.json", "model-00003-of-00003.safetensors"} <= names


def write_comfyui(root: Path) -> dict[str, Tensors]:
    """ComfyUI's tree, as its node packs want it: towers apart and narrowed, names prefixed, other models around."""
    states = checkpoints()
    stored, meant = toy.float8(states["transformer"], scaled=True)
    stored["video_model.scaled_fp8"] = stored["audio_model.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    models = root / "diffusion_models" / "WanVideo" / "Ovi"
    name = "Wan2_2-5B-Ovi_960x960_10s_{}_fp8_e4m3fn_scaled.safetensors"
    toy.save(toy.tower(stored, "video", ""), models / name.format("video"))
    toy.save(toy.tower(stored, "audio", "audio_model."), models / name.format("audio"))
    narrow, wide = toy.float8(states["text_encoder"], scaled=True)
    text = {}
    for name, tensor in narrow.items():  # the library's names, with the scales beside the weights
        stem = name.replace(".scale_weight", ".weight")
        (ours, *_) = toy.library("text_encoder", {stem: tensor})
        text[ours.replace(".weight", ".scale_weight") if "scale" in name else ours] = tensor
    text |= {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn), "spiece_model": torch.zeros(9, dtype=torch.uint8)}
    toy.save(text, root / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    toy.save(states["video_vae"], root / "vae" / "wan2.2_vae.safetensors")
    toy.save(states["audio_vae"], root / "vae" / "mmaudio_vae_16k_fp32.safetensors")
    toy.pickle({"generator": states["vocoder"]}, root / "mmaudio" / "best_netG.pt")
    toy.save(
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}, root / "checkpoints" / "sd15.safetensors"
    )
    (root / "ultralytics").mkdir()
    (root / "ultralytics" / "yolo.pt").write_bytes(b"\x80\x02cposix\nsystem\n.")
    return states | {"transformer": meant, "text_encoder": wide}


def test_comfyuis_tree_loads_and_what_it_lacks_is_named(tmp_path):
    meant = write_comfyui(tmp_path / "models")
    store = Store(tmp_path / "store")
    seen = look(tmp_path / "models")
    assert {part.files[0].name for part in seen.unused} == {"sd15.safetensors", "yolo.pt"}
    taken = take(tmp_path / "models", store)
    assert set(taken) == {
        "imported-transformer-960x960_10s",
        "imported-text-encoder",
        "imported-video-vae",
        "imported-audio-vae",
        "imported-vocoder",
    }
    transformer = taken["imported-transformer-960x960_10s"]
    assert len(transformer.files) == 2
    assert transformer.title == "transformer, in float8 with scales"
    variant = VARIANTS["960x960_10s"]
    assert [source.kind for source in readiness(variant, store).missing] == ["tokenizer"]
    with pytest.raises(WeightsError, match="ovi-studio models download tokenizer"):
        weight_files(variant, store)
    take(toy.save_tokenizer(tmp_path / "Wan" / "tokenizer").parent, store)
    assert_loads("960x960_10s", store, meant)


def test_a_plain_float8_text_encoder_under_its_own_names_loads(tmp_path):
    narrow, _ = toy.float8(toy.checkpoint("text_encoder"), scaled=False)
    path = toy.save(narrow, tmp_path / "umt5-xxl-enc-fp8_e4m3fn.safetensors")
    (part,) = look(path).found
    assert (part.kind, part.title) == ("text_encoder", "text encoder, in float8")


def test_a_hub_cache_fills_the_sources(tmp_path):
    states = checkpoints()
    cache = tmp_path / "hub"

    def cached(repo: str, path: str, write) -> None:
        folder = cache / f"models--{repo.replace('/', '--')}"
        blob = folder / "blobs" / "passing.safetensors"
        write(blob)
        blob = blob.rename(blob.with_name(sha256_of(blob)))
        for revision in ("a" * 40, "b" * 40):  # two revisions of one file
            link = folder / "snapshots" / revision / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))

    cached("chetwinlow1/Ovi", "model.safetensors", lambda path: toy.save(states["transformer"], path))
    vocoder = {"generator": states["vocoder"]}
    cached("hkchengrex/MMAudio", "ext_weights/v1-16.pth", lambda path: toy.pickle(states["audio_vae"], path))
    cached("hkchengrex/MMAudio", "ext_weights/best_netG.pt", lambda path: toy.pickle(vocoder, path))
    store = Store(tmp_path / "store")
    assert set(take(cache, store)) == {"fusion-720x720_5s", "audio-vae", "vocoder"}
    link = store.paths(catalog.SOURCES["fusion-720x720_5s"])[0]
    assert link.resolve().parent.name == "blobs"


# --- Which variant


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("Ovi/model.safetensors", "720x720_5s"),
        ("Ovi/model_fp8_e4m3fn.safetensors", "720x720_5s"),
        ("Ovi/model_960x960.safetensors", "960x960_5s"),
        ("Ovi/model_960x960_10s.safetensors", "960x960_10s"),
        ("models--chetwinlow1--Ovi/snapshots/abc/model.safetensors", "720x720_5s"),
        ("unet/Ovi-1.1-960x960-5s-bf16.safetensors", "960x960_5s"),
        ("unet/ovi_10s_960_bf16.safetensors", "960x960_10s"),
        ("unet/ovi_720.safetensors", "720x720_5s"),
        ("unet/ovi_960.safetensors", ""),
        ("unet/model.safetensors", ""),
        ("movies/model.safetensors", ""),
        ("unet/ovi_11B_bf16.safetensors", ""),
    ],
)
def test_the_name_tells_the_variant_or_the_user_must(name, variant, tmp_path):
    path = toy.save(toy.checkpoint("transformer"), tmp_path / "x" / "y" / "z" / name)
    (part,) = look(path).found
    assert part.in_doubt == (not variant)
    if variant:
        assert part.variants == (variant,)
    else:
        (said,) = look(path, wanted="960x960_10s").found
        assert said.variants == ("960x960_10s",)


def test_a_checksum_that_the_hub_listed_tells_the_variant(tmp_path):
    path = toy.save(toy.checkpoint("transformer"), tmp_path / "my transformer.safetensors")
    store = Store(tmp_path / "store")
    listed = ListedFile("model_960x960.safetensors", path.stat().st_size, sha256_of(path))
    source = catalog.SOURCES["fusion-960x960_5s"]
    store.write_listing(source, Listing(source.repo, "r" * 40, (listed,)))
    (part,) = look(path, known=survey_module.known_transformers(store)).found
    assert part.variants == ("960x960_5s",)


# --- Linking


def test_importing_again_changes_nothing(tmp_path):
    write_ckpts(tmp_path / "ckpts")
    store = Store(tmp_path / "store")
    take(tmp_path / "ckpts", store)
    before = toy.snapshot(store.folder)
    take(tmp_path / "ckpts", store)
    after = toy.snapshot(store.folder)
    assert {name: state for name, state in after.items() if ".locks" not in name} == {
        name: state for name, state in before.items() if ".locks" not in name
    }


def test_where_symlinks_are_not_possible_hard_links_are_made(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = toy.save(toy.checkpoint("vocoder"), tmp_path / "vocoder.safetensors")
    store = Store(tmp_path / "store")
    take(path, store)
    (link,) = (store.folder / "imported" / "imported-vocoder").glob("*.safetensors")
    assert not link.is_symlink()
    assert link.samefile(path)


def test_removing_an_import_leaves_the_users_files(tmp_path):
    write_ckpts(tmp_path / "ckpts")
    store = Store(tmp_path / "store")
    taken = take(tmp_path / "ckpts", store)
    before = toy.snapshot(tmp_path / "ckpts")
    for name in taken:
        store.remove(catalog.SOURCES[name])
    assert toy.snapshot(tmp_path / "ckpts") == before


def test_an_import_whose_original_is_gone_counts_as_missing(tmp_path):
    path = toy.save(toy.checkpoint("transformer"), tmp_path / "Ovi" / "model.safetensors")
    store = Store(tmp_path / "store")
    take(path, store)
    path.unlink()
    assert "fusion-720x720_5s" in [source.name for source in readiness(VARIANTS["720x720_5s"], store).missing]


def test_adapters_that_fit_are_taken_and_found_by_their_id(tmp_path):
    lora = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 32),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(32, 4),
    }
    path = toy.save(lora, tmp_path / "loras" / "My style (v2).safetensors")
    toy.save({n: torch.ones(4, 999) for n in lora}, tmp_path / "loras" / "for another model.safetensors")
    store = Store(tmp_path / "store")
    assert list(take(tmp_path / "loras", store)) == ["My-style-v2"]
    assert find_adapter("My-style-v2", store).samefile(path)
    with pytest.raises(WeightsError, match="My-style-v2"):
        find_adapter("other", store)


# --- What is broken


def test_what_is_broken_is_reported_and_the_rest_still_seen(tmp_path):
    write_ckpts(tmp_path)
    (tmp_path / "Ovi" / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    state = toy.checkpoint("transformer")
    del state["audio_model.blocks.1.ffn.2.weight"]
    toy.save(state, tmp_path / "Ovi" / "model_960x960.safetensors")
    before = toy.snapshot(tmp_path)
    seen = look(tmp_path)
    reasons = "\n".join(part.reason for part in seen.broken)
    assert len(seen.broken) == 2
    assert "model.safetensors is damaged" in reasons
    assert "lacks the tensor 'audio_model.blocks.1.ffn.2.weight'" in reasons
    assert {part.kind for part in seen.found} == {*COMPONENTS, "tokenizer"}
    assert toy.snapshot(tmp_path) == before


def test_a_tower_alone_and_a_missing_shard_are_broken(tmp_path):
    toy.save(toy.tower(toy.checkpoint("transformer"), "video", ""), tmp_path / "ovi_720_video.safetensors")
    text = toy.library("text_encoder", toy.checkpoint("text_encoder"))
    text.pop("encoder.embed_tokens.weight")
    toy.save_shards(text, tmp_path / "text_encoder", "model", 3)[1].unlink()
    reasons = sorted(part.reason for part in look(tmp_path).broken)
    assert "has 2 of the 3 shards" in reasons[0]
    assert "the other tower is missing" in reasons[1]


# --- The command


@pytest.fixture
def toy_sized(monkeypatch, tmp_path):
    """The command looks for toy shapes, and the store is the test's own."""
    monkeypatch.setattr(survey_module, "VARIANTS", {**VARIANTS, "720x720_5s": TOY})
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path / "home"))


def run(capsysbinary, *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["models", "import", *map(str, arguments)])
    out, err = capsysbinary.readouterr()
    return code, out.decode(), err.decode()


def test_the_command_reports_and_links(toy_sized, tmp_path, capsysbinary):
    write_comfyui(tmp_path / "models")
    code, out, err = run(capsysbinary, tmp_path / "models")
    assert (code, err) == (0, "")
    assert "imported-transformer-960x960_10s: transformer, in float8 with scales" in out
    assert "missing  tokenizer, for 960x960_10s: ovi-studio models download tokenizer" in out
    code, out, _ = run(capsysbinary, tmp_path / "models", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["linked"]
    assert data["missing"] == {"960x960_10s": ["tokenizer"]}
    assert {part["kind"] for part in data["found"]} == set(COMPONENTS)


def test_the_command_asks_in_doubt(toy_sized, tmp_path, capsysbinary):
    path = toy.save(toy.checkpoint("transformer"), tmp_path / "mine.safetensors")
    code, _, err = run(capsysbinary, path)
    assert code == 2
    assert "--as: 720x720_5s, 960x960_5s, 960x960_10s" in err
    assert not (tmp_path / "home").exists()
    code, out, _ = run(capsysbinary, path, "--as", "960x960_10s")
    assert code == 0
    assert "imported-transformer-960x960_10s" in out


@pytest.mark.parametrize("name", ["none", "empty"])
def test_the_command_finds_nothing(name, toy_sized, tmp_path, capsysbinary):
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsysbinary, tmp_path / name)
    assert code == 2
    assert name in err


def test_the_command_links_nothing_where_something_is_broken(toy_sized, tmp_path, capsysbinary):
    write_ckpts(tmp_path / "ckpts")
    (tmp_path / "ckpts" / "Ovi" / "model.safetensors").write_bytes(b"x" * 4000)
    before = toy.snapshot(tmp_path / "ckpts")
    code, out, err = run(capsysbinary, tmp_path / "ckpts")
    assert code == 2
    assert "broken" in out
    assert "model.safetensors is damaged" in err
    assert not (tmp_path / "home").exists()
    assert toy.snapshot(tmp_path / "ckpts") == before


def test_the_command_says_when_as_contradicts_the_names(toy_sized, tmp_path, capsysbinary):
    path = toy.save(toy.checkpoint("transformer"), tmp_path / "ovi_720.safetensors")
    code, _, err = run(capsysbinary, path, "--as", "960x960_10s")
    assert code == 2
    assert "no transformer here can be 960x960_10s" in err
