"""One clip on several cards: how the ranks of a run share the transformer's passes.

    rank = group × sequence + place           guidance_groups × sequence ranks, one a card

             places of a group share the video tokens (`sequence.py`)
    group 0  ranks 0 … s-1      the prompt's pass
    group 1  ranks s … 2s-1     the negative prompts' pass: nothing is exchanged between the groups but its result

Rank 0 leads: it has the sampler, the text encoder and the clip, and runs them as on one card. Its transformer is
wrapped: every call of it becomes an *order* to the others, who have the transformer alone, and follow. Latents come
from rank 0 at every step, so that rounding which differs from card to card never adds up.

    Leader(member, send).leading(transformer)      on rank 0
    Follower(member, transformer).obey(order)      on the others, for every order that `send` sent

Orders travel outside of torch's exchanges (`engine/crew.py`): who waits for one is in no collective, and can be told
that the run is over. The tensors that belong to an order follow it by broadcast.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ovi_studio.events import Stage
from ovi_studio.model.attention import KeyValue
from ovi_studio.model.transformer import OviTransformer, OviTransformerOutput, TextKeyValues, first_text
from ovi_studio.runtime.collectives import Exchange
from ovi_studio.runtime.execution_plan import Parallel
from ovi_studio.runtime.streaming import ForwardWraps

Velocities: TypeAlias = tuple[Tensor | None, Tensor | None]
AllKeyValues: TypeAlias = tuple[TextKeyValues, ...]


class Member:
    """This process's place among the ranks of a run. Made on every rank, at the same time.

    Args:
        parallel: how the work is shared.
        rank: of this process.
        device: where it computes.

    Attributes:
        everyone: all ranks of the run.
        group: those that share this rank's pass.
        heads: the first ranks of all groups; None on a rank that is none of them, and where there is one group.
        group_number: which of the groups this rank is in.
    """

    def __init__(self, parallel: Parallel, rank: int, device: torch.device) -> None:
        self.parallel = parallel
        self.rank = rank
        self.device = device
        self.group_number = rank // parallel.sequence
        ranks = range(parallel.gpus)
        groups = [ranks[start : start + parallel.sequence] for start in ranks[:: parallel.sequence]]
        self._torch_groups: list[dist.ProcessGroup] = []
        self.everyone = self._join(ranks) or Exchange((rank,), None, rank)
        joined = [self._join(group) for group in groups]
        self.group = joined[self.group_number] or Exchange((rank,), None, rank)
        self.heads = self._join(ranks[:: parallel.sequence]) if len(groups) > 1 else None

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All that this rank takes part in."""
        return tuple(x for x in (self.everyone, self.group, self.heads) if x is not None)

    def mesh(self) -> DeviceMesh:
        """All ranks, for torch's sharding."""
        if self.everyone.group is None:
            raise RuntimeError("a rank that is alone has nobody to share weights with")
        return DeviceMesh.from_group(self.everyone.group, self.device.type)

    def abort(self) -> None:
        """Ends the exchanges under way, from another thread: who waits in one gets an error."""
        for group in self._torch_groups:
            with contextlib.suppress(RuntimeError):  # gloo cannot: its exchanges end with their connections
                group.abort()

    def _join(self, ranks: Sequence[int]) -> Exchange | None:
        """The exchange of these; None if this rank is none of them. All ranks of the run make it together."""
        if len(ranks) == 1:
            return None
        group = dist.new_group(list(ranks))
        if self.rank not in ranks or not isinstance(group, dist.ProcessGroup):
            return None
        self._torch_groups.append(group)
        return Exchange(ranks, group, self.rank)


# --- Orders -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Like:
    """What a tensor that follows an order looks like."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor | None) -> "Like | None":
        """Of a tensor; None of none."""
        return None if tensor is None else cls(tuple(tensor.shape), tensor.dtype)


@dataclass(frozen=True)
class ProjectText:
    """Compute the text's keys and values, and keep them under `key`; the texts of both streams follow."""

    key: int
    texts: tuple[Like | None, Like | None]


@dataclass(frozen=True)
class Forward:
    """One call of the transformer.

    Args:
        latents: and timestep: what follows, in this order: video, audio, timestep, the texts of both streams.
        texts: where they are not projected beforehand.
        key: of the projected text, where there is one.
        samples: of the call.
        first_frame_is_clean: and the rest: as the transformer has it.
        skip_layer: see above.
        skip_from: see above.
    """

    latents: tuple[Like | None, Like | None]
    timestep: Like
    texts: tuple[Like | None, Like | None]
    key: int | None
    samples: int
    first_frame_is_clean: bool
    skip_layer: int
    skip_from: int


