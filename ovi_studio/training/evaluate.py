"""What `nano` reaches on prompts that it never met: `python -m ovi_studio.training evaluate --out DIR`.

    for every held-out prompt       a clip, and the same clip with the towers' exchange off
    measured on each                colour, thing and place · words · pitch · lag of the sound behind the picture
    from some given first frames    how well frame 0 keeps the picture
    the same measures               on true clips (what is possible) and on sounds of other clips (what chance gives)

Everything goes to DIR/report.json, the numbers as a table to DIR/report.md, and four clips as strips to DIR/strips.
"""

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw

from ovi_studio.model.attention import CrossAttention
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.training.measures import Sight, lag, looks_like, pitch_of, psnr
from ovi_studio.training.recogniser import Recogniser, word_errors
from ovi_studio.training.stages import WORDS_FILE, toylands
from ovi_studio.training.toyland import COLOURS, PITCHES, PLACES, Face, Frames, Lamp, Scene, ToyClip, Toyland
from ovi_studio.training.voices import TEST_VOICES, WORDS, Waveform, WordBank
from ovi_studio.weights.nano import load_nano

CLIPS = 200
GIVEN_FRAMES = 50  # clips that are also made from their true first frame
STRIPS = 4
IN_TIME = 1  # frames of lag that count as together
AIMS = {"colour and thing": 0.95, "words": 0.8, "in time": 0.9}
PSNR_AIM = 25.0  # dB
_KEPT = 1 << 41  # index of the first training clip that the recogniser is tried on: training never gets there

Maker = Callable[[ToyClip, int], tuple[Frames, Waveform]]


@dataclass(frozen=True)
class Measured:
    """What was measured on one clip.

    Args:
        caption: its prompt.
        kind: of the thing that the prompt asks for.
        sight: whether kind and colour are right, and whether the place is.
        words: said, and wrong; 0 and 0 where none are asked for.
        pitch_right: of a lamp; None of others.
        lag: frames by which the sound comes after the picture; None where there is nothing of one of them.
    """

    caption: str
    kind: str
    sight: tuple[bool, bool]
    words: tuple[int, int]
    pitch_right: bool | None
    lag: int | None


def measure(scene: Scene, frames: Frames, waveform: Waveform, recogniser: Recogniser) -> Measured:
    """Measures a clip against the scene that its prompt asks for."""
    seen = looks_like(frames)
    asked = Sight(scene.kind, scene.colour, scene.place)
    said = scene.words if isinstance(scene, Face) else ()
    wrong = min(len(said), word_errors(recogniser.words(waveform), said)) if said else 0
    return Measured(
        caption=scene.caption,
        kind=scene.kind,
        sight=(seen[:2] == asked[:2], seen.place == asked.place),
        words=(len(said), wrong),
        pitch_right=pitch_of(waveform) == scene.pitch if isinstance(scene, Lamp) else None,
        # Where the wrong thing is shown, its own movements still can go with the sound.
        lag=lag(frames, waveform, seen),
    )


def summary(measured: Sequence[Measured]) -> dict[str, float]:
    """Parts of the clips that are right, each of those that it makes sense for; 0 where there are none."""
    lags = [clip.lag for clip in measured]
    said, wrong = (sum(clip.words[index] for clip in measured) for index in (0, 1))
    speech = [clip for clip in measured if clip.words[0]]
    pitches = [clip.pitch_right for clip in measured if clip.pitch_right is not None]
    rates = {
        "colour and thing": _mean([clip.sight[0] for clip in measured]),
        "place": _mean([clip.sight[1] for clip in measured]),
        "words": 1 - wrong / said if said else 0.0,
        "all words of a clip": _mean([clip.words[1] == 0 for clip in speech]),
        "pitch": _mean(pitches),
        "in time": _mean([x is not None and abs(x) <= IN_TIME for x in lags]),
    }
    for kind in ("face", "ball", "lamp"):
        own = [clip.lag for clip in measured if clip.kind == kind]
        rates[f"in time, {kind}"] = _mean([x is not None and abs(x) <= IN_TIME for x in own])
    return {name: round(rate, 4) for name, rate in rates.items()}


