"""Still images: every kind a user may drop in becomes upright 8-bit RGB or one clear error."""

import contextlib
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ovi_studio import images
from ovi_studio.errors import MediaError
from ovi_studio.images import FORMATS, image_digest, read_image
from tests.goldens import cases

HEIGHT, WIDTH = 48, 64
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([COLUMNS * 4, ROWS * 5, (ROWS * COLUMNS) % 256], axis=-1).astype(np.uint8)
GREY = RGB[..., 0]
ORIENTATION = 0x0112
UNDONE: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what undoes each EXIF orientation, from the EXIF table
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format=kind, **options)
    return data.getvalue()


def read(data: bytes) -> np.ndarray:
    image = read_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG made by hand, so that its header can say anything and its pixels can have 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_16bit(values: np.ndarray) -> bytes:
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, 2 if values.ndim == 3 else 0, rows)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_are_exact(kind: str) -> None:
    np.testing.assert_array_equal(read(encoded(Image.fromarray(RGB), kind)), RGB)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_from_path_bytes_and_file(kind: str, tmp_path: Path) -> None:
    smooth = np.full((HEIGHT, WIDTH, 3), (200, 120, 40), np.uint8)
    data = encoded(Image.fromarray(smooth), kind)
    path = tmp_path / "picture.txt"  # content decides, not the name
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data)):
        assert np.abs(np.asarray(read_image(source)).astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("orientation", UNDONE)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_orientation_is_honoured(kind: str, orientation: int) -> None:
    # four flat quarters survive lossy formats
    quarters = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    quarters[:24, :32], quarters[:24, 32:], quarters[24:, :32] = (220, 40, 40), (40, 220, 40), (40, 40, 220)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    upright = read(encoded(Image.fromarray(quarters), kind, exif=exif, **options))
    expected = UNDONE[orientation](quarters)
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).mean() < 2


@pytest.mark.golden
def test_alpha_is_dropped_and_grey_repeated_as_recorded() -> None:
    recorded = cases.tensors("image_preprocess")
    rgba, la, grey = (recorded[f"mode_{mode}.image"].numpy() for mode in ("RGBA", "LA", "L"))
    np.testing.assert_array_equal(read(encoded(Image.fromarray(rgba, "RGBA"), "PNG")), rgba[..., :3])
    np.testing.assert_array_equal(read(encoded(Image.fromarray(la, "LA"), "PNG")), la[..., :1].repeat(3, axis=2))
    np.testing.assert_array_equal(read(encoded(Image.fromarray(grey), "PNG")), grey[..., None].repeat(3, axis=2))


def test_invisible_pixels_keep_their_colour() -> None:
    rgba = np.dstack([RGB, np.zeros((HEIGHT, WIDTH), np.uint8)])
    np.testing.assert_array_equal(read(encoded(Image.fromarray(rgba), "PNG")), RGB)


