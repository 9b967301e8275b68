"""The spoken words of the toy world: espeak-ng says each of them once in many voices, into one file.

    word_bank(path) → WordBank → bank.say("seven", voice, speed) → waveform

Voices are split once and for all: what trains is never spoken by a voice that tests, and the other way round.
"""

import io
import shutil
import subprocess
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ovi_studio.errors import OviStudioError
from ovi_studio.files import replacing

Waveform = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
REGISTERS = ("low", "high")  # what a caption calls a voice
TRAINING_VOICES: Mapping[str, tuple[str, ...]] = {
    "low": ("en+m1", "en+m3", "en+m7"),
    "high": ("en+f2", "en+f3", "en+f5"),
}
TEST_VOICES: Mapping[str, tuple[str, ...]] = {
    "low": ("en+m2", "en+m4", "en+m6", "en-us+m8"),
    "high": ("en+f1", "en+f4", "en-us+f2", "en-us+f5"),
}
SPEEDS = (165, 185, 205)  # words a minute; espeak's own is 175

_LOUDNESS = 0.12  # root mean square of every word; guessed: peaks stay below 1
_PEAK = 0.95
_SILENCE = 0.02  # of the peak: what is quieter at a word's ends is cut off


class Utterance(NamedTuple):
    """One recording: which word, by whom, how fast in words a minute."""

    word: str
    voice: str
    speed: int


@dataclass(frozen=True)
class WordBank:
    """Recordings at 16 kHz in -1…1, all equally loud, without silence at their ends."""

    recordings: Mapping[Utterance, Waveform]

    def say(self, word: str, voice: str, speed: int) -> Waveform:
        """The recording of a word.

        Raises:
            OviStudioError: the bank has none.
        """
        recording = self.recordings.get(Utterance(word, voice, speed))
        if recording is None:
            raise OviStudioError(
                f"The word bank has no {word!r} by {voice} at {speed} words a minute.",
                "Delete the file; the next run makes it anew.",
            )
        return recording


def word_bank(path: Path) -> WordBank:
    """The bank in the file `path`, which is made first where there is none (some seconds).

    Raises:
        OviStudioError: it must be made and espeak-ng is not installed, or fails.
    """
    if not path.exists():
        _save(path, record(_all_utterances()))
    with np.load(path) as arrays:
        recordings = {}
        for name in arrays.files:
            word, voice, speed = name.split("|")
            recordings[Utterance(word, voice, int(speed))] = arrays[name].astype(np.float32) / 32_767
    return WordBank(recordings)


def record(utterances: tuple[Utterance, ...]) -> WordBank:
    """Lets espeak-ng say them.

    Raises:
        OviStudioError: espeak-ng is not installed, or fails.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise OviStudioError("espeak-ng is not installed.", "Install it: apt-get install espeak-ng.")
    return WordBank({utterance: _record(program, utterance) for utterance in utterances})


def _all_utterances() -> tuple[Utterance, ...]:
    voices = [voice for group in (TRAINING_VOICES, TEST_VOICES) for names in group.values() for voice in names]
    return tuple(Utterance(word, voice, speed) for voice in voices for word in WORDS for speed in SPEEDS)


def _record(program: str, utterance: Utterance) -> Waveform:
    command = [program, "--stdout", "-v", utterance.voice, "-s", str(utterance.speed), utterance.word]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    if done.returncode or not done.stdout:
        raise OviStudioError(
            f"espeak-ng could not say {utterance.word!r} as {utterance.voice}: {done.stderr.decode(errors='replace')}",
            "Install its voices: apt-get install espeak-ng-data.",
        )
    with wave.open(io.BytesIO(done.stdout)) as file:
        rate = file.getframerate()
        # A stream's header cannot know its length, so all that follows is read.
        spoken = np.frombuffer(file.readframes(len(done.stdout)), "<i2").astype(np.float64) / 32_768
    return _level(_trim(_resample(spoken, rate)))


def _resample(samples: npt.NDArray[np.float64], rate: int) -> npt.NDArray[np.float64]:
    """To 16 kHz, by cutting the spectrum off; the silence at both ends makes its wrap-around harmless."""
    count = round(len(samples) * SAMPLE_RATE / rate)
    return np.fft.irfft(np.fft.rfft(samples)[: count // 2 + 1], count) * (count / len(samples))


def _trim(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    loud = np.flatnonzero(np.abs(samples) > _SILENCE * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def _level(samples: npt.NDArray[np.float64]) -> Waveform:
    gain = _LOUDNESS / np.sqrt(np.mean(samples**2))
    return (samples * min(gain, _PEAK / np.abs(samples).max())).astype(np.float32)


def _save(path: Path, bank: WordBank) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"|".join(map(str, key)): (x * 32_767).round().astype(np.int16) for key, x in bank.recordings.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
