"""The loop: bit-exact after a kill, the same on two processes, and what it writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ovi_studio.errors import OviStudioError
from ovi_studio.training.loop import Batch, Recorder, Settings, Share, Stage, noise_of, train
from tests.training import tiny


class Line(Stage):
    """Learns to triple a number. After every step its second weight is put back to 7."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.0, 7.0]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
        self.asked: list[int] = []
        self.measured: list[float] = []

    def batch(self, step: int, share: Share) -> Batch:
        self.asked.append(step)
        return {"x": noise_of(0, share.of(range(step * 4, step * 4 + 4)), ())}

    def forward(self, **batch):
        x = batch["x"]
        return {"loss": (self.weights[0] * x + self.weights[1] - 7 - 3 * x).square().mean()}

    def after_step(self) -> None:
        with torch.no_grad():
            self.weights[1] = 7.0

    def evaluate(self) -> dict[str, float]:
        self.measured.append(float(self.weights[0]))
        assert not torch.is_grad_enabled()
        assert not self.training
        return {"slope": float(self.weights[0])}

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "slope.txt").write_text(str(float(self.weights[0])))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def settings(steps: int = 20, **others) -> Settings:
    return Settings(steps, **{"learning_rate": 0.1, "warmup": 2, "log_every": 1, "evaluate_every": 10, **others})


def test_it_learns_and_freezes_and_puts_back(tmp_path):
    stage = Line()
    train(stage, settings(60), tmp_path)
    assert abs(float(stage.weights[0].detach()) - 3) < 0.5
    assert float(stage.weights[1].detach()) == 7
    assert float(stage.frozen) == 5
    assert [row["step"] for row in rows_of(tmp_path) if "slope" in row] == [10, 20, 30, 40, 50, 60]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_the_rate_rises_stays_and_falls():
    rates = [Settings(100, learning_rate=1.0, warmup=10, cooldown=0.2).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == pytest.approx([1.0] * 71)
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


def test_measures_and_saves_the_moving_average_and_trains_on_with_the_weights(tmp_path):
    class Watched(Line):
        def after_step(self) -> None:
            super().after_step()
            if self.training:
                seen.append(float(self.weights[0].detach()))

    seen: list[float] = []
    stage = Watched()
    train(stage, settings(12, ema_decay=0.6, evaluate_every=12), tmp_path)
    # The average by hand; it follows more closely at first, so that it forgets where training began.
    average = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert stage.measured == [pytest.approx(average)]
    assert float((tmp_path / "weights" / "slope.txt").read_text()) == pytest.approx(average)
    assert float(stage.weights[0].detach()) == seen[-1]
    assert abs(seen[-1] - average) > 0.01


def test_a_finished_run_does_nothing_more(tmp_path):
    train(Line(), settings(5), tmp_path)
    before = (tmp_path / "curves.jsonl").read_text()
    stage = Line()
    train(stage, settings(5), tmp_path)
    assert not stage.asked
    assert (tmp_path / "curves.jsonl").read_text() == before


def test_rows_after_the_checkpoint_are_made_again(tmp_path):
    recorder = Recorder(tmp_path, 0)
    for step in (1, 2, 3):
        recorder.write(step, {"loss": step / 10})
    with (tmp_path / "curves.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a row
    Recorder(tmp_path, 2)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]


def test_a_batch_is_shared_without_gap_or_overlap_and_noise_goes_with_the_sample():
    samples = range(12, 24)
    shares = [Share(rank, 3).of(samples) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(samples)
    whole = noise_of(5, samples, (2, 3))
    for rank, share in enumerate(shares):
        assert torch.equal(noise_of(5, share, (2, 3)), whole[rank::3])
    with pytest.raises(OviStudioError, match="12 cannot be divided among 5"):
        Share(0, 5).of(samples)


# --- Whole programs --------------------------------------------------------------------------------------------


def start(out: Path, steps: int, batch_size: int, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.training.tiny", str(out), str(steps), str(batch_size)]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    train(tiny.flow_stage().train(), tiny.settings(), out)
    return out


@pytest.mark.distributed
@pytest.mark.slow
def test_goes_on_after_a_kill_with_the_identical_curve_and_weights(whole, tmp_path):
    program = start(tmp_path, tiny.STEPS, 4)
    curve = tmp_path / "curves.jsonl"
    while not (curve.exists() and curve.read_text().count("\n") >= 3) and program.poll() is None:
        time.sleep(0.005)
    program.send_signal(signal.SIGKILL)
    program.wait()
    interrupted = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < interrupted <= tiny.STEPS

    train(tiny.flow_stage().train(), tiny.settings(), tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)
    for name, tensor in weights_of(whole).items():
        assert torch.equal(weights_of(tmp_path)[name], tensor)


def test_goes_on_from_any_step_with_the_identical_curve(whole, tmp_path):
    class Killed(Exception):
        pass

    for step in (1, 5):
        stage = tiny.flow_stage().train()
        whole_batch = stage.batch

        def batch(asked, share, until=step, whole_batch=whole_batch):
            if asked == until:
                raise Killed
            return whole_batch(asked, share)

        stage.batch = batch  # type: ignore[method-assign]
        with pytest.raises(Killed):
            train(stage, tiny.settings(), tmp_path)
    train(tiny.flow_stage().train(), tiny.settings(), tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)
    for name, tensor in weights_of(whole).items():
        assert torch.equal(weights_of(tmp_path)[name], tensor)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_twice_the_batch(whole, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    cluster = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    programs = [start(tmp_path, tiny.STEPS, 4, RANK=str(rank), LOCAL_RANK=str(rank), **cluster) for rank in (0, 1)]
    assert [program.wait(120) for program in programs] == [0, 0]
    for row, expected in zip(rows_of(tmp_path), rows_of(whole), strict=True):
        assert row == pytest.approx(expected, rel=2e-4, abs=2e-5)
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(tmp_path)[name], tensor, atol=2e-4, rtol=2e-3)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights" / "diffusion_pytorch_model.safetensors")
