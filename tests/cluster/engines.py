"""Engines that run on the nodes, which import this module: no torch at its head."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from ovi_studio.engine import Engine
from ovi_studio.errors import WeightsError
from ovi_studio.events import Cancelled, CancelToken, Event, StepDone
from ovi_studio.images import image_digest
from ovi_studio.request import GenerationRequest
from tests.fakes import FakeEngine

LONG = 600.0  # seconds that no test waits for


class LongStepEngine(FakeEngine):
    """One step, then a second one that ends only when the token is set, as a real one looks at it in every block."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield StepDone(1, 2, None)
        limit = time.monotonic() + LONG
        while time.monotonic() < limit:
            if cancel.cancelled:
                yield Cancelled()
                return
            time.sleep(0.01)


class DyingEngine(FakeEngine):
    """Takes its process down at every run's first step."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield StepDone(1, 2, None)
        os._exit(3)


class PatientEngine(FakeEngine):
    """Goes on denoising until it is asked to finish early."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield StepDone(1, 100, None)
        while not cancel.finishing_early:
            time.sleep(0.01)
        yield from super().generate(request, cancel)


class BreakingEngine(FakeEngine):
    """Raises what nobody foresaw."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield StepDone(1, 2, None)
        raise ZeroDivisionError


def slow_engine(folder: Path, step_seconds: float) -> Engine:
    return FakeEngine(folder, steps=4, step_seconds=step_seconds)


def without_weights(_folder: Path) -> Engine:
    raise WeightsError("Weights are missing.", "Download them there.")


def only_on(folder: Path, marker: Path) -> Engine:
    """Works where it is the first to come; other nodes lack something."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return without_weights(folder)
    return FakeEngine(folder)


class FrameEngine(FakeEngine):
    """Looks at the first frame as a real one does."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        frame = request.first_frame
        assert image_digest(frame.path) == frame.sha256
        yield from super().generate(request, cancel)


def noting_engine(folder: Path, needs: object, shared: Path) -> Engine:
    """Notes every clip in a file beside the library: `shared` is a folder for weights, in the home of a test."""
    engine = FakeEngine(folder, steps=4, step_seconds=0.1)

    def note() -> None:
        with (shared.parent / "made").open("a") as file:
            file.write(f"{engine.requests[-1].seed}\n")

    engine.before_finish = note
    return engine
