"""`ovi-studio generate`: a prompt to a clip, with its progress on the terminal or as JSON lines."""

import argparse
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

from ovi_studio.cli.console import TerminalLine, minutes, print_line, read_prompt, say
from ovi_studio.cli.lint import findings_of, position_of
from ovi_studio.cli.plan import add_preferences, preferences_of
from ovi_studio.errors import CancelledError, EngineError, InvalidRequestError, PromptError
from ovi_studio.variants import VARIANTS, Modality, Solver, get_variant, parse_interval, parse_size

if TYPE_CHECKING:
    from ovi_studio.engine import Engine
    from ovi_studio.events import CancelToken, Event
    from ovi_studio.request import GenerationRequest
    from ovi_studio.runtime.execution_plan import Preferences


def add_parser(commands: Any) -> None:
    """Declares `ovi-studio generate`."""
    parser = commands.add_parser(
        "generate",
        help="make a clip from a prompt",
        description="Make a clip from a prompt; its path is printed at the end.",
        epilog="What is left out takes the model's default. Speech is written <S>words<E>.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="what to see and hear; - reads it from standard input")
    add("--model", dest="variant", metavar="NAME", help=f"{', '.join(VARIANTS)} (default: nano)")
    add("--image", metavar="FILE", help="the first frame")
    add("--draw-frame", action="store_true", help="have FLUX.1 draw the first frame, from what the prompt shows")
    add("--first-frame-prompt", metavar="TEXT", help="the same, from a prompt of its own")
    add("--first-frame-seed", type=int, metavar="N", help="the same, with a seed of its own (default: each clip's)")
    add("--modality", metavar="WHAT", help=f"{', '.join(get_args(Modality))} (default: both)")
    add("--size", metavar="HxW", help="height x width in pixels, such as 704x1280; snaps to the model's area")
    add("--aspect", metavar="W:H", help="width:height, such as 16:9, instead of --size")
    add("--seed", type=int, metavar="N", help="the same seed makes the same clip (default: drawn and recorded)")
    add("--takes", type=int, metavar="N", help="clips to make, with seeds N, N+1, … (default: 1)")
    add("--quality", metavar="WISH", help="auto, exact, fast, smallest (default: auto)")
    add("--steps", dest="num_inference_steps", type=int, metavar="N", help="sampling steps, 1 to 200")
    add("--solver", metavar="NAME", help=", ".join(get_args(Solver)))
    add("--shift", type=float, metavar="X", help="of the noise schedule: more is more steps on the outline")
    add("--video-guidance-scale", type=float, metavar="X", help="1 is none")
    add("--audio-guidance-scale", type=float, metavar="X", help="1 is none")
    add("--video-guidance-interval", metavar="A:B", help="guide the picture in this part of the run, such as 0:0.8")
    add("--audio-guidance-interval", metavar="A:B", help="the same for the sound; outside of both a step costs half")
    add("--slg-layer", type=int, metavar="N", help="block to skip in the negative pass; 0 skips none")
    add("--video-negative-prompt", metavar="TEXT", help="what not to see")
    add("--audio-negative-prompt", metavar="TEXT", help="what not to hear")
    add("--from", dest="source", metavar="CLIP", help="make this clip again; other options override its own")
    add_preferences(parser)
    add("-o", "--output", metavar="FILE", help="the .mp4 to write (default: named after the prompt)")
    add("--force", action="store_true", help="replace a file that exists")
    add("--json", action="store_true", help="print every event as a line of JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Makes every take of the request. Among processes that `torchrun` started, the first does, and the others help."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return _run(arguments)

    from ovi_studio.engine.crew import leading_torchrun, serve_torchrun, torchrun_rank  # noqa: PLC0415

    if torchrun_rank():
        serve_torchrun()
        return 0
    with leading_torchrun():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from ovi_studio.events import Finished  # noqa: PLC0415
    from ovi_studio.outputs import folder_beside, output_paths, take_name  # noqa: PLC0415

    # 1. what is wanted, and whether it can be
    request = _request(arguments)
    _check_prompt(request)
    preferences = preferences_of(arguments.preferences, arguments.gpus)
    # 2. where it goes
    outputs = output_paths(arguments.output, request.prompt, request.takes, force=arguments.force)
    # 3. make each take; a clip gets its name when it is whole
    if not get_variant(request.variant).trained:
        say(f"{request.variant} is untrained: expect noise")
    display = make_display(request.takes, json_lines=arguments.json)
    with (
        stopped_by_signals() as cancel,
        folder_beside(outputs[0]) as folder,
        contextlib.closing(make_engine(folder, preferences)) as engine,
    ):
        for take, (output, each) in enumerate(zip(outputs, request.each_take(), strict=True), start=1):
            cancel.raise_if_cancelled()
            last = follow(engine.generate(each, cancel), display, take)
            if not isinstance(last, Finished):
                raise EngineError("The engine stopped without a clip.", "Run it again; report it if it recurs.")
            temporary = last.clip.path
            display.finish(take_name(temporary, output, force=arguments.force), take)
    return 0


def _request(arguments: argparse.Namespace) -> "GenerationRequest":
    """The request that the options make, on top of the one inside `--from` if there is one."""
    from ovi_studio.request import GenerationRequest  # noqa: PLC0415

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    fields = {name: given[name] for name in GenerationRequest.model_fields if name in given}
    if "prompt" in fields:
        fields["prompt"] = read_prompt(fields["prompt"])
    if "size" in fields:
        fields["size"] = tuple(parse_size(fields["size"]))
    for name in ("video_guidance_interval", "audio_guidance_interval"):
        if name in fields:
            fields[name] = parse_interval(fields[name])
    if (frame := _first_frame(arguments)) is not None:
        fields["first_frame"] = frame
    if arguments.source is not None:
        return remake(arguments.source, fields)
    if "prompt" not in fields:
        raise InvalidRequestError("There is no prompt.", "Give one, or - to read it from standard input.")
    return GenerationRequest.create(**fields)


def _first_frame(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The first frame that the options ask for, if any."""
    prompt, seed = arguments.first_frame_prompt, arguments.first_frame_seed
    drawn = arguments.draw_frame or prompt is not None or seed is not None
    if arguments.image is not None and drawn:
        raise InvalidRequestError("A first frame is given, and to be drawn too.", "Leave out one of the two.")
    if drawn:
        return {"kind": "generated", "prompt": prompt, "seed": seed}
    return None if arguments.image is None else image_frame(arguments.image)


def image_frame(path: str) -> dict[str, Any]:
    """The first frame in a file, once it is known that it can be read as one."""
    from ovi_studio.images import image_digest, read_image  # noqa: PLC0415

    read_image(path)
    return {"kind": "image", "path": str(Path(path).absolute()), "name": Path(path).name, "sha256": image_digest(path)}


def remake(source: str, changes: dict[str, Any]) -> "GenerationRequest":
    """The request inside the clip `source`, with the options that were given changed."""
    from ovi_studio.media import read_metadata  # noqa: PLC0415
    from ovi_studio.request import GenerationRequest, ImageFrame  # noqa: PLC0415

    request = GenerationRequest.from_embedded(read_metadata(source).get("request"))
    if changes.get("modality") == "audio":
        changes = {"first_frame": None, **changes}
    frame = request.first_frame
    if isinstance(frame, ImageFrame) and changes.get("first_frame", frame) is not None:
        if "first_frame" not in changes:
            raise InvalidRequestError(
                f"{source} starts from the image {frame.name!r}, which a clip does not carry.",
                "Give that image again with --image.",
            )
        if changes["first_frame"].get("sha256") != frame.sha256:
            say(f"the image is not the {frame.name!r} that {source} starts from: the clip will differ")
    if changes.keys() & {"size", "aspect"}:
        changes = {"size": None, "aspect": None, "snap": True, **changes}
    elif "variant" in changes:
        # The size snaps to the other model's, and what was the old model's default becomes the new one's.
        defaults = vars(get_variant(request.variant).defaults)
        unchosen = {name: None for name, value in defaults.items() if getattr(request, name) == value}
        changes = {"snap": True, **unchosen, **changes}
    return request.replace(**changes)


def _check_prompt(request: "GenerationRequest") -> None:
    """Tell that there are remarks on the prompt, and refuse one whose tags cannot be what was meant."""
    from ovi_studio.lint import Code, Severity  # noqa: PLC0415

    findings = [found for found in findings_of(request.prompt, request.variant) if found.code is not Code.OTHER_DIALECT]
    for found in findings:
        if found.severity is Severity.ERROR:
            line, column = position_of(request.prompt, found.start)
            raise PromptError(
                f"The prompt, line {line}, column {column}: {found.message}",
                "`ovi-studio lint` tells more and mends it.",
            )
    if findings:
        say(f"remarks on the prompt: {len(findings)}; `ovi-studio lint` tells them")


def follow(events: "Iterator[Event]", display: "_JsonLines | _ProgressLine", take: int = 1) -> "Event | None":
    """Follow a run to its end; returns its last event.

    Raises:
        CancelledError: it was stopped.
        EngineError: it failed; carries the exit code of its cause.
    """
    from ovi_studio.events import Cancelled, Failed, Finished  # noqa: PLC0415

    event = None
    for event in events:
        match event:
            case Finished():
                pass  # told when the clip has its name
            case Failed(problem, remedy, exit_code):
                display.show(event, take)
                error = EngineError(problem, remedy)
                error.exit_code = exit_code
                raise error
            case Cancelled():
                display.show(event, take)
                raise CancelledError
            case _:
                display.show(event, take)
    return event


@contextlib.contextmanager
def stopped_by_signals() -> "Iterator[CancelToken]":
    """A token that Ctrl-C and SIGTERM cancel. A second one ends the process at once, as the system does."""
    from ovi_studio.events import CancelToken  # noqa: PLC0415

    token = CancelToken()
    received: list[int] = []

    def cancel(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        token.cancel()
        signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # not `print`: it may be what was interrupted
            os.write(2, b"\novi-studio: stopping; once more to stop at once\n")

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield token
    except CancelledError as error:
        error.exit_code = 128 + received[0] if received else error.exit_code
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_engine(folder: Path, preferences: "Preferences | None" = None) -> "Engine":
    """The engine that the command drives; `folder` is for temporary clips. Tests put their own here."""
    from ovi_studio.engine.engine import OviEngine  # noqa: PLC0415
    from ovi_studio.folders import app_folders  # noqa: PLC0415
    from ovi_studio.runtime.planner import Planner  # noqa: PLC0415

    cache = app_folders().cache
    return OviEngine(folder, cache, Planner(cache, preferences))


# --- What is shown ----------------------------------------------------------------------------------------


def make_display(takes: int, *, json_lines: bool) -> "_JsonLines | _ProgressLine":
    """What shows a command's runs."""
    return _JsonLines() if json_lines else _ProgressLine(takes)


class _JsonLines:
    """Every event as a line of JSON on stdout."""

    def show(self, event: "Event", take: int) -> None:
        """An event of the run."""
        from ovi_studio.events import to_json  # noqa: PLC0415

        self._print({"take": take, **to_json(event)})

    def finish(self, path: Path, take: int) -> None:
        """The clip has its name."""
        self._print({"take": take, "event": "finished", "path": str(path)})

    def _print(self, data: dict[str, Any]) -> None:
        print_line(json.dumps(data))


class _ProgressLine:
    """A line that follows the run on a terminal's stderr (elsewhere, a line a stage); the path on stdout."""

    BAR = 24  # characters

    def __init__(self, takes: int) -> None:
        self._takes = takes
        self._stage = ""
        self._line = TerminalLine()

    def show(self, event: "Event", take: int) -> None:
        """An event of the run."""
        from ovi_studio.events import Planned, StageStarted, StepDone  # noqa: PLC0415

        match event:
            case Planned(_, note) if note:
                self._line.say(note)
            case StageStarted(stage):
                self._stage = f"take {take} of {self._takes}: {stage}" if self._takes > 1 else stage
                self._line.write(self._stage) if self._line.on_terminal else say(self._stage)
            case StepDone(step, steps, seconds_left) if self._line.on_terminal:
                done = self.BAR * step // steps
                left = "" if seconds_left is None else f", {minutes(seconds_left)} left"
                self._line.write(f"{self._stage} [{'#' * done:<{self.BAR}}] {step}/{steps}{left}")
            case _:
                self._line.write("")

    def finish(self, path: Path, _take: int) -> None:
        """The clip has its name."""
        self._line.write("")
        print_line(path)
