"""FLUX.1 by its numbers, against the libraries' classes at full size and against what their tensors take."""

import functools
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.allocations import Allocations, FusedAttention
from ovi_studio.flux import FLUX_KREA, SIZE_MULTIPLE, TEXT_LEN
from ovi_studio.runtime.drawing import drawing_choices
from ovi_studio.runtime.execution_plan import Preferences
from ovi_studio.runtime.hardware import simulate
from ovi_studio.runtime.memory import Workload
from ovi_studio.runtime.plan import _machines
from ovi_studio.variants import Size, get_variant

FRAME = Size(752, 1376)


def on_meta(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.device("meta"):
        return build()


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def transformer(num_layers: int = 19, num_single_layers: int = 38) -> FluxTransformer2DModel:
    build = functools.partial(FluxTransformer2DModel, guidance_embeds=True)
    return on_meta(lambda: build(num_layers=num_layers, num_single_layers=num_single_layers))


def vae() -> AutoencoderKL:
    return on_meta(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=FLUX_KREA.vae_channels,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def test_parameters_are_those_of_the_real_classes() -> None:
    shape = FLUX_KREA.text_encoder
    t5 = T5Config(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        feed_forward_proj="gated-gelu",
    )
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    whole = transformer()
    assert parameters(whole) == FLUX_KREA.transformer_parameters == 11_901_408_320
    assert parameters(whole.transformer_blocks[0]) == FLUX_KREA.widest_block
    text = parameters(on_meta(lambda: T5EncoderModel(t5))) + parameters(on_meta(lambda: CLIPTextModel(clip)))
    assert text == FLUX_KREA.text_parameters
    assert parameters(vae()) == FLUX_KREA.vae_parameters


def test_the_picture_has_the_clips_aspect() -> None:
    assert FLUX_KREA.frame_size(Size(704, 1280)) == FRAME  # recorded from the reference
    assert FLUX_KREA.frame_size(Size(1280, 704)) == Size(1376, 752)
    assert FLUX_KREA.frame_size(Size(96, 96)) == Size(1024, 1024)
    for clip in get_variant("960x960_10s").sizes:
        frame = FLUX_KREA.frame_size(clip)
        assert [side % SIZE_MULTIPLE for side in frame] == [0, 0]
        assert frame.area == pytest.approx(1024**2, rel=0.02)
        assert frame.width / frame.height == pytest.approx(clip.width / clip.height, rel=0.02)


def predicted(precision: str, placement: str) -> int:
    """Bytes on the card of drawing with the transformer so, and the text encoders streamed."""
    hardware = simulate("1x80GB@9.0,ram=128")
    (machine,) = _machines(Workload(get_variant("720x720_5s"), Size(704, 1280)), hardware, Preferences(), None)
    load = Workload(get_variant("720x720_5s"), Size(704, 1280), first_frame="generated")
    for choice in drawing_choices(load, machine, 0):
        text, part = choice.settings["flux_text_encoder"], choice.settings["flux_transformer"]
        if (text.placement, part.precision, part.placement) == ("streamed", precision, placement):
            return choice.device_bytes
    raise AssertionError


@torch.no_grad()
def test_the_widest_moment_of_the_transformer_at_full_size() -> None:
    """A trace without data; what is beside its weights and the VAE's is predicted within 1 %."""
    model, dtype = transformer(1, 1), torch.bfloat16
    torch.nn.Module.to(model, dtype)
    tokens = FLUX_KREA.tokens(FRAME) - TEXT_LEN

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=of, device="meta")

    with Allocations() as traced, FusedAttention():
        model(
            hidden_states=empty(1, tokens, 64),
            timestep=empty(1),
            guidance=empty(1),
            pooled_projections=empty(1, 768),
            encoder_hidden_states=empty(1, TEXT_LEN, 4096),
            txt_ids=empty(TEXT_LEN, 3),
            img_ids=empty(tokens, 3),
        )
    weights = 2 * (FLUX_KREA.transformer_parameters + FLUX_KREA.vae_parameters)
    assert predicted("bf16", "staged") - weights == pytest.approx(traced.peak, rel=0.01)


@torch.no_grad()
def test_the_widest_moment_of_the_decode_at_full_size() -> None:
    model = vae()
    torch.nn.Module.to(model, torch.bfloat16)
    with Allocations() as traced, FusedAttention():
        model.decode(torch.empty(1, 16, FRAME.height // 8, FRAME.width // 8, dtype=torch.bfloat16, device="meta"))
    workspace = 2 * FRAME.area * FLUX_KREA.vae_channels[1]  # that a card may want; guessed, and not traced
    decode = predicted("bf16", "streamed")
    assert decode - workspace - 2 * FLUX_KREA.vae_parameters == pytest.approx(traced.peak, rel=0.01)
