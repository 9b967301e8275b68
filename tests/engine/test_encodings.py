"""Encodings are computed once, kept under what went in, and never beyond the bound."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from ovi_studio.engine.encodings import Encodings, weights_digest
from ovi_studio.events import Stage
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.runtime.execution_plan import ComponentPlan
from ovi_studio.variants import Size
from ovi_studio.weights.nano import load_nano
from tests.runtime.plans import plan_of

TEXTS = ("a ball", "blur", "hiss")


class Stages:
    """Notes which stages were entered."""

    def __init__(self) -> None:
        self.entered: list[Stage] = []

    @contextlib.contextmanager
    def __call__(self, name: Stage) -> Iterator[None]:
        self.entered.append(name)
        yield


@pytest.fixture(scope="module")
def nano() -> OviPipeline:
    return load_nano()


@pytest.fixture
def encodings(nano: OviPipeline) -> Encodings:
    encodings = Encodings()
    encodings.loaded(nano)
    return encodings


def test_prompts_are_encoded_once(encodings: Encodings, nano: OviPipeline) -> None:
    stages = Stages()
    expected = nano.encode_prompts(*TEXTS)
    for _ in range(2):
        found = encodings.prompts(nano, plan_of(), TEXTS, stages)
        assert all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(expected).values(), strict=True))
    assert stages.entered == ["encode text"]


def test_only_what_is_new_is_encoded(encodings: Encodings, nano: OviPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    plain = nano.encode_prompt

    def noting(prompt: str) -> torch.Tensor:
        encoded.append(prompt)
        return plain(prompt)

    monkeypatch.setattr(nano, "encode_prompt", noting)
    encodings.prompts(nano, plan_of(), TEXTS, Stages())
    encodings.prompts(nano, plan_of(), ("a dog", "blur", "hiss"), Stages())
    assert encoded == [*TEXTS, "a dog"]


@pytest.mark.parametrize(
    "changes", [{"text_encoder": ComponentPlan("int8", "resident", "card")}, {"device_name": "another card"}]
)
def test_another_way_of_computing_is_another_encoding(
    encodings: Encodings, nano: OviPipeline, changes: dict[str, Any]
) -> None:
    stages = Stages()
    encodings.prompts(nano, plan_of(), TEXTS, stages)
    encodings.prompts(nano, plan_of(**changes), TEXTS, stages)
    assert len(stages.entered) == 2


def test_other_weights_are_another_encoding(encodings: Encodings) -> None:
    other, stages = load_nano(), Stages()
    encodings.prompts(other, plan_of(), TEXTS, stages)
    with torch.no_grad():
        next(other.text_encoder.parameters()).mul_(2)
    encodings.loaded(other)
    encodings.prompts(other, plan_of(), TEXTS, stages)
    assert len(stages.entered) == 2
    assert weights_digest(other.video_vae) == weights_digest(load_nano().video_vae)


def test_first_frames_are_kept_by_their_pixels_and_size(encodings: Encodings, nano: OviPipeline) -> None:
    stages, plan = Stages(), plan_of()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    expected = nano.encode_image(image, 64, 64)
    for _ in range(2):
        assert torch.equal(encodings.first_frame(nano, plan, image, Size(64, 64), stages), expected)
    encodings.first_frame(nano, plan, image, Size(64, 96), stages)
    encodings.first_frame(nano, plan, PIL.Image.fromarray(255 - pixels), Size(64, 64), stages)
    assert stages.entered == ["first frame"] * 3


def test_the_oldest_goes_first(nano: OviPipeline) -> None:
    one = nano.encode_prompt("a").nbytes
    encodings, stages = Encodings(max_bytes=3 * one), Stages()
    encodings.loaded(nano)
    encodings.prompts(nano, plan_of(), TEXTS, stages)
    encodings.prompts(nano, plan_of(), ("a dog", "blur", "hiss"), stages)  # "a ball" was used longest ago
    encodings.prompts(nano, plan_of(), ("a dog", "blur", "hiss"), stages)
    assert len(stages.entered) == 2
    encodings.prompts(nano, plan_of(), TEXTS, stages)
    assert len(stages.entered) == 3
