"""`ovi-studio plan`: how a clip would be made on this machine, or on one that is described."""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_args

from ovi_studio.cli.console import print_line
from ovi_studio.errors import InvalidInputError
from ovi_studio.variants import VARIANTS, Modality, get_variant, parse_size

if TYPE_CHECKING:
    from ovi_studio.runtime.execution_plan import Preferences


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio plan`."""
    parser = commands.add_parser(
        "plan",
        help="show how a clip would be made, and what it would take",
        description="Show how a clip would be made on this machine: precision, placement, memory, time, and why.",
        epilog="An impossible wish ends with exit code 2 and tells what would be needed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", dest="variant", metavar="NAME", default="nano", help=f"{', '.join(VARIANTS)} (default: nano)")
    add("--size", metavar="HxW", help="height x width in pixels, such as 704x1280; snaps to the model's area")
    add("--modality", metavar="WHAT", default="both", help=f"{', '.join(get_args(Modality))} (default: both)")
    add("--steps", dest="num_inference_steps", type=int, metavar="N", help="sampling steps, 1 to 200")
    add("--with-image", action="store_true", help="as if the clip started from an image")
    add("--draw-frame", action="store_true", help="as if FLUX.1 drew the first frame")
    add("--quality", metavar="WISH", default="auto", help="auto, exact, fast, smallest (default: auto)")
    add("--simulate", metavar="MACHINE", help="another machine, such as 1x24GB@8.9,ram=64 or cpu,ram=16")
    add_preferences(parser)
    add("--json", action="store_true", help="print the plan as a line of JSON")
    parser.set_defaults(run=run)


def add_preferences(parser: argparse.ArgumentParser) -> None:
    """Declares `--set`, by which any part of a plan can be forced."""
    parser.add_argument(
        "--set",
        dest="preferences",
        metavar="PART=VALUE",
        action="append",
        default=[],
        help="force a part of the plan, such as transformer_precision=int8 or gpu_limit_bytes=12GB; repeatable",
    )
    add_gpus(parser)


def add_gpus(parser: argparse.ArgumentParser) -> None:
    """Declares `--gpus`."""
    parser.add_argument("--gpus", metavar="N,N", help="cards that may be used, by their numbers (default: all)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan."""
    from ovi_studio.folders import app_folders  # noqa: PLC0415
    from ovi_studio.request import GeneratedFrame, GenerationRequest, ImageFrame  # noqa: PLC0415
    from ovi_studio.runtime.calibration import Calibration  # noqa: PLC0415
    from ovi_studio.runtime.hardware import probe, simulate  # noqa: PLC0415
    from ovi_studio.runtime.plan import plan  # noqa: PLC0415

    first_frame: ImageFrame | GeneratedFrame | None = ImageFrame(name="any") if arguments.with_image else None
    if arguments.draw_frame:
        first_frame = GeneratedFrame()
    request = GenerationRequest.create(
        prompt="any",
        variant=arguments.variant,
        size=None if arguments.size is None else tuple(parse_size(arguments.size)),
        modality=arguments.modality,
        num_inference_steps=arguments.num_inference_steps,
        quality=arguments.quality,
        first_frame=first_frame,
    ).resolved()
    hardware = simulate(arguments.simulate) if arguments.simulate is not None else probe()
    rates = None if arguments.simulate else Calibration(app_folders().cache / "calibration.json").rates(hardware)
    preferences = preferences_of(arguments.preferences, arguments.gpus)
    found = plan(request, get_variant(request.variant), hardware, preferences, rates)
    for line in [json.dumps(found.to_json())] if arguments.json else found.explain():
        print_line(line)
    return 0


def preferences_of(pairs: Iterable[str], gpus: str | None = None) -> "Preferences":
    """`PART=VALUE` pairs, and the cards that may be used, as preferences.

    Raises:
        InvalidInputError: a part or a value is unknown; the message lists the parts.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    from ovi_studio.runtime.execution_plan import Preferences  # noqa: PLC0415

    parts = [field.name for field in dataclasses.fields(Preferences)]
    values: dict[str, object] = {}
    if gpus is not None:
        if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", gpus):
            raise InvalidInputError(f"Cards cannot be {gpus[:40]!r}.", "Give their numbers, such as --gpus 0,1.")
        values["gpus"] = tuple(sorted({int(number) for number in gpus.split(",")}))
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in parts:
            raise InvalidInputError(f"A plan has no part called {name!r}.", f"The parts are {', '.join(parts)}.")
        gigabytes = re.fullmatch(r"(\d+(?:\.\d+)?)\s*GB", value)
        values[name] = int(float(gigabytes.group(1)) * 2**30) if gigabytes else value
    try:
        return TypeAdapter(Preferences).validate_python(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise InvalidInputError(
            f"{fault['loc'][0]} cannot be {fault['input']!r}.", f"{fault['msg'].removeprefix('Input ').capitalize()}."
        ) from error
