"""Adapters (LoRAs) on the transformer: read from the usual files, put on its towers, fused into them, and taken off.

    read_adapter(path) → `AdapterWeights`       any style below, under the checkpoint's names
    put_on(transformer, uses)                   PEFT layers with a strength each
    fuse(transformer), fused(layer)             what is put on, merged into the weights
    take_off(transformer)                       what is put on and not fused

Styles, each told by its names:

    ComfyUI             diffusion_model.blocks.0.self_attn.q.lora_down.weight  (.alpha, .diff_b)
    Kohya, musubi       lora_unet_blocks_0_self_attn_q.lora_down.weight  (.alpha)
    diffusers           transformer.blocks.0.attn1.to_q.lora_A.weight  (scale in the file's metadata)
    PEFT                base_model.model.blocks.0.self_attn.q.lora_A.weight  (scale in adapter_config.json)

A LoRA of Wan2.2 5B names no tower: it goes onto the video tower, for which it was made, the audio tower, or both. One
that was trained on Ovi has `video_model.` and `audio_model.` in its names, or `blocks.0.video.…`, and stays there.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers
from diffusers.utils import set_weights_and_activate_adapters
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ovi_studio.errors import WeightsError
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.variants import Modality
from ovi_studio.weights import convert
from ovi_studio.weights.catalog import ADAPTER_CONFIG
from ovi_studio.weights.headers import read_header
from ovi_studio.weights.inventory import Distillation, distillation_of
from ovi_studio.weights.pickles import as_safetensors

Tower: TypeAlias = Literal["video", "audio"]
State: TypeAlias = dict[str, Tensor]

TOWERS: tuple[Tower, ...] = ("video", "audio")
_REMEDY = "Use a LoRA of Wan2.2 5B or of Ovi."


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to a linear layer: weight + up @ down, bias + bias. The usual scale is already in `up`."""

    down: Tensor
    up: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class AdapterWeights:
    """A LoRA as it was read.

    Args:
        path: of its file.
        towers: its layers by the checkpoint's names, of each tower it names; under None, those for any tower.
        distillation: how it wants to be sampled, where it is step-distilled.
        notes: in words, what of the file is not used.
    """

    path: Path
    towers: Mapping[Tower | None, Mapping[str, LowRank]]
    distillation: Distillation | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterUse:
    """An adapter, how strongly it acts, and on which towers."""

    weights: AdapterWeights
    strength: float = 1.0
    tower: Modality = "both"


# --- On and off -------------------------------------------------------------------------------------------


def put_on(transformer: OviTransformer, uses: Sequence[AdapterUse]) -> None:
    """Puts these adapters on, in place of any live ones; their effects add up.

    Raises:
        WeightsError: an adapter does not fit this transformer.
    """
    states = [_state_for(transformer, use) for use in uses]  # all are checked before one is put on
    take_off(transformer)
    names = [f"adapter_{index}" for index in range(len(uses))]
    for name, state in zip(names, states, strict=True):
        transformer.load_lora_adapter(state, prefix=None, adapter_name=name, low_cpu_mem_usage=True)
    if names:
        set_weights_and_activate_adapters(transformer, names, [use.strength for use in uses])
        transformer.requires_grad_(False)


