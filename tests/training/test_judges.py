"""The paper's measures of sound: their arithmetic, and the models behind them at toy size with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from ovi_studio.errors import OviStudioError
from ovi_studio.media import write_clip
from ovi_studio.training.__main__ import main
from ovi_studio.training.judges import (
    Clap,
    Heard,
    Tagger,
    Whisper,
    frechet_distance,
    inception_score,
    resampled,
    word_error_rate,
)


def test_word_errors_without_case_and_punctuation():
    assert word_error_rate(["Hello, there!"], ["hello there"]) == 0
    assert word_error_rate(["hello", "one two three"], ["hello there", "one three"]) == 0.5
    with pytest.raises(OviStudioError, match="No clip has speech"):
        word_error_rate([], [])


def test_the_frechet_distance_of_normal_distributions_is_known():
    rng = np.random.default_rng(0)
    one = rng.normal(0, 1, (20_000, 3))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, one + np.array([3, 0, 4])) == pytest.approx(25, rel=1e-6)
    other = rng.normal(0, 2, (20_000, 3))  # (2 - 1)² in each of three directions
    assert frechet_distance(one, other) == pytest.approx(3, rel=0.05)
    with pytest.raises(OviStudioError, match="at least two"):
        frechet_distance(one[:1], other)


def test_the_inception_score_is_the_number_of_sure_and_different_verdicts():
    assert inception_score(np.eye(4)) == pytest.approx(4)
    assert inception_score(np.full((5, 4), 0.25)) == pytest.approx(1)
    assert inception_score(np.repeat(np.eye(4)[:1], 5, axis=0)) == pytest.approx(1)


@pytest.mark.parametrize("rate", [8000, 48_000])
def test_another_rate_is_the_same_sound(rate):
    seconds = np.arange(16_000) / 16_000
    heard = Heard(np.sin(2 * np.pi * 440 * seconds).astype(np.float32), 16_000, "", "")
    expected = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    np.testing.assert_allclose(resampled(heard, rate), expected, atol=1e-4)


# --- Models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whisper")
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", *map(chr, range(33, 127))])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=100,
        max_target_positions=12, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
        suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 8
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clap")
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "beep", "thud"]
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokens = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **tokens).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=16_000, max_length_s=2, truncation="rand_trunc"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    text = {"vocab_size": 7, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio = {
        "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": (4, 4), "patch_embeds_hidden_size": 8,
        "depths": [1, 1], "num_attention_heads": [1, 2], "window_size": 4, "hidden_size": 16, "projection_dim": 8,
    }  # fmt: skip
    ClapModel(
        ClapConfig(text_config={**text, "intermediate_size": 16, "projection_dim": 8}, audio_config=audio)
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tagger")
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64,
        num_mel_bins=32, num_labels=5,
    )  # fmt: skip
    ASTForAudioClassification(config).save_pretrained(folder)
    return str(folder)


def heard(pitch: float) -> Heard:
    wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(32_000) / 16_000)
    return Heard(wave.astype(np.float32), 16_000, "one two", "a beep")


def test_whisper_writes_words(whisper):
    assert isinstance(Whisper(whisper).words(heard(300)), str)


def test_clap_likens_sounds_to_words(clap):
    judge = Clap(clap)
    low, high = judge.likeness(heard(300)), judge.likeness(heard(3000))
    assert -1 <= low <= 1
    assert low == pytest.approx(judge.likeness(heard(300)))
    assert low != high


def test_a_tagger_gives_features_and_probabilities(tagger):
    features, probabilities = Tagger(tagger).look(heard(300))
    assert features.shape == (16,)
    assert probabilities.sum() == pytest.approx(1)


def test_the_command_judges_clips_by_what_is_in_them(whisper, clap, tagger, tmp_path, capfd):
    paths: list[Path] = []
    for index in range(2):
        request = {"prompt": "A face says <S>one two<E>. Audio: a beep"}
        made = write_clip(
            tmp_path / f"{index}.mp4", frames=None, waveform=heard(300 + 500 * index).waveform, fps=24,
            sample_rate=16_000, metadata={"request": request},
        )  # fmt: skip
        paths.append(made.path)
    clips = [str(path) for path in paths]
    options = ["--whisper", whisper, "--clap", clap, "--tagger", tagger, "--real", *clips]
    assert main(["judge", *clips, *options]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert set(report) == {"clips", "WER", "CLAP", "IS", "FD"}
    assert report["WER"] > 0
    assert report["FD"] == pytest.approx(0, abs=1e-3)
