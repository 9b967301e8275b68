"""Everything about speed on one card, within ten minutes: the other benchmarks, one after the other.

    python benchmarks/everything.py --device cuda --out benchmarks/results

It needs no network and no weights: full-size models are drawn on the card. Each benchmark has its own process and
limit; one that fails or takes too long costs its own line only. The last line is a JSON object with all of theirs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SMALL, LARGE = ("--model", "720x720_5s", "--size", "704x704"), ("--model", "960x960_10s", "--size", "960x960")
FAST = ("--set", "compile=true", "--set", "transformer_precision=fp8_compute")
# Script, arguments, seconds: together ten minutes. Few steps stand for fifty, as all cost the same, and those of
# `forward.py` for the long clip's. What `fast` would choose is forced, as so few steps would not repay compiling;
# random weights leave the step cache nothing to reuse (`quality_of_speed.py` tells its cost with released ones).
ON_CARD: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("attention.py", SMALL, 40),
    ("attention.py", LARGE, 50),
    ("forward.py", (*SMALL, "--compile", "--profile"), 100),
    ("forward.py", (*LARGE, "--compile", "--rounds", "1"), 110),
    ("decode.py", (*SMALL, "--rounds", "2", "--compile"), 90),
    ("whole_run.py", (*SMALL, "--quality", "exact", "--steps", "20", "--takes", "2", "--set", "compile=true"), 120),
    ("whole_run.py", (*SMALL, "--quality", "fast", "--steps", "20", "--takes", "2", *FAST), 90),
)
ON_CPU: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("attention.py", (), 60),
    ("forward.py", ("--rounds", "2", "--profile"), 200),
    ("decode.py", ("--rounds", "2"), 60),
    ("whole_run.py", ("--takes", "2"), 100),
    ("quality_of_speed.py", ("--rounds", "1"), 180),
)


def main() -> None:
    """Runs them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="folder for the last line, in a file with the date")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for script, arguments, limit in ON_CARD if options.device == "cuda" else ON_CPU:
        results.append(one(script, (*arguments, "--device", options.device), limit))
    line = json.dumps({"benchmark": "everything", "results": results})
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{time.strftime('%Y-%m-%d')}-{options.device}.json").write_text(line + "\n", encoding="utf-8")
    print(line)


def one(script: str, arguments: tuple[str, ...], limit: int) -> dict[str, Any]:
    """A benchmark's last line, or why there is none."""
    print(f"\n== {script} {' '.join(arguments)}", flush=True)
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / script), *arguments],
            check=True, timeout=limit, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"   {error}", flush=True)
        return {"benchmark": script, "arguments": arguments, "failed": str(error)}
    print(done.stdout, flush=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
