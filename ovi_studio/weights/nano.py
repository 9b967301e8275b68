"""`nano`, the embedded variant: the same classes as the real models, at toy size.

It is not trained yet. Its weights are random, drawn from a fixed seed, so that everything works end to end and
every machine makes the same noise; every door says so.
"""

import torch
from transformers import AutoTokenizer

from ovi_studio.assets import data_path
from ovi_studio.model import components
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.variants import get_variant

WEIGHT_SEED = 2026


def load_nano() -> OviPipeline:
    """The embedded pipeline, float32, on the CPU. The global random state is left as it was."""
    variant = get_variant("nano")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHT_SEED)
        return OviPipeline(
            tokenizer=AutoTokenizer.from_pretrained(data_path("assets", "nano", "tokenizer"), local_files_only=True),
            text_encoder=components.build_text_encoder(variant),
            transformer=components.build_transformer(variant),
            video_vae=components.build_video_vae(variant),
            audio_vae=components.build_audio_vae(variant),
            vocoder=components.build_vocoder(variant),
            variant=variant.name,
        )
