"""`ovi-studio page`, and `ovi-studio` alone: the page in a browser, for oneself or shared."""

import argparse
import logging
from typing import TYPE_CHECKING, Any

from ovi_studio.cli.console import say
from ovi_studio.cli.plan import add_gpus, preferences_of
from ovi_studio.errors import InvalidInputError

if TYPE_CHECKING:
    from ovi_studio.ui.door import Access


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio page`."""
    parser = commands.add_parser(
        "page",
        help="open the page in a browser (also: no command at all)",
        description="Serve the page and open it in a browser. Ctrl-C ends it; what is queued is made the next time.",
        epilog="Others need a password. Its owner logs in as 'owner'; visitors see their own only.",
        allow_abbrev=False,
    )
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the page."""
    add = parser.add_argument
    add("--port", type=int, metavar="N", help="of the server (default: the first free one from 7860 on)")
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="to listen on; 0.0.0.0 lets the network in")
    add("--share", action="store_true", help="make a public link through gradio's servers, for a week")
    add(
        "--auth", metavar="NAME:PASSWORD", action="append", default=[],
        help="an account for a visitor; repeatable; 'generate' makes up one password for all",
    )  # fmt: skip
    add("--owner-password", metavar="PASSWORD", help="of the user 'owner' (default: made up and printed)")
    add("--no-password", action="store_true", help="let everybody in who can reach the page")
    add("--mcp", action="store_true", help="offer the page's endpoints as tools (MCP); on this machine only")
    add("--no-browser", action="store_true", help="print the address only")
    add_gpus(parser)
    add("--simulate", metavar="MACHINE", help="show plans for another machine, such as 1x24GB@8.9,ram=64")


def run(arguments: argparse.Namespace) -> int:
    """Shows the page until Ctrl-C."""
    from ovi_studio.ui.page import Settings, serve  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    access = _access(arguments)
    settings = Settings(
        access=access,
        port=arguments.port,
        open_browser=not arguments.no_browser,
        mcp=arguments.mcp,
        simulate=arguments.simulate,
        preferences=preferences_of((), arguments.gpus),
    )
    serve(settings, say)
    return 0


def _access(arguments: argparse.Namespace) -> "Access":
    from ovi_studio.ui.door import Access  # noqa: PLC0415

    pairs = [each.partition(":") for each in arguments.auth if each != "generate"]
    if any(not colon for _, colon, _ in pairs):
        raise InvalidInputError("An account has no password.", "Write --auth name:password, or --auth generate.")
    return Access(
        host=arguments.host,
        share=arguments.share,
        accounts=tuple((name, password) for name, _, password in pairs),
        made_up="generate" in arguments.auth or (arguments.share and not pairs and not arguments.no_password),
        owner_password=arguments.owner_password,
        open_to_all=arguments.no_password,
    )
