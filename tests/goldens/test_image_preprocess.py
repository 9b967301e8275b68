"""First frames: size and resized pixels against the recorded ones."""

import PIL.Image
import pytest
import torch

from ovi_studio.model.pipeline import preprocess_image
from ovi_studio.variants import size_for_image, snap_size
from tests.goldens import cases

pytestmark = pytest.mark.golden
FACTS = cases.facts("image_preprocess")
TENSORS = cases.tensors("image_preprocess")
TOLERANCE = 2e-5
MODES = [key.split(".")[0] for key in TENSORS if key.startswith("mode_") and key.endswith(".out")]


@pytest.mark.parametrize("case", FACTS["cases"], ids=lambda case: f"{case['h']}x{case['w']}")
def test_size_and_pixels(case: dict) -> None:
    area = case["area"]
    size = snap_size(case["h"], case["w"]) if area is None else size_for_image(case["h"], case["w"], area)
    assert size == tuple(case["out"][2:])
    picture = PIL.Image.fromarray(TENSORS[f"{case['case']}.image"].numpy())
    cases.assert_close(preprocess_image(picture, *size), TENSORS[f"{case['case']}.out"], TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_other_picture_modes(mode: str) -> None:
    name = mode.removeprefix("mode_")
    if name == "P":  # the recording keeps palette indices only; the palette is Pillow's adaptive one of picture 0
        picture = PIL.Image.fromarray(TENSORS["0.image"].numpy()).convert("P", palette=PIL.Image.Palette.WEB)
    else:
        picture = PIL.Image.fromarray(TENSORS[f"{mode}.image"].numpy(), mode=name)
    expected = TENSORS[f"{mode}.out"]
    cases.assert_close(preprocess_image(picture, *expected.shape[2:]), expected, TOLERANCE)


def test_arrays_and_tensors_are_taken_too() -> None:
    pixels = TENSORS["0.image"]
    expected = preprocess_image(PIL.Image.fromarray(pixels.numpy()), 64, 64)
    cases.assert_close(preprocess_image(pixels.numpy(), 64, 64), expected, 0)
    cases.assert_close(preprocess_image(pixels.permute(2, 0, 1).float() / 127.5 - 1, 64, 64), expected, 1e-6)
    assert isinstance(expected, torch.Tensor)
