"""Real films, read: where their scenes are, and windows of them at a model's frame and sample rate.

Needs PySceneDetect: `pip install -e '.[data]'`. Any file that FFmpeg reads will do.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import scenedetect
from av.error import FFmpegError

from ovi_studio.errors import MediaError
from ovi_studio.media import Waveform
from ovi_studio.training.toyland import Frames
from ovi_studio.variants import Variant

SCENE_THRESHOLD = 27.0  # PySceneDetect's own: change of hue, saturation and brightness from frame to frame


@dataclass(frozen=True)
class Span:
    """A part of a film in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class Footage:
    """A window of a film.

    Args:
        frames: (F, H, W, 3) in 0…255, at the variant's rate.
        waveform: (samples,) in -1…1, mono, at the variant's rate; zeros where the film has no sound.
        fps: frames a second.
        sample_rate: samples a second.
    """

    frames: Frames
    waveform: Waveform
    fps: int
    sample_rate: int


def find_scenes(path: Path) -> list[Span]:
    """A film's scenes, from cut to cut.

    Raises:
        MediaError: it cannot be read.
    """
    with _reading(path):
        try:
            found = scenedetect.detect(str(path), scenedetect.ContentDetector(SCENE_THRESHOLD), start_in_scene=True)
        except scenedetect.VideoOpenFailure as error:
            raise _unreadable(path, str(error)) from error
    return [Span(start.seconds, end.seconds) for start, end in found]


def windows(scene: Span, variant: Variant) -> list[Span]:
    """One after the other, as many whole clips of the variant as a scene holds."""
    length = variant.duration
    count = int((scene.end - scene.start + 1e-6) // length)
    return [Span(scene.start + index * length, scene.start + (index + 1) * length) for index in range(count)]


def read_window(path: Path, span: Span, variant: Variant) -> Footage:
    """The variant's number of frames and samples from the start of a span.

    Of a film's frames the one is taken that is shown at the time; nothing is blended.

    Raises:
        MediaError: the film cannot be read, has no picture, or ends before.
    """
    frames = _read_frames(path, span.start, variant)
    if len(frames) < variant.num_frames:
        raise _unreadable(path, f"it ends {variant.num_frames - len(frames)} frames before its scene does")
    return Footage(np.stack(frames), _read_sound(path, span.start, variant), variant.fps, variant.sample_rate)


def _read_frames(path: Path, start: float, variant: Variant) -> list[Frames]:
    """Up to the variant's number of frames."""
    frames: list[Frames] = []
    shown: av.VideoFrame | None = None
    with _reading(path), av.open(str(path)) as container:
        if not container.streams.video:
            raise _unreadable(path, "it has no picture")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(int(start / (stream.time_base or 1)), stream=stream)
        half = Fraction(1, 2) / (stream.average_rate or variant.fps)  # what is nearer to the next frame is the next
        for frame in container.decode(stream):
            if shown is not None:
                while len(frames) < variant.num_frames and _time(frame) > start + len(frames) / variant.fps + half:
                    frames.append(_to_rgb(shown))
            if len(frames) == variant.num_frames:
                return frames
            shown = frame
        if shown is not None and len(frames) < variant.num_frames:  # the last one is shown for its own time
            until = _time(shown) + float(2 * half)
            while len(frames) < variant.num_frames and start + len(frames) / variant.fps < until:
                frames.append(_to_rgb(shown))
    return frames


def _read_sound(path: Path, start: float, variant: Variant) -> Waveform:
    """The variant's number of samples; where the film has none, zeros."""
    sound = np.zeros(variant.num_samples, np.float32)
    with _reading(path), av.open(str(path)) as container:
        if not container.streams.audio:
            return sound
        stream = container.streams.audio[0]
        container.seek(int(max(0.0, start - 0.1) / (stream.time_base or 1)), stream=stream)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=variant.sample_rate)
        position: int | None = None
        for frame in container.decode(stream):
            if position is None:
                position = round((_time(frame) - start) * variant.sample_rate)
            for mono in resampler.resample(frame):
                chunk = mono.to_ndarray()[0]
                first, last = max(position, 0), min(position + len(chunk), len(sound))
                if first < last:
                    sound[first:last] = chunk[first - position : last - position]
                position += len(chunk)
            if position >= len(sound):
                break
    return np.clip(sound, -1, 1)


def _to_rgb(frame: av.VideoFrame) -> Frames:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _time(frame: av.VideoFrame | av.AudioFrame) -> float:
    return float((frame.pts or 0) * (frame.time_base or 0))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of the file system and of the decoders, in words."""
    try:
        yield
    except (OSError, FFmpegError) as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _unreadable(path: Path, reason: str) -> MediaError:
    return MediaError(f"{path} cannot be used: {reason}.", "Give a film that plays.")
