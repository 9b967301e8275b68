"""Ranks on this CPU: processes joined by gloo, and a tiny twin transformer to share."""

import contextlib
import functools
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from ovi_studio.model.sampler import FusedSampler, Guidance, Latents, TextStates, draw_noise
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.runtime.execution_plan import Parallel
from ovi_studio.runtime.parallel import Follower, Leader, Member
from ovi_studio.runtime.quantize import Parts
from ovi_studio.runtime.sequence import sequence_parallel
from ovi_studio.runtime.sharding import Sharded

CPU = torch.device("cpu")


def run_world(size: int, work: Callable[[int], Any], timeout: float = 600.0) -> list[Any]:
    """What `work(rank)` returns on each of `size` joined processes; `work` is a function of a module.

    They are forked from a server that has loaded torch and did nothing else: spawned ones would take half a minute
    each, and a fork of the tests' own process may inherit a lock that another thread holds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_rank, args=(size, rank, work, Path(folder))) for rank in range(size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout)
            if process.is_alive():
                process.kill()
        assert [process.exitcode for process in ranks] == [0] * size
        found = [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(size)]
    for rank, (_, error) in enumerate(found):
        assert not error, f"rank {rank}: {error}"
    return [value for value, _ in found]


def _rank(size: int, rank: int, work: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    found: tuple[Any, str] = (None, "ended without a result")
    try:
        dist.init_process_group(
            "gloo", store=FileStore(str(folder / "store"), size), rank=rank, world_size=size,
            timeout=timedelta(seconds=300),
        )  # fmt: skip
        found = (work(rank), "")
    except BaseException:  # noqa: BLE001  told to the parent
        found = (None, traceback.format_exc())
    finally:
        (folder / str(rank)).write_bytes(pickle.dumps(found))
        os._exit(0)


def toy(heads: int = 4, layers: int = 2) -> OviTransformer:
    """A twin transformer of a head dimension with 3-D positions; the same weights in every process."""
    torch.manual_seed(0)
    transformer = OviTransformer(heads, 16, 96, layers, 32, 24, in_channels=4, audio_in_channels=5).eval()
    with torch.no_grad():  # biases and offsets that are not zero; outputs of the size of their inputs
        for parameter in transformer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.ndim == 1) * 0.1)
    return transformer.requires_grad_(False)


@dataclass(frozen=True)
class Clip:
    """A short run of the sampler.

    Args:
        video: latent frames, rows and columns: tokens are frames × rows/2 × columns/2.
        audio: tokens.
    """

    video: tuple[int, int, int] | None
    audio: int | None
    first_frame: bool = False
    skip_layer: int = 1
    batched: bool = True
    cache_text: bool = True
    scales: tuple[float, float] = (4.0, 3.0)
    video_interval: tuple[float, float] = (0.0, 1.0)
    steps: int = 2

    def sample(self, transformer: OviTransformer) -> list[torch.Tensor]:
        """The latents at its end."""
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        noise = draw_noise(
            None if self.video is None else (4, *self.video),
            None if self.audio is None else (self.audio, 5),
            generators,
        )
        text = TextStates(*torch.randn(3, 1, 6, 24, generator=torch.Generator().manual_seed(3)).unbind())
        frame = None
        if self.first_frame and self.video is not None:
            frame = torch.randn(1, 4, 1, *self.video[1:], generator=torch.Generator().manual_seed(4))
        guidance = Guidance(
            *self.scales, self.skip_layer, self.batched,
            video_interval=self.video_interval, audio_interval=self.video_interval,
        )  # fmt: skip
        with torch.no_grad():
            sampler = FusedSampler(transformer, text, guidance, "unipc", 5.0, self.steps, frame, self.cache_text)
            latents: Latents = sampler.begin(noise)
            for index in range(self.steps):
                latents = sampler.step(latents, index)
        return [x for x in (latents.video, latents.audio) if x is not None]


@dataclass
class Sent:
    """Bytes that a rank sent, seen at torch's own functions.

    Args:
        exchanged: by the exchanges of the run.
        weights: by torch's sharding.
        counted: what the exchanges themselves counted.
    """

    exchanged: int = 0
    weights: int = 0
    counted: int = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, what goes through torch's functions is counted."""
        names = ("all_to_all_single", "all_gather", "broadcast", "send")
        shards = [name for name in ("all_gather_into_tensor", "all_gather_single") if hasattr(dist, name)]
        with contextlib.ExitStack() as undo:
            for name in (*names, *shards):
                real = getattr(dist, name)
                undo.callback(setattr, dist, name, real)
                setattr(dist, name, functools.partial(self._count, name, real))
            yield

    def _count(self, name: str, real: Callable[..., Any], *args: Any, group: Any = None, **kwargs: Any) -> Any:
        others = dist.get_world_size(group) - 1
        match name:
            case "all_to_all_single":
                own = args[3][dist.get_rank(group)]
                self.exchanged += (args[1].numel() - own) * args[1].element_size()
            case "all_gather":
                self.exchanged += others * args[1].nbytes
            case "broadcast":
                self.exchanged += others * args[0].nbytes if args[1] == dist.get_rank() else 0
            case "send":
                self.exchanged += args[0].nbytes
            case _:
                self.weights += others * (kwargs.get("input_tensor", args[1] if len(args) > 1 else None)).nbytes
        return real(*args, group=group, **kwargs)


def sample_together(
    member: Member, clip: Clip, transformer: OviTransformer, sharded: bool = False, compiled: bool = False
) -> tuple[list[torch.Tensor], Sent]:
    """The clip, sampled by all ranks; rank 0 has it."""
    sent = Sent()
    with contextlib.ExitStack() as undo:
        undo.enter_context(sent.listening())
        if sharded:
            Sharded(transformer, Parts(transformer, transformer.blocks, "float32", CPU, CPU), member.mesh())
        for block in transformer.blocks if compiled else ():  # traced, but no code is generated: it takes minutes
            block.forward = torch.compile(block.forward, backend="eager")
        if member.group.size > 1:
            undo.enter_context(sequence_parallel(transformer, member.group))
        latents: list[torch.Tensor] = []
        if member.rank == 0:
            leader = Leader(member, functools.partial(tell, member))
            with leader.leading(transformer):
                latents = clip.sample(transformer)
            tell(member, None)
        else:
            follower = Follower(member, transformer)
            while (order := hear(member)) is not None:
                follower.obey(order)
    sent.counted = sum(exchange.sent_bytes for exchange in member.exchanges)
    return latents, sent


def tell(member: Member, order: Any) -> None:
    dist.broadcast_object_list([order], 0, member.everyone.group)


def hear(member: Member) -> Any:
    heard = [None]
    dist.broadcast_object_list(heard, 0, member.everyone.group)
    return heard[0]


def parallel(guidance_groups: int, sequence: int) -> Parallel:
    gpus = guidance_groups * sequence
    return Parallel(gpus, guidance_groups, sequence, ("cpu",) * gpus)
