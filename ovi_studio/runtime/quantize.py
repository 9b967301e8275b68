"""Precisions: puts a component's weights into the form that a plan names, in place and after loading.

    float32, bf16   every weight cast (vocoder and audio VAE stay in float32: the plan says so)
    fp8_compute     torchao: float8 weights, one scale a row; inputs are brought to float8 as they come, one scale a
                    token; the product is `torch._scaled_mm`
    fp8_storage     `Float8Linear`: float8 weights, one scale a row, widened for each product
    int8            torchao: int8 weights, one scale a row, widened for each product
    nf4             bitsandbytes: 4-bit weights, one scale for 64 of them, widened for each product

Only linear layers inside blocks are quantized; the rest of the component is bf16. Text encoders take torchao's int8
too: bitsandbytes' casts activations to float16, which UMT5-xxl's feed-forward layers overflow.

Bits that are lost do not come back: a component remembers what it became, and `can_become` says whether it has to be
loaded again. torchao and bitsandbytes are optional, and importing them takes seconds.
"""

import importlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from ovi_studio.errors import EngineError
from ovi_studio.runtime.memory import Precision
from ovi_studio.weights.float8 import Float8Linear

QUANTIZED: frozenset[Precision] = frozenset({"fp8_compute", "fp8_storage", "int8", "nf4"})

_BECAME = "_ovi_precision"  # attribute of a component whose weights lost bits


def can_become(component: nn.Module, precision: Precision) -> bool:
    """Whether the component's weights still have the bits for `precision`."""
    became: Precision | None = getattr(component, _BECAME, None)
    return became in (None, precision) or (became == "bf16" and precision in QUANTIZED)


def set_precision(
    component: nn.Module,
    blocks: Iterable[nn.Module],
    precision: Precision,
    work_on: torch.device,
    keep_on: torch.device,
) -> None:
    """Brings a component into `precision`; does nothing where it is already.

    Args:
        component: floating-point weights, or what an earlier call made of them.
        blocks: its blocks, whose linear layers are quantized.
        precision: the goal.
        work_on: where quantizing is done, one layer at a time.
        keep_on: where quantized layers go then.

    Raises:
        EngineError: the weights have lost the bits for it, or it needs a package that is not installed.
    """
    became: Precision | None = getattr(component, _BECAME, None)
    if not can_become(component, precision):
        raise EngineError(
            f"The weights of {type(component).__name__} are in {became} and cannot become {precision}.",
            "Load the model again.",
        )
    if became == precision:
        return
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    narrowed = any(x.dtype.itemsize > dtype.itemsize for x in component.parameters() if x.is_floating_point())
    nn.Module.to(component, dtype)  # diffusers' own `to` warns where there is nothing to warn of
    if narrowed or precision in QUANTIZED:
        setattr(component, _BECAME, precision)
    if precision in QUANTIZED:
        for parent, name, layer in list(_linear_layers(blocks)):
            setattr(parent, name, _quantized(layer.to(work_on), precision).to(keep_on))


def _linear_layers(blocks: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Plain linear layers with the module that owns them.

    Those already stored in float8 are of another class; those of an adapter are in a dictionary. Both stay as they are.
    """
    for block in blocks:
        for parent in block.modules():
            for name, child in parent.named_children():
                if type(child) is nn.Linear and not isinstance(parent, nn.ModuleDict):
                    yield parent, name, child


def _quantized(layer: nn.Linear, precision: Precision) -> nn.Linear:
    """The layer that takes the place of `layer`; it may be the same one with another weight."""
    match precision:
        case "fp8_compute":
            layer.weight = _float8_dynamic(layer.weight.detach())
        case "int8":
            torchao = _package("torchao.quantization", precision)
            torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
        case "fp8_storage":
            return _float8_stored(layer)
        case "nf4":
            return _nf4(layer)
    return layer


def _float8_dynamic(weight: Tensor) -> nn.Parameter:
    """As torchao's `Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())` makes it.

    That refuses to work without a card of compute capability 8.9, although the weight is the same and CPUs can
    multiply it too.
    """
    torchao = _package("torchao.quantization", "fp8_compute")
    workflows = _package("torchao.quantization.quantize_.workflows", "fp8_compute")
    rows = torchao.PerRow()
    quantized = torchao.Float8Tensor.from_hp(
        weight,
        granularity=rows,
        mm_config=torchao.Float8MMConfig(use_fast_accum=True),
        act_quant_kwargs=workflows.QuantizeTensorToFloat8Kwargs(granularity=rows),
    )
    return nn.Parameter(quantized, requires_grad=False)


def _float8_stored(layer: nn.Linear) -> Float8Linear:
    """The largest number of each row becomes float8's largest, 448."""
    stored = torch.float8_e4m3fn
    weight = layer.weight.detach().float()
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(stored).max
    new = Float8Linear.like(layer, stored, scales=layer.out_features)
    new.weight = nn.Parameter((weight / scale).to(stored).view(torch.int8), requires_grad=False)
    new.scale = scale.view(torch.int32)
    new.bias = layer.bias
    return new


def _nf4(layer: nn.Linear) -> nn.Linear:
    bitsandbytes = _package("bitsandbytes.nn", "nf4")
    # Stored as bf16 words: T5's feed-forward layer casts its input to its weight's type.
    form = {"quant_type": "nf4", "quant_storage": torch.bfloat16}
    new = bitsandbytes.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, torch.bfloat16, device="meta", **form
    )
    new.weight = bitsandbytes.Params4bit(layer.weight.detach().cpu(), requires_grad=False, module=new, **form)
    new.bias = layer.bias
    return cast("nn.Linear", new.to(layer.weight.device))  # this quantizes


def _package(name: str, precision: Precision) -> Any:
    """A module of a package that not everyone has installed.

    Raises:
        EngineError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise EngineError(
            f"{precision} weights need the package {package}, which cannot be imported.", f"pip install {package}"
        ) from error
