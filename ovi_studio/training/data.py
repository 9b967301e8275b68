"""Films to latents that train: `python -m ovi_studio.training prepare FILM… --out DIR --model NAME`.

    film → scenes → windows of one clip → margins, size, motion, loudness, sync → caption → latents

The steps are the paper's (arXiv 2510.01284, section 3), cheapest first; each can be replaced (`Steps`). What is kept
goes into one shard a film, DIR/train or DIR/test, as the stages read them. DIR/manifest.jsonl says for every clip
why it was kept or dropped. Films that it tells of are not read again, so the same command goes on.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from ovi_studio.chat import Endpoint
from ovi_studio.errors import InvalidInputError, MediaError
from ovi_studio.files import replacing
from ovi_studio.folders import app_folders
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.video_vae import encode_frames
from ovi_studio.training.audio_vae import encode_sound
from ovi_studio.training.captions import Captioner, ChatCaptioner
from ovi_studio.training.filters import OnsetSync, SyncFilter, decibels, inside_margins, motion_score, resized
from ovi_studio.training.footage import Footage, Span, find_scenes, read_window, windows
from ovi_studio.training.video_vae import to_tensor
from ovi_studio.variants import VARIANTS, Size, Variant, get_variant, parse_size

TEST_PART = 20  # of so many films, one is for testing; all of a film's clips go the same way


@dataclass(frozen=True)
class Limits:
    """What is let through.

    Args:
        min_pixels: of a frame within its margins; None asks for as many as a clip gets: nothing is enlarged.
        min_motion: mean optical flow a frame, in thousandths of the longer side; guessed: grain is below it.
        min_decibels: loudness; the paper's -60.
        max_offset: frames between sound and picture; the paper's 3.
        min_confidence: of the sync filter; more than the paper's 1.5.
    """

    min_pixels: int | None = None
    min_motion: float = 0.5
    min_decibels: float = -60.0
    max_offset: int = 3
    min_confidence: float = 1.5


class Encoder(Protocol):
    """Makes latents of footage: video (C, F, H, W), normalized, and audio (A, C), float16."""

    def __call__(self, footage: Footage) -> tuple[Tensor, Tensor]:
        """Encodes."""


@dataclass(frozen=True)
class Steps:
    """The steps that can be replaced.

    Args:
        caption: puts a clip into words.
        encode: makes its latents.
        sync: tells how sound and picture go together.
        scenes: finds a film's scenes.
    """

    caption: Captioner
    encode: Encoder
    sync: SyncFilter = field(default_factory=OnsetSync)
    scenes: Callable[[Path], list[Span]] = find_scenes


@dataclass(frozen=True)
class Verdict:
    """What became of one clip; a row of the manifest.

    Args:
        film: its file.
        start: in seconds from the film's beginning.
        end: the same.
        kept: whether it trains.
        why: it was dropped; "" where it was kept.
        measured: what was found out until then.
        caption: its prompt, where it was kept.
    """

    film: str
    start: float
    end: float
    kept: bool
    why: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    caption: str = ""


def prepare(
    films: Sequence[Path],
    out: Path,
    variant: Variant,
    size: Size,
    steps: Steps,
    limits: Limits,
    tell: Callable[[Verdict], None],
) -> None:
    """Takes films one by one; each is done, with its shard and its rows of the manifest, or not begun.

    Args:
        films: files.
        out: folder of manifest and shards.
        variant: whose clips these will be.
        size: of the clips; frames are scaled to fill it.
        steps: what does the work.
        limits: what is let through.
        tell: told every verdict.

    Raises:
        OviStudioError: the captioner cannot be asked.
    """
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / "manifest.jsonl"
    rows = manifest.read_text(encoding="utf-8").splitlines() if manifest.exists() else []
    done = {json.loads(row)["film"] for row in rows}
    for film in films:
        name = str(film.resolve())
        if name in done:
            continue
        video, audio, verdicts = [], [], []
        for verdict, latents in _clips(film, variant, size, steps, limits):
            tell(verdict)
            verdicts.append(verdict)
            if latents is not None:
                video.append(latents[0])
                audio.append(latents[1])
        if video:
            captions = [verdict.caption for verdict in verdicts if verdict.kept]
            _write_shard(out, name, torch.stack(video), torch.stack(audio), captions)
        rows += [json.dumps(vars(verdict), ensure_ascii=False) for verdict in verdicts]
        with replacing(manifest) as temporary:
            temporary.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def _clips(
    film: Path, variant: Variant, size: Size, steps: Steps, limits: Limits
) -> Iterator[tuple[Verdict, tuple[Tensor, Tensor] | None]]:
    """Every clip of a film with what became of it, and its latents where it was kept."""
    name = str(film.resolve())
    try:
        scenes = steps.scenes(film)
    except MediaError as error:
        yield Verdict(name, 0.0, 0.0, False, error.problem), None
        return
    for scene in scenes:
        spans = windows(scene, variant)
        for span in spans:
            yield _judge(film, span, variant, size, steps, limits)
        rest = spans[-1].end if spans else scene.start
        if scene.end - rest > 0.5 / variant.fps:
            why = f"shorter than a clip of {variant.duration:.2f} seconds"
            yield Verdict(name, round(rest, 3), round(scene.end, 3), False, why), None


def _judge(
    film: Path, span: Span, variant: Variant, size: Size, steps: Steps, limits: Limits
) -> tuple[Verdict, tuple[Tensor, Tensor] | None]:
    """One clip, with what was found out until it was dropped."""
    measured: dict[str, Any] = {}
    name, start, end = str(film.resolve()), round(span.start, 3), round(span.end, 3)
    try:
        footage = _within_margins(read_window(film, span, variant), measured)
        _gate(footage, size, steps.sync, limits, measured)
        footage = Footage(resized(footage.frames, *size), footage.waveform, footage.fps, footage.sample_rate)
        caption = _captioned(footage, steps.caption)
    except MediaError as error:
        return Verdict(name, start, end, False, error.problem, measured), None
    except _DroppedError as error:
        return Verdict(name, start, end, False, str(error), measured), None
    return Verdict(name, start, end, True, "", measured, caption), steps.encode(footage)


class _DroppedError(Exception):
    """Why a clip does not train."""


def _within_margins(footage: Footage, measured: dict[str, Any]) -> Footage:
    top, bottom, left, right = measured["crop"] = inside_margins(footage.frames)
    if not bottom:
        raise _DroppedError("black")
    frames = footage.frames[:, top:bottom, left:right]
    return Footage(frames, footage.waveform, footage.fps, footage.sample_rate)


def _gate(footage: Footage, size: Size, sync: SyncFilter, limits: Limits, measured: dict[str, Any]) -> None:
    """Lets a clip through or not, by the cheapest measure first."""
    height, width = footage.frames.shape[1:3]
    needed = size.area if limits.min_pixels is None else limits.min_pixels
    if height * width < needed:
        raise _DroppedError(f"smaller than {needed} pixels")
    measured["decibels"] = round(decibels(footage.waveform), 2)
    if measured["decibels"] < limits.min_decibels:
        raise _DroppedError(f"quieter than {limits.min_decibels:g} dB")
    measured["motion"] = round(motion_score(footage.frames), 3)
    if measured["motion"] < limits.min_motion:
        raise _DroppedError(f"a still: it moves less than {limits.min_motion:g}")
    found = sync(footage)
    measured |= {"offset": found.offset, "confidence": round(found.confidence, 3)}
    if abs(found.offset) > limits.max_offset:
        raise _DroppedError(f"out of sync by more than {limits.max_offset} frames")
    if found.confidence <= limits.min_confidence:
        raise _DroppedError(f"no more than {limits.min_confidence:g} sure that sound and picture go together")


def _captioned(footage: Footage, captioner: Captioner) -> str:
    if caption := captioner(footage):
        return caption
    raise _DroppedError("no caption")


def _write_shard(out: Path, film: str, video: Tensor, audio: Tensor, captions: list[str]) -> None:
    """A film's clips; which split they belong to follows from the film's name."""
    digest = hashlib.sha256(film.encode(errors="surrogateescape")).hexdigest()
    folder = out / ("test" if int(digest, 16) % TEST_PART == 0 else "train")
    folder.mkdir(exist_ok=True)
    with replacing(folder / f"{digest[:16]}.safetensors") as temporary:
        tensors = {"video": video.contiguous(), "audio": audio.contiguous()}
        save_file(tensors, temporary, {"captions": json.dumps(captions)})


@dataclass(frozen=True)
class VaeEncoder:
    """Makes latents by a pipeline's own VAEs."""

    pipeline: OviPipeline

    @torch.no_grad()
    def __call__(self, footage: Footage) -> tuple[Tensor, Tensor]:
        """Video and audio latents of footage in the clip's size."""
        video_vae, audio_vae = self.pipeline.video_vae, self.pipeline.audio_vae
        frames = to_tensor(footage.frames)[None].to(video_vae.device, video_vae.dtype)
        video = encode_frames(video_vae, frames)[0]
        audio = encode_sound(audio_vae, torch.from_numpy(footage.waveform)[None].to(audio_vae.device))[0]
        return video.half().cpu(), audio.half().cpu()


