"""The trash: nothing is lost on the way in or out, also where a program dies between two steps."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ovi_studio.errors import InvalidInputError, MediaError
from ovi_studio.events import CancelToken
from ovi_studio.request import GenerationRequest
from ovi_studio.studio import trash
from ovi_studio.studio.clips import rescan
from ovi_studio.studio.job import Job, Order
from ovi_studio.studio.library import Filter, Library
from ovi_studio.studio.runner import Runner

Ask = Callable[..., Job]


@pytest.fixture
def made(ask: Ask, runner: Runner, library: Library) -> Job:
    """A finished clip with everything that a person may have given it."""
    job = ask(name="Rex", seed=3)
    runner.run_next(CancelToken())
    library.set_tags(job.id, ["pets"])
    library.set_favourite(job.id, True)
    return library.get(job.id)


def settled(job: Job) -> dict[str, object]:
    """All of a job but its place in the queue, which is behind it."""
    return {name: value for name, value in vars(job).items() if name not in ("position", "request")}


def test_there_and_back(library: Library, made: Job) -> None:
    content, picture = made.output.read_bytes(), library.thumbnail(made.id)
    thrown = trash.throw_away(library, made.id)
    assert not made.output.exists()
    assert thrown.kept.read_bytes() == content
    assert (thrown.name, thrown.prompt, thrown.owner) == ("Rex", "A dog barks.", "")
    with pytest.raises(InvalidInputError):
        library.get(made.id)
    assert rescan(library, [made.output.parent]).added == 0
    assert settled(trash.restore(library, made.id)) == settled(made)
    assert (made.output.read_bytes(), library.thumbnail(made.id)) == (content, picture)
    assert trash.trashed(library) == ()
    assert list(made.output.parent.iterdir()) == [made.output]


def test_its_name_may_be_taken_meanwhile(library: Library, made: Job) -> None:
    content = made.output.read_bytes()
    trash.throw_away(library, made.id)
    made.output.write_bytes(b"somebody else's")
    (other,) = library.add([Order(GenerationRequest.create(prompt="b"), made.output.parent, "dog-2")])
    back = trash.restore(library, made.id)
    assert back.output.read_bytes() == content
    assert made.output.read_bytes() == b"somebody else's"
    assert back.output not in (made.output, other.output)


def test_a_batch_may_have_made_it_anew(library: Library, clips: Path) -> None:
    order = Order(GenerationRequest.create(prompt="a"), clips, "a", batch="b", batch_key="k", batch_row=2)
    (job,) = library.add([order])
    library.cancel(job.id)
    trash.throw_away(library, job.id)
    library.add([order])
    assert trash.restore(library, job.id).batch_key is None


@pytest.mark.parametrize("status", ["queued", "paused", "running"])
def test_what_is_not_over_stays(library: Library, ask: Ask, status: str) -> None:
    job = ask()
    library.store.change("UPDATE jobs SET status = ? WHERE id = ?", [status, job.id])
    with pytest.raises(InvalidInputError, match="Cancel it first"):
        trash.throw_away(library, job.id)
    assert library.get(job.id).status == status
    assert trash.trashed(library) == ()


def test_what_failed_has_no_file(library: Library, ask: Ask) -> None:
    job = ask()
    library.cancel(job.id)
    trash.throw_away(library, job.id)
    assert trash.restore(library, job.id).status == "cancelled"


def test_nothing_is_restored_or_deleted_twice(library: Library, made: Job) -> None:
    trash.throw_away(library, made.id)
    with pytest.raises(InvalidInputError):
        trash.throw_away(library, made.id)
    trash.restore(library, made.id)
    with pytest.raises(InvalidInputError):
        trash.restore(library, made.id)


def test_a_file_that_cannot_be_moved_leaves_all_as_it_was(
    library: Library, made: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(MediaError, match="Permission denied"):
            trash.throw_away(library, made.id)
    assert settled(library.get(made.id)) == settled(made)
    assert made.output.is_file()
    assert trash.trashed(library) == ()


class Killed(BaseException):
    """The program ends here."""


@pytest.mark.parametrize("step", ["replace", "mkdir"])
def test_killed_while_throwing_away(library: Library, made: Job, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, die)
        with pytest.raises(Killed):
            trash.throw_away(library, made.id)
    assert made.output.is_file()
    assert settled(trash.restore(library, made.id)) == settled(made)
    assert made.output.is_file()


@pytest.mark.parametrize("step", ["unlink", "hardlink_to"])
def test_killed_while_restoring(library: Library, made: Job, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    trash.throw_away(library, made.id)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, die)
        with pytest.raises(Killed):
            trash.restore(library, made.id)
    known = [job.id for job in library.find(Filter())]
    if not known:
        trash.restore(library, made.id)
    assert settled(library.get(made.id)) == settled(made)
    assert made.output.is_file()


def test_killed_between_naming_and_the_librarys_last_word(library: Library, made: Job) -> None:
    """The file has its name again, and is in the trash too: as hard links are made."""
    thrown = trash.throw_away(library, made.id)
    os.link(thrown.kept, made.output)
    assert trash.restore(library, made.id).output == made.output
    assert [path for path in made.output.parent.rglob("*") if path.is_file()] == [made.output]


def test_emptied_by_age(library: Library, made: Job, ask: Ask) -> None:
    young = ask("b", stem="b")
    library.cancel(young.id)
    old = trash.throw_away(library, made.id)
    trash.throw_away(library, young.id)
    library.store.change("UPDATE trash SET deleted = ? WHERE id = ?", [time.time() - trash.KEPT_SECONDS - 60, old.id])
    assert trash.bytes_kept(trash.trashed(library)) == old.kept.stat().st_size
    assert trash.empty_old(library) == 1
    assert [each.id for each in trash.trashed(library)] == [young.id]
    assert not old.kept.exists()


def test_emptying_never_touches_what_took_its_place(library: Library, made: Job) -> None:
    trash.throw_away(library, made.id)
    made.output.write_bytes(b"somebody else's")
    assert trash.empty(library, trash.trashed(library)) == 1
    assert made.output.read_bytes() == b"somebody else's"


def test_emptying_after_a_crash_takes_the_file_where_it_was(
    library: Library, made: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            trash.throw_away(library, made.id)
    assert trash.empty(library, trash.trashed(library)) == 1
    assert list(made.output.parent.iterdir()) == []
