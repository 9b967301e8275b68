"""Stage `text-encoder`: the variant's tiny UMT5 encoder learns to read captions of the toy world.

It has no large text to learn from, so it learns what the transformer will ask of it: questions about the scene are
answered by attending to its states just as the transformer does, without positions and without a mask. That the
order of words comes through is asked twice: which word is said first, second and third, and of every token where it
stands.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from ovi_studio.training.loop import Batch, Share, Stage
from ovi_studio.training.toyland import COLOURS, PITCHES, PLACES, Ball, Face, Lamp, Scene, Toyland
from ovi_studio.training.voices import REGISTERS, WORDS

BATCH_SIZE = 64
HIDDEN_TOKENS = 0.1  # part of the tokens that are covered, and to be guessed
MAX_WORDS = 3
TEST_CLIPS = 256
_IGNORED = -100  # an answer that does not count

QUESTIONS: Mapping[str, int] = {
    "kind": 3, "colour": len(COLOURS), "place": len(PLACES), "count": 3, "register": 2, "pitch": len(PITCHES),
    "word1": len(WORDS) + 1, "word2": len(WORDS) + 1, "word3": len(WORDS) + 1,
}  # fmt: skip


class Encoding(NamedTuple):
    """Captions as token numbers (B, T), and which of them are no padding (B, T)."""

    tokens: Tensor
    mask: Tensor


class TextEncoderStage(Stage):
    """Trains the encoder, together with a reader that is thrown away.

    Args:
        encoder: with fresh weights.
        tokenizer: of the encoder.
        world: that trains.
        test_world: that measures.
        text_len: to which states are zero-padded.
        batch_size: captions of a step.
    """

    def __init__(
        self,
        encoder: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        world: Toyland,
        test_world: Toyland,
        text_len: int,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.reader = Reader(encoder.config.d_model, encoder.config.vocab_size, text_len)
        self._tokenizer, self._text_len, self._batch_size = tokenizer, text_len, batch_size
        self._world, self._test_world = world, test_world

    def batch(self, step: int, share: Share) -> Batch:
        """Captions with some tokens covered, what these were, and the answers to all questions."""
        indices = share.of(range(step * self._batch_size, (step + 1) * self._batch_size))
        return self._examples([self._world.scene(index) for index in indices], indices)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """How wrong the answers are, the guesses of covered tokens, and the guesses of positions."""
        states = encode(self.encoder, Encoding(batch["tokens"], batch["mask"]), self._text_len)
        answers = self.reader.answers(states)
        wrong = torch.stack([_cross_entropy(answers[name], batch[name]) for name in QUESTIONS]).sum(0)
        length = batch["tokens"].shape[1]
        covered = _cross_entropy(self.reader.tokens(states[:, :length]), batch["covered"])
        positions = _cross_entropy(self.reader.positions(states[:, :length]), batch["positions"])
        loss = wrong + covered + positions
        return {"loss": loss, "questions": wrong, "covered": covered, "positions": positions}

    def evaluate(self) -> dict[str, float]:
        """Part of the questions about test captions that are answered right."""
        batch = self._examples([self._test_world.scene(index) for index in range(TEST_CLIPS)], range(0))
        batch = {name: tensor.to(self.encoder.device) for name, tensor in batch.items()}
        states = encode(self.encoder, Encoding(batch["tokens"], batch["mask"]), self._text_len)
        right = {}
        for name, answers in self.reader.answers(states).items():
            counts = batch[name] != _IGNORED
            right[f"right_{name}"] = float((answers.argmax(-1) == batch[name])[counts].float().mean())
        return right

    def train(self, mode: bool = True) -> "TextEncoderStage":
        """The encoder never drops anything: dropout draws from a state that no checkpoint keeps."""
        super().train(mode)
        self.encoder.eval()
        return self

    def save(self, folder: Path) -> None:
        """The encoder, without the reader."""
        self.encoder.save_pretrained(folder)

    def _examples(self, scenes: list[Scene], covered_by: range) -> Batch:
        """Examples of scenes; each index in `covered_by` decides which tokens of its caption are covered."""
        tokens, mask = tokenize(self._tokenizer, [scene.caption for scene in scenes], self._text_len)
        positions = torch.where(mask > 0, torch.arange(tokens.shape[1]), _IGNORED)
        covered = torch.full_like(tokens, _IGNORED)
        for row, index in enumerate(covered_by):
            chances = np.random.default_rng((self._world.seed, 4, index)).random(self._text_len)
            hidden = torch.from_numpy(chances[: tokens.shape[1]] < HIDDEN_TOKENS) & (mask[row] > 0)
            covered[row, hidden] = tokens[row, hidden]
            tokens[row, hidden] = self._tokenizer.unk_token_id
        answers = [facts_of(scene) for scene in scenes]
        questions = {name: torch.tensor([answer[name] for answer in answers]) for name in QUESTIONS}
        return {"tokens": tokens, "mask": mask, "covered": covered, "positions": positions, **questions}


class Reader(nn.Module):
    """Asks the text's states: one attention for all questions, and a look at every token.

    Args:
        dim: width of the states.
        vocabulary: tokens there are.
        text_len: positions there are.
    """

    def __init__(self, dim: int, vocabulary: int, text_len: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(QUESTIONS), dim))
        self.keys = nn.Linear(dim, dim)
        self.values = nn.Linear(dim, dim)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, choices) for name, choices in QUESTIONS.items()})
        self.tokens = nn.Linear(dim, vocabulary)
        self.positions = nn.Linear(dim, text_len)

    def answers(self, states_BTD: Tensor) -> dict[str, Tensor]:
        """Scores of the choices (B, choices) of every question."""
        queries = self.queries.expand(len(states_BTD), -1, -1)
        found = F.scaled_dot_product_attention(queries, self.keys(states_BTD), self.values(states_BTD))
        return {name: head(found[:, index]) for index, (name, head) in enumerate(self.heads.items())}


def facts_of(scene: Scene) -> dict[str, int]:
    """The answers to all questions, by their number; a question that makes no sense has -100."""
    facts = dict.fromkeys(QUESTIONS, _IGNORED)
    facts["kind"] = ("face", "ball", "lamp").index(scene.kind)
    facts["colour"], facts["place"] = list(COLOURS).index(scene.colour), list(PLACES).index(scene.place)
    if isinstance(scene, Face):
        facts["count"], facts["register"] = len(scene.words) - 1, REGISTERS.index(scene.register)
        for number in range(MAX_WORDS):
            said = scene.words[number] if number < len(scene.words) else None
            facts[f"word{number + 1}"] = len(WORDS) if said is None else WORDS.index(said)
    elif isinstance(scene, Ball):
        facts["count"] = len(scene.impacts) - 1
    elif isinstance(scene, Lamp):
        facts["count"], facts["pitch"] = len(scene.flashes) - 1, PITCHES.index(scene.pitch)
    return facts


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: list[str], text_len: int) -> Encoding:
    """Captions as the pipeline tokenizes prompts, padded to the longest."""
    encoded = tokenizer(captions, max_length=text_len, truncation=True, padding=True, return_tensors="pt")
    return Encoding(encoded.input_ids, encoded.attention_mask)


def encode(encoder: UMT5EncoderModel, encoding: Encoding, text_len: int) -> Tensor:
    """States (B, text_len, D), zero after each caption's own tokens, as the pipeline gives them to the transformer."""
    states = encoder(encoding.tokens, attention_mask=encoding.mask).last_hidden_state
    states = states * encoding.mask[..., None]
    return F.pad(states, (0, 0, 0, text_len - states.shape[1]))


def _cross_entropy(scores: Tensor, answers: Tensor) -> Tensor:
    """Mean over a batch's samples of each one's mean; a sample without an answer counts 0."""
    losses = F.cross_entropy(scores.flatten(0, -2), answers.flatten(), reduction="none", ignore_index=_IGNORED)
    counts = (answers != _IGNORED).float()
    losses = losses.view(answers.shape)
    if answers.ndim == 1:
        return losses.mean()
    return (losses.sum(1) / counts.sum(1).clamp_min(1)).mean()
