"""A recogniser of the toy world's words, for speech in clips: which words are said, in which order.

    Recogniser.learn(bank, voices).words(waveform) → ("seven", "three")

Every recording of the voices it learns from is a template of cepstra. A waveform is explained, frame by frame, as
silence and warped templates in turn, by the cheapest such explanation (one-pass dynamic programming, Ney 1984). It
learns from voices that never train the model, so it knows nothing of how the model was taught to speak.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ovi_studio.training.voices import SAMPLE_RATE, Utterance, Waveform, WordBank

Features = npt.NDArray[np.float32]  # (frames, numbers)

HOP, WINDOW, FFT = 160, 400, 512  # samples: a frame each 10 ms, of 25 ms
BANDS, CEPSTRA = 32, 13
# Tuned on clips of training voices, clean and in noise, with templates of the others.
FLOOR = 1e-2  # of the loudest frame's power: what is quieter is not listened to
SILENT_DECIBELS = -30.0  # below the loudest frame: silence costs nothing there,
ABOVE_NOISE = 8.0  # nor within so many decibels of the clip's quietest tenth,
LOUDEST_NOISE = -12.0  # which cannot be louder than this
SILENCE_COST = 0.25  # for each decibel above; in units of a mean distance of frames
_NOTHING = -100.0  # decibels: there is no sound at all
WORD_COST = 6.0  # of starting a word, so that none is made of noise


class _Templates(NamedTuple):
    """All templates in a row."""

    features: Features
    words: tuple[str, ...]
    starts: npt.NDArray[np.int64]  # first frame of each
    ends: npt.NDArray[np.int64]  # last frame of each


@dataclass(frozen=True)
class Recogniser:
    """Words by their likeness to recordings. Make it with `learn`.

    Args:
        templates: what it knows.
        scale: typical distance of each number of two frames of one word.
    """

    templates: _Templates
    scale: Features

    @staticmethod
    def learn(bank: WordBank, voices: Iterable[str]) -> "Recogniser":
        """Learns all recordings of these voices."""
        known = set(voices)
        chosen: list[tuple[Utterance, Waveform]] = [(u, x) for u, x in bank.recordings.items() if u.voice in known]
        features = [_features(waveform)[0] for _, waveform in chosen]
        lengths = np.array([len(rows) for rows in features])
        ends = np.cumsum(lengths) - 1
        whole = np.concatenate(features)
        scale = whole.std(0) * np.sqrt(whole.shape[1])
        words = tuple(utterance.word for utterance, _ in chosen)
        return Recogniser(_Templates(whole / scale, words, ends - lengths + 1, ends), scale)

    def words(self, waveform: Waveform) -> tuple[str, ...]:
        """What is said, from the first word to the last; nothing, where all is silent."""
        features, decibels = _features(waveform)
        if decibels.max() < _NOTHING:
            return ()
        distances = _distances(features / self.scale, self.templates.features)
        silences = SILENCE_COST * np.clip(decibels - _silent_below(decibels), 0, None)
        return self._cheapest(distances, silences)

    def _cheapest(self, distances: npt.NDArray, silences: npt.NDArray) -> tuple[str, ...]:
        """Words of the cheapest path: each frame is in a template or in silence, which stands between words."""
        starts, ends = self.templates.starts, self.templates.ends
        costs = np.full(distances.shape[1], np.inf)
        said = np.zeros(distances.shape[1], np.int64)  # index into `histories` of each path
        histories: list[tuple[str, ...]] = [()]
        silence, silence_said = 0.0, 0
        for distance, quiet in zip(distances, silences, strict=True):
            # 1. On within a template: stay, advance, or skip a frame; or into a new one out of silence
            moves = np.full((3, len(costs)), np.inf)
            moves[0], moves[1, 1:], moves[2, 2:] = costs + 0.02, costs[:-1], costs[:-2] + 0.02
            moves[1:, starts] = np.inf
            moves[2, np.minimum(starts + 1, len(costs) - 1)] = np.inf
            chosen = moves.argmin(0)
            fresh, fresh_said = moves.min(0), said[np.maximum(np.arange(len(costs)) - chosen, 0)]
            entering = silence + WORD_COST < fresh[starts]
            fresh[starts[entering]], fresh_said[starts[entering]] = silence + WORD_COST, silence_said

            # 2. Out of the cheapest finished word into silence
            finished = int(costs[ends].argmin())
            if costs[ends[finished]] < silence:
                histories.append((*histories[said[ends[finished]]], self.templates.words[finished]))
                silence, silence_said = float(costs[ends[finished]]), len(histories) - 1
            silence += float(quiet)
            costs, said = fresh + distance, fresh_said
        finished = int(costs[ends].argmin())
        if costs[ends[finished]] < silence:
            return (*histories[said[ends[finished]]], self.templates.words[finished])
        return histories[silence_said]


def word_errors(heard: tuple[str, ...], said: tuple[str, ...]) -> int:
    """Words put in, left out or mistaken (Levenshtein's distance)."""
    row = list(range(len(said) + 1))
    for count, word in enumerate(heard, start=1):
        before, row = row, [count]
        for index, expected in enumerate(said):
            row.append(min(before[index] + (word != expected), before[index + 1] + 1, row[index] + 1))
    return row[-1]


def _features(waveform: Waveform) -> tuple[Features, npt.NDArray[np.float32]]:
    """Cepstra and their slopes (frames, 2 × CEPSTRA), and each frame's loudness in dB below the loudest."""
    padded = np.pad(waveform.astype(np.float64), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2
    energy = power.sum(1)
    peak = energy.max()
    decibels = np.full(len(energy), 2 * _NOTHING) if peak <= 0 else 10 * np.log10(np.maximum(energy / peak, 1e-9))
    bands = np.log(power @ _MEL_BANDS.T + FLOOR * max(peak, 1e-12) / BANDS)
    cepstra = bands @ _COSINES.T
    loud = decibels > _silent_below(decibels)
    cepstra -= cepstra[loud].mean(0) if loud.any() else cepstra.mean(0)  # the voice's and the room's own colour
    slopes = np.zeros_like(cepstra)
    slopes[2:-2] = (2 * (cepstra[4:] - cepstra[:-4]) + cepstra[3:-1] - cepstra[1:-3]) / 10
    return np.concatenate((cepstra, 2.0 * slopes), axis=1).astype(np.float32), decibels.astype(np.float32)


def _silent_below(decibels: npt.NDArray[np.float32]) -> float:
    """What counts as silence in a clip, in decibels below its loudest frame."""
    noise = min(float(np.percentile(decibels, 10)) + ABOVE_NOISE, LOUDEST_NOISE)
    return max(SILENT_DECIBELS, noise)


def _distances(one: Features, other: Features) -> npt.NDArray[np.float32]:
    """Euclidean distances of all rows of one (T, D) to all of another (J, D), (T, J)."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    return np.asarray(np.sqrt(np.clip(squares, 0, None)))


def _mel_bands() -> npt.NDArray[np.float64]:
    """Triangles (BANDS, FFT / 2 + 1), evenly spaced in mel from 80 Hz to 7.6 kHz."""
    edges = 700 * (10 ** (np.linspace(np.log10(1 + 80 / 700), np.log10(1 + 7600 / 700), BANDS + 2)) - 1)
    hertz = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.clip(np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)), 0, None)


_MEL_BANDS = _mel_bands()
_COSINES = np.cos(np.pi / BANDS * (np.arange(BANDS) + 0.5)[None] * np.arange(1, CEPSTRA + 1)[:, None])
