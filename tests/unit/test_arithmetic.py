"""The arithmetic against the published checkpoints' tensors, the recorded work, and the real classes."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from ovi_studio.arithmetic import (
    COMPONENTS,
    PRECISIONS,
    Cost,
    audio_decoder_cost,
    audio_encoder_cost,
    component_bytes,
    component_weights,
    forward_cost,
    stage_work,
    text_cache_bytes,
    text_encoder_cost,
    transformer_cost,
    video_decoder_cost,
    video_encoder_cost,
    vocoder_cost,
)
from ovi_studio.model import components
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.shapes import TextEncoderShape, TransformerShape, VideoVaeShape
from ovi_studio.variants import VARIANTS, Size

ROOT = Path(__file__).resolve().parents[2]
FULL, NANO = VARIANTS["720x720_5s"], VARIANTS["nano"]
BOTH = pytest.mark.parametrize("variant", [FULL, NANO], ids=["full", "nano"])


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "tests/manifests" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def elements(tensors: dict[str, Any], wanted=lambda key: True) -> int:
    return sum(math.prod(tensor["shape"]) for key, tensor in tensors.items() if wanted(key))


# --- parameters of the published files


def test_transformer_has_the_checkpoints_parameters():
    tensors = manifest("fusion")["keys"]
    cost = forward_cost(FULL, Size(704, 704))
    assert cost.whole.parameters == elements(tensors) == 11_660_753_108
    assert 30 * cost.block.parameters == elements(tensors, lambda key: ".blocks." in key)
    assert cost.outside_blocks.parameters == elements(tensors, lambda key: ".blocks." not in key)
    matrices = {key: t for key, t in tensors.items() if ".blocks." in key and len(t["shape"]) == 2}
    assert cost.whole.quantizable == elements(matrices)
    assert cost.whole.rows == sum(tensor["shape"][0] for tensor in matrices.values())


def test_text_encoder_has_the_checkpoints_parameters():
    tensors = manifest("umt5_xxl_encoder")["keys"]
    weights = component_weights(FULL)["text_encoder"]
    assert weights.parameters == elements(tensors) == 5_680_910_336
    assert weights.quantizable == elements(tensors, lambda key: ".attn." in key or ".ffn." in key)


def test_video_vae_has_the_checkpoints_parameters():
    recorded = manifest("wan_vae22")
    assert component_weights(FULL)["video_vae"].parameters == elements(recorded["keys"]) == 704_688_668
    encoder = video_encoder_cost(FULL.video_vae, 1, 0, 0).parameters
    assert encoder == elements(recorded["keys"], lambda key: key.startswith(("encoder.", "conv1.")))


def test_audio_vae_has_the_checkpoints_parameters():
    recorded = manifest("mmaudio_vae_16k")
    assert component_weights(FULL)["audio_vae"].parameters == recorded["param_count"] == 171_657_218
    assert audio_encoder_cost(FULL.audio_vae, 0).parameters == recorded["encoder_params"]
    assert audio_decoder_cost(FULL.audio_vae, 0).parameters == recorded["decoder_params"]


def test_vocoder_has_the_checkpoints_parameters():
    """The file keeps weight-norm gains (`weight_g`) apart, which loading folds into the weights."""
    recorded = manifest("bigvgan_16k")
    gains = elements(recorded["keys"], lambda key: key.endswith("weight_g"))
    filters = elements(recorded["keys"], lambda key: key.endswith("filter"))
    weights = component_weights(FULL)["vocoder"]
    assert recorded["param_count"] == 112_231_250
    assert weights.parameters == recorded["param_count"] - gains
    assert weights.buffers == filters


# --- the real classes, without memory


def on_meta(component: str, variant) -> Any:
    shape = getattr(variant, component)
    with components.on_meta():
        if component == "text_encoder":
            return transformers.UMT5EncoderModel(transformers.UMT5Config(**shape.config()))
        if component == "transformer":
            return OviTransformer(**shape.config())
        if component == "vocoder":
            return components.build_vocoder(variant)
        classes = {"video_vae": diffusers.AutoencoderKLWan, "audio_vae": diffusers.MMAudioVAE}
        return classes[component](**shape.config())


@BOTH
@pytest.mark.parametrize("component", COMPONENTS)
def test_shapes_build_the_real_classes(component, variant):
    model, weights = on_meta(component, variant), component_weights(variant)[component]
    assert weights.parameters == sum(p.numel() for p in model.parameters())
    assert weights.buffers == sum(b.numel() for b in model.buffers())
    expected = component_bytes(variant, component, "bfloat16")
    assert expected == (4 if component == "vocoder" else 2) * (weights.parameters + weights.buffers)


def test_nano_fits_in_the_package():
    assert sum(weights.bytes("float16") for weights in component_weights(NANO).values()) <= 25_000_000
    assert component_weights(NANO)["text_encoder"].parameters <= 1_000_000


def test_nano_video_vae_has_nanos_geometry():
    vae = on_meta("video_vae", NANO)
    clip = torch.zeros(1, 3, NANO.num_frames, *NANO.default_size, device="meta")
    latents = vae.encode(clip).latent_dist.mode()
    assert tuple(latents.shape) == (1, NANO.transformer.in_channels, *NANO.latent_grid(*NANO.default_size))
    assert vae.decode(latents).sample.shape == clip.shape


# --- bytes


def test_bytes_of_each_precision_by_hand():
    weights = Cost(parameters=1000, quantizable=640, rows=10, buffers=4)
    assert weights.bytes("float32") == 4 * 1004
    assert weights.bytes("bfloat16") == weights.bytes("float16") == 2 * 1004
    assert weights.bytes("int8") == weights.bytes("fp8") == 640 + 4 * 10 + 2 * 364
    assert weights.bytes("nf4") == 320 + 4 * 10 + 2 * 364


@BOTH
def test_precisions_order_and_convolutions_stay(variant):
    for component in COMPONENTS:
        sizes = [component_bytes(variant, component, precision) for precision in PRECISIONS]
        assert sizes == sorted(sizes, reverse=True)
        if component not in ("transformer", "text_encoder"):
            assert len(set(sizes[1:])) == 1


def test_published_sizes():
    assert component_bytes(FULL, "transformer", "bfloat16") / 1e9 == pytest.approx(23.3, abs=0.05)
    assert component_bytes(FULL, "text_encoder", "bfloat16") / 1e9 == pytest.approx(11.4, abs=0.05)


@pytest.mark.parametrize("variant", [VARIANTS["960x960_10s"], NANO], ids=["full", "nano"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_and_the_rest_are_the_whole(variant, precision):
    cost = forward_cost(variant, variant.default_size)
    parts = variant.transformer.num_layers * cost.block.bytes(precision) + cost.outside_blocks.bytes(precision)
    assert parts == component_bytes(variant, "transformer", precision)


# --- operations


def recorded_work() -> list[Any]:
    path = ROOT / "tests/goldens/data/reference_timing.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))["full_size_estimate"]
    return [pytest.param(name, facts, id=name) for name, facts in recorded.items()]


@pytest.mark.parametrize(("name", "facts"), recorded_work())
def test_work_of_a_forward_is_the_recorded(name, facts):
    height, width, frames = (int(number) for number in name.split("x"))
    variant = next(
        v for v in VARIANTS.values() if v.num_frames == frames and v.snap_size(height, width) == (height, width)
    )
    assert variant.video_tokens(height, width) == facts["video_tokens"]
    assert variant.audio_tokens == facts["audio_tokens"]
    work, recorded = forward_cost(variant, Size(height, width)), facts["tflop_per_forward"]

    def agrees(cost: Cost, key: str) -> bool:
        return cost.operations / 1e12 == pytest.approx(recorded[key], rel=0.01, abs=0.006)  # recorded to 0.01

    assert agrees(work.linear_video, "linear video")
    assert agrees(work.linear_audio, "linear audio")
    assert agrees(work.self_attention_video, "self-attn video")
    assert agrees(work.self_attention_audio, "self-attn audio")
    assert agrees(work.text_attention, "text attn")
    assert agrees(work.fusion_attention, "a<->v attn")
    assert agrees(work.per_run, "text K/V (cacheable)")
    assert agrees(work.audio_patch, "audio patch conv")

    waste = recorded["time embed per token (dedupable)"] + recorded["text K/V (cacheable)"]
    total = stage_work(variant, Size(height, width))["denoise"].operations / 1e12
    assert total == pytest.approx(recorded["TOTAL"] - waste, rel=0.001)
    cache = text_cache_bytes(variant) / 1e6
    assert cache == pytest.approx(facts["memory"]["text kv cache MB both contexts"], abs=0.01)


def test_headline_numbers():
    small = stage_work(VARIANTS["720x720_5s"], Size(704, 704))["denoise"]
    large = stage_work(VARIANTS["960x960_10s"], Size(960, 960))["denoise"]
    assert round(small.operations / 1e12) == 237
    assert round(large.operations / 1e12) == 1677


def test_one_modality_is_one_tower():
    size = FULL.default_size
    both, video, audio = (forward_cost(FULL, size, modality) for modality in ("both", "video", "audio"))
    assert both.whole.parameters == video.whole.parameters == audio.whole.parameters
    assert both.self_attention_video == video.self_attention_video
    assert video.self_attention_audio.operations == video.fusion_attention.operations == 0
    assert video.per_run.operations == audio.per_run.operations == both.per_run.operations // 2
    exchanged = both.per_forward() - video.per_forward() - audio.per_forward()
    dim, layers = FULL.transformer.dim, FULL.transformer.num_layers
    tokens = FULL.video_tokens(*size), FULL.audio_tokens
    assert exchanged.matmul == layers * 2 * 2 * dim * dim * sum(tokens)
    assert exchanged.attention == layers * 2 * 4 * dim * math.prod(tokens)

    video_stages, audio_stages = stage_work(FULL, size, "video"), stage_work(FULL, size, "audio")
    assert video_stages["decode_audio"] == audio_stages["decode_video"] == audio_stages["encode_image"] == Cost()


def test_a_skipped_block_saves_a_blocks_work():
    forward = forward_cost(FULL, FULL.default_size)
    layers = FULL.transformer.num_layers
    saved = forward.per_forward() - forward.per_forward(skipped_blocks=1)
    assert saved + (forward.text_keys_values // layers).work == forward.block.work
    assert forward.per_forward(skipped_blocks=layers).attention == 0


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("temporal", [(True, True), (False, True)])
def test_video_vae_work_is_what_torch_counts(temporal):
    shape = VideoVaeShape(
        base_dim=8,
        decoder_base_dim=16,
        z_dim=4,
        dim_mult=(1, 2, 2),
        num_res_blocks=2,
        temperal_downsample=temporal,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )
    with torch.device("meta"):  # on a CPU the counter misses attention
        vae = diffusers.AutoencoderKLWan(**shape.config())
        latents, clip = torch.zeros(1, 4, 3, 6, 4), torch.zeros(1, 3, 9, 48, 32)
    decoded = counted(lambda: vae.decode(latents))
    assert video_decoder_cost(shape, 3, 6, 4).operations == pytest.approx(decoded, rel=1e-3)
    if all(temporal):  # the class encodes in chunks of four frames, whatever its factor
        encoded = counted(lambda: vae.encode(clip))
        assert video_encoder_cost(shape, 3, 6, 4).operations == pytest.approx(encoded, rel=1e-3)


@BOTH
def test_decoders_work_is_what_torch_counts(variant):
    vae, latents = on_meta("video_vae", variant), torch.zeros(1, variant.video_vae.z_dim, 3, 4, 6, device="meta")
    work = video_decoder_cost(variant.video_vae, 3, 4, 6).operations
    assert work == pytest.approx(counted(lambda: vae.decode(latents)), rel=1e-3)

    audio, sound = on_meta("audio_vae", variant), torch.zeros(1, variant.audio_vae.latent_channels, 50, device="meta")
    work = audio_decoder_cost(variant.audio_vae, 50).operations
    assert work == pytest.approx(counted(lambda: audio.decode(sound)), rel=1e-3)

    device = "cpu" if variant is NANO else "meta"  # an inverse Fourier transform looks at numbers
    vocoder, mel = on_meta("vocoder", variant).to_empty(device=device), torch.zeros(1, 80, 100, device=device)
    work = vocoder_cost(variant.vocoder, 100).operations
    assert work == pytest.approx(counted(lambda: vocoder(mel)), rel=1e-3)


def test_text_encoder_work_is_what_torch_counts():
    shape = TextEncoderShape(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2)
    config = transformers.UMT5Config(**shape.config())
    encoder = transformers.UMT5EncoderModel._from_config(config, attn_implementation="eager").eval()
    ids = torch.ones(1, 20, dtype=torch.long)
    assert text_encoder_cost(shape, 20).operations == pytest.approx(counted(lambda: encoder(ids)), rel=1e-3)


@pytest.mark.parametrize("modality", ["both", "video", "audio"])
def test_transformer_work_is_what_torch_counts(modality):
    """With a given first frame (two timesteps), and text that is not cached."""
    shape = TransformerShape(num_attention_heads=2, attention_head_dim=32, ffn_dim=128, num_layers=3, text_dim=16)
    with torch.device("meta"):
        model = OviTransformer(**shape.config())
        video, audio = torch.zeros(1, 48, 3, 8, 8), torch.zeros(1, 12, 20)
        inputs = {
            "hidden_states": None if modality == "audio" else video,
            "audio_hidden_states": None if modality == "video" else audio,
            "timestep": torch.zeros(1),
            "encoder_hidden_states": torch.zeros(1, 24, 16),
            "first_frame_is_clean": modality != "audio",
        }
    cost = transformer_cost(shape, 0 if modality == "audio" else 48, 0 if modality == "video" else 12, 24)
    assert (cost.per_forward() + cost.per_run).operations == cost.whole.operations
    assert cost.whole.operations == pytest.approx(counted(lambda: model(**inputs)), rel=1e-3)


def test_towers_of_equal_tokens_cost_the_same():
    shape = TransformerShape(num_attention_heads=2, attention_head_dim=32, ffn_dim=128, num_layers=3, text_dim=16)
    cost = transformer_cost(shape, 40, 40, 8)
    assert cost.linear_video == cost.linear_audio
    assert cost.self_attention_video == cost.self_attention_audio
    assert cost.fusion_attention == 2 * cost.self_attention_video


# --- the command


def run_flops(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/flops.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_flops_ends_with_json():
    done = run_flops("--model", "960x960_10s", "--size", "960x960", "--json")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert round(last["tflop_per_forward"]) == 1677
    split = last["tflop_per_forward_matmul"] + last["tflop_per_forward_attention"]
    assert last["tflop_per_forward"] == pytest.approx(split)
    assert last["parameters"]["transformer"] == 11_660_753_108


def test_flops_snaps_as_generation_does():
    done = run_flops("--model", "720x720_5s", "--size", "720x720")
    assert "704x704" in done.stdout
    assert not done.stdout.splitlines()[-1].startswith("{")


@pytest.mark.parametrize("arguments", [("--model", "nan"), ("--size", "0x-3"), ("--size", "big")])
def test_flops_refuses_in_one_line(arguments):
    done = run_flops(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def test_flops_needs_no_torch():
    code = "import sys, benchmarks.flops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