def fuse(module: nn.Module) -> None:
    """Merges the adapters on a transformer, or on a part of it, into its weights; see `fused`."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BaseTunerLayer):
                setattr(parent, name, fused(layer))
    if isinstance(module, OviTransformer) and not any(isinstance(part, BaseTunerLayer) for part in module.modules()):
        take_off(module)


def fused(layer: nn.Module) -> nn.Module:
    """The layer with the adapters on it merged into its weight; nothing can take them off then.

    The weight is replaced, not written to: of one that is mapped from a file no page is kept in memory. Adapters on a
    weight that is narrow already stay live, as most of their effect would be rounded off.

    Raises:
        WeightsError: an adapter makes the weight infinite.
    """
    if not isinstance(layer, BaseTunerLayer):
        return layer
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or is_traceable_wrapper_subclass(base.weight):
        return layer
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        raise WeightsError("An adapter holds numbers that are not finite.", "Copy or download it again.") from error
    return base


def take_off(transformer: OviTransformer) -> None:
    """Takes all live adapters off; fused ones stay."""
    if getattr(transformer, "peft_config", None):
        transformer.unload_lora()


def sampling_of(uses: Sequence[AdapterUse]) -> Distillation | None:
    """How to sample with these adapters; None for as usual.

    Raises:
        WeightsError: they want it in different ways.
    """
    found = {use.weights.distillation: use.weights.path for use in uses if use.weights.distillation}
    if len(found) > 1:
        raise WeightsError(
            f"{' and '.join(map(str, found.values()))} want to be sampled in different ways.",
            "Use one step-distilled adapter at a time.",
        )
    return next(iter(found), None)


def remarks_on(uses: Sequence[AdapterUse]) -> tuple[str, ...]:
    """What a person should know of these adapters, in sentences."""
    remarks = [note for use in uses for note in use.weights.notes]
    for use in uses:
        distilled = use.weights.distillation
        if distilled:
            remarks.append(f"{use.weights.path.name} asks for {distilled.num_inference_steps} steps in one pass.")
        if distilled and "audio" not in use.weights.towers:
            remarks.append("The audio tower was not distilled with it: with so few steps the sound may be poor.")
    return tuple(remarks)


def _state_for(transformer: OviTransformer, use: AdapterUse) -> State:
    """The adapter's tensors under this transformer's names, as PEFT wants them, on the wanted towers."""
    wanted = TOWERS if use.tower == "both" else (use.tower,)
    layers = {
        (tower, name): layer
        for tower in wanted
        for own in (None, tower)
        for name, layer in use.weights.towers.get(own, {}).items()
        if not (own is None and tower == "audio" and name.startswith("head."))  # a video model's head makes pixels
    }
    if not layers:
        raise WeightsError(f"{use.weights.path} has nothing for the {use.tower} tower.", "Choose its other tower.")
    biased = any(layer.bias is not None for layer in layers.values())
    state: State = {}
    for (tower, name), layer in layers.items():
        ours = _module_name(use.weights.path, tower, name)
        target = _linear(transformer, ours)
        shapes = ((layer.up.shape[0], layer.down.shape[1]), (target.out_features, target.in_features))
        if shapes[0] != shapes[1] or layer.up.shape[1] != layer.down.shape[0]:
            raise WeightsError(
                f"{use.weights.path} does not fit: its {name!r} is for a layer of {shapes[0]} and not {shapes[1]}.",
                _REMEDY,
            )
        state[f"{ours}.lora_A.weight"] = layer.down
        state[f"{ours}.lora_B.weight"] = layer.up
        if biased:  # PEFT gives either all layers of an adapter a bias or none
            none = layer.up.new_zeros(layer.up.shape[0])
            state[f"{ours}.lora_B.bias"] = none if layer.bias is None else layer.bias
    return state


def _module_name(path: Path, tower: Tower, name: str) -> str:
    """Our name of a layer, by the checkpoint's key map."""
    try:
        return convert.fusion_key(f"{tower}_model.{name}.weight").removesuffix(".weight")
    except WeightsError as error:
        raise WeightsError(f"{path} has the layer {name!r}, which Ovi has not.", _REMEDY) from error


def _linear(transformer: OviTransformer, name: str) -> nn.Linear:
    """The layer itself, also where a live adapter is on it."""
    try:
        module: Any = transformer.get_submodule(name)
    except AttributeError as error:
        raise WeightsError(f"The transformer has no layer {name!r}.", _REMEDY) from error
    layer = getattr(module, "base_layer", module)
    if not isinstance(layer, nn.Linear):
        raise WeightsError(f"The transformer's {name!r} is no linear layer.", _REMEDY)
    return layer


# --- Reading ----------------------------------------------------------------------------------------------


