"""The ways in which a run could use one device.

Skeleton (who is where, in which precision) → a `Choice` for every stage (`stages.py`) → Candidate
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from ovi_studio.arithmetic import Component
from ovi_studio.events import Stage
from ovi_studio.runtime.execution_plan import (
    AttentionBackend,
    ComponentName,
    ComponentPlan,
    Home,
    Parallel,
    Placement,
    Preferences,
    StepCache,
)
from ovi_studio.runtime.hardware import Card
from ovi_studio.runtime.memory import Precision, VaeTiling
from ovi_studio.runtime.rates import Rates


@dataclass(frozen=True)
class Machine:
    """One device to plan for, or a team of cards alike, with what of each may be used.

    Args:
        device: as torch names it.
        name: for a person.
        card: None for the CPU, where everything lives in host memory.
        gpu_bytes: that tensors may have in each stage; stages that are not listed may have `gpu_budget`.
        gpu_budget: that tensors may have.
        host_budget: that the process may have.
        rates: how fast it is.
        attention: kernel, and the share of the best kernel's rate it reaches.
        can_compile: whether blocks can be compiled.
        kernels: optional packages that are installed.
        parallel: how a team shares the work; rank 0's card is `device`.
        link: GB/s that a card of a team sends to the others.
    """

    device: str
    name: str
    card: Card | None
    gpu_budget: int
    host_budget: int
    rates: Rates
    attention: tuple[AttentionBackend, float]
    can_compile: bool
    gpu_bytes: Mapping[Stage, int] = dataclasses.field(default_factory=dict)
    kernels: frozenset[str] = frozenset()
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    link: float = 0.0

    def gpu_limit(self, stage: Stage) -> int:
        """What tensors may have on the card in this stage."""
        return min(self.gpu_budget, self.gpu_bytes.get(stage, self.gpu_budget))


@dataclass(frozen=True)
class Part:
    """Precision, placement and home of a component."""

    precision: Precision
    placement: Placement
    home: Home


@dataclass(frozen=True)
class Skeleton:
    """Who is where. The decoders (video VAE, audio VAE, vocoder) go together."""

    transformer: Part
    text_encoder: Part
    decoders: tuple[Placement, Home]

    def part(self, component: Component, on_card: bool) -> Part:
        """Of any component. Sound is decoded in float32: bf16 costs 3 % there and saves little."""
        if component == "transformer":
            return self.transformer
        if component == "text_encoder":
            return self.text_encoder
        precision: Precision = "bf16" if component == "video_vae" and on_card else "float32"
        return Part(precision, *self.decoders)


@dataclass(frozen=True)
class Choice:
    """One way to do a stage: bytes on the device and of the host, seconds, and what it settles."""

    device_bytes: int
    host_bytes: int
    seconds: float
    settings: "DenoiseSettings | VaeTiling | Mapping[ComponentName, ComponentPlan] | None" = None


@dataclass(frozen=True)
class DenoiseSettings:
    """How the denoising stage runs; the fields are the plan's."""

    batched: bool
    text_cache: bool
    compile: bool
    step_cache: StepCache = "none"
    ffn_chunks: int = 1
    outside_resident: bool = True
    resident_blocks: int = 0


@dataclass(frozen=True)
class Candidate:
    """A way to do the whole run."""

    machine: Machine
    skeleton: Skeleton
    choices: Mapping[Stage, Choice]

    @property
    def seconds(self) -> float:
        """Of the run."""
        return sum(choice.seconds for choice in self.choices.values())

    def gpu_bytes(self, stage: Stage) -> int:
        """Tensors on the card."""
        return self.choices[stage].device_bytes if self.machine.card else 0

    def host_bytes(self, stage: Stage) -> int:
        """The process in host memory; on a CPU that is everything."""
        choice = self.choices[stage]
        return choice.host_bytes + (0 if self.machine.card else choice.device_bytes)

    @property
    def peak_gpu(self) -> int:
        """The most on the card."""
        return max(self.gpu_bytes(stage) for stage in self.choices)

    @property
    def peak_host(self) -> int:
        """The most in host memory."""
        return max(self.host_bytes(stage) for stage in self.choices)

    @property
    def tightest(self) -> Stage:
        """The stage that is furthest over what the card gives, or nearest to it."""
        return max(self.choices, key=lambda stage: self.gpu_bytes(stage) - self.machine.gpu_limit(stage))

    @property
    def fits_gpu(self) -> bool:
        """Whether every stage fits on the card."""
        return all(self.gpu_bytes(stage) <= self.machine.gpu_limit(stage) for stage in self.choices)

    @property
    def fits_host(self) -> bool:
        """Whether every stage fits in host memory."""
        return self.peak_host <= self.machine.host_budget

    @property
    def settings(self) -> DenoiseSettings:
        """Of the denoising stage."""
        settings = self.choices["denoise"].settings
        if not isinstance(settings, DenoiseSettings):
            raise TypeError(settings)
        return settings


# --- Skeletons --------------------------------------------------------------------------------------------


def skeletons(
    transformer: Iterable[Precision], text_encoder: Iterable[Precision], preferences: Preferences, team: bool = False
) -> Iterator[Skeleton]:
    """Every sensible combination. Placements that are forced are combined with everything.

    Args:
        transformer: precisions to try.
        text_encoder: see above.
        preferences: what is forced.
        team: whether there are several cards, among whom bf16 weights can be sharded.
    """
    forced = (preferences.transformer_placement, preferences.text_encoder_placement)
    decoders: tuple[Placement, ...] = ("resident", "staged")
    for t_precision, e_precision in product(tuple(transformer), tuple(text_encoder)):
        transformers = _parts(t_precision, forced[0], team and t_precision == "bf16")
        for t, e, d in product(transformers, _parts(e_precision, forced[1]), decoders):
            if e.precision == "nf4" and (e.placement == "streamed" or e.home == "disk"):
                continue  # bitsandbytes' layers hold more than weights: they move as a whole, by themselves
            if forced == (None, None) and not _is_sensible(t.placement, e.placement, d):
                continue
            yield Skeleton(t, e, (d, "card" if d == "resident" else "disk" if "disk" in (t.home, e.home) else "host"))


def cpu_skeleton() -> Skeleton:
    """On a CPU everything is at home."""
    part = Part("float32", "resident", "card")
    return Skeleton(part, part, ("resident", "card"))


def _parts(precision: Precision, forced: Placement | None, can_shard: bool = False) -> list[Part]:
    possible: tuple[Placement, ...] = ("resident", "staged", "streamed") + (("sharded",) if can_shard else ())
    placements = [placement for placement in possible if forced in (None, placement)]
    homes: dict[Placement, tuple[Home, ...]] = {"resident": ("card",), "sharded": ("card",)}
    return [Part(precision, p, home) for p in placements for home in homes.get(p, ("host", "disk"))]


def _is_sensible(transformer: Placement, text_encoder: Placement, decoders: Placement) -> bool:
    """Who is used least leaves first: the text encoder before the transformer, both before streaming begins."""
    rank = {"resident": 0, "staged": 1, "streamed": 2}
    if transformer == "resident":
        return text_encoder != "streamed"
    if transformer == "sharded":
        return text_encoder != "resident"
    return text_encoder != "resident" and (transformer == "staged" or rank[decoders] == 1)
