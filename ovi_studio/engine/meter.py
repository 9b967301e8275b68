"""What the stages of a run really take, to be held against the plan."""

import threading
import time
from types import TracebackType

import torch

from ovi_studio.events import Measured, Stage
from ovi_studio.runtime.hardware import private_bytes

INTERVAL = 0.05  # seconds between two looks at the process's memory: a stage of full size takes many of them


class StageMeter:
    """Measures stage after stage: peak of tensors on the card, peak of the process's own host memory, seconds.

    Args:
        device: as torch names it; only a CUDA device has memory of its own.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._measured: dict[Stage, Measured] = {}
        self._stage: Stage = "load"
        self._started = time.monotonic()
        self._peak_host = 0
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="memory meter", daemon=True)

    @property
    def stage(self) -> Stage:
        """The stage that is being measured."""
        return self._stage

    def start_stage(self, stage: Stage) -> None:
        """The run enters `stage`."""
        self._note()
        self._stage, self._started = stage, time.monotonic()
        self._peak_host = private_bytes()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def finish(self) -> dict[Stage, Measured]:
        """What every stage took, the present one included."""
        self._note()
        return dict(self._measured)

    def __enter__(self) -> "StageMeter":
        self.start_stage("load")
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sampler.join()

    def _note(self) -> None:
        seconds = time.monotonic() - self._started
        gpu = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        self._measured[self._stage] = Measured(gpu, max(self._peak_host, private_bytes()), seconds)

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._peak_host = max(self._peak_host, private_bytes())
