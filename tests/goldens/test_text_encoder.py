"""The text encoder through the key map, and the whole way from a string to its embedding, within 1e-4."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, UMT5EncoderModel

from ovi_studio.model.components import build_text_encoder
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.prompt import clean_text
from ovi_studio.shapes import TextEncoderShape
from ovi_studio.variants import VARIANTS
from ovi_studio.weights.convert import text_encoder_from_checkpoint
from tests.goldens import cases

pytestmark = pytest.mark.golden
TENSORS = cases.tensors("t5_tiny")
TEXT = cases.facts("t5_tiny_text")
TEXT_TENSORS = cases.tensors("t5_tiny_text")
TOLERANCE = 1e-4


def load_encoder(config: dict[str, Any], checkpoint: dict[str, torch.Tensor]) -> UMT5EncoderModel:
    shape = TextEncoderShape(
        vocab_size=config["vocab"],
        d_model=config["dim"],
        d_kv=config["dim_attn"] // config["num_heads"],
        d_ff=config["dim_ffn"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        relative_attention_num_buckets=config["num_buckets"],
        relative_attention_max_distance=config["max_dist"],
    )
    model = build_text_encoder(dataclasses.replace(VARIANTS["720x720_5s"], text_encoder=shape))
    model.load_state_dict(text_encoder_from_checkpoint(checkpoint))
    return model


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def encoder(request: pytest.FixtureRequest) -> UMT5EncoderModel:
    model = load_encoder(cases.facts("t5_tiny.weights")["config"], cases.weights("t5_tiny"))
    model.set_attn_implementation(request.param)
    return model


@pytest.fixture(scope="module")
def hidden(encoder: UMT5EncoderModel) -> torch.Tensor:
    with torch.no_grad():
        return encoder(TENSORS["ids"], attention_mask=TENSORS["mask"]).last_hidden_state


def test_states_of_the_valid_rows(hidden: torch.Tensor) -> None:
    valid = TENSORS["mask"].bool()
    cases.assert_close(hidden[valid], TENSORS["hidden"][valid], TOLERANCE)


@pytest.mark.parametrize("row", [key.removeprefix("trimmed.") for key in TENSORS if key.startswith("trimmed.")])
def test_trimmed_rows(hidden: torch.Tensor, row: str) -> None:
    length = int(TENSORS["mask"][int(row)].sum())
    cases.assert_close(hidden[int(row), :length], TENSORS[f"trimmed.{row}"], TOLERANCE)


def test_relative_positions_of_the_first_layer(encoder: UMT5EncoderModel) -> None:
    recorded = TENSORS["layer0.pos_bias"]
    rows, length = recorded.shape[-2:]
    attention = encoder.encoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(length, length)[0, :, :rows]
    cases.assert_close(bias, recorded, TOLERANCE)


# --- from strings. The texts belong to the tokenizer: a recording that has none of its own gets the project's
# copy of both, and the weights that lie beside them.

TEXTS_FOLDER = cases.path("t5_tiny_text.json").parent


@pytest.fixture(scope="module")
def pipeline() -> OviPipeline:
    """Its text half, which is all that `encode_prompt` needs."""
    facts = json.loads((TEXTS_FOLDER / "t5_tiny.weights.json").read_text(encoding="utf-8"))
    checkpoint = load_file(TEXTS_FOLDER / TEXT["weights"])
    encoder = load_encoder(facts["config"], {key: tensor.float() for key, tensor in checkpoint.items()})
    tokenizer = AutoTokenizer.from_pretrained(cases.path("t5_tiny_tokenizer"))
    others: Any = dict.fromkeys(("transformer", "video_vae", "audio_vae", "vocoder"))
    return OviPipeline(tokenizer=tokenizer, text_encoder=encoder, **others)


@pytest.mark.parametrize("index", range(len(TEXT["texts"])))
def test_cleaned_text_and_token_ids(pipeline: OviPipeline, index: int) -> None:
    cleaned = clean_text(TEXT["texts"][index])
    assert cleaned == TEXT["cleaned"][index]
    length = int(TEXT_TENSORS["mask"][index].sum())
    ids = pipeline.tokenizer(cleaned, truncation=True, max_length=TEXT["seq_len"]).input_ids
    assert ids == TEXT_TENSORS["ids"][index, :length].tolist()


@pytest.mark.parametrize("index", range(len(TEXT["texts"])))
def test_text_to_padded_embedding(pipeline: OviPipeline, index: int) -> None:
    with torch.no_grad():
        states = pipeline.encode_prompt(TEXT["texts"][index], max_sequence_length=TEXT["seq_len"])
    expected = TEXT_TENSORS[f"emb.{index}"]
    assert states.shape == (1, TEXT["seq_len"], expected.shape[1])
    cases.assert_close(states[0, : len(expected)], expected, TOLERANCE)
    assert not states[0, len(expected) :].any()
