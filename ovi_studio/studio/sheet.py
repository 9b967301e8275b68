"""A table that is mended before it becomes a batch: its cells as they are, and every fault at its cell.

    bytes ── read_sheet ──→ Sheet ── check_sheet ──→ the rows that can be made, and Mend … where one cannot
               ↑ a cell is changed ────┘

What a row may say is decided by `rows.py`, as for `ovi-studio batch`; here faults are brought back to the cells.
First frames are found among the pictures that came with the table, by name, and nowhere else.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from ovi_studio.errors import InvalidInputError
from ovi_studio.studio.rows import BatchRow, ImageFolders, check_batch, column_of, read_cells
from ovi_studio.studio.table import Fault, harmless, shown

MAX_BYTES = 2 << 20  # guessed: 500 rows of 4 KB
MAX_ROWS = 500  # guessed: what a person may mend by hand; `ovi-studio batch` takes more
MAX_COLUMNS = 64  # guessed: twice as many as there are
_PICTURE = "image_path"

EXAMPLE = """\
text_prompt,name,seed,takes,steps
"A red face on the left says <S>seven three<E>. Audio: a low voice.",Seven three,7,1,20
"A blue ball in the middle bounces twice. Audio: two thuds.",Two bounces,8,2,
"A white lamp on the right blinks once. Audio: a tone of 600 Hz.",Lamp,,1,
"""


@dataclass(frozen=True)
class Sheet:
    """The cells of a table, all rows as long as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, header: Sequence[str], rows: Sequence[Sequence[str]]) -> "Sheet":
        """A sheet of cells that may be anything.

        Raises:
            InvalidInputError: there are too many of them.
        """
        width = max([len(header), *map(len, rows)])
        if width > MAX_COLUMNS:
            raise InvalidInputError(f"There are {width} columns.", f"A table here has up to {MAX_COLUMNS}.")
        if len(rows) > MAX_ROWS:
            raise InvalidInputError(
                f"There are {len(rows)} rows.", f"Split the table: {MAX_ROWS} go here; `ovi-studio batch` takes more."
            )
        if sum(len(cell) for row in (header, *rows) for cell in row) > MAX_BYTES:
            raise InvalidInputError(f"The table is larger than {MAX_BYTES >> 20} MiB.", "Split it.")
        cells = ((cell.replace("\0", "") for cell in row) for row in (header, *rows))
        first, *others = (row + ("",) * (width - len(row)) for row in map(tuple, cells))
        return cls(first, tuple(others))

    def to_csv(self) -> str:
        """As a file that a spreadsheet opens without running anything in it."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([harmless(cell) for cell in row] for row in (self.header, *self.rows))
        return text.getvalue()


@dataclass(frozen=True)
class Mend:
    """Something to mend.

    Args:
        row: from 0; -1 is the header, or the table as a whole.
        column: from 0; -1 is the row as a whole.
        problem: what is wrong.
        remedy: what would mend it.
    """

    row: int
    column: int
    problem: str
    remedy: str


@dataclass(frozen=True)
class CheckedSheet:
    """A sheet, looked at as a whole.

    Args:
        rows: those that can be made, by where they stand, from 0.
        mends: what is wrong with the others.
        ignored: columns that say nothing to us.
        remarks: how many warnings the linter has for the prompts.
    """

    rows: Mapping[int, BatchRow] = field(default_factory=dict)
    mends: tuple[Mend, ...] = ()
    ignored: tuple[str, ...] = ()
    remarks: int = 0

    @property
    def header_is_good(self) -> bool:
        """Whether rows can be read at all."""
        return all(mend.row >= 0 for mend in self.mends)


def read_sheet(data: bytes) -> Sheet:
    """The table in a file's bytes, whatever is wrong in its cells.

    Raises:
        InvalidInputError: it is no table, an empty or a very large one.
    """
    if len(data) > MAX_BYTES:
        raise InvalidInputError(f"The file is larger than {MAX_BYTES >> 20} MiB.", "Split it.")
    header, *rows = read_cells(data) or [()]
    if not header:
        raise InvalidInputError("The file is empty.", "Begin with a header such as: text_prompt,seed.")
    return Sheet.of(header, rows)


def check_sheet(sheet: Sheet, pictures: Path, defaults: Mapping[str, Any] = MappingProxyType({})) -> CheckedSheet:
    """Look at every row.

    Args:
        sheet: the cells.
        pictures: the folder of the pictures that came with it; nothing else is opened.
        defaults: fields of a request, for rows that say nothing about them.
    """
    if not any(map(str.strip, sheet.header)):
        return CheckedSheet(mends=(Mend(-1, -1, "No column has a name.", "Call the first one text_prompt."),))
    # 1. what concerns this page alone: pictures go by their names, and no cell stands outside of the columns
    columns = [column_of(label) for label in sheet.header]
    own = tuple(_own_faults(sheet, columns, pictures))
    lost = {(mend.row, mend.column) for mend in own}
    rows = [
        [_cell(columns[place], cell) if (number, place) not in lost else "" for place, cell in enumerate(row)]
        for number, row in enumerate(sheet.rows)
    ]
    # 2. the rest as for any batch
    data = Sheet(sheet.header, tuple(map(tuple, rows))).to_csv().encode(errors="replace")
    checked = check_batch(data, ImageFolders((pictures,), confined=True), defaults)
    # 3. each fault back to its cell; that there are no rows yet is none
    is_empty = not any(cell.strip() for row in rows for cell in row)
    mends = (*own, *(_mend(sheet, columns, fault) for fault in checked.faults if fault.row or not is_empty))
    bad = {mend.row for mend in mends}
    good = {row.number - 2: row for row in checked.rows if row.number - 2 not in bad}
    return CheckedSheet(good, tuple(sorted(mends, key=lambda mend: mend.row)), checked.ignored, checked.remarks)


def _own_faults(sheet: Sheet, columns: Sequence[str], pictures: Path) -> Iterator[Mend]:
    for number, row in enumerate(sheet.rows):
        for place, cell in enumerate(map(str.strip, row)):
            if cell and not sheet.header[place].strip():
                yield Mend(number, place, "This cell stands in no column.", "Name the column, or empty the cell.")
            elif cell and columns[place] == _PICTURE and not _is_there(pictures, cell):
                name = shown(picture_name(cell))
                yield Mend(number, place, f"There is no picture {name} here.", "Drop it here, under that name.")


def _is_there(pictures: Path, cell: str) -> bool:
    name = picture_name(cell)
    return bool(name) and name.isprintable() and any(path.name == name for path in pictures.glob("*"))


def picture_name(cell: str) -> str:
    """The bare name of a picture that a cell gives with folders, in the way of any system."""
    return PurePosixPath(cell.replace("\\", "/")).name


def _cell(column: str, cell: str) -> str:
    return picture_name(cell.strip()) if column == _PICTURE and cell.strip() else cell


def _mend(sheet: Sheet, columns: Sequence[str], fault: Fault) -> Mend:
    """The fault at its place; those of the header say which column by the file's word for it, or by ours."""
    header = [label.strip() for label in sheet.header]
    place = -1
    if fault.column and fault.column in header:
        place = header.index(fault.column)
    elif fault.column and fault.column in columns:
        place = columns.index(fault.column)
    return Mend(max(fault.row - 2, -1), place, fault.problem, fault.remedy)