def read_adapter(path: Path) -> AdapterWeights:
    """A LoRA from a file, or from a folder as PEFT saves it.

    Raises:
        WeightsError: the file is damaged, or no LoRA in a style that is known.
    """
    if path.is_dir():
        path = path / "adapter_model.safetensors"
    file = as_safetensors(path)
    metadata = read_header(file).metadata
    config = _peft_config(path) or _metadata_config(metadata)
    state, notes = _usable(load_file(file))
    state = _scaled({_plain(name): tensor for name, tensor in state.items()}, config)
    towers = {tower: _layers(path, part) for tower, part in _by_tower(state).items()}
    if not any(towers.values()):
        raise WeightsError(f"{path} holds no LoRA.", _REMEDY)
    notes = [f"{path.name}: {note}" for note in notes]
    return AdapterWeights(path, towers, distillation_of(path, metadata), tuple(notes))


_PREFIX = re.compile(r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|model\.)+")
_KOHYA = re.compile(r"^lora_unet_(?P<tower>(?:video|audio)_model_)?(?P<module>[^.]+)(?P<part>\..+)$")
# What follows the last underscore of a flattened name is a part of its own: blocks_0_cross_attn_k_fusion.
_KOHYA_MODULE = re.compile(
    r"(?:blocks_(?P<block>\d+)_)?(?P<parent>self_attn|cross_attn|ffn|head|text_embedding|time_embedding|time_projection)"
    r"_(?P<child>\w+)"
)
_DROPPED = (
    (re.compile(r".*norm.*\.diff(_b)?"), "changes of norms, which such files hold as zeros"),
    (re.compile(r".*\.diff"), "changes of whole weights, which are not low-rank"),
    (re.compile(r".*\.dora_scale"), "DoRA's scales"),
)


def _usable(state: State) -> tuple[State, list[str]]:
    """Without what a LoRA's layers cannot take, and a note on each kind of it that is not zero."""
    kept: State = {}
    notes: dict[str, int] = {}
    for name, tensor in state.items():
        reason = next((reason for pattern, reason in _DROPPED if pattern.fullmatch(name)), None)
        if reason is None:
            kept[name] = tensor
        elif tensor.any():
            notes[reason] = notes.get(reason, 0) + 1
    return kept, [f"{count} tensors are left out: {reason}." for reason, count in notes.items()]


def _plain(name: str) -> str:
    """A name without its style's prefix, dotted, with PEFT's words for the parts."""
    if kohya := _KOHYA.match(name):
        module = kohya["module"]
        if found := _KOHYA_MODULE.fullmatch(module):
            block = f"blocks.{found['block']}." if found["block"] else ""
            module = f"{block}{found['parent']}.{found['child']}"
        tower = (kohya["tower"] or "").replace("model_", "model.")
        name = f"{tower}{module}{kohya['part']}"
    name = _PREFIX.sub("", name)
    name = re.sub(r"\.lora_([AB])\.[^.]+\.(weight|bias)$", r".lora_\1.\2", name)  # an adapter's name, from PEFT
    return name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")


def _by_tower(state: State) -> dict[Tower | None, State]:
    """The tensors that each tower's names claim, under names without it."""
    towers: dict[Tower | None, State] = {}
    for name, tensor in state.items():
        for tower in TOWERS:
            own = re.sub(rf"^{tower}_model\.|^{tower}\.|(?<=^blocks)(\.\d+)\.{tower}(?=\.)", r"\1", name)
            if own != name:
                towers.setdefault(tower, {})[own] = tensor
                break
        else:
            towers.setdefault(None, {})[name] = tensor
    return towers


def _layers(path: Path, state: State) -> dict[str, LowRank]:
    """One tower's layers, by the checkpoint's names."""
    converted = {name: tensor for name, tensor in state.items() if _DIFFUSERS_NAME.search(name)}
    own = {name: tensor for name, tensor in state.items() if name not in converted}
    # The converter knows Wan's layers only. Those between the towers go through it under names that it knows.
    fused = {name.replace("_fusion.", "."): tensor for name, tensor in own.items() if "_fusion." in name}
    wan = {name: tensor for name, tensor in own.items() if "_fusion." not in name}
    tensors = _theirs(path, converted) | _theirs(path, _through_diffusers(path, wan))
    for name, tensor in _theirs(path, _through_diffusers(path, fused)).items():
        tensors[re.sub(r"(cross_attn\.[kv])\.", r"\1_fusion.", name)] = tensor
    modules = sorted({name.rpartition(".lora_")[0] for name in tensors})
    layers = {}
    for module in modules:
        down, up = (tensors.get(f"{module}.lora_{half}.weight") for half in "AB")
        if down is None or up is None:
            raise WeightsError(f"{path} has only half of the layer {module!r}.", "Copy or download it again.")
        layers[module] = LowRank(down, up, tensors.get(f"{module}.lora_B.bias"))
    return layers


