"""The text encoder's stage: the states it trains are those that the transformer reads."""

import pytest
import torch

from ovi_studio.model import components
from ovi_studio.training.loop import Share
from ovi_studio.training.text_encoder import QUESTIONS, TextEncoderStage, encode, facts_of, tokenize
from ovi_studio.training.toyland import Ball, Face, Lamp
from ovi_studio.variants import get_variant
from ovi_studio.weights.nano import load_nano
from tests.training import tiny

NANO = get_variant("nano")


@pytest.fixture(scope="module")
def stage(world, test_world) -> TextEncoderStage:
    torch.manual_seed(0)
    tokenizer = tiny.texts().tokenizer
    return TextEncoderStage(components.build_text_encoder(NANO), tokenizer, world, test_world, NANO.text_len, 8)


def test_states_are_those_of_the_pipeline(world):
    pipeline = load_nano()
    captions = [world.clip(index).caption for index in range(5)]
    with torch.no_grad():
        states = encode(pipeline.text_encoder, tokenize(pipeline.tokenizer, captions, NANO.text_len), NANO.text_len)
    for caption, state in zip(captions, states, strict=True):
        torch.testing.assert_close(state[None], pipeline.encode_prompt(caption), atol=1e-5, rtol=1e-5)


def test_the_answers_are_the_scene(world):
    scenes = [world.scene(index) for index in range(40)]
    face, ball, lamp = (next(s for s in scenes if isinstance(s, kind)) for kind in (Face, Ball, Lamp))
    said = facts_of(face)
    assert said["word1"] == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"].index(
        face.words[0]
    )
    assert said["count"] == len(face.words) - 1
    assert said["pitch"] == -100
    assert facts_of(ball)["word1"] == facts_of(ball)["pitch"] == -100
    assert facts_of(ball)["count"] == len(ball.impacts) - 1
    assert [300, 400, 500, 600, 800, 1000, 1200, 1600][facts_of(lamp)["pitch"]] == lamp.pitch


def test_batches_are_shared_whatever_their_padding(stage):
    whole = stage.batch(3, Share())
    assert (whole["covered"] != -100).any()
    for rank in (0, 1):
        part = stage.batch(3, Share(rank, 2))
        width = part["tokens"].shape[1]
        for name in ("tokens", "mask", "covered", "positions"):
            assert torch.equal(whole[name][rank::2, :width], part[name])
        assert all(torch.equal(whole[name][rank::2], part[name]) for name in QUESTIONS)
    covered = whole["covered"] != -100
    assert (whole["tokens"][covered] == 2).all()  # the unknown token stands for what is covered


def test_the_loss_of_a_batch_is_the_mean_of_its_parts(stage):
    with torch.no_grad():
        whole = stage(**stage.batch(3, Share()))
        parts = [stage(**stage.batch(3, Share(rank, 2))) for rank in (0, 1)]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts) / 2, loss, atol=1e-5, rtol=1e-5)


def test_nothing_is_dropped_in_training(stage):
    batch = stage.batch(0, Share())
    stage.train()
    with torch.no_grad():
        assert torch.equal(stage(**batch)["loss"], stage(**batch)["loss"])
