"""A released variant at toy size, and its weights written to disk in every layout that users have."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ovi_studio.arithmetic import Component
from ovi_studio.assets import data_path
from ovi_studio.model import components
from ovi_studio.shapes import TransformerShape, VocoderShape
from ovi_studio.variants import VARIANTS, Variant
from ovi_studio.weights import convert

State = dict[str, Tensor]

NANO = VARIANTS["nano"]
MANIFESTS = Path(__file__).parents[1] / "manifests"

TOY: Variant = dataclasses.replace(
    VARIANTS["720x720_5s"],
    transformer=TransformerShape(
        num_attention_heads=2,
        attention_head_dim=16,
        ffn_dim=48,
        num_layers=2,
        freq_dim=16,
        text_dim=NANO.text_encoder.d_model,
        in_channels=48,
        audio_in_channels=NANO.audio_vae.latent_channels,
    ),
    text_encoder=dataclasses.replace(NANO.text_encoder, num_layers=2),
    video_vae=dataclasses.replace(VARIANTS["720x720_5s"].video_vae, base_dim=8, decoder_base_dim=8),
    audio_vae=NANO.audio_vae,
    vocoder=VocoderShape(upsample_initial_channel=128),
)

_COMPONENTS: dict[Component, tuple[str, Callable, Callable]] = {
    "transformer": ("fusion", components.build_transformer, convert.fusion_to_checkpoint),
    "text_encoder": ("umt5_xxl_encoder", components.build_text_encoder, convert.text_encoder_to_checkpoint),
    "video_vae": ("wan_vae22", components.build_video_vae, convert.video_vae_to_checkpoint),
    "audio_vae": ("mmaudio_vae_16k", components.build_audio_vae, convert.audio_vae_to_checkpoint),
    "vocoder": ("bigvgan_16k", components.build_vocoder, convert.vocoder_to_checkpoint),
}
FROM_CHECKPOINT: dict[Component, Callable[[State], State]] = {
    "transformer": convert.fusion_from_checkpoint,
    "text_encoder": convert.text_encoder_from_checkpoint,
    "video_vae": convert.video_vae_from_checkpoint,
    "audio_vae": convert.audio_vae_from_checkpoint,
    "vocoder": convert.vocoder_from_checkpoint,
}


def manifest_names(component: Component) -> set[str]:
    recorded = json.loads((MANIFESTS / f"{_COMPONENTS[component][0]}.json").read_text())
    return set(recorded["keys"])


def checkpoint(component: Component, seed: int = 0) -> State:
    """Random tensors under the published file's names, at toy shapes."""
    return dict(_checkpoint(component, seed))


@cache
def _checkpoint(component: Component, seed: int) -> State:
    _, build, to_checkpoint = _COMPONENTS[component]
    with components.on_meta():
        shapes = to_checkpoint(build(TOY).state_dict())
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(t.shape, generator=generator) * 0.1 + 0.01 for name, t in shapes.items()}
    assert state.keys() <= manifest_names(component)
    return state


def library(component: Component, state: State) -> State:
    """The same tensors under the library class's names."""
    return FROM_CHECKPOINT[component](state)


def save(state: State, path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def pickle(state: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def save_shards(state: State, folder: Path, stem: str, count: int) -> list[Path]:
    """`stem-00001-of-0000N.safetensors` and so on, with the index beside them."""
    names = list(state)
    files: list[Path] = []
    index: dict[str, str] = {}
    for number in range(count):
        part = {name: state[name] for name in names[number::count]}
        files.append(save(part, folder / f"{stem}-{number + 1:05}-of-{count:05}.safetensors"))
        index |= dict.fromkeys(part, files[-1].name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return files


def save_tokenizer(folder: Path) -> Path:
    shutil.copytree(data_path("assets", "nano", "tokenizer"), folder, dirs_exist_ok=True)
    return folder


def tower(state: State, name: str, prefix: str) -> State:
    """One tower of the transformer as node packs split it off: a prefix of its own, modulation as a plain tensor."""
    own = {key: t for key, t in state.items() if key.startswith(f"{name}_model.")}
    renamed = {re.sub(r"modulation\.modulation$", "modulation", key): t for key, t in own.items()}
    return {prefix + key.removeprefix(f"{name}_model."): tensor for key, tensor in renamed.items()}


def is_block_linear(name: str) -> bool:
    """Weights that fp8 files narrow: of linear layers inside blocks."""
    return bool(re.search(r"(attn\.(q|k|v|o|k_fusion|v_fusion)|ffn\.\d|gate\.0|fc\d)\.weight$", name))


def float8(state: State, scaled: bool, suffix: str = "scale_weight", rows: bool = False) -> tuple[State, State]:
    """The state with linear weights in float8 (and their scales), and the state that is meant by it."""
    stored, meant = {}, {}
    for name, tensor in state.items():
        if not is_block_linear(name):
            stored[name], meant[name] = tensor, tensor
            continue
        scale = torch.ones(1)
        if scaled:
            scale = (tensor.abs().amax(1, keepdim=True) if rows else tensor.abs().amax().reshape(())) / 448
            stored[f"{name.removesuffix('weight')}{suffix}"] = scale
        stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        meant[name] = stored[name].float() * scale
    return stored, meant


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below with its size and time: two are equal when nothing was changed."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    }
