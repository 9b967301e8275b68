"""Visits: what belongs to somebody else does not exist."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ovi_studio.errors import InvalidInputError, InvalidRequestError, MediaError, StoreError
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.desk import Desk, Snapshot
from ovi_studio.studio.forecast import Forecast
from ovi_studio.studio.job import Job, Order
from ovi_studio.studio.library import Filter
from ovi_studio.studio.visits import Limits, Person, Visit
from tests.fakes import FakeEngine

ADA, BOB = Person("visitor:ada", "Ada"), Person("visitor:bob", "Bob")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Nothing is made at it: what is queued waits."""
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Desk, "_serve", lambda *_: None)
    with Desk(tmp_path / "library.db", tmp_path / "clips", FakeEngine) as desk:
        yield desk


@pytest.fixture
def add(desk: Desk, tmp_path: Path) -> Callable[..., Job]:
    """A job in some state."""

    def add(owner: str = "", status: str = "queued", prompt: str = "A dog", **fields: object) -> Job:
        request = GenerationRequest.create(prompt=prompt, **fields)
        (job,) = desk.library.add([Order(request, tmp_path / "clips", "dog", owner=owner)])
        ended = job.created if status in ("done", "failed", "cancelled") else None
        desk.library.store.change(
            "UPDATE jobs SET status = ?, finished = ?, seconds = ? WHERE id = ?",
            [status, ended, 10.0 if status == "done" else None, job.id],
        )
        desk.forget_snapshot()
        return desk.library.get(job.id)

    return add


