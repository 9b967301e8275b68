"""Exports: a zip that is whole, and a table in it that asks for the same clips again."""

import csv
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ovi_studio.errors import InvalidInputError, MediaError
from ovi_studio.events import CancelToken
from ovi_studio.request import Adapter, GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.studio.export import TABLE, Exports, table_of
from ovi_studio.studio.frames import Frames
from ovi_studio.studio.job import Job, Order
from ovi_studio.studio.library import Library
from ovi_studio.studio.rows import ImageFolders, check_batch
from ovi_studio.studio.runner import Runner

Ask = Callable[..., Job]

REQUESTS: list[dict[str, Any]] = [
    {},
    {"variant": "960x960_5s", "aspect": "16:9", "num_inference_steps": 30, "solver": "dpm++", "shift": 3.7},
    {"variant": "720x720_5s", "size": (704, 1280), "snap": False, "quality": "fast", "slg_layer": 0},
    {"video_guidance_interval": (0.1, 1e-05 + 0.7), "audio_guidance_interval": (0.0, 1e-05)},
    {"video_guidance_scale": 1.1, "audio_guidance_scale": 7.25, "modality": "video"},
    {"video_negative_prompt": "", "audio_negative_prompt": 'hiss; "loud", \'=1'},
    {"modality": "audio", "adapters": (Adapter(id="me/voice", strength=-0.3, tower="audio"), Adapter(id="b"))},
    {"first_frame": GeneratedFrame()},
    {"first_frame": GeneratedFrame(prompt="a dog,\npainted", seed=9)},
    {"prompt": '=HYPERLINK("http://x")'},
    {"prompt": "'=1 is not a formula"},
    {"prompt": '-5 degrees. <S>Brr, "cold"!<E> Audio: wind\nand\r\nsnow'},
]


@pytest.fixture
def exports(tmp_path: Path) -> Iterator[Exports]:
    exports = Exports(tmp_path / "exports")
    yield exports
    exports.close()


@pytest.fixture
def make(library: Library, clips: Path, runner: Runner) -> Callable[..., Job]:
    """A finished clip."""

    def make(prompt: str = "A dog barks.", folder: Path = clips, **fields: Any) -> Job:
        folder.mkdir(exist_ok=True)
        (job,) = library.add([Order(GenerationRequest.create(prompt=prompt, **fields), folder, "dog")])
        runner.run_next(CancelToken())
        return library.get(job.id)

    return make


def unpacked(exports: Exports, token: str, person: str, folder: Path) -> list[str]:
    with zipfile.ZipFile(exports.find(token, person)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
        return archive.namelist()


@pytest.mark.parametrize("fields", REQUESTS)
def test_the_table_asks_for_the_same(fields: dict[str, Any], library: Library, clips: Path) -> None:
    request = GenerationRequest.create(**{"prompt": "A dog barks.", "seed": 2**32 - 1, **fields})
    (job,) = library.add([Order(request, clips, "dog", "=name", ("pets", "-loud"))])
    checked = check_batch(table_of([job], ["dog.mp4"]).encode("utf-8-sig"), ImageFolders((clips,)))
    (row,) = checked.rows
    assert checked.faults == ()
    assert (row.request, row.name, row.tags) == (request, "=name", ("pets", "-loud"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>\0"), min_size=1, max_size=60))
def test_any_prompt_comes_back(library: Library, clips: Path, text: str) -> None:
    prompt = f"{text}x".strip()  # spaces around a prompt say nothing to the model
    (job,) = library.add([Order(GenerationRequest.create(prompt=prompt, seed=1), clips, "dog")])
    table = table_of([job], ["dog.mp4"])
    (row,) = check_batch(table.encode("utf-8-sig"), ImageFolders((clips,))).rows or (None,)
    assert row is None or row.request.prompt == prompt
    for cell in next(csv.reader(io.StringIO(table.split("\r\n", 1)[1], newline=""))):
        assert not cell.startswith(tuple("=+-@\t\r\n"))


def test_clips_pictures_and_table(exports: Exports, make: Callable[..., Job], tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "my picture.png")
    frame = Frames(tmp_path / "frames").keep(tmp_path / "my picture.png")
    jobs = [make(seed=1), make(seed=2, first_frame=frame), make(seed=3, folder=tmp_path / "elsewhere")]
    assert [job.output.name for job in jobs] == ["dog.mp4", "dog-2.mp4", "dog.mp4"]
    packed = exports.make(jobs, "me")
    assert (packed.clips, packed.missing, packed.frames_missing) == (3, 0, 0)
    there = tmp_path / "there"
    names = unpacked(exports, packed.token, "me", there)
    assert names == [TABLE, f"images/{frame.sha256[:32]}.png", "dog.mp4", "dog-2.mp4", "dog-3.mp4"]
    rows = check_batch((there / TABLE).read_bytes(), ImageFolders((there,), confined=True)).rows
    assert [row.request.seed for row in rows] == [1, 2, 3]
    again = rows[1].request.first_frame
    assert isinstance(again, ImageFrame)
    assert again.sha256 == frame.sha256
    assert Path(again.path).is_relative_to(there)
    table = list(csv.DictReader(io.StringIO((there / TABLE).read_text("utf-8-sig"))))
    for job, row in zip(jobs, table, strict=True):
        assert (there / row["file"]).read_bytes() == job.output.read_bytes()
    assert str(tmp_path) not in (there / TABLE).read_text("utf-8-sig")


def test_what_is_gone_is_told(exports: Exports, make: Callable[..., Job], tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    framed = make(first_frame=Frames(tmp_path / "frames").keep(tmp_path / "a.png"))
    gone = make()
    gone.output.unlink()
    shutil.rmtree(tmp_path / "frames")
    packed = exports.make([framed, gone], "me")
    assert (packed.clips, packed.missing, packed.frames_missing) == (1, 1, 1)
    with pytest.raises(InvalidInputError, match="no clip"):
        exports.make([gone], "me")


def test_each_sees_their_own_and_one_at_a_time(exports: Exports, make: Callable[..., Job]) -> None:
    job = make()
    mine, theirs = exports.make([job], "me"), exports.make([job], "you")
    for token, person in ((mine.token, "you"), (theirs.token, "me"), ("", "me"), ("../library", "me")):
        with pytest.raises(InvalidInputError):
            exports.find(token, person)
    newer = exports.make([job], "me")
    with pytest.raises(InvalidInputError):
        exports.find(mine.token, "me")
    assert exports.find(theirs.token, "you").is_file()
    path = exports.find(newer.token, "me")
    exports.close()
    assert not path.exists()


def test_a_full_disk_is_told_and_leaves_nothing(
    exports: Exports, make: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
    with pytest.raises(MediaError, match="full"):
        exports.make([job], "me")
    assert list((tmp_path / "exports").iterdir()) == []
