"""`ovi-studio attention`: a clip made again, as a map of the pixels that its sound looks at."""

import argparse
import contextlib
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovi_studio.cli import generate
from ovi_studio.cli.console import say
from ovi_studio.cli.plan import add_preferences, preferences_of
from ovi_studio.errors import EngineError, InvalidInputError, InvalidRequestError
from ovi_studio.variants import get_variant

if TYPE_CHECKING:
    from ovi_studio.request import GenerationRequest
    from ovi_studio.runtime.execution_plan import ExecutionPlan


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio attention`."""
    parser = commands.add_parser(
        "attention",
        help="show which pixels a clip's sound looks at",
        description="Make a clip again from its own settings and show, as heat over it, which pixels its sound looks "
        "at while they are made together: the attention of the audio to the video tower, averaged over heads, blocks "
        "and steps. The path of the map, a clip with the same sound, is printed at the end.",
        epilog="It takes as long as making the clip did. Blocks are not compiled, and no step is cached.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("clip", metavar="CLIP", help="an .mp4 that Ovi Studio made, with picture and sound")
    add("--image", metavar="FILE", help="the first frame it was made with, which a clip does not carry")
    add("--blocks", metavar="LIST", help="blocks to average, such as 0-9,15, counted from 0 (default: all)")
    add("--steps", dest="seen_steps", metavar="LIST", help="sampling steps to average, counted from 1 (default: all)")
    add_preferences(parser)
    add("-o", "--output", metavar="FILE", help="the .mp4 to write (default: CLIP-attention.mp4)")
    add("--force", action="store_true", help="replace a file that exists")
    add("--json", action="store_true", help="print every event as a line of JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Makes the clip again, watched, and writes the map."""
    # 1. what is wanted, and whether it can be
    given = {} if arguments.image is None else {"first_frame": generate.image_frame(arguments.image)}
    request = generate.remake(arguments.clip, given).replace(takes=1)
    blocks, steps = _choice_for(request, arguments.blocks, arguments.seen_steps)
    forced = preferences_of(arguments.preferences, arguments.gpus)
    preferences = dataclasses.replace(forced, compile=False, step_cache="none", single_card=True)

    # 2. where it goes
    from ovi_studio.outputs import folder_beside, output_paths, take_name  # noqa: PLC0415

    output = arguments.output or str(Path(arguments.clip).with_name(f"{Path(arguments.clip).stem}-attention.mp4"))
    (path,) = output_paths(output, request.prompt, 1, force=arguments.force)

    # 3. the run, watched, and its map
    from ovi_studio.engine.attention_maps import AttentionWatch, Choice, write_overlay  # noqa: PLC0415
    from ovi_studio.engine.engine import OviEngine, load_pipeline  # noqa: PLC0415
    from ovi_studio.events import Finished  # noqa: PLC0415
    from ovi_studio.folders import app_folders  # noqa: PLC0415
    from ovi_studio.media import read_clip  # noqa: PLC0415
    from ovi_studio.runtime.planner import Planner  # noqa: PLC0415

    choice = Choice(blocks, steps)
    watch, cache = AttentionWatch(choice), app_folders().cache
    display = generate.make_display(1, json_lines=arguments.json)
    with generate.stopped_by_signals() as cancel, folder_beside(path) as folder:
        planner, load = Planner(cache, preferences), watch.loading(load_pipeline)
        with contextlib.closing(OviEngine(folder, cache, planner, load=load)) as engine:
            _check_undivided(engine.plan(request))
            last = generate.follow(engine.generate(request, cancel), display)
        if not isinstance(last, Finished):
            raise EngineError("The engine stopped without a clip.", "Run it again; report it if it recurs.")
        _tell_difference(Path(arguments.clip), last.clip.path)
        write_overlay(read_clip(last.clip.path), watch.seen(), request, choice, folder / "map.mp4")
        display.finish(take_name(folder / "map.mp4", path, force=arguments.force), 1)
    return 0


def _choice_for(
    request: "GenerationRequest", blocks: str | None, steps: str | None
) -> tuple[frozenset[int], frozenset[int]]:
    """The indices of blocks and of steps that are averaged, both from 0."""
    variant = get_variant(request.variant)
    if request.modality != "both":
        raise InvalidRequestError(
            f"The clip was made with {request.modality} alone: its sound looks at nothing.",
            "Choose a clip with picture and sound.",
        )
    count = request.num_inference_steps or variant.defaults.num_inference_steps
    chosen = numbers(steps, 1, count, "steps")
    return numbers(blocks, 0, variant.transformer.num_layers - 1, "blocks"), frozenset(n - 1 for n in chosen)


def numbers(text: str | None, first: int, last: int, name: str) -> frozenset[int]:
    """Reads `0-3,7`; None is all from `first` to `last`.

    Raises:
        InvalidInputError: it is no such list, or goes beyond.
    """
    if text is None:
        return frozenset(range(first, last + 1))
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*", part)
        if match is None:
            raise InvalidInputError(f"The {name} {text[:40]!r} are no list of numbers.", "Write such as 0-3,7.")
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not found or min(found) < first or max(found) > last:
        raise InvalidInputError(
            f"The {name} {text[:40]!r} are not all there.", f"This clip's {name} are {first} to {last}."
        )
    return frozenset(found)


def _check_undivided(plan: "ExecutionPlan") -> None:
    """Refuses a plan in which no card sees all tokens."""
    if plan.parallel.gpus != 1:
        raise InvalidInputError(
            f"The run would be divided among {plan.parallel.gpus} cards, none of which sees the whole attention.",
            "Let it see one card: set CUDA_VISIBLE_DEVICES=0.",
        )


def _tell_difference(given: Path, made: Path) -> None:
    """Tells where the clip that was made is not the one that was given, for the map is of the new one."""
    import numpy as np  # noqa: PLC0415

    from ovi_studio.media import first_frame, last_frame  # noqa: PLC0415

    if not all(np.array_equal(look(given), look(made)) for look in (first_frame, last_frame)):
        say(f"the map is of the clip as it is made now: {given} came of other weights, another plan or another machine")
