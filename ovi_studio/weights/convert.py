"""The checkpoints' key maps, both ways.

The published files name their tensors as the research code did; our components are library classes with names
of their own. Each component has a pair of pure functions on state dicts, `X_from_checkpoint` and
`X_to_checkpoint`:

    fusion         model*.safetensors                 ↔ `OviTransformer`       renamed
    video VAE      Wan2.2_VAE.pth                     ↔ `AutoencoderKLWan`     renamed
    text encoder   models_t5_umt5-xxl-enc-bf16.pth    ↔ `UMT5EncoderModel`     renamed, embedding tied
    audio VAE      v1-16.pth                          ↔ `MMAudioVAE`           weight norm folded
    vocoder        best_netG.pt, entry `generator`    ↔ `OviVocoder`           weight norm folded

Renaming copies no tensor. The maps are patterns, so they hold for any depth and width, and they are strict: a
tensor that no pattern knows is an error, because to leave it out is to load another model without a word.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioMelSpectrogram
from diffusers.models.autoencoders.autoencoder_mmaudio import normalize as unit_rms
from torch import Tensor

from ovi_studio.errors import WeightsError

StateDict = Mapping[str, Tensor]


# --- fusion: the blocks of both towers move under one list of fusion blocks ---------------------------------


def fusion_key(key: str) -> str:
    """The `OviTransformer` name of a checkpoint tensor: `video_model.blocks.7.X` → `blocks.7.video.X`.

    Raises:
        WeightsError: the fusion checkpoint has no such tensor.
    """
    return _FUSION.ours(key)


def fusion_from_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """`model*.safetensors` → `OviTransformer`."""
    return {_FUSION.ours(key): tensor for key, tensor in state.items()}


def fusion_to_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """`OviTransformer` → `model*.safetensors`."""
    return {_FUSION.theirs(key): tensor for key, tensor in state.items()}


# --- video VAE ----------------------------------------------------------------------------------------------


def video_vae_from_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """`Wan2.2_VAE.pth` → `AutoencoderKLWan` in its residual form."""
    return {_VIDEO_VAE.ours(key): tensor for key, tensor in state.items()}


def video_vae_to_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """`AutoencoderKLWan` → `Wan2.2_VAE.pth`.

    The checkpoint numbers a level's resampler as one more of its residual blocks, so the resampler's number
    is the count of the level's residual blocks.
    """
    blocks = {tuple(key.split(".")[:5]) for key in state if ".resnets." in key}  # side, levels, i, resnets, j
    count = Counter(block[:3] for block in blocks)
    theirs = {}
    for key, tensor in state.items():
        level = tuple(key.split(".")[:3])
        theirs[_VIDEO_VAE.theirs(key, j=str(count[level]))] = tensor
    return theirs


# --- text encoder -------------------------------------------------------------------------------------------

_TIED_EMBEDDING = "encoder.embed_tokens.weight"  # the second name of `shared.weight` in transformers


def text_encoder_from_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """`models_t5_umt5-xxl-enc-bf16.pth` → `UMT5EncoderModel`.

    The token embedding comes under both of its names, as one tensor. After `load_state_dict(assign=True)`
    call `tie_weights()`, or it is counted twice.
    """
    ours = {_TEXT_ENCODER.ours(key): tensor for key, tensor in state.items()}
    if "shared.weight" in ours:
        ours[_TIED_EMBEDDING] = ours["shared.weight"]
    return ours


def text_encoder_to_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """`UMT5EncoderModel` → `models_t5_umt5-xxl-enc-bf16.pth`."""
    return {_TEXT_ENCODER.theirs(key): tensor for key, tensor in state.items() if key != _TIED_EMBEDDING}


# --- audio VAE: the rows of every convolution are used at unit norm -----------------------------------------

_UNIT_RMS_EPSILON = 1e-4  # the library's `normalize` adds it to the rows' RMS


def audio_vae_from_checkpoint(
    state: StateDict, *, sample_rate: int = 16_000, n_fft: int = 1024, hop_length: int = 256
) -> dict[str, Tensor]:
    """`v1-16.pth` → `MMAudioVAE`, in float32.

    The file holds the weights before their normalisation and `MMAudioVAE` wants them after, so it is applied
    here, once. The class also stores the filterbank and window of its mel front end, which the file does not
    have: they are computed from the arguments (Hz and samples).
    """
    ours = {_AUDIO_VAE.ours(key): tensor.float() for key, tensor in state.items()}
    if "vae.data_mean" not in ours:
        raise WeightsError("The audio VAE's checkpoint has no tensor 'data_mean'.", _REMEDY)
    for key, tensor in ours.items():
        if key.endswith(".weight"):
            ours[key] = unit_rms(tensor) / tensor[0].numel() ** 0.5
    with torch.device("cpu"):
        front_end = MMAudioMelSpectrogram(sample_rate, n_fft, ours["vae.data_mean"].shape[1], hop_length)
    return ours | {f"mel_converter.{key}": table for key, table in front_end.state_dict().items()}


def audio_vae_to_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """`MMAudioVAE` → `v1-16.pth`: weights that `audio_vae_from_checkpoint` turns into the given ones again.

    A row's length is lost when it is normalised, except for the trace that the normalisation's small epsilon
    leaves: with row norm n, the RMS before was ε·n / (1 − n). Rows of exactly unit norm, as training leaves
    them, get a length at which the epsilon no longer counts.
    """
    theirs = {_AUDIO_VAE.theirs(key): t for key, t in state.items() if not key.startswith("mel_converter.")}
    for key, tensor in theirs.items():
        if key.endswith(".weight"):
            norm = torch.linalg.vector_norm(tensor.double(), dim=(1, 2), keepdim=True)
            scale = tensor[0].numel() ** 0.5 * _UNIT_RMS_EPSILON / (1 - norm).clamp(min=1e-8)
            theirs[key] = (tensor.double() * scale).float()
    return theirs


# --- vocoder: every convolution is weight-normed ------------------------------------------------------------


def vocoder_from_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """The `generator` entry of `best_netG.pt` → `OviVocoder`, in float32.

    Takes torch's old form of weight norm (`weight_g`, `weight_v`), its new one
    (`parametrizations.weight.original0`, `original1`), and weights that are folded already.

    Raises:
        WeightsError: a tensor is not the vocoder's, or half of a pair is missing.
    """
    parts = {_as_old_weight_norm(key): tensor.float() for key, tensor in state.items()}
    ours = {}
    for key, tensor in parts.items():
        stem, _, part = key.rpartition("_")
        if part not in {"g", "v"}:
            ours[_VOCODER.ours(key)] = tensor
        elif f"{stem}_g" not in parts or f"{stem}_v" not in parts:
            raise WeightsError(f"The vocoder's checkpoint has only half of '{stem}': {key!r}.", _REMEDY)
        elif part == "v":
            norm = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
            ours[_VOCODER.ours(stem)] = tensor * (parts[f"{stem}_g"] / norm)
    return ours


def vocoder_to_checkpoint(state: StateDict) -> dict[str, Tensor]:
    """`OviVocoder` → the `generator` entry of `best_netG.pt`, in the `weight_g`, `weight_v` form.

    Folding forgets the length of `weight_v`, so the way back is not unique: the weight itself is taken for
    `weight_v`, and its norm for `weight_g`.
    """
    theirs = {}
    for key, tensor in state.items():
        name = _VOCODER.theirs(key)
        if name.endswith(".weight"):
            theirs[f"{name}_g"] = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
            theirs[f"{name}_v"] = tensor
        else:
            theirs[name] = tensor
    return theirs


def _as_old_weight_norm(key: str) -> str:
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        key = key.replace(f"parametrizations.weight.{new}", old)
    return key


# --- the maps -----------------------------------------------------------------------------------------------

_REMEDY = "Check that the file belongs to this model, or download it again."

_FIELDS = {
    "i": r"\d+",
    "j": r"\d+",
    "k": r"\d+",
    "wb": "weight|bias",
    "qkvo": "q|k|v|o",
    "side": "encoder|decoder",
    "tower": "video|audio",
}


class _KeyMap:
    """A renaming as pairs of templates, theirs and ours, whose `{fields}` are patterns of `_FIELDS`."""

    def __init__(self, model: str, pairs: Iterable[tuple[str, str]]) -> None:
        self.model = model
        self.pairs = [(_pattern(theirs), theirs, _pattern(ours), ours) for theirs, ours in pairs]

    def ours(self, key: str) -> str:
        """The component's name of a checkpoint tensor."""
        for pattern, _, _, ours in self.pairs:
            if found := pattern.fullmatch(key):
                return ours.format(**found.groupdict())
        raise WeightsError(f"The {self.model}'s checkpoint has no tensor named {key!r}.", _REMEDY)

    def theirs(self, key: str, **fields: str) -> str:
        """The checkpoint's name of a component's tensor; `fields` are those that our name does not tell."""
        for _, theirs, pattern, _ in self.pairs:
            if found := pattern.fullmatch(key):
                return theirs.format(**{**fields, **found.groupdict()})
        raise WeightsError(f"The {self.model} has no tensor named {key!r}.", _REMEDY)


