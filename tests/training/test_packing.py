"""Packing: what the stages left becomes the package's nano, whole or not at all."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from ovi_studio import assets
from ovi_studio.cli import main as studio
from ovi_studio.cli import models
from ovi_studio.errors import WeightsError
from ovi_studio.training import packing
from ovi_studio.training.__main__ import main
from ovi_studio.variants import get_variant
from ovi_studio.weights.nano import fresh_nano, is_packed, load_nano


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as all stages leave it, with nano's own shapes; the video VAE has statistics that were measured."""
    folder = tmp_path_factory.mktemp("trained")
    pipeline = fresh_nano()
    pipeline.video_vae.register_to_config(latents_mean=[0.25] * 16, latents_std=[1.5] * 16)
    for name, stage in packing.STAGE_OF.items():
        getattr(pipeline, name).save_pretrained(folder / stage / "weights")
    on_from_an_earlier_stage = type(pipeline.audio_vae).from_pretrained(folder / "audio-decoder" / "weights")
    on_from_an_earlier_stage.save_pretrained(folder / "audio-decoder" / "weights")
    rows = [{"step": 7, "loss": 0.5}, {"step": 7, "test_loss": 0.4}]
    (folder / "fusion" / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = folder / "latents" / "train"
    shards.mkdir(parents=True)
    for number in range(2):
        (shards / f"{number:05d}.safetensors").touch()
    return folder


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("assets") / "nano"
    options = ["--seed", "3", "--hours", "7.5", "--machine", "a desk"]
    assert main(["pack", "--from", str(trained), "--out", str(out), *options]) == 0
    return out


def test_every_component_comes_back_as_float16_kept_it(packed):
    fresh, loaded = fresh_nano(), load_nano(packed)
    for name in packing.STAGE_OF:
        state = getattr(loaded, name).state_dict()
        for key, tensor in getattr(fresh, name).state_dict().items():
            assert state[key].dtype == tensor.dtype
            learned = tensor.is_floating_point() and not key.startswith(packing.FRONT_END)
            expected = tensor.half().to(tensor.dtype) if learned else tensor
            assert torch.equal(state[key], expected), (name, key)
        assert not getattr(loaded, name).training
    assert loaded.video_vae.config.latents_std == [1.5] * 16
    assert loaded.variant.name == "nano"
    assert loaded.tokenizer("seven").input_ids == fresh.tokenizer("seven").input_ids


def test_it_is_small_and_half(packed):
    size = sum(path.stat().st_size for path in packed.rglob("*.safetensors"))
    assert size <= packing.MAX_BYTES
    tensors = load_file(packed / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_no_folder_of_the_training_machine_is_packed(trained, packed):
    assert str(trained) in (trained / "audio-decoder" / "weights" / "config.json").read_text()
    assert not any(str(trained) in path.read_text() for path in packed.rglob("*.json"))


def test_the_card_tells_how_and_what(packed):
    card = json.loads((packed / "card.json").read_text())
    assert (card["seed"], card["hours"], card["machine"]) == (3, 7.5, "a desk")
    assert card["measured"]["fusion"] == {"step": 7, "test_loss": 0.4}
    assert any("fusion --out DIR --seed 3 --steps 7" in command for command in card["commands"])
    assert any(" latents --out DIR --seed 3 --steps 500" in command for command in card["commands"])
    assert "seven" in card["knows"]["words"]
    assert 1e6 < card["bytes"] <= packing.MAX_BYTES


def test_a_stage_that_has_not_run_is_named_and_nothing_is_touched(trained, packed, tmp_path, capsys):
    (tmp_path / "video-decoder").symlink_to(trained / "video-decoder")
    assert main(["pack", "--from", str(tmp_path), "--out", str(packed)]) == 2
    assert "lacks what text-encoder, fusion, audio-decoder, vocoder would leave" in capsys.readouterr().err
    assert is_packed(packed)


def test_too_much_or_too_large_numbers_are_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "MAX_BYTES", 1000)
    with pytest.raises(WeightsError, match="at most"):
        packing.pack(trained, tmp_path / "nano", {"seed": 0})
    monkeypatch.setattr(packing, "load_file", lambda _: {"w": torch.tensor([1e6])})
    with pytest.raises(WeightsError, match="does not fit into float16"):
        packing.pack(trained, tmp_path / "nano", {"seed": 0})
    assert not (tmp_path / "nano").exists()


def test_weights_that_were_not_packed_or_are_damaged_are_errors(packed, tmp_path):
    with pytest.raises(WeightsError, match="no packed weights"):
        load_nano(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"text_encoder in .* cannot be read"):
        load_nano(tmp_path)


def test_the_package_is_trained_once_its_card_is_there(packed, monkeypatch):
    monkeypatch.setattr(assets, "_PACKAGE", packed.parents[1])
    root = packed.parents[1]
    (root / "assets").symlink_to(packed.parent)
    assert assets.has_data(*assets.NANO_CARD)
    assert assets.nano_card()["seed"] == 3
    assert load_nano().video_vae.config.latents_std == [1.5] * 16
    (root / "assets").unlink()


def test_what_it_knows_is_shown(packed, monkeypatch, capfd):
    card = json.loads((packed / "card.json").read_text())
    monkeypatch.setattr(models, "get_variant", lambda name: replace(get_variant(name), trained=True))
    monkeypatch.setattr(models, "nano_card", lambda: card)
    assert studio(["models", "show", "nano"]) == 0
    out = capfd.readouterr().out
    assert "untrained" not in out
    assert "  words: zero, one, two" in out
    assert "A red face on the left says <S>seven three<E>." in out
