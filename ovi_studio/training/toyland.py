"""Toyland: the small world that `nano` learns. Endless short clips with sound and captions, from a seed.

    Toyland(seed, bank, split).clip(index) → ToyClip(scene, frames, waveform, caption)

Three things live in it, each of a colour and at a place, and picture and sound have one cause:

    face   speaks words       its mouth opens as wide as the sound is loud
    ball   bounces            a thud at every impact
    lamp   blinks             a tone, of the pitch that the caption names, while it is on

Everything is large, flat and thickly outlined, because a latent of the video VAE covers 16×16 pixels and a token of
the transformer 32×32. Walls and exact positions vary and are not named in captions. Some combinations of thing,
colour and place, and some sequences of words, never train: they are the "test" split. So are the test voices, in
the hands of whoever makes a `Toyland` with them.

Clip `index` depends on nothing but the seed, the split and itself. That makes training resumable to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ovi_studio.training.voices import SPEEDS, TRAINING_VOICES, WORDS, Waveform, WordBank

Frames: TypeAlias = npt.NDArray[np.uint8]  # (frames, height, width, 3)
Canvas: TypeAlias = npt.NDArray[np.float32]  # (height, width, 3) in 0…255
Colour: TypeAlias = tuple[int, int, int]
Split: TypeAlias = Literal["train", "test"]

SIZE = 96
FPS, NUM_FRAMES = 24, 49
SAMPLE_RATE, NUM_SAMPLES = 16_000, 32_768
DURATION = NUM_FRAMES / FPS  # seconds in which things happen; the sound is 7 ms longer

COLOURS: Mapping[str, Colour] = {
    "red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220),
    "yellow": (240, 210, 50), "purple": (150, 60, 190), "white": (245, 245, 245),
}  # fmt: skip
PLACES: Mapping[str, int] = {"on the left": 25, "in the middle": 48, "on the right": 71}  # centre, in pixels
WALLS: tuple[Colour, ...] = ((176, 196, 214), (214, 200, 176), (96, 104, 120), (132, 160, 132))
TIMES = ("once", "twice", "three times")
PITCHES = (300, 400, 500, 600, 800, 1000, 1200, 1600)  # Hz

HELD_OUT = frozenset(
    {
        ("face", "red", "on the right"), ("face", "blue", "on the left"), ("ball", "green", "on the left"),
        ("ball", "yellow", "in the middle"), ("lamp", "purple", "on the right"), ("lamp", "white", "on the left"),
    }
)  # fmt: skip

_FLOOR = 82  # row where the wall ends
_BLACK: Colour = (20, 20, 24)
_MOUTH: Colour = (110, 16, 32)
_OUTLINE = 3.0


def words_are_held_out(words: tuple[str, ...]) -> bool:
    """Whether a sequence of words is one of the tenth that never trains. Single words all train."""
    return len(words) > 1 and (WORDS.index(words[0]) + 3 * WORDS.index(words[1])) % 10 == 7


@dataclass(frozen=True)
class Scene:
    """What is in a clip, besides what it does.

    Args:
        colour: its name.
        place: as the caption says it.
        wall: colour of the background.
        x: centre of the thing in pixels from the left.
        y: centre of the thing in pixels from the top; of a ball, at rest.
    """

    colour: str
    place: str
    wall: Colour
    x: float
    y: float

    kind: ClassVar[str] = ""

    @property
    def held_out(self) -> bool:
        """Whether it belongs to the test split."""
        return (self.kind, self.colour, self.place) in HELD_OUT

    @property
    def caption(self) -> str:
        """The prompt that asks for it."""
        raise NotImplementedError

    def waveform(self, bank: WordBank) -> Waveform:
        """Its sound, (NUM_SAMPLES,)."""
        raise NotImplementedError

    def animation(self, waveform: Waveform) -> npt.NDArray[np.float64]:
        """The one number a frame that its picture hangs on, (NUM_FRAMES,)."""
        raise NotImplementedError

    def draw(self, canvas: Canvas, state: float) -> None:
        """Draws it onto the empty room, as it is in one frame."""
        raise NotImplementedError

    def focus(self, state: float) -> tuple[float, float]:  # noqa: ARG002  (most things stay where they are)
        """Where something happens, (x, y) in pixels."""
        return self.x, self.y

    def room(self) -> Canvas:
        """The empty room."""
        canvas = np.empty((SIZE, SIZE, 3), np.float32)
        canvas[:] = self.wall
        canvas[_FLOOR:] *= 0.6
        return canvas

    def frames(self, waveform: Waveform, start: int = 0, count: int = NUM_FRAMES) -> Frames:
        """`count` frames from `start`, with what the sound `waveform` makes visible."""
        room = self.room()
        states = self.animation(waveform)[start : start + count]
        frames = np.empty((len(states), SIZE, SIZE, 3), np.uint8)
        for frame, state in zip(frames, states, strict=True):
            canvas = room.copy()
            self.draw(canvas, float(state))
            frame[:] = canvas.round()
        return frames


@dataclass(frozen=True)
class Face(Scene):
    """A face that speaks.

    Args:
        words: what it says.
        starts: when each word begins, in seconds.
        register: "low" or "high".
        voice: the espeak-ng voice.
        speed: words a minute.
    """

    words: tuple[str, ...]
    starts: tuple[float, ...]
    register: str
    voice: str
    speed: int

    kind = "face"

    @property
    def held_out(self) -> bool:
        """Also where it says held-out words."""
        return super().held_out or words_are_held_out(self.words)

    @property
    def caption(self) -> str:
        """The prompt that asks for it."""
        return f"A {self.colour} face {self.place} says <S>{' '.join(self.words)}<E>. Audio: a {self.register} voice."

    def waveform(self, bank: WordBank) -> Waveform:
        """The words, each at its time."""
        sound = np.zeros(NUM_SAMPLES, np.float32)
        for word, start in zip(self.words, self.starts, strict=True):
            _add(sound, bank.say(word, self.voice, self.speed), start)
        return sound

    def animation(self, waveform: Waveform) -> npt.NDArray[np.float64]:
        """How far the mouth is open, 0…1."""
        return mouth_opening(waveform)

    def focus(self, state: float) -> tuple[float, float]:  # noqa: ARG002
        """The mouth."""
        return self.x, self.y + 8

    def draw(self, canvas: Canvas, state: float) -> None:
        """Head, eyes and a mouth that is open by `state`."""
        _disc(canvas, self.x, self.y, 22, 22, _BLACK)
        _disc(canvas, self.x, self.y, 22 - _OUTLINE, 22 - _OUTLINE, COLOURS[self.colour])
        for side in (-1, 1):
            _disc(canvas, self.x + 8 * side, self.y - 7, 4, 4.5, _BLACK)
        _disc(canvas, self.x, self.y + 8, 10, 1.5 + 7 * state, _MOUTH)


@dataclass(frozen=True)
class Ball(Scene):
    """A ball that falls, bounces, and lies still after its last impact.

    Args:
        impacts: when it hits the floor, in seconds.
        height: from which it falls, in pixels.
        bounce: part of its speed that every impact leaves.
    """

    impacts: tuple[float, ...]
    height: float
    bounce: float

    kind = "ball"
    gravity: ClassVar[float] = 420.0  # pixels per second²

    @property
    def caption(self) -> str:
        """The prompt that asks for it."""
        count = len(self.impacts)
        thuds = ("one thud", "two thuds", "three thuds")[count - 1]
        return f"A {self.colour} ball {self.place} bounces {TIMES[count - 1]}. Audio: {thuds}."

    def waveform(self, bank: WordBank) -> Waveform:  # noqa: ARG002  (it does not speak)
        """A thud at every impact, quieter as the ball gets slower."""
        sound = np.zeros(NUM_SAMPLES, np.float32)
        for index, impact in enumerate(self.impacts):
            _add(sound, _thud() * 0.9 * self.bounce**index, impact)
        return sound

    def animation(self, waveform: Waveform) -> npt.NDArray[np.float64]:  # noqa: ARG002  (sound and fall agree)
        """Height above the floor, in pixels."""
        return self.elevation(np.arange(NUM_FRAMES) / FPS)

    def elevation(self, seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Height above the floor at these times, in pixels."""
        fall = np.sqrt(2 * self.height / self.gravity)
        drop = np.clip(seconds - (self.impacts[0] - fall), 0, None)
        heights = np.clip(self.height - self.gravity / 2 * drop**2, 0, None)
        speed = self.gravity * fall
        for impact in self.impacts[:-1]:
            speed *= self.bounce
            since = seconds - impact
            heights = np.where(since > 0, np.clip(speed * since - self.gravity / 2 * since**2, 0, None), heights)
        return np.where(seconds >= self.impacts[-1], 0.0, heights)

    def focus(self, state: float) -> tuple[float, float]:
        """The ball, wherever it is."""
        return self.x, self.y - state

    def draw(self, canvas: Canvas, state: float) -> None:
        """The ball, `state` pixels above the floor."""
        _disc(canvas, self.x, self.y - state, 14, 14, _BLACK)
        _disc(canvas, self.x, self.y - state, 14 - _OUTLINE, 14 - _OUTLINE, COLOURS[self.colour])


