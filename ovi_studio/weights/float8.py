"""Linear layers whose weights stay in float8, as the file stores them: half the bytes of bfloat16.

The product is computed in the type of what comes in, from the weight that the file means: float8 × scale, rounded
once. That equals a model into which the widened weights were loaded, bit by bit.

Diffusers' layerwise casting does the same for weights without scales, but narrows every parameter of a layer, its
bias too, which such files keep in 16 bits; and it knows no scales.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float8Linear(nn.Linear):
    """A linear layer that keeps its weight in float8.

    The bytes of the weight are held as int8, and those of a scale as int32: whatever casts floating-point tensors
    (`module.to(dtype)`, PEFT, T5's feed-forward layer, which casts its input to its weight's type) leaves them
    alone.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether there is one.
        stored: the weight's type, `torch.float8_e4m3fn` or `torch.float8_e5m2`.
        scales: how many: 0, 1, or one a row.
        device: of the parameters, which are not filled.
        dtype: of the bias.
    """

    scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        *,
        stored: torch.dtype,
        scales: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.stored = stored
        codes = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", torch.empty(scales, 1, dtype=torch.int32, device=device) if scales else None)

    @classmethod
    def like(cls, layer: nn.Linear, stored: torch.dtype, scales: int) -> "Float8Linear":
        """One that can take the place of `layer`, on its device and not filled."""
        new = cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            stored=stored,
            scales=scales,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        return new.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features), in the type of `x`."""
        return F.linear(x, self.widened(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The weight that is meant, in `dtype`."""
        weight = self.weight.view(self.stored)
        if self.scale is None:
            return weight.to(dtype)
        return (weight.float() * self.scale.view(torch.float32)).to(dtype)


def has_float8(module: nn.Module) -> bool:
    """Whether a part of the module keeps its weight in float8."""
    return any(isinstance(part, Float8Linear) for part in module.modules())
