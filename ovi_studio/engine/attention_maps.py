"""Which pixels the sound looks at (paper, figure 3): a run, watched, and shown as heat over its clip.

    watch = AttentionWatch(choice)
    engine = OviEngine(…, load=watch.loading(load_pipeline))
    …                                    a run
    write_overlay(clip, watch.seen(), …) its clip again, with heat on what was looked at

In every fusion block the audio tokens attend to all video tokens. The model is not asked for these weights: kernels
never hold them. Hooks keep the queries and keys as the block's own norms give them, and the weights are worked out
beside it, a head at a time: 157 × 15,004 of them at full size, 9 MB, and as much for their mean.

Shape suffixes: A audio tokens, V video tokens, N heads, K head dim, F/H/W the grid of video tokens.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ovi_studio.errors import EngineError
from ovi_studio.media import Clip, Frame, decode_audio, decode_frames, write_clip
from ovi_studio.model.attention import CrossAttention, RotaryTable, apply_rotary
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.request import GenerationRequest
from ovi_studio.variants import Variant, get_variant
from ovi_studio.weights.store import Store

# Of all places of a clip: no heat up to the first percentile, full heat from the second. Guessed, from how it looks.
_COLD, _HOT = 50.0, 99.5
_OPACITY = 0.65  # of full heat; guessed: what is under it can still be made out
_RAMP = np.array([(60, 0, 90), (200, 30, 40), (255, 160, 0), (255, 250, 190)], np.float32)  # from cold to hot


@dataclass(frozen=True)
class Choice:
    """What is averaged.

    Args:
        blocks: indices of fusion blocks.
        steps: indices of sampling steps, from 0.
    """

    blocks: frozenset[int]
    steps: frozenset[int]


@dataclass(frozen=True)
class AttentionMap:
    """How much each audio token looks at each video token.

    Args:
        weights_AV: mean over heads, blocks and steps; every row sums to one. float32, on the CPU.
        grid: frames, rows and columns of video tokens.
    """

    weights_AV: Tensor
    grid: tuple[int, int, int]

    def heat(self) -> Tensor:
        """The share of the whole sound's attention that each place gets, (F, H, W); it sums to one."""
        return self.weights_AV.mean(0).unflatten(0, self.grid)


