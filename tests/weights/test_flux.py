"""FLUX.1's parts out of the store: whole, or refused in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi_studio.errors import WeightsError
from ovi_studio.flux import FLUX_KREA
from ovi_studio.weights.flux import load_scheduler, load_text_encoders, load_transformer, load_vae
from ovi_studio.weights.image_model import image_model, image_model_digest, image_model_folder
from ovi_studio.weights.store import Store
from tests.flux import SIDE, put_in_store, tiny_flux

_T5_NORM = "encoder.final_layer_norm.weight"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    put_in_store(tiny_flux(), store)
    return store


def test_the_parts_are_what_was_stored(store: Store) -> None:
    original, folder = tiny_flux(), image_model_folder(store)
    writer = load_text_encoders(folder, torch.float32)
    loaded = {
        "transformer": load_transformer(folder, torch.float32),
        "vae": load_vae(folder, torch.float32),
        "text_encoder": writer.text_encoder,
        "text_encoder_2": writer.text_encoder_2,
    }
    for name, module in loaded.items():
        expected = getattr(original, name).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert load_scheduler(folder).config.shift == original.scheduler.config.shift
    assert load_transformer(folder, torch.bfloat16).dtype == torch.bfloat16


def test_the_planner_reads_what_it_is_made_of(store: Store, tmp_path: Path) -> None:
    model = image_model(store)
    assert (model.num_layers, model.num_single_layers, model.dim, model.sample_size) == (1, 2, 64, SIDE)
    assert model.transformer_parameters == sum(p.numel() for p in tiny_flux().transformer.parameters())
    assert image_model(Store(tmp_path / "empty")) == FLUX_KREA
    assert image_model_digest(store) != image_model_digest(Store(tmp_path / "empty"))


def test_where_nothing_is_the_command_and_the_licence_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="ovi-studio models download flux-krea") as told:
        image_model_folder(Store(tmp_path))
    assert "https://huggingface.co/black-forest-labs/FLUX.1-Krea-dev" in told.value.remedy


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _lie(path: Path) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_layers": 5}))


@pytest.mark.parametrize(
    ("part", "file", "harm"),
    [
        ("transformer", "diffusion_pytorch_model.safetensors", lambda p: _rewrite(p, lambda t: t.pop("proj_out.bias"))),
        ("transformer", "diffusion_pytorch_model.safetensors", _cut),
        ("transformer", "diffusion_pytorch_model.safetensors", Path.unlink),
        ("transformer", "config.json", _lie),
        ("transformer", "config.json", lambda path: path.write_text("{")),
        ("text_encoder_2", "model.safetensors", lambda p: _rewrite(p, lambda t: t.pop(_T5_NORM))),
        ("text_encoder_2", "config.json", _lie),
        ("vae", "diffusion_pytorch_model.safetensors", _cut),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused(store: Store, part: str, file: str, harm: Callable[[Path], object]) -> None:
    folder = image_model_folder(store)
    harm(folder / part / file)
    load = {"transformer": load_transformer, "text_encoder_2": load_text_encoders, "vae": load_vae}[part]
    with pytest.raises(WeightsError, match="models verify flux-krea"):
        load(folder, torch.float32)
