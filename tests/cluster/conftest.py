"""A cluster of several nodes on this machine, on its loopback interface."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

# Before Ray is imported: as `ray_session.connected` does.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import pytest

pytest.importorskip("ray", reason='pip install "ovi-studio[cluster]"')

import ray
from ray.cluster_utils import Cluster

from ovi_studio.engine import Engine
from ovi_studio.engine.cluster import ClusterEngine

ROOT = Path(__file__).parents[2]
STORE_BYTES = 80 << 20


class Machines:
    """A head without processors, which answers ray:// at `client_port`, and nodes with one processor each."""

    def __init__(self, nodes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.client_port: int = free.getsockname()[1]
        head = {
            "num_cpus": 0,
            "node_ip_address": "127.0.0.1",
            "node_name": "head",
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "ray_client_server_port": self.client_port,
            "env_vars": {"PYTHONPATH": str(ROOT)},
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add(f"node{n}") for n in range(nodes)]
        ray.init(self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def add(self, name: str) -> object:
        return self.cluster.add_node(
            num_cpus=1,
            node_name=name,
            node_ip_address="127.0.0.1",
            object_store_memory=STORE_BYTES,
            env_vars={"PYTHONPATH": str(ROOT)},  # where what a driver sends is found
        )

    def kill(self, index: int) -> None:
        """As a power cut would, on the spot."""
        self.cluster.remove_node(self.nodes.pop(index), allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    machines = Machines(2)
    yield machines
    machines.close()


@pytest.fixture
def make(machines: Machines, tmp_path: Path) -> Iterator[Callable[..., ClusterEngine]]:
    """Engines of that cluster; they are closed in the end."""
    made: list[ClusterEngine] = []

    def make(make_engine: Callable[[Path], Engine], patience: float = 60.0) -> ClusterEngine:
        folder = tmp_path / "here"
        folder.mkdir(exist_ok=True)
        made.append(ClusterEngine(folder, make_engine, patience=patience))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
