"""The rows of a batch: from a table's cells to requests, with every fault found before anything is made.

    bytes ── read_table ──→ cells ── check_batch ──→ BatchRow …, or Fault …

Any field of a request is a column, beside upstream's two (`text_prompt`, `image_path`). Tables may come from
anyone: nothing in them raises, and images are read where it is allowed only.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ovi_studio.errors import InvalidInputError, MediaError
from ovi_studio.images import MAX_FILE_BYTES, image_digest, read_image
from ovi_studio.lint import Severity, lint
from ovi_studio.prompt import Dialect
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.records import check_labels
from ovi_studio.studio.table import MAX_BYTES, Fault, Row, header_key, read_records, read_table, shown
from ovi_studio.variants import get_variant, parse_interval, parse_size

EMPTY_TEXT = '""'  # a cell that says: nothing, rather than the model's own
_PROMPT = "text_prompt"
_FRAME_COLUMNS = ("image_path", "draw_frame", "first_frame_prompt", "first_frame_seed")


@dataclass(frozen=True)
class BatchRow:
    """A row that can be made: its number as spreadsheets count, and what it asks for, takes and all."""

    number: int
    request: GenerationRequest
    name: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckedBatch:
    """A table, looked at as a whole.

    Args:
        rows: those that can be made.
        faults: what is wrong with the others; with any, none should be made.
        ignored: columns that say nothing to us.
        remarks: how many warnings the linter has for the prompts.
    """

    rows: tuple[BatchRow, ...]
    faults: tuple[Fault, ...]
    ignored: tuple[str, ...]
    remarks: int


@dataclass(frozen=True)
class ImageFolders:
    """Where a table's images are.

    Args:
        folders: where relative paths begin; the first that has the image wins.
        confined: never read outside these folders: for tables that came over the network.
    """

    folders: tuple[Path, ...]
    confined: bool = False


def read_batch_file(path: Path) -> bytes:
    """The bytes of a table.

    Raises:
        InvalidInputError: there is no such file, or it is no table.
    """
    if path.suffix.lower() not in {".csv", ".tsv"}:
        raise InvalidInputError(f"{path} is neither .csv nor .tsv.", "Give a table, one row for every clip.")
    if not os.path.isfile(path):  # noqa: PTH113  unlike pathlib's, it takes any name, however long
        raise InvalidInputError(f"There is no file {path}.", "Check the path.")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # one too many is told as a fault
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}.", "Check the path and its permissions.") from error


def check_batch(data: bytes, images: ImageFolders, defaults: Mapping[str, Any] = MappingProxyType({})) -> CheckedBatch:
    """Look at every row of a table before anything is made.

    Args:
        data: the file.
        images: where its images may be.
        defaults: fields of a request, for rows that say nothing about them.
    """
    table = read_table(data, _HEADERS, _PROMPT)
    reader = _RowReader(table.labels, images, defaults)
    rows = [row for row in map(reader.read, table.rows) if row is not None]
    faults = sorted([*table.faults, *reader.faults], key=lambda fault: fault.row)
    return CheckedBatch(tuple(rows), tuple(faults), table.ignored, reader.remarks)


def read_cells(data: bytes) -> tuple[tuple[str, ...], ...]:
    """The cells of a table that is to be mended first: the header, and every row that is not empty.

    Raises:
        InvalidInputError: it is no table at all.
    """
    return read_records(data, _HEADERS)


def column_of(label: str) -> str:
    """The column that a header's cell means; "" where it says nothing to us."""
    return _HEADERS.get(header_key(label), "")


def column_names() -> tuple[str, ...]:
    """Every column that there can be, the prompt first."""
    return tuple(sorted(dict.fromkeys(_HEADERS.values()), key=_PROMPT.__ne__))


