"""The layouts that weight files come in, recognised by the names and shapes of their tensors. Without torch.

    recognise(tensors, variant)     → `Layout`: which component, whole or one tower of it, under whose names

Names are brought to one of two forms: the published checkpoint's (`tests/manifests` lists them), or the library
classes' own, as `save_pretrained` writes them. What else is found in the wild is undone here:

    a prefix on every name          model.diffusion_model.  diffusion_model.  model.  generator.
    a tower a file                  blocks.7.self_attn.q.weight, of the video or of the audio tower
    a scale a float8 weight         q.scale_weight or q.weight_scale beside q.weight
    notes for other programs        scaled_fp8, q.comfy_quant, q.scale_input, spiece_model
    the vocoder's new weight norm   conv_pre.parametrizations.weight.original0 for conv_pre.weight_g
    the text encoder's tied table   encoder.embed_tokens.weight for shared.weight

The three released transformers have the same tensors: which variant a file belongs to, no layout tells.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ovi_studio.arithmetic import Component
from ovi_studio.errors import WeightsError
from ovi_studio.shapes import VocoderShape
from ovi_studio.variants import Variant
from ovi_studio.weights.headers import FLOATS_8, Shape, TensorInfo

Part: TypeAlias = Literal["whole", "video", "audio"]
Naming: TypeAlias = Literal["checkpoint", "library"]
Tensors: TypeAlias = Mapping[str, TensorInfo]

TITLES: Mapping[Component, str] = {
    "transformer": "transformer",
    "text_encoder": "text encoder",
    "video_vae": "video VAE",
    "audio_vae": "audio VAE",
    "vocoder": "vocoder",
}


@dataclass(frozen=True)
class WeightFiles:
    """Where a variant's weights are.

    Args:
        tokenizer: folder of the text encoder's tokenizer.
        transformer: and the other components: its files; several where it comes in shards or as two towers.
    """

    tokenizer: Path
    transformer: tuple[Path, ...]
    text_encoder: tuple[Path, ...]
    video_vae: tuple[Path, ...]
    audio_vae: tuple[Path, ...]
    vocoder: tuple[Path, ...]

    def of(self, component: Component) -> tuple[Path, ...]:
        """The files of a component."""
        files: tuple[Path, ...] = getattr(self, component)
        return files


@dataclass(frozen=True)
class Layout:
    """What the tensors of a file are.

    Args:
        component: they belong to.
        part: of the transformer, the tower they are; else the whole.
        naming: whose names `tensors` has: the published checkpoint's or the library class's.
        tensors: by those names; each still knows its name in its file.
        scales: of float8 weights, by the names of the weights.
    """

    component: Component
    part: Part
    naming: Naming
    tensors: Tensors
    scales: Tensors

    @property
    def title(self) -> str:
        """In words: `the video tower of a transformer, in float8 with scales`."""
        name = TITLES[self.component] if self.part == "whole" else f"{self.part} tower of a {TITLES[self.component]}"
        return name + (", in float8" if self.float8 else "") + (" with scales" if self.scales else "")

    @property
    def float8(self) -> bool:
        """Whether some of it is stored in float8."""
        return any(info.dtype in FLOATS_8 for info in self.tensors.values())


@dataclass(frozen=True)
class _Mark:
    """A tensor that gives a layout away, and the shape that it has in the right model."""

    component: Component
    part: Part
    naming: Naming
    name: str
    shape: Callable[[Variant], Shape]
    beside: str = ""  # another tensor that must be there


def recognise(tensors: Tensors, variant: Variant) -> Layout:
    """What these tensors are, for a variant of these shapes.

    Raises:
        WeightsError: they are of no component, or of another model's.
    """
    named, scales = _without_notes(_without_prefix(tensors))
    marks = [mark for mark in _MARKS if mark.name in named and (not mark.beside or mark.beside in named)]
    if not marks:
        raise WeightsError(f"{_place(tensors)} {_guess(named)}.", "Give the files that `ovi-studio models show` lists.")
    mark = marks[0]
    shape, right = named[mark.name].shape, mark.shape(variant)
    if shape != right:
        raise WeightsError(
            f"{_place(tensors)} is a {TITLES[mark.component]}, but of another model: "
            f"{named[mark.name].name!r} is {_times(shape)} and not {_times(right)}.",
            "Give the files that `ovi-studio models show` lists.",
        )
    return Layout(
        mark.component,
        mark.part,
        mark.naming,
        {_own_name(name, mark): info for name, info in named.items()},
        {_own_name(name, mark): info for name, info in scales.items()},
    )


def together(layouts: list[Layout]) -> Layout:
    """Both towers of a transformer as one layout; a whole component stays as it is.

    Raises:
        WeightsError: the parts are not one component: a tower is missing, or there are too many files.
    """
    parts = sorted(layout.part for layout in layouts)
    if parts == ["whole"]:
        return layouts[0]
    if parts != ["audio", "video"]:
        title = TITLES[layouts[0].component]
        raise WeightsError(
            f"The {title} comes as {' and '.join(layout.title for layout in layouts)}.",
            "It takes one whole model, or exactly one file of each tower.",
        )
    first, second = layouts
    return Layout(
        first.component,
        "whole",
        first.naming,
        {**first.tensors, **second.tensors},
        {**first.scales, **second.scales},
    )


def is_adapter(tensors: Tensors) -> bool:
    """Whether these are the thin matrices of a LoRA, in any of the usual styles."""
    return any(re.search(r"\.lora_(A|B|up|down)\b", name) for name in tensors)


# --- Names ------------------------------------------------------------------------------------------------

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "generator.")
_NOTES = re.compile(r"(?:.+\.)?(?:scaled_fp8|spiece_model|comfy_quant|scale_input|input_scale)")
_SCALE = re.compile(r"(?P<module>.+)\.(?:scale_weight|weight_scale)")
_TOWERS: Mapping[Part, str] = {"whole": "", "video": "video_model.", "audio": "audio_model."}
_TIED = "encoder.embed_tokens.weight"


def _without_prefix(tensors: Tensors) -> dict[str, TensorInfo]:
    weights = [name for name in tensors if not _NOTES.fullmatch(name)]
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            return {name.removeprefix(prefix): info for name, info in tensors.items()}
    return dict(tensors)


def _without_notes(tensors: Tensors) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """The weights, and the scales by the names of their weights."""
    weights, scales = {}, {}
    for name, info in tensors.items():
        scale = _SCALE.fullmatch(name)
        if scale:
            scales[f"{scale['module']}.weight"] = info
        elif not _NOTES.fullmatch(name) and not (name == _TIED and "shared.weight" in tensors):
            weights["shared.weight" if name == _TIED else name] = info
    return weights, scales


def _own_name(name: str, mark: _Mark) -> str:
    """The tensor's name in the published checkpoint, or in the library class."""
    if mark.naming == "library":
        return name
    if mark.component == "transformer":
        tower = "" if name.startswith(_TOWERS[mark.part]) else _TOWERS[mark.part]
        return tower + re.sub(r"(blocks\.\d+\.modulation)$", r"\1.modulation", name)
    if mark.component == "vocoder":
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            name = name.replace(f"parametrizations.weight.{new}", old)
    return name


