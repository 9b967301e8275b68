"""Precisions: puts a component's weights into the form that a plan names, in place and after loading.

    float32, bf16   every weight cast (vocoder and audio VAE stay in float32: the plan says so)
    fp8_compute     torchao: float8 weights, one scale a row; inputs are brought to float8 as they come, one scale a
                    token; the product is `torch._scaled_mm`
    fp8_storage     `Float8Linear`: float8 weights, one scale a row, widened for each product
    int8            torchao: int8 weights, one scale a row, widened for each product
    nf4             bitsandbytes: 4-bit weights, one scale for 64 of them, widened for each product

Only linear layers inside blocks are quantized; the rest of the component is bf16. Text encoders take torchao's int8
too: bitsandbytes' casts activations to float16, which UMT5-xxl's feed-forward layers overflow.

Adapters on weights that are quantized are fused into them first, in 16 bits.

Bits that are lost do not come back: a component remembers what it became, and `can_become` says whether it has to be
loaded again. torchao and bitsandbytes are optional, and importing them takes seconds.
"""

import importlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ovi_studio.errors import EngineError
from ovi_studio.runtime.homes import give_back_freed
from ovi_studio.runtime.memory import Precision
from ovi_studio.weights.adapters import fuse, fused
from ovi_studio.weights.float8 import Float8Linear

QUANTIZED: frozenset[Precision] = frozenset({"fp8_compute", "fp8_storage", "int8", "nf4"})

_BECAME = "_ovi_precision"  # attribute of a component whose weights lost bits


def can_become(component: nn.Module, precision: Precision) -> bool:
    """Whether the component's weights still have the bits for `precision`."""
    became: Precision | None = getattr(component, _BECAME, None)
    return became in (None, precision) or (became == "bf16" and precision in QUANTIZED)


def spend(component: nn.Module) -> None:
    """From now on the component's weights are of no use to another plan."""
    setattr(component, _BECAME, "spent")


class Parts:
    """A component that comes into a precision part by part: its blocks, and then what is outside of them.

    A part is brought into the precision when it is asked for. Whoever gives it its place before asking for the next
    one never holds more than one part twice, however large the file is that the weights are mapped from.

    Args:
        component: floating-point weights, or what an earlier plan made of them.
        blocks: its blocks, whose linear layers are quantized.
        precision: the goal.
        work_on: where quantizing is done, one layer at a time.
        keep_on: where the weights go then.

    Raises:
        EngineError: the weights have lost the bits for the precision. `blocks` raises it where a package is missing.
    """

    def __init__(
        self,
        component: nn.Module,
        blocks: Iterable[nn.Module],
        precision: Precision,
        work_on: torch.device,
        keep_on: torch.device,
    ) -> None:
        if not can_become(component, precision):
            raise EngineError(
                f"The weights of {type(component).__name__} are in {getattr(component, _BECAME)} and cannot become "
                f"{precision}.",
                "Load the model again.",
            )
        self._component = component
        self._blocks = list(blocks)
        self._precision = precision
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._work_on = work_on
        self._keep_on = keep_on
        itemsizes = (x.dtype.itemsize for x in component.parameters() if x.is_floating_point())
        if precision in QUANTIZED or any(size > self._dtype.itemsize for size in itemsizes):
            setattr(component, _BECAME, precision)

    def blocks(self) -> Iterator[nn.Module]:
        """The blocks, each in the precision."""
        for block in self._blocks:
            if self._precision in QUANTIZED:
                for parent, name in list(_linear_layers(block)):  # and not the layers: each is gone when it is replaced
                    layer = cast("nn.Linear", fused(parent.get_submodule(name))).to(self._work_on, self._dtype)
                    setattr(parent, name, _quantized(layer, self._precision).to(self._keep_on))
                    del layer
                    give_back_freed()
            self._cast(block.modules())
            yield block
            give_back_freed()

    def outside(self) -> list[nn.Module]:
        """The modules outside of the blocks, their own weights in the precision."""
        if self._precision in QUANTIZED:
            fuse(self._component)
        inside = {module for block in self._blocks for module in block.modules()}
        outside = [module for module in self._component.modules() if module not in inside]
        self._cast(outside)
        return outside

    def all(self) -> None:
        """Brings every part into the precision, for a component that is not given its place part by part."""
        for _ in self.blocks():
            pass
        self.outside()

    def _cast(self, modules: Iterable[nn.Module]) -> None:
        def cast(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point() and type(tensor) in (Tensor, nn.Parameter):
                return tensor.to(self._keep_on, self._dtype)
            return tensor.to(self._keep_on)  # codes, scales, and weights that were quantized before

        for module in modules:
            module._apply(cast, recurse=False)


def _linear_layers(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where plain linear layers are, perhaps with adapters on them: the module that owns each, and its name there.

    Those already stored in float8 are of another class, those quantized before have weights of another class, and
    those that belong to an adapter are inside of it: all three stay as they are.
    """
    for parent in block.modules():
        for name, child in parent.named_children():
            layer = child.get_base_layer() if isinstance(child, BaseTunerLayer) else child
            if (
                type(layer) is nn.Linear
                and not is_traceable_wrapper_subclass(layer.weight)
                and not isinstance(parent, (nn.ModuleDict, BaseTunerLayer))
            ):
                yield parent, name


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
