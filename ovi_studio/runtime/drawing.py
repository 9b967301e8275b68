"""The stage in which an image model draws the first frame: the ways to do it, and what each takes. Without torch.

Nothing of Ovi is in memory meanwhile. The model's parts take turns, each read from its files when it is needed: text
encoders, then transformer and VAE. Where one does not fit as a whole, it is quantized on its way to the card, or its
blocks come one by one. Drawing ends where it began: with nothing in memory but the process.
"""

from collections.abc import Iterator, Mapping
from itertools import product

from ovi_studio import flux
from ovi_studio.flux import ImageModel
from ovi_studio.runtime import memory, rates
from ovi_studio.runtime.candidates import Choice, Machine
from ovi_studio.runtime.execution_plan import ComponentName, ComponentPlan, Home
from ovi_studio.runtime.memory import Precision, Workload

# Bytes a parameter that is inside of a block; outside of them nothing is quantized. nf4: and a float32 for 64.
_STORED: Mapping[Precision, float] = {"float32": 4, "bf16": 2, "int8": 1, "nf4": 0.5625}
_NEEDS: Mapping[Precision, str] = {"int8": "torchao", "nf4": "bitsandbytes"}

# Tensors of tokens × width at the widest moment of the transformer. Measured on a trace of the real class at full
# size in bf16: 17.17, in a block of the second kind, with its feed-forward's hidden layer before and after GELU.
_WIDEST = 17.2

_Part = tuple[ComponentPlan, int, int, float]  # how, bytes on the device, bytes at home in host memory, seconds


def drawing_choices(workload: Workload, machine: Machine, host: int) -> Iterator[Choice]:
    """Every way to draw on this machine, where the process alone has `host` bytes of its memory."""
    model = workload.image_model
    for text, transformer in product(_text_encoders(model, machine), _transformers(workload, machine)):
        exact: Precision = "bf16" if machine.card else "float32"
        plans: dict[ComponentName, ComponentPlan] = {
            "flux_text_encoder": text[0],
            "flux_transformer": transformer[0],
            "flux_vae": ComponentPlan(exact, "staged", "disk") if machine.card else text[0],
        }
        decode = _decode_bytes(workload, machine, exact)
        files = 2 * (model.text_parameters + model.transformer_parameters + model.vae_parameters)
        yield Choice(
            max(text[1], transformer[1], decode),
            host + max(text[2], transformer[2]),
            machine.rates.disk_seconds(files) + text[3] + transformer[3],
            plans,
        )


def _text_encoders(model: ImageModel, machine: Machine) -> Iterator[_Part]:
    """They stay exact: streaming them costs a second, once."""
    exact: Precision = "bf16" if machine.card else "float32"
    width = memory.element_bytes(exact)
    held = memory.text_activation_bytes(model.text_encoder, flux.TEXT_LEN, width)
    seconds = machine.rates.product_seconds(model.text_operations(), exact)
    whole = width * model.text_parameters + held
    if not machine.card:
        yield ComponentPlan(exact, "resident", "card"), whole, 0, seconds
        return
    yield ComponentPlan(exact, "staged", "disk"), whole, 0, seconds
    layers, block = model.text_encoder.num_layers, width * model.text_block_parameters
    held += width * model.text_outside_parameters + memory.PREFETCHED_BLOCKS * block
    for home, at_home, moving in _homes(machine, width * model.text_parameters):
        yield ComponentPlan(exact, "streamed", home, layers), held, at_home, seconds + moving


def _transformers(workload: Workload, machine: Machine) -> Iterator[_Part]:
    """As a whole in each precision, and in the exact one block by block. The VAE is beside it, for previews."""
    model, frame = workload.image_model, workload.image_model.frame_size(workload.size)
    exact: Precision = "bf16" if machine.card else "float32"
    width = memory.element_bytes(exact)
    outside = width * (model.outside_parameters + model.vae_parameters)
    active = int(_WIDEST * model.tokens(frame) * model.dim * width)
    products, attention = (flux.STEPS * operations for operations in model.step_operations(frame))
    attending = machine.rates.attention_seconds(attention, machine.attention[1])
    quantized = [p for p, package in _NEEDS.items() if machine.card and package in machine.kernels]
    for precision in (exact, *(quantized if workload.quality != "exact" else ())):
        weights = int(_STORED[precision] * model.block_parameters) + outside
        # What is widened for a product: the widest layer's weights, four times as wide as the model.
        weights += 4 * model.dim**2 * width if precision != exact else 0
        seconds = machine.rates.product_seconds(products, precision) + attending
        plan = ComponentPlan(precision, "staged", "disk") if machine.card else ComponentPlan(exact, "resident", "card")
        yield plan, weights + active, 0, seconds
    if machine.card:
        compute = rates.STREAMING_SLOWDOWN * (machine.rates.product_seconds(products, exact) + attending)
        held = outside + active + memory.PREFETCHED_BLOCKS * width * model.widest_block
        blocks = model.num_layers + model.num_single_layers
        for home, at_home, moving in _homes(machine, width * model.transformer_parameters):
            yield ComponentPlan(exact, "streamed", home, blocks), held, at_home, max(compute, flux.STEPS * moving)


def _homes(machine: Machine, size: int) -> tuple[tuple[Home, int, float], ...]:
    """Homes of streamed weights: what is in host memory for each, and the seconds of bringing them all once."""
    return ("host", size, machine.rates.pinned_seconds(size)), ("disk", 0, machine.rates.disk_seconds(size))


def _decode_bytes(workload: Workload, machine: Machine, exact: Precision) -> int:
    """Decoding the picture: where the VAE's last level begins, in tensors of the level before it, at full resolution.

    Its input, normed, and activated: 3 (3.001 on a trace of the real class). On a card cuDNN may copy one (guessed).
    """
    model, width = workload.image_model, memory.element_bytes(exact)
    entering = model.vae_channels[min(1, len(model.vae_channels) - 1)]
    frame = model.frame_size(workload.size)
    return width * (model.vae_parameters + (4 if machine.card else 3) * frame.area * entering)
