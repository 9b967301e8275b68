"""`python -m ovi_studio.training STAGE --out DIR --steps N --seed S`: trains one stage, or goes on with it.

Beside the stages there are tools with options of their own: see `TOOLS`, and `TOOL --help`.
"""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ovi_studio.errors import OviStudioError
from ovi_studio.training.stages import COMPILABLE, STAGES

# Imported when asked for: each needs libraries that the others do not.
TOOLS: Mapping[str, str] = MappingProxyType(
    {"pack": "packing", "evaluate": "evaluate", "judge": "judges", "prepare": "data", "finetune": "finetune"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a stage or a tool and returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        if given and given[0] in TOOLS:
            tool = importlib.import_module(f"ovi_studio.training.{TOOLS[given[0]]}")
            return int(tool.main(given[1:]))
        return _run_stage(given)
    except OviStudioError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code


def _run_stage(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ovi_studio.training",
        description="Train one stage of nano. The same command goes on after an interruption.",
        epilog=f"Tools with options of their own: {', '.join(TOOLS)}; TOOL --help tells them.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    add(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the whole training; a stage has its own in it"
    )
    add("--steps", type=int, metavar="N", help="steps of the stage (default: the recipe's)")
    add("--seed", type=int, default=0, metavar="S", help="of clips, noise and fresh weights (default: 0)")
    add("--compile", action="store_true", help="compile the blocks of a tower or of fusion: minutes first, then faster")
    arguments = parser.parse_args(given)
    if arguments.compile and arguments.stage not in COMPILABLE:
        parser.error(f"--compile is for {', '.join(sorted(COMPILABLE))}; leave it out")
    options = {"compiled": True} if arguments.compile else {}
    STAGES[arguments.stage](arguments.out, arguments.seed, arguments.steps, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
