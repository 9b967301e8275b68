"""What the page fetches: each person their own, and nothing for those who are not logged in."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ovi_studio.errors import InvalidInputError
from ovi_studio.events import StepDone
from ovi_studio.request import GenerationRequest, ImageFrame
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.export import Exports
from ovi_studio.studio.forecast import Forecast
from ovi_studio.studio.frames import Frames
from ovi_studio.studio.job import Job, Order
from ovi_studio.studio.visits import OWNER, Person, Visit
from ovi_studio.ui.door import Access, Door, Visits
from ovi_studio.ui.news import News, title_of
from ovi_studio.ui.routes import studio_routes
from tests.fakes import FakeEngine

ADA = Person("visitor:ada0", "Ada")
PEOPLE = {"owner": OWNER, "ada": ADA, "bob": Person("visitor:bob0", "Bob")}


class NameTags(Door):
    """Believes who one says one is."""

    def person(self, cookies: Mapping[str, str]) -> Person:
        if cookies.get("who") not in PEOPLE:
            raise InvalidInputError("You are not logged in.", "Log in, and try again.")
        return PEOPLE[cookies["who"]]


class Studio:
    """A desk at which nothing is made by itself, and the routes."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self.folder = folder
        self.exports = Exports(folder / "exports")
        self.forecast = Forecast(desk.library, lambda _request: 60.0)
        routes = studio_routes(desk, Visits(desk, NameTags(Access())), self.exports, self.forecast)
        self.app = Starlette(routes=routes)

    def client(self, who: str | None) -> TestClient:
        return TestClient(self.app, cookies={"who": who} if who else {})

    def add(self, owner: str, status: str = "done", prompt: str = "A dog", **fields: Any) -> Job:
        request = GenerationRequest.create(prompt=prompt, seed=1, **fields)
        (job,) = self.desk.library.add([Order(request, self.folder / "clips", "dog", owner=owner)])
        if status == "done":
            clip = FakeEngine(self.folder / "work")._clip(request.resolved())
            clip.path.rename(job.output)
        picture = io.BytesIO()
        PIL.Image.new("RGB", (8, 8)).save(picture, "JPEG")
        self.desk.library.store.change(
            "UPDATE jobs SET status = ?, finished = created, thumbnail = ? WHERE id = ?",
            [status, picture.getvalue(), job.id],
        )
        self.desk.forget_snapshot()
        return self.desk.library.get(job.id)

    def news(self, person: Person = OWNER) -> News:
        return News(self.desk, Visit(self.desk, person), self.forecast)


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    monkeypatch.setattr(Desk, "_serve", lambda *_: None)
    (tmp_path / "work").mkdir()
    with Desk(tmp_path / "library.db", tmp_path / "clips", FakeEngine) as desk:
        yield Studio(desk, tmp_path)


def addresses(job: Job) -> list[str]:
    clip = f"/studio/clip/{job.id}"
    small = [f"/studio/thumb/{job.id}.jpg", f"/studio/frame/{job.id}.jpg"]
    return [f"{clip}.mp4", f"{clip}.wav", f"{clip}/first.png", f"{clip}/last.png", *small]


def framed(studio: Studio) -> ImageFrame:
    PIL.Image.new("RGB", (640, 480), "red").save(studio.folder / "a.png")
    return Frames(studio.folder / "frames").keep(studio.folder / "a.png")


def test_everyone_gets_their_own_and_the_owner_everything(studio: Studio) -> None:
    job = studio.add(ADA.id, first_frame=framed(studio))
    for address in addresses(job):
        for who, status in (("ada", 200), ("owner", 200), ("bob", 404), (None, 401)):
            answer = studio.client(who).get(address)
            assert answer.status_code == status, (address, who)
            if status == 200:
                assert answer.headers["x-content-type-options"] == "nosniff"
            else:
                assert str(studio.folder) not in answer.text
    assert studio.client("ada").get(addresses(job)[0]).content == job.output.read_bytes()
    small = PIL.Image.open(io.BytesIO(studio.client("ada").get(addresses(job)[-1]).content))
    assert max(small.size) == 240


