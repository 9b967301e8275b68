"""Puts an `ExecutionPlan` on an `OviPipeline` from outside, and takes it off again.

    with AppliedPlan(pipeline, plan, folder) as placed:
        with placed.stage("encode text"):
            text = pipeline.encode_prompts(...)
        with placed.stage("first frame"):
            first_frame = pipeline.encode_image(...)
        with placed.stage("denoise"):
            ...  # FusedSampler(..., Guidance(batched=plan.guidance == "batched"), cache_text=plan.text_cache)
        with placed.stage("decode"):
            waveform = pipeline.decode_audio(...)
            for frames in placed.decode_video(latents): ...

A stage brings the weights that it needs and sends away those that take turns; it is named as in `events.Stage`, and
stages do not overlap. "load" and "mux" need nothing. Work belongs inside of its stage: outside of it a component that
does not stay on the device is in host memory or mapped from a file.

Weights that are mapped from their files are read here, part by part: each goes to its home or to the card in the
plan's precision before the next one is touched, so that the host never holds more than the plan says.

When the plan is taken off, every weight is on the CPU and, where the plan changed no precision, bit by bit what it
was. Narrowed weights stay narrowed: `must_reload` says whether another plan can still be put on. What is on the card
need not be copied home: `close("stay")` is for a plan that follows, `close("discard")` for a pipeline that is not
used any more.

Adapters are put on the transformer before the plan, which fuses them where it narrows weights. Text cache and guidance
are the sampler's arguments; of a generated first frame only the encoding is here. A plan for several cards is put on in
every rank of a team (`parallel.py`).
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from accelerate.hooks import ModelHook
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn

from ovi_studio.errors import EngineError
from ovi_studio.events import Stage
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.transformer import FusionBlock, OviTransformer
from ovi_studio.model.video_vae import decode_frames
from ovi_studio.runtime.execution_plan import ComponentName, ComponentPlan, ExecutionPlan
from ovi_studio.runtime.homes import HomeStore, give_back_freed
from ovi_studio.runtime.parallel import EnterStage, Leader, LeaveStage, Team
from ovi_studio.runtime.quantize import Parts, can_become
from ovi_studio.runtime.sequence import sequence_parallel
from ovi_studio.runtime.sharding import Sharded
from ovi_studio.runtime.split_decode import SplitDecode
from ovi_studio.runtime.step_cache import FirstBlockCache
from ovi_studio.runtime.streaming import ForwardWraps, Leaving, Placed, Resident, Staged, StagedWhole, Streamed
from ovi_studio.weights.load import lies_in_files, note_in_files

_NEEDED: Mapping[Stage, tuple[ComponentName, ...]] = {
    "draw frame": (),
    "load": (),
    "encode text": ("text_encoder",),
    "first frame": ("video_vae",),
    "denoise": ("transformer",),
    "decode": ("video_vae", "audio_vae", "vocoder"),
    "mux": (),
}
_COMPUTED: tuple[ComponentName, ...] = ("audio_vae", "vocoder")  # as they are loaded, so that they are in memory then
# Kinds of passes (3), with a clean first frame or without, of both streams or one, at one size or at any: 36. Beyond
# its limit (8 by default) torch silently stops compiling.
_MAX_GRAPHS = 64


def must_reload(pipeline: OviPipeline, plan: ExecutionPlan) -> bool:
    """Whether the plan needs bits that an earlier one took from the weights: then they have to be loaded anew."""
    return not all(can_become(module, planned.precision) for _, module, planned in _planned_components(pipeline, plan))


class AppliedPlan:
    """A plan on a pipeline, from construction to `close`. One at a time.

    Args:
        pipeline: with its weights anywhere.
        plan: for the same variant.
        folder: existing, on the disk that weights are streamed from; files in it last as long as the plan.
        team: of a plan for several cards, in which this process is a rank.

    Raises:
        EngineError: the pipeline must be reloaded, a package is missing, the disk is full, or the plan is for another
            variant or number of cards. The pipeline is then as after `close`.
        OutOfMemoryError: host memory cannot be pinned.
    """

    def __init__(self, pipeline: OviPipeline, plan: ExecutionPlan, folder: Path, team: Team | None = None) -> None:
        _check(pipeline, plan, team)
        self.pipeline = pipeline
        self.plan = plan
        self.team = team
        self._leader: Leader | None = None
        self._device = torch.device(plan.device)
        self._placed: dict[ComponentName, Placed] = {}
        self._step_cache: FirstBlockCache | None = None
        self._leaving: Leaving = "home"
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:  # takes off what was put on, if anything fails
            self._put_on(undo, folder)
            self._undo = undo.pop_all()

    def __enter__(self) -> "AppliedPlan":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, leaving: Leaving = "home") -> None:
        """Takes the plan off; a second call does nothing.

        Args:
            leaving: where the weights are then that are on the card for the whole run; with "discard" nowhere, and
                the pipeline is of no use.
        """
        self._leaving = leaving
        self._undo.close()
        self._placed = {}
        self._free()

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """While this lasts, what the stage needs is on the device; on those of a whole team where they share it."""
        with contextlib.ExitStack() as leaving:
            leaving.callback(self._free)
            shared = name == "denoise" or (name == "decode" and self.plan.vae_tiling == "split")
            if shared and self.team is not None and self.team.send is not None:
                self.team.send(EnterStage(name))
                leaving.callback(self.team.send, LeaveStage())
            if self._leader is not None:
                leaving.callback(self._leader.forget)
            for component in _NEEDED[name]:
                if component in self._placed:
                    leaving.callback(self._placed[component].leave)
                    self._placed[component].enter()
            if name == "decode" and self.plan.vae_tiling != "none":
                self.pipeline.video_vae.enable_tiling()  # not before: it would tile the first frame's encoding too
                leaving.callback(self.pipeline.video_vae.disable_tiling)
            if name == "denoise" and self._step_cache is not None:
                leaving.callback(self._step_cache.forget)
            yield

    @torch.no_grad()
    def decode_video(self, latents_BCFHW: Tensor) -> Iterator[Tensor]:
        """`OviPipeline.decode_video`, with the tiles in the plan's order."""
        tile_by_tile, tiles = self.plan.vae_tiling == "tile_by_tile", None
        if self.plan.vae_tiling == "split" and self.team is not None and self.team.send is not None:
            tiles = SplitDecode(self.team.member, self.team.send, self.team.at_work)
        for frames_BCFHW in decode_frames(self.pipeline.video_vae, latents_BCFHW, tile_by_tile, tiles):
            yield frames_BCFHW[0].transpose(0, 1)

    def _put_on(self, undo: contextlib.ExitStack, folder: Path) -> None:
        """Everything, from the innermost out: compiled blocks, weights in their places, step cache."""
        transformer = self.pipeline.transformer
        components = list(_planned_components(self.pipeline, self.plan))

        # 1. The transformer's own settings
        wraps = ForwardWraps()
        undo.callback(wraps.remove)
        if self.plan.ffn_chunks > 1:
            undo.enter_context(_feed_forward_in_parts(transformer, self.plan.ffn_chunks))
        if self.plan.compile:
            undo.enter_context(torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS))
            _compile_blocks(transformer, wraps)
        if self.plan.attention_backend != "native":
            undo.enter_context(_attention_backend(transformer, self.plan.attention_backend))

        # 2. Precisions and places. First what leaves the card, then what stays; of each first what is in memory already
        components.sort(key=lambda component: (component[2].placement == "resident", component[0] not in _COMPUTED))
        for name, module, planned in components:
            self._placed[name] = self._place(name, module, planned, undo, folder)
            hook = ModelHook()  # diffusers asks it where the pipeline is run
            hook.execution_device = self._device
            module._hf_hook = hook
            undo.callback(delattr, module, "_hf_hook")
        self._free()

        # 3. Step cache, outermost: a block that it leaves out is not streamed either
        if self.plan.step_cache == "first_block":
            self._step_cache = FirstBlockCache(self.plan.step_cache_threshold)
            undo.enter_context(self._step_cache.on(transformer))

        # 4. Several cards: the tokens, around what runs on one, and the passes
        if self.team is not None:
            if self.team.member.group.size > 1:
                undo.enter_context(sequence_parallel(transformer, self.team.member.group))
            if self.team.send is not None:
                self._leader = Leader(self.team.member, self.team.send, self.team.at_work)
                undo.enter_context(self._leader.leading(transformer))

    def _place(
        self, name: ComponentName, module: nn.Module, planned: ComponentPlan, undo: contextlib.ExitStack, folder: Path
    ) -> Placed:
        """Brings a component into its precision and to its place, part by part."""
        if planned.home == "disk":
            temporary = tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder, ignore_cleanup_errors=True)
            folder = Path(undo.enter_context(temporary))
        pin = planned.placement == "streamed" and self._device.type == "cuda"
        store = HomeStore(planned.home, pin=pin, folder=folder, name=name)
        undo.callback(store.close)
        keep_on = self._device if planned.placement in ("resident", "sharded") else torch.device("cpu")
        parts = Parts(module, _blocks(module), planned.precision, self._device, keep_on)
        if planned.placement == "sharded" and self.team is not None:
            placed: Placed = Sharded(module, parts, self.team.member.mesh())
        elif planned.placement == "streamed":
            placed = Streamed(parts, planned.resident_blocks, planned.outside_resident, self._device, store)
        elif planned.placement == "staged" and planned.precision != "nf4":
            placed = Staged(parts, self._device, store, move=planned.home == "disk" or lies_in_files(module))
        else:
            parts.all()
            placed = Resident(module) if planned.placement == "resident" else StagedWhole(module, self._device)
        note_in_files(module, planned.home == "disk")
        undo.callback(lambda: placed.remove(self._leaving))
        return placed

    def _free(self) -> None:
        """Memory that the allocators hold in pieces of one stage's sizes is of no use to the next."""
        give_back_freed()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _check(pipeline: OviPipeline, plan: ExecutionPlan, team: Team | None) -> None:
    if pipeline.variant.name != plan.variant:
        raise EngineError(
            f"The plan is for {plan.variant} and the pipeline is {pipeline.variant.name}.", "Plan the run anew."
        )
    if (there := 1 if team is None else team.member.parallel.gpus) != plan.parallel.gpus:
        raise EngineError(f"The plan is for {plan.parallel.gpus} cards, and {there} take part.", "Plan the run anew.")