@dataclass(frozen=True)
class Lamp(Scene):
    """A lamp that blinks.

    Args:
        flashes: when it is on, as (start, end) in seconds.
        pitch: of its tone, in Hz.
    """

    flashes: tuple[tuple[float, float], ...]
    pitch: int

    kind = "lamp"

    @property
    def caption(self) -> str:
        """The prompt that asks for it."""
        count = TIMES[len(self.flashes) - 1]
        return f"A {self.colour} lamp {self.place} blinks {count}. Audio: a tone of {self.pitch} Hz."

    def waveform(self, bank: WordBank) -> Waveform:  # noqa: ARG002  (it does not speak)
        """A tone while it is on."""
        sound = np.zeros(NUM_SAMPLES, np.float32)
        for start, end in self.flashes:
            _add(sound, _tone(self.pitch, end - start), start)
        return sound

    def animation(self, waveform: Waveform) -> npt.NDArray[np.float64]:  # noqa: ARG002  (sound and light agree)
        """1 while it is on, else 0; a frame is on if the middle of its 1/24 s is."""
        middles = (np.arange(NUM_FRAMES) + 0.5) / FPS
        return np.any([(start <= middles) & (middles < end) for start, end in self.flashes], axis=0).astype(np.float64)

    def draw(self, canvas: Canvas, state: float) -> None:
        """Stand and bulb; when it is on, the bulb is bright and the wall around it glows."""
        colour = COLOURS[self.colour]
        if state:
            _disc(canvas, self.x, self.y, 25, 25, (255, 250, 220))
        left = round(self.x) - 4
        canvas[round(self.y) : _FLOOR + 6, left : left + 8] = _BLACK
        canvas[_FLOOR + 1 : _FLOOR + 7, left - 8 : left + 16] = _BLACK
        _disc(canvas, self.x, self.y, 17, 17, _BLACK)
        shade = 1.0 if state else 0.4
        _disc(canvas, self.x, self.y, 17 - _OUTLINE, 17 - _OUTLINE, tuple(round(shade * part) for part in colour))


