"""What several cards change of a plan: who shares what, what each holds, and the bytes they exchange. Without torch.

    layouts(cards, workload)       the ways to share a run among so many cards
    traffic(workload, parallel)    bytes that a rank sends in a step, as `runtime/parallel.py` and its parts send them

`docs/parallel.md` has the formulas, and tests count the real exchanges against them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from ovi_studio.arithmetic import Cost, TransformerCost, forward_cost
from ovi_studio.runtime import memory
from ovi_studio.runtime.execution_plan import Parallel
from ovi_studio.runtime.hardware import Card, Hardware, Interconnect
from ovi_studio.runtime.memory import Workload
from ovi_studio.runtime.rates import Rates

# GB/s (10^9 bytes) that a card sends to others, by compute capability: 80 % of the data sheet's NVLink, one way.
NVLINK_RATES: Mapping[tuple[int, int], float] = {(8, 0): 240.0, (8, 6): 45.0, (9, 0): 360.0, (10, 0): 720.0}
PCIE_SHARE = 0.5  # of the rate from host memory, through which many cards reach each other; guessed
EXCHANGE_SECONDS = 3e-5  # to begin one; guessed
START_SECONDS = 10.0  # for the other processes to start and find each other, once; guessed

EQUALLY_FREE = 0.75  # of the emptiest card: a fuller one would make all of them hold less; guessed
TIMESTEP_BYTES = 8  # an integer

Tile = TypeVar("Tile")


def layouts(cards: int, workload: Workload) -> Iterator[tuple[int, int]]:
    """Guidance groups and cards in each, for all numbers of cards that are worth a plan: 2, 4, 8 and all of them.

    Passes are split first, as they exchange next to nothing; what is left shares the video tokens.
    """
    for count in sorted({2, 4, 8, cards}):
        groups = 2 if workload.passes == 2 and count % 2 == 0 else 1
        sequence = count // groups
        if 1 < count <= cards and (sequence == 1 or (workload.video_tokens and sequence <= _heads(workload))):
            yield groups, sequence


def link_rate(interconnect: Interconnect, card: Card, rates: Rates) -> float:
    """GB/s that a card sends to the others while they do the same."""
    if interconnect != "nvlink":
        return PCIE_SHARE * rates.host_to_card
    near = max((c for c in NVLINK_RATES if c <= card.compute_capability), default=min(NVLINK_RATES))
    return NVLINK_RATES[near]


def own_tokens(workload: Workload, parallel: Parallel) -> int:
    """Video tokens of the rank that has most."""
    return math.ceil(workload.video_tokens / parallel.sequence)


def own_cost(cost: TransformerCost, workload: Workload, parallel: Parallel) -> Cost:
    """Operations of one pass on the rank that has most; the sound's are everybody's."""
    if parallel.sequence == 1 or not workload.video_tokens:
        return cost.per_forward()
    tokens = own_tokens(workload, parallel) / workload.video_tokens
    heads = math.ceil(_heads(workload) / parallel.sequence) / _heads(workload)
    video_text = workload.video_tokens / (workload.video_tokens + workload.audio_tokens)
    spared = [
        (cost.linear_video + cost.fusion_attention, 1 - tokens),
        (cost.self_attention_video, 1 - heads),
        (cost.text_attention, video_text * (1 - tokens)),
    ]
    whole = cost.per_forward()
    return Cost(
        matmul=whole.matmul - round(sum(part.matmul * share for part, share in spared)),
        attention=whole.attention - round(sum(part.attention * share for part, share in spared)),
    )


@dataclass(frozen=True)
class Traffic:
    """What a rank sends in a step, in bytes, and how many exchanges it is in.

    Args:
        latents: rank 0 to all, and the other groups' results to rank 0.
        tokens: Ulysses' two all-to-alls in every block.
        merges: the sound's attention to the picture, in every block.
        patches: what the head makes.
        weights: shares of blocks, where they are sharded.
        exchanges: that wait for others.
    """

    latents: int
    tokens: int
    merges: int
    patches: int
    weights: int
    exchanges: int

    @property
    def waited_for(self) -> int:
        """Bytes that nothing hides."""
        return self.latents + self.tokens + self.merges + self.patches

    def seconds(self, link: float) -> float:
        """That a step takes longer, on a link of so many GB/s; weights come while blocks run."""
        return self.waited_for / (1e9 * link) + self.exchanges * EXCHANGE_SECONDS


def traffic(
    workload: Workload,
    parallel: Parallel,
    width: int = 2,
    sharded_block: int = 0,
    rank: int = 0,
    passes: int | None = None,
) -> Traffic:
    """What a rank sends in a step.

    Args:
        workload: of the run; batched where there is one group.
        parallel: how it is shared.
        width: bytes of an element.
        sharded_block: bytes of a block whose weights are sharded; 0 where they are not.
        rank: whose; rank 0 sends most.
        passes: of the step, where not the workload's.
    """
    variant, shape = workload.variant, workload.variant.transformer
    world, sequence = parallel.gpus, parallel.sequence
    passes = workload.passes if passes is None else passes
    split = parallel.guidance_groups > 1 and passes % parallel.guidance_groups == 0
    group, place = divmod(rank, sequence)
    samples = 1 if split else passes
    # The first block's tokens are the same for all samples; the negative pass leaves blocks out.
    skips = workload.skipped_blocks if passes == 2 and (group == 1 or not split) else 0
    runs = samples * shape.num_layers - skips
    own_runs = runs - (samples - 1)
    blocks = shape.num_layers - (skips if samples == 1 else 0)

    video = audio = 0
    if workload.modality != "audio":
        video = shape.in_channels * math.prod(variant.latent_grid(*workload.size)) * width
    if workload.modality != "video":
        audio = shape.audio_in_channels * variant.audio_latents * width
    latents = (world - 1) * (video + audio + TIMESTEP_BYTES) if rank == 0 else 0
    if split and group and place == 0:
        latents += video + audio

    tokens = merges = patches = 0
    if sequence > 1 and workload.video_tokens:
        counts, heads = shares(workload.video_tokens, sequence), shares(shape.num_attention_heads, sequence)
        head = shape.attention_head_dim * width
        out = 3 * counts[place] * (shape.num_attention_heads - heads[place])
        back = heads[place] * (workload.video_tokens - counts[place])
        tokens = own_runs * (out + back) * head
        merged = workload.audio_tokens * (shape.dim + shape.num_attention_heads) * 4
        merges = own_runs * (sequence - 1) * merged
        patch = shape.in_channels * math.prod(shape.patch_size) * width
        patches = samples * (sequence - 1) * max(counts) * patch
    weights = shape.num_layers * (world - 1) * (sharded_block // world)
    exchanges = (3 * blocks if tokens else 0) + 4
    return Traffic(latents, tokens, merges, patches, weights, exchanges)


def efficiencies(workload: Workload, hardware: Hardware, counts: Sequence[int]) -> list[float]:
    """Predicted: how much of so many cards' work a step of the loop gets done, compared with one card's, in bf16.

    Products, attention, exchanges, and what every card does again; nothing overlaps.
    """
    card = hardware.cards[0]
    rates = Rates.of(hardware, card)
    link = link_rate(hardware.interconnect, card, rates)
    cost = forward_cost(workload.variant, workload.size, workload.modality)

    def seconds(work: Cost) -> float:
        return rates.product_seconds(work.matmul, "bf16") + rates.attention_seconds(work.attention, 1.0)

    alone = seconds(cost.per_forward()) + (workload.passes - 1) * seconds(cost.per_forward(workload.skipped_blocks))
    found = []
    for count in counts:
        groups, sequence = next(layout for layout in layouts(count, workload) if math.prod(layout) == count)
        parallel = Parallel(count, groups, sequence)
        own = workload.passes / groups * seconds(own_cost(cost, workload, parallel))
        together = own + traffic(workload, parallel).seconds(link)
        found.append(alone / together / count)
    return found


def exchange_bytes(workload: Workload, parallel: Parallel, batch: int, width: int) -> int:
    """A rank's widest moment while tokens are changed for heads.

    Tensors of its tokens: its state before the block and the normed input; queries, keys and values as they were
    made, packed, as sent, and as received. Beside them all tokens of one sample, until the first block has run.
    """
    if parallel.sequence == 1:
        return 0
    dim = workload.variant.transformer.dim
    return (batch * 14 * own_tokens(workload, parallel) + workload.video_tokens) * dim * width


def shares(count: int, ranks: int) -> tuple[int, ...]:
    """How many of `count` each of the ranks has: as even as can be, the first ones more."""
    least, more = divmod(count, ranks)
    return tuple(least + (rank < more) for rank in range(ranks))


def assigned(areas: Mapping[Tile, int], ranks: int) -> list[list[Tile]]:
    """Which tiles each rank decodes: the largest first, each to whom has least to do."""
    load: list[int] = [0] * ranks
    tiles: list[list[Tile]] = [[] for _ in range(ranks)]
    for tile in sorted(areas, key=lambda tile: -areas[tile]):
        rank = load.index(min(load))
        load[rank] += areas[tile]
        tiles[rank].append(tile)
    return tiles


def tile_shares(workload: Workload, ranks: int) -> list[Sequence[tuple[int, int]]]:
    """The tiles (rows and columns, in latents) that each rank decodes."""
    _, rows, columns = workload.variant.latent_grid(*workload.size)
    spans = list(product(memory.tile_spans(workload.variant, rows), memory.tile_spans(workload.variant, columns)))
    numbered = {index: h * w for index, (h, w) in enumerate(spans)}
    return [[spans[index] for index in part] for part in assigned(numbered, ranks)]


def _heads(workload: Workload) -> int:
    return workload.variant.transformer.num_attention_heads
