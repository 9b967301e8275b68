"""Still images from anywhere, read with suspicion, as 8-bit RGB.

What a file is, its content says, not its name. Size is judged by the header, before a pixel is decoded.
Orientation is always honoured; alpha and colour profiles are dropped as the reference implementation drops
them (Pillow's `convert("RGB")`); 16-bit grey is scaled, of an animation the first picture is taken.
"""

import contextlib
import hashlib
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ovi_studio.errors import MediaError

ImageSource = str | Path | bytes | BinaryIO

MAX_FILE_BYTES = 64 << 20  # guessed: an uncompressed picture of 20 megapixels
MAX_PIXELS = 64_000_000  # guessed: more than a phone's camera makes, 190 MB decoded
MAX_SIDE = 16_384  # guessed: as the widest texture of a graphics card
MIN_SIDE = 16  # guessed: half of the 32 that a frame's sides are multiples of
MAX_ASPECT = 8.0  # guessed: beyond it a frame of usual area has a side under 256 pixels
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")

# What Pillow's readers raise on broken files, beside the two that it documents (OSError, SyntaxError).
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
)


def read_image(source: ImageSource) -> Image.Image:
    """The picture in a file, in bytes or in an open binary file, upright, in mode "RGB".

    Raises:
        MediaError: missing, empty, not an image, of a format not in `FORMATS`, broken or cut short, too
            large or too small, too long and thin, or of a pixel type without a known range.
    """
    name = _name(source)
    data = io.BytesIO(_read_bytes(source))
    with _decoding(name):
        opened = Image.open(data, formats=FORMATS)
    with opened as image:
        _check_size(name, *image.size)
        with _decoding(name):
            image.load()
            return _to_rgb(name, ImageOps.exif_transpose(image))


def image_digest(source: ImageSource) -> str:
    """The SHA-256 of the file's bytes in hex: what a stored request keeps of an image beside its name.

    Raises:
        MediaError: missing, empty or too large.
    """
    return hashlib.sha256(_read_bytes(source)).hexdigest()


def _read_bytes(source: ImageSource) -> bytes:
    name = _name(source)
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, (str, Path)):
        data = _read_path(Path(source))
    else:
        data = source.read(MAX_FILE_BYTES + 1)
    if not data:
        raise MediaError(f"{name} is empty.", "Choose another image.")
    if len(data) > MAX_FILE_BYTES:
        raise MediaError(
            f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB.",
            "Save it smaller, or as JPEG, and try again.",
        )
    return data


def _read_path(path: Path) -> bytes:
    try:
        if not path.exists():
            raise MediaError(f"There is no file {path}.", "Check the path.")
        if not path.is_file():
            raise MediaError(f"{path} is not a file.", "Give the path of an image.")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}.", "Choose another image.") from error


def _name(source: ImageSource) -> str:
    return str(source) if isinstance(source, (str, Path)) else "The image"


def _check_size(name: str, width: int, height: int) -> None:
    size = f"{name} has {width}x{height} pixels"
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise MediaError(f"{size}: too many.", f"Scale it down to {MAX_PIXELS // 10**6} megapixels, {MAX_SIDE} a side.")
    if min(width, height) < MIN_SIDE:
        raise MediaError(f"{size}: too few.", f"Choose one with at least {MIN_SIDE} pixels a side.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError(
            f"{size}: too long and thin.", f"Crop it: one side may be {MAX_ASPECT:g} times the other at most."
        )


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    """Eight bits a channel. RGB of 16 bits has been cut to 8 by Pillow's reader; grey has not."""
    if image.mode not in {"I", "F"} and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:  # "I" holds up to 32 bits
        raise MediaError(f"{name} has pixels of an unknown range.", "Save it with 8 or 16 bits a channel.")
    scaled = (values.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Pillow's many errors in words, and its warnings (the sizes are checked here) not at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MediaError:  # a ValueError too
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has too many pixels.", "Scale it down and try again.") from error
    except UnidentifiedImageError as error:
        raise MediaError(f"{name} is not an image that can be read.", f"Choose one of {', '.join(FORMATS)}.") from error
    except _DECODER_ERRORS as error:
        raise MediaError(f"{name} is broken or cut short.", "Save or download it again.") from error
