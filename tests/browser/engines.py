"""Engines for the page that are quick, and do what a test wants of them."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from ovi_studio.events import CancelToken, Event, StepDone
from ovi_studio.media import Clip, Frame, wav_bytes, write_clip
from ovi_studio.request import GenerationRequest, ImageFrame
from tests.fakes import FPS, SAMPLE_RATE, FakeEngine

FRAMES = 49


@dataclass
class ShownEngine(FakeEngine):
    """A `FakeEngine` whose pictures and sounds can be seen and heard; clips last two seconds."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        for event in super().generate(request, cancel):
            if isinstance(event, StepDone):
                yield replace(event, preview=_jpeg(event.step), sound=_wav(event.step) if event.step > 1 else None)
            else:
                yield event

    def _clip(self, request: GenerationRequest) -> Clip:
        """A bar that wanders over a colour of the seed's, and a tone of the seed's height."""
        frame = request.first_frame
        picture = PIL.Image.open(frame.path).size[::-1] if isinstance(frame, ImageFrame) else None
        height, width = self.requests[-1].clip_size(picture)
        colour = np.random.default_rng(request.seed).integers(40, 200, 3, dtype=np.uint8)

        def bar(number: int) -> Frame:
            drawn = np.full((height, width, 3), colour, np.uint8)
            start = number * (width - 8) // FRAMES
            drawn[:, start : start + 8] = 255
            return drawn

        return write_clip(
            self.folder / f"clip-{len(self.requests)}.mp4",
            frames=map(bar, range(FRAMES)) if request.modality != "audio" else None,
            waveform=_tone(200 + (request.seed or 0) % 400, FRAMES / FPS) if request.modality != "video" else None,
            fps=FPS,
            sample_rate=SAMPLE_RATE,
            metadata={"request": request.embedded()},
        )


def _tone(hertz: float, seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.4 * np.sin(2 * math.pi * hertz * time)).astype(np.float32)


def _jpeg(step: int) -> bytes:
    data = io.BytesIO()
    PIL.Image.new("RGB", (96, 96), (40 * step % 256, 90, 160)).save(data, "JPEG")
    return data.getvalue()


def _wav(step: int) -> bytes:
    return wav_bytes(_tone(100.0 * step, 2.0), SAMPLE_RATE)
