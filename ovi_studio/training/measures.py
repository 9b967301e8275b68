"""What is to be seen and heard in a clip of the toy world, measured on its picture and its sound alone.

    looks_like(frames)              which thing, of which colour, at which place
    lag(frames, waveform, sight)    frames by which the sound comes after what is seen
    pitch_of(waveform)              the tone
    psnr(one, other)                of two pictures

The classifier knows the world's palette and shapes: it draws every thing in every colour, place and state on every
wall, and takes what all frames together are nearest to. Nothing of it is trained, so nothing of it can be overfitted.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ovi_studio.training.toyland import (
    COLOURS,
    NUM_FRAMES,
    PITCHES,
    PLACES,
    SAMPLE_RATE,
    SIZE,
    WALLS,
    Ball,
    Face,
    Frames,
    Lamp,
    Scene,
    mouth_opening,
)
from ovi_studio.training.voices import Waveform

Signal = npt.NDArray[np.float64]  # one number a frame, (NUM_FRAMES,)

MAX_LAG = 12  # frames, half a second: a clip's next event is seldom nearer
_CELL = 4  # pixels each way that are one number for the classifier
_EVERY = 3  # frames from one that the classifier looks at to the next
_FLAT = 1e-6  # of a signal's spread: nothing happens
_MOUTH = (110, 16, 32)
_HEIGHTS = np.linspace(0, 44, 8)  # of the ball, in pixels


class Sight(NamedTuple):
    """What a clip shows."""

    kind: str
    colour: str
    place: str


class _Template(NamedTuple):
    """What a frame of a sight can look like: (templates, numbers), and which sight each is of."""

    pictures: npt.NDArray[np.float32]
    sights: tuple[Sight, ...]
    owners: npt.NDArray[np.int64]


def looks_like(frames: Frames) -> Sight:
    """What the frames (F, H, W, 3) show, all together."""
    templates = _templates()
    small = _shrunk(frames[::_EVERY])
    squares = (templates.pictures**2).sum(1)
    distances = squares[None] - 2 * small @ templates.pictures.T  # but for what is the same for all templates
    best = np.stack([distances[:, templates.owners == owner].min(1) for owner in range(len(templates.sights))], axis=1)
    return templates.sights[int(best.sum(0).argmin())]


@functools.cache
def _templates() -> _Template:
    sights = tuple(
        Sight(kind, colour, place) for kind in ("face", "ball", "lamp") for colour in COLOURS for place in PLACES
    )
    pictures, owners = [], []
    for owner, sight in enumerate(sights):
        for wall in WALLS:
            for scene, state in _states(sight, wall):
                canvas = scene.room()
                scene.draw(canvas, state)
                pictures.append(canvas)
                owners.append(owner)
    return _Template(_shrunk(np.stack(pictures)), sights, np.array(owners))


def _states(sight: Sight, wall: tuple[int, int, int]) -> list[tuple[Scene, float]]:
    """The thing on a wall in the states it can be in."""
    common = (sight.colour, sight.place, wall, float(PLACES[sight.place]))
    if sight.kind == "face":
        face = Face(*common, 47.0, (), (), "low", "", 0)
        return [(dataclasses.replace(face, y=47.0 + shift), state) for state in (0.0, 0.5, 1.0) for shift in (-2, 2)]
    if sight.kind == "ball":
        return [(Ball(*common, 68.0, (0.0,), 1.0, 0.5), float(height)) for height in _HEIGHTS]
    lamp = Lamp(*common, 36.0, (), PITCHES[0])
    return [(dataclasses.replace(lamp, y=36.0 + shift), state) for state in (0.0, 1.0) for shift in (-2, 2)]


def _shrunk(frames: npt.NDArray) -> npt.NDArray[np.float32]:
    """Frames (F, H, W, 3) as rows of the means of their cells, in 0…1."""
    cells = SIZE // _CELL
    means = frames.reshape(len(frames), cells, _CELL, cells, _CELL, 3).mean((2, 4), dtype=np.float32) / 255
    return means.reshape(len(frames), -1)


# --- Picture and sound ------------------------------------------------------------------------------------


def lag(frames: Frames, waveform: Waveform, sight: Sight) -> int | None:
    """Frames by which the sound comes after the picture: where their cross-correlation is largest.

    None where nothing is to be seen or heard.
    """
    seen, heard = seen_events(frames, sight), heard_events(waveform, sight.kind)
    if min(seen.std(), heard.std()) < _FLAT:
        return None
    seen, heard = (seen - seen.mean()) / seen.std(), (heard - heard.mean()) / heard.std()
    padded = np.pad(heard, MAX_LAG)
    agreement = [float(seen @ padded[MAX_LAG + shift :][:NUM_FRAMES]) for shift in range(-MAX_LAG, MAX_LAG + 1)]
    # Of equals the smallest: a tone and a light agree as well a moment earlier or later.
    order = sorted(range(len(agreement)), key=lambda index: (-round(agreement[index], 6), abs(index - MAX_LAG)))
    return order[0] - MAX_LAG


def seen_events(frames: Frames, sight: Sight) -> Signal:
    """What of the picture makes sound: how far the mouth is open, the push of each impact, the light of the lamp."""
    x = PLACES[sight.place]
    if sight.kind == "face":
        face, mouth = (np.array(colour, np.float64) for colour in (COLOURS[sight.colour], _MOUTH))
        axis = (mouth - face) / ((mouth - face) ** 2).sum()
        return np.clip((frames[:, 47:66, x - 8 : x + 9] - face) @ axis, 0, 1).mean((1, 2))
    if sight.kind == "lamp":
        return frames[:, 14:60, x - 22 : x + 23].mean((1, 2, 3), dtype=np.float64)
    heights = _ball_heights(frames, sight)
    push = np.zeros(NUM_FRAMES)
    push[1:-1] = heights[2:] - 2 * heights[1:-1] + heights[:-2]  # speed gained upwards; in free fall it is lost
    return np.clip(push, 0, None)


def _ball_heights(frames: Frames, sight: Sight) -> Signal:
    """How high the ball is in each frame, in pixels: the mean of where its colour is."""
    x = PLACES[sight.place]
    strip = frames[:, :, x - 12 : x + 13].astype(np.float64)
    nearness = np.exp(-(((strip - COLOURS[sight.colour]) / 45) ** 2).sum(-1))
    weights = nearness.sum(2) + 1e-9
    return np.asarray(SIZE - (weights * np.arange(SIZE)).sum(1) / weights.sum(1))


def heard_events(waveform: Waveform, kind: str) -> Signal:
    """What of the sound has a cause to be seen: how loud it is; of a ball, how much louder it becomes."""
    loudness = mouth_opening(waveform)
    if kind != "ball":
        return loudness
    return np.clip(np.diff(loudness, prepend=loudness[0]), 0, None)


def pitch_of(waveform: Waveform) -> int:
    """Which of the world's pitches the sound has most of, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform, SAMPLE_RATE * 2))  # half a hertz a bin
    return max(PITCHES, key=lambda pitch: float((spectrum[2 * pitch - 80 : 2 * pitch + 81] ** 2).sum()))


def psnr(one: npt.NDArray, other: npt.NDArray) -> float:
    """Peak signal-to-noise ratio of pictures in 0…255, in dB."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-10)))
