"""Stand-ins that behave like the real thing, for tests of what lies above it."""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image

from ovi_studio.errors import OviStudioError
from ovi_studio.events import Cancelled, CancelToken, Event, Failed, Finished, FrameDrawn, StageStarted, StepDone
from ovi_studio.flux import FLUX_KREA
from ovi_studio.media import Clip, Frame, write_clip
from ovi_studio.request import GeneratedFrame, GenerationRequest
from ovi_studio.runtime.execution_plan import ExecutionPlan
from ovi_studio.runtime.hardware import simulate
from ovi_studio.runtime.plan import plan
from ovi_studio.variants import get_variant

FPS = 24
SAMPLE_RATE = 16_000


@dataclass
class FakeEngine:
    """An `Engine` without a model: real events and a real clip, whose picture and sound follow from the request.

    Args:
        folder: where clips are written, under temporary names.
        steps: denoising steps, each taking `step_seconds`.
        error: what the run fails with after its last step; None to succeed.
        before_finish: called when the clip is written and not yet handed over.
    """

    folder: Path
    steps: int = 3
    step_seconds: float = 0.0
    error: OviStudioError | None = None
    before_finish: Callable[[], None] = lambda: None
    requests: list[GenerationRequest] = field(default_factory=list)
    closed: bool = False

    def plan(self, request: GenerationRequest) -> ExecutionPlan:
        machine = simulate("1x80GB@9.0,ram=128")
        return plan(request.resolved(), get_variant(request.variant), machine)

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        self.requests.append(request)
        request = request.resolved()
        if isinstance(request.first_frame, GeneratedFrame):
            yield StageStarted("draw frame")
            yield self._frame(request)
        yield StageStarted("load")
        yield StageStarted("denoise")
        for step in range(1, self.steps + 1):
            time.sleep(self.step_seconds)
            if cancel.cancelled:
                yield Cancelled()
                return
            yield StepDone(step, self.steps, float(self.steps - step), preview=b"jpeg")
            if cancel.finishing_early:
                break
        if self.error is not None:
            yield Failed.from_error(self.error)
            return
        yield StageStarted("mux")
        clip = self._clip(request)
        self.before_finish()
        yield Finished(clip)

    def draw(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        """Any picture, of a size that an image model would choose; it follows from the seed."""
        request = request.resolved()
        yield StageStarted("draw frame")
        for step in range(1, self.steps + 1):
            time.sleep(self.step_seconds)
            if cancel.cancelled:
                yield Cancelled()
                return
            yield StepDone(step, self.steps, float(self.steps - step), preview=b"jpeg")
        if self.error is not None:
            yield Failed.from_error(self.error)
            return
        yield self._frame(request)

    def _frame(self, request: GenerationRequest) -> FrameDrawn:
        assert isinstance(request.first_frame, GeneratedFrame)
        seed = request.first_frame.seed or 0
        height, width = FLUX_KREA.frame_size(request.clip_size())
        path = self.folder / f"frame-{seed}.png"
        colour = np.random.default_rng(seed).integers(0, 256, 3).tolist()
        PIL.Image.new("RGB", (width, height), tuple(colour)).save(path)
        return FrameDrawn(path, seed)

    def _clip(self, request: GenerationRequest) -> Clip:
        height, width = request.clip_size()
        noise = np.random.default_rng(request.seed)
        frames: list[Frame] = [noise.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(3)]
        return write_clip(
            self.folder / f"{secrets.token_hex(4)}.mp4",
            frames=frames,
            waveform=noise.uniform(-0.1, 0.1, SAMPLE_RATE * 3 // FPS).astype(np.float32),
            fps=FPS,
            sample_rate=SAMPLE_RATE,
            metadata={"request": request.embedded()},
        )

    def close(self) -> None:
        self.closed = True
