"""A plan's reasons, what it turned down, and why nothing fits, in words for a person."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ovi_studio.runtime import costs, memory, teams
from ovi_studio.runtime.candidates import Candidate
from ovi_studio.runtime.execution_plan import STEP_CACHE_THRESHOLD, Preferences, gigabytes
from ovi_studio.runtime.hardware import BF16_CAPABILITY, FP8_CAPABILITY, GB, MIN_CAPABILITY, Card, Hardware
from ovi_studio.runtime.memory import Workload

PRECISION_WORDS = {
    "float32": "float32",
    "bf16": "bf16",
    "fp8_compute": "fp8 (computed in fp8)",
    "fp8_storage": "fp8 (stored, computed in bf16)",
    "int8": "int8 weights",
    "nf4": "nf4 weights",
}
PLACEMENT_WORDS = {
    "resident": "on the card throughout",
    "staged": "taking turns",
    "streamed": "streamed",
    "sharded": "shared by the cards",
}
FEW_STEPS = 0.6  # of the usual ones: so few are told, with what they cost; guessed
LINK_WORDS = {"none": "PCIe", "pcie": "PCIe", "nvlink": "NVLink"}


# --- Why --------------------------------------------------------------------------------------------------


def reasons(best: Candidate, workload: Workload, hardware: Hardware, preferences: Preferences) -> Iterator[str]:
    """Why the plan is as it is, the most important first."""
    if preferences.forced():
        yield f"Forced: {', '.join(preferences.forced())}."
    if best.machine.card is None:
        why = "no card has room for it or is faster" if _usable(hardware) else "there is no usable card"
        yield f"It runs on the CPU, as {why}; in float32, as bf16 is far slower there."
        yield from _turbo_reasons(best, workload, preferences)
        return
    yield from _team_reasons(best, workload, hardware)
    yield from _budget_reasons(best)
    yield from _transformer_reasons(best, workload, preferences)
    yield from _placement_reasons(best, workload, hardware, preferences)
    yield from _setting_reasons(best, workload, preferences)
    yield f"Seconds are estimated from the rates of this kind of card: {best.machine.rates.origin}."


def _team_reasons(best: Candidate, workload: Workload, hardware: Hardware) -> Iterator[str]:
    parallel = best.machine.parallel
    if parallel.gpus == 1:
        return
    ways = []
    if parallel.guidance_groups > 1:
        ways.append("the prompt's pass and the negative prompts' run side by side")
    if parallel.sequence > 1:
        ways.append(f"{parallel.sequence} cards share the picture's tokens of a pass")
    yield f"{parallel.gpus} cards alike share the clip, which is faster than one: {', and '.join(ways)}."
    width = memory.element_bytes(best.skeleton.transformer.precision)
    sent = teams.traffic(workload, parallel, width).waited_for
    yield (
        f"Each sends up to {gigabytes(sent)} a step over {LINK_WORDS[hardware.interconnect]}, at "
        f"{best.machine.link:.0f} GB/s ({sent / 1e9 / best.machine.link:.2f} s that nothing hides). Predicted."
    )
    if best.skeleton.transformer.placement == "sharded":
        yield "Each keeps a share of the transformer's blocks, and gets the others' while the block before runs."


def _budget_reasons(best: Candidate) -> Iterator[str]:
    card = best.machine.card
    if card is not None:
        yield (
            f"Of {gigabytes(card.free_bytes)} free on {card.name}, {gigabytes(best.machine.gpu_budget)} can be used: "
            f"{gigabytes(memory.CUDA_CONTEXT_BYTES)} go to CUDA itself, {memory.FRAGMENTATION:.0%} to fragmentation."
        )
        if card.compute_capability < BF16_CAPABILITY:
            yield f"Compute capability {card.capability} has no bf16 units: it works, but slowly."


def _transformer_reasons(best: Candidate, workload: Workload, preferences: Preferences) -> Iterator[str]:
    part = best.skeleton.transformer
    if part.precision == "bf16":
        yield "The transformer stays in bf16, as it was trained."
        return
    whole = gigabytes(memory.weight_bytes(workload.variant, "transformer", "bf16"))
    words = PRECISION_WORDS[part.precision]
    quality = "forced" if preferences.transformer_precision is not None else workload.quality
    told = {
        "auto": f"The transformer's {whole} in bf16 do not fit beside its activations, so it runs as {words}.",
        "fast": f"The transformer runs as {words}, the fastest that fits.",
    }.get(quality, f"The transformer runs as {words}, which takes half of the {whole} of bf16.")
    yield f"{told} {costs.of_precision(part.precision)}"
    if part.precision == "fp8_compute":
        yield "fp8 is compiled: only then is the quantizing of activations fused into other work."


def _cause(workload: Workload, forced: object, cause: str) -> str:
    """What a part is like it is for: it was forced, the wish was for the least, or this cause."""
    if forced is not None:
        return "As forced"
    return "To take the least of the card" if workload.quality == "smallest" else cause


def _placement_reasons(
    best: Candidate, workload: Workload, hardware: Hardware, preferences: Preferences
) -> Iterator[str]:
    transformer, text_encoder = best.skeleton.transformer, best.skeleton.text_encoder
    if transformer.placement == "staged":
        cause = _cause(workload, preferences.transformer_placement, "Together they do not fit in every stage")
        yield f"{cause}: the components take turns on the card."
    elif transformer.placement == "streamed":
        cause = _cause(workload, preferences.transformer_placement, "The transformer does not fit as a whole")
        kept = {0: "no block stays", 1: "1 block stays"}.get(
            best.settings.resident_blocks, f"{best.settings.resident_blocks} blocks stay"
        )
        yield f"{cause}: {kept} on the card, the others are brought one by one while the block before runs."
    elif text_encoder.placement == "staged":
        yield "The text encoder leaves the card when the prompts are encoded, which makes room for the rest."
    if text_encoder.placement == "streamed":
        cause = _cause(workload, preferences.text_encoder_placement, "As a whole it does not fit")
        yield f"{cause}: the text encoder is streamed layer by layer."
    homes = {part.home for part in (transformer, text_encoder)}
    if "disk" in homes:
        yield (
            f"{gigabytes(hardware.free_ram_bytes)} of free RAM do not hold all components beside each other: "
            f"what is not in use is read from the disk ({hardware.disk}) again."
        )


def _turbo_reasons(best: Candidate, workload: Workload, preferences: Preferences) -> Iterator[str]:
    """What is approximate, and what that costs where it was measured."""
    encoder = best.skeleton.text_encoder.precision
    if encoder not in ("float32", "bf16"):
        yield f"The text encoder runs as {PRECISION_WORDS[encoder]}: approximate. {costs.UNMEASURED}"
    if best.settings.step_cache == "first_block":
        threshold = preferences.step_cache_threshold or STEP_CACHE_THRESHOLD
        yield (
            f"Steps whose first block changes by less than {threshold:.0%} reuse the others' work: approximate, and "
            f"how much it saves differs from clip to clip. {costs.of_step_cache(threshold)}"
        )
    usual = workload.variant.defaults.num_inference_steps
    if workload.steps <= FEW_STEPS * usual and not workload.adapters:
        share = workload.steps / usual
        yield f"{workload.steps} steps where {usual} are usual: approximate. {costs.of_steps(share)}"
    if workload.passes == 2 and workload.guided < 1:
        yield (
            f"Guidance works in {workload.guided:.0%} of the steps; the others run one pass instead of two. "
            f"{costs.of_guidance(workload.guided)}"
        )
    if best.machine.attention[0] == "sage":
        yield f"Attention multiplies in 8 bits: approximate. {costs.UNMEASURED}"


def _setting_reasons(best: Candidate, workload: Workload, preferences: Preferences) -> Iterator[str]:
    settings = best.settings
    yield from _turbo_reasons(best, workload, preferences)
    if workload.passes == 2 and not settings.batched:
        cause = _cause(workload, preferences.batched_guidance, "Their activations do not fit beside each other")
        yield f"{cause}: the guidance passes run one after the other."
    if not settings.text_cache:
        yield "The text's keys and values are projected anew at every step, which saves keeping them."
    if settings.ffn_chunks > 1:
        yield "Feed-forward layers take the tokens in parts: the same numbers at a lower peak."
    tiling = best.choices["decode"].settings
    if tiling == "tiled":
        cause = _cause(workload, preferences.vae_tiling, "As a whole the decode does not fit")
        yield f"{cause}: the picture is decoded in tiles."
    elif tiling == "split":
        yield "Each card decodes some tiles of the picture."
    elif tiling == "tile_by_tile":
        yield "The picture is decoded tile by tile, its frames kept in host memory: this is the smallest decode."
    if settings.compile and best.skeleton.transformer.precision != "fp8_compute":
        yield f"{_cause(workload, preferences.compile, 'The run is long enough to repay it')}: blocks are compiled."


# --- Why not ----------------------------------------------------------------------------------------------


def rejected(best: Candidate, better: Iterable[Candidate], workload: Workload, hardware: Hardware) -> Iterator[str]:
    """What would have ranked higher and does not fit, a line for each kind; and what the machine lacks."""
    nearest: dict[str, Candidate] = {}
    for candidate in better:
        title = _title(candidate)
        if title not in nearest or _shortage(candidate) < _shortage(nearest[title]):
            nearest[title] = candidate
    for title, candidate in nearest.items():
        if title != _title(best):
            yield f"{title}: {_shortage_words(candidate)}."
    if best.machine.card is not None:
        yield from _lacking(best, workload, hardware)


def _lacking(best: Candidate, workload: Workload, hardware: Hardware) -> Iterator[str]:
    card = best.machine.card
    if card is None:
        return
    if workload.quality != "exact":
        if card.compute_capability < FP8_CAPABILITY:
            yield f"fp8 computation: needs compute capability 8.9, {card.name} has {card.capability}."
        elif not {"torchao", "triton"} <= hardware.kernels:
            yield "fp8 computation: the packages torchao and triton are not both installed."
        if "torchao" not in hardware.kernels:
            yield "int8 weights: the package torchao is not installed."
    if card.compute_capability[0] == 9 and "flash_attn_interface" not in hardware.kernels:
        yield "FlashAttention 3: the package flash_attn_interface is not installed."
    if (others := len(_usable(hardware)) - best.machine.parallel.gpus) > 0:
        yield (
            f"Sharing the work with {others} more card{'s' if others > 1 else ''}: it would not be faster, or they are "
            "not alike, not to be used, or lack room."
        )


def _title(candidate: Candidate) -> str:
    transformer, text_encoder = candidate.skeleton.transformer, candidate.skeleton.text_encoder
    placed = PLACEMENT_WORDS[transformer.placement]
    if candidate.machine.parallel.gpus > 1:
        placed += f", on {candidate.machine.parallel.gpus} cards"
    if transformer.placement == "resident" and text_encoder.placement == "staged":
        placed += ", the text encoder taking turns"
    return f"Transformer in {PRECISION_WORDS[transformer.precision]}, {placed}"


def _shortage(candidate: Candidate) -> int:
    """Bytes missing, on the card or in host memory."""
    stage = candidate.tightest
    gpu = candidate.gpu_bytes(stage) - candidate.machine.gpu_limit(stage)
    return max(0, gpu) + max(0, candidate.peak_host - candidate.machine.host_budget)


def _shortage_words(candidate: Candidate) -> str:
    stage = candidate.tightest
    if not candidate.fits_gpu:
        needed, usable = candidate.gpu_bytes(stage), candidate.machine.gpu_limit(stage)
        return f"the stage '{stage}' needs {gigabytes(needed)} on the card, {gigabytes(usable)} can be used"
    return (
        f"needs {gigabytes(candidate.peak_host)} of host memory, {gigabytes(candidate.machine.host_budget)} can be used"
    )


def no_such_card(number: int, hardware: Hardware) -> tuple[str, str]:
    """Problem and remedy where a card is named that is not there."""
    count = len(hardware.cards)
    there = "There is none" if not count else f"They are numbered 0 to {count - 1}" if count > 1 else "There is only 0"
    return f"There is no card {number}.", f"{there}; leave out --gpus to use what there is."


# --- Nothing goes -----------------------------------------------------------------------------------------

GIVE_AN_IMAGE = "Give an image as the first frame instead, or start from the prompt alone"
CANNOT_DRAW_ON_CPU = (
    "There is no usable NVIDIA card, and on a CPU FLUX.1 would take hours to draw the first frame.",
    f"{GIVE_AN_IMAGE}.",
)


def nothing_fits(
    workload: Workload, hardware: Hardware, candidates: Iterable[Candidate], preferences: Preferences
) -> tuple[str, str]:
    """Problem and remedy where every candidate is too large."""
    listed = list(candidates)
    if workload.first_frame == "generated":
        undrawn = [replace(c, choices={s: x for s, x in c.choices.items() if s != "draw frame"}) for c in listed]
        if any(c.fits_gpu and c.fits_host for c in undrawn):
            return _nothing_draws(hardware, listed)
        listed = undrawn  # without the frame it would not fit either
    what = f"{workload.variant.name} at {workload.size} (quality {workload.quality!r})"
    free = "Leave more to the planner" if preferences.forced() else "Choose a smaller size or the quality 'smallest'"
    on_card = [c for c in listed if c.machine.card is not None]
    if on_card and not any(c.fits_gpu for c in on_card):
        need = memory.free_bytes_for(min(c.peak_gpu for c in on_card))
        have = max(c.machine.card.free_bytes for c in on_card if c.machine.card)
        return (
            f"{what} needs {_up(need)} free on the card, and {gigabytes(have)} are.",
            f"{free}, close other programs, or use a card with at least {_up(need)} free.",
        )
    host = min(c.peak_host for c in listed if c.fits_gpu) + memory.HOST_RESERVE_BYTES
    return (
        f"{what} needs {_up(host)} of free RAM, and {gigabytes(hardware.free_ram_bytes)} are free.",
        f"{free}, close other programs, or add memory.",
    )


def _nothing_draws(hardware: Hardware, candidates: list[Candidate]) -> tuple[str, str]:
    """Problem and remedy where only the drawing of the first frame is too large."""
    gpu = min(c.gpu_bytes("draw frame") for c in candidates)
    least = min((c for c in candidates if c.gpu_bytes("draw frame") == gpu), key=lambda c: c.host_bytes("draw frame"))
    card = least.machine.card
    if card is not None and gpu > least.machine.gpu_limit("draw frame"):
        need, have = f"{_up(memory.free_bytes_for(gpu))} free on the card", gigabytes(card.free_bytes)
    else:
        need = f"{_up(least.host_bytes('draw frame') + memory.HOST_RESERVE_BYTES)} of free RAM"
        have = gigabytes(hardware.free_ram_bytes)
    return f"To draw the first frame FLUX.1 needs {need}, and {have} are.", f"{GIVE_AN_IMAGE}, or close other programs."


def impossible(workload: Workload, hardware: Hardware, preferences: Preferences) -> tuple[str, str]:
    """Problem and remedy where there is no candidate at all."""
    if usable := _usable(hardware):
        forced = ", ".join(preferences.forced())
        problem = f"{forced or 'This'} is not possible on {usable[0].name} with quality {workload.quality!r}."
        remedy = (
            "Leave more to the planner: fp8_compute needs compute capability 8.9, torchao and triton; int8 needs "
            "torchao; nf4 needs bitsandbytes, and moves as a whole; exact means bf16."
        )
        return problem, remedy
    why = "There is no usable NVIDIA card"
    if hardware.cards and not hardware.torch_cuda:
        why = "The installed torch cannot use the card"
    elif hardware.cards:
        why = f"{hardware.cards[0].name} is too old (compute capability below {'.'.join(map(str, MIN_CAPABILITY))})"
    if preferences.forced() and workload.variant.name == "nano":
        return f"{why}, and {', '.join(preferences.forced())} needs one.", "Leave it to the planner."
    remedy = "Use the model nano here, or a machine with an NVIDIA card of 6 GB or more."
    if hardware.cards and not hardware.torch_cuda:
        remedy = "Install a CUDA build of torch, or use the model nano."
    return f"{why}, and {workload.variant.name} would take hours on a CPU.", remedy


def _usable(hardware: Hardware) -> list[Card]:
    """The cards that torch can work on."""
    return [card for card in hardware.cards if hardware.torch_cuda and card.compute_capability >= MIN_CAPABILITY]


def _up(count: int) -> str:
    """Gigabytes, rounded up to a tenth: what is named must be enough."""
    return f"{-(-count * 10 // GB) / 10:.1f} GB"
