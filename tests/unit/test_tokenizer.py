"""`nano`'s tokenizer: the shipped files, and that its script makes the same ones."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ovi_studio.assets import data_path
from ovi_studio.prompt import clean_text
from ovi_studio.training import tokenizer as recipe
from ovi_studio.variants import get_variant

SHIPPED = data_path("assets", "nano", "tokenizer")
NANO = get_variant("nano")
TOKENIZER: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True)


def tokens(text: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text).input_ids)


def test_the_script_makes_the_shipped_files(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tokenizer", str(tmp_path)])
    recipe.main()
    made = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.iterdir()}
    shipped = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in SHIPPED.iterdir()}
    assert made == shipped


def test_another_seed_makes_another_tokenizer():
    assert recipe.train(seed=1).get_vocab() != TOKENIZER.get_vocab()


def test_special_tokens_are_those_of_t5_and_the_vocabulary_fills_the_embedding():
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id) == (0, 1, 2)
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(NANO.text_encoder.vocab_size))


def test_tags_are_single_tokens_and_do_not_change_the_words_beside_them():
    spoken = ["▁says", "<S>", "▁seven", "▁three", "<E>"]
    assert tokens("says <S>seven three<E>") == [*spoken, "</s>"]
    assert tokens("says<S> seven three <E>") == [*spoken, "</s>"]
    assert tokens("<AUDCAP>thud<ENDAUDCAP>") == ["<AUDCAP>", "▁thud", "<ENDAUDCAP>", "</s>"]
    assert tokens("Audio: thud") == ["Audio:", "▁thud", "</s>"]


@pytest.mark.parametrize("word", [*recipe.NUMBERS[:-1], *recipe.COLOURS, "ball", "lamp", "face", "voice", "Hz"])
def test_words_of_the_toy_world_are_single_tokens(word):
    assert tokens(word) == [f"▁{word}", "</s>"]


@given(st.text(max_size=60))
def test_every_text_has_an_encoding_that_ends_once(text):
    ids = TOKENIZER(clean_text(text)).input_ids
    assert ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.unk_token_id not in ids
    assert max(ids) < NANO.text_encoder.vocab_size


@pytest.mark.parametrize("text", ["A red ball.", "café 日本語 🎈 naïve", "The tone is 437 Hz; isn't it?"])
def test_text_without_tags_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER(text).input_ids, skip_special_tokens=True) == text


def test_long_text_is_cut_with_its_end_token_kept():
    ids = TOKENIZER("seven " * 500, truncation=True, max_length=NANO.text_len).input_ids
    assert len(ids) == NANO.text_len
    assert ids[-1] == TOKENIZER.eos_token_id


def test_captions_of_the_toy_world_come_in_both_dialects_and_fit_the_text_length():
    captions = recipe.toy_captions(300, random.Random(1))
    assert any("<AUDCAP>" in caption for caption in captions)
    assert any("Audio:" in caption for caption in captions)
    assert max(len(TOKENIZER(caption).input_ids) for caption in captions) <= NANO.text_len // 2
