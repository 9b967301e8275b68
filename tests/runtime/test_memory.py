"""Predicted bytes of every stage against those that real modules allocate, on a CPU in float32.

A mid-size model: levels, heads and proportions as at full size, only narrower, so that every term of a formula is
tried. `benchmarks/activations.py` does the same at full size without data, `benchmarks/memory.py` on a card.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.activations import Bench, Case, full_size
from benchmarks.allocations import Allocations, cpu_allocator_peak
from ovi_studio.runtime import memory
from ovi_studio.runtime.memory import Workload
from ovi_studio.shapes import TextEncoderShape, TransformerShape, VocoderShape
from ovi_studio.variants import Size, get_variant

TOLERANCE = 0.05
CPU = Bench("cpu", torch.float32)

FULL = get_variant("720x720_5s")
MID = replace(
    FULL,
    name="mid",
    transformer=TransformerShape(
        num_attention_heads=6, attention_head_dim=64, ffn_dim=1792, num_layers=2, freq_dim=128, text_dim=256
    ),
    text_encoder=TextEncoderShape(vocab_size=512, d_model=256, d_kv=32, d_ff=640, num_layers=2, num_heads=8),
    video_vae=replace(FULL.video_vae, base_dim=16, decoder_base_dim=8),
    audio_vae=replace(FULL.audio_vae, hidden_channels=96),
    vocoder=VocoderShape(upsample_initial_channel=192),
    text_len=128,
    video_latent_frames=3,
    audio_latents=79,
)
CLIP, NANO = Workload(MID, Size(256, 384)), Workload(get_variant("nano"), Size(96, 96))
LOADS = {
    "text": CLIP,
    "first frame": replace(CLIP, first_frame="image"),
    "no guidance": replace(CLIP, passes=1),
    "video only": replace(CLIP, modality="video"),
    "audio only": replace(CLIP, modality="audio"),
    "nano": NANO,
    "nano, first frame": replace(NANO, first_frame="image"),
    "nano, audio only": replace(NANO, modality="audio"),
}


def check(case: Case) -> None:
    assert case.peak() == pytest.approx(case.predicted, rel=TOLERANCE)


# --- The tracer -------------------------------------------------------------------------------------------


def test_the_trace_counts_what_is_alive_and_no_more() -> None:
    given = torch.zeros(1000)
    with Allocations() as traced:
        made = given + 1  # 4,000 bytes
        view = made.view(10, 100).t()
        assert traced.live == 4000
        doubled = torch.cat((view, view))  # 8,000 more
        made.add_(1)
        del made, doubled
        assert traced.live == 4000  # the view is still there
        del view
        assert traced.live == 0
    assert traced.peak == 12_000


# --- Stages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batched", "text_cache"),
    [("text", True, False), ("text", False, True)] + [(name, both, both) for name in LOADS for both in (True, False)],
)
def test_denoising(name: str, batched: bool, text_cache: bool) -> None:
    check(CPU.denoising(LOADS[name], batched, text_cache))


def test_the_cpu_allocator_agrees_with_the_trace() -> None:
    """Attention and normalization use scratch memory that no trace of tensors sees: it is little."""
    case = CPU.denoising(replace(CLIP, size=Size(384, 448)), batched=True, text_cache=True)
    with torch.no_grad():
        assert cpu_allocator_peak(case.work) == pytest.approx(case.predicted, rel=TOLERANCE)


@pytest.mark.parametrize("load", [CLIP, NANO], ids=["mid", "nano"])
def test_encoding_text(load: Workload) -> None:
    check(CPU.encoding_text(load))


@pytest.mark.parametrize("load", [CLIP, NANO], ids=["mid", "nano"])
def test_encoding_a_first_frame(load: Workload) -> None:
    check(CPU.encoding_first_frame(load))


@pytest.mark.parametrize(
    ("load", "tiling"),
    [
        (Workload(MID, Size(160, 224)), "none"),
        (Workload(MID, Size(192, 288)), "tiled"),
        (Workload(MID, Size(288, 160)), "tiled"),
        (NANO, "none"),
    ],
    ids=["whole", "two columns", "two rows", "nano"],
)
def test_decoding_the_picture(load: Workload, tiling: memory.VaeTiling) -> None:
    check(CPU.decoding_picture(load, tiling))


def test_decoding_the_picture_tile_by_tile() -> None:
    """Decoded tiles wait in host memory, which here is the same: some of them at the widest moment."""
    load = Workload(MID, Size(192, 288))
    case = CPU.decoding_picture(load, "tile_by_tile")
    waiting = 4 * 3 * MID.num_frames * load.size.area * memory.tile_overlap(MID, 12, 18)
    assert case.predicted * (1 - TOLERANCE) <= case.peak() <= (case.predicted + waiting) * (1 + TOLERANCE)


@pytest.mark.parametrize("load", [CLIP, NANO], ids=["mid", "nano"])
def test_decoding_the_sound(load: Workload) -> None:
    check(CPU.decoding_sound(load))


@pytest.mark.parametrize("title", ["encode a first frame, 720", "denoise, one pass after the other, 720"])
def test_full_size_without_data(title: str) -> None:
    check(next(case for case in full_size() if title in case.title))


# --- The benchmark for cards ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_runs_without_a_card() -> None:
    script = Path(__file__).parents[2] / "benchmarks/memory.py"
    command = [sys.executable, str(script), "--variant", "nano", "--device", "cpu", "--steps", "2", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    summary = json.loads(answer.stdout.splitlines()[-1])
    assert summary["held"]
    stages = summary["runs"]["CPU"]["stages"]
    assert set(stages) == {"load", "encode text", "first frame", "denoise", "decode", "mux"}
    assert all(row["measured_host_bytes"] <= row["predicted_host_bytes"] for row in stages.values())