def main(argv: Sequence[str]) -> int:
    """Prepares films."""
    parser = argparse.ArgumentParser(
        prog="python -m ovi_studio.training prepare",
        description="Turn films into latents with captions. The same command goes on after an interruption.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("films", nargs="+", type=Path, metavar="FILM", help="files with picture and sound")
    add("--out", type=Path, required=True, metavar="DIR", help="for manifest.jsonl and the shards in train and test")
    add("--model", default="nano", metavar="NAME", help=f"{', '.join(VARIANTS)} (default: nano)")
    add("--size", metavar="HxW", help="of the clips, such as 704x1280 (default: the model's)")
    add("--chat", required=True, metavar="URL", help="multimodal chat server, such as http://localhost:8000/v1")
    add("--chat-model", required=True, metavar="NAME", help="the name it knows the captioning model by")
    add("--chat-key", metavar="VARIABLE", help="environment variable that holds its key")
    limits = Limits()
    add("--min-pixels", type=int, metavar="N", help="of a frame within its margins (default: those of the clip)")
    add("--min-motion", type=float, default=limits.min_motion, metavar="X", help=f"default: {limits.min_motion:g}")
    arguments = parser.parse_args(argv)

    variant = get_variant(arguments.model)
    size = variant.snap_size(*parse_size(arguments.size)) if arguments.size else variant.default_size
    key = None if arguments.chat_key is None else os.environ.get(arguments.chat_key)
    if arguments.chat_key is not None and not key:
        raise InvalidInputError(f"There is no variable {arguments.chat_key}.", "Set it to the server's key.")
    caption = ChatCaptioner(Endpoint(arguments.chat, arguments.chat_model, key), variant.caption_dialect)
    encode = VaeEncoder(load_for_training(variant))
    limits = Limits(min_pixels=arguments.min_pixels, min_motion=arguments.min_motion)
    prepare(arguments.films, arguments.out, variant, size, Steps(caption, encode), limits, _print)
    return 0


def load_for_training(variant: Variant) -> OviPipeline:
    """The variant's pipeline with its weights, as the engine loads them."""
    from ovi_studio.engine.engine import load_pipeline  # noqa: PLC0415
    from ovi_studio.weights.store import Store  # noqa: PLC0415

    return load_pipeline(variant, Store(app_folders().weights))


def _print(verdict: Verdict) -> None:
    told = "kept" if verdict.kept else f"dropped: {verdict.why}"
    print(f"{verdict.film} {verdict.start:.2f}-{verdict.end:.2f} {told}", flush=True)  # noqa: T201
