"""How fast a machine works, and so how long a piece of work takes.

Seconds are operations over rates, plus elementwise traffic over memory bandwidth, plus transfers that nothing
hides. Defaults go by the card's compute capability; a calibration measured on the machine can replace them.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ovi_studio.arithmetic import Cost
from ovi_studio.errors import InvalidInputError
from ovi_studio.runtime import costs
from ovi_studio.runtime.hardware import Card, Disk, Hardware
from ovi_studio.runtime.memory import Precision

# Bytes read and written by elementwise work, in tensors of tokens x width: derived by counting the operations of a
# fusion block in a trace (271, norms taken apart); compiled: guessed.
EAGER_TRAFFIC, COMPILED_TRAFFIC = 250, 60
# Starting the ~300 kernels of a block; guessed.
EAGER_LAUNCH_SECONDS, COMPILED_LAUNCH_SECONDS = 1.5e-3, 4e-4
# A clip's share of compiling a block, both passes: about 30 s, once for all clips while the model stays as it is, and
# the next session finds most of it on the disk; guessed.
COMPILE_SECONDS = 10.0
STREAMING_SLOWDOWN = 1.02  # transfers share memory bandwidth with the work they hide behind; guessed
PAGEABLE_SHARE = 0.5  # of the pinned transfer rate; guessed
QUANTIZED_SHARE = 0.9  # of the bf16 rate where weights are unpacked before each product; guessed
NF4_SHARE = 0.7  # likewise; guessed
CAST_SHARE = 0.88  # fp8 storage casts every weight by separate kernels; guessed
# Of the denoising, by the step cache at its usual threshold or above: nano's share at 30 steps; at 15 each changes too
# much. Measured there, guessed for the released models, and different from clip to clip (docs/performance.md).
STEP_CACHE_SAVES, STEP_CACHE_MIN_STEPS = 1 - 1 / costs.MEASURED["cache below 0.1"].times, 30
MUX_PIXELS_PER_SECOND = 1e8  # x264 at its default speed on a few cores; guessed


@dataclass(frozen=True)
class Rates:
    """What a machine really reaches.

    Args:
        matmul: TFLOP/s of large matrix products in bf16 (on a CPU: float32).
        matmul_fp8: TFLOP/s with fp8 inputs, quantizing activations included; the same as `matmul` where cards
            have no fp8.
        attention: TFLOP/s of the best attention kernel for the card.
        convolution: TFLOP/s of the VAE's 3-D convolutions.
        memory: GB/s of the memory that tensors live in (10^9 bytes).
        host_to_card: GB/s from pinned host memory.
        disk: GB/s of reading weights.
        origin: where the numbers come from.
        kernels: measured attention kernels, by their names in a plan: share of the best one's rate.
    """

    matmul: float
    matmul_fp8: float
    attention: float
    convolution: float
    memory: float
    host_to_card: float
    disk: float
    origin: str
    kernels: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, hardware: Hardware, card: Card | None) -> "Rates":
        """Defaults for a card of the machine, or for its CPU."""
        disk = DISK_RATES[hardware.disk]
        if card is None:
            cores = hardware.cores
            return cls(0.03 * cores, 0.03 * cores, 0.015 * cores, 0.012 * cores, 20.0, 10.0, disk, "guessed by cores")
        near = max((c for c in _CLASSES if c <= card.compute_capability), default=min(_CLASSES))
        rates, reference = _CLASSES[near]
        rates = dataclasses.replace(rates, disk=disk)
        if not (card.cuda_cores and card.clock_mhz):
            return rates
        share = card.cuda_cores * card.clock_mhz / reference
        return dataclasses.replace(
            rates,
            matmul=rates.matmul * share,
            matmul_fp8=rates.matmul_fp8 * share,
            attention=rates.attention * share,
            convolution=rates.convolution * share,
            memory=rates.memory * share,  # bandwidth is roughly matched to compute within a class
            origin=f"{rates.origin}; scaled by cores and clock",
        )

    @classmethod
    def from_json(cls, data: object) -> "Rates":
        """Rates from what `to_json` gave.

        Raises:
            InvalidInputError: the data is something else, or a rate is not positive.
        """
        try:
            rates = TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            raise InvalidInputError("The calibration cannot be read.", "Calibrate this machine anew.") from error
        numbers = [value for value in vars(rates).values() if isinstance(value, float)]
        if not all(0 < value < math.inf for value in (*numbers, *rates.kernels.values())):
            raise InvalidInputError(
                "A rate of the calibration is not a positive number.", "Calibrate this machine anew."
            )
        return rates

    def to_json(self) -> dict[str, Any]:
        """As data for `json.dumps`."""
        return {**vars(self), "kernels": dict(self.kernels)}

    # --- Seconds -----------------------------------------------------------------------------------------

    def product_seconds(self, operations: float, precision: Precision) -> float:
        """Seconds of matrix products with weights in `precision`."""
        rates = {
            "fp8_compute": self.matmul_fp8,
            "fp8_storage": self.matmul * CAST_SHARE,
            "int8": self.matmul * QUANTIZED_SHARE,
            "nf4": self.matmul * NF4_SHARE,
        }
        return operations / (1e12 * rates.get(precision, self.matmul))

    def attention_seconds(self, operations: float, kernel_share: float) -> float:
        """Seconds of attention on a kernel that reaches this share of the best one's rate."""
        return operations / (1e12 * self.attention * kernel_share)

    def convolution_seconds(self, cost: Cost) -> float:
        """Seconds of a VAE or vocoder."""
        return cost.operations / (1e12 * self.convolution)

    def traffic_seconds(self, count: float) -> float:
        """Seconds of moving `count` bytes through the memory that tensors live in."""
        return count / (1e9 * self.memory)

    def pinned_seconds(self, count: float) -> float:
        """Seconds of bringing `count` bytes from pinned host memory to the card."""
        return count / (1e9 * self.host_to_card)

    def pageable_seconds(self, count: float) -> float:
        """The same from ordinary host memory."""
        return self.pinned_seconds(count) / PAGEABLE_SHARE

    def disk_seconds(self, count: float) -> float:
        """Seconds of reading `count` bytes from disk."""
        return count / (1e9 * self.disk)


