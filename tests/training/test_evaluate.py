"""The evaluation: right on true clips, at chance on others, and the exchange really off where it is to be off."""

import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from ovi_studio.training import voices
from ovi_studio.training.__main__ import main
from ovi_studio.training.evaluate import (
    alone_maker,
    evaluate,
    exchange_off,
    kept_frames,
    maker,
    strip,
    summary,
    table,
)
from ovi_studio.training.recogniser import Recogniser
from ovi_studio.training.toyland import Face
from ovi_studio.weights.nano import fresh_nano
from tests.training import tiny


def test_true_clips_are_right_and_sounds_of_others_are_not(test_world):
    scenes = [test_world.clip(index) for index in range(12)]

    def perfect(clip, index):
        return clip.frames, clip.waveform

    def late(clip, index):
        return clip.frames, np.roll(clip.waveform, 4000)

    told: list[str] = []
    measured, shown = evaluate(scenes, Recogniser.learn(test_world.bank, ["en+m2"]), perfect, late, told.append)
    report: dict[str, Any] = {name: summary(clips) for name, clips in measured.items()}
    assert report["made"] == report["true"]
    assert {report["made"][name] for name in ("colour and thing", "place", "in time", "pitch")} == {1.0}
    assert report["exchange off"]["in time"] < 0.4
    assert report["chance"]["in time"] < 0.6
    assert report["chance"]["colour and thing"] < 0.4
    assert len(told) == 12
    assert sorted(clip.scene.kind for clip, _, _ in shown) in (["ball", "face", "face", "lamp"], ["face", "face"])
    report |= {"clips": 12, "recogniser error": 0.01, "first frame": {"clips": 3, "psnr": 26.0, "at aim": 2 / 3}}
    written = table(report)
    assert "| colour and thing | 95% | 100.0% |" in written
    assert "26.0 dB; 66.7%" in written


@torch.no_grad()
def test_with_the_exchange_off_each_tower_is_as_alone_and_afterwards_as_before():
    transformer = tiny.transformer().eval()
    inputs = (torch.randn(1, 4, 3, 4, 4), torch.randn(1, 16, 3), torch.tensor([500.0]), torch.randn(1, 48, 16))
    together = transformer(*inputs)
    video, audio = transformer(inputs[0], None, *inputs[2:]).video, transformer(None, *inputs[1:]).audio
    assert not torch.allclose(together.video, video)
    with exchange_off(transformer):
        off = transformer(*inputs)
    torch.testing.assert_close(off.video, video)
    torch.testing.assert_close(off.audio, audio)
    assert torch.equal(transformer(*inputs).video, together.video)


def test_a_strip_has_the_frames_and_the_sound_on_one_line_of_time(world):
    clip = next(clip for clip in map(world.clip, range(20)) if isinstance(clip.scene, Face))
    image = strip(clip, clip.frames, clip.waveform)
    assert image.size == (12 * 96, 18 + 96 + 64)
    pixels = np.asarray(image)
    assert np.array_equal(pixels[18:114, -96:], clip.frames[-1])
    inked = (pixels[116:] < 128).any(2).sum(0) > 8  # columns of loud sound
    loud = np.array([np.abs(part).max() > 0.15 for part in np.array_split(clip.waveform, 12 * 96)])
    assert np.mean(inked == loud) > 0.9


@pytest.mark.slow
def test_the_command_reports_on_the_package(tmp_path, monkeypatch, capfd):
    """With few steps, of whatever weights there are: what matters is that all of it is there."""
    monkeypatch.setattr(voices, "record", lambda _: tiny.bank())
    options = ["--clips", "2", "--frames", "1", "--steps", "1"]
    assert main(["evaluate", "--out", str(tmp_path), *options]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["clips"] == len(report["each"]) == len(report["lags"]["exchange off"]) == 2
    assert report["first frame"]["clips"] == 1
    assert report["true"]["colour and thing"] == 1.0
    assert (tmp_path / "report.md").read_text() in capfd.readouterr().out
    pictures = sorted((tmp_path / "strips").glob("*.png"))
    assert pictures
    assert PIL.Image.open(pictures[0]).width == 12 * 96


def test_a_file_in_place_of_the_folder_with_the_words_is_refused(tmp_path, capfd):
    (tmp_path / "words.npz").touch()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--out", str(tmp_path), "--words", str(tmp_path / "words.npz")])
    assert stop.value.code == 2
    assert "give the folder that has words.npz" in capfd.readouterr().err


@pytest.mark.slow
def test_clips_follow_their_seed_and_the_exchange_matters(world):
    pipeline = fresh_nano()
    pipeline.set_progress_bar_config(disable=True)
    clip = world.clip(0)
    frames, waveform = maker(pipeline, 1)(clip, 5)
    assert frames.shape == clip.frames.shape
    assert waveform.shape == clip.waveform.shape
    again, _ = maker(pipeline, 1)(clip, 5)
    assert np.array_equal(frames, again)
    alone, _ = alone_maker(pipeline, 1)(clip, 5)
    assert not np.array_equal(frames, alone)
    assert len(kept_frames(pipeline, [clip], 1)) == 1
