"""How long what waits will take: by what was measured where there is something, else by the plan."""

import json
import statistics
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ovi_studio.errors import OviStudioError
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.desk import Snapshot
from ovi_studio.studio.job import Job
from ovi_studio.studio.library import Library

_NEWEST = 5  # clips whose mean counts; guessed: enough to be steady, few enough to follow a change of settings
_IDLE_FIELDS = ("prompt", "seed", "video_negative_prompt", "audio_negative_prompt")  # they change no plan's seconds

Seconds = Callable[[GenerationRequest], float]


@dataclass(frozen=True)
class Place:
    """Where a waiting job stands.

    Args:
        number: in the queue, 1 is next; 0 while it is paused.
        seconds: that it will take; None where nobody can say.
        until: seconds from the end of the run under way until it is done; None while it is paused.
    """

    number: int
    seconds: float | None
    until: float | None


class Forecast:
    """Looks ahead over the queue. Its methods may be called from any thread.

    Args:
        library: where what was made is looked up.
        plan: the seconds that a request would take, as planned.
    """

    def __init__(self, library: Library, plan: Seconds) -> None:
        self._library = library
        self._plan = plan
        self._lock = threading.Lock()
        self._ended: tuple[str, ...] = ()
        self._measured: dict[str, float | None] = {}  # by variant
        self._planned: dict[str, float | None] = {}  # by settings
        self._known: dict[str, tuple[str, float | None]] = {}  # by job: its request, and the seconds

    def places(self, now: Snapshot) -> Mapping[str, Place]:
        """The place of every waiting job, by id."""
        with self._lock:
            ended = tuple(job.id for job in now.ended)
            if ended != self._ended:
                self._ended = ended
                self._measured, self._known = {}, {}
            places = {}
            number, until = 0, 0.0
            for job in now.waiting:
                seconds = self._seconds(job)
                if job.status == "paused":
                    places[job.id] = Place(0, seconds, None)
                    continue
                number, until = number + 1, until + (seconds or 0.0)
                places[job.id] = Place(number, seconds, until)
            self._known = {job_id: known for job_id, known in self._known.items() if job_id in places}
            return places

    def _seconds(self, job: Job) -> float | None:
        request, seconds = self._known.get(job.id, ("", None))
        if request != job.request_json:
            seconds = self._look(job)
            self._known[job.id] = job.request_json, seconds
        return seconds

    def _look(self, job: Job) -> float | None:
        fields = json.loads(job.request_json)
        variant = str(fields.get("variant", ""))
        if variant not in self._measured:
            newest = self._library.newest_seconds(variant, _NEWEST)
            self._measured[variant] = statistics.fmean(newest) if newest else None
        if self._measured[variant] is not None:
            return self._measured[variant]
        settings = json.dumps({name: value for name, value in fields.items() if name not in _IDLE_FIELDS})
        if settings not in self._planned:
            try:
                self._planned[settings] = self._plan(job.request)
            except OviStudioError:  # it cannot be made as it is: the run will tell
                self._planned[settings] = None
        return self._planned[settings]