def _through_diffusers(path: Path, state: State) -> State:
    """Diffusers' own converter of Wan's layers; it turns `diff_b` into biases."""
    if not state:
        return {}
    try:
        converted = _convert_non_diffusers_wan_lora_to_diffusers(
            {f"diffusion_model.{name}": tensor for name, tensor in state.items()}
        )
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"{path} is no LoRA for Ovi: some of its layers are unknown or halved.", _REMEDY) from error
    return {name.removeprefix("transformer."): tensor for name, tensor in converted.items()}


# diffusers' names of Wan's layers, and the checkpoint's
_DIFFUSERS = (
    (r"blocks\.(\d+)\.attn1\.to_([qkv])", r"blocks.\1.self_attn.\2"),
    (r"blocks\.(\d+)\.attn1\.to_out\.0", r"blocks.\1.self_attn.o"),
    (r"blocks\.(\d+)\.attn2\.to_([qkv])", r"blocks.\1.cross_attn.\2"),
    (r"blocks\.(\d+)\.attn2\.to_out\.0", r"blocks.\1.cross_attn.o"),
    (r"blocks\.(\d+)\.ffn\.net\.0\.proj", r"blocks.\1.ffn.0"),
    (r"blocks\.(\d+)\.ffn\.net\.2", r"blocks.\1.ffn.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"proj_out", "head.head"),
)
_DIFFUSERS_NAME = re.compile(r"\.attn[12]\.|\.ffn\.net\.|^condition_embedder\.|^proj_out\.")


def _theirs(path: Path, state: State) -> State:
    """The checkpoint's names of tensors that have diffusers'."""
    named = {}
    for name, tensor in state.items():
        module, _, part = name.partition(".lora_")
        for pattern, checkpoint in _DIFFUSERS:
            if found := re.fullmatch(pattern, module):
                named[f"{found.expand(checkpoint)}.lora_{part}"] = tensor
                break
        else:
            raise WeightsError(f"{path} has the layer {module!r}, which Ovi has not.", _REMEDY)
    return named


# --- Metadata ---------------------------------------------------------------------------------------------


def _peft_config(path: Path) -> Mapping[str, Any]:
    """PEFT's settings beside the file, as PEFT saves them or as an import calls them; none, if it was not PEFT's."""
    own = path.stem == "adapter_model"
    settings = path.with_name("adapter_config.json" if own else f"{path.stem}{ADAPTER_CONFIG}")
    return _read_json(settings) if settings.exists() else {}


def _metadata_config(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """PEFT's settings as diffusers stores them in a file's metadata."""
    try:
        stored = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    return {name.removeprefix("transformer."): value for name, value in stored.items()}


def _scaled(state: State, config: Mapping[str, Any]) -> State:
    """Without scales, which are multiplied into the upper matrices and their biases: alpha / rank, or alpha / √rank.

    A layer's alpha is a tensor in the file or a number in PEFT's settings. (Diffusers' converter takes such tensors
    too, but refuses those outside the blocks.)
    """
    patterns = config.get("alpha_pattern") or {}
    scaled = {}
    for name, tensor in state.items():
        module, _, part = name.partition(".lora_")
        if name.endswith(".alpha"):
            continue
        down = state.get(f"{module}.lora_A.weight")
        settled = patterns.get(get_pattern_key(patterns, module), config.get("lora_alpha"))
        alpha = state.get(f"{module}.alpha", settled)
        factor = 1.0
        if part.startswith("B.") and down is not None and alpha is not None:
            rank = down.shape[0]
            factor = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        scaled[name] = tensor * factor
    return scaled


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read.", "Give the folder as PEFT saved it.") from error
    return data if isinstance(data, dict) else {}
