"""The desk, where something goes wrong that no one foresaw."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovi_studio.events import CancelToken, Event
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.desk import Desk
from ovi_studio.studio.job import Order
from tests.fakes import FakeEngine


class FaultyEngine(FakeEngine):
    def generate(self, request: GenerationRequest, cancel: CancelToken) -> Iterator[Event]:
        raise ZeroDivisionError


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_program_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path / "home"))
    with Desk(tmp_path / "library.db", tmp_path / "clips", FaultyEngine) as desk:
        (job,) = desk.library.add([Order(GenerationRequest.create(prompt="A dog"), tmp_path / "clips", "dog")])
        deadline = time.monotonic() + 30
        while not desk.snapshot().trouble and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "A fault of the program stopped the queue" in desk.snapshot().trouble
        assert desk.library.get(job.id).request == job.request
