"""Full-size models on the meta device against the recorded tensor lists of the published files.

The lists are read from the project's own copy whatever `OVI_GOLDENS` names: there is one full size.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ovi_studio.model import components
from ovi_studio.variants import VARIANTS
from ovi_studio.weights import convert

pytestmark = pytest.mark.golden

MANIFESTS = Path(__file__).parents[1] / "manifests"
RELEASED = [name for name, variant in VARIANTS.items() if variant.fusion_file]

COMPONENTS = {
    "fusion": (
        components.build_transformer,
        convert.fusion_from_checkpoint,
        convert.fusion_to_checkpoint,
    ),
    "wan_vae22": (
        components.build_video_vae,
        convert.video_vae_from_checkpoint,
        convert.video_vae_to_checkpoint,
    ),
    "umt5_xxl_encoder": (
        components.build_text_encoder,
        convert.text_encoder_from_checkpoint,
        convert.text_encoder_to_checkpoint,
    ),
    "mmaudio_vae_16k": (
        components.build_audio_vae,
        convert.audio_vae_from_checkpoint,
        convert.audio_vae_to_checkpoint,
    ),
    "bigvgan_16k": (
        components.build_vocoder,
        convert.vocoder_from_checkpoint,
        convert.vocoder_to_checkpoint,
    ),
}


@cache
def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MANIFESTS / f"{name}.json").read_text())
    return loaded


def shapes(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in state.items()}


def recorded_shapes(name: str) -> dict[str, list[int]]:
    return {key: tensor["shape"] for key, tensor in manifest(name)["keys"].items()}


def on_meta(component: str, variant: str) -> nn.Module:
    with components.on_meta():
        return COMPONENTS[component][0](VARIANTS[variant])


@pytest.mark.parametrize("variant", RELEASED)
@pytest.mark.parametrize("component", COMPONENTS)
def test_the_model_has_exactly_the_published_tensors(component, variant):
    model = on_meta(component, variant)
    _, from_checkpoint, to_checkpoint = COMPONENTS[component]

    published = {key: torch.empty(shape, device="meta") for key, shape in recorded_shapes(component).items()}
    assert shapes(from_checkpoint(published)) == shapes(model.state_dict())

    written = to_checkpoint(model.state_dict())
    assert shapes(written) == recorded_shapes(component)
    assert len(written) == manifest(component)["tensor_count"]
    assert sum(tensor.numel() for tensor in written.values()) == manifest(component)["state_dict_numel"]


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name != "bigvgan_16k"])
def test_the_model_has_the_recorded_number_of_parameters(component):
    model = on_meta(component, RELEASED[0])
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest(component)["param_count"]


def test_the_fusion_model_has_the_size_that_the_paper_and_the_files_give():
    model = on_meta("fusion", RELEASED[0])
    assert len(model.state_dict()) == 2073
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_660_753_108
    towers = manifest("fusion")["submodels"]
    for tower in ("video", "audio"):
        own = [p.numel() for name, p in model.named_parameters() if tower in name.split(".")[:3]]
        assert sum(own) == towers[f"{tower}_model"]


def test_the_vocoder_without_weight_norm_has_as_many_parameters_as_with_it_less_the_gains():
    model = on_meta("bigvgan_16k", RELEASED[0])
    recorded = recorded_shapes("bigvgan_16k")
    gains = sum(torch.Size(shape).numel() for key, shape in recorded.items() if key.endswith("weight_g"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == manifest("bigvgan_16k")["param_count"] - gains
