"""The stages of `nano`'s training, in order: what each is made of, and how long and how fast it learns.

    python -m ovi_studio.training STAGE --out DIR

    video-vae ── video-decoder
        └──────────────────────────────────┐
    audio-vae ── audio-latents ──┐         │
        ├─ audio-decoder         │      latents ── video-tower ──┐
        └─ vocoder               │                               │
    text-encoder ────────────────┴── audio-tower ────────────────┴── fusion

Every stage reads what earlier ones left in DIR/STAGE/weights and leaves its own there.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from transformers import AutoTokenizer, UMT5EncoderModel

from ovi_studio.assets import data_path
from ovi_studio.errors import OviStudioError
from ovi_studio.model import components
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.training.audio_vae import AudioDecoderStage, AudioVaeStage
from ovi_studio.training.audio_vae import begin as begin_audio
from ovi_studio.training.flow import BETAS, FlowStage, Streams, Texts, fuse_towers
from ovi_studio.training.latents import LatentSet, make_latents
from ovi_studio.training.loop import Settings, train
from ovi_studio.training.text_encoder import TextEncoderStage
from ovi_studio.training.toyland import Toyland
from ovi_studio.training.video_vae import WHOLE_CLIPS, VideoVaeStage, freeze_encoder
from ovi_studio.training.video_vae import begin as begin_video
from ovi_studio.training.vocoder import VocoderStage
from ovi_studio.training.voices import TEST_VOICES, word_bank
from ovi_studio.variants import get_variant

Run: TypeAlias = Callable[..., None]  # (folder of all stages, seed, steps or the recipe's[, compiled])
Component = TypeVar("Component")

NANO = get_variant("nano")
WORDS_FILE = "words.npz"
TEST_LATENTS = 250  # clips
_VIDEO_VAE, _VIDEO_DECODER, _TEXT_ENCODER = "video-vae", "video-decoder", "text-encoder"
_AUDIO_VAE, _AUDIO_DECODER = "audio-vae", "audio-decoder"
_VIDEO_TOWER, _AUDIO_TOWER, _LATENTS, _AUDIO_LATENTS = "video-tower", "audio-tower", "latents", "audio-latents"


def train_video_vae(out: Path, seed: int, steps: int | None) -> None:
    """The video VAE, alone."""
    settings = Settings(steps=steps or 12_000, learning_rate=2e-3)
    torch.manual_seed(seed)
    stage = VideoVaeStage(begin_video(components.build_video_vae(NANO)), *toylands(out, seed), settings.steps)
    train(stage.train(), settings, out / _VIDEO_VAE)


def train_video_decoder(out: Path, seed: int, steps: int | None) -> None:
    """The video VAE's decoder, on whole clips."""
    settings = Settings(steps=steps or 1000, learning_rate=5e-4, ema_decay=0.98)
    vae = freeze_encoder(_trained(AutoencoderKLWan, out, _VIDEO_VAE))
    stage = VideoVaeStage(vae, *toylands(out, seed), settings.steps, WHOLE_CLIPS)
    train(stage.train(), settings, out / _VIDEO_DECODER)


def train_audio_vae(out: Path, seed: int, steps: int | None) -> None:
    """The audio VAE, alone."""
    settings = Settings(steps=steps or 6000, learning_rate=2e-3, weight_decay=0.0)
    torch.manual_seed(seed)
    train_world, test_world = toylands(out, seed)
    vae = begin_audio(components.build_audio_vae(NANO), train_world)
    train(AudioVaeStage(vae, train_world, test_world).train(), settings, out / _AUDIO_VAE)


def train_audio_decoder(out: Path, seed: int, steps: int | None) -> None:
    """The audio VAE's decoder, which learns to keep pure tones."""
    settings = Settings(steps=steps or 1500, learning_rate=5e-4, weight_decay=0.0, ema_decay=0.98)
    stage = AudioDecoderStage(_trained(MMAudioVAE, out, _AUDIO_VAE), *toylands(out, seed))
    train(stage.train(), settings, out / _AUDIO_DECODER)


def train_vocoder(out: Path, seed: int, steps: int | None) -> None:
    """The vocoder, on mels of sounds and of the audio VAE."""
    settings = Settings(steps=steps or 8000, learning_rate=1e-3, weight_decay=0.0)
    torch.manual_seed(seed)
    vae = _trained(MMAudioVAE, out, _AUDIO_VAE)
    stage = VocoderStage(components.build_vocoder(NANO), vae, *toylands(out, seed))
    train(stage.train(), settings, out / "vocoder")


def train_text_encoder(out: Path, seed: int, steps: int | None) -> None:
    """The text encoder, with a reader of its own."""
    settings = Settings(steps=steps or 3000, learning_rate=1e-3)
    torch.manual_seed(seed)
    encoder = components.build_text_encoder(NANO)
    stage = TextEncoderStage(encoder, _tokenizer(), *toylands(out, seed), text_len=NANO.text_len)
    train(stage.train(), settings, out / _TEXT_ENCODER)


