"""`ovi-studio doctor`: what is installed, which card, which weights, what is missing, and the command that mends it."""

import argparse
import dataclasses
import json
from typing import Any

from ovi_studio.cli.console import print_line


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio doctor`."""
    parser = commands.add_parser(
        "doctor",
        help="check the installation, the card and the weights",
        description="Check the installation, the card and the weights. The exit code is 1 if something will not work.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints every check; those that need attention with what mends them."""
    from ovi_studio.folders import app_folders  # noqa: PLC0415
    from ovi_studio.runtime.hardware import probe  # noqa: PLC0415
    from ovi_studio.studio.doctor import examine, look_around  # noqa: PLC0415

    weights = app_folders().weights
    hardware = probe(weights)
    checks = tuple(examine(hardware, look_around(weights)))
    healthy = all(check.state != "problem" for check in checks)
    if arguments.json:
        report = [dataclasses.asdict(check) for check in checks]
        print_line(json.dumps({"healthy": healthy, "hardware": hardware.describe(), "checks": report}))
    else:
        for check in checks:
            print_line(f"{check.state:8} {check.name}: {check.text}")
            if check.remedy:
                print_line(f"{'':8} → {check.remedy}")
    return 0 if healthy else 1
