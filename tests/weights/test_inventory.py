"""What the store holds: variants and what they lack, adapters and what they ask for, and the commands upon both."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ovi_studio import cli
from ovi_studio.errors import WeightsError
from ovi_studio.variants import VARIANTS
from ovi_studio.weights import survey as survey_module
from ovi_studio.weights.adapters import read_adapter
from ovi_studio.weights.catalog import RELEASED, SOURCES, find, imported_source, slots
from ovi_studio.weights.headers import converted_path, converting_paths
from ovi_studio.weights.importing import adopt, plan_adoption
from ovi_studio.weights.inventory import (
    DISTILLATION_KEY,
    Distillation,
    adapter_ids,
    find_adapter,
    installed_adapters,
    readiness,
)
from ovi_studio.weights.pickles import as_safetensors
from ovi_studio.weights.store import FileRecord, ListedFile, Listing, State, Store
from ovi_studio.weights.survey import survey
from tests.weights import toy
from tests.weights.test_import import take, write_ckpts, write_comfyui
from tests.weights.toy import TOY

BIG = VARIANTS["960x960_10s"]
LORA = {
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 32),
    "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(32, 4),
}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "home" / "weights")


def put(store: Store, name: str, content: bytes = b"x") -> None:
    """A source with one small file, as a download leaves it."""
    source = SOURCES[name]
    path = source.patterns[0].replace("*", "file")
    file = store.path(source, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    store.write_record(source, FileRecord(source.repo, "r", path, len(content), "0" * 64))
    store.write_listing(source, Listing(source.repo, "r", (ListedFile(path, len(content), "0" * 64),)))


# --- Variants


def test_an_empty_store_lacks_everything_but_nano(store):
    assert readiness(VARIANTS["nano"], store).ready
    lacking = readiness(BIG, store)
    assert not lacking.ready
    assert [source.kind for source in lacking.missing] == [slot.kind for slot in slots(BIG) if not slot.optional]
    assert lacking.bytes_to_fetch / 1e9 == pytest.approx(38.6, abs=0.1)
    assert {terms.name.split(" ")[0] for terms in lacking.licenses} == {"Apache-2.0", "CC-BY-NC-4.0"}
    assert not store.folder.exists()


def test_what_is_there_or_has_begun_is_not_counted(store):
    before = readiness(BIG, store).bytes_to_fetch
    put(store, "vocoder")
    put(store, "audio-vae")
    source, file = SOURCES["fusion-960x960_10s"], ListedFile("model_960x960_10s.safetensors", 1000, "a" * 64)
    store.write_listing(source, Listing(source.repo, "r", (file,)))
    part = store.part_path(source, file)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(400))
    after = readiness(BIG, store)
    assert [source.name for source in after.missing] == ["fusion-960x960_10s", "text-encoder", "tokenizer", "video-vae"]
    expected = sum(SOURCES[name].expected_bytes(BIG) for name in ("fusion-960x960_10s", "vocoder", "audio-vae"))
    assert after.bytes_to_fetch == before - expected + 600
    assert {terms.name for terms in after.licenses} == {"Apache-2.0"}


def test_what_replaces_a_part_makes_ready_too(store):
    for name in ("fusion-720x720_5s-fp8", "text-encoder-original", "tokenizer", "video-vae", "audio-vae", "vocoder"):
        put(store, name)
    assert readiness(VARIANTS["720x720_5s"], store).ready
    assert not readiness(BIG, store).ready


# --- What was imported, by name


def test_every_imported_source_is_known_by_its_name():
    for name in RELEASED:
        for slot in slots(VARIANTS[name]):
            if not slot.optional:
                source = imported_source(slot.kind, name)
                assert slot.choices[-1] is source
                assert find(source.name) is source
                assert source.page == ""
                assert slot.choices[0].license.name in source.license.name


def test_a_partly_lost_import_is_not_what_a_download_completes(store, tmp_path):
    write_comfyui(tmp_path / "models")
    take(tmp_path / "models", store)
    slot = slots(BIG)[0]
    assert store.filled_by(slot).imported
    next((tmp_path / "models" / "diffusion_models").rglob("*audio*")).unlink()
    assert store.status(imported_source("transformer", BIG.name)).state is State.PARTIAL
    assert store.filled_by(slot).name == "fusion-960x960_10s"


def write_diffusers(root: Path) -> None:
    text = toy.library("text_encoder", toy.checkpoint("text_encoder"))
    text.pop("encoder.embed_tokens.weight")
    toy.save_shards(text, root / "text_encoder", "model", 3)
    toy.save(toy.library("video_vae", toy.checkpoint("video_vae")), root / "vae/diffusion_pytorch_model.safetensors")
    toy.save_shards(
        toy.library("transformer", toy.checkpoint("transformer")), root / "transformer", "diffusion_pytorch_model", 2
    )
    (root / "model_index.json").write_text('{"variant": "960x960_10s"}')
    toy.save_tokenizer(root / "tokenizer")


def write_hub_cache(root: Path) -> None:
    blobs = root / "models--hkchengrex--MMAudio" / "blobs"
    blob = toy.pickle({"generator": toy.checkpoint("vocoder")}, blobs / "abc.pt").rename(blobs / "abc")
    link = blobs.parent / "snapshots" / ("c" * 40) / "ext_weights" / "best_netG.pt"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)


@pytest.fixture
def command(monkeypatch, tmp_path, capsysbinary):
    """`ovi-studio models …`, looking for toy shapes → exit code, lines on stdout, stderr."""
    monkeypatch.setattr(survey_module, "VARIANTS", {**VARIANTS, "720x720_5s": TOY})
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> tuple[int, list[str], str]:
        code = cli.main(["models", *map(str, arguments)])
        out, err = capsysbinary.readouterr()
        return code, out.decode().splitlines(), err.decode()

    return run


@pytest.mark.parametrize("write", [write_ckpts, write_comfyui, write_diffusers, write_hub_cache])
def test_after_an_import_every_command_knows_it_and_remove_leaves_the_users_files(write, command, store, tmp_path):
    user = tmp_path / "user" / "Ovi"
    write(user)
    before = toy.snapshot(user)
    code, out, err = command("import", user, "--json")
    assert (code, err) == (0, "")
    names = [part["name"] for part in json.loads(out[0])["found"]]
    rows = {row["name"]: row for row in json.loads(command("list", "--json")[1][0])["models"]}
    assert not set(rows["960x960_10s"]["missing"]) & set(names)
    parts = {part["name"]: part for part in json.loads(command("show", "960x960_10s", "--json")[1][0])["parts"]}
    for name in set(names) & set(parts):
        assert parts[name]["state"] == "present"
        if name.startswith("imported-"):
            assert all(Path(file).is_relative_to(user) for file in parts[name]["files"])
            assert str(user) in "\n".join(command("show", "960x960_10s")[1])
    verified = [json.loads(line) for line in command("verify", "--json")[1]]
    assert {line["source"] for line in verified} == set(names)
    assert {line["finding"] for line in verified} == {"intact"}
    assert command("verify", *names)[0] == 0
    code, _, err = command("remove", *names, "--yes")
    assert code == 0
    assert "only the links" in err
    assert toy.snapshot(user) == before
    assert not [path for path in store.folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not [path for path in store.folder.rglob("*") if path.is_symlink()]


def test_an_import_that_another_source_outranks_says_so(command, store, tmp_path):
    put(store, "vocoder")
    toy.save(toy.checkpoint("vocoder"), tmp_path / "mine.safetensors")
    code, out, _ = command("import", tmp_path / "mine.safetensors")
    assert code == 0
    assert "note     imported-vocoder is not used as long as vocoder is here: ovi-studio models remove vocoder" in out


def test_what_is_imported_cannot_be_downloaded_and_damage_is_mended_by_importing(command, tmp_path):
    path = toy.save(toy.checkpoint("vocoder"), tmp_path / "mine.safetensors")
    command("import", path)
    code, _, err = command("download", "imported-vocoder")
    assert code == 2
    assert "ovi-studio models import" in err
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    code, _, err = command("verify")
    assert code == 2
    assert "import again" in err
    assert "models download" not in err
    assert "vocoder" in json.loads(command("list", "--json")[1][0])["models"][1]["missing"]
    assert command("import", path)[0] == 0
    assert command("verify", "imported-vocoder")[0] == 0


def test_the_store_itself_is_not_imported(command, store, tmp_path):
    write_ckpts(tmp_path / "home" / "ckpts")
    assert command("import", tmp_path / "home")[0] == 0
    before = toy.snapshot(store.folder)
    assert command("import", store.folder)[0] == 2
    assert command("import", tmp_path / "home")[0] == 0
    assert toy.snapshot(store.folder).keys() == before.keys()


def test_a_link_never_takes_the_place_of_the_file_that_it_means(store, tmp_path):
    source = SOURCES["vocoder"]
    path = store.path(source, "ext_weights/best_netG.pt")
    toy.pickle({"generator": toy.checkpoint("vocoder")}, path)
    (part,) = survey(path, shapes=TOY).found
    adopt(part, store)
    assert path.is_file()
    assert not path.is_symlink()
    assert store.status(source).state is State.PRESENT


@pytest.mark.parametrize("arguments", [["import", ""], ["where", "--set", ""]])
def test_an_empty_name_is_not_the_folder_one_is_in(arguments, command, tmp_path):
    assert command(*arguments)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_a_line(command, monkeypatch, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = toy.save(LORA, tmp_path / "style.safetensors")
    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = command("import", path)
    assert code == 2
    assert "is full" in err
    assert len(err.splitlines()) == 1
    assert not list((tmp_path / "home" / "weights" / "adapters").iterdir())


def test_what_the_system_keeps_closed_counts_as_missing(store, monkeypatch):
    put(store, "vocoder")
    path = store.paths(SOURCES["vocoder"])[0]
    stat = Path.stat

    def closed(self: Path, **options: bool):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", closed)
    assert store.status(SOURCES["vocoder"]).state is State.MISSING
    assert readiness(BIG, store).missing


# --- Removing what was made


def test_remove_takes_conversions_and_their_beginnings(store, tmp_path):
    toy.pickle({"generator": toy.checkpoint("vocoder")}, tmp_path / "MMAudio/ext_weights/best_netG.pt")
    take(tmp_path / "MMAudio", store)
    (link,) = store.paths(SOURCES["vocoder"])
    as_safetensors(link)
    beginning, _ = converting_paths(link)
    beginning.write_bytes(b"half")
    assert converted_path(link).is_file()
    assert {converted_path(link), beginning, link} <= set(store.removable(SOURCES["vocoder"]))
    store.remove(SOURCES["vocoder"])
    assert not list((store.folder / "hkchengrex").rglob("*"))
    assert [path.name for path in (tmp_path / "MMAudio").rglob("*.*")] == ["best_netG.pt"]


def test_a_damaged_conversion_is_made_again(tmp_path):
    path = toy.pickle(toy.checkpoint("vocoder"), tmp_path / "m.pt")
    converted = as_safetensors(path)
    right = converted.read_bytes()
    converted.write_bytes(right[:100])
    assert as_safetensors(path).read_bytes() == right


# --- Adapters


def test_installed_adapters_tell_what_they_ask_for(store, tmp_path):
    loras = tmp_path / "loras"
    toy.save(LORA, loras / "My style (v2).safetensors")
    toy.save(LORA, loras / "Wan2_2_5B_FastWanFullAttn.safetensors")
    wish = json.dumps({"num_inference_steps": 4, "shift": 5.0})
    toy.save(LORA, loras / "turbo.safetensors", {DISTILLATION_KEY: wish, "modelspec.title": "Turbo"})
    toy.pickle(LORA, loras / "old.pt")
    take(loras, store)
    as_safetensors(find_adapter("old", store))  # the conversion is no adapter of its own
    found = {adapter.id: adapter for adapter in installed_adapters(store)}
    assert list(found) == ["My-style-v2", "Wan2_2_5B_FastWanFullAttn", "old", "turbo"]
    assert {name: adapter.distillation for name, adapter in found.items() if adapter.distillation} == {
        "turbo": Distillation(4, 5.0, 1.0),
        "Wan2_2_5B_FastWanFullAttn": Distillation(3, 2.0, 1.0),
    }
    assert (found["turbo"].name, found["old"].name) == ("Turbo", "old")
    assert found["old"].size == (loras / "old.pt").stat().st_size
    assert found["old"].path == find_adapter("old", store)


def test_a_damaged_or_lost_adapter_spoils_no_list(store, tmp_path):
    paths = [toy.save(LORA, tmp_path / f"{name}.safetensors") for name in ("damaged", "lost")]
    for path in paths:
        take(path, store)
    paths[0].write_bytes(b"x" * 3000)
    paths[1].unlink()
    assert [adapter.id for adapter in installed_adapters(store)] == ["damaged"]
    assert adapter_ids(store) == ("damaged", "lost")
    with pytest.raises(WeightsError, match="imported ones: damaged"):
        find_adapter("lost", store)


@pytest.mark.parametrize(
    ("path", "adapter"),
    [
        ("dogs/pytorch_lora_weights.safetensors", "dogs"),
        ("models--me--dogs/snapshots/" + "a" * 40 + "/pytorch_lora_weights.safetensors", "me-dogs"),
        ("vocoder.safetensors", "adapter-vocoder"),
        ("..hidden--.safetensors", "hidden"),
    ],
)
def test_an_adapters_id_comes_from_the_name_that_a_person_gave(path, adapter, tmp_path):
    toy.save(LORA, tmp_path / path)
    taken, _ = plan_adoption(survey((tmp_path / path).parent if "models--" not in path else tmp_path, shapes=TOY).found)
    if path.startswith(".."):  # hidden files are not looked at, unless they are named
        taken, _ = plan_adoption(survey(tmp_path / path, shapes=TOY).found)
    assert list(taken) == [adapter]


def test_pefts_scale_survives_the_import(store, tmp_path):
    names = {name.replace("diffusion_model.", "base_model.model."): tensor for name, tensor in LORA.items()}
    toy.save(names, tmp_path / "cats" / "adapter_model.safetensors")
    (tmp_path / "cats" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    take(tmp_path / "cats", store)
    (layer,) = read_adapter(find_adapter("cats", store)).towers[None].values()
    assert torch.equal(layer.up, torch.full((32, 4), 2.0))
    (direct,) = read_adapter(tmp_path / "cats" / "adapter_model.safetensors").towers[None].values()
    assert torch.equal(direct.up, layer.up)


def test_adapters_are_listed_verified_and_removed_by_their_id(command, store, tmp_path):
    paths = [toy.save(LORA, tmp_path / f"{name}.safetensors") for name in ("my", "my.style", "FastWan")]
    for path in paths:
        assert command("import", path)[0] == 0
    lines = command("list")[1]
    assert "adapter      FastWan, 1 kB, asks for 3 steps in one pass" in lines
    listed = json.loads(command("list", "--json")[1][0])["adapters"]
    assert listed[0]["distillation"] == {"num_inference_steps": 3, "shift": 2.0, "guidance_scale": 1.0}
    assert command("verify", "my", "my.style")[1] == [
        f"intact   {store.folder}/adapters/my.safetensors",
        f"intact   {store.folder}/adapters/my.style.safetensors",
    ]
    assert "Did you mean 'FastWan'?" in command("remove", "FastWn")[2]
    assert command("remove", "my", "--yes")[0] == 0
    assert adapter_ids(store) == ("FastWan", "my.style")
    paths[2].unlink()
    assert command("remove", "FastWan", "--yes")[0] == 0
    assert adapter_ids(store) == ("my.style",)
    assert all(path.exists() for path in paths[:2])


# --- What a folder may hold besides


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": "[1]"},
        {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}'},
        {
            "tokenizer_config.json": '{"tokenizer_class": "T5Tokenizer"}',
            "tokenizer.json": '{"version": "1.0", "added_tokens": [], "model": {"type": "Nope"}}',
        },
    ],
    ids=["list", "code", "newer"],
)
def test_another_programs_tokenizer_is_passed_over(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert survey(tmp_path, shapes=TOY).found == ()


def test_pickles_of_other_programs_do_not_stop_an_import(tmp_path):
    write_comfyui(tmp_path / "models")
    (tmp_path / "models" / "vae" / "other.ckpt").write_bytes(b"\x80\x02cposix\nsystem\n.")
    assert not survey(tmp_path / "models", shapes=TOY).broken
    (tmp_path / "models" / "vae" / "v1-16.pth").write_bytes(b"\x80\x02cposix\nsystem\n.")
    assert len(survey(tmp_path / "models", shapes=TOY).broken) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    subprocess.run(["mkfifo", tmp_path / "ovi.safetensors"], check=True)
    assert survey(tmp_path, shapes=TOY).found == ()