DISK_RATES: MappingProxyType[Disk, float] = MappingProxyType({"hdd": 0.15, "ssd": 0.5, "nvme": 3.0})  # guessed


def _guess(matmul: float, fp8: float, attention: float, convolution: float, memory: float, link: float) -> Rates:
    return Rates(matmul, fp8, attention, convolution, memory, link, 3.0, "derived from data sheets")


# By compute capability: rates of the class's typical card, and that card's cores × MHz.
# Derived: 80 % of the data sheet's dense tensor rate in bf16 and fp8, 65 % for attention; convolutions at half
# (guessed); transfers at 80 % of PCIe x16 of the class's generation.
# 9.0: matmul measured on an H200 (790 TFLOP/s); attention as published for FlashAttention-3; the rest derived.
# 7.5 has no bf16 units: guessed from its float32 rate.
_CLASSES: MappingProxyType[tuple[int, int], tuple[Rates, int]] = MappingProxyType(
    {
        (7, 5): (_guess(10, 10, 8, 6, 500, 12), 4352 * 1545),  # RTX 2080 Ti
        (8, 0): (_guess(250, 250, 190, 125, 1500, 24), 6912 * 1410),  # A100
        (8, 6): (_guess(57, 57, 46, 30, 800, 24), 10496 * 1695),  # RTX 3090
        (8, 9): (_guess(132, 240, 107, 65, 900, 24), 16384 * 2520),  # RTX 4090
        (9, 0): (
            dataclasses.replace(_guess(790, 1200, 600, 400, 4000, 50), origin="measured on an H200, in part"),
            16896 * 1980,
        ),
        (10, 0): (_guess(1800, 3200, 1400, 900, 7000, 50), 18944 * 1965),  # B200
        (12, 0): (_guess(168, 310, 136, 84, 1500, 50), 21760 * 2407),  # RTX 5090
    }
)
