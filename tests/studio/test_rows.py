"""Tables: what is read from them, what is wrong with them, and that nothing in them can do harm."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ovi_studio.errors import InvalidInputError
from ovi_studio.request import GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.studio.rows import CheckedBatch, ImageFolders, check_batch, find_image, read_batch_file
from ovi_studio.studio.table import MAX_BYTES, MAX_ROWS

HERE = ImageFolders((Path(),))
UPSTREAM = json.loads((Path(__file__).parents[1] / "goldens/data/preprocessing.json").read_text())["rows"][
    "validate_and_process_user_prompt"
]


def check(text: str | bytes, images: ImageFolders = HERE, **defaults: Any) -> CheckedBatch:
    return check_batch(text.encode() if isinstance(text, str) else text, images, defaults)


def requests(text: str | bytes, images: ImageFolders = HERE, **defaults: Any) -> list[GenerationRequest]:
    checked = check(text, images, **defaults)
    assert checked.faults == ()
    return [row.request for row in checked.rows]


def faults(text: str | bytes, images: ImageFolders = HERE) -> list[tuple[int, str]]:
    """Row and column of each fault; each says something, and what to do."""
    checked = check(text, images)
    assert all(fault.problem.endswith(".") and fault.remedy for fault in checked.faults)
    return [(fault.row, fault.column) for fault in checked.faults]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images, and one beside it that a table must not reach."""
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 32), "red").save(tmp_path / name / "a.png")
    (tmp_path / "inside" / "link.png").symlink_to("../outside/a.png")
    (tmp_path / "inside" / "text.png").write_text("no image")
    return tmp_path / "inside"


# --- Upstream's tables ----------------------------------------------------------------------------------------


def is_ours(row: dict[str, Any]) -> bool:
    """Of upstream's tables those that both take: it takes empty prompts too, and one of its modes ignores images."""
    name = str(row["text_prompt"]).strip()
    ignored = name == "blank.csv" or (row["mode"] == "t2v" and name in ("a.csv", "missing.csv"))
    return name in UPSTREAM["files"] and "error" not in row and not ignored


@pytest.mark.parametrize(
    "row", list(filter(is_ours, UPSTREAM["rows"])), ids=lambda row: f"{row['text_prompt'].strip()}-{row['mode']}"
)
def test_upstreams_tables_run_unchanged(row: dict[str, Any], tmp_path: Path) -> None:
    name = row["text_prompt"].strip()
    for image in UPSTREAM["image_files"]:
        Image.new("RGB", (64, 64)).save(tmp_path / image)
    prompts, images = row["out"]
    if name == "blank.csv" or (row["mode"] == "t2v" and name in ("a.csv", "missing.csv")):
        pytest.skip("upstream takes an empty prompt, and ignores images in this mode; ours does neither")
    if not prompts:
        assert faults(UPSTREAM["files"][name]) == [(0, "")], "an empty table is told, not run as nothing"
        return
    found = requests(UPSTREAM["files"][name], ImageFolders((tmp_path,)))
    assert [request.prompt for request in found] == [str(prompt) for prompt in prompts]
    assert [request.first_frame.name if request.first_frame else None for request in found] == images


def test_a_prompt_with_tags_and_doubled_quotes(folder: Path) -> None:
    text = (
        'text_prompt,image_path\n"A man says, ""look"". <S>Hello, you!<E> <AUDCAP>Wind, a ""clack""<ENDAUDCAP>",a.png\n'
        '"Two\nlines",\n'
    )
    first, second = requests(text, ImageFolders((folder,)))
    assert first.prompt == 'A man says, "look". <S>Hello, you!<E> <AUDCAP>Wind, a "clack"<ENDAUDCAP>'
    assert first.first_frame.path == str(folder / "a.png")
    assert len(first.first_frame.sha256) == 64
    assert (second.prompt, second.first_frame) == ("Two\nlines", None)


# --- Columns --------------------------------------------------------------------------------------------------


