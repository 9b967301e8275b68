"""The functions behind the Batch and System tabs: who is refused what, and what no visitor is told."""

import base64
import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import PIL.Image
import pytest

from ovi_studio.errors import InvalidInputError, OutOfMemoryError
from ovi_studio.runtime.hardware import simulate
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.downloads import Downloads
from ovi_studio.studio.export import Exports
from ovi_studio.studio.frames import Frames
from ovi_studio.studio.library import Filter
from ovi_studio.studio.sheet import EXAMPLE
from ovi_studio.studio.visits import OWNER, Person, Visit
from ovi_studio.ui.batch_tab import BatchTab
from ovi_studio.ui.door import HasCookies, Visits
from ovi_studio.ui.system_tab import SystemTab
from ovi_studio.variants import get_variant
from ovi_studio.weights.store import Store
from tests.fakes import FakeEngine

TABLE = {"header": ["prompt", "seed"], "variant": "nano", "takes": 1, "title": "faces"}


class NamedVisits(Visits):
    """The cookie `name` says who it is; "stranger" is nobody."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def of(self, request: HasCookies) -> Visit:
        name = request.cookies.get("name", "")
        if name == "stranger":
            raise InvalidInputError("You are not logged in.", "Log in, and try again.")
        return Visit(self.desk, Person(f"visitor:{name}", name) if name else OWNER)


class Page:
    """Both tabs, called as their scripts call them."""

    def __init__(self, home: Path, desk: Desk, downloads: Downloads) -> None:
        self.desk: Any = desk  # its engine is a fake
        visits = NamedVisits(desk)
        with gr.Blocks() as self.blocks:
            tabs = (
                BatchTab(visits, Frames(home / "frames"), Exports(home / "exports"), home / "inbox", lambda *_: ""),
                SystemTab(visits, desk, desk.engine.plan, downloads, look=lambda _path: simulate("1x24GB@8.9,ram=64")),
            )
        self.functions = {each.__name__: each for tab in tabs for each in tab.widget.server_fns}

    def __call__(self, name: str, asked: Any = None, *, by: str = "") -> Any:
        return self.functions[name]({} if asked is None else asked, SimpleNamespace(cookies={"name": by}))

    def start(self, rows: list[list[str]], *, by: str = "", **more: Any) -> Any:
        return self("start_batch", TABLE | {"rows": rows} | more, by=by)

    def finish(self) -> None:
        """Until nothing waits or runs."""
        while self.desk.library.find(Filter(("queued", "running"))):
            time.sleep(0.02)


@pytest.fixture
def engine_settings() -> dict[str, Any]:
    return {"steps": 1}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine_settings: dict[str, Any]) -> Iterator[Page]:
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path / "home"))

    def make_engine(folder: Path) -> FakeEngine:
        return FakeEngine(folder, **engine_settings)

    with (
        Desk(tmp_path / "library.db", tmp_path / "work", make_engine) as desk,
        Downloads(Store(tmp_path / "w")) as fetched,
    ):
        yield Page(tmp_path, desk, fetched)


def picture() -> str:
    data = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "red").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


# --- Everybody ------------------------------------------------------------------------------------------------


def test_strangers_are_refused_everything(page: Page) -> None:
    for name in page.functions:
        answer = page(name, by="stranger")
        assert answer == {"problem": "You are not logged in. Log in, and try again."}, name


@pytest.mark.parametrize("asked", [None, [], "x", 7, {"header": 3}, {"header": [[1]], "rows": [{}]}, {"batch": None}])
def test_nonsense_is_refused_with_a_sentence(page: Page, asked: Any) -> None:
    for name in ("read_table", "check_table", "keep_picture", "start_batch", "see_batch", "batch_zip"):
        answer = page.functions[name](asked, SimpleNamespace(cookies={}))
        assert answer["problem"].startswith("The page asked for something")


def test_nothing_of_the_machine_stands_in_the_page(page: Page, tmp_path: Path) -> None:
    config = json.dumps(page.blocks.get_config_file(), default=str)
    assert str(tmp_path) not in config


# --- Visitors and the system ----------------------------------------------------------------------------------

SYSTEM = (
    "see_machine", "see_plan", "see_history", "see_weights", "see_errand", "change_weights", "see_doctor",
    "see_settings", "change_folder",
)  # fmt: skip


def test_visitors_see_nothing_of_the_system(page: Page, tmp_path: Path) -> None:
    assert set(SYSTEM) < page.functions.keys()
    for name in SYSTEM:
        for asked in ({}, {"act": "download", "name": "vocoder"}, {"folder": str(tmp_path)}, {"variant": "nano"}):
            answer = page(name, asked, by="eve")
            assert answer.keys() == {"problem"}
            assert "Only the owner" in answer["problem"]
    assert not (tmp_path / "home/settings.json").exists()
    assert page("see_errand")["stage"] == "idle"


def test_the_owner_sees_it(page: Page) -> None:
    machine = page("see_machine")
    assert machine["cards"][0]["total"] == 24 << 30
    plan = page("see_plan", {"variant": "720x720_5s"})
    assert plan["seconds"] > 0
    assert plan["gpu"]["peak"] > 0
    assert page("see_plan", {"variant": "nanno"})["problem"]
    weights = page("see_weights")
    assert [model["state"] for model in weights["models"]] == ["built in", "missing", "missing", "missing"]
    assert any(part["gated"] for part in weights["parts"])
    assert "no NVIDIA" not in page("see_doctor")["text"]


def test_the_folder_of_the_weights(page: Page, tmp_path: Path) -> None:
    assert "problem" in page("change_folder", {"folder": "relative"})
    told = page("change_folder", {"folder": str(tmp_path / "large disk")})
    assert (told["weights"], told["usual_weights"]) == (str(tmp_path / "large disk"), False)
    assert told["weights_now"] != told["weights"]
    assert page("change_folder", {"folder": ""})["usual_weights"]


# --- Batches --------------------------------------------------------------------------------------------------


def test_a_table_is_read_mended_and_made(page: Page) -> None:
    data = base64.b64encode(b"prompt,seed\na,1\nb,x\n").decode()
    table = page("read_table", {"name": "/tmp/faces.csv", "data": data})
    assert (table["title"], table["header"]) == ("faces", ("prompt", "seed"))
    told = page("check_table", TABLE | {"rows": [list(row) for row in table["rows"]]})
    assert [row["clips"] for row in told["rows"]] == [1, 0]
    assert told["rows"][1]["faults"][0]["column"] == 1
    assert "problem" in page.start([["a", "1"], ["b", "x"]])
    assert not page.desk.library.find(Filter())
    batch = page.start([["a", "1"], ["b", "2"]])
    page.finish()
    seen = page("see_batch", {"batch": batch["id"]})
    assert (seen["title"], seen["counts"]) == ("faces", {"done": 2})
    assert [job["row"] for job in seen["jobs"]] == [2, 3]
    (row, _) = csv.DictReader(io.StringIO(page("batch_results", {"batch": batch["id"]})["text"]))
    assert Path(row["path"]).is_file()
    assert page("batch_zip", {"batch": batch["id"]})["clips"] == 2
    assert [each["id"] for each in page("open_batches")["batches"]] == [batch["id"]]


def test_only_the_good_rows(page: Page) -> None:
    batch = page.start([["a", "1"], ["b", "x"], ["", ""], ["d", "4"]], only_good=True)
    assert [job["row"] for job in batch["jobs"]] == [2, 5]
    assert "no row" in page.start([["", ""]], only_good=True)["problem"]


def test_takes_and_model_of_the_table(page: Page) -> None:
    assert [job["take"] for job in page.start([["a", "1"]], takes=3)["jobs"]] == [1, 2, 3]
    assert "problem" in page.start([["a", "1"]], takes=0)
    assert "problem" in page.start([["a", "1"]], variant="nanno")


def test_equal_tables_are_batches_of_their_own(page: Page) -> None:
    first, second = page.start([["a", "1"]]), page.start([["a", "1"]])
    assert first["id"] != second["id"]
    assert len(page.desk.library.find(Filter())) == 2


def test_pictures_are_copied_for_the_clips(page: Page, tmp_path: Path) -> None:
    assert page("keep_picture", {"name": "a.png", "data": picture()})["pictures"] == ("a.png",)
    page.start([["a", "1", "a.png"]], header=["prompt", "seed", "image_path"])
    page("forget_pictures")
    (job,) = page.desk.library.find(Filter())
    assert Path(job.request.first_frame.path).parent == tmp_path / "frames"
    assert Path(job.request.first_frame.path).is_file()
    assert "problem" in page("keep_picture", {"name": "a.png", "data": "!!!"})


class TestFailing:
    @pytest.fixture
    def engine_settings(self) -> dict[str, Any]:
        return {"steps": 1, "error": OutOfMemoryError("No memory, see /data/secret/log.", "Take less.")}

    def test_failed_ones_are_tried_again(self, page: Page) -> None:
        batch = page.start([["a", "1"], ["b", "2"]])
        page.finish()
        seen = page("see_batch", {"batch": batch["id"]})
        assert seen["counts"] == {"failed": 2}
        assert "Take less" in seen["jobs"][0]["reason"]
        page.desk.engine.error = None
        page("retry_batch", {"batch": batch["id"], "statuses": ["failed"]})
        page.finish()
        assert page("see_batch", {"batch": batch["id"]})["counts"] == {"done": 2}

    def test_visitors_are_told_no_paths(self, page: Page, tmp_path: Path) -> None:
        batch = page.start([["a", "1"]], by="eve")
        page.finish()
        answers = [page("see_batch", {"batch": batch["id"]}, by="eve")]
        answers += [page("batch_results", {"batch": batch["id"]}, by="eve"), page("open_batches", by="eve")]
        told = json.dumps(answers)
        assert "could not be made" in told
        assert "secret" not in told
        assert str(tmp_path) not in told


class TestSlow:
    @pytest.fixture
    def engine_settings(self) -> dict[str, Any]:
        return {"steps": 100, "step_seconds": 0.05}

    def test_a_batch_is_stopped_and_the_rest_made_later(self, page: Page) -> None:
        batch = page.start([["a", "1"], ["b", "2"], ["c", "3"]])
        while not page.desk.library.find(Filter(("running",))):
            time.sleep(0.02)
        page("stop_batch", {"batch": batch["id"]})
        page.finish()
        assert page("see_batch", {"batch": batch["id"]})["counts"] == {"cancelled": 3}
        page.desk.engine.step_seconds = 0
        page("retry_batch", {"batch": batch["id"], "statuses": ["cancelled"]})
        page.finish()
        assert page("see_batch", {"batch": batch["id"]})["counts"] == {"done": 3}

    def test_batches_of_others_are_not_there(self, page: Page) -> None:
        own = page.start([["a", "1"]])
        hers = page.start([["b", "2"]], by="eve")
        assert "visitors" in str(page.desk.library.find(Filter(owner="visitor:eve"))[0].output)
        for name in ("see_batch", "stop_batch", "retry_batch", "batch_results", "batch_zip"):
            for batch, by in ((own, "eve"), (hers, "bob")):
                answer = page(name, {"batch": batch["id"], "statuses": ["failed"]}, by=by)
                assert "no such batch" in answer["problem"], name
        assert not page.desk.library.find(Filter(("cancelled",)))
        assert page("open_batches", by="bob")["batches"] == []

    def test_a_visitor_may_have_so_many(self, page: Page) -> None:
        assert "problem" in page.start([["a", str(n)] for n in range(5)], by="eve")
        assert "problem" in page.start([["a" * 4001, "1"]], by="eve")
        assert not page.desk.library.find(Filter())
        assert "id" in page.start([["a", str(n)] for n in range(4)], by="eve")
        assert "problem" in page.start([["b", "1"]], by="eve")

    def test_pictures_of_others_are_not_there(self, page: Page) -> None:
        page("keep_picture", {"name": "a.png", "data": picture()})
        assert page("open_batches", by="eve")["pictures"] == ()
        asked = TABLE | {"header": ["prompt", "image_path"], "rows": [["a", "a.png"], ["b", "../owner/a.png"]]}
        assert [row["clips"] for row in page("check_table", asked, by="eve")["rows"]] == [0, 0]


def test_the_example_can_be_run(page: Page) -> None:
    table = page("read_table", {"name": "example.csv", "data": base64.b64encode(EXAMPLE.encode()).decode()})
    told = page("check_table", TABLE | {"header": list(table["header"]), "rows": [list(row) for row in table["rows"]]})
    assert all(row["clips"] for row in told["rows"])
    assert any("untrained" in note for note in told["notes"]) is not get_variant("nano").trained


def test_hostile_cells_are_data(page: Page) -> None:
    rows = [["<img src=x onerror=alert(1)>", "1"], ["=HYPERLINK(1)", "2"]]
    batch = page.start(rows)
    page.finish()
    assert batch["jobs"][0]["title"] == rows[0][0]
    told = page("batch_results", {"batch": batch["id"]})
    assert [row["prompt"] for row in csv.DictReader(io.StringIO(told["text"]))] == [rows[0][0], "'=HYPERLINK(1)"]