class _RowReader:
    """From cells to requests; collects what is wrong on the way.

    Args:
        labels: what the file calls its columns.
        images: where images may be.
        defaults: for rows that say nothing.
    """

    def __init__(self, labels: Mapping[str, str], images: ImageFolders, defaults: Mapping[str, Any]) -> None:
        self.faults: list[Fault] = []
        self.remarks = 0
        self._labels = labels
        self._images = images
        self._defaults = defaults
        self._digests: dict[Path, str] = {}

    def read(self, row: Row) -> BatchRow | None:
        """The row, or None after its faults were noted."""
        # 1. each cell by itself
        before = len(self.faults)
        fields = dict(self._defaults)
        for column in filter(row.cells.__contains__, _COLUMNS):  # in our order: guidance for both before each one's
            fields.update(self._cell(row, column))
        self._try(row, "", lambda: fields.update(self._first_frame(row)))
        if _PROMPT not in row.cells:
            self._note(row, _PROMPT, InvalidInputError("The prompt is empty.", "Describe what to see and hear."))
        name = row.cells.get("name", "")
        tags = tuple(filter(None, (tag.strip() for tag in row.cells.get("tags", "").split(";"))))
        self._try(row, "name", lambda: check_labels(name, ()))
        self._try(row, "tags", lambda: check_labels("", tags))
        if len(self.faults) > before:
            return None
        # 2. the cells together
        try:
            request = GenerationRequest.create(**fields)
        except InvalidInputError as error:
            self._note_fields(row, fields, error)
            return None
        # 3. what the prompt says
        self._lint(row, request)
        return BatchRow(row.number, request, name, tags) if len(self.faults) == before else None

    def _cell(self, row: Row, column: str) -> dict[str, Any]:
        """The fields that a cell gives; none after its fault was noted."""
        return self._try(row, column, lambda: _COLUMNS[column].read(row.cells[column])) or {}

    def _note_fields(self, row: Row, fields: dict[str, Any], whole: InvalidInputError) -> None:
        """Each field is tried alone, so that the fault stands at its cell; faults of several are the row's."""
        sound: dict[str, Any] = {"prompt": "A dog."}
        before = len(self.faults)
        for label in filter(_FIELDS_OF.__contains__, sorted(row.cells, key="model".__ne__)):
            part = {name: fields[name] for name in _FIELDS_OF[label] if name in fields}
            fault = _fault_of({**sound, **part})
            if fault is not None:
                self._note(row, label, fault)
            elif label == "model":  # what the others may be depends on it
                sound |= part
        if len(self.faults) == before:
            self._note(row, "", whole)

    def _lint(self, row: Row, request: GenerationRequest) -> None:
        variant = get_variant(request.variant)
        for finding in lint(request.prompt, Dialect(variant.caption_dialect), variant.duration):
            self.remarks += finding.severity is Severity.WARNING
            if finding.severity is Severity.ERROR:
                place = f"At character {finding.start + 1}: {finding.message}"
                self._note(row, _PROMPT, InvalidInputError(place, "Mend it there."))

    def _first_frame(self, row: Row) -> dict[str, Any]:
        """The field `first_frame`, if any of the row's cells asks for one."""
        image, draw, prompt, seed = (row.cells.get(column) for column in _FRAME_COLUMNS)
        drawn = bool(prompt or seed or (draw and self._try(row, "draw_frame", lambda: _truth(draw))))
        if image and drawn:
            raise InvalidInputError("A first frame is given, and asked for too.", "Empty one of the cells.")
        if image:
            return {"first_frame": self._image(row, image)}
        if drawn:
            number = self._try(row, "first_frame_seed", lambda: _whole(seed)) if seed else None
            return {"first_frame": {"kind": "generated", "prompt": prompt, "seed": number}}
        return {}

    def _image(self, row: Row, text: str) -> dict[str, Any] | None:
        def read() -> dict[str, Any]:
            path = find_image(text, self._images)
            if path not in self._digests:
                self._digests[path] = _digest_of_image(path, text)
            return {"kind": "image", "path": str(path), "name": path.name, "sha256": self._digests[path]}

        return self._try(row, "image_path", read)

    def _try(self, row: Row, column: str, act: Callable[[], Any]) -> Any:
        """What `act` gives; None after noting that it cannot."""
        try:
            return act()
        except InvalidInputError as error:
            self._note(row, column, error)
            return None

    def _note(self, row: Row, column: str, error: InvalidInputError) -> None:
        self.faults.append(Fault(row.number, self._labels.get(column, column), error.problem, error.remedy))


def find_image(text: str, images: ImageFolders) -> Path:
    """The file that a cell names, absolute.

    Raises:
        InvalidInputError: there is none, or not where it may be; a confined search does not tell which.
    """
    nowhere = InvalidInputError(f"There is no image {shown(text)}.", "Give a path relative to the table.")
    if not text.isprintable() or "://" in text:
        raise nowhere
    for folder in images.folders:
        path = Path(os.path.normpath(folder.absolute() / text))
        if images.confined and not path.is_relative_to(folder.absolute()):
            continue  # before the system is asked anything about it
        if _is_image_path(path, folder if images.confined else None):
            return path
    raise nowhere


