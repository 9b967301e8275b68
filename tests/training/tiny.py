"""Everything a stage needs, small enough to train within seconds; and a program that trains it.

python -m tests.training.tiny OUT STEPS BATCH_SIZE
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from ovi_studio.assets import data_path
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.training.flow import FlowStage, Streams, Texts
from ovi_studio.training.latents import LatentSet
from ovi_studio.training.loop import Settings, train
from ovi_studio.training.toyland import Toyland
from ovi_studio.training.voices import SPEEDS, TEST_VOICES, TRAINING_VOICES, WORDS, Utterance, WordBank
from ovi_studio.variants import get_variant

STEPS = 8


def bank() -> WordBank:
    """Words as bursts of a hum, a length and a rhythm each; louder in the middle, as words are."""
    recordings: dict[Utterance, np.ndarray] = {}
    for number, word in enumerate(WORDS):
        t = np.arange(4000 + 300 * number) / 16_000
        burst = 0.2 * np.sin(2 * np.pi * 150 * t) * np.sin(np.pi * t / t[-1]) * np.abs(np.cos(6 * (number + 1) * t))
        for voices in (*TRAINING_VOICES.values(), *TEST_VOICES.values()):
            for voice in voices:
                recordings |= {Utterance(word, voice, speed): burst.astype(np.float32) for speed in SPEEDS}
    return WordBank(recordings)


def texts() -> Texts:
    """A text encoder of two layers with nano's tokenizer."""
    torch.manual_seed(1)
    config = UMT5Config(vocab_size=1024, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    tokenizer = AutoTokenizer.from_pretrained(data_path("assets", "nano", "tokenizer"), local_files_only=True)
    return Texts(UMT5EncoderModel(config).eval(), tokenizer, replace(get_variant("nano"), text_len=48))


def transformer(seed: int = 0) -> OviTransformer:
    torch.manual_seed(seed)
    return OviTransformer(
        num_attention_heads=2,
        attention_head_dim=12,
        ffn_dim=32,
        num_layers=2,
        freq_dim=16,
        text_dim=16,
        in_channels=4,
        audio_in_channels=3,
    )


def latents(count: int, split: str = "train") -> LatentSet:
    """Noise as latents, with captions of the toy world. Every sound ends in silence, a quarter of it at the latest."""
    generator = torch.Generator().manual_seed(len(split))
    world = Toyland(0, bank(), split)
    audio = torch.randn(count, 16, 3, generator=generator)
    for index in range(count):
        audio[index, 4 + index % 12 :] = 0.5
    video = torch.randn(count, 4, 3, 4, 4, generator=generator)
    return LatentSet(audio.half(), video.half(), tuple(world.clip(index).caption for index in range(count)))


def flow_stage(streams: Streams = "both", batch_size: int = 4, steps: int = STEPS) -> FlowStage:
    given = latents(24), latents(6, "test")
    return FlowStage(transformer(), texts(), *given, streams, steps, batch_size)


def settings(steps: int = STEPS) -> Settings:
    """Every step is recorded, measured and kept."""
    return Settings(steps, learning_rate=1e-2, warmup=2, log_every=1, evaluate_every=4, save_seconds=0)


if __name__ == "__main__":
    out, steps, batch_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    train(flow_stage(batch_size=batch_size, steps=steps).train(), settings(steps), out)