def _planned_components(
    pipeline: OviPipeline, plan: ExecutionPlan
) -> Iterator[tuple[ComponentName, nn.Module, ComponentPlan]]:
    """The pipeline's components that the plan knows."""
    for name, planned in plan.components.items():
        if isinstance(module := pipeline.components.get(name), nn.Module):
            yield name, module, planned


def _blocks(component: nn.Module) -> Sequence[nn.Module]:
    """What repeats in a transformer or text encoder; of other components nothing does."""
    if isinstance(component, OviTransformer):
        return list(component.blocks)
    encoder = getattr(component, "encoder", None)
    return list(getattr(encoder, "block", ()))


# --- Settings of the transformer --------------------------------------------------------------------------


class _InParts(nn.Sequential):
    """A feed-forward layer that takes its tokens (B, L, D) in parts."""

    parts: int

    def forward(self, x_BLD: Tensor) -> Tensor:
        whole = super().forward
        return torch.cat([whole(part) for part in x_BLD.chunk(self.parts, dim=1)], dim=1)


@contextlib.contextmanager
def _feed_forward_in_parts(transformer: OviTransformer, count: int) -> Iterator[None]:
    """Feed-forward layers take the tokens in `count` parts.

    They change their class and nothing else: no weight gets another name, and compiled code, which is bound to the
    functions that it was made from, still serves all blocks.
    """
    blocks = cast("Iterable[FusionBlock]", transformer.blocks)
    layers = [half.ffn for block in blocks for half in (block.video, block.audio)]
    for layer in layers:
        layer.__class__ = _InParts
        layer.parts = count  # type: ignore[assignment]  # a Sequential's attributes are taken for modules
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Sequential
            del layer.parts


