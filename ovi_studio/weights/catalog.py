"""The catalog: which files every variant needs, where they come from, and under which licence.

    variant → slots(variant) → for each kind of part, the sources that can fill it, the preferred one first
    source  → a few files of one hub repository that belong together; or files of the user's own, linked

Only names are written here. Size, revision and SHA-256 are read from the hub when a source is downloaded
(`download.py`) and kept beside the files (`store.py`). Nothing here imports torch.

Sources: the file lists of the hub repositories, and the licences that their pages name (`docs/weights.md`).
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, TypeAlias

from ovi_studio.arithmetic import COMPONENTS, Component, Precision, component_bytes, component_weights
from ovi_studio.errors import InvalidInputError
from ovi_studio.variants import VARIANTS, Variant, get_variant
from ovi_studio.weights.headers import WEIGHTS

Kind: TypeAlias = Component | Literal["tokenizer", "image_model", "adapter"]

RELEASED = tuple(name for name, variant in VARIANTS.items() if variant.fusion_file)
ADAPTERS = "adapters"  # folder of the store for LoRAs, which belong to no variant
ADAPTER_CONFIG = ".adapter_config.json"  # after an adapter's id: PEFT's settings, which hold its scale

HUB = "https://huggingface.co"  # where licences are read and accepted, whatever mirror the files come from


@dataclass(frozen=True)
class License:
    """A licence by name, and where it can be read."""

    name: str
    link: str


@dataclass(frozen=True)
class Source:
    """Files of one hub repository that belong together.

    Args:
        name: what commands call it.
        kind: what it is.
        repo: the repository, `owner/name`.
        patterns: paths inside it; `*` is any name within one folder.
        license: of these files.
        precision: in which the weights are stored; None where there are none, or several.
        gated: its licence must be accepted on the hub before the files can be fetched.
        imported: it is made of links to files of the user's own, and `repo` is a folder of the store; there is
            nothing to fetch.
        note: what a person who chooses should know.
    """

    name: str
    kind: Kind
    repo: str
    patterns: tuple[str, ...]
    license: License
    precision: Precision | None = None
    gated: bool = False
    imported: bool = False
    note: str = ""

    @property
    def page(self) -> str:
        """The repository's page; "" where there is none."""
        return "" if self.imported else f"{HUB}/{self.repo}"

    def selects(self, path: str) -> bool:
        """Whether the repository's file `path` is one of these."""
        return any(_matches(path, pattern) for pattern in self.patterns)

    def unmatched(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The patterns that none of `paths` matches: what is missing from a repository."""
        paths = tuple(paths)
        return tuple(pattern for pattern in self.patterns if not any(_matches(path, pattern) for path in paths))

    def expected_bytes(self, variant: Variant) -> int:
        """What its weights come to by arithmetic: right to some percent, for a first look; 0 where unknown."""
        if self.precision is None or self.kind not in COMPONENTS:
            return 0
        if self.precision == "fp8":  # the published file has cast every tensor, and scales none
            return component_weights(variant)[self.kind].parameters
        return component_bytes(variant, self.kind, self.precision)


@dataclass(frozen=True)
class Slot:
    """A part that a variant is made of, and what can fill it.

    Args:
        kind: the part.
        choices: sources that replace one another, the preferred one first.
        optional: clips can be made without it.
    """

    kind: Kind
    choices: tuple[Source, ...]
    optional: bool = False


def slots(variant: Variant) -> tuple[Slot, ...]:
    """What `variant` needs from outside the package: nothing, for the embedded one."""
    if variant.fusion_file is None:
        return ()
    return (Slot("transformer", _choices("transformer", variant.name)), *_SHARED_SLOTS)


def imported_source(kind: Kind, variant: str) -> Source:
    """The source that imported files of a kind fill, where they are none of the others."""
    return SOURCES[_imported_name(kind, variant)]


def adapter_source(adapter: str) -> Source:
    """The imported adapter of that id."""
    files = (*(f"{adapter}{suffix}" for suffix in sorted(WEIGHTS)), f"{adapter}{ADAPTER_CONFIG}")
    return Source(adapter, "adapter", ADAPTERS, files, License("that of its maker", ""), imported=True)


def find(name: str, adapters: Collection[str] = ()) -> Variant | Source:
    """The variant, source, or one of these adapters called `name`.

    Raises:
        InvalidInputError: there is none; the message names the one that was probably meant.
    """
    if name in SOURCES:
        return SOURCES[name]
    if name in VARIANTS:
        return get_variant(name)
    if name in adapters:
        return adapter_source(name)
    near = difflib.get_close_matches(name, [*VARIANTS, *SOURCES, *adapters], n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    raise InvalidInputError(
        f"There is no model and no part called {name!r}.",
        f"{guess}`ovi-studio models list` names the models, `ovi-studio models show MODEL` their parts.",
    )


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


# --- The table --------------------------------------------------------------------------------------------

_OVI = "chetwinlow1/Ovi"
_WAN = "Wan-AI/Wan2.2-TI2V-5B"
_WAN_DIFFUSERS = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
_MMAUDIO = "hkchengrex/MMAudio"
_FLUX = "black-forest-labs/FLUX.1-Krea-dev"

_OVI_LICENSE = License("Apache-2.0", f"{HUB}/{_OVI}")
_WAN_LICENSE = License("Apache-2.0", f"{HUB}/{_WAN}")
# The code is under MIT; the repository's card says this of its checkpoints.
_MMAUDIO_LICENSE = License("CC-BY-NC-4.0 (no commercial use)", f"{HUB}/{_MMAUDIO}")
_FLUX_LICENSE = License("FLUX.1 [dev] Non-Commercial License", f"{HUB}/{_FLUX}/blob/main/LICENSE.md")

_ORIGINAL = "a pickle, read without running code and converted to safetensors at the first load"


def _fusion(variant: str, file: str) -> Source:
    return Source(f"fusion-{variant}", "transformer", _OVI, (file,), _OVI_LICENSE, "bfloat16")


def _imported_name(kind: Kind, variant: str) -> str:
    return f"imported-{kind.replace('_', '-')}" + (f"-{variant}" if kind == "transformer" else "")


def _imported(kind: Kind, original: License, variant: str = "") -> Source:
    name, terms = _imported_name(kind, variant), License(f"that of the original, {original.name}", original.link)
    return Source(name, kind, f"imported/{name}", ("*",), terms, imported=True, note="links to files of your own")


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            _fusion("720x720_5s", "model.safetensors"),
            _fusion("960x960_5s", "model_960x960.safetensors"),
            _fusion("960x960_10s", "model_960x960_10s.safetensors"),
            Source(
                "fusion-720x720_5s-fp8",
                "transformer",
                "rkfg/Ovi-fp8_quantized",
                ("model_fp8_e4m3fn.safetensors",),
                _OVI_LICENSE,
                "fp8",
                note="half the download, a little less exact; its page names no licence: that of what it was made from",
            ),
            Source(
                "text-encoder",
                "text_encoder",
                _WAN_DIFFUSERS,
                ("text_encoder/*.safetensors", "text_encoder/*.json"),
                _WAN_LICENSE,
                "bfloat16",
            ),
            Source(
                "text-encoder-original",
                "text_encoder",
                _WAN,
                ("models_t5_umt5-xxl-enc-bf16.pth",),
                _WAN_LICENSE,
                "bfloat16",
                note=_ORIGINAL,
            ),
            Source("tokenizer", "tokenizer", _WAN_DIFFUSERS, ("tokenizer/*",), _WAN_LICENSE),
            Source("tokenizer-original", "tokenizer", _WAN, ("google/umt5-xxl/*",), _WAN_LICENSE),
            Source("video-vae", "video_vae", _WAN_DIFFUSERS, ("vae/*",), _WAN_LICENSE, "float32"),
            Source(
                "video-vae-original", "video_vae", _WAN, ("Wan2.2_VAE.pth",), _WAN_LICENSE, "float32", note=_ORIGINAL
            ),
            Source(
                "audio-vae",
                "audio_vae",
                _MMAUDIO,
                ("ext_weights/v1-16.pth",),
                _MMAUDIO_LICENSE,
                "float32",
                note=_ORIGINAL,
            ),
            Source(
                "vocoder",
                "vocoder",
                _MMAUDIO,
                ("ext_weights/best_netG.pt",),
                _MMAUDIO_LICENSE,
                "float32",
                note=_ORIGINAL,
            ),
            Source(
                "flux-krea",
                "image_model",
                _FLUX,
                (
                    "model_index.json", "scheduler/*", "text_encoder/*", "text_encoder_2/*", "tokenizer/*",
                    "tokenizer_2/*", "transformer/*", "vae/*",
                ),
                _FLUX_LICENSE,
                gated=True,
                note="makes a first frame from a prompt",
            ),
            *(_imported("transformer", _OVI_LICENSE, variant) for variant in RELEASED),
            _imported("text_encoder", _WAN_LICENSE),
            _imported("tokenizer", _WAN_LICENSE),
            _imported("video_vae", _WAN_LICENSE),
            _imported("audio_vae", _MMAUDIO_LICENSE),
            _imported("vocoder", _MMAUDIO_LICENSE),
        )
    }
)  # fmt: skip


def _choices(kind: Kind, variant: str | None = None) -> tuple[Source, ...]:
    """The sources of a kind in the table's order; of transformers, those that hold `variant`."""
    names = {f"fusion-{variant}", f"fusion-{variant}-fp8", f"imported-transformer-{variant}"}
    return tuple(s for s in SOURCES.values() if s.kind == kind and (variant is None or s.name in names))


_SHARED_SLOTS = (
    *(Slot(kind, _choices(kind)) for kind in ("text_encoder", "tokenizer", "video_vae", "audio_vae", "vocoder")),
    Slot("image_model", _choices("image_model"), optional=True),
)
