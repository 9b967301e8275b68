"""What is installed, which card, which weights, what is missing, and the command that mends it.

    examine(hardware, look_around(weights)) → Check …

Everything is looked up without importing it: a broken torch must not break the one who finds that out.
"""

import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from ovi_studio.arithmetic import component_bytes
from ovi_studio.variants import VARIANTS
from ovi_studio.weights.catalog import RELEASED

if TYPE_CHECKING:
    from ovi_studio.runtime.hardware import Hardware
    from ovi_studio.weights.inventory import Readiness

State: TypeAlias = Literal["ok", "note", "missing", "problem"]

GB = 2**30
# The program itself beside the weights: torch, the page, frames on their way into the file. Guessed.
PROCESS_BYTES = 3 * GB
CUDA_WHEELS = "https://download.pytorch.org/whl/cu128"
INSTALL_CUDA_TORCH = f"pip install --force-reinstall torch --index-url {CUDA_WHEELS}"
INSTALL_KERNELS = 'pip install "ovi-studio[cuda]"'


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Args:
        name: what was looked at.
        state: ok; note: works, could be better; missing: weights to fetch; problem: something will not work.
        text: what was found.
        remedy: a command, or what to do; "" where nothing is to be done.
    """

    name: str
    state: State
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Surroundings:
    """The machine, apart from its hardware.

    Args:
        system: as `platform.system()` names it.
        wsl: whether it is Linux inside Windows.
        python: version.
        packages: versions of what is installed, by normalised name.
        required: normalised names of what must be installed; empty where that is not known.
        weights_folder: where weights lie or would lie.
        free_disk_bytes: there.
        models: how much of every released one is here.
    """

    system: str
    wsl: bool
    python: str
    packages: Mapping[str, str]
    required: tuple[str, ...]
    weights_folder: Path
    free_disk_bytes: int
    models: tuple["Readiness", ...]


# --- Looking ----------------------------------------------------------------------------------------------


def look_around(weights: Path) -> Surroundings:
    """This machine's system, packages, disk and weights."""
    from ovi_studio.weights.inventory import readiness  # noqa: PLC0415
    from ovi_studio.weights.store import Store  # noqa: PLC0415

    existing = next(folder for folder in (weights, *weights.parents) if folder.is_dir())
    return Surroundings(
        platform.system(),
        "microsoft" in platform.release().lower(),
        platform.python_version(),
        {_normal(found.name): found.version for found in metadata.distributions() if found.name},
        _required(),
        weights,
        shutil.disk_usage(existing).free,
        tuple(readiness(VARIANTS[name], Store(weights)) for name in RELEASED),
    )


def _required() -> tuple[str, ...]:
    """Normalised names of the packages that the program needs here, without the extras."""
    from packaging.requirements import Requirement  # noqa: PLC0415

    try:
        lines = metadata.requires("ovi-studio") or []
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return ()
    requirements = (Requirement(line) for line in lines)
    return tuple(_normal(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""}))


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


# --- Judging ----------------------------------------------------------------------------------------------


def examine(hardware: "Hardware", around: Surroundings) -> Iterator[Check]:
    """Every check of a machine."""
    yield Check("python", "ok", f"{around.python} on {around.system}{' (WSL)' if around.wsl else ''}, {sys.prefix}")
    yield from _system(hardware, around)
    yield from _packages(around)
    yield from _torch(hardware, around)
    yield from _cards(hardware, around)
    if hardware.cards:
        yield from _kernels(hardware, around)
    yield from _memory(hardware)
    yield from _weights(around)


def _system(hardware: "Hardware", around: Surroundings) -> Iterator[Check]:
    if around.wsl:
        yield Check(
            "wsl",
            "note",
            f"Windows gives WSL a part of its memory, {hardware.ram_bytes / GB:.0f} GB now",
            "For more, set memory= under [wsl2] in .wslconfig in your Windows profile, then `wsl --shutdown`.",
        )
        if around.weights_folder.is_relative_to("/mnt"):
            yield Check(
                "wsl",
                "note",
                f"{around.weights_folder} is on a Windows drive, which WSL reads slowly",
                "ovi-studio models where --set ~/ovi-weights",
            )
    if around.system == "Windows":
        yield Check(
            "windows",
            "note",
            "links need developer mode, or a disk that holds both originals and weights",
            "Before `models import` turn on developer mode in Settings.",
        )


def _packages(around: Surroundings) -> Iterator[Check]:
    absent = [name for name in around.required if name not in around.packages]
    if not around.required:
        yield Check("packages", "note", "run from a checkout: what it needs is not checked", "pip install -e .")
    elif absent:
        yield Check("packages", "problem", f"not installed: {', '.join(absent)}", f"pip install {' '.join(absent)}")
    else:
        yield Check("packages", "ok", f"ovi-studio {around.packages.get('ovi-studio', '')} and all that it needs")


