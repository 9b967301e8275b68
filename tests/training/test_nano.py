"""The weights in the package: `nano` makes what its card says that it knows.

How often it does is measured by `python -m ovi_studio.training evaluate`; these are prompts that it gets right.
"""

import time

import pytest

from ovi_studio.assets import nano_card
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.training.evaluate import to_uint8
from ovi_studio.training.measures import lag, looks_like, pitch_of
from ovi_studio.variants import get_variant
from ovi_studio.weights.nano import load_nano


@pytest.fixture(scope="module")
def nano() -> OviPipeline:
    pipeline = load_nano()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_package_has_trained_weights():
    assert get_variant("nano").trained
    card = nano_card()
    assert card["bytes"] <= 25_000_000
    assert {"commands", "seed", "hours", "machine", "measured"} <= card.keys()


@pytest.mark.parametrize(
    ("prompt", "sight"),
    [
        ("A red face on the left says <S>seven three<E>. Audio: a low voice.", ("face", "red", "on the left")),
        ("A blue ball in the middle bounces twice. Audio: two thuds.", ("ball", "blue", "in the middle")),
        ("A green lamp on the right blinks once. Audio: a tone of 600 Hz.", ("lamp", "green", "on the right")),
    ],
)
def test_a_clip_shows_what_was_asked_for_and_its_sound_goes_with_it(nano, prompt, sight):
    started = time.process_time()
    made = nano(prompt, seed=0, output_type="np")
    took = time.process_time() - started
    frames = to_uint8(made.frames)
    seen = looks_like(frames)
    assert seen == sight
    assert abs(lag(frames, made.audio, seen)) <= 2
    if sight[0] == "lamp":
        assert pitch_of(made.audio) == 600
    assert took < 60  # seconds of both cores: under 30 s on two