def evaluate(
    scenes: Sequence[ToyClip],
    recogniser: Recogniser,
    make: Maker,
    make_alone: Maker,
    tell: Callable[[str], None],
) -> tuple[dict[str, list[Measured]], list[tuple[ToyClip, Frames, Waveform]]]:
    """Makes and measures every clip: as it should be, without the exchange, as it truly is, and with another's sound.

    Args:
        scenes: what is asked for.
        recogniser: hears the words.
        make: makes a clip of a prompt.
        make_alone: the same with the exchange off.
        tell: told how far it is.

    Returns:
        Measurements by name, and the first clips as they were made.
    """
    measured: dict[str, list[Measured]] = {"made": [], "exchange off": [], "true": [], "chance": []}
    shown: list[tuple[ToyClip, Frames, Waveform]] = []
    for index, clip in enumerate(scenes):
        frames, waveform = make(clip, index)
        alone_frames, alone_waveform = make_alone(clip, index)
        other = _next_of_kind(scenes, index)
        for name, (seen, heard) in {
            "made": (frames, waveform),
            "exchange off": (alone_frames, alone_waveform),
            "true": (clip.frames, clip.waveform),
            "chance": (clip.frames, other.waveform),
        }.items():
            measured[name].append(measure(clip.scene, seen, heard, recogniser))
        # Colours by chance: those of another clip, whatever it shows.
        sight, asked = looks_like(scenes[(index + 1) % len(scenes)].frames), clip.scene
        right = (sight[:2] == (asked.kind, asked.colour), sight.place == asked.place)
        measured["chance"][-1] = Measured(**{**asdict(measured["chance"][-1]), "sight": right})
        if _is_shown(clip, [clip for clip, _, _ in shown]):
            shown.append((clip, frames, waveform))
        tell(f"{index + 1}/{len(scenes)} {clip.caption} {asdict(measured['made'][-1])}")
    return measured, shown


def recogniser_error(recogniser: Recogniser, world: Toyland, faces: int = 40) -> float:
    """Part of the words that the recogniser gets wrong on true clips, spoken by voices it has not learned."""
    speakers = (clip for clip in map(world.clip, itertools.count(_KEPT)) if isinstance(clip.scene, Face))
    said = wrong = 0
    for clip in itertools.islice(speakers, faces):
        words = clip.scene.words  # type: ignore[attr-defined]
        said, wrong = said + len(words), wrong + word_errors(recogniser.words(clip.waveform), words)
    return wrong / said


def learn_words(bank: WordBank) -> Recogniser:
    """A recogniser that has learned the test voices, by none of which the model was taught."""
    return Recogniser.learn(bank, [voice for voices in TEST_VOICES.values() for voice in voices])