class AttentionWatch:
    """Watches the audio-to-video attention of one run: the prompt's pass, not the negative one.

    Args:
        choice: what is averaged.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._handles: list[RemovableHandle] = []
        self._forget()

    def loading(self, load: Callable[[Variant, Store], OviPipeline]) -> Callable[[Variant, Store], OviPipeline]:
        """The same loading for an engine, with the watch on what it loads."""

        def watched(variant: Variant, store: Store) -> OviPipeline:
            pipeline = load(variant, store)
            self.attach(pipeline.transformer)
            return pipeline

        return watched

    def attach(self, transformer: OviTransformer) -> None:
        """Watches from now on, and forgets what was seen before. The model computes what it would anyhow."""
        self.detach()
        self._forget()
        self._handles = [transformer.register_forward_pre_hook(self._enter_pass, with_kwargs=True)]
        for index in sorted(self._choice.blocks):
            block: Any = transformer.blocks[index]
            self._watch_block(block.audio.cross_attn)

    def detach(self) -> None:
        """Takes all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def seen(self) -> AttentionMap:
        """The mean of all that was seen.

        Raises:
            EngineError: nothing was.
        """
        if self._sum_AV is None:
            raise EngineError(
                "No attention of the sound to the picture was seen.",
                "Choose blocks and steps that the run goes through, of a clip with picture and sound.",
            )
        return AttentionMap((self._sum_AV / self._count).cpu(), self._grid)

    def _forget(self) -> None:
        self._sum_AV: Tensor | None = None
        self._count = 0  # heads in the sum
        self._grid = (0, 0, 0)
        self._step = -1
        self._timestep = math.nan
        self._active = False

    def _enter_pass(self, transformer: OviTransformer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tells steps apart by their timestep; a second pass of a step is the negative prompts'."""
        video, audio, timestep = args[:3]
        if kwargs.get("only_text") or video is None or audio is None:
            self._active = False
            return
        now = float(timestep[0])
        first = now != self._timestep
        self._step += first
        self._timestep = now
        self._grid = transformer.video.grid(video)
        self._active = first and self._step in self._choice.steps

    def _watch_block(self, attention: CrossAttention) -> None:
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Any, Any, Tensor], None]:
            def hook(_module: Any, _args: Any, normed: Tensor) -> None:
                if self._active:
                    kept[name] = normed[0]

            return hook

        def add(module: CrossAttention, args: tuple[Any, ...], _output: Any) -> None:
            if self._active:
                _x, _text, rotary, _other, other_rotary = args
                self._add(kept.pop("query"), kept.pop("key"), rotary, other_rotary, module.num_heads)

        self._handles += [
            attention.norm_q.register_forward_hook(keep("query")),
            attention.norm_k_fusion.register_forward_hook(keep("key")),
            attention.register_forward_hook(add),
        ]

    @torch.no_grad()
    def _add(self, query_AD: Tensor, key_VD: Tensor, audio: RotaryTable, video: RotaryTable, num_heads: int) -> None:
        """One block's weights, a head at a time."""
        query_ANK, key_VNK = query_AD.unflatten(-1, (num_heads, -1)), key_VD.unflatten(-1, (num_heads, -1))
        for head in range(num_heads):
            query_AK = apply_rotary(query_ANK[:, head : head + 1].float(), audio)[:, 0]
            key_VK = apply_rotary(key_VNK[:, head : head + 1].float(), video)[:, 0]
            weights_AV = (query_AK @ key_VK.T / math.sqrt(query_AK.shape[-1])).softmax(-1)
            self._sum_AV = weights_AV if self._sum_AV is None else self._sum_AV.add_(weights_AV)
        self._count += num_heads


# --- The overlay ------------------------------------------------------------------------------------------


def write_overlay(clip: Clip, seen: AttentionMap, request: GenerationRequest, choice: Choice, path: Path) -> Clip:
    """Writes the clip again, with heat on what its sound looks at: the same frames, size and sound.

    Args:
        clip: that the watched run made.
        seen: its map.
        request: of the run; it is embedded as in any clip, beside what was averaged.
        choice: what was averaged.
        path: of the new mp4.

    Raises:
        MediaError: the clip cannot be read, or the new one not written.
    """
    waveform, sample_rate = decode_audio(clip.path)
    averaged = {"blocks": sorted(choice.blocks), "steps": sorted(choice.steps)}
    return write_clip(
        path,
        frames=_heated(clip, seen, get_variant(request.variant).temporal_factor),
        waveform=waveform,
        fps=round(clip.fps),
        sample_rate=sample_rate,
        metadata={"request": request.embedded(), "attention": averaged},
    )


def _heated(clip: Clip, seen: AttentionMap, frames_per_latent: int) -> Iterator[Frame]:
    """The clip's frames under their heat. Frames that were one latent share theirs."""
    heat_FHW = seen.heat()
    cold, hot = np.percentile(heat_FHW.numpy(), (_COLD, _HOT))
    scaled_FHW = ((heat_FHW - cold) / max(float(hot - cold), 1e-12)).clamp(0, 1)
    for index, frame in enumerate(decode_frames(clip.path)):
        latent = 0 if index == 0 else 1 + (index - 1) // frames_per_latent
        large = F.interpolate(scaled_FHW[latent][None, None], frame.shape[:2], mode="bilinear", align_corners=False)
        yield blend(frame, large[0, 0].numpy())


def blend(frame: Frame, heat: NDArray[np.float32]) -> Frame:
    """A frame under its heat (height, width) in 0…1; where there is none it stays as it is."""
    position = heat * (len(_RAMP) - 1)
    colours = np.stack([np.interp(position, np.arange(len(_RAMP)), channel) for channel in _RAMP.T], axis=-1)
    cover = (_OPACITY * heat)[..., None]
    return np.rint(frame * (1 - cover) + colours * cover).astype(np.uint8)
