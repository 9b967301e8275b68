"""`ovi-studio batch --cluster`: over real nodes, with the library's own job states."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from benchmarks.kill_batch import COMMAND
from benchmarks.kill_node import kill_node
from ovi_studio.media import thumbnail
from ovi_studio.studio.library import Filter, Library
from tests.cluster.conftest import Machines

pytestmark = pytest.mark.distributed

PROGRAM = (sys.executable, "-m", "tests.cluster.program")
ROOT = Path(__file__).parents[2]


def start(folder: Path, *options: str, command: Sequence[str] = PROGRAM, **environment: str) -> "subprocess.Popen[str]":
    line = [*command, "batch", "b.csv", "-o", "clips", "--library", "library.db", *options]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OVI_STUDIO_HOME": str(folder)} | environment
    return subprocess.Popen(
        line, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )


def table(folder: Path, rows: int) -> None:
    (folder / "b.csv").write_text("\n".join(["prompt,seed", *(f"clip {n},{n}" for n in range(rows))]))


def wait_for_clips(process: "subprocess.Popen[str]", folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(list((folder / "clips").glob("*.mp4"))) >= count:
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_driver_stops_and_comes_back(machines: Machines, tmp_path: Path, end: signal.Signals) -> None:
    table(tmp_path, 10)
    address = machines.cluster.address
    with start(tmp_path, "--cluster", "auto", RAY_ADDRESS=address) as first:
        wait_for_clips(first, tmp_path, 3)
        first.send_signal(end)
        _, stderr = first.communicate()
    assert first.returncode == (-end if end == signal.SIGKILL else 128 + end), stderr
    with start(tmp_path, "--cluster", f"ray://127.0.0.1:{machines.client_port}") as second:
        stdout, stderr = second.communicate()
    assert second.returncode == 0, stderr
    assert "clips at once on the cluster: 2" in stderr
    assert all(line.endswith(".mp4") for line in stdout.splitlines()), stdout
    files = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert files == ["b-results.csv", *(f"clip-{n}.mp4" for n in range(10))]
    with Library(tmp_path / "library.db") as library:
        library.check()
        jobs = library.find(Filter())
        pictures = [library.thumbnail(job.id) for job in jobs]
    assert [job.status for job in jobs] == ["done"] * 10
    assert pictures == [thumbnail(job.output) for job in jobs]
    made = Counter((tmp_path / "made").read_text().split())
    assert sorted(made) == [str(n) for n in range(10)]
    assert sum(made.values()) <= 12  # what was under way on two nodes may have been made, and not brought back


def test_a_node_without_the_weights_is_named(machines: Machines, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("prompt,model\nA dog barks.,960x960_10s\n")
    with start(tmp_path, "--cluster", "auto", command=COMMAND, RAY_ADDRESS=machines.cluster.address) as process:
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert re.search(r"On the node \S+ \(\w+\): Weights are missing: 960x960_10s not in", stderr)
    assert str(tmp_path / "weights") in stderr  # the driver's, which a disk may share
    assert "Traceback" not in stderr


def test_no_such_address(tmp_path: Path) -> None:
    table(tmp_path, 1)
    with start(tmp_path, "--cluster", "nowhere", command=COMMAND) as process:
        _, stderr = process.communicate()
    assert process.returncode == 2
    assert "'nowhere' is no cluster. Give auto, local or ray://HOST:10001." in stderr


@pytest.mark.slow
def test_a_cluster_of_this_machine_alone_is_started_and_ended(tmp_path: Path) -> None:
    table(tmp_path, 2)
    with start(tmp_path, "--cluster", "local") as process:
        wait_for_clips(process, tmp_path, 1)
        theirs = [child for child in psutil.Process(process.pid).children(recursive=True) if child.is_running()]
        listening: list[str] = []
        for child in theirs:
            with contextlib.suppress(psutil.Error, FileNotFoundError):  # it ended meanwhile
                connections = child.net_connections("tcp")
                listening += [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 2
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    _, alive = psutil.wait_procs(theirs, timeout=10)
    assert not alive


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    found = kill_node(COMMAND, tmp_path, clips=12, nodes=3, steps=2, compare=True)
    outcome = found.outcome
    assert (outcome.whole, outcome.done, outcome.torn, outcome.twice) == (12, 12, 0, 0)
    assert outcome.left_over == ()
    assert 0 < found.done_at_kill < 12
    assert found.same == 12
