"""Who comes to the desk, and what they may do there.

    Visit(desk, person)    the owner: everything
                           a visitor: their own jobs and clips, within limits

Every door that others can reach (the page, its files, its interface for programs) goes through a `Visit`: what
belongs to somebody else does not exist there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ovi_studio.errors import InvalidInputError, InvalidRequestError, OviStudioError
from ovi_studio.folders import make_folder
from ovi_studio.request import GenerationRequest
from ovi_studio.studio import trash
from ovi_studio.studio.batch import newest_batches, take_up
from ovi_studio.studio.desk import Desk, Snapshot
from ovi_studio.studio.job import WAITING, Job
from ovi_studio.studio.library import PAGE, Filter, Page, Sorting, default_outputs
from ovi_studio.studio.rows import BatchRow
from ovi_studio.studio.trash import Trashed
from ovi_studio.variants import get_variant


@dataclass(frozen=True)
class Person:
    """Somebody at the page.

    Args:
        id: what their jobs are marked with; "" is the owner.
        name: for the log and for themselves; may be chosen by a stranger.
    """

    id: str = ""
    name: str = "owner"

    @property
    def is_owner(self) -> bool:
        """Whether everything here is theirs."""
        return self.id == ""


OWNER = Person()
_ABSOLUTE_PATH = re.compile(r"(?<![\w.<])/\w|\b[A-Za-z]:\\|\\\\\w")


@dataclass(frozen=True)
class Limits:
    """What each visitor may take of a machine that is not theirs. All guessed: for a few friends on one card.

    Args:
        waiting: jobs that wait or run.
        kept: finished clips.
        disk_bytes: of those clips together.
        prompt: characters, and of each negative prompt.
        takes: at once.
        steps: of sampling.
    """

    waiting: int = 4
    kept: int = 100
    disk_bytes: int = 2 << 30
    prompt: int = 4000
    takes: int = 4
    steps: int = 80


class Visit:
    """One person at the desk. What is not theirs raises `InvalidInputError`, as if it were not there.

    Args:
        desk: where.
        person: who.
        limits: for a visitor.
    """

    def __init__(self, desk: Desk, person: Person = OWNER, limits: Limits | None = None) -> None:
        self.person = person
        self._desk = desk
        self._library = desk.library
        self._limits = limits or Limits()

    # --- Seeing -----------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        """A job of theirs."""
        try:
            job = self._library.get(job_id)
        except InvalidInputError as error:  # told in the same words: nobody learns what others have
            raise _no_job(job_id) from error
        if not self._owns(job):
            raise _no_job(job_id)
        return job

    def find(self, wanted: Filter) -> tuple[Job, ...]:
        """All of their jobs of a kind, in the order of the queue."""
        return self._library.find(self._own(wanted))

    def page(self, wanted: Filter, number: int = 0, size: int = PAGE, sorting: Sorting = "newest") -> Page:
        """Some of their jobs, as `Library.page`."""
        return self._library.page(self._own(wanted), number, size, sorting)

    def tags(self) -> tuple[str, ...]:
        """The tags of their clips."""
        return self._library.tags(None if self.person.is_owner else self.person.id)

    def thumbnail(self, job_id: str) -> bytes | None:
        """A small picture of a clip of theirs."""
        return self._library.thumbnail(self.job(job_id).id)

    def snapshot(self) -> Snapshot:
        """What happens at the moment to their jobs."""
        now = self._desk.snapshot()
        if self.person.is_owner:
            return now
        return replace(
            now,
            running=self._owned(now.running),
            waiting=self._owned(now.waiting),
            ended=self._owned(now.ended),
            failed=self._owned(now.failed),
            trouble="The queue stands still." if now.trouble else "",
        )

    def look_anew(self) -> None:
        """Something was changed: the next snapshot shows it."""
        self._desk.forget_snapshot()

    def ahead(self) -> int:
        """How many jobs of others come before their first one that waits."""
        now = self._desk.snapshot()
        order = [*now.running, *(job for job in now.waiting if job.status == "queued")]
        first = next((place for place, job in enumerate(order) if self._owns(job)), len(order))
        return sum(not self._owns(job) for job in order[:first])

    # --- Asking -----------------------------------------------------------------------------------------------

    def ask(self, request: GenerationRequest) -> tuple[Job, ...]:
        """Put a request into the queue.

        Raises:
            InvalidInputError: it is more than a visitor may have.
        """
        with self._desk.asking:
            self._check(request, request.takes)
            jobs = self._library.ask(request, folder=self._folder(), owner=self.person.id)
        self._desk.forget_snapshot()
        return jobs

    def again(self, job_id: str, takes: int) -> tuple[Job, ...]:
        """More takes of a job of theirs. Raises as `ask`."""
        with self._desk.asking:
            self._check(self.job(job_id).request, takes)
            return self._library.again(job_id, takes)

    def duplicate(self, job_id: str) -> Job:
        """The same once more, to be edited. Raises as `ask`."""
        with self._desk.asking:
            self._check(self.job(job_id).request, 1)
            return self._library.duplicate(job_id)

    def edit(self, job_id: str, request: GenerationRequest) -> Job:
        """Something else in a waiting job's place. Raises as `ask`."""
        self.job(job_id)
        self._check(request, 0)
        return self._library.edit(job_id, request)

    def retry(self, job_id: str) -> None:
        """Queue a job of theirs again. Raises as `ask`."""
        with self._desk.asking:
            self._check(self.job(job_id).request, 1)
            self._library.retry(job_id)

    # --- Batches ----------------------------------------------------------------------------------------------

    def ask_batch(self, rows: Sequence[BatchRow], name: str) -> str:
        """Queue the rows of a table as a new batch; gives what the library calls it.

        Args:
            rows: at least one.
            name: of the folder for its clips.

        Raises:
            InvalidInputError: it is more than a visitor may have.
        """
        folder = (self._folder() or default_outputs()) / "batches" / name
        with self._desk.asking:
            for row in rows:
                self._check(row.request, 0)
            self._check(rows[0].request, sum(row.request.takes for row in rows))
            make_folder(folder)
            batch = take_up(self._library, rows, folder, self.person.id)
        self._desk.forget_snapshot()
        return batch.name

    def batches(self, count: int) -> tuple[str, ...]:
        """What the library calls their batches, the newest first."""
        return newest_batches(self._library, self.person.id, count)

    def stop_batch(self, batch: str) -> int:
        """Give up what is left of a batch of theirs. Returns how many jobs."""
        stopped = self._library.cancel_all(owner=self.person.id, batch=batch)
        self._desk.forget_snapshot()
        return stopped

    def draw(self, request: GenerationRequest) -> Path:
        """The first frame of a request, drawn now; a passing file. The owner's business.

        Raises:
            EngineError: it failed, or the engine is at work.
        """
        self.check_owner()
        return self._desk.draw(request)

    # --- The queue --------------------------------------------------------------------------------------------

    def move(self, job_id: str, before: str | None) -> None:
        """Put a job before another one; the order is the owner's business."""
        self.check_owner()
        self._library.move(job_id, before)

    def pause(self, job_id: str) -> None:
        """Keep a job of theirs from being made."""
        self._library.pause(self.job(job_id).id)

    def resume(self, job_id: str) -> None:
        """Queue a paused job of theirs again."""
        self._library.resume(self.job(job_id).id)

    def cancel(self, job_id: str) -> None:
        """Give up a job of theirs."""
        self._library.cancel(self.job(job_id).id)

    def keep_what_there_is(self, job_id: str) -> None:
        """End a running job of theirs with what it has got so far."""
        self._library.keep_what_there_is(self.job(job_id).id)

    def stop_after_this(self) -> int:
        """Pause all that is queued."""
        self.check_owner()
        return self._library.stop_after_this()

    def resume_all(self) -> int:
        """Queue all that is paused."""
        self.check_owner()
        return self._library.resume()

    # --- The shelf --------------------------------------------------------------------------------------------

    def set_favourite(self, job_id: str, favourite: bool) -> None:
        """Mark a clip of theirs."""
        self._library.set_favourite(self.job(job_id).id, favourite)

    def rename(self, job_id: str, name: str) -> None:
        """Call a clip of theirs by another name."""
        self._library.rename(self.job(job_id).id, name)

    def set_tags(self, job_id: str, tags: Sequence[str]) -> None:
        """Give a clip of theirs tags."""
        self._library.set_tags(self.job(job_id).id, tags)

    # --- The trash --------------------------------------------------------------------------------------------

    def delete(self, job_id: str) -> None:
        """Put a job of theirs that is over into the trash. Raises as `trash.throw_away`."""
        trash.throw_away(self._library, self.job(job_id).id)
        trash.empty_old(self._library)
        self._desk.forget_snapshot()

    def restore(self, job_id: str) -> Job:
        """Bring a job of theirs back from the trash. Raises as `trash.restore`."""
        job = trash.restore(self._library, self._thrown(job_id).id)
        self._desk.forget_snapshot()
        return job

    def trashed(self) -> tuple[Trashed, ...]:
        """What they deleted, the newest first."""
        trash.empty_old(self._library)
        return trash.trashed(self._library, None if self.person.is_owner else self.person.id)

    def empty_trash(self) -> int:
        """Delete for good what they deleted. Returns how many."""
        return trash.empty(self._library, self.trashed())

    def _thrown(self, job_id: str) -> Trashed:
        thrown = trash.get(self._library, job_id)
        if not self.person.is_owner and thrown.owner != self.person.id:
            raise InvalidInputError("This is not in the trash.", "It was restored already, or deleted for good.")
        return thrown

    # --- What is whose ----------------------------------------------------------------------------------------

    def check_owner(self) -> None:
        """Refuse what only the owner may do.

        Raises:
            InvalidInputError: it is a visitor.
        """
        if not self.person.is_owner:
            raise InvalidInputError("Only the owner of this page can do that.", "Ask them, or log in as the owner.")

    def words_of(self, error: OviStudioError | str) -> str:
        """What this person is told of an error: a visitor nothing that names a file of this machine."""
        text = str(error)
        if self.person.is_owner or not _ABSOLUTE_PATH.search(text):
            return text
        return "That cannot be done. Ask the owner of this page."

    def _owns(self, job: Job) -> bool:
        return self.person.is_owner or job.owner == self.person.id

    def _owned(self, jobs: Sequence[Job]) -> tuple[Job, ...]:
        return tuple(filter(self._owns, jobs))

    def _own(self, wanted: Filter) -> Filter:
        return wanted if self.person.is_owner else replace(wanted, owner=self.person.id)

    def _folder(self) -> Path | None:
        """Where their clips go, apart from the owner's."""
        if self.person.is_owner:
            return None
        folder = default_outputs() / "visitors"
        make_folder(folder)
        return folder

    def _check(self, request: GenerationRequest, takes: int) -> None:
        """Whether a visitor may have `takes` more clips of this kind."""
        if self.person.is_owner:
            return
        limits, steps = self._limits, request.num_inference_steps
        texts = (request.prompt, request.video_negative_prompt or "", request.audio_negative_prompt or "")
        if max(map(len, texts)) > limits.prompt:
            raise InvalidRequestError(
                "The prompt is too long for a visitor.", f"Write up to {limits.prompt} characters."
            )
        if (steps or get_variant(request.variant).defaults.num_inference_steps) > limits.steps:
            raise InvalidRequestError("Those are too many steps for a visitor.", f"Take up to {limits.steps}.")
        if takes > limits.takes:
            raise InvalidRequestError(f"A visitor may ask for {limits.takes} clips at once.", "Take fewer.")
        waiting = len(self.find(Filter((*WAITING, "running"))))
        if waiting + takes > limits.waiting:
            raise InvalidRequestError(
                f"A visitor may have {limits.waiting} clips waiting; you have {waiting}.",
                "Ask for fewer, wait until one is finished, or cancel one.",
            )
        clips = self.find(Filter(("done",)))
        taken = sum(job.output.stat().st_size for job in clips if job.output.exists())
        taken += trash.bytes_kept(trash.trashed(self._library, self.person.id))
        if takes and (len(clips) >= limits.kept or taken >= limits.disk_bytes):
            raise InvalidRequestError(
                "Your clips fill the room that a visitor has here.", "Delete some, and empty the trash."
            )


def _no_job(job_id: str) -> InvalidInputError:
    return InvalidInputError(f"There is no job {job_id!r}.", "Look again at what is there.")
