"""The weights in the package: `nano` makes what its card says that it knows.

How often it does is measured by `python -m ovi_studio.training evaluate`; these are prompts that it gets right.
"""

import time

import numpy as np
import pytest

from ovi_studio import media
from ovi_studio.assets import nano_card
from ovi_studio.engine.engine import OviEngine
from ovi_studio.events import CancelToken, Finished
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.request import GenerationRequest
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
    ("prompt", "sight", "pitch"),
    [
        ("A red face on the left says <S>seven three<E>. Audio: a low voice.", ("face", "red", "on the left"), None),
        ("A blue ball in the middle bounces twice. Audio: two thuds.", ("ball", "blue", "in the middle"), None),
        ("A green lamp on the right blinks once. Audio: a tone of 600 Hz.", ("lamp", "green", "on the right"), 600),
        ("A purple lamp on the right blinks once. Audio: a tone of 1000 Hz.", ("lamp", "purple", "on the right"), 1000),
    ],
)
def test_a_clip_shows_what_was_asked_for_and_its_sound_goes_with_it(nano, prompt, sight, pitch):
    started = time.process_time()
    made = nano(prompt, seed=0, output_type="np")
    took = time.process_time() - started
    frames = to_uint8(made.frames)
    seen = looks_like(frames)
    assert seen == sight
    assert abs(lag(frames, made.audio, seen)) <= 2
    if pitch is not None:
        assert pitch_of(made.audio) == pitch
    assert took < 60  # seconds of both cores: under 30 s on two


def test_fast_leaves_out_work_and_costs_little(tmp_path, monkeypatch):
    """The wish `fast` against `exact`, of the same seed: what `docs/performance.md` says of the step cache."""
    pipeline = load_nano()
    engine = OviEngine(tmp_path, tmp_path / "cache", load=lambda _variant, _store: pipeline)
    last = pipeline.transformer.blocks[-1]
    original, ran = type(last)._run, []

    def counted(block, *args):
        ran.append(block)
        return original(block, *args)

    monkeypatch.setattr(type(last), "_run", counted)

    def made(quality):
        prompt = "A red face on the left says <S>seven three<E>. Audio: a low voice."
        ran.clear()
        *_, done = engine.generate(GenerationRequest.create(prompt=prompt, seed=1, quality=quality), CancelToken())
        assert isinstance(done, Finished), done
        return np.stack(list(media.decode_frames(done.clip.path))) / 255, ran.count(last)

    (exact, all_steps), (fast, steps) = made("exact"), made("fast")
    engine.close()
    assert steps < 0.9 * all_steps
    assert -10 * np.log10(((fast - exact) ** 2).mean()) > 38  # dB; x264 has its share