def _pattern(template: str) -> re.Pattern[str]:
    """The template as a pattern: dots are dots, and each `{field}` is a named group."""

    def group(field: re.Match[str]) -> str:
        return f"(?P<{field[1]}>{_FIELDS[field[1]]})"

    return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(template)))


def _moved(parts: Iterable[str], theirs: str, ours: str) -> list[tuple[str, str]]:
    """Pairs for parts that keep their names under another prefix."""
    return [(theirs + part, ours + part) for part in parts]


_FUSION_BLOCK = (
    "self_attn.{qkvo}.{wb}",
    "self_attn.norm_{qkvo}.weight",
    "cross_attn.{qkvo}.{wb}",
    "cross_attn.norm_{qkvo}.weight",
    "cross_attn.{qkvo}_fusion.{wb}",
    "cross_attn.pre_attn_norm_fusion.{wb}",
    "cross_attn.norm_k_fusion.weight",
    "norm3.{wb}",
    "ffn.{j}.{wb}",
    "modulation.modulation",
)
_FUSION_TOWER = (
    "patch_embedding.{wb}",
    "patch_embedding.0.{wb}",
    "patch_embedding.2.w{j}.weight",
    "text_embedding.{j}.{wb}",
    "time_embedding.{j}.{wb}",
    "time_projection.1.{wb}",
    "head.modulation",
    "head.head.{wb}",
)
_FUSION = _KeyMap(
    "fusion model",
    _moved(_FUSION_BLOCK, "{tower}_model.blocks.{i}.", "blocks.{i}.{tower}.")
    + _moved(_FUSION_TOWER, "{tower}_model.", "{tower}."),
)