def test_every_field_has_a_column() -> None:
    cells = {
        "Text Prompt": "A dog", "video-negative-prompt": "blur", "audio_negative_prompt": "hiss", "model": "960x960_5s",
        "Modality": "VIDEO", "size": "704x1280", "snap": "no", "seed": "7.0", "steps": "12", "solver": "Euler",
        "shift": "3,5", "guidance": "2", "audio_guidance_scale": "1.5", "slg_layer": "0", "takes": "3",
        "quality": "fast", "adapters": "me/lora:0.5:video; other", "name": "My dog", "tags": "pets; loud",
        "first_frame_prompt": "a dog, painted", "first_frame_seed": "9", "video_guidance_interval": "0.1:0.8",
        "audio guidance interval": "0:1",
    }  # fmt: skip
    header, row = ("\t".join(part) for part in (cells, cells.values()))
    (made,) = check(f"{header}\n{row}\n").rows
    request = made.request
    assert (made.number, made.name, made.tags) == (2, "My dog", ("pets", "loud"))
    assert (request.prompt, request.video_negative_prompt, request.audio_negative_prompt) == ("A dog", "blur", "hiss")
    assert (request.variant, request.modality, request.size, request.snap) == (
        "960x960_5s",
        "video",
        (704, 1280),
        False,
    )
    assert (request.seed, request.num_inference_steps, request.solver, request.shift) == (7, 12, "euler", 3.5)
    assert (request.video_guidance_scale, request.audio_guidance_scale, request.slg_layer) == (2, 1.5, 0)
    assert (request.video_guidance_interval, request.audio_guidance_interval) == ((0.1, 0.8), (0, 1))
    assert (request.takes, request.quality) == (3, "fast")
    assert [(a.id, a.strength, a.tower) for a in request.adapters] == [("me/lora", 0.5, "video"), ("other", 1, "both")]
    assert request.first_frame == GeneratedFrame(prompt="a dog, painted", seed=9)
    named = {*cells, "aspect", "image_path"} | {"first_frame"}
    fields = GenerationRequest.model_fields.keys() - {"schema_version"}
    assert (
        len(fields - {key.lower().replace(" ", "_").replace("-", "_") for key in named}) <= 5
    )  # those with short names


def test_a_first_frame_to_draw() -> None:
    table = "prompt,draw_frame,first_frame_prompt,first_frame_seed\na,yes,,\nb,,c,\nd,no,,5\ne,no,,\nf,,,\n"
    assert [request.first_frame for request in requests(table)] == [
        GeneratedFrame(),
        GeneratedFrame(prompt="c"),
        GeneratedFrame(seed=5),
        None,
        None,
    ]
    (fault,) = check("prompt,draw_frame\na,perhaps\n").faults
    assert fault.column == "draw_frame"


def test_defaults_are_for_rows_that_say_nothing() -> None:
    first, second = requests("prompt,model,takes\na,,\nb,nano,2\n", variant="720x720_5s", takes=4)
    assert (first.variant, first.takes) == ("720x720_5s", 4)
    assert (second.variant, second.takes) == ("nano", 2)


def test_columns_that_nobody_knows_are_told_and_likely_slips_are_faults() -> None:
    checked = check("id,text_prompt,comment\n1,a,nice\n")
    assert (checked.ignored, checked.faults) == (("id", "comment"), ())
    assert faults("text_prompt,sede\na,4\n") == [(1, "sede")]