@dataclass(frozen=True)
class EnterStage:
    """Bring what the stage needs."""

    stage: Stage


@dataclass(frozen=True)
class LeaveStage:
    """The stage is over: what it needed, projected texts too, is not needed any more."""


PassOrder: TypeAlias = ProjectText | Forward


@dataclass(frozen=True)
class Team:
    """The ranks of a run, as one of them sees them.

    Args:
        member: this rank.
        send: on rank 0, gives an order to all others.
        at_work: on rank 0, around what exchanges something; see `engine/crew.py`.
    """

    member: Member
    send: Callable[[object], None] | None = None
    at_work: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


class Passes:
    """The transformer's calls as every rank of the run does its part of them.

    Samples (the prompt's, the negative prompts') are shared by the groups where they divide; what does not divide,
    such as a step without guidance, is run by all groups alike, so that every rank is in every exchange.

    Args:
        member: this rank.
        forward: the transformer's, of one card.
    """

    def __init__(self, member: Member, forward: Callable[..., Any]) -> None:
        self._member = member
        self._forward = forward
        self._texts: dict[int, AllKeyValues] = {}

    def project(self, order: ProjectText, texts: Sequence[Tensor | None]) -> AllKeyValues:
        """The keys and values of this rank's samples."""
        samples = next(len(text) for text in texts if text is not None)
        own = self._own(samples)
        projected: AllKeyValues = self._forward(
            None, None, None, *(None if text is None else text[own] for text in texts), only_text=True
        )
        self._texts[order.key] = projected
        return projected

    def forget(self) -> None:
        """Lets go of projected texts."""
        self._texts.clear()

    def run(self, order: Forward, tensors: Sequence[Tensor | None]) -> Velocities:
        """The velocities of all samples on rank 0; on the others, of this rank's."""
        video, audio, timestep, *texts = tensors
        own = self._own(order.samples)
        count = own.stop - own.start
        skip_from = max(0, order.skip_from - own.start)
        out = self._forward(
            _of_samples(video, own, order.samples),
            _of_samples(audio, own, order.samples),
            _of_samples(timestep, own, order.samples),
            *(None if text is None else text[own] for text in texts),
            text_key_values=None if order.key is None else self._kept(order.key, count),
            first_frame_is_clean=order.first_frame_is_clean,
            skip_layer=order.skip_layer if skip_from < count else 0,
            skip_from=skip_from,
            return_dict=False,
        )
        return out if count == order.samples else self._gathered(out)

    def _own(self, samples: int) -> slice:
        groups = self._member.parallel.guidance_groups
        if samples % groups:
            return slice(0, samples)
        share = samples // groups
        start = self._member.group_number * share
        return slice(start, start + share)

    def _kept(self, key: int, count: int) -> AllKeyValues:
        """Keys and values of this rank's first samples."""
        return tuple(first_text(block, count) for block in self._texts[key])

    def _gathered(self, own: Velocities) -> Velocities:
        """What the first ranks of the groups have, put together on rank 0."""
        heads = self._member.heads
        if heads is None:
            return own
        found: list[Tensor | None] = []
        for part in own:
            if part is None:
                found.append(None)
            elif heads.place:
                heads.send(part, to=0)
                found.append(part)
            else:
                others = [heads.receive(part.new_empty(part.shape), source) for source in range(1, heads.size)]
                found.append(torch.cat((part, *others)))
        return found[0], found[1]


