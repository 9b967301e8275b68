"""What approximations gain and cost: nano's table (docs/performance.md), for whoever has to choose among them.

nano's weights are trained, and the released models' costs are not measured: a plan's reasons say whose these are.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Cost(NamedTuple):
    """Beside the exact run of the same seed.

    Args:
        times: as fast; on a CPU.
        psnr: dB of the frames.
    """

    times: float
    psnr: float


# By the names of `benchmarks/quality_of_speed.py`; `tests/unit/test_costs.py` holds them to its newest result.
MEASURED: Mapping[str, Cost] = MappingProxyType(
    {
        "cache below 0.05": Cost(0.94, 100.0),
        "cache below 0.1": Cost(1.20, 47.6),
        "cache below 0.2": Cost(1.69, 39.4),
        "guidance 0:0.8": Cost(1.02, 38.9),
        "guidance 0:0.5": Cost(0.98, 36.6),
        "half the steps": Cost(1.76, 49.1),
        "a quarter of the steps": Cost(3.45, 40.2),
        "fp8 storage": Cost(0.38, 51.4),
        "int8": Cost(0.47, 60.4),
    }
)
UNMEASURED = "What that costs is not measured."
NARROW = {"fp8_storage": "fp8 storage", "int8": "int8"}


def of_guidance(guided: float) -> str:
    """What guidance in a share of the steps was worth, at the nearest share that was measured."""
    if guided < 0.4:
        return UNMEASURED
    name = "guidance 0:0.8" if guided > 0.65 else "guidance 0:0.5"
    return f"On nano {name.removeprefix('guidance 0:')} of them were {_words(MEASURED[name])}."


def of_steps(share: float) -> str:
    """What a share of the usual steps was worth, at the nearest share that was measured."""
    if share < 0.2:
        return UNMEASURED
    name = "half the steps" if share > 0.375 else "a quarter of the steps"
    return f"On nano {name} were {_words(MEASURED[name])}."


def of_step_cache(threshold: float) -> str:
    """What the step cache was worth at this threshold."""
    cost = MEASURED.get(f"cache below {threshold:g}")
    return f"On nano that was {_words(cost)}." if cost else UNMEASURED


def of_precision(precision: str) -> str:
    """How far a precision of the transformer's weights is from its full one. How fast it is says the machine."""
    if precision not in NARROW:
        return UNMEASURED
    return f"On nano that was {MEASURED[NARROW[precision]].psnr:.0f} dB from the exact picture."


def _words(cost: Cost) -> str:
    return f"{cost.times:.2f} times as fast, {cost.psnr:.0f} dB from the exact picture"