def test_rows_count_as_in_a_spreadsheet_and_empty_ones_are_passed_over() -> None:
    checked = check('\n\ntext_prompt,seed\n"two\nlines",1\n,\n   ,  \nb,2\n')
    assert [(row.number, row.request.prompt) for row in checked.rows] == [(4, "two\nlines"), (7, "b")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
def test_encodings_delimiters_and_line_ends(delimiter: str, encoding: str, line: str) -> None:
    prompts = [f"Ein Bär überquert die Straße, Größe {n}; früh." for n in range(8)]
    text = line.join(
        [f"text_prompt{delimiter}seed", *(f'"{prompt}"{delimiter}{n}' for n, prompt in enumerate(prompts))]
    )
    found = requests(text.encode(encoding))
    assert [(request.prompt, request.seed) for request in found] == [(prompt, n) for n, prompt in enumerate(prompts)]


# --- Faults ---------------------------------------------------------------------------------------------------


def test_all_faults_of_a_table_are_told_at_once(folder: Path) -> None:
    text = (
        "text_prompt,seed,steps,size,aspect,model,image_path,takes\n"
        "fine,1,2,,,,,\n"
        "several,x,0,64,,,gone.png,\n"
        ",1,,,,,,\n"
        "unclosed <S>speech,1,,,,,,\n"
        "unknown model,1,,,,nanno,,\n"
        "both sizes,1,,96x96,1:1,,,\n"
        "no image,1,,,,,text.png,\n"
        "too many,1,,,,,,101\n"
        "over,1,,,,,,,,more\n"
    )
    found = faults(text, ImageFolders((folder,)))
    assert found == [
        (3, "size"), (3, "seed"), (3, "image_path"), (4, "text_prompt"), (5, "text_prompt"), (6, "model"), (7, ""),
        (8, "image_path"), (9, "takes"), (10, ""),
    ]  # fmt: skip


def test_faults_of_several_fields_stand_at_their_cells() -> None:
    found = faults("prompt,model,slg_layer,steps,guidance\na,nano,4,201,0.5\nb,960x960_5s,4,2,2\n")
    assert sorted(found) == [(2, "guidance"), (2, "slg_layer"), (2, "steps")]


def test_faults_call_columns_as_the_file_does() -> None:
    assert faults("Prompt,Num Inference Steps\na,x\n") == [(2, "Num Inference Steps")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [(1, "")]),
        ("\n\n", [(1, "")]),
        ("text_prompt\n", [(0, "")]),
        ("a,b\nc,d\n", [(1, "")]),
        ("text_prompt,prompt\na,b\n", [(1, "text_prompt")]),
        ("text_prompt,seed,SEED\na,1,2\n", [(1, "seed")]),
        ('text_prompt\n"never closed\n', [(0, "")]),
        ('text_prompt\n"closed" twice"\n', [(0, "")]),
        (b"text_prompt\n\x00\x00\n", [(0, "")]),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", [(0, "")]),
        (b"\xff\xfet\x00e\x00x\x00t", [(0, "")]),
        ("x" * (MAX_BYTES + 1), [(0, "")]),
        ("text_prompt\n" + "a\n" * (MAX_ROWS + 1), [(MAX_ROWS + 2, "")]),
        ("text_prompt,image_path,first_frame_prompt\na,b.png,c\n", [(2, "")]),
        ("text_prompt,first_frame_seed\na,x\n", [(2, "first_frame_seed")]),
        ("text_prompt,adapters\na,x:y\n", [(2, "adapters")]),
        ("text_prompt,adapters\na,../up\n", [(2, "adapters")]),
        ("text_prompt,adapters\na,x:1:both:z\n", [(2, "adapters")]),
        ("text_prompt,snap\na,perhaps\n", [(2, "snap")]),
        ("text_prompt,shift\na,nan\n", [(2, "shift")]),
        ("text_prompt,seed\na,-1\n", [(2, "seed")]),
        ("text_prompt,seed\na," + "9" * 5000 + "\n", [(2, "seed")]),
        ("text_prompt,seed\na,²\n", [(2, "seed")]),
        (f"text_prompt,name\na,{'n' * 201}\n", [(2, "name")]),
        (f"text_prompt,tags\na,{'t' * 51}\n", [(2, "tags")]),
        (f"text_prompt\n{'x' * 10_000_000}\n", [(2, "text_prompt")]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_faults(text: str | bytes, expected: list[tuple[int, str]]) -> None:
    assert faults(text) == expected


def test_messages_show_no_more_of_a_cell_than_a_line() -> None:
    checked = check(f"text_prompt,seed,image_path\n{'x' * 20_000},{'y' * 20_000},{'z' * 20_000}\n")
    assert all(len(fault.problem) + len(fault.remedy) < 300 for fault in checked.faults)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text_prompt\na\n")
    (tmp_path / "folder.csv").mkdir()
    for name in ("notes.txt", "folder.csv", "gone.csv", "nul\0.csv", "n" * 5000 + ".csv"):
        with pytest.raises(InvalidInputError):
            read_batch_file(tmp_path / name)


# --- Images ---------------------------------------------------------------------------------------------------


def test_images_are_looked_for_beside_the_table_and_then_elsewhere(folder: Path) -> None:
    images = ImageFolders((folder / "nowhere", folder))
    (request,) = requests("text_prompt,image\na,a.png\n", images)
    assert request.first_frame == ImageFrame(
        path=str(folder / "a.png"), name="a.png", sha256=request.first_frame.sha256
    )
    assert find_image("../outside/a.png", images) == folder.parent / "outside/a.png"
    assert find_image(str(folder / "a.png"), images) == folder / "a.png"


OUTSIDE = (
    "../outside/a.png", "./../outside/a.png", "x/../../outside/a.png", "link.png", "{root}/outside/a.png", "~/a.png",
    "/etc/passwd", "file:///etc/passwd", "http://localhost/a.png", "//server/share/a.png", "\\\\server\\share\\a.png",
    "C:\\a.png", "a.png\0.png", "..", "", ".", "/", "/dev/zero", "/proc/self/environ", "n" * 5000, "a/" * 3000,
)  # fmt: skip


@pytest.mark.parametrize("text", OUTSIDE, ids=lambda text: text[:30])
def test_a_table_from_the_network_reads_nothing_outside(folder: Path, text: str, reads: "Reads") -> None:
    cell = text.format(root=folder.parent)
    with reads() as opened, pytest.raises(InvalidInputError) as caught:
        find_image(cell, ImageFolders((folder,), confined=True))
    assert opened() == []
    assert str(folder) not in str(caught.value) or str(folder) in cell, "it tells no path of this machine"


def test_inside_a_table_from_the_network_may_read(folder: Path) -> None:
    confined = ImageFolders((folder,), confined=True)
    for text in ("a.png", "./a.png", "x/../a.png", str(folder / "a.png")):
        assert find_image(text, confined) == folder / "a.png"


def test_nothing_tells_whether_a_file_outside_is_there(folder: Path) -> None:
    confined = ImageFolders((folder,), confined=True)
    messages = set()
    for text in ("../outside/a.png", "../outside/b.png"):
        with pytest.raises(InvalidInputError) as caught:
            find_image(text, confined)
        messages.add(str(caught.value).replace("b.png", "a.png"))
    assert len(messages) == 1


# --- Anything at all ------------------------------------------------------------------------------------------

Reads = Callable[[], Any]


class _Opened:
    """Which files this process opens; an audit hook cannot be taken away again, so there is one."""

    def __init__(self) -> None:
        self.paths: list[str] | None = None
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.paths is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            self.paths.append(os.fsdecode(arguments[0]))

    def __call__(self) -> "_Opened":
        return self

    def __enter__(self) -> Callable[[], list[str]]:
        self.paths = []
        paths = self.paths
        return lambda: [path for path in paths if not path.endswith((".py", ".pyc", ".so"))]

    def __exit__(self, *_: object) -> None:
        self.paths = None


_OPENED = _Opened()


@pytest.fixture
def reads() -> Reads:
    return _OPENED


ODD_CELLS = (
    "A dog <S>woof<E>", "=1+1", "+SUM(A1)", "@cmd", "-2+3|cmd", '=HYPERLINK("http://x")', "\tx", "a.png", "nano", "<S>",
    "link.png", "../outside/a.png", "/etc/passwd", "96x96", "1", "-1", "1e999", "nan", "true", '"', "a\nb", "'", "both",
    "<AUDCAP>", "720x720_5s", "9" * 400, "x:1;y", "unipc", "\ufeff", "\u202e", "\0", "\x1a",
)  # fmt: skip
COLUMNS = (
    "text_prompt", "prompt", "image_path", "image", "seed", "steps", "size", "aspect", "model", "takes", "name", "tags",
    "guidance", "modality", "adapters", "first_frame_prompt", "first_frame_seed", "SEED", " seed ", "sed",
)  # fmt: skip
CELLS = st.one_of(st.text(max_size=40), st.sampled_from(ODD_CELLS))
HEADERS = st.one_of(st.sampled_from(COLUMNS), st.text(max_size=10))
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift_jis", "koi8-r", "utf-7")


def quoted(cell: str, how: int) -> str:
    return cell if how == 0 else '"' + cell.replace('"', '""') + '"' if how < 3 else f'"{cell}'


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """From good tables to torn ones, in any encoding."""
    header = draw(st.lists(HEADERS, max_size=6))
    if draw(st.integers(0, 4)):
        header = ["text_prompt", *header]
    rows = draw(st.lists(st.lists(CELLS, max_size=8), max_size=5))
    delimiter = draw(st.sampled_from((",", ";", "\t")))
    line = draw(st.sampled_from(("\n", "\r\n", "\r")))
    how = st.integers(0, 3) if draw(st.booleans()) else st.just(1)
    lines = [delimiter.join(quoted(cell, draw(how)) for cell in row) for row in [header, *rows]]
    data = line.join(lines).encode(draw(st.sampled_from(ENCODINGS)), "ignore")
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


@pytest.mark.slow
@settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.one_of(tables(), tables(), tables(), st.binary(max_size=300)))
@example(b"text_prompt,image_path\n" + b"x" * 10_000_000 + b",a.png\n")
@example(b'text_prompt,image_path\na,"' + b"y" * 10_000_000 + b'"\n')
@example(b"text_prompt," + b"h" * 10_000_000 + b"\na,b\n")
@example(b"\xff" * 10_000_000)
@example(b"text_prompt,text_prompt\na,b\n")
@example(b"text_prompt,image_path\na,../outside/a.png\nb,link.png\nc,/etc/passwd\n")
@example("text_prompt\n\ud800".encode("utf-16-le", "surrogatepass"))
@example(b"\xff\xfe" + "text_prompt\n\ud800".encode("utf-16-le", "surrogatepass"))
def test_any_bytes_give_a_batch_or_a_table_of_faults(folder: Path, data: bytes) -> None:
    with _OPENED as opened:
        checked = check_batch(data, ImageFolders((folder,), confined=True))
    assert checked.rows or checked.faults
    assert all(Path(path).resolve().is_relative_to(folder) for path in opened()), opened()
    for fault in checked.faults:
        assert fault.problem
        assert fault.remedy
        assert len(fault.problem) < 1000
    for row in checked.rows:
        assert GenerationRequest.from_json(row.request.model_dump_json()) == row.request
