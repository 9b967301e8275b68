"""How long the page takes from the start of its process to what is seen first, beside a bare gradio page.

    python benchmarks/first_paint.py [--rounds 7]

Both are started in turn, in processes of their own; a headless Chromium that runs already opens each in a fresh
profile. Told are the medians: seconds to the first contentful paint and to a button that can be pressed, what the
server's process has computed until then (which other programs on the machine change least), and its resident memory
a while after. The last line is JSON.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = "/usr/bin/chromium"
BARE = """
import sys
import gradio as gr

with gr.Blocks() as page:
    text = gr.Textbox(label="Prompt")
    button = gr.Button("Generate", elem_id="generate")
    button.click(lambda words: words, text, text)
page.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), quiet=True)
"""
IDLE_SECONDS = 4.0  # after the button is there
PATIENCE = 120.0  # seconds, on a busy machine


def main() -> int:
    """Prints a line for every start, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="starts of each (default: 7)")
    rounds = parser.parse_args().rounds
    commands = {
        "bare gradio": [sys.executable, "-c", BARE],
        "ovi-studio": [sys.executable, "-m", "ovi_studio.cli", "page", "--no-browser", "--port"],
    }
    told: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as home:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for number in range(rounds + 1):
            for name, command in commands.items():
                measured = measure(browser, command, Path(home))
                print(f"{(str(number) if number else 'warming'):>7}  {name:12}  {measured}", flush=True)
                if number:  # the first start reads files from the disk and compiles them
                    told[name].append(measured)
        browser.close()
    medians = {
        name: {what: round(statistics.median(each[what] for each in runs), 3) for what in runs[0]}
        for name, runs in told.items()
    }
    ratio = {what: round(value / medians["bare gradio"][what], 2) for what, value in medians["ovi-studio"].items()}
    print(json.dumps({"rounds": rounds, **medians, "ratio": ratio}))
    return 0


def measure(browser: Browser, command: list[str], home: Path) -> dict[str, float]:
    """One start, in seconds and MB."""
    port = free_port()
    context = browser.new_context()
    page = context.new_page()
    started = time.time()
    with running([*command, str(port)], home) as process:
        wait_for(port, process)
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("#generate")
        usable = time.time() - started
        painted = page.evaluate(
            "performance.timeOrigin + performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        times = psutil.Process(process.pid).cpu_times()
        time.sleep(IDLE_SECONDS)
        memory = psutil.Process(process.pid).memory_info().rss
        context.close()
    return {
        "paint_s": round(painted / 1000 - started, 3),
        "usable_s": round(usable, 3),
        "processor_s": round(times.user + times.system, 3),
        "memory_mb": round(memory / 1e6, 1),
    }


@contextlib.contextmanager
def running(command: list[str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, ended in the end; neither page tells anybody that it was opened."""
    quiet = {"OVI_STUDIO_HOME": str(home), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until somebody answers."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.01)
    raise TimeoutError("the page did not start")


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
