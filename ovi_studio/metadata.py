"""What a clip carries about its own making: a JSON object in the mp4's comment tag.

Anyone can put anything into that tag, so it is read as untrusted data: bounded in size, depth and
numbers, and checked for form. What it means is for `request.py` to validate.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovi_studio import __version__
from ovi_studio.errors import MediaError

METADATA_KEY = "ovi_studio"  # its value is the version that wrote the file
MAX_METADATA_BYTES = 1 << 20  # guessed: a 100 kB prompt in any script fits, escaped
_MAX_DEPTH = 16  # guessed: a request is three deep
_MAX_INTEGER_DIGITS = 20  # 64 bits


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """The tag's text: `metadata` (JSON data) and our version, in ASCII, which every character survives.

    Raises:
        MediaError: it would be too long to be read back.
    """
    text = json.dumps({**metadata, METADATA_KEY: __version__}, allow_nan=False)
    if len(text) > MAX_METADATA_BYTES:
        raise MediaError("The request is too long to be stored in a clip.", "Shorten the prompt.")
    return text


def parse_metadata(path: Path, text: str) -> dict[str, Any]:
    """The object in the tag's `text`; `path` names the file in errors.

    Raises:
        MediaError: the text is not ours, or is damaged, too long, too deep, or has absurd numbers.
    """
    if METADATA_KEY not in text[: MAX_METADATA_BYTES + 1]:
        raise MediaError(f"{path} was not made by Ovi Studio.", "Choose a clip that it made, unedited.")
    damaged = MediaError(f"The settings stored in {path} are damaged.", "Set them by hand.")
    if len(text) > MAX_METADATA_BYTES:
        raise damaged
    try:
        value = json.loads(text, parse_int=_bounded_int, parse_float=_finite_float, parse_constant=_finite_float)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(value, dict) or METADATA_KEY not in value or _depth(value) > _MAX_DEPTH:
        raise damaged
    return value


def _bounded_int(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_INTEGER_DIGITS:
        raise ValueError("an integer of more than 64 bits")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is not a finite number")
    return value


def _depth(value: object) -> int:
    """How deep lists and objects nest, counted layer by layer."""
    depth, layer = 0, [value]
    while layer:
        depth += 1
        inner: list[object] = []
        for item in layer:
            inner.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        layer = inner
    return depth