@dataclass(frozen=True)
class ToyClip:
    """A clip of the toy world. Picture and sound are made when they are first looked at."""

    scene: Scene
    bank: WordBank

    @property
    def caption(self) -> str:
        """The prompt that asks for it."""
        return self.scene.caption

    @cached_property
    def waveform(self) -> Waveform:
        """(NUM_SAMPLES,) at 16 kHz in -1…1."""
        return self.scene.waveform(self.bank)

    @cached_property
    def frames(self) -> Frames:
        """(NUM_FRAMES, SIZE, SIZE, 3) at 24 frames per second."""
        return self.scene.frames(self.waveform)


@dataclass(frozen=True)
class Toyland:
    """The world: clip after clip, without end.

    Args:
        seed: of everything.
        bank: the spoken words.
        split: "train" never makes what is held out, "test" makes nothing else.
        voices: espeak-ng voices of each register.
    """

    seed: int
    bank: WordBank
    split: Split = "train"
    voices: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: TRAINING_VOICES)

    def clip(self, index: int) -> ToyClip:
        """The clip `index`: always the same one."""
        return ToyClip(self.scene(index), self.bank)

    def scene(self, index: int) -> Scene:
        """What is in clip `index`. Half of all clips are faces, a quarter balls, a quarter lamps."""
        rng = np.random.default_rng((self.seed, int(self.split == "test"), index))
        makers = (self._face, self._face, self._ball, self._lamp)
        while True:
            scene = makers[rng.integers(len(makers))](rng)
            if scene.held_out == (self.split == "test"):
                return scene

    def _face(self, rng: np.random.Generator) -> Face:
        words = tuple(rng.choice(WORDS, size=rng.choice((1, 2, 2, 3))).tolist())
        register = str(rng.choice(tuple(self.voices)))
        voice, speed = str(rng.choice(self.voices[register])), int(rng.choice(SPEEDS))
        lengths = [len(self.bank.say(word, voice, speed)) / SAMPLE_RATE for word in words]
        starts = _lay_out(lengths, 0.06, rng)
        return Face(*_somewhere(rng, 47), words, tuple(start for start, _ in starts), register, voice, speed)

    def _ball(self, rng: np.random.Generator) -> Ball:
        count, height, bounce = int(rng.integers(1, 4)), float(rng.uniform(26, 44)), float(rng.uniform(0.65, 0.8))
        fall = float(np.sqrt(2 * height / Ball.gravity))
        impacts = fall + 2 * fall * np.cumsum([0.0, *(bounce**index for index in range(1, count))])
        impacts += rng.uniform(0, DURATION - 0.2 - impacts[-1])
        return Ball(*_somewhere(rng, _FLOOR - 14, jitter=0), tuple(impacts.tolist()), height, bounce)

    def _lamp(self, rng: np.random.Generator) -> Lamp:
        lengths = rng.uniform(0.25, 0.42, size=rng.integers(1, 4)).tolist()
        return Lamp(*_somewhere(rng, 36), tuple(_lay_out(lengths, 0.2, rng)), int(rng.choice(PITCHES)))


