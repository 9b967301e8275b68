"""Kill a batch at random moments, again and again, and look whether every clip was made once, and whole.

    python benchmarks/kill_batch.py [--kills 50] [--clips 20] [--steps 2] [--seed 1] [--json]

Each round starts `ovi-studio batch` on the same table and folder and kills it (SIGKILL) at a random moment of a
clip, or, one time in five, at any moment of its start. The last round runs to the end. The tests do the same
with fewer kills and a fake engine.
"""

import argparse
import csv
import json
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ovi_studio.errors import MediaError
from ovi_studio.media import decode_audio, decode_frames
from ovi_studio.studio.clips import embedded_request
from ovi_studio.studio.library import Filter, Library

COMMAND = (sys.executable, "-m", "ovi_studio.cli")
_CLAIM_SECONDS = 120.0  # until a round has begun its first clip; guessed: importing torch takes ten


@dataclass(frozen=True)
class Outcome:
    """What is there after the last round."""

    clips: int  # asked for
    kills: int
    whole: int  # files that decode to their end
    torn: int  # files that do not
    twice: int  # files too many for what was asked for
    done: int  # jobs that the library calls done
    interruptions: int  # that the library counted
    sound: bool  # whether SQLite finds the library consistent
    left_over: tuple[str, ...]  # other files in the folder
    seconds: float


def kill_batch(
    command: Sequence[str], folder: Path, clips: int, kills: int, steps: int, draw: random.Random
) -> Outcome:
    """Make a batch of `clips` in `folder` with `command`, killing it `kills` times on the way."""
    begun = time.monotonic()
    table, library = folder / "batch.csv", folder / "library.db"
    write_table(table, clips, steps)
    batch = [*command, "batch", str(table), "-o", str(folder / "clips"), "--library", str(library)]
    begin = 2.0  # seconds, until it is known how long a clip takes
    for killed in range(kills):
        process = subprocess.Popen(batch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0, 5))
        else:
            _wait_for_claim(process, library)
            times = _seconds(library)
            begin *= 1.25
            window = 1.3 * statistics.median(times) if times else begin
            if len(times) > 0.8 * clips * killed / kills:  # ahead: some clips are for the last round
                window *= 0.7
            time.sleep(draw.uniform(0, window))
        process.kill()
        if process.wait() >= 0:
            raise SystemExit(f"the batch ended by itself, after {killed} kills: give it more clips or steps")
    subprocess.run(batch, stdout=subprocess.DEVNULL, check=True)
    return look(folder, library, clips, kills, time.monotonic() - begun)


def write_table(table: Path, clips: int, steps: int) -> None:
    """A batch of `clips` rows, each of its own prompt and seed."""
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = ([f"Clip {n}: a red face says <S>{n}<E>.", steps, n] for n in range(clips))
        csv.writer(file).writerows([("text_prompt", "steps", "seed"), *rows])


def _wait_for_claim(process: "subprocess.Popen[bytes]", library: Path) -> None:
    """Until this process has taken a job."""
    deadline = time.monotonic() + _CLAIM_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            rows = _rows(library, "SELECT runner FROM jobs WHERE status = 'running'")
        except sqlite3.Error:  # it is being made
            rows = []
        if any(f"~{process.pid}~" in runner for (runner,) in rows):
            return
        time.sleep(0.02)
    raise SystemExit("the batch took no job")


def _seconds(library: Path) -> list[float]:
    """What each clip that is done has taken, loading included."""
    return [float(seconds) for (seconds,) in _rows(library, "SELECT seconds FROM jobs WHERE status = 'done'")]


def _rows(library: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{library}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def look(folder: Path, library: Path, clips: int, kills: int, seconds: float) -> Outcome:
    """What is in `folder` after a batch: its clips, and what the library says of them."""
    files = sorted(path for path in (folder / "clips").rglob("*") if path.is_file())
    found = [path for path in files if path.suffix == ".mp4" and not path.name.startswith(".")]
    whole = [path for path in found if _is_whole(path)]
    made = {(embedded_request(path).prompt, embedded_request(path).seed) for path in whole}
    with Library(library) as opened:
        opened.check()
        jobs = opened.find(Filter())
    others = [str(path.relative_to(folder)) for path in files if path not in found and path.name != "batch-results.csv"]
    return Outcome(
        clips=clips,
        kills=kills,
        whole=len(whole),
        torn=len(found) - len(whole),
        twice=len(whole) - len(made),
        done=sum(job.status == "done" and job.output in whole for job in jobs),
        interruptions=sum(job.interruptions for job in jobs),
        sound=True,  # `check` raises otherwise
        left_over=tuple(others),
        seconds=round(seconds, 1),
    )


def _is_whole(path: Path) -> bool:
    try:
        return sum(1 for _ in decode_frames(path)) > 0 and len(decode_audio(path)[0]) > 0
    except MediaError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """Runs it and prints the outcome; the exit code is 1 when a clip is missing, torn or there twice."""
    parser = argparse.ArgumentParser(description="Kill a batch at random moments and look what is left.")
    parser.add_argument("--kills", type=int, default=50, metavar="N")
    parser.add_argument("--clips", type=int, default=20, metavar="N")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="sampling steps of nano")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random moments")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(options.seed)
        outcome = kill_batch(COMMAND, Path(folder), options.clips, options.kills, options.steps, draw)
    print(json.dumps(asdict(outcome)) if options.json else outcome)
    right = outcome.whole == outcome.done == options.clips and not (outcome.torn or outcome.twice or outcome.left_over)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
