"""Frames that are encoded beside the decoding give the same file; an encoder that fails is heard of."""

import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ovi_studio.engine.feeder import FrameFeeder
from ovi_studio.media import ClipEncoder, clip_writer

FRAMES = np.random.default_rng(0).integers(0, 255, (9, 64, 96, 3), dtype=np.uint8)


class Encoder:
    """Takes frames until it fails."""

    def __init__(self, fails_at: int = -1) -> None:
        self.frames: list[Any] = []
        self.fails_at = fails_at

    def add_frame(self, image: Any) -> None:
        if len(self.frames) == self.fails_at:
            raise OSError("disk full")
        self.frames.append(image)


def feed(encoder: Encoder, chunks: int, error: Exception | None = None) -> None:
    with FrameFeeder(cast("ClipEncoder", encoder)) as feeder:
        for _ in range(chunks):
            feeder.add(FRAMES[:1])
        if error is not None:
            raise error


def test_the_same_file(tmp_path: Path) -> None:
    for name in ("plain", "fed"):
        path = tmp_path / f"{name}.mp4"
        with clip_writer(path, size=(64, 96), waveform=None, fps=24, sample_rate=16000, metadata={}) as encoder:
            if name == "plain":
                for frame in FRAMES:
                    encoder.add_frame(frame)
            else:
                with FrameFeeder(encoder) as feeder:
                    for chunk in (FRAMES[:1], FRAMES[1:5], FRAMES[5:]):
                        feeder.add(chunk)
    assert (tmp_path / "plain.mp4").read_bytes() == (tmp_path / "fed.mp4").read_bytes()


def test_an_error_reaches_whoever_adds() -> None:
    encoder = Encoder(fails_at=2)
    with pytest.raises(OSError, match="disk full"):
        feed(encoder, 100)  # more than can wait: it must not block either
    assert len(encoder.frames) == 2


def test_an_error_in_the_last_frames_is_heard_of() -> None:
    with pytest.raises(OSError, match="disk full"):
        feed(Encoder(fails_at=0), 1)


def test_an_abandoned_run_ends_the_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        feed(Encoder(), 1, ZeroDivisionError())
    assert threading.active_count() == before