@contextlib.contextmanager
def exchange_off(transformer: OviTransformer) -> Iterator[None]:
    """While this lasts the towers do not hear each other: both fusion attentions add nothing. The text stays."""

    def deafen(_module: CrossAttention, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, text, rotary, _other, _other_rotary, *rest = args
        return (x, text, rotary, None, None, *rest)

    blocks: Any = transformer.blocks
    halves = [half for block in blocks for half in (block.video, block.audio)]
    handles = [half.cross_attn.register_forward_pre_hook(deafen) for half in halves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def maker(pipeline: OviPipeline, steps: int | None = None) -> Maker:
    """Makes clips by a pipeline, clip `index` from seed `index`."""

    def make(clip: ToyClip, index: int) -> tuple[Frames, Waveform]:
        made: Any = pipeline(clip.caption, seed=index, num_inference_steps=steps, output_type="np")
        return to_uint8(made.frames), made.audio

    return make


def alone_maker(pipeline: OviPipeline, steps: int | None = None) -> Maker:
    """The same with the exchange off."""
    make = maker(pipeline, steps)

    def make_alone(clip: ToyClip, index: int) -> tuple[Frames, Waveform]:
        with exchange_off(pipeline.transformer):
            return make(clip, index)

    return make_alone


def kept_frames(pipeline: OviPipeline, scenes: Sequence[ToyClip], steps: int | None = None) -> list[float]:
    """PSNR of frame 0, in dB, of clips that start from their true first frame."""
    kept = []
    for index, clip in enumerate(scenes):
        given = PIL.Image.fromarray(clip.frames[0])
        made: Any = pipeline(clip.caption, image=given, seed=index, num_inference_steps=steps, output_type="np")
        kept.append(psnr(to_uint8(made.frames[:1]), clip.frames[:1]))
    return kept


def to_uint8(frames: np.ndarray) -> Frames:
    """Frames in 0…1 to 0…255."""
    return np.asarray((frames * 255).round().clip(0, 255), np.uint8)


def _next_of_kind(scenes: Sequence[ToyClip], index: int) -> ToyClip:
    """The next clip that shows the same kind of thing."""
    order = [*scenes[index + 1 :], *scenes[: index + 1]]
    return next(clip for clip in order if clip.scene.kind == scenes[index].scene.kind)


def _is_shown(clip: ToyClip, shown: Sequence[ToyClip]) -> bool:
    """Two faces, a ball and a lamp."""
    same = sum(other.scene.kind == clip.scene.kind for other in shown)
    return len(shown) < STRIPS and same < (2 if clip.scene.kind == "face" else 1)


def _mean(values: Sequence[bool | None]) -> float:
    return float(np.mean([bool(value) for value in values])) if values else 0.0


# --- What is reported -------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The numbers as a table in Markdown."""
    columns = ("made", "exchange off", "true", "chance")
    rows = [
        "| measured on held-out prompts | aim | made | exchange off | true clips | by chance |",
        "|---|---|---|---|---|---|",
    ]
    for name in report["made"]:
        aim = f"{AIMS[name]:.0%}" if name in AIMS else ""
        rows.append(f"| {name} | {aim} | " + " | ".join(f"{report[column][name]:.1%}" for column in columns) + " |")
    first = report["first frame"]
    rows.append(
        f"| frame 0 kept (PSNR: mean; at {PSNR_AIM:g} dB or more) | {PSNR_AIM:g} dB | "
        f"{first['psnr']:.1f} dB; {first['at aim']:.1%} | | | |"
    )
    facts = (
        f"{report['clips']} prompts, {first['clips']} of them also with a first frame. A clip is in time where its "
        f"sound comes at most {IN_TIME} frame before or after its picture. The recogniser of words, which learned from "
        f"voices that never train, errs in {report['recogniser error']:.1%} of the words of true clips. Chance: the "
        f"true picture with the sound of another clip of the same kind, and the picture of any other clip; guessing "
        f"alone would give {1 / (3 * len(COLOURS)):.1%} of colours and things, {1 / len(PLACES):.1%} of places, "
        f"{1 / len(WORDS):.1%} of words, {1 / len(PITCHES):.1%} of pitches."
    )
    return "\n".join(rows) + f"\n\n{facts}\n"


def strip(clip: ToyClip, frames: Frames, waveform: Waveform, columns: int = 12) -> PIL.Image.Image:
    """Frames of a clip in a row, with its prompt above and its waveform below on the same line of time."""
    side, scale, margin, wave = frames.shape[1], 2, 18, 64
    chosen = np.linspace(0, len(frames) - 1, columns).round().astype(int)
    width = columns * side
    image = PIL.Image.new("RGB", (width, margin + side + wave), "white")
    for column, index in enumerate(chosen):
        image.paste(PIL.Image.fromarray(frames[index]), (column * side, margin))
    draw = ImageDraw.Draw(image)
    draw.text((3, 3), clip.caption, fill="black")
    middle = margin + side + wave // 2
    for x, part in enumerate(np.array_split(waveform, width)):
        low, high = (round(float(edge) * (wave // 2 - 2)) for edge in (part.min(), part.max()))
        draw.line(((x, middle - high), (x, middle - low)), fill=(40, 60, 140))
    return image.resize((width * scale // 2, image.height * scale // 2))


def main(argv: Sequence[str]) -> int:
    """Evaluates packed weights and writes the report."""
    parser = argparse.ArgumentParser(
        prog="python -m ovi_studio.training evaluate",
        description="Measure packed weights on held-out prompts.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", type=Path, metavar="DIR", help="that `pack` made (default: those in the package)")
    add("--out", type=Path, required=True, metavar="DIR", help="for report.json, report.md and strips")
    add("--words", type=Path, metavar="DIR", help=f"with {WORDS_FILE}, which is made if missing (default: as --out)")
    add("--clips", type=int, default=CLIPS, metavar="N", help=f"held-out prompts (default: {CLIPS})")
    add("--frames", type=int, default=GIVEN_FRAMES, metavar="N", help=f"from a first frame (default: {GIVEN_FRAMES})")
    add("--steps", type=int, metavar="N", help="sampling steps (default: the model's)")
    add("--seed", type=int, default=0, metavar="S", help="of the training (default: 0)")
    arguments = parser.parse_args(argv)
    words = arguments.words or arguments.out
    if words.is_file():
        parser.error(f"--words: {words} is a file; give the folder that has {WORDS_FILE}")

    # 1. Who makes, who measures
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipeline = load_nano(arguments.weights)
    pipeline.set_progress_bar_config(disable=True)
    world, test_world = toylands(words, arguments.seed)
    recogniser = learn_words(world.bank)
    scenes = [test_world.clip(index) for index in range(arguments.clips)]

    # 2. Measurements
    started = time.monotonic()
    make, make_alone = maker(pipeline, arguments.steps), alone_maker(pipeline, arguments.steps)
    measured, shown = evaluate(scenes, recogniser, make, make_alone, lambda line: print(line, flush=True))  # noqa: T201
    kept = kept_frames(pipeline, scenes[: arguments.frames], arguments.steps)

    # 3. Report
    report: dict[str, Any] = {name: summary(clips) for name, clips in measured.items()}
    report |= {
        "clips": len(scenes),
        "recogniser error": round(recogniser_error(recogniser, world, min(len(scenes), 60)), 4),
        "first frame": {
            "clips": len(kept),
            "psnr": float(np.mean(kept)) if kept else 0.0,
            "at aim": float(np.mean([value >= PSNR_AIM for value in kept])) if kept else 0.0,
        },
        "lags": {name: [clip.lag for clip in clips] for name, clips in measured.items()},
        "each": [asdict(clip) for clip in measured["made"]],
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
    }
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "report.md").write_text(table(report), encoding="utf-8")
    (arguments.out / "strips").mkdir(exist_ok=True)
    for number, (clip, frames, waveform) in enumerate(shown, start=1):
        strip(clip, frames, waveform).save(arguments.out / "strips" / f"{number}-{clip.scene.kind}.png")
    print(table(report))  # noqa: T201
    return 0