# --- Marks ------------------------------------------------------------------------------------------------


def _video_patch(variant: Variant) -> Shape:
    shape = variant.transformer
    return (shape.dim, shape.in_channels, *shape.patch_size)


def _audio_patch(variant: Variant) -> Shape:
    return (variant.transformer.dim, variant.transformer.audio_in_channels, 7)


def _embedding(variant: Variant) -> Shape:
    return (variant.text_encoder.vocab_size, variant.text_encoder.d_model)


def _first_convolution(variant: Variant) -> Shape:
    return (variant.video_vae.base_dim, variant.video_vae.in_channels, 3, 3, 3)


def _mel_statistics(variant: Variant) -> Shape:
    return (1, variant.audio_vae.mel_bins, 1)


def _mel_convolution(variant: Variant) -> Shape:
    vocoder = variant.vocoder
    width = vocoder.upsample_initial_channel if isinstance(vocoder, VocoderShape) else vocoder.dim
    return (width, vocoder.num_mels, 7)


_VIDEO_PATCH, _AUDIO_PATCH, _FUSED = (
    "patch_embedding.weight",
    "patch_embedding.0.weight",
    "blocks.0.cross_attn.k_fusion.weight",
)
_MARKS = (
    _Mark(
        "transformer",
        "whole",
        "checkpoint",
        f"video_model.{_VIDEO_PATCH}",
        _video_patch,
        f"audio_model.{_AUDIO_PATCH}",
    ),
    _Mark("transformer", "whole", "library", f"video.{_VIDEO_PATCH}", _video_patch, f"audio.{_AUDIO_PATCH}"),
    _Mark("transformer", "video", "checkpoint", f"video_model.{_VIDEO_PATCH}", _video_patch),
    _Mark("transformer", "audio", "checkpoint", f"audio_model.{_AUDIO_PATCH}", _audio_patch),
    _Mark("transformer", "video", "checkpoint", _VIDEO_PATCH, _video_patch, _FUSED),
    _Mark("transformer", "audio", "checkpoint", _AUDIO_PATCH, _audio_patch, _FUSED),
    _Mark("text_encoder", "whole", "checkpoint", "token_embedding.weight", _embedding, "blocks.0.attn.q.weight"),
    _Mark(
        "text_encoder",
        "whole",
        "library",
        "shared.weight",
        _embedding,
        "encoder.block.0.layer.0.SelfAttention.q.weight",
    ),
    _Mark(
        "video_vae",
        "whole",
        "checkpoint",
        "encoder.conv1.weight",
        _first_convolution,
        "encoder.downsamples.0.downsamples.0.residual.2.weight",
    ),
    _Mark(
        "video_vae",
        "whole",
        "library",
        "encoder.conv_in.weight",
        _first_convolution,
        "encoder.down_blocks.0.resnets.0.conv1.weight",
    ),
    _Mark("audio_vae", "whole", "checkpoint", "data_mean", _mel_statistics, "decoder.conv_in.weight"),
    _Mark("audio_vae", "whole", "library", "vae.data_mean", _mel_statistics, "vae.decoder.conv_in.weight"),
    _Mark("vocoder", "whole", "checkpoint", "conv_pre.weight_v", _mel_convolution),
    _Mark("vocoder", "whole", "checkpoint", "conv_pre.parametrizations.weight.original1", _mel_convolution),
    _Mark("vocoder", "whole", "library", "conv_pre.weight", _mel_convolution, "conv_post.weight"),
)


def _guess(names: Tensors) -> str:
    """What a file is that is none of ours, as the end of a sentence."""
    if is_adapter(names):
        return "is an adapter (LoRA), no component"
    if _VIDEO_PATCH in names and "blocks.0.self_attn.q.weight" in names:
        return "is a Wan video model, without Ovi's audio tower"
    return "holds no component of Ovi"


def _place(tensors: Tensors) -> str:
    files = sorted({str(info.file) for info in tensors.values()})
    return ", ".join(files) or "An empty file"


def _times(shape: Shape) -> str:
    return "×".join(map(str, shape))
