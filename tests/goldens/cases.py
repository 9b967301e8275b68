"""The recorded numbers: one reader for all golden tests.

Cases come from the folder named by `OVI_GOLDENS`, by default the copy beside this file, so that the same
tests run on any other recording with the same file names. What a folder leaves out (the tokenizer,
constants, full-size tables) is taken from the copy.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

OWN_COPY = Path(__file__).parent / "data"
FOLDER = Path(os.environ.get("OVI_GOLDENS", OWN_COPY))
if not FOLDER.is_dir():
    raise NotADirectoryError(f"OVI_GOLDENS names {FOLDER}, which is no folder. Name one with recorded cases.")


def path(name: str) -> Path:
    """The file `name` of the recording, or of our own copy where the recording has none."""
    return FOLDER / name if (FOLDER / name).exists() else OWN_COPY / name


@cache
def facts(name: str) -> dict[str, Any]:
    """The description in `NAME.json`."""
    loaded: dict[str, Any] = json.loads(path(f"{name}.json").read_text(encoding="utf-8"))
    return loaded


@cache
def tensors(name: str) -> dict[str, torch.Tensor]:
    """All tensors of `NAME.safetensors`."""
    return load_file(path(f"{name}.safetensors"))


def weights(name: str) -> dict[str, torch.Tensor]:
    """The weights of `NAME.weights.safetensors` in float32."""
    return {key: tensor.float() for key, tensor in tensors(f"{name}.weights").items()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Equality within `tolerance`, absolute and relative at once."""
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=tolerance)
