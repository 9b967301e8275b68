"""Settles every stage of a run on a machine: how it is best done, and what it takes.

    Stages(workload, machine, preferences).settle(skeleton) → Candidate

The stages of a run follow one another, so that once it is settled who stays on the card each stage can choose for
itself: the fastest way that fits. A candidate that does not fit keeps its smallest ways, to tell what is missing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Literal, TypeAlias, TypeVar

from ovi_studio import arithmetic
from ovi_studio.arithmetic import Component, Cost
from ovi_studio.events import Stage
from ovi_studio.runtime import memory, rates, teams
from ovi_studio.runtime.candidates import Candidate, Choice, DenoiseSettings, Machine, Part, Skeleton
from ovi_studio.runtime.drawing import drawing_choices
from ovi_studio.runtime.execution_plan import (
    STEP_CACHE_THRESHOLD,
    ComponentName,
    ComponentPlan,
    Preferences,
    StepCache,
)
from ovi_studio.runtime.memory import Precision, VaeTiling, Workload

PROMPTS = 3  # the prompt and both negative ones, encoded one after the other
SOUND: tuple[Component, ...] = ("audio_vae", "vocoder")
DECODERS: tuple[Component, ...] = ("video_vae", *SOUND)
FFN_CHUNKS = 2  # more would not help: with two, other moments of a block are wider
EDGE_BLOCKS = memory.PREFETCHED_BLOCKS  # if all but these stayed, streaming would hold everything

Option = TypeVar("Option", bool, VaeTiling, StepCache)
Objective: TypeAlias = Literal["seconds", "bytes"]


class Stages:
    """Settles the stages of a run for one machine.

    Args:
        workload: the run.
        machine: the device.
        preferences: what is forced.
        objective: of every stage: the fastest way that fits, or the one of the fewest bytes.
    """

    def __init__(
        self, workload: Workload, machine: Machine, preferences: Preferences, objective: Objective = "seconds"
    ) -> None:
        self.workload = workload
        self.machine = machine
        self.preferences = preferences
        self.objective = objective
        # All that is the same for every skeleton; a plan is a choice among hundreds of them.
        forward = arithmetic.forward_cost(workload.variant, workload.size, workload.modality)
        plain = forward.per_forward()
        self._steps = {1: plain, 2: plain + forward.per_forward(workload.skipped_blocks)}  # by passes
        self._parallel = machine.parallel
        if self._parallel.gpus > 1:  # of the card that has most to do
            own, skipped = teams.own_cost(forward, workload, self._parallel), self._steps[2] - 2 * plain
            share = own.operations / plain.operations
            both = 2 * own + Cost(matmul=round(skipped.matmul * share), attention=round(skipped.attention * share))
            self._steps = {1: own, 2: own if self._parallel.guidance_groups > 1 else both}
        self._text_once = forward.per_run.matmul
        self._text_pass = workload.passes * forward.per_run
        self._text_cost = arithmetic.text_encoder_cost(workload.variant.text_encoder, workload.variant.text_len)
        self._work = arithmetic.stage_work(workload.variant, workload.size, workload.modality)
        self._known: dict[object, Choice] = {}
        self._weights: dict[tuple[Component, Precision], int] = {}

    def settle(self, skeleton: Skeleton) -> Candidate:
        """The candidate that a skeleton makes, whether it fits or not."""
        host = self._home_bytes(skeleton)
        resident = self._resident_bytes(skeleton)
        choices: dict[Stage, Choice] = {}
        if self.workload.first_frame == "generated":
            process = self._process_bytes()
            choices["draw frame"] = self._once(
                "draw frame", None, 0, process, lambda: drawing_choices(self.workload, self.machine, process)
            )
        choices["load"] = self._load(skeleton, resident, host)
        choices["encode text"] = self._encode_text(skeleton.text_encoder, resident, host)
        if self.workload.first_frame != "none":
            choices["first frame"] = self._once(
                "first frame", skeleton.decoders, resident, host, lambda: self._first_frame(skeleton, resident, host)
            )
        choices["denoise"] = self._once(
            "denoise", skeleton.transformer, resident, host, lambda: self._denoise(skeleton.transformer, resident, host)
        )
        choices["decode"] = self._once(
            "decode", skeleton.decoders, resident, host, lambda: self._decode(skeleton, resident, host)
        )
        choices["mux"] = self._mux(resident, host)
        return Candidate(self.machine, skeleton, choices)

    def _once(
        self, stage: Stage, part: object, resident: int, host: int, choices: Callable[[], Iterable[Choice]]
    ) -> Choice:
        """The best choice for a stage, which depends on nothing but these."""
        key = (stage, part, resident, host)
        if key not in self._known:
            self._known[key] = self._best(stage, choices())
        return self._known[key]

    def _best(self, stage: Stage, choices: Iterable[Choice]) -> Choice:
        """The best that fits; if none does, the smallest."""
        listed = tuple(choices)
        machine = self.machine
        limit = machine.gpu_limit(stage) if machine.card else machine.host_budget
        fitting = [
            c
            for c in listed
            if c.device_bytes <= limit and c.host_bytes + (0 if machine.card else c.device_bytes) <= machine.host_budget
        ]
        if self.objective == "seconds" and fitting:
            return min(fitting, key=lambda c: (c.seconds, c.device_bytes))
        return min(fitting or listed, key=lambda c: (c.device_bytes, c.seconds))

    # Weights

    def _bytes(self, component: Component, precision: Precision) -> int:
        key = (component, precision)
        if key not in self._weights:
            self._weights[key] = memory.weight_bytes(self.workload.variant, component, precision)
        return self._weights[key]

    def _file_bytes(self, component: Component) -> int:
        """As released: 16 bits."""
        return self._bytes(component, "bf16")

    def _resident_bytes(self, skeleton: Skeleton) -> int:
        """On the device in all stages."""
        parts = {name: skeleton.part(name, bool(self.machine.card)) for name in self.workload.components}
        held = sum(self._bytes(name, part.precision) for name, part in parts.items() if part.placement == "resident")
        if skeleton.transformer.placement == "sharded":
            blocks = memory.transformer_blocks(self.workload.variant, skeleton.transformer.precision)
            held += blocks.outside + blocks.count * blocks.block // self._parallel.gpus
        return held

    def _home_bytes(self, skeleton: Skeleton) -> int:
        """Of the processes in host memory in all stages: themselves, and the weights that are at home there.

        The others of a team have the transformer and the video VAE, and the sound's weights as they were computed.
        """
        parts = {name: skeleton.part(name, bool(self.machine.card)) for name in self.workload.components}
        home = {name: self._bytes(name, part.precision) for name, part in parts.items() if part.home == "host"}
        other = self._process_bytes() + home.get("transformer", 0) + home.get("video_vae", 0)
        other += sum(self._bytes(name, parts[name].precision) for name in SOUND if name in parts)
        return self._process_bytes() + sum(home.values()) + (self._parallel.gpus - 1) * other

    def _process_bytes(self) -> int:
        """Of the process itself in host memory."""
        return memory.CUDA_PROCESS_BYTES if self.machine.card else memory.CPU_PROCESS_BYTES

    def _fetch_seconds(self, component: Component, part: Part) -> float:
        """Bringing a component that is not resident to the device, from host memory or from its file.

        A streamed one counts as whole: in the first forward nothing hides its transfers.
        """
        if part.placement in ("resident", "sharded"):
            return 0.0
        if part.home == "disk":
            return self.machine.rates.disk_seconds(self._file_bytes(component))
        return self.machine.rates.pageable_seconds(self._bytes(component, part.precision))

    # 1. Load

    def _load(self, skeleton: Skeleton, resident: int, host: int) -> Choice:
        """Weights come block by block; quantizing takes one block in 16 bits more, on the card; then the preview.

        Host memory has one block twice while it gets its place, or the video VAE, which comes as a whole. The sound's
        weights are computed from what the files hold, and wait there: for the first turn, or to the end where they
        stay on the card. All files are read once, also those whose weights are written to disk in blocks.
        """
        parts = {name: skeleton.part(name, bool(self.machine.card)) for name in self.workload.components}
        files = sum(self._file_bytes(name) for name in parts)
        sound = sum(self._bytes(name, parts[name].precision) for name in SOUND if name in parts)
        block = memory.transformer_blocks(self.workload.variant, "bf16").block
        whole_first = skeleton.transformer.precision not in ("float32", "bf16")
        quantizing = block if whole_first or skeleton.transformer.placement == "sharded" else 0
        piece, preview = block, 0
        if vae := parts.get("video_vae"):
            whole = self._bytes("video_vae", vae.precision) if vae.placement == "staged" else 0
            preview = whole + memory.preview_bytes(self.workload.variant, memory.element_bytes(vae.precision))
            piece = max(block, whole)
        waiting = {"card": piece + sound, "disk": max(piece, sound), "host": piece}[skeleton.decoders[1]]
        written = sum(self._bytes(name, part.precision) for name, part in parts.items() if part.home == "disk")
        seconds = self.machine.rates.disk_seconds(files + written)
        seconds += teams.START_SECONDS if self._parallel.gpus > 1 else 0.0
        return Choice(resident + max(quantizing, preview), host + (waiting if self.machine.card else block), seconds)

    # 2. Encode text

    def _encode_text(self, part: Part, resident: int, host: int) -> Choice:
        variant, machine = self.workload.variant, self.machine
        width = memory.element_bytes(part.precision)
        held = memory.text_activation_bytes(variant.text_encoder, variant.text_len, width)
        held += memory.text_state_bytes(variant, PROMPTS - 1, width)
        held += memory.unpacked_layer_bytes(variant.text_encoder) if part.precision in ("int8", "nf4") else 0
        seconds = PROMPTS * machine.rates.product_seconds(self._text_cost.operations, part.precision)
        seconds += self._fetch_seconds("text_encoder", part)
        if part.placement == "staged":
            held += self._bytes("text_encoder", part.precision)
        elif part.placement == "streamed":
            blocks = memory.text_encoder_blocks(variant, part.precision)
            held += blocks.outside + memory.PREFETCHED_BLOCKS * blocks.block
            moved = blocks.outside + PROMPTS * blocks.count * blocks.block
            seconds += self._stream_seconds(part, moved)  # its layers work far faster than they come
        return Choice(resident + held, host, seconds)

    def _stream_seconds(self, part: Part, moved: int) -> float:
        return (
            self.machine.rates.disk_seconds(moved) if part.home == "disk" else self.machine.rates.pinned_seconds(moved)
        )

    # 3. First frame

    def _first_frame(self, skeleton: Skeleton, resident: int, host: int) -> Iterator[Choice]:
        """The video VAE encodes it."""
        part = skeleton.part("video_vae", bool(self.machine.card))
        vae = self._bytes("video_vae", part.precision) if part.placement == "staged" else 0
        encode = vae + memory.image_encode_bytes(self.workload, memory.element_bytes(part.precision))
        width = memory.element_bytes(skeleton.text_encoder.precision)
        resident += memory.text_state_bytes(self.workload.variant, PROMPTS, width)
        seconds = self.machine.rates.convolution_seconds(self._work["encode_image"])
        seconds += self._fetch_seconds("video_vae", part)
        yield Choice(resident + encode, host, seconds)

    # 4. Denoise

    def _denoise(self, part: Part, resident: int, host: int) -> Iterator[Choice]:
        preferences, streamed = self.preferences, part.placement == "streamed"
        split = self._parallel.guidance_groups > 1
        guidance = (True, False) if self.workload.passes == 2 and not split else (True,)
        compiles = [False, True] if self.machine.can_compile else [False]
        if part.precision == "fp8_compute":
            compiles = [True]  # uncompiled, quantizing activations takes float32 copies of the widest layer
        elif part.precision == "fp8_storage":
            compiles = [False]  # layerwise casting and regional compilation do not mix
        for settings in product(
            _allowed(guidance, preferences.batched_guidance if self.workload.passes == 2 else None),
            _allowed((True, False), preferences.text_cache),
            _allowed(compiles, preferences.compile),
            _allowed(self._step_caches(), preferences.step_cache),
            (1, FFN_CHUNKS) if streamed else (1,),
            (True, False) if streamed else (True,),
        ):
            yield self._denoise_choice(part, resident, host, DenoiseSettings(*settings))

    def _step_caches(self) -> tuple[StepCache, ...]:
        """Whether steps may reuse work: where speed is all that is wished or it is asked for, and never in a team."""
        if self._parallel.gpus > 1:  # what is reused is decided by looking at all tokens
            return ("none",)
        wished = self.workload.quality == "fast" and self._reuses
        return ("none", "first_block") if wished or self.preferences.step_cache else ("none",)

    @property
    def _reuses(self) -> bool:
        """Whether a step cache would find something to leave out, as far as is known."""
        threshold = self.preferences.step_cache_threshold or STEP_CACHE_THRESHOLD
        return self.workload.steps >= rates.STEP_CACHE_MIN_STEPS and threshold >= STEP_CACHE_THRESHOLD

    def _denoise_choice(self, part: Part, resident: int, host: int, settings: DenoiseSettings) -> Choice:
        load, width = self.workload, memory.element_bytes(part.precision)
        groups = self._parallel.guidance_groups
        batch = load.passes // groups if settings.batched else 1
        held = resident + memory.adapter_bytes(load)
        held += memory.text_cache_bytes(load, width) // groups if settings.text_cache else 0
        held += memory.step_cache_bytes(load, width) if settings.step_cache != "none" else 0
        own = teams.own_tokens(load, self._parallel)
        active = memory.denoise_activation_bytes(load, batch, width, settings.text_cache, settings.ffn_chunks, own)
        exchange = teams.exchange_bytes(load, self._parallel, batch, width)
        active = max(active, exchange + memory.sampler_bytes(load, batch, width))
        # Between steps the sound is decoded to be heard; only without a picture that may be the wider moment.
        active = max(active, memory.vocoder_bytes(load) + memory.sampler_bytes(load, batch, width))
        moved = 0
        if part.placement == "staged":
            held += self._bytes("transformer", part.precision)
        elif part.placement == "sharded":
            active += memory.PREFETCHED_BLOCKS * memory.transformer_blocks(load.variant, part.precision).block
        elif part.placement == "streamed":
            blocks = memory.transformer_blocks(load.variant, part.precision)
            active += memory.PREFETCHED_BLOCKS * blocks.block
            if settings.outside_resident:
                held += blocks.outside
            else:
                active = max(active, blocks.outside + memory.sampler_bytes(load, batch, width))
            room = self.machine.gpu_limit("denoise") - held - active
            most = blocks.count - EDGE_BLOCKS if self.objective == "seconds" else 0
            kept = min(max(room // blocks.block, 0), most)
            held += kept * blocks.block
            moved = (blocks.count - kept) * blocks.block + (0 if settings.outside_resident else blocks.outside)
            settings = dataclasses.replace(settings, resident_blocks=kept)
        return Choice(held + active, host, self._denoise_seconds(part, settings, moved), settings)

    def _denoise_seconds(self, part: Part, settings: DenoiseSettings, moved: int) -> float:
        """All steps. `moved` bytes come in every forward, behind the work as far as they can."""
        load, speed = self.workload, self.machine.rates
        transfer = self._stream_seconds(part, moved) if moved else 0.0
        if part.placement == "sharded":
            transfer = self._traffic(part, 1).weights / (1e9 * self.machine.link)
        plain = self._step_seconds(part, settings, 1, transfer)
        guided = self._step_seconds(part, settings, 2, transfer) if load.passes == 2 else plain
        seconds = load.steps * (load.guided * guided + (1 - load.guided) * plain)
        if settings.step_cache != "none" and self._reuses:
            seconds *= 1 - rates.STEP_CACHE_SAVES
        if settings.text_cache:  # one more pass over the blocks, for their keys and values alone
            text = self._text_pass.matmul / self._parallel.guidance_groups
            seconds += speed.product_seconds(text, part.precision) + transfer
        return seconds + self._fetch_seconds("transformer", part) + (rates.COMPILE_SECONDS if settings.compile else 0.0)

    def _step_seconds(self, part: Part, settings: DenoiseSettings, passes: int, transfer: float) -> float:
        """One step of so many passes, each of which has to wait `transfer` seconds for weights if it is faster."""
        load, speed = self.workload, self.machine.rates
        layers = load.variant.transformer.num_layers
        step = self._steps[passes]
        split = self._parallel.guidance_groups > 1
        own_passes = 1 if split else passes
        matmul = step.matmul + (0 if settings.text_cache else own_passes * self._text_once)
        forwards = 1 if settings.batched else passes

        compiled = settings.compile
        tokens = own_passes * (teams.own_tokens(load, self._parallel) + load.audio_tokens)
        traffic = tokens * load.variant.transformer.dim * memory.element_bytes(part.precision) * layers
        launch = rates.COMPILED_LAUNCH_SECONDS if compiled else rates.EAGER_LAUNCH_SECONDS
        compute = (
            speed.product_seconds(matmul, part.precision)
            + speed.attention_seconds(step.attention, self.machine.attention[1])
            + speed.traffic_seconds(traffic * (rates.COMPILED_TRAFFIC if compiled else rates.EAGER_TRAFFIC))
            + forwards * layers * launch
        )
        compute *= rates.STREAMING_SLOWDOWN if part.placement == "streamed" else 1.0
        waiting = self._traffic(part, passes).seconds(self.machine.link) if self._parallel.gpus > 1 else 0.0
        return max(compute, forwards * transfer) + waiting

    def _traffic(self, part: Part, passes: int) -> teams.Traffic:
        """What a card of the team sends in a step."""
        load, width = self.workload, memory.element_bytes(part.precision)
        block = memory.transformer_blocks(load.variant, part.precision).block if part.placement == "sharded" else 0
        return teams.traffic(load, self._parallel, width, block, passes=passes)

    # 5. Decode

    def _decode(self, skeleton: Skeleton, resident: int, host: int) -> Iterator[Choice]:
        load, on_card = self.workload, bool(self.machine.card)
        parts = {name: skeleton.part(name, on_card) for name in DECODERS if name in load.components}
        staged = [(name, part) for name, part in parts.items() if part.placement == "staged"]
        weights = sum(self._bytes(name, part.precision) for name, part in staged)
        fetch = sum(self._fetch_seconds(name, part) for name, part in staged)
        work = self._work
        sound, sound_seconds = memory.vocoder_bytes(load), self.machine.rates.convolution_seconds(work["decode_audio"])
        if load.modality == "audio":
            yield Choice(resident + weights + sound, host, fetch + sound_seconds, "none")
            return
        width = memory.element_bytes(parts["video_vae"].precision)
        tilings: tuple[VaeTiling, ...] = ("none", "tiled", "tile_by_tile") if memory.can_tile(load) else ("none",)
        tilings += ("split",) if len(tilings) > 1 and self._parallel.gpus > 1 else ()
        forced = self.preferences.vae_tiling if len(tilings) > 1 else None  # a small picture is one tile
        shares = teams.tile_shares(load, self._parallel.gpus) if len(tilings) > 1 else []
        for tiling in _allowed(tilings, forced):
            picture = memory.decode_bytes(load, tiling, width, on_card, max(shares, key=_area, default=()))
            again = (
                memory.tile_overlap(load.variant, *load.variant.latent_grid(*load.size)[1:]) if tiling != "none" else 1
            )
            seconds = again * self.machine.rates.convolution_seconds(work["decode_video"])
            frames = memory.decode_host_bytes(load, tiling)
            seconds += self.machine.rates.pageable_seconds(frames) if tiling == "tile_by_tile" else 0.0
            if tiling == "split":
                seconds *= max(map(_area, shares)) / sum(map(_area, shares))
                sent = 3 * width * load.variant.num_frames * load.size.area * again
                seconds += sent / (1e9 * self.machine.link)
            yield Choice(
                resident + weights + max(picture, sound),
                host + frames,
                fetch + sound_seconds + seconds,
                tiling,
            )

    # 6. Mux

    def _mux(self, resident: int, host: int) -> Choice:
        load = self.workload
        pixels = 0 if load.modality == "audio" else load.variant.num_frames * load.size.area
        frames = memory.decode_host_bytes(load, "none")
        return Choice(resident, host + frames, pixels / rates.MUX_PIXELS_PER_SECOND)


def _area(tiles: Iterable[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in tiles)


def _allowed(options: Iterable[Option], forced: Option | None) -> list[Option]:
    """The options, or the forced one if it is among them."""
    return [option for option in options if forced is None or option == forced]


def component_plans(candidate: Candidate, workload: Workload) -> dict[ComponentName, ComponentPlan]:
    """The plan's components."""
    plans: dict[ComponentName, ComponentPlan] = {}
    on_card = bool(candidate.machine.card)
    for name in workload.components:
        part = candidate.skeleton.part(name, on_card)
        plans[name] = ComponentPlan(part.precision, part.placement, part.home)
        if part.placement == "streamed" and name == "text_encoder":
            count = memory.text_encoder_blocks(workload.variant, part.precision).count
            plans[name] = dataclasses.replace(plans[name], blocks=count)
        if part.placement == "streamed" and name == "transformer":
            settings = candidate.settings
            plans[name] = dataclasses.replace(
                plans[name],
                blocks=workload.variant.transformer.num_layers,
                resident_blocks=settings.resident_blocks,
                outside_resident=settings.outside_resident,
            )
    drawing = candidate.choices["draw frame"].settings if "draw frame" in candidate.choices else None
    return {**drawing, **plans} if isinstance(drawing, Mapping) else plans
