"""Puts trained weights where `nano` finds them: `python -m ovi_studio.training pack --from DIR --out assets/nano`.

    DIR/fusion/weights …  →  OUT/transformer/ …, float16   OUT/tokenizer/   OUT/card.json, last

From then on the package's `nano` is trained (`weights/nano.py` looks for the card), and every door says so.
"""

import argparse
import datetime as dt
import json
import os
import platform
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ovi_studio import __version__
from ovi_studio.assets import NANO_CARD, data_path
from ovi_studio.errors import WeightsError
from ovi_studio.training.latents import SHARD
from ovi_studio.training.toyland import COLOURS, PITCHES, PLACES, TIMES
from ovi_studio.training.voices import REGISTERS, WORDS
from ovi_studio.weights.nano import packed_nano

MAX_BYTES = 25_000_000  # of what is packed
FRONT_END = "mel_converter."  # tensors that nothing has learned: they stay as they are, small and exact
# The stage that leaves each component.
STAGE_OF = {
    "text_encoder": "text-encoder",
    "transformer": "fusion",
    "video_vae": "video-decoder",
    "audio_vae": "audio-decoder",
    "vocoder": "vocoder",
}
ORDER = (
    "video-vae", "video-decoder", "audio-vae", "audio-decoder", "vocoder", "text-encoder", "audio-latents", "latents",
    "audio-tower", "video-tower", "fusion",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Packs, and tells how much it is."""
    parser = argparse.ArgumentParser(
        prog="python -m ovi_studio.training pack",
        description="Put trained weights where nano finds them.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source", type=Path, required=True, metavar="DIR", help="folder of the whole training")
    add("--out", type=Path, required=True, metavar="DIR", help="such as assets/nano; what is packed there is replaced")
    add("--seed", type=int, default=0, metavar="S", help="that the stages were run with (default: 0)")
    add("--hours", type=float, metavar="H", help="that the stages took, for the card")
    add("--machine", default=machine(), metavar="TEXT", help=f"that they ran on, for the card (default: {machine()})")
    arguments = parser.parse_args(argv)
    size = pack(
        arguments.source,
        arguments.out,
        {"seed": arguments.seed, "hours": arguments.hours, "machine": arguments.machine},
    )
    print(f"{size / 1e6:.1f} MB in {arguments.out}")  # noqa: T201
    return 0


def pack(source: Path, out: Path, told: dict[str, Any]) -> int:
    """Writes all components, the tokenizer and the card, and returns their bytes. The card comes last.

    Args:
        source: folder of the whole training.
        out: folder of what is packed.
        told: seed, hours and machine, for the card.

    Raises:
        WeightsError: a stage has not run, does not fit into float16, or all together are too large.
    """
    folders = {name: source / stage / "weights" for name, stage in STAGE_OF.items()}
    missing = [STAGE_OF[name] for name, folder in folders.items() if not (folder / "config.json").is_file()]
    if missing:
        raise WeightsError(f"{source} lacks what {', '.join(missing)} would leave.", "Run these stages first.")
    halves = {name: {path.name: _halved(path) for path in _tensor_files(folder)} for name, folder in folders.items()}
    size = sum(x.nbytes for files in halves.values() for tensors in files.values() for x in tensors.values())
    if size > MAX_BYTES:
        raise WeightsError(f"The weights are {size / 1e6:.1f} MB.", f"Train smaller: at most {MAX_BYTES / 1e6:.0f} MB.")

    out.mkdir(parents=True, exist_ok=True)
    (out / NANO_CARD[-1]).unlink(missing_ok=True)  # from here on nothing is packed, until all is
    for name, files in halves.items():
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir()
        _copy_config(folders[name], out / name)
        for file, tensors in files.items():
            save_file(tensors, out / name / file, {"format": "pt"})
            (out / name / file).chmod(0o644)  # whoever installs the package is not who uses it
    if not (out / "tokenizer").is_dir():
        shutil.copytree(data_path("assets", "nano", "tokenizer"), out / "tokenizer")
    packed_nano(out)  # loads
    card = _card(source, told) | {"bytes": size}
    (out / NANO_CARD[-1]).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return size


def machine() -> str:
    """The processor that this runs on, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{os.cpu_count()} cores of {name}, torch {torch.__version__}"


def _tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _copy_config(source: Path, out: Path) -> None:
    """A component's config, without the folder on this machine that it was loaded from."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _halved(path: Path) -> dict[str, torch.Tensor]:
    """A file's tensors in float16; whole numbers and the mel front end stay as they are."""
    tensors = {}
    for name, tensor in load_file(path).items():
        half = tensor.half() if tensor.is_floating_point() and not name.startswith(FRONT_END) else tensor
        if not torch.isfinite(half).all():
            raise WeightsError(f"{name} in {path} does not fit into float16.", "Train that stage again.")
        tensors[name] = half.contiguous()
    return tensors


def _card(source: Path, told: dict[str, Any]) -> dict[str, Any]:
    """How the weights were made, what they reached on clips that never train, and what they know."""
    stages = {stage: _last_rows(source / stage / "curves.jsonl") for stage in ORDER}
    steps = {stage: rows.get("step", _clips(source / stage)) for stage, rows in stages.items()}
    commands = [
        shlex.join(["python", "-m", "ovi_studio.training", stage, "--out", "DIR", "--seed", str(told["seed"])])
        + (f" --steps {steps[stage]:g}" if steps[stage] else "")
        for stage in ORDER
    ]
    return {
        "name": "nano",
        "version": __version__,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        **told,
        "commands": commands,
        "measured": {stage: rows for stage, rows in stages.items() if rows},
        "knows": {
            "prompts": [
                "A red face on the left says <S>seven three<E>. Audio: a low voice.",
                "A blue ball in the middle bounces twice. Audio: two thuds.",
                "A white lamp on the right blinks once. Audio: a tone of 600 Hz.",
            ],
            "colours": list(COLOURS),
            "places": list(PLACES),
            "words": list(WORDS),
            "voices": list(REGISTERS),
            "bounces and blinks": list(TIMES),
            "pitches": [f"{pitch} Hz" for pitch in PITCHES],
        },
    }


def _clips(folder: Path) -> int:
    """How many clips a stage has made latents of."""
    return SHARD * len(_tensor_files(folder / "train"))


def _last_rows(curves: Path) -> dict[str, float]:
    """The last step of a stage with the gates that were measured then; nothing where no curve is."""
    if not curves.is_file():
        return {}
    rows = [json.loads(line) for line in curves.read_text(encoding="utf-8").splitlines()]
    gates = [row for row in rows if "loss" not in row]
    return dict((gates or rows or [{}])[-1])