_WAN_RESIDUAL_BLOCKS = (
    ("encoder.downsamples.{i}.downsamples.{j}.", "encoder.down_blocks.{i}.resnets.{j}."),
    ("decoder.upsamples.{i}.upsamples.{j}.", "decoder.up_blocks.{i}.resnets.{j}."),
    ("{side}.middle.0.", "{side}.mid_block.resnets.0."),
    ("{side}.middle.2.", "{side}.mid_block.resnets.1."),
)
_WAN_RESIDUAL_PARTS = (
    ("residual.0.gamma", "norm1.gamma"),
    ("residual.2.{wb}", "conv1.{wb}"),
    ("residual.3.gamma", "norm2.gamma"),
    ("residual.6.{wb}", "conv2.{wb}"),
    ("shortcut.{wb}", "conv_shortcut.{wb}"),
)
_WAN_RESAMPLER = ("resample.1.{wb}", "time_conv.{wb}")
_WAN_ATTENTION = ("norm.gamma", "to_qkv.{wb}", "proj.{wb}")
_VIDEO_VAE = _KeyMap(
    "video VAE",
    (
        *(
            (their_block + their_part, our_block + our_part)
            for their_block, our_block in _WAN_RESIDUAL_BLOCKS
            for their_part, our_part in _WAN_RESIDUAL_PARTS
        ),
        *_moved(_WAN_RESAMPLER, "encoder.downsamples.{i}.downsamples.{j}.", "encoder.down_blocks.{i}.downsampler."),
        *_moved(_WAN_RESAMPLER, "decoder.upsamples.{i}.upsamples.{j}.", "decoder.up_blocks.{i}.upsampler."),
        *_moved(_WAN_ATTENTION, "{side}.middle.1.", "{side}.mid_block.attentions.0."),
        ("{side}.conv1.{wb}", "{side}.conv_in.{wb}"),
        ("{side}.head.0.gamma", "{side}.norm_out.gamma"),
        ("{side}.head.2.{wb}", "{side}.conv_out.{wb}"),
        ("conv1.{wb}", "quant_conv.{wb}"),
        ("conv2.{wb}", "post_quant_conv.{wb}"),
    ),
)

