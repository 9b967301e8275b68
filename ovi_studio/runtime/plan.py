"""The planner: which of all ways to do a run a machine should take, and why. Pure, and without torch.

    plan(request, variant, hardware, preferences) → ExecutionPlan

For every device it can use, all candidates are predicted (`stages.py`), and the best that fits is taken:

    auto      bf16 where it fits resident or staged, else 8-bit weights; among those the fastest
    exact     bf16 only, streamed if it must be; the fastest
    fast      the fastest, whatever the precision; steps may reuse work
    smallest  the fewest bytes on the card, then the fastest

Because what fits on a machine also fits on a larger one, a larger machine never gets a worse plan. "Worse" means
slower, except under auto, where bf16 on a larger card may take longer than fp8 on a smaller one.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from ovi_studio.errors import InvalidInputError, OutOfMemoryError
from ovi_studio.events import Stage
from ovi_studio.flux import FLUX_KREA, ImageModel
from ovi_studio.request import GenerationRequest, Quality
from ovi_studio.runtime import memory, teams, wording
from ovi_studio.runtime.candidates import Candidate, Machine, Skeleton, cpu_skeleton, skeletons
from ovi_studio.runtime.execution_plan import (
    STEP_CACHE_THRESHOLD,
    AttentionBackend,
    ExecutionPlan,
    GuidancePasses,
    Parallel,
    Preferences,
    StagePlan,
)
from ovi_studio.runtime.hardware import BF16_CAPABILITY, FP8_CAPABILITY, MIN_CAPABILITY, Card, Hardware
from ovi_studio.runtime.memory import Precision, Workload
from ovi_studio.runtime.rates import Rates
from ovi_studio.runtime.stages import Stages, component_plans
from ovi_studio.variants import Variant

# A model of more parameters is refused on a CPU. Derived: at 1 TFLOP/s a full-size clip takes six hours.
MAX_CPU_PARAMETERS = 10**9
STEP_DOWN = 0.9  # the next rung needs at most this share in the stage that ran out of memory; guessed


def plan(
    request: GenerationRequest,
    variant: Variant,
    hardware: Hardware,
    preferences: Preferences | None = None,
    rates: Rates | None = None,
    image_model: ImageModel = FLUX_KREA,
) -> ExecutionPlan:
    """The best way to make one take of the request on this machine.

    Args:
        request: what is asked for, resolved (its size must not depend on an image).
        variant: the model.
        hardware: the machine, as it is now.
        preferences: what is forced; by default nothing.
        rates: measured on this machine; by default those of its class.
        image_model: draws the first frame where that is wished.

    Raises:
        InvalidInputError: nothing fits, or what is forced is impossible; the message says what would be needed.
    """
    return plan_workload(Workload.of(request, variant, image_model), hardware, preferences, rates)


def plan_workload(
    workload: Workload,
    hardware: Hardware,
    preferences: Preferences | None = None,
    rates: Rates | None = None,
) -> ExecutionPlan:
    """`plan`, for a workload. Raises as `plan`."""
    preferences = preferences or Preferences()
    if unknown := [gpu for gpu in preferences.gpus or () if not 0 <= gpu < len(hardware.cards)]:
        raise InvalidInputError(*wording.no_such_card(unknown[0], hardware))
    machines = _able_to_draw(_machines(workload, hardware, preferences, rates), workload)
    candidates = _candidates(workload, hardware, machines, preferences)
    fitting = [c for c in candidates if c.fits_gpu and c.fits_host]
    if not fitting:
        raise InvalidInputError(*wording.nothing_fits(workload, hardware, candidates, preferences))
    best = min(fitting, key=lambda c: _rank(c, workload.quality))
    better = [c for c in candidates if c not in fitting and _rank(c, workload.quality) < _rank(best, workload.quality)]
    return _to_plan(best, better, workload, hardware, preferences)


def step_down(
    failed: ExecutionPlan,
    stage: Stage,
    request: GenerationRequest,
    variant: Variant,
    hardware: Hardware,
    preferences: Preferences | None = None,
    rates: Rates | None = None,
    image_model: ImageModel = FLUX_KREA,
) -> ExecutionPlan:
    """The next rung of the ladder after `stage` ran out of memory: it needs clearly less there, nowhere more.

    Args:
        failed: the plan that did not hold.
        stage: where memory ran out.
        request: and the rest: as for `plan`.
        variant: see above.
        hardware: see above.
        preferences: see above.
        rates: see above.
        image_model: see above.

    Raises:
        OutOfMemoryError: this was the last rung.
    """
    workload, preferences = Workload.of(request, variant, image_model), preferences or Preferences()
    limits = {name: planned.peak_gpu_bytes for name, planned in failed.stages.items()}
    limits[stage] = int(STEP_DOWN * limits[stage])
    host = failed.peak_host_bytes if failed.device != "cpu" else int(STEP_DOWN * failed.peak_host_bytes)
    machines = [
        dataclasses.replace(m, gpu_bytes=limits, host_budget=m.host_budget if m.card else min(m.host_budget, host))
        for m in _machines(workload, hardware, preferences, rates)
        if m.device == failed.device
    ]
    candidates = _candidates(workload, hardware, machines, preferences)
    fitting = [c for c in candidates if c.fits_gpu and c.fits_host]
    if not fitting:
        raise OutOfMemoryError(
            f"Memory ran out in the stage {stage!r}, and no plan needs less.",
            "Choose a smaller size, choose the quality 'smallest', or close other programs that use the card.",
        )
    best = min(fitting, key=lambda c: _rank(c, workload.quality))
    return _to_plan(best, [], workload, hardware, preferences)


def _rank(candidate: Candidate, quality: Quality) -> tuple[float, float]:
    """Less is better."""
    if quality == "smallest":
        return candidate.peak_gpu * candidate.machine.parallel.gpus, candidate.seconds
    transformer = candidate.skeleton.transformer
    # bf16 that would have to be streamed ranks after 8-bit under auto, where it is offered only when forced; bf16 that
    # is sharded ranks with 8-bit.
    second = transformer.precision not in ("float32", "bf16") or transformer.placement == "sharded"
    return (1.0 if quality == "auto" and second else 0.0), candidate.seconds


# --- Devices ----------------------------------------------------------------------------------------------


def _machines(workload: Workload, hardware: Hardware, preferences: Preferences, rates: Rates | None) -> list[Machine]:
    """The usable cards, and for small models the CPU."""
    host = max(0, hardware.free_ram_bytes - memory.HOST_RESERVE_BYTES)
    host = host if preferences.host_limit_bytes is None else min(host, preferences.host_limit_bytes)
    machines = []
    for index, card in enumerate(hardware.cards if hardware.torch_cuda else ()):
        if card.compute_capability < MIN_CAPABILITY or index not in (preferences.gpus or [index]):
            continue
        free = (
            card.free_bytes
            if preferences.gpu_limit_bytes is None
            else min(card.free_bytes, preferences.gpu_limit_bytes)
        )
        machines.append(
            Machine(
                f"cuda:{index}",
                card.name,
                card,
                memory.usable_gpu_bytes(free),
                host,
                rates or Rates.of(hardware, card),
                _attention(card, hardware, workload.quality, preferences.attention_backend, rates),
                # Triton makes no bf16 code for older cards: torch would leave the blocks as they are, and say so.
                "triton" in hardware.kernels and card.compute_capability >= BF16_CAPABILITY,
                kernels=frozenset(hardware.kernels),
            )
        )
    machines += _teams(machines, workload, hardware, preferences)
    if not machines or runs_on_cpu(workload.variant):
        backend: tuple[AttentionBackend, float] = ("native", 1.0)
        machines.append(Machine("cpu", "the CPU", None, 0, host, rates or Rates.of(hardware, None), backend, False))
    return machines


def _teams(machines: list[Machine], workload: Workload, hardware: Hardware, preferences: Preferences) -> list[Machine]:
    """Cards that share a run: those that are alike and about equally free, the emptiest first, as many as are worth it.

    A run that is to reuse steps' work stays on one: what is reused is decided by looking at all tokens.
    """
    if preferences.single_card or preferences.step_cache == "first_block":
        return []
    alike: dict[object, list[Machine]] = {}
    for machine in machines:
        if machine.card is not None:
            alike.setdefault((machine.name, machine.card.total_bytes), []).append(machine)
    found = []
    for group in alike.values():
        first = max(group, key=lambda machine: machine.gpu_budget)
        enough = teams.EQUALLY_FREE * first.gpu_budget
        cards = sorted((m for m in group if m.gpu_budget >= enough), key=lambda m: -m.gpu_budget)
        for groups, sequence in teams.layouts(len(cards), workload):
            chosen = cards[: groups * sequence]
            possible = groups == 1 or preferences.batched_guidance is not False
            if first.card is not None and possible:
                devices = tuple(machine.device for machine in chosen)
                found.append(
                    dataclasses.replace(
                        first,
                        name=f"{len(chosen)} × {first.name}",
                        gpu_budget=min(machine.gpu_budget for machine in chosen),
                        parallel=Parallel(len(chosen), groups, sequence, devices),
                        link=teams.link_rate(hardware.interconnect, first.card, first.rates),
                    )
                )
    return found


def _able_to_draw(machines: list[Machine], workload: Workload) -> list[Machine]:
    """The machines on which a first frame can be drawn, where that is wished; a CPU draws with small models only.

    Raises:
        InvalidInputError: there is none.
    """
    if workload.first_frame != "generated" or workload.image_model.transformer_parameters <= MAX_CPU_PARAMETERS:
        return machines
    if cards := [machine for machine in machines if machine.card is not None]:
        return cards
    raise InvalidInputError(*wording.CANNOT_DRAW_ON_CPU)


def runs_on_cpu(variant: Variant) -> bool:
    """Whether the model is small enough for a CPU."""
    return memory.weight_bytes(variant, "transformer", "bf16") // 2 <= MAX_CPU_PARAMETERS


def _attention(
    card: Card, hardware: Hardware, quality: Quality, forced: AttentionBackend | None, rates: Rates | None
) -> tuple[AttentionBackend, float]:
    """The attention kernel, and its share of the rate of the class's best.

    Shares are guessed from published comparisons, until they are measured on this machine (`ovi-studio bench`).
    """
    hopper = card.compute_capability[0] == 9
    shares: dict[AttentionBackend, float] = {"native": 0.6 if hopper else 0.9}
    if card.compute_capability >= (9, 0):
        shares["_native_cudnn"] = 0.85
    if card.compute_capability >= BF16_CAPABILITY and "flash_attn" in hardware.kernels:
        shares["flash"] = 0.6 if hopper else 1.0
    if hopper and "flash_attn_interface" in hardware.kernels:
        shares["_flash_3"] = 1.0
    sage = card.compute_capability >= BF16_CAPABILITY and "sageattention" in hardware.kernels
    if sage and (quality == "fast" or forced):
        shares["sage"] = 1.2 if hopper else 1.6  # 8-bit products: only where speed is all that is wished
    if rates is not None and rates.kernels:  # one that is installed and was not measured failed
        shares = {name: rates.kernels[name] for name in shares if name in rates.kernels} or shares
    if forced is not None:
        if forced not in shares:
            raise InvalidInputError(
                f"The attention kernel {forced!r} cannot run on {card.name} as things are installed.",
                f"Choose one of {', '.join(shares)}, or leave it to the planner.",
            )
        return forced, shares[forced]
    best = max(shares, key=lambda name: shares[name])
    return best, shares[best]


# --- Candidates -------------------------------------------------------------------------------------------


def _candidates(
    workload: Workload, hardware: Hardware, machines: Iterable[Machine], preferences: Preferences
) -> list[Candidate]:
    """All candidates on all machines, fitting or not.

    Raises:
        InvalidInputError: what is forced is possible on none of them, or the model on no CPU.
    """
    found: list[Candidate] = []
    for machine in machines:
        stages = Stages(workload, machine, preferences, "bytes" if workload.quality == "smallest" else "seconds")
        found += [stages.settle(s) for s in _skeletons(workload, hardware, machine, preferences)]
    if not found:
        raise InvalidInputError(*wording.impossible(workload, hardware, preferences))
    return found


def _skeletons(
    workload: Workload, hardware: Hardware, machine: Machine, preferences: Preferences
) -> Iterable[Skeleton]:
    quality = workload.quality
    if machine.card is None:
        wanted = {preferences.transformer_precision, preferences.text_encoder_precision} <= {None, "float32"}
        placed = {preferences.transformer_placement, preferences.text_encoder_placement} <= {None, "resident"}
        native = preferences.attention_backend in (None, "native") and not preferences.compile
        return [cpu_skeleton()] if wanted and placed and native and runs_on_cpu(workload.variant) else []
    transformer = usable_precisions(machine.card, hardware)
    text_encoder: list[Precision] = ["bf16"]
    if "torchao" in hardware.kernels:
        text_encoder.append("int8")
    if "bitsandbytes" in hardware.kernels:
        text_encoder.append("nf4")
    if preferences.compile is not None:
        never = "fp8_storage" if preferences.compile else "fp8_compute"
        transformer = [precision for precision in transformer if precision != never]
        transformer = transformer if machine.can_compile or not preferences.compile else []
    if preferences.transformer_precision is not None:
        transformer = [p for p in transformer if p == preferences.transformer_precision]
    elif quality == "auto":  # bf16 and the best of the 8-bit precisions
        transformer = transformer[:2]
    if preferences.text_encoder_precision is not None:
        text_encoder = [p for p in text_encoder if p == preferences.text_encoder_precision]
    elif quality != "fast":
        text_encoder = ["bf16"]  # it runs once a run: quantizing it saves a second at most
    if quality == "exact":
        transformer = [p for p in transformer if p == "bf16"]
        text_encoder = [p for p in text_encoder if p == "bf16"]
    found = skeletons(transformer, text_encoder, preferences, machine.parallel.gpus > 1)
    forced = preferences.transformer_precision or preferences.transformer_placement
    if quality != "auto" or forced is not None:
        return found
    return (s for s in found if s.transformer.precision != "bf16" or s.transformer.placement != "streamed")


def usable_precisions(card: Card, hardware: Hardware) -> list[Precision]:
    """In which precisions the transformer can run on a card, with what is installed; the best first."""
    precisions: list[Precision] = ["bf16"]
    if card.compute_capability >= FP8_CAPABILITY and {"torchao", "triton"} <= hardware.kernels:
        precisions.append("fp8_compute")
    if "torchao" in hardware.kernels:
        precisions.append("int8")
    return [*precisions, "fp8_storage"]


# --- The plan ---------------------------------------------------------------------------------------------


def _to_plan(
    best: Candidate,
    better: list[Candidate],
    workload: Workload,
    hardware: Hardware,
    preferences: Preferences,
) -> ExecutionPlan:
    machine, settings = best.machine, best.settings
    tiling = best.choices["decode"].settings
    guidance: GuidancePasses = "batched" if settings.batched else "sequential"
    if machine.parallel.guidance_groups > 1:
        guidance = "split"
    stages: Mapping[Stage, StagePlan] = {
        stage: StagePlan(best.gpu_bytes(stage), best.host_bytes(stage), choice.seconds)
        for stage, choice in best.choices.items()
    }
    return ExecutionPlan(
        variant=workload.variant.name,
        size=(workload.size.height, workload.size.width),
        quality=workload.quality,
        device=machine.device,
        device_name=machine.name,
        components=component_plans(best, workload),
        attention_backend=machine.attention[0],
        vae_tiling=tiling if isinstance(tiling, str) else "none",
        text_cache=settings.text_cache,
        guidance=guidance if workload.passes == 2 else "none",
        compile=settings.compile,
        step_cache=settings.step_cache,
        step_cache_threshold=preferences.step_cache_threshold or STEP_CACHE_THRESHOLD,
        ffn_chunks=settings.ffn_chunks,
        parallel=machine.parallel,
        stages=stages,
        gpu_budget_bytes=machine.gpu_budget,
        host_budget_bytes=machine.host_budget,
        reasons=tuple(wording.reasons(best, workload, hardware, preferences)),
        rejected=tuple(wording.rejected(best, better, workload, hardware)),
    )
