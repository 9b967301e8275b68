"""The cards of one machine behind one engine: all of them for a clip, or each for a clip of its own.

    one runner each ──▶ EnginePool.generate ─┬─▶ whole: a `WorkerEngine` that may use every card
                                             └─▶ single: a `WorkerEngine` a card

The rule: where as many clips wait as there are cards, every card makes clips of its own; where fewer wait, or one card
cannot make them, the next clip has all the cards. It is applied whenever nothing is in the making: clips that come
meanwhile go on as it began. Engines of the other way are closed first, as there is memory for one way only.
"""

import functools
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ovi_studio.engine import Engine
from ovi_studio.engine.worker import WorkerEngine, ovi_engine
from ovi_studio.errors import InvalidInputError
from ovi_studio.events import Cancelled, CancelToken, Event
from ovi_studio.folders import app_folders
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime import memory
from ovi_studio.runtime.execution_plan import ExecutionPlan, Preferences
from ovi_studio.runtime.hardware import MIN_CAPABILITY, Hardware, probe
from ovi_studio.runtime.planner import Planner

_GATHER_SECONDS = 1.0  # guessed: twice what runners take to find that something is queued
_POLL_SECONDS = 0.05  # guessed: how late a cancelled token is noticed; no person feels it


class EnginePool:
    """An `Engine` that makes several clips at once where that is faster; called by as many threads as it has slots.

    Args:
        whole: may use all cards.
        single: one engine a card.
        gather_seconds: how long the first of several clips waits for the others, to know how many there are.
    """

    def __init__(self, whole: Engine, single: Sequence[Engine], gather_seconds: float = _GATHER_SECONDS) -> None:
        self._whole = whole
        self._single = tuple(single)
        self._gather_seconds = gather_seconds
        self._changed = threading.Condition()
        self._waiting = 0
        self._busy: list[Engine] = []
        self._chosen: tuple[Engine, ...] = (whole,)

    @property
    def slots(self) -> int:
        """How many clips it can make at once."""
        return len(self._single)

    def plan(self, request: GenerationRequest) -> ExecutionPlan:
        """See `Engine.plan`: of a clip that has all the cards."""
        return self._whole.plan(request)

    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.generate`. It waits for an engine, from whatever thread."""
        yield from self._with_engine(request, cancel, lambda engine: engine.generate(request, cancel))

    def draw(self, request: GenerationRequest, cancel: CancelToken) -> Generator[Event, None, None]:
        """See `Engine.draw`, and `generate`."""
        yield from self._with_engine(request, cancel, lambda engine: engine.draw(request, cancel))

    def close(self) -> None:
        """See `Engine.close`."""
        for engine in (self._whole, *self._single):
            engine.close()

    def _with_engine(
        self, request: GenerationRequest, cancel: CancelToken, work: Callable[[Engine], Iterator[Event]]
    ) -> Iterator[Event]:
        engine = self._take(request, cancel)
        if engine is None:
            yield Cancelled()
            return
        try:
            yield from work(engine)
        finally:
            with self._changed:
                self._busy.remove(engine)
                self._changed.notify_all()

    def _take(self, request: GenerationRequest, cancel: CancelToken) -> Engine | None:
        """An engine that is free, waited for; None once cancelled."""
        with self._changed:
            self._waiting += 1
            begun = time.monotonic()
            try:
                while not cancel.cancelled:
                    if self._busy or self._may_choose(time.monotonic() - begun, request):
                        free = [engine for engine in self._chosen if engine not in self._busy]
                        if free:
                            self._busy.append(free[0])
                            return free[0]
                    self._changed.wait(_POLL_SECONDS)
            finally:
                self._waiting -= 1
        return None

    def _may_choose(self, waited: float, request: GenerationRequest) -> bool:
        """While nothing is in the making: chooses the way, once it is known how many clips wait."""
        many = self._waiting >= len(self._single)
        if not many and waited < self._gather_seconds:
            return False
        chosen = self._single if many and self._one_card_suffices(request) else (self._whole,)
        if chosen != self._chosen:
            for engine in self._chosen:
                engine.close()
            self._chosen = chosen
        return True

    def _one_card_suffices(self, request: GenerationRequest) -> bool:
        try:
            self._single[0].plan(request)
        except InvalidInputError:
            return False
        return True


def machine_engine(
    output_dir: Path, preferences: Preferences | None = None, look: Callable[[], Hardware] = probe
) -> Engine:
    """The engine for the cards of this machine that may be used: a pool where there are several.

    Args:
        output_dir: existing folder for clips until their caller takes them.
        preferences: what is forced, which cards may be used among it.
        look: finds out what the machine has.
    """
    preferences = preferences or Preferences()
    hardware = look()
    cards = usable_cards(hardware, preferences)
    whole = _worker(output_dir, preferences)
    if len(cards) < 2:
        return whole
    # Each plans for itself, so that the host's memory has to be shared out beforehand.
    host = max(0, hardware.free_ram_bytes - memory.HOST_RESERVE_BYTES) // len(cards)
    limit = min(host, preferences.host_limit_bytes or host)
    single = [_worker(output_dir, replace(preferences, gpus=(card,), host_limit_bytes=limit)) for card in cards]
    return EnginePool(whole, single)


def usable_cards(hardware: Hardware, preferences: Preferences) -> list[int]:
    """The numbers of the cards that torch can work on and that may be used."""
    return [
        number
        for number, card in enumerate(hardware.cards if hardware.torch_cuda else ())
        if card.compute_capability >= MIN_CAPABILITY and number in (preferences.gpus or [number])
    ]


def _worker(output_dir: Path, preferences: Preferences) -> WorkerEngine:
    make = functools.partial(ovi_engine, preferences=preferences)
    return WorkerEngine(output_dir, make, Planner(app_folders().cache, preferences))
