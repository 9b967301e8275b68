"""Attention kernels at the shapes of self-attention: TFLOP/s of each that can run here.

python benchmarks/attention.py --model 720x720_5s --size 704x704 --device cuda
"""

import sys
from pathlib import Path

import torch

if __name__ == "__main__":  # run as a file, from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import arguments, finish, size_of, variant_of
from ovi_studio.runtime.measure import attention_rates, matmul_rate


@torch.no_grad()
def main() -> None:
    """Measures all, the samples of a batched step side by side."""
    options = arguments(__doc__, "mid").parse_args()
    variant = variant_of(options.model)
    size, device = size_of(variant, options.size), torch.device(options.device)
    tokens = variant.video_tokens(*size)
    rates = attention_rates(device, tokens, 2, variant.transformer.num_attention_heads)
    best = max(rates.values())
    for name, rate in rates.items():
        print(f"{name:<16}{rate:>10.3f} TFLOP/s, {best / rate:.2f} x the time of the best")
    result = {"benchmark": "attention", "tokens": tokens, "tflops": rates, "matmul_tflops": matmul_rate(device)}
    finish(result, options.device)


if __name__ == "__main__":
    main()
