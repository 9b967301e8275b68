"""What the towers learn from: clips of the toy world as latents, made once and kept in shards.

make_latents(...)  → DIR/00000.safetensors, … each with its captions; goes on where it was stopped
LatentSet.load(DIR) → everything in memory: a clip with picture is 16 kB, one without 1 kB
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ovi_studio.errors import OviStudioError
from ovi_studio.files import replacing
from ovi_studio.model.video_vae import encode_frames
from ovi_studio.training.audio_vae import encode_sound
from ovi_studio.training.toyland import ToyClip, Toyland
from ovi_studio.training.video_vae import to_tensor

SHARD = 250  # clips
GROUP = 10  # clips that are encoded together


@dataclass(frozen=True)
class LatentSet:
    """Latents of many clips, float16.

    Args:
        audio: (N, A, C), as the audio VAE makes them.
        video: (N, C, F, H, W), normalized; None in a set of sounds alone.
        captions: of the clips.
    """

    audio: Tensor
    video: Tensor | None
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    @staticmethod
    def load(folder: Path) -> "LatentSet":
        """All shards of a folder.

        Raises:
            OviStudioError: there are none.
        """
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise OviStudioError(f"There are no latents in {folder}.", "Run the stage that makes them first.")
        audio, video, captions = [], [], []
        for path in paths:
            with safe_open(path, "pt") as file:
                audio.append(file.get_tensor("audio"))
                if "video" in file.keys():  # noqa: SIM118  (no mapping)
                    video.append(file.get_tensor("video"))
                captions += json.loads(file.metadata()["captions"])
        return LatentSet(torch.cat(audio), torch.cat(video) if video else None, tuple(captions))


def make_latents(
    folder: Path,
    world: Toyland,
    count: int,
    audio_vae: MMAudioVAE,
    video_vae: AutoencoderKLWan | None,
    progress: Callable[[int], None],
) -> None:
    """Encodes the clips 0…`count` of a world, shard by shard; shards that are there already stay.

    Args:
        folder: of the shards.
        world: whose clips.
        count: how many, up to a whole shard.
        audio_vae: trained.
        video_vae: trained, or None to encode sounds alone.
        progress: told how many clips are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, SHARD):
        path = folder / f"{first // SHARD:05d}.safetensors"
        if not path.exists():
            clips = [world.clip(index) for index in range(first, first + SHARD)]
            groups = [clips[start : start + GROUP] for start in range(0, SHARD, GROUP)]
            tensors = {"audio": torch.cat([_encode_sounds(audio_vae, group) for group in groups])}
            if video_vae is not None:
                tensors["video"] = torch.cat([_encode_pictures(video_vae, group) for group in groups])
            captions = json.dumps([clip.caption for clip in clips])
            with replacing(path) as temporary:
                save_file(tensors, temporary, {"captions": captions})
        progress(min(first + SHARD, count))


@torch.no_grad()
def _encode_sounds(vae: MMAudioVAE, clips: list[ToyClip]) -> Tensor:
    waveforms = np.stack([clip.waveform for clip in clips])
    return encode_sound(vae, torch.from_numpy(waveforms).to(vae.device)).half().cpu()


@torch.no_grad()
def _encode_pictures(vae: AutoencoderKLWan, clips: list[ToyClip]) -> Tensor:
    frames = torch.stack([to_tensor(clip.scene.frames(clip.waveform)) for clip in clips])
    return encode_frames(vae, frames).half().cpu()
