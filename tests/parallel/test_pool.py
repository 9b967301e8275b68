"""Several cards and a queue: a clip each where enough wait, all for one clip where not."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ovi_studio.engine import slots
from ovi_studio.engine.pool import EnginePool, machine_engine, usable_cards
from ovi_studio.engine.worker import WorkerEngine
from ovi_studio.errors import InvalidInputError
from ovi_studio.events import Cancelled, CancelToken, Finished
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.execution_plan import Preferences
from ovi_studio.runtime.hardware import simulate
from ovi_studio.studio.batch import run_batch_together, take_up
from ovi_studio.studio.library import Library
from ovi_studio.studio.rows import BatchRow
from ovi_studio.studio.runner import Runner
from tests.fakes import FakeEngine

REQUEST = GenerationRequest.create(prompt="A red face.", seed=1)


@dataclass
class Card(FakeEngine):
    """An engine that tells when it works, and refuses what it has no room for."""

    at_work: list["Card"] = field(default_factory=list)
    most: list[int] = field(default_factory=list)
    fits: bool = True

    def plan(self, request):
        if not self.fits:
            raise InvalidInputError("It does not fit.", "Take another.")
        return super().plan(request)

    def generate(self, request, cancel):
        self.closed = False
        self.at_work.append(self)
        self.most.append(len(self.at_work))
        try:
            yield from super().generate(request, cancel)
        finally:
            self.at_work.remove(self)


@dataclass
class Cards:
    pool: EnginePool
    whole: Card
    single: list[Card]

    def make(self, clips: int) -> None:
        """So many clips, asked for at once."""
        ends: list[object] = []

        def run() -> None:
            *_, last = self.pool.generate(REQUEST, CancelToken())
            ends.append(last)

        threads = [threading.Thread(target=run) for _ in range(clips)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(ends) == clips
        assert all(isinstance(end, Finished) for end in ends)

    @property
    def made(self) -> tuple[int, int]:
        """Clips of all cards together, and of single ones."""
        return len(self.whole.requests), sum(len(card.requests) for card in self.single)


@pytest.fixture
def cards(tmp_path: Path) -> Iterator[Cards]:
    at_work: list[Card] = []
    most: list[int] = []
    whole, *single = (Card(tmp_path, step_seconds=0.05, at_work=at_work, most=most) for _ in range(4))
    pool = EnginePool(whole, single, gather_seconds=0.8)
    with contextlib.closing(pool):
        yield Cards(pool, whole, single)
    assert all(card.closed for card in (whole, *single))


def test_one_clip_has_all_the_cards(cards):
    cards.make(1)
    cards.make(2)
    assert cards.made == (3, 0)
    assert max(cards.whole.most) == 1


def test_as_many_clips_as_cards_have_one_each(cards):
    cards.make(3)
    assert cards.made == (0, 3)
    assert max(cards.whole.most) == 3
    assert [len(card.requests) for card in cards.single] == [1, 1, 1]


def test_clips_that_follow_go_on_as_it_began(cards):
    """Of four, the last begins while others are in the making: on a card, although it waits alone."""
    cards.single[0].steps = 20
    cards.make(4)
    assert cards.made == (0, 4)


def test_the_other_way_gives_its_memory_back_first(cards):
    cards.make(1)
    assert not cards.whole.closed
    cards.make(3)
    assert cards.whole.closed
    cards.make(1)
    assert [card.closed for card in cards.single] == [True] * 3
    assert cards.made == (2, 3)


def test_what_one_card_cannot_make_has_all(cards):
    cards.single[0].fits = False
    cards.make(3)
    assert cards.made == (3, 0)


def test_who_waits_can_leave(cards):
    cancel = CancelToken()
    threading.Timer(0.1, cancel.cancel).start()
    began = time.monotonic()
    assert list(cards.pool.generate(REQUEST, cancel)) == [Cancelled()]
    assert time.monotonic() - began < 0.6
    cards.make(3)


def test_a_queue_feeds_all_cards_and_makes_nothing_twice(cards, tmp_path):
    rows = tuple(BatchRow(n, GenerationRequest.create(prompt=f"Clip {n}.", seed=n), "", ()) for n in range(6))
    with Library(tmp_path / "library.db") as library:
        batch = take_up(library, rows, tmp_path)
        runners = [Runner(library, cards.pool, tmp_path, batch=batch.name) for _ in range(slots(cards.pool))]
        run_batch_together(library, runners, batch, CancelToken(), keep_going=False)
        assert [job.status for job in batch.jobs(library)] == ["done"] * 6
    assert cards.made == (0, 6)
    assert sorted(request.seed for card in cards.single for request in card.requests) == list(range(6))


def test_a_machine_of_several_cards_has_a_pool(tmp_path):
    machine = simulate("4x24GB@8.9,ram=64")
    assert slots(machine_engine(tmp_path, look=lambda: machine)) == 4
    assert slots(machine_engine(tmp_path, Preferences(gpus=(0, 3)), lambda: machine)) == 2
    assert isinstance(machine_engine(tmp_path, Preferences(gpus=(2,)), lambda: machine), WorkerEngine)
    assert isinstance(machine_engine(tmp_path, look=lambda: simulate("cpu,ram=16")), WorkerEngine)
    assert usable_cards(simulate("2x24GB@7.0,ram=64"), Preferences()) == []


def test_the_cards_share_the_memory_of_the_machine(tmp_path):
    machine = simulate("4x24GB@8.9,ram=65")
    pool = machine_engine(tmp_path, look=lambda: machine)
    assert isinstance(pool, EnginePool)
    limits = [engine._planner._preferences for engine in pool._single if isinstance(engine, WorkerEngine)]
    assert [(limit.gpus, limit.host_limit_bytes) for limit in limits] == [((n,), 16 * 2**30) for n in range(4)]
