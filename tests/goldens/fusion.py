"""A transformer with the recorded tiny weights, for the tests that need one."""

import torch
import torch.nn.functional as F

from ovi_studio.model.transformer import OviTransformer
from ovi_studio.weights.convert import fusion_from_checkpoint
from tests.goldens import cases


def load_transformer(name: str) -> OviTransformer:
    """The model that recording `name` was made with, float32, through the checkpoint's key map."""
    facts = cases.facts(name)
    video, audio = facts["video_config"], facts["audio_config"]
    model = OviTransformer(
        num_attention_heads=video["num_heads"],
        attention_head_dim=video["dim"] // video["num_heads"],
        ffn_dim=video["ffn_dim"],
        num_layers=video["num_layers"],
        freq_dim=video["freq_dim"],
        text_dim=video["text_dim"],
        in_channels=video["in_dim"],
        audio_in_channels=audio["in_dim"],
        patch_size=tuple(video["patch_size"]),
        audio_rope_scale=audio["temporal_rope_scaling_factor"],
        eps=video["eps"],
    )
    weights = cases.weights(facts["weights"].removesuffix(".weights.safetensors"))
    model.load_state_dict(fusion_from_checkpoint(weights))
    return model.eval()


def padded_text(states: torch.Tensor, length: int) -> torch.Tensor:
    """Text states (tokens, width) with a batch dimension, zero-padded to `length` tokens."""
    return F.pad(states, (0, 0, 0, length - states.shape[0]))[None]
