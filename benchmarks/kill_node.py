"""Kill a node in the middle of a batch on a cluster, and look whether every clip was made once, whole, and the same.

    python benchmarks/kill_node.py [--clips 40] [--nodes 3] [--steps 2] [--compare] [--json]

The cluster is one of several nodes simulated on this machine, each with one processor; the clips are `nano`'s. The
node dies as in a power cut when a third of the clips are done. `--compare` makes the same batch on this machine alone
too, and compares the clips byte by byte. The tests do the same with fewer clips.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kill_batch import COMMAND, Outcome, look, write_table
from ovi_studio.studio.library import Filter, Library

_BEGIN_SECONDS = 300.0  # until a third of the clips are done, and again until the rest is; guessed
_STORE_BYTES = 80 << 20  # of a node's shared memory: Ray's minimum is 75 MiB


@dataclass(frozen=True)
class NodeOutcome:
    """What is there in the end; `same` is how many clips equal those of this machine alone, None if not compared."""

    outcome: Outcome
    done_at_kill: int
    same: int | None


def kill_node(
    command: Sequence[str], folder: Path, clips: int, nodes: int, steps: int, *, compare: bool
) -> NodeOutcome:
    """Make a batch of `clips` in `folder` with `command` on a cluster of `nodes`, killing one of them on the way."""
    begun = time.monotonic()
    table, library = folder / "batch.csv", folder / "library.db"
    write_table(table, clips, steps)
    batch = [*command, "batch", str(table), "--keep-going"]
    with simulated(nodes) as (address, workers):
        on_cluster = [*batch, "-o", str(folder / "clips"), "--library", str(library), "--cluster", "auto"]
        environment = os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(on_cluster, stdout=subprocess.DEVNULL, env=environment) as process:
            done = _wait_for(process, library, max(clips // 3, 1))
            workers[0].kill()
            if process.wait() != 0:
                raise SystemExit(f"the batch ended with {process.returncode}")
    outcome = look(folder, library, clips, 1, time.monotonic() - begun)
    return NodeOutcome(outcome, done, _same(batch, folder) if compare else None)


class Worker:
    """A simulated node."""

    def __init__(self, cluster: Any, node: Any) -> None:
        self._cluster = cluster
        self._node = node

    def kill(self) -> None:
        """As a power cut would."""
        self._cluster.remove_node(self._node, allow_graceful=False)


@contextlib.contextmanager
def simulated(nodes: int) -> Iterator[tuple[str, list[Worker]]]:
    """A cluster on the loopback interface: a head without processors, and nodes with one each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for keeping to the loopback interface
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    paths = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}  # for a checkout that is not installed
    here: dict[str, Any] = {"node_ip_address": "127.0.0.1", "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**here, "num_cpus": 0, "include_dashboard": False})
    try:
        added = [cluster.add_node(**here, num_cpus=1, node_name=f"node{n}", env_vars=paths) for n in range(nodes)]
        yield cluster.address, [Worker(cluster, node) for node in added]
    finally:
        cluster.shutdown()


def _wait_for(process: "subprocess.Popen[bytes]", library: Path, count: int) -> int:
    """Until so many clips are done; returns how many are."""
    deadline = time.monotonic() + _BEGIN_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if library.exists():
            with Library(library) as opened:
                done = len(opened.find(Filter(("done",))))
            if done >= count:
                return done
        time.sleep(0.1)
    process.kill()
    raise SystemExit("the batch did not come so far")


def _same(batch: Sequence[str], folder: Path) -> int:
    """How many clips are the same as when this machine makes them alone."""
    alone = folder / "alone"
    command = [*batch, "-o", str(alone), "--library", str(folder / "alone.db")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
    return sum(
        path.read_bytes() == (folder / "clips" / path.name).read_bytes()
        for path in alone.glob("*.mp4")
        if (folder / "clips" / path.name).exists()
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs it and prints the outcome; the exit code is 1 when a clip is missing, torn, there twice or another one."""
    parser = argparse.ArgumentParser(description="Kill a node in the middle of a batch and look what is left.")
    parser.add_argument("--clips", type=int, default=40, metavar="N")
    parser.add_argument("--nodes", type=int, default=3, metavar="N")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="sampling steps of nano")
    parser.add_argument("--compare", action="store_true", help="make all on this machine alone too, and compare")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = kill_node(COMMAND, Path(folder), options.clips, options.nodes, options.steps, compare=options.compare)
    print(json.dumps(asdict(found)) if options.json else found)
    outcome = found.outcome
    right = outcome.whole == outcome.done == options.clips and not (outcome.torn or outcome.twice or outcome.left_over)
    return 0 if right and found.same in (None, options.clips) else 1


if __name__ == "__main__":
    sys.exit(main())
