"""Weights from files into a pipeline: tensor by tensor, to the device and in the precision where they will stay.

    load_weights(variant, files, …)  → `OviPipeline`
    load_component(component, …)     → one of its five modules

A component is built on the meta device, where it takes no memory. Its files' headers are compared with it, so that
nothing is read of a file that does not fit. Then each tensor is read into memory of its own (a mapped file would
count twice); where it must be moved or cast, piece by piece: the host holds the model and one piece. Or it stays in
its file, mapped into memory, for a plan that brings it from there to its place.

Weights that are stored in float8 stay so in the linear layers (`float8.py`) and are widened elsewhere, which loses
nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer

from ovi_studio.arithmetic import Component
from ovi_studio.errors import WeightsError
from ovi_studio.model import components
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.variants import Variant
from ovi_studio.weights import convert
from ovi_studio.weights.float8 import Float8Linear
from ovi_studio.weights.headers import FLOATS, FLOATS_8, PICKLES, TensorInfo, joined, read_header
from ovi_studio.weights.layouts import TITLES, Layout, WeightFiles, recognise, together
from ovi_studio.weights.pickles import DTYPES, as_safetensors, tensors_in

StateDict = Mapping[str, Tensor]

_REMEDY = "Check that the file belongs to this model, or download it again."
_LISTED = 3  # tensors of a kind that a message names
_PIECE_BYTES = 32 << 20  # guessed: few calls, and little beside the model


_IN_FILES = "_ovi_in_files"  # attribute of a component whose weights lie in mapped files


@dataclass(frozen=True)
class Destination:
    """Where a component's weights go, and in which type they are there (the vocoder's are always float32).

    Args:
        device: in whose memory.
        dtype: None leaves each tensor in the type that it is stored in (float8 outside of linear layers is widened).
        mapped: leave tensors that are of this type already in their files, mapped into memory: nothing is read before
            it is used, and what is changed changes in memory only. The files must stay as they are meanwhile.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = torch.bfloat16
    mapped: bool = False


IN_FILES = Destination(dtype=None, mapped=True)  # for a plan that brings every weight to its place


def lies_in_files(component: nn.Module) -> bool:
    """Whether the component's weights, or some of them, are mapped from files."""
    return bool(vars(component).get(_IN_FILES, False))


def note_in_files(component: nn.Module, in_files: bool) -> None:
    """From now on `lies_in_files` says so."""
    vars(component)[_IN_FILES] = in_files


@dataclass(frozen=True)
class _Recipe:
    """How a component is built, and how its names are the checkpoint's.

    Args:
        build: the module, from a variant.
        from_checkpoint: the checkpoint's tensors to the module's.
        to_checkpoint: and back; here for the names and shapes that a checkpoint must have.
        computed: whether `from_checkpoint` calculates with the tensors; else it only renames them.
    """

    build: Callable[[Variant], Any]
    from_checkpoint: Callable[[StateDict], dict[str, Tensor]]
    to_checkpoint: Callable[[StateDict], dict[str, Tensor]]
    computed: bool = False


# Those that compute come first: what they need besides is freed before the large ones are loaded.
_RECIPES: Mapping[Component, _Recipe] = {
    "vocoder": _Recipe(components.build_vocoder, convert.vocoder_from_checkpoint, convert.vocoder_to_checkpoint, True),
    "audio_vae": _Recipe(
        components.build_audio_vae, convert.audio_vae_from_checkpoint, convert.audio_vae_to_checkpoint, True
    ),
    "video_vae": _Recipe(
        components.build_video_vae, convert.video_vae_from_checkpoint, convert.video_vae_to_checkpoint
    ),
    "text_encoder": _Recipe(
        components.build_text_encoder, convert.text_encoder_from_checkpoint, convert.text_encoder_to_checkpoint
    ),
    "transformer": _Recipe(components.build_transformer, convert.fusion_from_checkpoint, convert.fusion_to_checkpoint),
}
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}  # the text encoder's second name of one tensor


def load_weights(
    variant: Variant,
    files: WeightFiles,
    destination: Destination,
    others: Mapping[Component, Destination] | None = None,
    loaded: Callable[[Component], None] = lambda _: None,
) -> OviPipeline:
    """A variant's pipeline with the weights of these files.

    Args:
        variant: the model.
        files: where its weights are; pickles are converted beside themselves first, once.
        destination: of all components.
        others: destinations of components that go elsewhere.
        loaded: is told each component when it is there.

    Raises:
        WeightsError: a file is missing, damaged or of another model; nothing is left half loaded.
    """
    modules: dict[str, Any] = {}
    for component in _RECIPES:
        goal = (others or {}).get(component, destination)
        modules[component] = load_component(component, variant, files.of(component), goal)
        loaded(component)
    return OviPipeline(tokenizer=_tokenizer(files.tokenizer), variant=variant.name, **modules)


