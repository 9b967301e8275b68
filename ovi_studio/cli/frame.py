"""`ovi-studio frame`: the picture that a clip would begin with, drawn by FLUX.1, and no clip."""

import argparse
import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from ovi_studio.cli import generate
from ovi_studio.cli.console import read_prompt
from ovi_studio.cli.plan import add_preferences, preferences_of
from ovi_studio.errors import EngineError, MediaError
from ovi_studio.variants import VARIANTS, parse_size


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio frame`."""
    parser = commands.add_parser(
        "frame",
        help="draw a first frame from a prompt",
        description="Have FLUX.1 draw the picture that a clip would begin with; its path is printed at the end.",
        epilog="Speech and sound in the prompt are left out. `generate --image` makes a clip of the picture.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what to see; - reads it from standard input")
    add("--model", dest="variant", metavar="NAME", help=f"of the clip: {', '.join(VARIANTS)} (default: nano)")
    add("--size", metavar="HxW", help="of the clip, such as 704x1280: the picture gets its aspect")
    add("--aspect", metavar="W:H", help="width:height, such as 16:9, instead of --size")
    add("--seed", type=int, metavar="N", help="the same seed draws the same picture (default: drawn and told)")
    add("--quality", metavar="WISH", help="auto, exact, fast, smallest (default: auto)")
    add_preferences(parser)
    add("-o", "--output", metavar="FILE", help="the .png to write (default: named after the prompt)")
    add("--force", action="store_true", help="replace a file that exists")
    add("--json", action="store_true", help="print every event as a line of JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draws the picture."""
    from ovi_studio.events import FrameDrawn  # noqa: PLC0415
    from ovi_studio.files import writing_errors  # noqa: PLC0415
    from ovi_studio.outputs import folder_beside, take_name  # noqa: PLC0415
    from ovi_studio.request import GenerationRequest  # noqa: PLC0415

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    fields = {name: given[name] for name in GenerationRequest.model_fields if name in given}
    fields["prompt"] = read_prompt(fields["prompt"])
    if "size" in fields:
        fields["size"] = tuple(parse_size(fields["size"]))
    request = GenerationRequest.create(first_frame={"kind": "generated"}, **fields).with_real_seed()
    preferences = preferences_of(arguments.preferences, arguments.gpus)
    output = _output(arguments.output, request.prompt, force=arguments.force)
    display = generate.make_display(1, json_lines=arguments.json)
    with (
        generate.stopped_by_signals() as cancel,
        folder_beside(output) as folder,
        contextlib.closing(generate.make_engine(folder, preferences)) as engine,
    ):
        last = generate.follow(engine.draw(request, cancel), display)
        if not isinstance(last, FrameDrawn):
            raise EngineError("The engine stopped without a picture.", "Run it again; report it if it recurs.")
        with writing_errors(output):
            copy = Path(shutil.copyfile(last.path, folder / "copy.png"))
        display.finish(take_name(copy, output, force=arguments.force), 1)
    return 0


def _output(output: str | None, prompt: str, *, force: bool) -> Path:
    """The file to write.

    Raises:
        MediaError: the name is not that of a png, cannot be written, or is taken.
    """
    from ovi_studio.files import check_writable  # noqa: PLC0415
    from ovi_studio.outputs import stem_for  # noqa: PLC0415

    path = Path(f"{stem_for(prompt)}.png" if output is None else output)
    if path.suffix.lower() != ".png":
        raise MediaError(f"{str(path)!r} does not end in .png.", "Pictures are png files: name it so.")
    check_writable(path)
    if output is not None and os.path.lexists(path) and not force:
        raise MediaError(f"{path} exists already.", "Give another name, or --force to replace it.")
    return path
