"""Tables from anywhere: bytes of a CSV or TSV file into rows of named cells, or into a list of what is wrong.

    bytes → text (BOM, UTF-8, else a guess) → records (the delimiter that makes sense of the header) → rows

Nothing in a file raises: a fault is data, and all of them are told at once.
"""

import codecs
import csv
import difflib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import charset_normalizer

from ovi_studio.errors import InvalidInputError

MAX_BYTES = 64 << 20  # guessed: 10,000 rows of 6 KB
MAX_ROWS = 10_000  # guessed: weeks of work on one card
_SAMPLE_BYTES = 1 << 16  # looked at to guess an encoding; guessed: a hundred rows
_SHOWN = 40  # characters of a cell in a message
_BOMS = (  # UTF-32 first: its mark begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DELIMITERS = (",", "\t", ";")
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # as OWASP's "CSV Injection" lists them


@dataclass(frozen=True)
class Fault:
    """Something wrong in a table.

    Args:
        row: as spreadsheets count: the header is row 1; 0 is the file as a whole.
        column: as the file calls it; "" is the row as a whole.
        problem: what is wrong.
        remedy: what would mend it.
    """

    row: int
    column: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Row:
    """A row that is not empty: its number, as spreadsheets count, and its cells that are not empty, by column."""

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """What is in a file.

    Args:
        labels: what the file calls each known column that it has.
        rows: in order.
        ignored: columns that nobody knows.
        faults: what is wrong; with any, the rows may not be all.
    """

    labels: Mapping[str, str]
    rows: tuple[Row, ...]
    ignored: tuple[str, ...]
    faults: tuple[Fault, ...]


def read_table(data: bytes, columns: Mapping[str, str], required: str) -> Table:
    """The table in a file's bytes.

    Args:
        data: the file.
        columns: what a header may say, in lower case with underscores, and the name of the column it means.
        required: the column that there must be.
    """
    try:
        text = _decoded(data)
        delimiter = _delimiter(text, columns)
        return _parsed(_records(text, delimiter), columns, required)
    except InvalidInputError as error:
        return Table({}, (), (), (Fault(0, "", error.problem, error.remedy),))


def read_records(data: bytes, columns: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """The cells of a file as they are, the header first; records without any text are left out.

    Args:
        data: the file.
        columns: as for `read_table`; they tell which character parts the cells.

    Raises:
        InvalidInputError: it is too large, no text, or its quotes do not match.
    """
    text = _decoded(data)
    return tuple(tuple(record) for _, record in _records(text, _delimiter(text, columns)) if any(record))


def shown(text: str) -> str:
    """A cell as it may stand in a message: in quotes, in one line, and short."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


def harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe before what would be one; `unguarded` takes it."""
    return f"'{cell}" if cell.lstrip(" '").startswith(_FORMULA_STARTS) else cell


def unguarded(cell: str) -> str:
    """What a cell was before `harmless`; any other cell stays as it is."""
    return cell[1:] if cell.startswith("'") and cell[1:].lstrip(" '").startswith(_FORMULA_STARTS) else cell


# --- Text -----------------------------------------------------------------------------------------------------


def _decoded(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise InvalidInputError(f"The file is larger than {MAX_BYTES >> 20} MiB.", "Split it.")
    encoding = next((encoding for bom, encoding in _BOMS if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = _guessed(data)
    try:
        text.encode()  # halves of surrogate pairs cannot be: neither files nor the library take them
    except UnicodeEncodeError as error:
        raise _no_text() from error
    if "\0" in text:
        raise _no_text()
    return text


def _guessed(data: bytes) -> str:
    """The text of a file that is not UTF-8: an old export of a spreadsheet."""
    sample = data[:_SAMPLE_BYTES]
    match = charset_normalizer.from_bytes(sample[: sample.rfind(b"\n") + 1] or sample).best()
    if match is None:
        raise _no_text()
    try:
        return data.decode(match.encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise _no_text() from error


def _no_text() -> InvalidInputError:
    return InvalidInputError("The file is not a text that can be read.", "Save it as CSV in UTF-8.")


# --- Records --------------------------------------------------------------------------------------------------


def _delimiter(text: str, columns: Mapping[str, str]) -> str:
    """The one by which the header makes most sense."""

    def sense(delimiter: str) -> int:
        try:
            header = next((record for _, record in _records(text, delimiter) if any(record)), [])
        except InvalidInputError:
            return 0
        return sum(header_key(cell) in columns for cell in header)

    return max(_DELIMITERS, key=sense)


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with its number, from 1; empty lines count.

    Raises:
        InvalidInputError: the quotes don't match.
    """
    # The limit is the whole process's and 128 KiB at first. It is only ever raised, and always to the same.
    csv.field_size_limit(MAX_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    number = 0
    while True:
        first_line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise InvalidInputError(
                f"The quotes do not match in what starts at line {first_line}: {error}.",
                'Put the whole cell into quotes, and double each quote inside it: "He says ""no""."',
            ) from error
        if record is None:
            return
        number += 1
        yield number, [unguarded(cell.strip()) for cell in record]


def _parsed(records: Iterator[tuple[int, list[str]]], columns: Mapping[str, str], required: str) -> Table:
    header_number, header = next(((number, record) for number, record in records if any(record)), (1, []))
    known = [columns.get(header_key(cell), "") for cell in header]
    faults = _header_faults(header_number, header, known, columns, required)
    ignored = tuple(cell for cell, name in zip(header, known, strict=True) if cell and not name)
    if required not in known:
        return Table({}, (), ignored, tuple(faults))
    rows: list[Row] = []
    for number, record in records:
        if not any(record):
            continue
        if len(rows) == MAX_ROWS:
            faults.append(Fault(number, "", f"There are more than {MAX_ROWS} rows.", "Split the file."))
            break
        if any(record[len(header) :]):
            faults.append(
                Fault(
                    number,
                    "",
                    f"There are {len(record)} cells for {len(header)} columns.",
                    "Put cells that hold the delimiter into quotes.",
                )
            )
            continue
        cells = {name: cell for name, cell in zip(known, record, strict=False) if name and cell}
        rows.append(Row(number, cells))
    if not rows and not faults:
        faults.append(Fault(0, "", "There are no rows below the header.", "Add one for every clip."))
    labels = {name: cell for name, cell in zip(known, header, strict=True) if name}
    return Table(labels, tuple(rows), ignored, tuple(faults))


def _header_faults(
    number: int, header: Sequence[str], known: Sequence[str], columns: Mapping[str, str], required: str
) -> list[Fault]:
    """What is wrong with the header: a column that is missing, is there twice, or was probably meant."""
    if required not in known:
        problem = f"The header has no column {required}." if header else "The file is empty."
        return [Fault(number, "", problem, f"Begin with a header such as: {required},seed.")]
    faults = []
    for name, count in Counter(filter(None, known)).items():
        if count > 1:
            twice = " and ".join(shown(cell) for cell, each in zip(header, known, strict=True) if each == name)
            faults.append(Fault(number, name, f"Several columns say the same: {twice}.", "Keep one of them."))
    for cell, name in zip(header, known, strict=True):
        near = difflib.get_close_matches(header_key(cell)[:100], columns, n=1, cutoff=0.75) if cell and not name else []
        if near:
            faults.append(Fault(number, cell[:100], f"There is no column {shown(cell)}.", f"Did you mean {near[0]!r}?"))
    return faults


def header_key(cell: str) -> str:
    """A header's cell as `columns` has it: in lower case, with underscores."""
    return "_".join(cell.casefold().replace("-", " ").split())
