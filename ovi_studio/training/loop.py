"""The one training loop, on Accelerate: a processor, a card, or many of either.

    train(stage, settings, folder) → steps, curves, checkpoints, and the stage's weights in `folder`

A stage is a module whose `forward` takes a batch and returns losses. A batch is a function of the step alone, noise
and timesteps included, and every process takes its share of it. Nothing random is left to the loop: after a kill the
same command goes on from the last checkpoint with the identical curve, and two processes do what one does with twice
the batch.

    folder/checkpoint.pt    step, weights, optimizer and moving average; replaced whole
    folder/curves.jsonl     losses and gates by step; TensorBoard's files are beside it
    folder/weights/         what the stage makes, from the moving average
"""

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ovi_studio.errors import OviStudioError
from ovi_studio.files import replacing

Batch = dict[str, Tensor]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Settings:
    """How a stage is trained.

    Args:
        steps: of the optimizer, in all.
        learning_rate: between warm-up and cool-down.
        warmup: steps in which the rate rises from 0.
        cooldown: last part of all steps, in which it falls to 0.
        betas: AdamW's.
        weight_decay: AdamW's.
        eps: AdamW's.
        max_norm: gradients are scaled down to this norm.
        ema_decay: of the moving average of the weights.
        log_every: steps from one row of the curves to the next.
        evaluate_every: steps from one measurement of the gates to the next.
        save_seconds: from one checkpoint to the next.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    cooldown: float = 0.2
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    eps: float = 1e-8
    max_norm: float = 1.0
    ema_decay: float = 0.999
    log_every: int = 50
    evaluate_every: int = 500
    save_seconds: float = 240.0

    def rate(self, step: int) -> float:
        """The learning rate of a step: up, level, and down in a straight line."""
        up = (step + 1) / max(1, self.warmup)
        down = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.learning_rate * min(1.0, up, down)


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes: each `processes`-th sample from `rank`."""

    rank: int = 0
    processes: int = 1

    def of(self, samples: range) -> range:
        """This process's samples.

        Raises:
            OviStudioError: the processes would get batches of different sizes, and their mean would be another one.
        """
        if len(samples) % self.processes:
            raise OviStudioError(
                f"A batch of {len(samples)} cannot be divided among {self.processes} processes.",
                "Choose a batch size that the number of processes divides.",
            )
        return samples[self.rank :: self.processes]


class Stage(nn.Module, ABC):
    """Something to train. Only parameters that require gradients are trained."""

    @abstractmethod
    def batch(self, step: int, share: Share) -> Batch:
        """This process's share of the batch of a step, on the CPU: the same whenever it is asked for."""

    @abstractmethod
    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Losses of a batch, each a mean over its samples; "loss" is what is trained on."""

    def after_step(self) -> None:
        """Puts the weights back where they must stay."""
        return

    def evaluate(self) -> dict[str, float]:
        """The gates, on what never trains."""
        return {}

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the trained components."""


def train(stage: Stage, settings: Settings, folder: Path) -> None:
    """Trains to the last step, from the last checkpoint in `folder` or from the start."""
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    share = Share(accelerator.process_index, accelerator.num_processes)
    parameters = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        parameters, settings.learning_rate, settings.betas, settings.eps, settings.weight_decay
    )
    stage.to(accelerator.device)
    average = EMAModel(parameters, decay=settings.ema_decay)
    step = _Checkpoint(folder).load(stage, optimizer, average, accelerator.device)
    model, optimizer = accelerator.prepare(stage, optimizer)
    recorder = Recorder(folder, step) if accelerator.is_main_process else None

    saved = time.monotonic()
    while step < settings.steps:
        # 1. One step
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        batch = {name: tensor.to(accelerator.device) for name, tensor in stage.batch(step, share).items()}
        losses = model(**batch)
        accelerator.backward(losses["loss"])
        norm = accelerator.clip_grad_norm_(parameters, settings.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        stage.after_step()
        average.step(parameters)
        step += 1

        # 2. What is to be seen of it
        last = step == settings.steps
        if step % settings.log_every == 0 or last:
            means = {name: float(accelerator.reduce(value.detach(), "mean")) for name, value in losses.items()}
            if recorder:
                recorder.write(step, means | {"gradient": float(norm), "rate": settings.rate(step - 1)})
        if recorder and (step % settings.evaluate_every == 0 or last):
            with _averaged(stage, average, parameters):
                recorder.write(step, stage.evaluate())

        # 3. What is kept of it
        if recorder and (last or time.monotonic() - saved > settings.save_seconds):
            recorder.flush()
            _Checkpoint(folder).save(step, stage, optimizer, average)
            with _averaged(stage, average, parameters):
                _save_whole(stage, folder / "weights")
            saved = time.monotonic()
    accelerator.wait_for_everyone()
    accelerator.end_training()


class Recorder:
    """The curves of a run, as lines of JSON and for TensorBoard.

    Args:
        folder: of the run.
        step: from which it goes on; rows after it were never checkpointed, and are made again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (slow to import)

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "curves.jsonl"
        rows = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._board: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row, on stdout too."""
        row = json.dumps({"step": step, **{name: round(value, 6) for name, value in values.items()}})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(row + "\n")
        print(time.strftime("%H:%M:%S"), row, flush=True)  # noqa: T201
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Brings TensorBoard's rows to the disk."""
        self._board.flush()


@dataclass(frozen=True)
class _Checkpoint:
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def load(self, stage: Stage, optimizer: torch.optim.Optimizer, average: EMAModel, device: torch.device) -> int:
        """Puts everything back and returns the step; 0 where there is no checkpoint."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        stage.load_state_dict(state["stage"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        average.to(device)
        return int(state["step"])

    def save(self, step: int, stage: Stage, optimizer: torch.optim.Optimizer, average: EMAModel) -> None:
        state = {
            "step": step,
            "stage": stage.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.state_dict(),
        }
        with replacing(self.path) as temporary:
            torch.save(state, temporary)


def noise_of(seed: int, indices: range, shape: tuple[int, ...]) -> Tensor:
    """Normal noise (samples, *shape), each sample's by its own generator: the same however a batch is divided."""
    generators = (torch.Generator().manual_seed(seed * 1_000_003 + index) for index in indices)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def divergence_of(posterior: DiagonalGaussianDistribution) -> Tensor:
    """A VAE's divergence from the normal distribution in nats, a mean over all numbers of the latents.

    The library's own sums over the axes of pictures, which leaves one out in videos and has one too many in sounds.
    """
    nats: Tensor = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return nats


def _save_whole(stage: Stage, folder: Path) -> None:
    """Whoever reads the weights meanwhile finds the old ones, the new ones, or for a moment none."""
    fresh = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    stage.save(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


@contextmanager
def _averaged(stage: Stage, average: EMAModel, parameters: list[nn.Parameter]) -> Iterator[None]:
    """The stage with the moving average as its weights, in evaluation mode, without gradients."""
    training = stage.training
    average.store(parameters)
    average.copy_to(parameters)
    stage.eval()
    stage.after_step()
    try:
        with torch.no_grad():
            yield
    finally:
        average.restore(parameters)
        stage.train(training)
