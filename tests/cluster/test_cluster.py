"""`ClusterEngine` over a real cluster of two nodes, with fake engines."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import PIL.Image
import pytest

from ovi_studio.engine.cluster import ClusterEngine, slots_of
from ovi_studio.engine.node import PIECE_BYTES, Needs, _share_of
from ovi_studio.engine.worker import WorkerEngine
from ovi_studio.errors import EngineError, InvalidInputError
from ovi_studio.events import Cancelled, CancelToken, Event, Failed, Finished, FrameDrawn, StageStarted, StepDone
from ovi_studio.images import image_digest
from ovi_studio.request import Adapter, GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.runtime.execution_plan import Preferences
from ovi_studio.runtime.hardware import simulate
from tests.cluster import engines
from tests.cluster.conftest import Machines
from tests.fakes import FakeEngine

pytestmark = pytest.mark.distributed

Make = Callable[..., ClusterEngine]


def asked(prompt: str = "A dog barks.", **fields: object) -> GenerationRequest:
    return GenerationRequest.create(prompt=prompt, **({"seed": 1} | fields))


def worker_of_dying(folder: Path) -> WorkerEngine:
    return WorkerEngine(folder, engines.DyingEngine)


def run(events: Iterator[Event]) -> list[Event]:
    return list(events)


# --- Without a cluster ----------------------------------------------------------------------------------------


def node(**resources: float) -> dict[str, object]:
    return {"Alive": True, "Resources": resources}


def test_without_cards_every_node_with_processors_is_a_slot() -> None:
    nodes = [node(), node(CPU=4.0), node(CPU=8.0), {"Alive": False, "Resources": {"CPU": 4.0}}]
    assert slots_of(nodes, 1) == [[{"CPU": 4.0}, {"CPU": 8.0}]]


def test_with_cards_only_they_count_and_processors_are_shared_out() -> None:
    nodes = [node(CPU=64.0), node(CPU=32.0, GPU=4.0), node(GPU=1.0)]
    assert slots_of(nodes, 1) == [[{"GPU": 1.0, "CPU": 8.0}]] * 4 + [[{"GPU": 1.0}]]
    assert slots_of(nodes, 2) == [[{"GPU": 2.0, "CPU": 16.0}]] * 2


@pytest.mark.parametrize("nodes", [[], [node()], [node(CPU=8.0, GPU=1.0)]])
def test_a_cluster_without_room(nodes: list[dict[str, object]]) -> None:
    with pytest.raises(EngineError, match="2 cards"):
        slots_of(nodes, 2)


def test_needs() -> None:
    requests = [
        asked(),
        asked(variant="960x960_10s", adapters=(Adapter(id="b"), Adapter(id="a"))),
        asked(variant="960x960_10s", first_frame=GeneratedFrame()),
    ]
    assert Needs.of(requests) == Needs(("960x960_10s", "nano"), ("a", "b"), image_model=True)


def test_engines_of_a_machine_share_its_memory() -> None:
    whole = simulate("4x24GB@8.9,ram=68")
    assert _share_of(replace(whole, cards=whole.cards[:1]), whole).host_limit_bytes < 17 << 30
    assert _share_of(whole, whole) == Preferences()
    alone = simulate("cpu,ram=16")
    assert _share_of(alone, alone) == Preferences()


# --- A run ------------------------------------------------------------------------------------------------------


def test_a_clip_comes_back_with_all_its_events(make: Make, tmp_path: Path) -> None:
    engine = make(FakeEngine)
    assert engine.slots == 2
    events = run(engine.generate(asked(), CancelToken()))
    there = tmp_path / "there"
    there.mkdir()
    alone = run(FakeEngine(there).generate(asked(), CancelToken()))
    assert events[:-1] == alone[:-1]
    path = events[-1].clip.path
    assert path.parent == tmp_path / "here"
    assert path.read_bytes() == alone[-1].clip.path.read_bytes()
    assert engine.plan(asked()).variant == "nano"


def test_as_many_at_once_as_there_are_nodes(make: Make, tmp_path: Path) -> None:
    engine = make(partial(engines.slow_engine, step_seconds=0.5))
    found: list[Event] = []
    threads = [
        threading.Thread(target=lambda n=n: found.extend(engine.generate(asked(seed=n), CancelToken())))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.2)
    assert sum(isinstance(event, StageStarted) and event.stage == "load" for event in found) == 2
    for thread in threads:
        thread.join()
    assert sum(isinstance(event, Finished) for event in found) == 3
    assert len(list((tmp_path / "here").glob("*.mp4"))) == 3


def test_a_large_clip_comes_in_pieces(make: Make, tmp_path: Path) -> None:
    request = asked(variant="960x960_10s")
    there = tmp_path / "there"
    there.mkdir()
    alone = run(FakeEngine(there).generate(request, CancelToken()))[-1].clip.path.read_bytes()
    assert len(alone) > PIECE_BYTES
    assert run(make(FakeEngine).generate(request, CancelToken()))[-1].clip.path.read_bytes() == alone


def test_the_first_frame_goes_along(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "first.png"
    PIL.Image.new("RGB", (64, 64), "red").save(path)
    frame = ImageFrame(path=str(path), name="first.png", sha256=image_digest(path))
    engine = make(engines.FrameEngine)
    last = run(engine.generate(asked(first_frame=frame), CancelToken()))[-1]
    assert isinstance(last, Finished), last
    gone = frame.model_copy(update={"path": str(tmp_path / "gone.png")})
    last = run(engine.generate(asked(first_frame=gone), CancelToken()))[-1]
    assert isinstance(last, Failed)
    assert "gone.png cannot be read" in last.problem


def test_a_drawn_frame_comes_back(make: Make, tmp_path: Path) -> None:
    engine = make(FakeEngine)
    request = asked(first_frame=GeneratedFrame(seed=5))
    last = run(engine.draw(request, CancelToken()))[-1]
    assert last == FrameDrawn(tmp_path / "here" / "frame-5.png", 5)
    assert last.path.read_bytes().startswith(b"\x89PNG")


def test_cancelled_within_a_step(make: Make) -> None:
    engine = make(engines.LongStepEngine)
    cancel = CancelToken()
    events = engine.generate(asked(), cancel)
    assert isinstance(next(events), StepDone)
    cancel.cancel()
    begun = time.monotonic()
    assert run(events) == [Cancelled()]
    assert time.monotonic() - begun < 5


def test_leaving_a_run_frees_its_node(make: Make) -> None:
    engine = make(engines.LongStepEngine)
    for _ in range(3):  # on two nodes
        events = engine.generate(asked(), CancelToken())
        assert isinstance(next(events), StepDone)
        events.close()


def test_finishing_early(make: Make) -> None:
    engine = make(engines.PatientEngine)
    cancel = CancelToken()
    events = engine.generate(asked(), cancel)
    next(events)
    cancel.finish_early()
    assert isinstance(run(events)[-1], Finished)


# --- What goes wrong --------------------------------------------------------------------------------------------


def test_nodes_that_lack_something_are_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"On the node \S+ \(\w+\): Weights are missing\..* Download them there"):
        make(partial(engines.only_on, marker=tmp_path / "marker"))


def test_a_process_that_dies_is_told_as_on_one_machine(make: Make) -> None:
    engine = make(worker_of_dying)
    last = run(engine.generate(asked(), CancelToken()))[-1]
    assert isinstance(last, Failed)
    assert last.problem.startswith("On the node ")
    assert "exit code 3" in last.problem


def test_a_run_that_takes_nodes_down_is_given_up(make: Make) -> None:
    engine = make(engines.DyingEngine)
    last = run(engine.generate(asked(), CancelToken()))[-1]
    assert isinstance(last, Failed)
    assert "3 nodes were lost over this clip" in last.problem


def test_an_engine_that_raises_ends_its_run(make: Make) -> None:
    last = run(make(engines.BreakingEngine).generate(asked(), CancelToken()))[-1]
    assert isinstance(last, Failed)
    assert "stopped without a clip" in last.problem


def test_a_full_cluster(make: Make) -> None:
    make(FakeEngine)  # has all nodes
    with pytest.raises(EngineError, match="has been free for 3 s"):
        make(FakeEngine, patience=3.0)


def test_wrong_number_of_cards(machines: Machines, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="0 cards"):
        ClusterEngine(tmp_path, FakeEngine, gpus=0)


@pytest.mark.slow
def test_a_lost_node(make: Make, machines: Machines) -> None:
    """It takes a node, and gives another one."""
    engine = make(partial(engines.slow_engine, step_seconds=1.0))
    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(run, engine.generate(asked(seed=seed), CancelToken())) for seed in range(2)]
        time.sleep(2.5)
        machines.kill(0)
        ends = [each.result() for each in runs]  # both on the node that is left, in turn
    assert [type(events[-1]) for events in ends] == [Finished, Finished]
    assert sorted(
        sum(isinstance(event, StageStarted) and event.stage == "load" for event in each) for each in ends
    ) == [1, 2]
    machines.nodes.append(machines.add("spare"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(slot.answered for slot in engine._idle):
        time.sleep(0.2)
    assert sorted(slot.fault() is None for slot in engine._idle) == [True, True]
    assert any("spare" in slot.name for slot in engine._idle)
