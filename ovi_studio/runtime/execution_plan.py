"""`ExecutionPlan`: how a run uses the machine, as plain data that prints, travels and is stored with the clip.

`plan.py` makes plans, `apply.py` puts one on a pipeline. Bytes are of tensors: the CUDA context and what
fragmentation wastes are outside of every number here, and were taken off the budget before.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from ovi_studio.errors import InvalidInputError
from ovi_studio.events import Stage
from ovi_studio.request import Quality
from ovi_studio.runtime.memory import Precision, VaeTiling

Placement: TypeAlias = Literal["resident", "staged", "streamed", "sharded"]
Home: TypeAlias = Literal["card", "host", "disk"]
ComponentName: TypeAlias = Literal[
    "transformer", "text_encoder", "video_vae", "audio_vae", "vocoder",
    "flux_transformer", "flux_text_encoder", "flux_vae",
]  # fmt: skip
AttentionBackend: TypeAlias = Literal["native", "_native_cudnn", "flash", "_flash_3", "sage"]  # diffusers' names
GuidancePasses: TypeAlias = Literal["none", "batched", "sequential", "split"]
StepCache: TypeAlias = Literal["none", "first_block"]

STEP_CACHE_THRESHOLD = 0.1  # on nano 0.05 gains nothing, and 0.2 costs 8 dB more; see docs/performance.md


@dataclass(frozen=True)
class ComponentPlan:
    """Where a component's weights are, and in what form.

    Args:
        precision: float32 and bf16 as they are; fp8_compute: torchao float8 weights and dynamic activations;
            fp8_storage: float8 weights with a scale a row, widened for each product; int8: weights only (torchao);
            nf4: bitsandbytes.
        placement: resident: on the device for the whole run; staged: only in its own stage, whole; streamed: block
            by block, each brought while the one before runs; sharded: each card of the run keeps a share of every
            block for the whole run, and gets the others' shares while the block before runs.
        home: where the weights are while not on the device: host memory (pinned, where streamed) or disk.
            "card" for a resident component, which has no second copy.
        blocks: of a streamed component; else 0.
        resident_blocks: of a streamed component, the first ones, which stay on the device during its stage.
        outside_resident: whether the weights outside the blocks stay there too, or are streamed as the blocks.
    """

    precision: Precision
    placement: Placement
    home: Home
    blocks: int = 0
    resident_blocks: int = 0
    outside_resident: bool = True

    def describe(self) -> str:
        """In words: `bf16, streamed from host (12 of 30 blocks resident)`."""
        words = f"{self.precision.replace('_', ' ')}, {self.placement}"
        if self.placement == "resident":
            return words
        words += f" from {'disk' if self.home == 'disk' else 'host memory'}"
        kept = f" ({self.resident_blocks} of {self.blocks} blocks stay)" if self.placement == "streamed" else ""
        return words + kept


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes: bytes of tensors on the card, bytes of the process in host memory, seconds."""

    peak_gpu_bytes: int
    peak_host_bytes: int
    seconds: float