def load_component(component: Component, variant: Variant, paths: Sequence[Path], destination: Destination) -> Any:
    """One component with the weights of these files (shards, or the two towers of a transformer).

    Raises:
        WeightsError: a file is missing, damaged or of another model, or a tensor is missing, too many, misshaped or of
            a type that no weight has; it is named with its file.
    """
    recipe = _RECIPES[component]
    layout, module = _checked(component, variant, [as_safetensors(path) for path in paths])
    dtype = torch.float32 if component == "vocoder" else destination.dtype
    goal = Destination(torch.device(destination.device), dtype, destination.mapped)
    if layout.naming == "checkpoint" and recipe.computed:
        state = _computed(recipe, layout, goal)
    else:
        state = _renamed(recipe, layout, module, goal)
    for name, source in _TIED.items():
        if source in state and name in module.state_dict():
            state[name] = state[source]
    module.load_state_dict(state, assign=True)
    if component == "text_encoder":
        module.tie_weights()
    module.requires_grad_(False)
    note_in_files(module, goal.mapped)
    return module


def check_files(component: Component, variant: Variant, paths: Sequence[Path]) -> Layout:
    """What the files hold, if they would load; only headers are read, and pickles are not converted.

    Raises:
        WeightsError: as `load_component`.
    """
    layout, _ = _checked(component, variant, paths)
    return layout


def _checked(component: Component, variant: Variant, paths: Sequence[Path]) -> tuple[Layout, Any]:
    """The files' layout, and the module on the meta device that it was compared with."""
    if not paths:
        raise WeightsError(f"No file was given for the {TITLES[component]}.", "Download or import it.")
    layout = _merged(variant, paths)
    if layout.component != component:
        raise WeightsError(
            f"{_names(paths)} holds a {layout.title} and no {TITLES[component]}.", "Give the right file."
        )
    recipe = _RECIPES[component]
    with components.on_meta():
        module = recipe.build(variant)
    _check(layout, _expected(recipe, layout, module))
    return layout, module


def _merged(variant: Variant, paths: Sequence[Path]) -> Layout:
    """One layout of shards, which make sense only together, or of two towers, which may have the same names."""
    headers = [tensors_in(path) if path.suffix in PICKLES else read_header(path).tensors for path in paths]
    if len(headers) == 2:
        try:
            return together([recognise(header, variant) for header in headers])
        except WeightsError:  # two shards of one model
            pass
    return together([recognise(joined(headers), variant)])


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{folder} holds no tokenizer that can be read.", "Fetch it: ovi-studio models download tokenizer."
        ) from error


# --- Checking ---------------------------------------------------------------------------------------------


def _expected(recipe: _Recipe, layout: Layout, module: nn.Module) -> dict[str, Tensor]:
    """The tensors that must be in the files, under the names of their layout; on the meta device."""
    state = module.state_dict()
    if layout.naming == "checkpoint":
        return recipe.to_checkpoint(state)
    return {name: tensor for name, tensor in state.items() if name not in _TIED}


def _check(layout: Layout, expected: StateDict) -> None:
    """Compares headers with the model, before anything is read."""
    found, files = layout.tensors, sorted({info.file for info in layout.tensors.values()})
    title = TITLES[layout.component]
    if missing := [name for name in expected if name not in found]:
        raise WeightsError(f"{_names(files)} lacks {_listed(missing)} of the {title}.", _REMEDY)
    extra = [info for name, info in found.items() if name not in expected]
    extra += [info for name, info in layout.scales.items() if name not in found or found[name].dtype not in FLOATS_8]
    if extra:
        raise WeightsError(f"{extra[0].file} has {_listed([i.name for i in extra])} that no {title} has.", _REMEDY)
    for name, info in found.items():
        _check_tensor(info, tuple(expected[name].shape), layout.scales.get(name))