def _is_image_path(path: Path, within: Path | None) -> bool:
    """Whether there is a file, inside the folder `within` also after following every link."""
    try:
        return (within is None or path.resolve().is_relative_to(within.resolve())) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that the system does not take, or a loop of links
        return False


def _digest_of_image(path: Path, text: str) -> str:
    """The hash of an image that can be read; errors name it as the table does."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise MediaError(f"{shown(text)} cannot be read: {error.strerror}.", "Choose another image.") from error
    read_image(data)
    return image_digest(data)


# --- Cells ----------------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    return "" if text == EMPTY_TEXT else text


def _whole(text: str) -> int:
    """A whole number; spreadsheets may write 7 as 7.0."""
    digits = text.removesuffix(".0")
    bare = digits.removeprefix("-")
    if not (bare.isascii() and bare.isdigit() and len(bare) <= 20):
        raise InvalidInputError(f"{shown(text)} is not a whole number.", "Write digits alone, such as 42.")
    return int(digits)


def _number(text: str) -> float:
    """A number; a decimal comma is one too."""
    try:
        return float(text.replace(",", "."))
    except ValueError as error:
        raise InvalidInputError(f"{shown(text)} is not a number.", "Write one such as 4 or 3.5.") from error


def _truth(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise InvalidInputError(f"{shown(text)} is neither true nor false.", "Write true or false.")
    return words[text.lower()]


def _size(text: str) -> tuple[int, int]:
    height, width = parse_size(text)
    return height, width


def _adapters(text: str) -> tuple[dict[str, object], ...]:
    """`id`, `id:strength` or `id:strength:tower`, several with semicolons between them."""
    return tuple(_adapter(part.strip()) for part in text.split(";") if part.strip())


def _adapter(text: str) -> dict[str, object]:
    name, *rest = (piece.strip() for piece in text.split(":"))
    if len(rest) > 2:
        raise InvalidInputError(f"{shown(text)} is not an adapter.", "Write id:strength:tower.")
    values = [_number(rest[0]), *rest[1:]] if rest else []
    return {"id": name, **dict(zip(("strength", "tower"), values, strict=False))}


@dataclass(frozen=True)
class _Column:
    """Which fields of a request a column decides, and how its text is read."""

    fields: tuple[str, ...]
    convert: Callable[[str], Any] = str

    def read(self, text: str) -> dict[str, Any]:
        return dict.fromkeys(self.fields, self.convert(text))


_COLUMNS: Mapping[str, _Column] = MappingProxyType(
    {
        "model": _Column(("variant",)),
        _PROMPT: _Column(("prompt",)),
        "video_negative_prompt": _Column(("video_negative_prompt",), _text),
        "audio_negative_prompt": _Column(("audio_negative_prompt",), _text),
        "modality": _Column(("modality",), str.lower),
        "size": _Column(("size",), _size),
        "aspect": _Column(("aspect",)),
        "snap": _Column(("snap",), _truth),
        "seed": _Column(("seed",), _whole),
        "steps": _Column(("num_inference_steps",), _whole),
        "solver": _Column(("solver",), str.lower),
        "shift": _Column(("shift",), _number),
        "guidance": _Column(("video_guidance_scale", "audio_guidance_scale"), _number),
        "video_guidance_scale": _Column(("video_guidance_scale",), _number),
        "audio_guidance_scale": _Column(("audio_guidance_scale",), _number),
        "video_guidance_interval": _Column(("video_guidance_interval",), parse_interval),
        "audio_guidance_interval": _Column(("audio_guidance_interval",), parse_interval),
        "slg_layer": _Column(("slg_layer",), _whole),
        "adapters": _Column(("adapters",), _adapters),
        "takes": _Column(("takes",), _whole),
        "quality": _Column(("quality",), str.lower),
    }
)
# The fields that a column's cell is tried with.
_FIELDS_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{name: column.fields for name, column in _COLUMNS.items()},
        "size": ("size", "snap"),
        **dict.fromkeys(_FRAME_COLUMNS, ("first_frame",)),
    }
)
# What a header may say, and the column that it means.
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        **{column: column for column in (*_COLUMNS, *_FRAME_COLUMNS, "name", "tags")},
        "prompt": _PROMPT,
        "image": "image_path",
        "variant": "model",
        "num_inference_steps": "steps",
        "negative_prompt": "video_negative_prompt",
        "video_guidance": "video_guidance_scale",
        "audio_guidance": "audio_guidance_scale",
    }
)


def _fault_of(fields: dict[str, Any]) -> InvalidInputError | None:
    try:
        GenerationRequest.create(**fields)
    except InvalidInputError as error:
        return error
    return None