def make_pair_latents(out: Path, seed: int, clips: int | None) -> None:
    """Clips as latents, for `video-tower` and `fusion`."""
    video_vae = _trained(AutoencoderKLWan, out, _VIDEO_VAE)
    _make_latents(out, _LATENTS, seed, clips or 8000, video_vae)


def make_audio_latents(out: Path, seed: int, clips: int | None) -> None:
    """Sounds as latents, for `audio-tower`: more of them, because they cost little."""
    _make_latents(out, _AUDIO_LATENTS, seed, clips or 20_000, None)


def train_audio_tower(out: Path, seed: int, steps: int | None, compiled: bool = False) -> None:
    """The audio half of the transformer, from nothing."""
    _train_flow(out, seed, "audio", compiled, Settings(steps=steps or 15_000, learning_rate=1e-3, betas=BETAS))


def train_video_tower(out: Path, seed: int, steps: int | None, compiled: bool = False) -> None:
    """The video half of the transformer, in place of the paper's ready-made one."""
    _train_flow(out, seed, "video", compiled, Settings(steps=steps or 12_000, learning_rate=1e-3, betas=BETAS))


def train_fusion(out: Path, seed: int, steps: int | None, compiled: bool = False) -> None:
    """Both halves together."""
    _train_flow(out, seed, "both", compiled, Settings(steps=steps or 12_000, learning_rate=5e-4, betas=BETAS))


def toylands(out: Path, seed: int) -> tuple[Toyland, Toyland]:
    """The world that trains, and the one that measures: other combinations, other voices."""
    bank = word_bank(out / WORDS_FILE)
    return Toyland(seed, bank), Toyland(seed, bank, "test", TEST_VOICES)


def _train_flow(out: Path, seed: int, streams: Streams, compiled: bool, settings: Settings) -> None:
    torch.manual_seed(seed)
    transformer = components.build_transformer(NANO)
    if streams == "both":
        towers = (_trained(OviTransformer, out, name) for name in (_VIDEO_TOWER, _AUDIO_TOWER))
        fuse_towers(transformer, *towers)
    texts = Texts(_trained(UMT5EncoderModel, out, _TEXT_ENCODER), _tokenizer(), NANO)
    folder = out / (_AUDIO_LATENTS if streams == "audio" else _LATENTS)
    latents, test_latents = (LatentSet.load(folder / split) for split in ("train", "test"))
    name = {"audio": _AUDIO_TOWER, "video": _VIDEO_TOWER, "both": "fusion"}[streams]
    if compiled:
        for block in transformer.blocks:  # all alike: compiled once
            block.compile()
    stage = FlowStage(transformer, texts, latents, test_latents, streams, settings.steps, seed=seed)
    train(stage.train(), settings, out / name)


def _make_latents(out: Path, name: str, seed: int, clips: int, video_vae: AutoencoderKLWan | None) -> None:
    audio_vae = _trained(MMAudioVAE, out, _AUDIO_VAE)
    for world, count in zip(toylands(out, seed), (clips, TEST_LATENTS), strict=True):

        def tell(done: int, split: str = world.split, count: int = count) -> None:
            print(time.strftime("%H:%M:%S"), split, f"{done}/{count}", flush=True)  # noqa: T201

        make_latents(out / name / world.split, world, count, audio_vae, video_vae, tell)


def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(data_path("assets", "nano", "tokenizer"), local_files_only=True)


def _trained(kind: type[Component], out: Path, stage: str) -> Component:
    """What a stage has left.

    Raises:
        OviStudioError: it has not run.
    """
    folder = out / stage / "weights"
    if not folder.is_dir():
        raise OviStudioError(f"The stage {stage} has left nothing in {folder}.", f"Run it first: {stage} --out {out}.")
    loaded: Component = kind.from_pretrained(folder).eval()  # type: ignore[attr-defined]
    return loaded


COMPILABLE = frozenset({_AUDIO_TOWER, _VIDEO_TOWER, "fusion"})
STAGES: Mapping[str, Run] = MappingProxyType(
    {
        _VIDEO_VAE: train_video_vae,
        _VIDEO_DECODER: train_video_decoder,
        _AUDIO_VAE: train_audio_vae,
        _AUDIO_DECODER: train_audio_decoder,
        "vocoder": train_vocoder,
        _TEXT_ENCODER: train_text_encoder,
        _AUDIO_LATENTS: make_audio_latents,
        _LATENTS: make_pair_latents,
        _AUDIO_TOWER: train_audio_tower,
        _VIDEO_TOWER: train_video_tower,
        "fusion": train_fusion,
    }
)
