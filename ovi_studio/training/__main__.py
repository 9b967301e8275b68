"""`python -m ovi_studio.training STAGE --out DIR --steps N --seed S`: trains one stage, or goes on with it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ovi_studio.errors import OviStudioError
from ovi_studio.training.stages import STAGES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a stage and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ovi_studio.training",
        description="Train one stage of nano. The same command goes on after an interruption.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    add(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the whole training; a stage has its own in it"
    )
    add("--steps", type=int, metavar="N", help="steps of the stage (default: the recipe's)")
    add("--seed", type=int, default=0, metavar="S", help="of clips, noise and fresh weights (default: 0)")
    arguments = parser.parse_args(argv)
    try:
        STAGES[arguments.stage](arguments.out, arguments.seed, arguments.steps)
    except OviStudioError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
