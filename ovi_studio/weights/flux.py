"""FLUX.1's parts from the store, by the library's own loaders: each by itself, so that they can take turns.

Weights stay in their files, mapped into memory, where they are wanted in the type that they are stored in. A file that
lacks a tensor is refused: the libraries would fill the gap with random numbers.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
from transformers.utils import logging as transformers_logging

from ovi_studio.errors import WeightsError
from ovi_studio.weights.image_model import SOURCE


def load_text_encoders(folder: Path, dtype: torch.dtype) -> FluxPipeline:
    """A pipeline that can encode prompts and nothing else. Raises as `load_transformer`."""
    with _reading(folder):
        tokenizers = {
            name: AutoTokenizer.from_pretrained(folder / name, local_files_only=True)
            for name in ("tokenizer", "tokenizer_2")
        }
        return FluxPipeline(
            scheduler=None,
            vae=None,
            transformer=None,
            text_encoder=_whole(CLIPTextModel, folder / "text_encoder", dtype=dtype),
            text_encoder_2=_whole(T5EncoderModel, folder / "text_encoder_2", dtype=dtype),
            **tokenizers,
        )


def load_transformer(folder: Path, dtype: torch.dtype) -> FluxTransformer2DModel:
    """The transformer.

    Raises:
        WeightsError: a file is missing, damaged or incomplete.
    """
    with _reading(folder):
        return _whole(FluxTransformer2DModel, folder / "transformer", torch_dtype=dtype)


def load_vae(folder: Path, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE. Raises as `load_transformer`."""
    with _reading(folder):
        return _whole(AutoencoderKL, folder / "vae", torch_dtype=dtype)


def load_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """The noise schedule. Raises as `load_transformer`."""
    with _reading(folder):
        return FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)


def _whole(kind: Any, folder: Path, **dtype: torch.dtype) -> Any:
    """A module with every one of its weights."""
    module, report = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **dtype
    )
    if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise _damaged(folder, f"{len(lacking)} tensors are missing or misshaped, {lacking[0]} among them")
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """The libraries' many errors in words, and without their progress bars."""
    before = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError too
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _damaged(folder, " ".join(str(error).split())[:200]) from error
    finally:
        if before[0]:
            diffusers_logging.enable_progress_bar()
        if before[1]:
            transformers_logging.enable_progress_bar()


def _damaged(folder: Path, what: str) -> WeightsError:
    return WeightsError(
        f"FLUX.1 in {folder} cannot be loaded: {what.rstrip('.')}.",
        f"Check it: ovi-studio models verify {SOURCE.name}; what is damaged is then downloaded again.",
    )
