"""What a device really reaches: rates of the work that a clip consists of, each measured for about a second.

    measure_rates(device, believed) → Rates

Matrix products, convolutions and attention have the shapes of the released models, smaller on a CPU. Every attention
kernel that can run is tried, so that the planner chooses by what was measured.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import get_args

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
    dispatch_attention_fn,
)
from torch import Tensor

from ovi_studio.runtime.execution_plan import AttentionBackend
from ovi_studio.runtime.hardware import FP8_CAPABILITY
from ovi_studio.runtime.rates import Rates

SECONDS = 1.0  # of every measurement; guessed: evens out clocks that rise and fall
MIN_RUNS = 3
HEADS, HEAD_DIM, FFN_RATIO = 24, 128, 14336 / 3072  # of the released models
# Tokens of 720×720, 5 s; on a CPU as many as take a fraction of a second.
TOKENS_ON_CARD, TOKENS_ON_CPU = 15_004, 1024
QUANTIZED_KERNELS = frozenset({"sage"})  # never the reference for the best exact rate


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of runs of `work`, after one to warm up; at least `MIN_RUNS`, for about `SECONDS`."""
    work()
    _wait(device)
    took: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(took) < MIN_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        _wait(device)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def measure_rates(device: torch.device, believed: Rates) -> Rates:
    """The device's rates. Those that cannot be measured here stay as believed: disk, and on a CPU all transfers."""
    kernels = attention_rates(device)
    exact = {name: rate for name, rate in kernels.items() if name not in QUANTIZED_KERNELS}
    best = max(exact.values(), default=believed.attention)
    matmul = matmul_rate(device)
    fp8 = matmul_fp8_rate(device) if _has_fp8(device) else matmul
    return dataclasses.replace(
        believed,
        matmul=matmul,
        matmul_fp8=fp8,
        attention=best,
        convolution=convolution_rate(device),
        memory=memory_rate(device),
        host_to_card=host_to_card_rate(device) if device.type == "cuda" else believed.host_to_card,
        origin="measured by ovi-studio bench",
        kernels={name: rate / best for name, rate in kernels.items()},
    )


def matmul_rate(device: torch.device) -> float:
    """TFLOP/s of the feed-forward's first product."""
    tokens, dim, hidden = _product_shape(device)
    x, weight = _random(device, tokens, dim), _random(device, hidden, dim)
    return 2 * tokens * dim * hidden / median_seconds(lambda: F.linear(x, weight), device) / 1e12


def matmul_fp8_rate(device: torch.device) -> float:
    """The same with fp8 inputs, one scale a row, quantizing the activations included."""
    tokens, dim, hidden = _product_shape(device)
    tokens -= tokens % 16
    x, weight = _random(device, tokens, dim), _random(device, hidden, dim)
    scale = torch.ones(1, hidden, device=device)
    narrow = weight.to(torch.float8_e4m3fn).t()

    def product() -> Tensor:
        row = x.abs().amax(1, keepdim=True).float() / 448
        return torch._scaled_mm((x / row).to(torch.float8_e4m3fn), narrow, row, scale, out_dtype=torch.bfloat16)

    return 2 * tokens * dim * hidden / median_seconds(product, device) / 1e12


def convolution_rate(device: torch.device) -> float:
    """TFLOP/s of a causal 3-D convolution of the video VAE."""
    channels, side = (256, 176) if device.type == "cuda" else (64, 48)
    x, weight = _random(device, 1, channels, 6, side, side), _random(device, channels, channels, 3, 3, 3)
    operations = 2 * channels * channels * 27 * 4 * side * side
    return operations / median_seconds(lambda: F.conv3d(x, weight, padding=(0, 1, 1)), device) / 1e12


def memory_rate(device: torch.device) -> float:
    """GB/s of reading and writing a large tensor."""
    x = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    return 2 * x.nbytes / median_seconds(lambda: x.mul_(1.0), device) / 1e9


def host_to_card_rate(device: torch.device) -> float:
    """GB/s from pinned memory."""
    x = torch.ones(2**28, dtype=torch.uint8).pin_memory()
    return x.nbytes / median_seconds(lambda: x.to(device, non_blocking=True), device) / 1e9


def attention_rates(
    device: torch.device, tokens: int | None = None, samples: int = 1, heads: int | None = None
) -> dict[AttentionBackend, float]:
    """TFLOP/s of every attention kernel that can run here, at a shape of self-attention.

    Args:
        device: where.
        tokens: by default those of a clip, or of a small one on a CPU.
        samples: of the batch.
        heads: by default as the released models, or fewer on a CPU.
    """
    on_card = device.type == "cuda"
    tokens = tokens or (TOKENS_ON_CARD if on_card else TOKENS_ON_CPU)
    heads = heads or (HEADS if on_card else 6)
    query, key, value = (_random(device, samples, tokens, heads, HEAD_DIM) for _ in range(3))
    operations = 4 * samples * tokens * tokens * heads * HEAD_DIM
    found: dict[AttentionBackend, float] = {}
    for name in _runnable(device):
        attend = functools.partial(dispatch_attention_fn, query, key, value, backend=AttentionBackendName(name))
        try:
            took = median_seconds(attend, device)
        except (RuntimeError, ValueError, TypeError):  # installed, and not for this card or version
            continue
        found[name] = operations / took / 1e12
    return found


def _runnable(device: torch.device) -> Iterator[AttentionBackend]:
    """The kernels whose packages are there; on a CPU there is one."""
    for name in get_args(AttentionBackend) if device.type == "cuda" else ("native",):
        try:
            _check_attention_backend_requirements(AttentionBackendName(name))
        except (RuntimeError, ValueError, ImportError):
            continue
        yield name


def _product_shape(device: torch.device) -> tuple[int, int, int]:
    dim = HEADS * HEAD_DIM if device.type == "cuda" else 768
    return TOKENS_ON_CARD if device.type == "cuda" else TOKENS_ON_CPU, dim, round(dim * FFN_RATIO) // 16 * 16


def _random(device: torch.device, *shape: int) -> Tensor:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.randn(shape, device=device).to(dtype)


def _has_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
