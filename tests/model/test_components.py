"""Models that have shapes and no memory."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils import _device
from transformers import initialization

from ovi_studio.model import components
from ovi_studio.variants import get_variant


@pytest.fixture
def transformers_came_first() -> Iterator[None]:
    """A process in which the first device context was one of transformers' own, while it loaded a model."""
    _device._device_constructors.cache_clear()
    with initialization.meta_device_safe_creation_ops(), torch.device("meta"):
        torch.empty(1)
    yield
    _device._device_constructors.cache_clear()


@pytest.mark.usefixtures("transformers_came_first")
@pytest.mark.parametrize(
    "build",
    [
        components.build_transformer, components.build_text_encoder, components.build_video_vae,
        components.build_audio_vae, components.build_vocoder,
    ],
)  # fmt: skip
def test_models_on_meta_hold_nothing(build):
    with components.on_meta():
        module = build(get_variant("960x960_10s"))
    held = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.device.type != "meta"]
    assert not held


@pytest.mark.usefixtures("transformers_came_first")
def test_why_not_a_device_context():
    with torch.device("meta"), pytest.raises(RuntimeError, match="expected device meta"):
        components.build_audio_vae(get_variant("960x960_10s"))