def _check_tensor(info: TensorInfo, shape: tuple[int, ...], scale: TensorInfo | None) -> None:
    if info.shape != shape:
        raise WeightsError(
            f"In {info.file} the tensor {info.name!r} has the shape {info.shape} and not {shape}.", _REMEDY
        )
    if info.dtype not in FLOATS | FLOATS_8:
        raise WeightsError(
            f"In {info.file} the tensor {info.name!r} is of type {info.dtype}, which no weight has.",
            "Use a file in float32, bfloat16, float16 or float8.",
        )
    if scale is not None and (scale.dtype not in FLOATS or scale.shape not in {(), (1,), shape[:1], (*shape[:1], 1)}):
        raise WeightsError(
            f"In {scale.file} the scale {scale.name!r} is of type {scale.dtype} and shape {scale.shape}; "
            f"it must be one number, or one for each of {shape[0]} rows.",
            "Use a file whose scales are per tensor or per row.",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    kind = "the tensor" if len(names) == 1 else f"{len(names)} tensors,"
    return f"{kind} {', '.join(map(repr, names[:_LISTED]))}{more}"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


# --- Reading ----------------------------------------------------------------------------------------------


def _computed(recipe: _Recipe, layout: Layout, goal: Destination) -> dict[str, Tensor]:
    """Read as it is, then put through the key map, which calculates in float32 (the two small audio parts)."""
    stored = _read_all(layout, Destination("cpu", torch.float32, goal.mapped))
    return {name: tensor.to(goal.device, goal.dtype) for name, tensor in recipe.from_checkpoint(stored).items()}


def _renamed(recipe: _Recipe, layout: Layout, module: nn.Module, goal: Destination) -> dict[str, Tensor]:
    """Read under the module's names; linear layers that are stored in float8 are replaced in the module."""
    names = {name: name for name in layout.tensors}
    if layout.naming == "checkpoint":
        meta = {name: torch.empty(info.shape, device="meta") for name, info in layout.tensors.items()}
        theirs = {id(tensor): name for name, tensor in meta.items()}
        names = {theirs[id(tensor)]: name for name, tensor in recipe.from_checkpoint(meta).items() if name not in _TIED}
    kept = {}
    for name, info in layout.tensors.items():
        stem, _, part = names[name].rpartition(".")
        layer = module.get_submodule(stem)
        if info.dtype in FLOATS_8 and part == "weight" and isinstance(layer, nn.Linear):
            scales = _count(layout.scales[name].shape) if name in layout.scales else 0
            parent, _, child = stem.rpartition(".")
            setattr(module.get_submodule(parent), child, Float8Linear.like(layer, DTYPES[info.dtype], scales))
            kept[name] = stem
    return _read_all(layout, goal, names, kept)


def _read_all(
    layout: Layout,
    goal: Destination,
    names: Mapping[str, str] | None = None,
    kept: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """The layout's tensors, in the order of the files.

    Args:
        layout: what to read.
        goal: where to, and in which type.
        names: what to call them.
        kept: those that keep their float8 codes and scales, and the module that they belong to.
    """
    state: dict[str, Tensor] = {}
    kept = kept or {}
    ordered = sorted(layout.tensors.items(), key=lambda item: (item[1].file, item[1].start))
    with _Files(goal.mapped) as files:
        for name, info in ordered:
            ours = names[name] if names else name
            dtype = goal.dtype or (torch.bfloat16 if info.dtype in FLOATS_8 else DTYPES[info.dtype])
            scale = files.read(layout.scales[name], goal.device, torch.float32) if name in layout.scales else None
            if name in kept:
                state[ours] = files.read(info, goal.device).view(torch.int8)
                if scale is not None:
                    state[f"{kept[name]}.scale"] = scale.view(-1, 1).view(torch.int32)
            elif scale is not None:
                rows = scale.view(-1, *[1] * (len(info.shape) - 1))
                state[ours] = (files.read(info, goal.device, torch.float32) * rows).to(dtype)
            else:
                state[ours] = files.read(info, goal.device, dtype)
    return state


class _Files:
    """Files that stay open while their tensors are read.

    Args:
        mapped: leave tensors that are wanted as they are stored in the file.
    """

    def __init__(self, mapped: bool) -> None:
        self._mapped = mapped
        self._open: dict[Path, BinaryIO] = {}
        self._maps: dict[Path, Any] = {}
        self._piece = torch.empty(_PIECE_BYTES, dtype=torch.uint8)  # one for all: freed pieces would fragment the heap

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self, info: TensorInfo, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """A tensor, in `dtype` or as it is stored; a cast or a move goes piece by piece.

        It is in memory of its own, or in the mapped file.
        """
        stored = DTYPES[info.dtype]
        if torch.device(device).type == "cpu" and dtype in (None, stored):
            if self._mapped:
                return self._map(info)
            return self._fill(torch.empty(info.size, dtype=torch.uint8), info, 0).view(stored).view(info.shape)
        tensor = torch.empty(info.shape, dtype=dtype or stored, device=device)
        flat, step = tensor.view(-1), _PIECE_BYTES // stored.itemsize
        for start in range(0, len(flat), step):
            target = flat[start : start + step]
            piece = self._fill(self._piece[: len(target) * stored.itemsize], info, start * stored.itemsize)
            target.copy_(piece.view(stored))
        return tensor

    def _map(self, info: TensorInfo) -> Tensor:
        if info.file not in self._maps:
            self._maps[info.file] = safe_open(info.file, framework="pt")
        return cast("Tensor", self._maps[info.file].get_tensor(info.name))

    def _fill(self, data: Tensor, info: TensorInfo, start: int) -> Tensor:
        """Fills `data` with bytes of a stored tensor, from its byte `start` on."""
        file = self._open.get(info.file)
        if file is None:
            file = self._open[info.file] = info.file.open("rb", buffering=0)
        view = memoryview(data.numpy())  # type: ignore[arg-type]  # numpy's stubs know buffers from Python 3.12 on
        file.seek(info.start + start)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise WeightsError(f"{info.file} ended while {info.name!r} was read.", "Copy or download it again.")
            done += count
        return data


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
