"""Fifty programs at once: no job is lost, no result is mixed up, memory stays as it is.

    python benchmarks/fifty_clients.py --seconds 120

Each client asks for clips under prompts of its own, waits for each, and compares what it was told with what it asked
for. The engine is a fake, so that the page, the queue and the library are what is loaded. Ends with a line of JSON.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from gradio_client import Client


def run_load(address: str, clients: int, seconds: float) -> dict[str, Any]:
    """What `clients` saw in `seconds`; the server runs in this process."""
    counts = {"asked": 0, "done": 0, "lost": 0, "mixed": 0}
    counting = threading.Lock()
    stop = time.monotonic() + seconds
    process = psutil.Process()
    settled_bytes: list[int] = []

    def work(number: int) -> None:
        client = Client(address, verbose=False, httpx_kwargs={"timeout": 60})
        turn = 0
        while turn == 0 or time.monotonic() < stop:
            turn += 1
            seed = number * 10_000 + turn
            job = client.predict(f"Client {number}, clip {turn}.", seed=seed, api_name="/generate")[0]
            told = _end_of(client, job["id"])
            expected = (f"Client {number}, clip {turn}.", seed)
            with counting:
                counts["asked"] += 1
                counts["done"] += told["status"] == "done"
                counts["lost"] += told["status"] != "done"
                counts["mixed"] += (told["title"], told["seed"]) != expected

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        if counts["asked"] >= clients:  # everybody has connected and been served once
            settled_bytes.append(process.memory_info().rss)
    for thread in threads:
        thread.join()
    first, last = (settled_bytes[0], settled_bytes[-1]) if settled_bytes else (1, 1)
    return {**counts, "clients": clients, "memory_growth": round(last / first, 3)}


def _end_of(client: Client, job: str) -> dict[str, Any]:
    """What became of a job."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        told: dict[str, Any] = client.predict(job, api_name="/status")
        if told["status"] not in ("queued", "running"):
            return told
        time.sleep(1)
    return told


def main() -> None:
    """Run it against a page of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["OVI_STUDIO_HOME"] = home
        from ovi_studio.ui.door import Access  # noqa: PLC0415  (after the folder is set)
        from tests.ui.test_door import served  # noqa: PLC0415

        with served(Path(home), Access()) as up:
            print(json.dumps(run_load(up.address, arguments.clients, arguments.seconds)))


if __name__ == "__main__":
    main()