def test_palette() -> None:
    indexed = Image.fromarray((COLUMNS // 16).astype(np.uint8), "P")
    colours = np.array([(10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)
    indexed.putpalette(colours.tobytes())
    np.testing.assert_array_equal(read(encoded(indexed, "PNG")), colours[COLUMNS // 16])
    np.testing.assert_array_equal(read(encoded(indexed, "PNG", transparency=1)), colours[COLUMNS // 16])


def test_black_and_white() -> None:
    bits = (COLUMNS // 8 % 2).astype(bool)
    np.testing.assert_array_equal(read(encoded(Image.fromarray(bits), "PNG"))[..., 1], bits * 255)


def test_cmyk() -> None:
    inks = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    inks[..., 1] = inks[..., 2] = 255  # magenta and yellow make red
    assert (read(encoded(Image.fromarray(inks, "CMYK"), "TIFF")) == (255, 0, 0)).all()
    assert np.abs(read(encoded(Image.fromarray(inks, "CMYK"), "JPEG")).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = (COLUMNS * 1000 + ROWS * 50).astype(np.uint16)
    values[0, 0], values[0, 1] = 0, 0xFFFF
    data = png_16bit(values) if kind == "PNG" else encoded(Image.fromarray(values), "TIFF")
    picture = read(data)
    assert tuple(picture[0, 0]) == (0, 0, 0)
    assert tuple(picture[0, 1]) == (255, 255, 255)
    assert np.abs(picture[..., 0] - values / 257).max() <= 0.5


def test_16_bit_colour_is_scaled() -> None:
    values = np.stack([COLUMNS * 1040, ROWS * 1390, COLUMNS * ROWS * 21], axis=-1).astype(np.uint16)
    assert np.abs(read(png_16bit(values)) - values / 257).max() <= 1


def test_pixels_without_a_known_range_are_refused() -> None:
    for array in (GREY.astype(np.float32), GREY.astype(np.int32) * 1000, GREY.astype(np.int32) - 5):
        with pytest.raises(MediaError, match="unknown range"):
            read_image(encoded(Image.fromarray(array), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_picture(kind: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *rest = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in colours)
    picture = read(encoded(first, kind, save_all=True, append_images=rest, duration=100))
    assert np.abs(picture.astype(int) - colours[0]).max() <= 2


@pytest.mark.parametrize(
    ("width", "height", "problem"),
    [
        (2**31 - 1, 2**31 - 1, "too many"),
        (20_000, 16, "too many"),
        (8192, 8192, "too many"),
        (12_000, 12_000, "too many"),
        (15, 400, "too few"),
        (1, 1, "too few"),
        (16, 2000, "thin"),
        (2000, 16, "thin"),
    ],
)
def test_absurd_sizes_are_refused_by_the_header(width: int, height: int, problem: str) -> None:
    # the file has no pixels: decoding it would give another error
    with pytest.raises(MediaError, match=problem):
        read_image(png(width, height, 8, 2, b""))


def test_sizes_at_the_limits_are_taken() -> None:
    for size in ((16, 16), (16, 128), (128, 16)):
        assert read_image(encoded(Image.new("RGB", size), "PNG")).size == size


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_short(kind: str) -> None:
    data = encoded(Image.fromarray(RGB), kind)
    for length in (1, 11, len(data) // 4, len(data) // 2):
        with pytest.raises(MediaError):
            read_image(data[:length])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_gives_a_picture_or_a_media_error(kind: str, damage: list[tuple[float, int]]) -> None:
    data = bytearray(SAMPLES[kind])
    for where, value in damage:
        data[int(where**2 * (len(data) - 1))] = value  # squared: headers are at the start
    with contextlib.suppress(MediaError):
        assert read_image(bytes(data)).mode == "RGB"


SAMPLES = {kind: encoded(Image.fromarray(RGB), kind) for kind in FORMATS}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"hello, I am a picture", id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(encoded(Image.fromarray(RGB), "PPM"), id="ppm"),
        pytest.param(encoded(Image.fromarray(RGB), "ICO"), id="ico"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", id="eps"),
    ],
)
def test_what_is_no_image_of_ours(data: bytes) -> None:
    with pytest.raises(MediaError, match="not an image"):
        read_image(data)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    for source, problem in (
        (tmp_path / "missing.png", "no file"),
        (tmp_path, "not a file"),
        (empty, "empty"),
        (b"", "empty"),
        (tmp_path / ("x" * 300), "cannot be read"),
        ("a\0b.png", "no file"),
    ):
        for reader in (read_image, image_digest):
            with pytest.raises(MediaError, match=problem):
                reader(source)


def test_a_huge_file_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES * 100)  # sparse
    with pytest.raises(MediaError, match="larger than"):
        read_image(path)


def test_pillow_s_own_size_warning_is_not_shown(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(MediaError):
        read_image(png(9_800, 9_800, 8, 2, b""))  # Pillow itself would only warn
    assert not recwarn.list


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(SAMPLES["PNG"])
    assert image_digest(path) == image_digest(SAMPLES["PNG"]) == hashlib.sha256(SAMPLES["PNG"]).hexdigest()
