"""Several runners at one batch."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ovi_studio.events import CancelToken, Event
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.batch import Batch, run_batch_together, take_up
from ovi_studio.studio.job import Job
from ovi_studio.studio.library import Library
from ovi_studio.studio.rows import BatchRow
from ovi_studio.studio.runner import Runner
from tests.fakes import FakeEngine


class BrokenEngine(FakeEngine):
    """Raises what nobody foresaw, in the middle of a run."""

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        yield from list(super().generate(request, cancel))[:2]
        raise ZeroDivisionError


@pytest.fixture
def batch(library: Library, clips: Path) -> Batch:
    requests = [GenerationRequest.create(prompt=f"Clip {n}.", seed=n) for n in range(8)]
    return take_up(library, [BatchRow(n + 2, each, "", ()) for n, each in enumerate(requests)], clips)


def run(library: Library, batch: Batch, engines: list[FakeEngine], stop: CancelToken) -> list[Job]:
    told: list[Job] = []
    runners = [Runner(library, engine, engine.folder, batch=batch.name) for engine in engines]
    run_batch_together(library, runners, batch, stop, keep_going=True, tell=told.append)
    return told


def test_they_share_the_rows(library: Library, batch: Batch, clips: Path) -> None:
    engines = [FakeEngine(clips, step_seconds=0.05), FakeEngine(clips, step_seconds=0.05)]
    told = run(library, batch, engines, CancelToken())
    assert sorted(job.seed for job in told) == list(range(8))
    assert {job.status for job in batch.jobs(library)} == {"done"}
    made = [request.seed for engine in engines for request in engine.requests]
    assert set(made) == set(range(8))
    assert len(made) == 8
    assert all(engine.requests for engine in engines)


def test_an_error_stops_all_and_is_raised(library: Library, batch: Batch, clips: Path) -> None:
    stop = CancelToken()
    with pytest.raises(ZeroDivisionError):
        run(library, batch, [FakeEngine(clips, step_seconds=0.2), BrokenEngine(clips)], stop)
    assert stop.cancelled
    statuses = [job.status for job in batch.jobs(library)]
    assert "running" not in statuses
    assert "queued" in statuses
