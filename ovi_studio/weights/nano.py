"""`nano`, the embedded variant: the classes of the real models at toy size, but for a vocoder of its own.

    assets/nano/tokenizer/        always
    assets/nano/card.json         how the weights were made; that it is there says that they are: see `is_packed`
    assets/nano/transformer/ …    each component's config and float16 weights, in its library's own format

Where the package has no weights, they are random, drawn from a fixed seed, so that everything works end to end and
every machine makes the same noise; every door says so. `python -m ovi_studio.training pack` puts them there.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from transformers import AutoTokenizer, UMT5EncoderModel
from transformers.utils import logging

from ovi_studio.assets import NANO_CARD, data_path
from ovi_studio.errors import WeightsError
from ovi_studio.model import components
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.model.vocoder import SpectralVocoder
from ovi_studio.variants import get_variant

WEIGHT_SEED = 2026
CLASSES: dict[str, Any] = {
    "text_encoder": UMT5EncoderModel,
    "transformer": OviTransformer,
    "video_vae": AutoencoderKLWan,
    "audio_vae": MMAudioVAE,
    "vocoder": SpectralVocoder,
}


def load_nano(folder: Path | None = None) -> OviPipeline:
    """The embedded pipeline, float32, on the CPU. The global random state is left as it was.

    Args:
        folder: of weights that were packed; by default the package's.

    Raises:
        WeightsError: the weights are damaged.
    """
    if folder is None:
        folder = data_path("assets", "nano")
    elif not is_packed(folder):
        raise WeightsError(f"There are no packed weights in {folder}.", "Give a folder that `training pack` has made.")
    return packed_nano(folder) if is_packed(folder) else fresh_nano()


def is_packed(folder: Path) -> bool:
    """Whether weights were packed into the folder, all of them: the card is written last."""
    return (folder / NANO_CARD[-1]).is_file()


def packed_nano(folder: Path) -> OviPipeline:
    """The pipeline of packed weights."""
    parts = {}
    for name, kind in CLASSES.items():
        typed = {"dtype" if name == "text_encoder" else "torch_dtype": torch.float32}
        try:
            with _without_progress_bar():
                parts[name] = kind.from_pretrained(folder / name, local_files_only=True, **typed).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"nano's {name} in {folder} cannot be read.", "Install ovi-studio again.") from error
    return OviPipeline(tokenizer=_tokenizer(folder), variant="nano", **parts)


def fresh_nano() -> OviPipeline:
    """The pipeline with random weights, always the same."""
    variant = get_variant("nano")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHT_SEED)
        return OviPipeline(
            tokenizer=_tokenizer(data_path("assets", "nano")),
            text_encoder=components.build_text_encoder(variant),
            transformer=components.build_transformer(variant),
            video_vae=components.build_video_vae(variant),
            audio_vae=components.build_audio_vae(variant),
            vocoder=components.build_vocoder(variant),
            variant=variant.name,
        )


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Transformers shows one for every load, and these take a moment."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
