"""What footage is fit to learn from: its margins, its size, how much moves, how loud it is, whether sound goes with it.

Needs OpenCV (headless): `pip install -e '.[data]'`. Numbers come back with every verdict, for the manifest.
"""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from ovi_studio.media import Waveform
from ovi_studio.training.footage import Footage
from ovi_studio.training.toyland import Frames

LOOKS = 7  # frames, evenly spaced, by which a window is judged or captioned
DARK = 20  # of 255: a row or column that is never brighter is margin; guessed
_FLOW_SIDE = 128  # pixels of the longer side at which motion is measured
_FLOW_EVERY = 4  # frames from one measured pair to the next
_BUILT_IN_SCALE = 5.0  # confidence of a correlation 1 above the usual, so that 0.3 is the paper's 1.5; guessed
MAX_OFFSET = 15  # frames that a sync filter looks away from 0, as SyncNet's users do


@dataclass(frozen=True)
class Sync:
    """How sound and picture go together.

    Args:
        offset: frames by which the sound comes after the picture.
        confidence: how much better they agree there than elsewhere; SyncNet's is the median distance less the least.
    """

    offset: int
    confidence: float


class SyncFilter(Protocol):
    """Anything that tells how sound and picture go together: SyncNet, or the built-in `OnsetSync`."""

    def __call__(self, footage: Footage) -> Sync:
        """Looks and listens."""


class OnsetSync:
    """The built-in sync filter: what begins to move against what begins to sound, by cross-correlation.

    It knows nothing of lips. For speech, give SyncNet's offset and confidence behind the same interface.
    """

    def __call__(self, footage: Footage) -> Sync:
        """Where the correlation is largest, and by how much more than usual."""
        seen = _standardized(_rise(_motion_energy(footage.frames)))
        heard = _standardized(_rise(_loudness(footage)))
        padded = np.pad(heard, MAX_OFFSET)
        agreement = [float(seen @ padded[shift : shift + len(seen)]) / len(seen) for shift in range(2 * MAX_OFFSET + 1)]
        best = int(np.argmax(agreement))
        return Sync(best - MAX_OFFSET, _BUILT_IN_SCALE * (agreement[best] - float(np.median(agreement))))


def looks(frames: Frames, count: int = LOOKS) -> Frames:
    """Evenly spaced frames, the first and the last among them."""
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]


def inside_margins(frames: Frames) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the picture within black margins; bottom 0 where all is black."""
    brightest = looks(frames).max(axis=(0, 3))
    rows, columns = (np.flatnonzero(brightest.max(axis=axis) > DARK) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def motion_score(frames: Frames) -> float:
    """How far things move from frame to frame: mean optical flow, in thousandths of the longer side."""
    grey = _small_grey(frames)
    flows = [
        cv2.calcOpticalFlowFarneback(one, other, np.zeros((*one.shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0)
        for one, other in zip(grey[:-1:_FLOW_EVERY], grey[1::_FLOW_EVERY], strict=False)
    ]
    return float(np.mean([np.hypot(flow[..., 0], flow[..., 1]).mean() for flow in flows])) / _FLOW_SIDE * 1000


def decibels(waveform: Waveform) -> float:
    """Root mean square below full scale, in dB; at least -120."""
    return 20 * float(np.log10(max(float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2))), 1e-6)))


def resized(frames: Frames, height: int, width: int) -> Frames:
    """Frames that fill this size: scaled as little as they can be, and cut at the middle."""
    scale = max(height / frames.shape[1], width / frames.shape[2])
    size = (max(width, round(frames.shape[2] * scale)), max(height, round(frames.shape[1] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = np.stack([cv2.resize(frame, size, interpolation=method) for frame in frames])
    top, left = (scaled.shape[1] - height) // 2, (scaled.shape[2] - width) // 2
    return np.asarray(scaled[:, top : top + height, left : left + width], np.uint8)


def _small_grey(frames: Frames) -> list[npt.NDArray[np.uint8]]:
    scale = _FLOW_SIDE / max(frames.shape[1:3])
    size = (max(16, round(frames.shape[2] * scale)), max(16, round(frames.shape[1] * scale)))
    return [
        np.asarray(cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY), np.uint8)
        for frame in frames
    ]


def _motion_energy(frames: Frames) -> npt.NDArray[np.float64]:
    """Mean change of each frame from the one before."""
    grey = np.stack(_small_grey(frames)).astype(np.float64)
    return np.concatenate(([0.0], np.abs(np.diff(grey, axis=0)).mean((1, 2))))


def _loudness(footage: Footage) -> npt.NDArray[np.float64]:
    """Root mean square of each frame's sound; a frame after the end of the sound is silent."""
    edges = np.round(np.arange(len(footage.frames) + 1) * footage.sample_rate / footage.fps).astype(int)
    padded = np.pad(footage.waveform.astype(np.float64), (0, max(0, edges[-1] - len(footage.waveform))))
    energy = np.concatenate(([0.0], np.cumsum(padded**2)))
    return np.asarray(np.sqrt((energy[edges[1:]] - energy[edges[:-1]]).clip(0) / np.diff(edges)))


def _rise(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(np.diff(signal, prepend=signal[0]), 0, None)


def _standardized(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (signal - signal.mean()) / max(float(signal.std()), 1e-9)
