import json
import subprocess
import sys
from pathlib import Path

import pytest

from ovi_studio.errors import InvalidInputError
from ovi_studio.folders import app_folders, set_weights_folder
from ovi_studio.variants import VARIANTS, get_variant
from ovi_studio.weights.catalog import SOURCES, Slot, find, slots

FACTS = json.loads((Path(__file__).parents[1] / "goldens/data/facts.json").read_text())
RELEASED = [variant for variant in VARIANTS.values() if variant.fusion_file]


def preferred(variant: str, kind: str) -> Slot:
    return next(slot for slot in slots(get_variant(variant)) if slot.kind == kind)


# --- The table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", RELEASED, ids=lambda variant: variant.name)
def test_every_part_of_a_released_variant_has_a_source(variant):
    kinds = {slot.kind: slot.optional for slot in slots(variant)}
    needed = ["transformer", "text_encoder", "tokenizer", "video_vae", "audio_vae", "vocoder"]
    assert kinds == dict.fromkeys(needed, False) | {"image_model": True}
    assert all(choice.kind == slot.kind for slot in slots(variant) for choice in slot.choices)


def test_the_embedded_variant_needs_nothing():
    assert slots(get_variant("nano")) == ()


def test_the_files_are_the_recorded_ones():
    assert set(FACTS["models"]) == {variant.name for variant in RELEASED}
    for name, model in FACTS["models"].items():
        first = preferred(name, "transformer").choices[0]
        assert (first.repo, first.patterns) == ("chetwinlow1/Ovi", (model["file"],))
        assert get_variant(name).fusion_file == f"Ovi/{model['file']}"
    for kind in ("video_vae", "text_encoder", "tokenizer", "audio_vae", "vocoder"):
        repo, _, path = FACTS["checkpoints"][kind].split(" ")[0].partition("/")
        choice = [source for source in preferred("960x960_10s", kind).choices if not source.imported][-1]
        assert choice.repo.endswith(f"/{repo}")
        assert choice.patterns[0].removesuffix("/*") == path
    fp8 = FACTS["checkpoints"]["fusion_fp8"]
    others = {v.name: [s.patterns[0] for s in preferred(v.name, "transformer").choices[1:-1]] for v in RELEASED}
    assert others == {"720x720_5s": [fp8.split(" ")[0].removeprefix("Ovi/")], "960x960_5s": [], "960x960_10s": []}


def test_safetensors_are_preferred_to_pickles():
    for kind in ("text_encoder", "tokenizer", "video_vae"):
        first, second, _ = preferred("960x960_5s", kind).choices
        assert (first.repo, second.repo) == ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B")
        assert not any(pattern.endswith((".pth", ".pt")) for pattern in first.patterns)


def test_every_source_has_a_licence_that_can_be_read():
    assert all(source.license.link.startswith("https://") for source in SOURCES.values())
    assert [source.name for source in SOURCES.values() if source.gated] == ["flux-krea"]
    for name in ("audio-vae", "vocoder"):
        assert "no commercial use" in SOURCES[name].license.name


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    # The sizes that the hub's pages show, to the last digit that they show.
    [("fusion-720x720_5s", 23.3), ("fusion-720x720_5s-fp8", 11.7), ("text-encoder", 11.4), ("video-vae", 2.82)],
)
def test_expected_bytes_are_near_the_truth(name, gigabytes):
    assert SOURCES[name].expected_bytes(get_variant("720x720_5s")) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_patterns_stay_within_a_folder():
    encoder = SOURCES["text-encoder"]
    assert encoder.selects("text_encoder/model-00001-of-00003.safetensors")
    assert not encoder.selects("text_encoder/old/model.safetensors")
    assert not encoder.selects("text_encoder/README.md")
    assert not SOURCES["vocoder"].selects("elsewhere/ext_weights/best_netG.pt")
    assert encoder.unmatched(["text_encoder/config.json"]) == ("text_encoder/*.safetensors",)


def test_names_are_found_or_guessed():
    assert find("vocoder") is SOURCES["vocoder"]
    assert find("720x720_5s") is VARIANTS["720x720_5s"]
    with pytest.raises(InvalidInputError, match="Did you mean 'text-encoder'"):
        find("text_encoder")


def test_no_torch_is_needed():
    code = (
        "import sys; from ovi_studio.weights import catalog, download, hub, store\n"
        "print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- Folders ----------------------------------------------------------------------------------------------


def test_home_moves_everything(tmp_path):
    folders = app_folders({"OVI_STUDIO_HOME": str(tmp_path / "home")})
    for path in (folders.data, folders.cache, folders.weights, folders.settings):
        assert path.is_relative_to(tmp_path / "home")
        assert path.is_absolute()
    assert list(tmp_path.iterdir()) == []  # asking makes nothing
    assert app_folders({"OVI_STUDIO_HOME": "here"}).data == Path("here").absolute()


def test_without_home_the_system_decides(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    folders = app_folders({"OVI_STUDIO_HOME": ""})
    assert folders.weights.parent == folders.data
    assert len({folders.data, folders.cache, folders.settings.parent}) == 3 or sys.platform != "linux"
    assert all(path.is_absolute() for path in (folders.data, folders.cache))


def test_the_setting_moves_the_weights_alone(tmp_path):
    home = {"OVI_STUDIO_HOME": str(tmp_path / "home")}
    usual = app_folders(home)
    moved = set_weights_folder(tmp_path / "large disk", home)
    assert moved.weights == tmp_path / "large disk"
    assert app_folders(home) == moved
    assert (moved.data, moved.cache) == (usual.data, usual.cache)
    assert set_weights_folder(None, home) == usual


@pytest.mark.parametrize("text", ["{", "[]", '{"weights_folder": 7}', "\0\0"])
def test_broken_settings_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InvalidInputError, match=r"settings\.json"):
        app_folders({"OVI_STUDIO_HOME": str(tmp_path)})


def test_a_file_is_no_weights_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="not a folder"):
        set_weights_folder(tmp_path / "file", {"OVI_STUDIO_HOME": str(tmp_path)})
    assert not (tmp_path / "settings.json").exists()
