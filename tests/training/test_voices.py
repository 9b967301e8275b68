"""The word bank: as recorded by espeak-ng where it is installed, and as a file anywhere."""

import shutil

import numpy as np
import pytest

from ovi_studio.errors import OviStudioError
from ovi_studio.training import voices
from ovi_studio.training.voices import TEST_VOICES, TRAINING_VOICES, Utterance
from tests.training import tiny


def test_no_voice_both_trains_and_tests():
    assert set(TRAINING_VOICES) == set(TEST_VOICES) == set(voices.REGISTERS)
    training, testing = (
        {voice for names in group.values() for voice in names} for group in (TRAINING_VOICES, TEST_VOICES)
    )
    assert not training & testing


def test_a_bank_is_made_once_and_read_as_it_was(tmp_path, monkeypatch):
    made = []

    def record(utterances):
        made.append(len(utterances))
        return tiny.bank()

    monkeypatch.setattr(voices, "record", record)
    first = voices.word_bank(tmp_path / "new" / "words.npz")
    again = voices.word_bank(tmp_path / "new" / "words.npz")
    assert made == [14 * 10 * 3]
    assert first.recordings.keys() == again.recordings.keys() == tiny.bank().recordings.keys()
    for key, recording in tiny.bank().recordings.items():
        np.testing.assert_allclose(first.recordings[key], recording, atol=1 / 32_000)
        assert np.array_equal(first.recordings[key], again.recordings[key])


def test_a_missing_recording_is_an_error_with_a_remedy(bank):
    with pytest.raises(OviStudioError, match=r"no 'eleven' by en\+m1 .* Delete"):
        bank.say("eleven", "en+m1", 165)


def test_without_espeak_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(OviStudioError, match="apt-get install espeak-ng"):
        voices.word_bank(tmp_path / "words.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_says_words_that_start_at_once_equally_loud_and_differ():
    said = [Utterance(word, voice, 185) for word in ("seven", "three") for voice in ("en+m3", "en+f2")]
    bank = voices.record(tuple(said))
    again = voices.record(tuple(said))
    for utterance in said:
        recording = bank.recordings[utterance]
        assert np.array_equal(recording, again.recordings[utterance])
        assert 0.15 < len(recording) / 16_000 < 0.7
        assert np.sqrt(np.mean(recording**2)) == pytest.approx(0.12, rel=0.05)
        assert np.abs(recording).max() <= 0.951
        assert np.abs(recording[:160]).max() > 0.01  # no silence before the word
    seven_low, seven_high, three_low, _ = (bank.recordings[utterance] for utterance in said)
    assert not np.array_equal(seven_low, seven_high)
    assert pitch_of(seven_high) > pitch_of(three_low)


def pitch_of(waveform: np.ndarray) -> float:
    """Fundamental frequency by autocorrelation, 60–400 Hz."""
    correlation = np.correlate(waveform, waveform, "full")[len(waveform) - 1 :]
    lags = np.arange(40, 267)
    return 16_000 / lags[correlation[lags].argmax()]
