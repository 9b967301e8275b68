"""`ovi-studio page`, and `ovi-studio` alone: the page in a browser."""

import argparse
from typing import Any

from ovi_studio.cli.console import say


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio page`."""
    parser = commands.add_parser(
        "page",
        help="open the page in a browser (also: no command at all)",
        description="Serve the page on this machine and open it in a browser. Ctrl-C ends it.",
        allow_abbrev=False,
    )
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the page."""
    add = parser.add_argument
    add("--port", type=int, metavar="N", help="of the server (default: the first free one from 7860 on)")
    add("--no-browser", action="store_true", help="print the address only")
    add("--simulate", metavar="MACHINE", help="show plans for another machine, such as 1x24GB@8.9,ram=64")


def run(arguments: argparse.Namespace) -> int:
    """Shows the page until Ctrl-C."""
    from ovi_studio.ui.page import Settings, serve  # noqa: PLC0415

    settings = Settings(arguments.port, open_browser=not arguments.no_browser, simulate=arguments.simulate)
    serve(settings, say)
    return 0
