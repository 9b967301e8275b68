"""Stages `audio-tower`, `video-tower` and `fusion`: the twin DiT learns to make clips of noise.

The recipe is the paper's (arXiv 2510.01284, section 3), as the released models were made:

    audio-tower   the audio half alone, from nothing: sounds of varied length first, whole ones then
    video-tower   the video half alone; in the paper this is the ready-made Wan2.2
    fusion        both together on pairs, with noises of their own and one timestep; feed-forward layers are frozen

Rectified flow: latents are `(1 - sigma) * clean + sigma * noise`, and the model predicts `noise - clean`. The rotary
positions of sound are scaled from the start. In some batches the first frame is given, without noise and at
timestep 0, as in image-to-video. Some captions are replaced by the negative prompts, so that guidance, which leads
away from them, has something to compare with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from ovi_studio.errors import OviStudioError
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.training.latents import LatentSet
from ovi_studio.training.loop import Batch, Share, Stage, noise_of
from ovi_studio.training.text_encoder import Encoding, encode, tokenize
from ovi_studio.variants import Variant

Streams: TypeAlias = Literal["audio", "video", "both"]

VIDEO_WEIGHT, AUDIO_WEIGHT = 0.85, 0.15  # the paper's
BETAS = (0.9, 0.95)  # AdamW's
SHIFT = 2.0  # of the timesteps in training; guessed: small latents are buried by less noise than large ones
DROP_CAPTION = 0.1
GIVEN_FIRST_FRAME = 0.25  # part of the batches with picture
SHORT_SOUNDS = 0.5  # part of the steps of `audio-tower` with sounds of varied length
LENGTHS = (32, 40, 48, 56, 64)  # latents of such sounds, as parts of 64
QUIET = 0.25  # a sound has ended where its latents stay this near to those of silence (root mean square)
TEST_SIGMAS = (0.2, 0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Texts:
    """The trained text encoder with its tokenizer, and what stands in for a caption that is left out."""

    encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    variant: Variant

    def tokens(self, captions: list[str]) -> Encoding:
        """Token numbers of captions, all padded alike, whatever batch they are in."""
        tokens, mask = tokenize(self.tokenizer, captions, self.variant.text_len)
        padding = self.variant.text_len - tokens.shape[1]
        return Encoding(
            torch.nn.functional.pad(tokens, (0, padding), value=self.tokenizer.pad_token_id),
            torch.nn.functional.pad(mask, (0, padding)),
        )

    @torch.no_grad()
    def states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """States (B, T, D) as the transformer reads them."""
        length = int(mask.sum(1).max())
        return encode(self.encoder, Encoding(tokens[:, :length], mask[:, :length]), self.variant.text_len)


class FlowStage(Stage):
    """Trains the transformer, or one of its towers, on latents.

    Args:
        transformer: what is trained.
        texts: reads the captions; it stays as it is.
        latents: that train.
        test_latents: that measure.
        streams: which towers run.
        steps: of the whole training.
        batch_size: clips of a step.
        seed: of the order of clips, of noises, timesteps and what is left out.
    """

    def __init__(
        self,
        transformer: OviTransformer,
        texts: Texts,
        latents: LatentSet,
        test_latents: LatentSet,
        streams: Streams,
        steps: int,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if streams != "audio" and (latents.video is None or test_latents.video is None):
            raise OviStudioError("These latents have no picture.", "Make them with the stage `latents`.")
        self.transformer = transformer
        self.encoder = texts.encoder.requires_grad_(False)
        train_only(transformer, streams)
        self._texts, self._latents, self._test_latents = texts, latents, test_latents
        self._streams, self._steps, self._batch_size, self._seed = streams, steps, batch_size, seed
        self._ends = sound_ends(latents.audio) if streams == "audio" else torch.empty(0)

    def batch(self, step: int, share: Share) -> Batch:
        """Clean latents, noises, timesteps and text of both streams; who gets the first frame is the batch's."""
        rng = np.random.default_rng((self._seed, step))
        places = range(step * self._batch_size, (step + 1) * self._batch_size)
        length, clips = self._choose(rng, step)
        mine = share.of(range(self._batch_size))
        indices = share.of(places)
        uniform = rng.random(self._batch_size)[mine.start : mine.stop : mine.step]
        dropped = rng.random(self._batch_size)[mine.start : mine.stop : mine.step] < DROP_CAPTION
        first_frame = self._streams != "audio" and rng.random() < GIVEN_FIRST_FRAME
        return self._assemble(self._latents, clips[mine], indices, uniform, dropped, length) | {
            "first_frame": torch.tensor(first_frame)
        }

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Mean squared errors of the velocities; a given first frame does not count."""
        sigma, first_frame = batch["sigma"], bool(batch["first_frame"])
        noisy = {}
        for name in ("video", "audio"):
            if name in batch:
                mix = sigma.view(-1, *(1,) * (batch[name].ndim - 1))
                noisy[name] = (1 - mix) * batch[name] + mix * batch[f"{name}_noise"]
        if first_frame:
            noisy["video"] = torch.cat((batch["video"][:, :, :1], noisy["video"][:, :, 1:]), dim=2)
        out = self.transformer(
            noisy.get("video"),
            noisy.get("audio"),
            sigma * 1000,
            self._texts.states(batch["video_tokens"], batch["video_mask"]),
            self._texts.states(batch["audio_tokens"], batch["audio_mask"]),
            first_frame_is_clean=first_frame,
        )
        losses: dict[str, Tensor] = {}
        if out.video is not None:
            error = (out.video - (batch["video_noise"] - batch["video"])).square()
            losses["video"] = error[:, :, int(first_frame) :].mean()
        if out.audio is not None:
            losses["audio"] = (out.audio - (batch["audio_noise"] - batch["audio"])).square().mean()
        return {"loss": joint_loss(losses), **losses}

    def evaluate(self) -> dict[str, float]:
        """The loss on test clips at some noise levels, always with the same noise."""
        sums: dict[str, float] = {}
        count = min(len(self._test_latents), 64)
        for number, sigma in enumerate(TEST_SIGMAS):
            indices, clips = range(number * count, (number + 1) * count), np.arange(count)
            uniform = np.full(count, sigma / (SHIFT - (SHIFT - 1) * sigma))  # what the shift makes `sigma` of
            kept = np.zeros(count, bool)
            batch = self._assemble(self._test_latents, clips, indices, uniform, kept, self._test_latents.audio.shape[1])
            batch["first_frame"] = torch.tensor(False)
            losses = self(**{key: tensor.to(self.transformer.device) for key, tensor in batch.items()})
            for name, loss in losses.items():
                sums[f"test_{name}"] = sums.get(f"test_{name}", 0.0) + float(loss) / len(TEST_SIGMAS)
                if name != "loss":
                    sums[f"test_{name}_{sigma:g}"] = float(loss)
        return sums

    def train(self, mode: bool = True) -> "FlowStage":
        """The text encoder stays as it is, dropout included."""
        super().train(mode)
        self.encoder.eval()
        return self

    def save(self, folder: Path) -> None:
        """The transformer, both towers of it."""
        self.transformer.save_pretrained(folder)

    def _choose(self, rng: np.random.Generator, step: int) -> tuple[int, np.ndarray]:
        """The length of the sound and the clips of a step; short ones are clips whose sound is over by then."""
        whole = self._latents.audio.shape[1]
        candidates: np.ndarray = np.arange(len(self._latents))
        length = whole
        if self._streams == "audio" and step < SHORT_SOUNDS * self._steps:
            length = int(rng.choice(LENGTHS)) * whole // LENGTHS[-1]
            over = np.flatnonzero((self._ends <= length).numpy())
            candidates, length = (over, length) if len(over) >= self._batch_size else (candidates, whole)
        return length, rng.choice(candidates, self._batch_size)

    def _assemble(
        self,
        latents: LatentSet,
        clips: np.ndarray,
        indices: range,
        uniform: np.ndarray,
        dropped: np.ndarray,
        length: int,
    ) -> Batch:
        captions = [latents.captions[clip] for clip in clips]
        defaults = self._texts.variant.defaults
        batch: Batch = {"sigma": torch.from_numpy(SHIFT * uniform / (1 + (SHIFT - 1) * uniform)).float()}
        negatives = {"video": defaults.video_negative_prompt, "audio": defaults.audio_negative_prompt}
        for number, (name, negative) in enumerate(negatives.items()):
            read = [negative if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
            batch[f"{name}_tokens"], batch[f"{name}_mask"] = self._texts.tokens(read)
            if self._streams in {name, "both"}:
                stored = latents.video if name == "video" else latents.audio[:, :length]
                assert stored is not None
                batch[name] = stored[torch.from_numpy(clips)].float()
                batch[f"{name}_noise"] = noise_of(self._seed * 2 + number, indices, batch[name].shape[1:])
        return batch


def joint_loss(losses: dict[str, Tensor]) -> Tensor:
    """The paper's weighting of both streams; a stream alone counts in full."""
    if len(losses) == 1:
        return next(iter(losses.values()))
    return VIDEO_WEIGHT * losses["video"] + AUDIO_WEIGHT * losses["audio"]


