"""Killed at any moment, a batch loses nothing and makes nothing twice."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.kill_batch import kill_batch
from ovi_studio.studio.library import Filter, Library
from tests.studio.program import MOMENTS

PROGRAM = (sys.executable, "-m", "tests.studio.program")


def run(folder: Path, **environment: str) -> int:
    command = [*PROGRAM, "batch", "b.csv", "-o", "clips", "--library", "library.db"]
    root = Path(__file__).parents[2]
    variables = os.environ | {"MADE": str(folder / "made"), "PYTHONPATH": str(root)} | environment
    return subprocess.run(command, cwd=folder, env=variables, check=False, capture_output=True).returncode


@pytest.mark.distributed
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_this_moment_and_run_again(tmp_path: Path, moment: str) -> None:
    (tmp_path / "b.csv").write_text("prompt,seed\na,1\nb,2\nc,3\n")
    count = 1 if moment == "queued" else 2
    assert run(tmp_path, DIE_AT=f"{moment}:{count}") == -signal.SIGKILL
    assert run(tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["a.mp4", "b-results.csv", "b.mp4", "c.mp4"]
    with Library(tmp_path / "library.db") as library:
        library.check()
        jobs = library.find(Filter())
    assert [(job.seed, job.status) for job in jobs] == [(1, "done"), (2, "done"), (3, "done")]
    runs = Counter((tmp_path / "made").read_text().split())
    expected = {"1": 1, "2": 2 if moment == "made" else 1, "3": 1}  # what was not named yet is made again
    assert runs == expected


@pytest.mark.distributed
def test_five_kills_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEP", "0.4")  # twenty clips take longer than five waits before a kill
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    outcome = kill_batch(PROGRAM, tmp_path, clips=20, kills=5, steps=2, draw=random.Random(11))
    assert (outcome.whole, outcome.done, outcome.torn, outcome.twice) == (20, 20, 0, 0)
    assert outcome.left_over == ()
