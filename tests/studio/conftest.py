"""A library, a folder for clips and a runner over a fake engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ovi_studio.request import GenerationRequest
from ovi_studio.studio.job import Job, Order
from ovi_studio.studio.library import Library
from ovi_studio.studio.runner import Runner
from tests.fakes import FakeEngine


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library(tmp_path / "library.db", timeout=2) as library:
        yield library


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    return folder


@pytest.fixture
def ask(library: Library, clips: Path) -> Callable[..., Job]:
    """Puts one job into the queue."""

    def ask(prompt: str = "A dog barks.", *, stem: str = "dog", name: str = "", **fields: Any) -> Job:
        return library.add([Order(GenerationRequest.create(prompt=prompt, **fields), clips, stem, name)])[0]

    return ask


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    work = tmp_path / "work"
    work.mkdir()
    return FakeEngine(work)


@pytest.fixture
def runner(library: Library, engine: FakeEngine) -> Runner:
    return Runner(library, engine, engine.folder)
