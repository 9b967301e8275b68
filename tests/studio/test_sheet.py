"""A table that is mended: every fault at its cell, mended ones gone, and no file opened but the pictures beside it."""

import codecs
from pathlib import Path

import pytest
from PIL import Image

from ovi_studio.errors import InvalidInputError, MediaError
from ovi_studio.request import ImageFrame
from ovi_studio.studio.pictures import Pictures
from ovi_studio.studio.sheet import EXAMPLE, MAX_ROWS, Sheet, check_sheet, read_sheet

NOWHERE = Path("/nowhere")


def places(sheet: Sheet, pictures: Path = NOWHERE, **defaults: object) -> set[tuple[int, int]]:
    return {(mend.row, mend.column) for mend in check_sheet(sheet, pictures, defaults).mends}


def png(path: Path, colour: str = "red") -> bytes:
    Image.new("RGB", (64, 64), colour).save(path)
    return path.read_bytes()


def test_the_example_is_good() -> None:
    checked = check_sheet(read_sheet(EXAMPLE.encode()), NOWHERE)
    assert list(checked.rows) == [0, 1, 2]
    assert not checked.mends


def test_faults_stand_at_their_cells_and_go_when_they_are_mended() -> None:
    sheet = read_sheet(b"prompt,seed,model\na,x,nano\nb,2,nanno\n,3,\nd,4,nano\n")
    checked = check_sheet(sheet, NOWHERE)
    assert [(mend.row, mend.column) for mend in checked.mends] == [(0, 1), (1, 2), (2, 0)]
    assert "'x' is not a whole number" in checked.mends[0].problem
    assert "nano" in checked.mends[1].remedy
    assert list(checked.rows) == [3]
    mended = Sheet.of(sheet.header, [("a", "1", "nano"), ("b", "2", "nano"), ("c", "3", ""), ("d", "4", "nano")])
    assert check_sheet(mended, NOWHERE).rows.keys() == {0, 1, 2, 3}


def test_numbers_of_rows_are_those_of_a_spreadsheet() -> None:
    checked = check_sheet(Sheet.of(["prompt"], [["a"], [""], ["c"]]), NOWHERE)
    assert {place: row.number for place, row in checked.rows.items()} == {0: 2, 2: 4}


def test_the_header_is_mended_too() -> None:
    assert places(read_sheet(b"prompt,sed\na,1\n")) == {(-1, 1)}
    assert places(read_sheet(b"foo,steps\n1,2\n")) == {(-1, -1)}
    assert places(read_sheet(b"prompt,seed,SEED\na,1,2\n")) == {(-1, 1)}
    assert places(Sheet.of(["", ""], [["a", ""]])) == {(-1, -1)}
    assert not check_sheet(read_sheet(b"prompt,sed\na,1\n"), NOWHERE).header_is_good


def test_a_cell_outside_of_the_columns_is_not_dropped_in_silence() -> None:
    sheet = read_sheet(b"prompt,seed\na,1,more\n")
    assert sheet.header == ("prompt", "seed", "")
    assert places(sheet) == {(0, 2)}


def test_an_empty_sheet_has_no_faults_and_nothing_to_run() -> None:
    checked = check_sheet(Sheet.of(["prompt"], [[""], [""]]), NOWHERE)
    assert not checked.mends
    assert not checked.rows


def test_defaults_are_for_rows_that_do_not_say() -> None:
    sheet = Sheet.of(["prompt", "model", "takes"], [["a", "", ""], ["b", "nano", "2"]])
    rows = check_sheet(sheet, NOWHERE, {"variant": "720x720_5s", "takes": 3}).rows
    assert [(row.request.variant, row.request.takes) for row in rows.values()] == [("720x720_5s", 3), ("nano", 2)]


@pytest.mark.parametrize(
    "data",
    [
        "prompt\nSchöne Grüße aus München, mit Käse und Brötchen für alle\n".encode("cp1252"),
        codecs.BOM_UTF8 + "prompt\nä\n".encode(),
        codecs.BOM_UTF16_LE + "prompt\nä\n".encode("utf-16-le"),
        "prompt;seed\nä;1\n".encode(),
        "prompt\tseed\nä\t1\n".encode(),
    ],
)
def test_files_of_all_kinds(data: bytes) -> None:
    sheet = read_sheet(data)
    assert sheet.header[0] == "prompt"
    assert "ä" in sheet.rows[0][0] or "ö" in sheet.rows[0][0]


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0", b'prompt\n"open\n', b"prompt\n" + b"a\n" * (MAX_ROWS + 1), b"x" * (3 << 20)]
)
def test_what_is_no_table_is_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        read_sheet(data)


def test_cells_go_through_a_file_unchanged() -> None:
    rows = [["=1+1", '<img src=x onerror="alert(1)">'], ["a, b", 'say "no"\nand go'], ["'quoted'", "-1"]]
    sheet = Sheet.of(["prompt", "name"], rows)
    assert read_sheet(sheet.to_csv().encode()) == sheet
    assert "\n'=1+1" in sheet.to_csv()


# --- Pictures -------------------------------------------------------------------------------------------------


def test_pictures_are_found_by_name_whatever_folder_the_table_says(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "inbox")
    assert pictures.keep("a.png", png(tmp_path / "a.png")) == "a.png"
    sheet = read_sheet(b"prompt,image_path\na,a.png\nb,example/pngs/a.png\nc,C:\\x\\a.png\nd,b.png\n")
    checked = check_sheet(sheet, pictures.folder)
    assert [(mend.row, mend.column) for mend in checked.mends] == [(3, 1)]
    assert "'b.png'" in checked.mends[0].problem
    frames = [row.request.first_frame for row in checked.rows.values()]
    assert all(isinstance(frame, ImageFrame) and Path(frame.path).parent == pictures.folder for frame in frames)
    pictures.forget()
    assert pictures.names() == ()
    assert len(check_sheet(sheet, pictures.folder).mends) == 4


def test_a_table_opens_no_file_of_the_machine(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    png(secret)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "link.png").symlink_to(secret)
    for cell in (str(secret), "../secret.png", "link.png", "file:///etc/passwd", "..", "inbox/.", "\0", "/etc/passwd"):
        assert places(Sheet.of(["prompt", "image_path"], [["a", cell]]), inbox) == {(0, 1)} or cell == "\0"


@pytest.mark.parametrize("name", ["", "..", ".hidden.png", "a\nb.png", "a|b.png", "x" * 200 + ".png"])
def test_names_that_no_file_may_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError, match="Rename"):
        Pictures(tmp_path / "inbox").keep(name, png(tmp_path / "a.png"))


def test_only_pictures_are_kept_and_only_so_many(tmp_path: Path) -> None:
    data = png(tmp_path / "a.png")
    pictures = Pictures(tmp_path / "inbox", max_bytes=len(data) * 2)
    with pytest.raises(MediaError):
        pictures.keep("a.png", b"MZ this is a program")
    assert pictures.keep("../../up.png", data) == "up.png"
    pictures.keep("b.png", data)
    pictures.keep("b.png", data)  # in its own place
    with pytest.raises(MediaError, match="room for"):
        pictures.keep("c.png", data)
    assert pictures.names() == ("b.png", "up.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "inbox"]