def test_a_clip_is_sent_in_parts(studio: Studio) -> None:
    job = studio.add("")
    answer = studio.client("owner").get(addresses(job)[0], headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (206, job.output.read_bytes()[:10])


def test_visitors_learn_no_paths_from_errors(studio: Studio) -> None:
    job = studio.add(ADA.id)
    job.output.write_bytes(b"no clip any more")
    for address in addresses(job)[1:4]:
        owner, ada = (studio.client(who).get(address) for who in ("owner", "ada"))
        assert (owner.status_code, ada.status_code) == (404, 404)
        assert str(studio.folder) in owner.text
        assert str(studio.folder) not in ada.text


@pytest.mark.parametrize(
    "address",
    [
        "clip/../library.db.mp4",
        "clip/%2e%2e%2flibrary.mp4",
        "thumb/x.jpg",
        "frame/x.jpg",
        "export/x.zip",
        "live/x/1.jpg",
    ],
)
def test_what_is_not_there_is_not_found(studio: Studio, address: str) -> None:
    assert studio.client("owner").get(f"/studio/{address}").status_code == 404


def test_the_run_under_way_is_seen_by_its_own(studio: Studio) -> None:
    job = studio.add(ADA.id, "running")
    studio.desk._listen(job, StepDone(1, 4, 9.0, preview=b"picture", sound=b"sound"))
    for kind, content in (("jpg", b"picture"), ("wav", b"sound")):
        address = f"/studio/live/{job.id}/1.{kind}"
        assert studio.client("ada").get(address).content == content
        assert studio.client("bob").get(address).status_code == 404
        assert studio.client(None).get(address).status_code == 401
        assert studio.client("ada").get(f"/studio/live/{studio.add(ADA.id).id}/1.{kind}").status_code == 204


def test_an_export_is_fetched_by_who_made_it(studio: Studio) -> None:
    job = studio.add(ADA.id)
    packed = studio.exports.make([job], ADA.id)
    address = f"/studio/export/{packed.token}.zip"
    answer = studio.client("ada").get(address)
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.headers["cache-control"] == "no-store"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["clips.csv", job.output.name]
    assert [studio.client(who).get(address).status_code for who in ("owner", "bob", None)] == [404, 404, 401]


# --- News -----------------------------------------------------------------------------------------------------


def test_news_are_streamed_to_those_who_are_logged_in(studio: Studio) -> None:
    job = studio.add(ADA.id, "queued")
    assert studio.client(None).get("/studio/live").status_code == 401
    threading.Timer(0.6, studio.desk._stop.cancel).start()  # the stream ends with the desk
    answer = studio.client("ada").get("/studio/live")
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = json.loads(answer.text.partition("data: ")[2].splitlines()[0])
    assert [each["id"] for each in told["waiting"]] == [job.id]


def test_only_what_has_changed_is_told(studio: Studio) -> None:
    running, waiting = studio.add("", "running"), studio.add("", "queued", "A cat")
    news = studio.news()
    assert {"running", "waiting", "ended", "failed", "left_now", "others", "owner", "trouble"} == set(news.changed())
    assert news.changed() == {}
    studio.desk._listen(running, StepDone(1, 4, 9.0, preview=None))
    changed = news.changed()
    assert set(changed) == {"running", "left_now"}
    assert (changed["running"][0]["step"], changed["left_now"]) == (1, 9)
    studio.desk.library.rename(waiting.id, "Tom")
    studio.desk.forget_snapshot()
    assert [each["title"] for each in news.changed()["waiting"]] == ["Tom"]


def test_rows_tell_place_time_and_whose(studio: Studio) -> None:
    studio.add("", "running")
    mine, theirs, paused = (
        studio.add("", "queued", "A cat", first_frame=framed(studio)),
        studio.add(ADA.id, "queued", "A bird", modality="audio"),
        studio.add("", "paused"),
    )
    first, second, third = studio.news().changed()["waiting"]
    assert (first["id"], first["number"], first["until"], first["visitor"]) == (mine.id, 1, 60, "")
    assert first["frame"] == mine.request.first_frame.sha256[:12]
    assert (second["id"], second["number"], second["until"], second["visitor"]) == (theirs.id, 2, 120, "Visitor ada0")
    assert "sound only" in second["facts"]
    assert (third["id"], third["number"], third["until"]) == (paused.id, 0, None)
    told = studio.news(ADA).changed()
    assert [(each["id"], each["number"], each["until"], each["visitor"]) for each in told["waiting"]] == [
        (theirs.id, 2, 120, "")
    ]
    assert (told["running"], told["others"], told["owner"]) == ([], 3, False)


def test_failures_are_told_to_the_owner_with_their_reason(studio: Studio) -> None:
    job = studio.add(ADA.id, "failed")
    studio.desk.library.store.change(
        "UPDATE jobs SET problem = ?, remedy = 'Mend it.' WHERE id = ?", [f"{studio.folder} is closed.", job.id]
    )
    studio.desk.forget_snapshot()
    assert studio.news().changed()["failed"][0]["reason"] == f"{studio.folder} is closed. Mend it."
    assert str(studio.folder) not in json.dumps(studio.news(ADA).changed())


def test_a_library_that_cannot_be_read_is_told(studio: Studio) -> None:
    studio.desk.library.close()
    studio.desk.forget_snapshot()
    owner, ada = studio.news().changed(), studio.news(ADA).changed()
    assert "library" in owner["trouble"].lower()
    assert str(studio.folder) not in ada["trouble"]


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("A dog says <S>hi<E> <AUDCAP>barking<ENDAUDCAP>", "A dog says “hi”"),
        ("<AUDCAP>wind<ENDAUDCAP>", "wind"),
        ("x" * 90, f"{'x' * 79}…"),
    ],
)
def test_titles(studio: Studio, prompt: str, title: str) -> None:
    assert title_of(studio.add("", "queued", prompt)) == title


def test_a_request_of_another_version_is_told_all_the_same(studio: Studio) -> None:
    job = studio.add("", "queued")
    request = json.loads(job.request_json) | {"variant": "of tomorrow"}
    studio.desk.library.store.change("UPDATE jobs SET request = ? WHERE id = ?", [json.dumps(request), job.id])
    studio.desk.forget_snapshot()
    (row,) = studio.news().changed()["waiting"]
    assert (row["model"], row["facts"]) == ("of tomorrow", "")