def mouth_opening(waveform: Waveform) -> npt.NDArray[np.float64]:
    """How far a mouth is open in each frame, 0…1: the loudness of the frame's 1/24 s of sound."""
    edges = np.round(np.arange(NUM_FRAMES + 1) * SAMPLE_RATE / FPS).astype(int)
    energy = np.concatenate(([0.0], np.cumsum(waveform.astype(np.float64) ** 2)))
    loudness = np.sqrt((energy[edges[1:]] - energy[edges[:-1]]) / np.diff(edges))
    return np.clip(loudness / 0.16, 0, 1) ** 0.7  # guessed: a word's loudest frames open it fully


def _somewhere(rng: np.random.Generator, y: int, jitter: int = 3) -> tuple[str, str, Colour, float, float]:
    colour, place = str(rng.choice(tuple(COLOURS))), str(rng.choice(tuple(PLACES)))
    wall = WALLS[rng.integers(len(WALLS))]
    return colour, place, wall, PLACES[place] + int(rng.integers(-1, 2)), y + int(rng.integers(-jitter, jitter + 1))


def _lay_out(lengths: list[float], gap: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """(start, end) of events of these lengths in seconds, at least `gap` apart, the rest of the clip in between."""
    slack = max(0.0, DURATION - 0.1 - sum(lengths) - gap * (len(lengths) - 1))
    spaces = slack * rng.dirichlet(np.ones(len(lengths) + 1))
    events, now = [], 0.05
    for space, length in zip(spaces, lengths, strict=False):
        now += float(space)
        events.append((now, now + length))
        now += length + gap
    return events


def _add(sound: Waveform, event: Waveform, start: float) -> None:
    begin = round(start * SAMPLE_RATE)
    sound[begin : begin + len(event)] += event[: max(0, len(sound) - begin)]


def _thud() -> Waveform:
    """A tenth of a second that falls from 160 to 70 Hz, behind a click that makes its beginning sharp."""
    t = np.arange(int(0.16 * SAMPLE_RATE)) / SAMPLE_RATE
    body = np.sin(2 * np.pi * (70 * t + 90 * 0.03 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.05)
    click = np.random.default_rng(0).standard_normal(len(t)) * np.exp(-t / 0.004)
    return (0.8 * body + 0.15 * click).astype(np.float32)


def _tone(pitch: int, seconds: float) -> Waveform:
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    ramp = np.minimum(1, np.minimum(t, seconds - t) / 0.008)
    return (0.3 * np.sin(2 * np.pi * pitch * t) * ramp).astype(np.float32)


def _disc(canvas: Canvas, x: float, y: float, rx: float, ry: float, colour: tuple[int, ...]) -> None:
    """A filled ellipse with soft edges, cut off where it leaves the canvas."""
    top, bottom = max(0, int(y - ry) - 1), min(SIZE, int(y + ry) + 3)
    left, right = max(0, int(x - rx) - 1), min(SIZE, int(x + rx) + 3)
    rows = ((np.arange(top, bottom, dtype=np.float32) - y) / ry)[:, None]
    columns = ((np.arange(left, right, dtype=np.float32) - x) / rx)[None, :]
    distance = (np.sqrt(rows**2 + columns**2) - 1) * min(rx, ry)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    box = canvas[top:bottom, left:right]
    box += cover * (np.asarray(colour, np.float32) - box)