_T5_BLOCK = (
    ("norm1", "0.layer_norm"),
    ("attn.{qkvo}", "0.SelfAttention.{qkvo}"),
    ("pos_embedding.embedding", "0.SelfAttention.relative_attention_bias"),
    ("norm2", "1.layer_norm"),
    ("ffn.gate.0", "1.DenseReluDense.wi_0"),
    ("ffn.fc1", "1.DenseReluDense.wi_1"),
    ("ffn.fc2", "1.DenseReluDense.wo"),
)
_TEXT_ENCODER = _KeyMap(
    "text encoder",
    (
        *((f"blocks.{{i}}.{a}.weight", f"encoder.block.{{i}}.layer.{b}.weight") for a, b in _T5_BLOCK),
        ("token_embedding.weight", "shared.weight"),
        ("norm.weight", "encoder.final_layer_norm.weight"),
    ),
)

_AUDIO_VAE_PARTS = (
    "data_mean",
    "data_std",
    "{side}.learnable_gain",
    "{side}.conv_in.weight",
    "{side}.conv_out.weight",
    "{side}.mid.block_{i}.conv{k}.weight",
    "{side}.mid.attn_1.qkv.weight",
    "{side}.mid.attn_1.proj_out.weight",
    "encoder.down.{i}.block.{j}.conv{k}.weight",
    "encoder.down.{i}.block.{j}.nin_shortcut.weight",
    "encoder.down.{i}.downsample.conv{k}.weight",
    "decoder.up.{i}.block.{j}.conv{k}.weight",
    "decoder.up.{i}.block.{j}.nin_shortcut.weight",
    "decoder.up.{i}.upsample.conv.weight",
)
_AUDIO_VAE = _KeyMap("audio VAE", _moved(_AUDIO_VAE_PARTS, "", "vae."))

_SNAKE = ("act.alpha", "act.beta", "upsample.filter", "downsample.lowpass.filter")
_VOCODER_PARTS = (
    "conv_pre.{wb}",
    "ups.{i}.0.{wb}",
    "resblocks.{i}.convs{j}.{k}.{wb}",
    *(f"resblocks.{{i}}.activations.{{j}}.{part}" for part in _SNAKE),
    *(f"activation_post.{part}" for part in _SNAKE),
    "conv_post.{wb}",
)
_VOCODER = _KeyMap("vocoder", _moved(_VOCODER_PARTS, "", ""))