class Leader:
    """Rank 0: turns calls of its transformer into orders.

    Args:
        member: this rank.
        send: and the rest: as in `Team`.
        at_work: see above.
    """

    def __init__(
        self,
        member: Member,
        send: Callable[[PassOrder], None],
        at_work: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._member = member
        self._send = send
        self._at_work = at_work
        self._passes: Passes | None = None
        self._keys: dict[int, int] = {}  # of projected texts, by where the first block's lie in memory

    @contextlib.contextmanager
    def leading(self, transformer: OviTransformer) -> Iterator[None]:
        """While this lasts, calls of the transformer are everybody's."""
        wraps = ForwardWraps()
        self._passes = Passes(self._member, transformer.forward)
        wraps.wrap(transformer, functools.partial(self._call, self._passes))
        try:
            yield
        finally:
            self.forget()
            wraps.remove()

    def forget(self) -> None:
        """Lets go of projected texts: their stage is over."""
        self._keys.clear()
        if self._passes is not None:
            self._passes.forget()

    def _call(
        self,
        passes: Passes,
        _forward: Callable[..., Any],
        hidden_states: Tensor | None,
        audio_hidden_states: Tensor | None,
        timestep: Tensor | None,
        encoder_hidden_states: Tensor | None = None,
        audio_encoder_hidden_states: Tensor | None = None,
        text_key_values: AllKeyValues | None = None,
        first_frame_is_clean: bool = False,
        skip_layer: int = 0,
        skip_from: int = 0,
        only_text: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """As `OviTransformer.forward`."""
        texts = (encoder_hidden_states, audio_encoder_hidden_states)
        if only_text:
            with self._at_work():
                return self._project(passes, texts)
        if timestep is None:
            raise ValueError("No timestep was given. Pass one for all samples, or one for each.")
        if text_key_values is None and texts[1] is None:
            texts = (texts[0], texts[0])
        order = Forward(
            (Like.of(hidden_states), Like.of(audio_hidden_states)),
            Like(tuple(timestep.shape), timestep.dtype),
            (Like.of(texts[0]), Like.of(texts[1])),
            None if text_key_values is None else self._keys[_memory_of(text_key_values)],
            _samples(text_key_values, texts),
            first_frame_is_clean,
            skip_layer,
            skip_from,
        )
        tensors = (hidden_states, audio_hidden_states, timestep, *texts)
        with self._at_work():
            self._send(order)
            self._tell(tensors)
            video, audio = passes.run(order, tensors)
        return OviTransformerOutput(video=video, audio=audio) if return_dict else (video, audio)

    def _project(self, passes: Passes, texts: Sequence[Tensor | None]) -> AllKeyValues:
        """Keys and values that look as if they were of all samples: the others' are with their ranks."""
        order = ProjectText(len(self._keys), (Like.of(texts[0]), Like.of(texts[1])))
        self._send(order)
        self._tell(texts)
        own = passes.project(order, texts)
        samples = _samples(None, texts)
        self._keys[_memory_of(own)] = order.key
        return tuple(TextKeyValues(*(_seemingly(kv, samples) for kv in block)) for block in own)

    def _tell(self, tensors: Sequence[Tensor | None]) -> None:
        for tensor in tensors:
            if tensor is not None:
                self._member.everyone.broadcast(tensor.contiguous())


class Follower:
    """A rank that is not the first: does its part of every order.

    Args:
        member: this rank.
        transformer: put in place as the plan says.
    """

    def __init__(self, member: Member, transformer: OviTransformer) -> None:
        self._member = member
        self._passes = Passes(member, transformer)

    @torch.no_grad()
    def obey(self, order: PassOrder) -> None:
        """Does it."""
        match order:
            case ProjectText():
                self._passes.project(order, self._told(order.texts))
            case Forward():
                self._passes.run(order, self._told((*order.latents, order.timestep, *order.texts)))

    def forget(self) -> None:
        """Lets go of projected texts: their stage is over."""
        self._passes.forget()

    def _told(self, likes: Sequence[Like | None]) -> list[Tensor | None]:
        everyone, device = self._member.everyone, self._member.device
        return [
            None if like is None else everyone.broadcast(torch.empty(like.shape, dtype=like.dtype, device=device))
            for like in likes
        ]


def _of_samples(tensor: Tensor | None, own: slice, samples: int) -> Tensor | None:
    """A rank's samples; what is one for all stays that."""
    return tensor if tensor is None or len(tensor) != samples else tensor[own]


def _samples(text_key_values: AllKeyValues | None, texts: Sequence[Tensor | None]) -> int:
    """How many samples a call has: as many as texts."""
    if text_key_values is not None:
        return next(len(kv.key_BSNK) for kv in text_key_values[0] if kv is not None)
    return next(len(text) for text in texts if text is not None)


def _memory_of(key_values: AllKeyValues) -> int:
    """What tells projected texts apart, also where only some of their samples are passed on."""
    return next(kv.key_BSNK.untyped_storage().data_ptr() for kv in key_values[0] if kv is not None)


def _seemingly(kv: KeyValue | None, samples: int) -> KeyValue | None:
    """A view with so many samples, in the memory of fewer."""
    if kv is None or len(kv.key_BSNK) == samples:
        return kv
    return KeyValue(*(x[:1].expand(samples, *x.shape[1:]) for x in kv))
