"""What measures `nano` is near perfect on true clips, and at chance where picture and sound are of different ones."""

import dataclasses
import itertools
import shutil
from typing import Any

import numpy as np
import PIL.Image
import pytest

from ovi_studio.training.evaluate import learn_words, recogniser_error
from ovi_studio.training.measures import Sight, lag, looks_like, pitch_of, psnr
from ovi_studio.training.recogniser import word_errors
from ovi_studio.training.toyland import COLOURS, FPS, NUM_SAMPLES, PLACES, SAMPLE_RATE, Lamp, Toyland
from ovi_studio.training.voices import SPEEDS, TEST_VOICES, TRAINING_VOICES, WORDS, Utterance, WordBank, record

COUNT = 30


@pytest.fixture(scope="module")
def clips(test_world):
    return [test_world.clip(index) for index in range(COUNT)]


def sight_of(clip) -> Sight:
    return Sight(clip.scene.kind, clip.scene.colour, clip.scene.place)


def blurred(frames: np.ndarray) -> np.ndarray:
    """As a poor decoder would show it."""
    small = [PIL.Image.fromarray(frame).resize((24, 24)).resize((96, 96)) for frame in frames]
    return np.stack([np.asarray(image) for image in small])


def test_things_colours_and_places_are_seen_also_through_a_blur(clips, world):
    for clip in [*clips, *(world.clip(index) for index in range(5))]:
        assert looks_like(clip.frames) == sight_of(clip)
        assert looks_like(blurred(clip.frames)) == sight_of(clip)


def test_other_clips_are_right_by_chance_alone(clips):
    right = [looks_like(one.frames)[:2] == sight_of(other)[:2] for one, other in itertools.pairwise(clips)]
    assert np.mean(right) < 0.2


def test_noise_is_something_but_never_right_more_often_than_chance(clips):
    noise = np.random.default_rng(0).integers(0, 256, clips[0].frames.shape, dtype=np.uint8)
    assert np.mean([looks_like(noise)[:2] == sight_of(clip)[:2] for clip in clips]) < 0.3


def test_true_clips_are_in_time(clips):
    lags = [lag(clip.frames, clip.waveform, sight_of(clip)) for clip in clips]
    assert all(value is not None and abs(value) <= 1 for value in lags)
    lags = [lag(blurred(clip.frames), clip.waveform, sight_of(clip)) for clip in clips]
    assert np.mean([value is not None and abs(value) <= 1 for value in lags]) > 0.95


@pytest.mark.parametrize("frames", [-5, 3, 8])
def test_a_sound_that_is_moved_has_that_lag(clips, frames):
    samples = round(frames * SAMPLE_RATE / FPS)
    lags = []
    for clip in clips:
        moved = np.roll(clip.waveform, samples)
        moved[: max(samples, 0)] = 0
        moved[len(moved) + min(samples, 0) :] = 0
        if np.abs(moved).sum() < 0.9 * np.abs(clip.waveform).sum():
            continue  # an event was cut off
        lags.append(lag(clip.frames, moved, sight_of(clip)) - frames)
    assert len(lags) > 15
    assert np.mean([abs(value) <= 1 for value in lags]) > 0.9


def test_sounds_of_other_clips_are_in_time_by_chance_alone(clips):
    in_time = []
    for kind in ("face", "ball", "lamp"):
        own = [clip for clip in clips if clip.scene.kind == kind]
        lags = [lag(a.frames, b.waveform, sight_of(a)) for a, b in itertools.pairwise(own)]
        in_time += [value is not None and abs(value) <= 1 for value in lags]
    assert np.mean(in_time) < 0.45


def test_nothing_to_see_or_hear_has_no_lag(clips):
    still = np.repeat(clips[0].frames[:1], len(clips[0].frames), axis=0)
    assert lag(still, clips[0].waveform, sight_of(clips[0])) is None
    assert lag(clips[0].frames, np.zeros(NUM_SAMPLES, np.float32), sight_of(clips[0])) is None


def test_tones_have_their_pitch(clips):
    lamps = [clip for clip in clips if isinstance(clip.scene, Lamp)]
    assert lamps
    assert [pitch_of(clip.waveform) for clip in lamps] == [clip.scene.pitch for clip in lamps]


def test_psnr_is_that_of_its_definition():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black, black + 10) == pytest.approx(20 * np.log10(25.5))


# --- Words ---------------------------------------------------------------------------------------------------


def test_errors_are_words_put_in_left_out_or_mistaken():
    assert word_errors((), ("one", "two")) == 2
    assert word_errors(("one", "two"), ("one", "two")) == 0
    assert word_errors(("two", "one"), ("one", "two")) == 2
    assert word_errors(("one", "six", "two"), ("one", "two")) == 1
    assert word_errors(("six",), ("one", "two")) == 2


def test_silence_says_nothing(bank):
    assert learn_words(bank).words(np.zeros(NUM_SAMPLES, np.float32)) == ()


LEARNED = {register: names[:2] for register, names in TEST_VOICES.items()}
SPEAKING = {register: names[:1] for register, names in TRAINING_VOICES.items()}


@pytest.fixture(scope="module")
def spoken() -> WordBank:
    """Real words, at every speed by two voices that speak here, and at one by four that teach the recogniser."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    learned = [Utterance(word, voice, SPEEDS[1]) for names in LEARNED.values() for voice in names for word in WORDS]
    spoken = [Utterance(w, voice, speed) for (voice,) in SPEAKING.values() for w in WORDS for speed in SPEEDS]
    return record((*learned, *spoken))


def test_words_of_voices_that_it_never_heard_are_recognised(spoken):
    error = recogniser_error(learn_words(spoken), Toyland(0, spoken, voices=SPEAKING), faces=16)
    assert error <= 0.05, f"{error:.1%} of the words of true clips"


def test_words_in_noise_are_recognised_and_other_words_are_not(spoken):
    recogniser, world = learn_words(spoken), Toyland(1, spoken, voices=SPEAKING)
    faces: list[Any] = [clip for clip in map(world.clip, range(20)) if clip.scene.kind == "face"]
    wrong = others = said = 0
    for clip, other in itertools.pairwise(faces):
        noise = 0.004 * np.random.default_rng(0).standard_normal(NUM_SAMPLES)  # 30 dB below speech
        heard = recogniser.words((clip.waveform + noise).astype(np.float32))
        wrong += word_errors(heard, clip.scene.words)
        others += min(len(other.scene.words), word_errors(heard, other.scene.words))
        said += len(clip.scene.words)
    assert wrong / said <= 0.1
    assert others / said > 0.6


def test_a_scene_of_each_sight_is_told_from_all_others(world):
    """All 54, drawn as the world draws them, off their places by a pixel or two."""
    examples: dict[str, Any] = {}
    index = 0
    while len(examples) < 3:
        examples.setdefault(world.scene(index).kind, world.scene(index))
        index += 1
    for scene in examples.values():
        for colour in COLOURS:
            for place, x in PLACES.items():
                moved = dataclasses.replace(scene, colour=colour, place=place, x=x + 1, y=scene.y)
                frames = moved.frames(moved.waveform(world.bank))
                assert looks_like(frames) == (scene.kind, colour, place)