def _compile_blocks(transformer: OviTransformer, wraps: ForwardWraps) -> None:
    """Regional compilation: all blocks share what is compiled for the first.

    There is one graph for each kind of pass: latents of one sample for the texts of both, of both, and of one (the
    block that the negative pass skips; steps without guidance). Each is made once more when another clip size comes,
    and then serves every size. Projections of the text, once a run, are plain products and stay as they are.

    diffusers' `compile_repeated_blocks` compiles a block with the hooks around it, which are not for a compiler: they
    copy weights, look at events, and may leave the block out. So the `forward` inside of them is compiled.
    """

    def run(plain: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return (plain if kwargs.get("only_text") else compiled)(*args, **kwargs)

    for block in transformer.blocks:
        wraps.replace(block, functools.partial(run, block.forward, torch.compile(block.forward)))


@contextlib.contextmanager
def _attention_backend(transformer: OviTransformer, name: str) -> Iterator[None]:
    """Attention kernels of this transformer. The process's default, which diffusers sets too, is put back at once."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        transformer.set_attention_backend(name)
    except (RuntimeError, ValueError, ImportError) as error:  # it is not there, or too old
        raise EngineError(
            f"The attention kernel {name!r} cannot be used: {error}",
            "Install the newest version of its package, or remove the package: torch has a kernel of its own.",
        ) from error
    _AttentionBackendRegistry.set_active_backend(before)
    try:
        yield
    finally:
        transformer.reset_attention_backend()