@dataclass(frozen=True)
class Parallel:
    """Over how many cards the run goes, and how: each group of `sequence` cards runs one of `guidance_groups`.

    Args:
        gpus: cards, `guidance_groups` × `sequence`.
        guidance_groups: 2 where the prompt's pass and the negative prompts' run side by side, else 1.
        sequence: cards that share the tokens of a pass.
        devices: as torch names them, the plan's own first; empty for a run on one.
    """

    gpus: int = 1
    guidance_groups: int = 1
    sequence: int = 1
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExecutionPlan:
    """How a run uses the machine.

    Args:
        variant: name of the model.
        size: height and width of the clip.
        quality: the wish it was made for.
        device: as torch names it: "cuda:0" or "cpu".
        device_name: for a person.
        components: every component that the run uses.
        attention_backend: name for diffusers' `set_attention_backend`.
        vae_tiling: none; tiled: all tiles of a frame, then the next; tile_by_tile: a tile to its end, then the next;
            split: as tiled, each card of the run some of them.
        text_cache: whether text keys and values are kept over the run.
        guidance: whether both passes run as one batch, one after the other, or (split) each on cards of its own.
        compile: whether blocks are compiled (regionally).
        step_cache: whether steps reuse the middle blocks' work where little changed; approximate.
        step_cache_threshold: how little: change of the first block's output, relative.
        ffn_chunks: parts in which feed-forward layers take the tokens; exact, and 1 is all at once.
        parallel: over several cards.
        stages: the prediction, in the order of the run.
        gpu_budget_bytes: what tensors could have had on the card; 0 on a CPU.
        host_budget_bytes: what the process could have had in host memory.
        reasons: why it is as it is.
        rejected: what would have been better and did not go, and why.
    """

    variant: str
    size: tuple[int, int]
    quality: Quality
    device: str
    device_name: str
    components: Mapping[ComponentName, ComponentPlan]
    attention_backend: AttentionBackend
    vae_tiling: VaeTiling
    text_cache: bool
    guidance: GuidancePasses
    compile: bool
    step_cache: StepCache
    ffn_chunks: int
    parallel: Parallel
    stages: Mapping[Stage, StagePlan]
    gpu_budget_bytes: int
    host_budget_bytes: int
    step_cache_threshold: float = STEP_CACHE_THRESHOLD
    reasons: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

    @property
    def peak_gpu_bytes(self) -> int:
        """Of the stage that takes most."""
        return max(stage.peak_gpu_bytes for stage in self.stages.values())

    @property
    def peak_host_bytes(self) -> int:
        """Of the stage that takes most."""
        return max(stage.peak_host_bytes for stage in self.stages.values())

    @property
    def seconds(self) -> float:
        """Of the whole run, reading the weights from disk included."""
        return sum(stage.seconds for stage in self.stages.values())

    def to_json(self) -> dict[str, Any]:
        """As data for `json.dumps`, with the totals."""
        data: dict[str, Any] = TypeAdapter(ExecutionPlan).dump_python(self, mode="json")
        totals = ("peak_gpu_bytes", "peak_host_bytes", "seconds")
        return data | {name: getattr(self, name) for name in totals}

    @classmethod
    def from_json(cls, data: object) -> "ExecutionPlan":
        """A plan from what `to_json` gave; totals are worked out anew.

        Raises:
            InvalidInputError: the data is something else.
        """
        try:
            plan = TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            raise InvalidInputError("The data is not an execution plan.", "Have the plan made anew.") from error
        if not plan.stages:
            raise InvalidInputError("The execution plan has no stages.", "Have the plan made anew.")
        return plan

    def explain(self) -> list[str]:
        """The plan as lines for a person."""
        minutes, seconds = divmod(round(self.seconds), 60)
        lines = [
            f"{self.variant} at {self.size[0]}x{self.size[1]} on {self.device_name}, as wished: {self.quality}",
            f"About {minutes} min {seconds:02d} s, {self._peaks()}",
            "Components",
        ]
        lines += [f"  {name:18}{component.describe()}" for name, component in self.components.items()]
        lines += ["Settings", f"  {self._settings()}", "Stages              card       host    seconds"]
        lines += [
            f"  {name:12}{gigabytes(s.peak_gpu_bytes):>10}{gigabytes(s.peak_host_bytes):>11}{s.seconds:>11.1f}"
            for name, s in self.stages.items()
        ]
        for title, entries in (("Why", self.reasons), ("Turned down", self.rejected)):
            lines += [title, *(f"  - {entry}" for entry in entries)] if entries else []
        return lines

    def _peaks(self) -> str:
        host = f"{gigabytes(self.peak_host_bytes)} of {gigabytes(self.host_budget_bytes)} host memory"
        if self.device == "cpu":
            return f"at most {host}."
        card = f"{gigabytes(self.peak_gpu_bytes)} of {gigabytes(self.gpu_budget_bytes)} usable card memory"
        return f"at most {card} and {host}."

    def _settings(self) -> str:
        words = [
            f"attention: {self.attention_backend}",
            f"guidance: {self.guidance}",
            f"VAE tiling: {self.vae_tiling.replace('_', ' ')}",
            f"text cache: {'on' if self.text_cache else 'off'}",
            f"compile: {'on' if self.compile else 'off'}",
        ]
        if self.step_cache != "none":
            words.append(f"step cache: {self.step_cache.replace('_', ' ')} below {self.step_cache_threshold:g}")
        if self.parallel.gpus > 1:
            groups, sequence = self.parallel.guidance_groups, self.parallel.sequence
            words.append(f"cards: {', '.join(self.parallel.devices)} ({groups} × {sequence})")
        words += [f"feed-forward in {self.ffn_chunks} parts"] if self.ffn_chunks > 1 else []
        return ", ".join(words)


@dataclass(frozen=True)
class Preferences:
    """What is forced; None leaves a part to the planner.

    Args:
        transformer_precision: and the other precisions and placements: of that component.
        text_encoder_precision: see above.
        transformer_placement: see above.
        text_encoder_placement: see above.
        attention_backend: as in the plan; and so the fields below.
        vae_tiling: see above.
        text_cache: see above.
        batched_guidance: one batch, or one pass after the other.
        compile: see above.
        step_cache: see above; approximate, and chosen by `fast` only.
        step_cache_threshold: see above.
        gpu_limit_bytes: of the card's memory, at most this may be used, context included.
        host_limit_bytes: of host memory, at most this may be used.
        gpus: cards that may be used, by their numbers.
        single_card: whether a clip stays on one card.
    """

    transformer_precision: Precision | None = None
    text_encoder_precision: Precision | None = None
    transformer_placement: Placement | None = None
    text_encoder_placement: Placement | None = None
    attention_backend: AttentionBackend | None = None
    vae_tiling: VaeTiling | None = None
    text_cache: bool | None = None
    batched_guidance: bool | None = None
    compile: bool | None = None
    step_cache: StepCache | None = None
    step_cache_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    gpu_limit_bytes: int | None = None
    host_limit_bytes: int | None = None
    gpus: tuple[int, ...] | None = None
    single_card: bool = False

    def forced(self) -> list[str]:
        """The parts that are forced, as `name=value`."""
        fields = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        return [f"{name}={value}" for name, (value, default) in fields.items() if value != default]


def gigabytes(count: float) -> str:
    """Bytes as cards are sold: `22.5 GB` of 2^30 bytes."""
    return f"{count / 2**30:.1f} GB"