def _torch(hardware: "Hardware", around: Surroundings) -> Iterator[Check]:
    version = around.packages.get("torch")
    if version is None:
        yield Check("torch", "problem", "not installed", INSTALL_CUDA_TORCH if hardware.cards else "pip install torch")
        return
    if hardware.cards and not hardware.torch_cuda:
        yield Check("torch", "problem", f"{version} is for CPUs only, though there is a card", INSTALL_CUDA_TORCH)
    else:
        yield Check("torch", "ok", f"{version}, {'with' if hardware.torch_cuda else 'without'} CUDA")
    beside = [name for name in ("torchaudio", "torchvision") if name in around.packages]
    foreign = [name for name in beside if _build(around.packages[name]) != _build(version)]
    if foreign:
        yield Check(
            "torch",
            "problem",
            f"{' and '.join(foreign)} were built for another torch, which breaks transformers and diffusers",
            f"pip uninstall {' '.join(foreign)}",
        )


def _build(version: str) -> str:
    """What a wheel was built for: `cpu`, `cu128`; "" where the version does not tell."""
    return version.partition("+")[2]


def _cards(hardware: "Hardware", around: Surroundings) -> Iterator[Check]:
    for card in hardware.cards:
        free, total = card.free_bytes / GB, card.total_bytes / GB
        text = f"{card.name}, compute {card.capability}, {free:.1f} of {total:.1f} GB free"
        yield Check("card", "ok" if hardware.torch_cuda else "note", text)
    for note in hardware.notes:
        remedy = ""
        if not hardware.cards and around.wsl:
            remedy = "Install NVIDIA's driver in Windows, not in WSL; then `wsl --shutdown` and start again."
        elif not hardware.cards and around.system != "Darwin":
            remedy = "If there is a card, install NVIDIA's driver; without one, the embedded model nano runs."
        yield Check("card", "note", note, remedy)


def _kernels(hardware: "Hardware", around: Surroundings) -> Iterator[Check]:
    """Optional packages: what each is good for, and what is used without it."""
    windows = around.system == "Windows"
    flash = {"flash_attn", "flash_attn_interface"} & hardware.kernels
    if flash:
        yield Check("attention", "ok", f"{' and '.join(sorted(flash))} can be used")
    else:
        remedy = "Nothing to do: there are no official wheels for Windows." if windows else "pip install flash-attn"
        yield Check("attention", "note", "flash-attn is not installed; torch's own fused attention is used", remedy)
    for name, loss in (
        ("torchao", "no float8 or int8 products: weights are streamed where they would have fitted"),
        ("bitsandbytes", "the text encoder is not narrowed to 8 or 4 bits"),
    ):
        if name in hardware.kernels:
            yield Check(name, "ok", around.packages.get(name, "installed"))
        else:
            yield Check(name, "note", f"not installed: {loss}", f"pip install {name}" if windows else INSTALL_KERNELS)
    if "triton" not in hardware.kernels:
        remedy = "pip install triton-windows" if windows else "pip install triton"
        yield Check("triton", "note", "not installed: nothing is compiled", remedy)


def _memory(hardware: "Hardware") -> Iterator[Check]:
    text = f"{hardware.free_ram_bytes / GB:.1f} of {hardware.ram_bytes / GB:.1f} GB free"
    # The least that a released model takes in host memory: its transformer in float8, streamed from there.
    needed = component_bytes(VARIANTS[RELEASED[0]], "transformer", "fp8") + PROCESS_BYTES
    if hardware.ram_bytes < needed:
        remedy = "nano runs. For the others add memory, or use a card that holds the transformer whole."
        yield Check("memory", "note", f"{text}; the released models stream from {needed / GB:.0f} GB", remedy)
    else:
        yield Check("memory", "ok", text)


def _weights(around: Surroundings) -> Iterator[Check]:
    state = "" if VARIANTS["nano"].trained else " (untrained: expect noise)"
    yield Check("weights", "ok", f"nano is inside the package{state}")
    for model in around.models:
        name, size = model.variant, model.bytes_to_fetch
        if model.ready:
            yield Check("weights", "ok", f"{name} is here, in {around.weights_folder}")
            continue
        lacks = ", ".join(source.name for source in model.missing)
        text = f"{name} lacks {lacks}; about {size / 1e9:.1f} GB to fetch"
        if size > around.free_disk_bytes:
            yield Check(
                "weights",
                "missing",
                f"{text}, and {around.weights_folder} has {around.free_disk_bytes / 1e9:.0f} GB free",
                "ovi-studio models where --set FOLDER, on a larger disk",
            )
        else:
            yield Check("weights", "missing", text, f"ovi-studio models download {name}")