ACTS: list[Callable[[Visit, str], object]] = [
    lambda visit, job: visit.job(job),
    lambda visit, job: visit.thumbnail(job),
    lambda visit, job: visit.pause(job),
    lambda visit, job: visit.resume(job),
    lambda visit, job: visit.cancel(job),
    lambda visit, job: visit.keep_what_there_is(job),
    lambda visit, job: visit.move(job, None),
    lambda visit, job: visit.duplicate(job),
    lambda visit, job: visit.again(job, 1),
    lambda visit, job: visit.retry(job),
    lambda visit, job: visit.edit(job, GenerationRequest.create(prompt="b")),
    lambda visit, job: visit.set_favourite(job, True),
    lambda visit, job: visit.rename(job, "b"),
    lambda visit, job: visit.set_tags(job, ["b"]),
    lambda visit, job: visit.delete(job),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("owner", ["", BOB.id])
@pytest.mark.parametrize("status", ["queued", "done"])
def test_nothing_of_others_is_there(
    desk: Desk, add: Callable[..., Job], act: Callable[[Visit, str], object], owner: str, status: str
) -> None:
    job = add(owner, status)
    with pytest.raises(InvalidInputError):
        act(Visit(desk, ADA), job.id)
    assert desk.library.get(job.id) == job


def test_everyone_deletes_and_restores_their_own(desk: Desk, add: Callable[..., Job]) -> None:
    ada, bob, owner = Visit(desk, ADA), Visit(desk, BOB), Visit(desk)
    mine, theirs, owners = add(ADA.id, "done"), add(BOB.id, "done"), add("", "done")
    ada.delete(mine.id)
    bob.delete(theirs.id)
    owner.delete(owners.id)
    assert [each.id for each in ada.trashed()] == [mine.id]
    assert {each.id for each in owner.trashed()} == {mine.id, theirs.id, owners.id}
    for job in (theirs, owners):
        with pytest.raises(InvalidInputError):
            ada.restore(job.id)
    assert ada.empty_trash() == 1
    assert bob.restore(theirs.id).owner == BOB.id
    assert owner.restore(owners.id).status == "done"


def test_the_trash_fills_a_visitors_room(desk: Desk, add: Callable[..., Job], tmp_path: Path) -> None:
    ada = Visit(desk, ADA, Limits(disk_bytes=1000))
    job = add(ADA.id, "done")
    job.output.write_bytes(bytes(1000))
    ada.delete(job.id)
    with pytest.raises(InvalidRequestError, match="empty the trash"):
        ada.ask(GenerationRequest.create(prompt="more"))
    ada.empty_trash()
    ada.ask(GenerationRequest.create(prompt="more"))


def test_tags_are_those_of_ones_own(desk: Desk, add: Callable[..., Job]) -> None:
    desk.library.set_tags(add(ADA.id, "done").id, ["b", "Ä"])
    desk.library.set_tags(add(ADA.id, "queued").id, ["waiting"])
    desk.library.set_tags(add("", "done").id, ["secret", "b"])
    assert Visit(desk, ADA).tags() == ("b", "Ä")
    assert Visit(desk).tags() == ("b", "secret", "Ä")


def test_the_snapshot_is_of_ones_own(desk: Desk, add: Callable[..., Job]) -> None:
    for owner in ("", BOB.id, ADA.id):
        for status in ("running", "queued", "paused", "done", "failed", "cancelled"):
            add(owner, status)
    now = Visit(desk, ADA).snapshot()
    for jobs, count in ((now.running, 1), (now.waiting, 2), (now.ended, 3), (now.failed, 1)):
        assert {job.owner for job in jobs} == {ADA.id}
        assert len(jobs) == count


def test_errors_name_no_file_to_a_visitor(desk: Desk, tmp_path: Path) -> None:
    for error in (
        MediaError(f"{tmp_path}/a.mp4 cannot be written.", "Free space."),
        InvalidInputError(f"The clip {tmp_path / 'a.mp4'} is there.", "Ask for another take."),
        StoreError(r"The library C:\Users\me\library.db is locked.", "Wait."),
    ):
        assert Visit(desk).words_of(error) == str(error)
        assert "/" not in Visit(desk, ADA).words_of(error)
        assert "Users" not in Visit(desk, ADA).words_of(error)
    harmless = InvalidInputError("That is 4 MiB/s, with <S>words</S>.", "Write 1/2.")
    assert Visit(desk, ADA).words_of(harmless) == str(harmless)


# --- Looking ahead --------------------------------------------------------------------------------------------


def test_what_was_measured_counts_before_what_was_planned(desk: Desk, add: Callable[..., Job]) -> None:
    planned: list[str] = []

    def plan(request: GenerationRequest) -> float:
        planned.append(request.variant)
        return 100.0

    forecast = Forecast(desk.library, plan)
    one, paused, two = add(), add(status="paused"), add(variant="720x720_5s")
    three = add(variant="720x720_5s", prompt="another prompt is planned like the first")
    places = forecast.places(desk.snapshot())
    assert (places[one.id].number, places[one.id].seconds, places[one.id].until) == (1, 100, 100)
    assert (places[paused.id].number, places[paused.id].until) == (0, None)
    assert (places[two.id].number, places[two.id].until, places[three.id].until) == (2, 200, 300)
    assert sorted(planned) == ["720x720_5s", "nano"]
    add(status="done")
    places = forecast.places(desk.snapshot())
    assert (places[one.id].seconds, places[two.id].until, places[three.id].until) == (10, 110, 210)


def test_a_plan_that_cannot_be_is_no_time(desk: Desk, add: Callable[..., Job]) -> None:
    def plan(_request: GenerationRequest) -> float:
        raise InvalidInputError("No.", "Never.")

    one = add()
    assert Forecast(desk.library, plan).places(desk.snapshot())[one.id].seconds is None
    assert len(desk.library.find(Filter(("queued",)))) == 1


def test_a_change_during_a_look_is_in_the_next_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    look, looks = desk._look, []
    change = threading.Thread(target=desk.forget_snapshot)

    def slow_look() -> Snapshot:
        looks.append(look())
        if len(looks) == 1:
            change.start()
            change.join(0.05)
        return looks[-1]

    monkeypatch.setattr(desk, "_look", slow_look)
    desk.snapshot()
    change.join()
    desk.snapshot()
    assert len(looks) == 2
