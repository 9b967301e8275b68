"""The toy world: the same clip every time, picture and sound of one cause, and nothing that it holds out."""

import itertools
from typing import Any

import numpy as np
import pytest

from ovi_studio.prompt import parse
from ovi_studio.training import toyland
from ovi_studio.training.toyland import COLOURS, FPS, HELD_OUT, PLACES, SAMPLE_RATE, Ball, Face, Lamp, Toyland
from ovi_studio.training.voices import TEST_VOICES, TRAINING_VOICES, WORDS
from ovi_studio.variants import get_variant

MANY = 400


def clips_of(world: Toyland, kind: type, count: int = 6) -> list[Any]:
    found = (world.clip(index) for index in range(200))
    return [clip for clip in found if isinstance(clip.scene, kind)][:count]


def test_clips_have_the_shape_of_nanos(world):
    nano, clip = get_variant("nano"), world.clip(0)
    assert clip.frames.shape == (nano.num_frames, *nano.default_size, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.waveform.shape == (nano.num_samples,)
    assert clip.waveform.dtype == np.float32
    assert np.abs(clip.waveform).max() <= 1


def test_a_clip_depends_on_seed_and_index_alone(bank):
    one, again, other = Toyland(3, bank), Toyland(3, bank), Toyland(4, bank)
    one.clip(0)  # what was asked before does not matter
    assert one.scene(5) == again.scene(5)
    assert one.scene(5) != other.scene(5)
    assert one.scene(5) != one.scene(6)
    assert np.array_equal(one.clip(5).frames, again.clip(5).frames)
    assert np.array_equal(one.clip(5).waveform, again.clip(5).waveform)


def test_some_frames_are_those_of_the_whole_clip(world):
    for index in range(8):
        clip = world.clip(index)
        assert np.array_equal(clip.scene.frames(clip.waveform, 10, 5), clip.frames[10:15])


def test_training_never_makes_what_is_held_out_and_testing_nothing_else(world, test_world):
    for scene in (world.scene(index) for index in range(MANY)):
        assert (scene.kind, scene.colour, scene.place) not in HELD_OUT
        assert not (isinstance(scene, Face) and toyland.words_are_held_out(scene.words))
    for scene in (test_world.scene(index) for index in range(MANY)):
        words = isinstance(scene, Face) and toyland.words_are_held_out(scene.words)
        assert words or (scene.kind, scene.colour, scene.place) in HELD_OUT


def test_every_part_of_what_is_held_out_trains_in_other_company(world):
    scenes = [world.scene(index) for index in range(MANY)]
    assert {(scene.kind, scene.colour) for scene in scenes} == {
        (k, c) for k in ("face", "ball", "lamp") for c in COLOURS
    }
    assert {(scene.kind, scene.place) for scene in scenes} == {(k, p) for k in ("face", "ball", "lamp") for p in PLACES}


def test_voices_of_training_and_testing_are_others(world, test_world):
    def voices(world):
        return {s.voice for s in (world.scene(index) for index in range(MANY)) if isinstance(s, Face)}

    assert voices(world) == {voice for names in TRAINING_VOICES.values() for voice in names}
    assert voices(test_world) == {voice for names in TEST_VOICES.values() for voice in names}


def test_a_tenth_of_all_pairs_of_words_is_held_out():
    pairs = [(one, other) for one in WORDS for other in WORDS]
    assert sum(toyland.words_are_held_out(pair) for pair in pairs) == 10
    assert not any(toyland.words_are_held_out((word,)) for word in WORDS)


def test_captions_are_prompts_in_nanos_dialect(world):
    for clip in clips_of(world, Face):
        prompt = parse(clip.caption)
        assert [speech.words for speech in prompt.speeches] == [" ".join(clip.scene.words)]
        assert [caption.words for caption in prompt.captions] == [f"a {clip.scene.register} voice."]
        assert clip.caption.startswith(f"A {clip.scene.colour} face {clip.scene.place} says ")
    for clip in clips_of(world, Lamp):
        assert clip.caption.endswith(f"Audio: a tone of {clip.scene.pitch} Hz.")
    for clip in clips_of(world, Ball):
        thuds = ("one thud", "two thuds", "three thuds")[len(clip.scene.impacts) - 1]
        assert clip.caption.endswith(f"Audio: {thuds}.")


# --- Picture and sound -----------------------------------------------------------------------------------------


def loudness(waveform: np.ndarray) -> np.ndarray:
    """Root mean square of each frame's sound, reckoned without the code under test."""
    starts = [round(frame * SAMPLE_RATE / FPS) for frame in range(50)]
    return np.array([np.sqrt(np.mean(waveform[a:b] ** 2)) for a, b in itertools.pairwise(starts)])


def test_the_mouth_opens_with_the_sound(world):
    for clip in clips_of(world, Face):
        x, y = (round(centre) for centre in clip.scene.focus(0.0))
        column = clip.frames[:, y - 12 : y + 12, x].astype(int)
        dark_red = np.abs(column - (110, 16, 32)).sum(-1) < 30
        rows = dark_red.sum(1)
        loud = loudness(clip.waveform)
        assert rows[loud == 0].max() <= 5
        assert rows[loud > 0.1].min() >= 8
        assert np.corrcoef(rows, loud)[0, 1] > 0.9


def test_every_impact_thuds_in_its_frame(world):
    for clip in clips_of(world, Ball):
        heights = clip.scene.animation(clip.waveform)
        loud = loudness(clip.waveform)
        for impact in clip.scene.impacts:
            frame = int(impact * FPS)
            begin = round(impact * SAMPLE_RATE)
            assert (
                np.abs(clip.waveform[begin : begin + 80]).max() > 10 * np.abs(clip.waveform[begin - 80 : begin]).max()
            )
            assert loud[frame] + loud[frame + 1] > loud[frame - 1]
            assert heights[frame : frame + 2].min() < 10  # it can be a frame's fall away from the floor at most
        assert heights[-1] == 0
        assert loud[: int(clip.scene.impacts[0] * FPS)].max() == 0


def test_the_ball_lies_on_the_floor_exactly_at_its_impacts(world):
    for clip in clips_of(world, Ball):
        times = np.linspace(0, 2, 20_001)
        heights = clip.scene.elevation(times)
        assert heights.min() >= 0
        touching = times[(heights < 0.05) & (times < clip.scene.impacts[-1])]
        assert all(min(abs(time - impact) for impact in clip.scene.impacts) < 2e-3 for time in touching)
        assert np.abs(clip.scene.elevation(np.array(clip.scene.impacts))).max() < 1e-6


def test_the_lamp_is_on_while_its_tone_sounds_and_the_tone_has_its_pitch(world):
    for clip in clips_of(world, Lamp):
        x, y = round(clip.scene.x), round(clip.scene.y)
        glow = clip.frames[:, y - 21, x].astype(int)
        on = np.abs(glow - (255, 250, 220)).sum(-1) < 30
        loud = loudness(clip.waveform) > 0.1
        assert (on != loud).sum() <= 2 * len(clip.scene.flashes)  # a frame that is partly on may count either way
        assert np.all(loudness(clip.waveform)[~on & ~np.roll(on, 1) & ~np.roll(on, -1)] == 0)
        start, end = (round(time * SAMPLE_RATE) for time in clip.scene.flashes[0])
        spectrum = np.abs(np.fft.rfft(clip.waveform[start:end], SAMPLE_RATE))
        assert abs(spectrum.argmax() - clip.scene.pitch) <= 2


@pytest.mark.parametrize("kind", [Face, Ball, Lamp])
def test_things_have_the_colour_and_the_place_of_the_caption(world, kind):
    for clip in clips_of(world, kind, count=12):
        on = clip.scene.animation(clip.waveform).argmax() if kind is Lamp else 0
        near = np.abs(clip.frames[on].astype(int) - COLOURS[clip.scene.colour]).sum(-1) < 20
        assert near.sum() > 300
        assert abs(np.nonzero(near)[1].mean() - PLACES[clip.scene.place]) < 4
        assert f" {clip.scene.colour} " in clip.caption
        assert clip.scene.place in clip.caption


def test_everything_stays_in_the_picture_and_in_the_clip(world):
    for scene in (world.scene(index) for index in range(MANY)):
        if isinstance(scene, Ball):
            assert scene.impacts[-1] < toyland.DURATION - 0.15
            assert scene.impacts[0] >= np.sqrt(2 * scene.height / Ball.gravity) - 1e-9
        if isinstance(scene, Lamp):
            assert scene.flashes[-1][1] < toyland.DURATION
        if isinstance(scene, Face):
            last = world.bank.say(scene.words[-1], scene.voice, scene.speed)
            assert scene.starts[-1] + len(last) / SAMPLE_RATE < toyland.DURATION