def train_only(transformer: OviTransformer, streams: Streams) -> None:
    """Freezes the other tower and what joins it; in fusion, the feed-forward layers of both."""
    transformer.requires_grad_(True)
    for name, parameter in transformer.named_parameters():
        if streams == "both":
            parameter.requires_grad_(".ffn." not in name)
        else:
            parameter.requires_grad_(tower_of(name) == streams and "fusion" not in name)


def fuse_towers(transformer: OviTransformer, video: OviTransformer, audio: OviTransformer) -> None:
    """Puts both trained towers together. They begin without hearing each other: the values they exchange are 0."""
    towers = {"video": video.state_dict(), "audio": audio.state_dict()}
    fused = {name: towers[tower_of(name)][name] for name in transformer.state_dict()}
    for name, tensor in fused.items():
        if ".v_fusion." in name:
            tensor.zero_()
    transformer.load_state_dict(fused)


def tower_of(name: str) -> Streams:
    """Which tower a parameter of the transformer belongs to."""
    parts = name.split(".")
    tower = parts[2] if parts[0] == "blocks" else parts[0]
    return "video" if tower == "video" else "audio"


def sound_ends(audio_NAC: Tensor) -> Tensor:
    """After how many latents each sound has ended: all that follow are near to the last one, which is silent."""
    away = (audio_NAC.float() - audio_NAC[:, -1:].float()).square().mean(-1).sqrt() > QUIET
    positions = torch.arange(1, away.shape[1] + 1)
    ends: Tensor = (away * positions).amax(1)
    return ends
