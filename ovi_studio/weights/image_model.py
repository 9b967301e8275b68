"""The image model in the store: where its files are, and what they say it is made of. Without torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovi_studio.errors import WeightsError
from ovi_studio.flux import FLUX_KREA, ImageModel
from ovi_studio.folders import app_folders
from ovi_studio.shapes import TextEncoderShape
from ovi_studio.weights.catalog import SOURCES
from ovi_studio.weights.store import State, Store

SOURCE = SOURCES["flux-krea"]


def image_model_folder(store: Store) -> Path:
    """The folder of its parts, as diffusers lays them out.

    Raises:
        WeightsError: it is not here; the message has the command that fetches it, and where its licence is.
    """
    if store.status(SOURCE).state is not State.PRESENT:
        raise WeightsError(
            "FLUX.1-Krea-dev, which draws first frames, is not here.",
            f"Accept its licence at {SOURCE.page}, then: ovi-studio models download {SOURCE.name}. Or give an image.",
        )
    return store.folder_of(SOURCE)


def image_model_digest(store: Store) -> str:
    """Tells one download from another: pictures drawn by other weights are other pictures."""
    return ",".join(f"{file.path}={file.digest}" for file in store.listing(SOURCE).files)


def image_model(store: Store) -> ImageModel:
    """What the configurations in the store say; of a model that is not here (yet), the released one."""
    if store.status(SOURCE).state is not State.PRESENT:
        return FLUX_KREA
    folder = store.folder_of(SOURCE)
    try:
        transformer = _config(folder / "transformer")
        text, vae = _config(folder / "text_encoder_2"), _config(folder / "vae")
        encoder = TextEncoderShape(
            **{name: text[name] for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")}
        )
        numbers = (
            "num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "in_channels",
            "pooled_projection_dim",
        )  # fmt: skip
        return replace(
            FLUX_KREA,
            **{name: int(transformer[name]) for name in numbers},
            text_encoder=encoder,
            vae_channels=tuple(vae["block_out_channels"]),
            sample_size=int(vae["sample_size"]),
        )
    except (OSError, ValueError, KeyError, TypeError):  # loading tells what is wrong
        return FLUX_KREA


def installed_image_model() -> ImageModel:
    """The one in the application's store."""
    return image_model(Store(app_folders().weights))


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
