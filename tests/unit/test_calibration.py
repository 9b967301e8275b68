"""What runs teach about the machine: predictions come nearer, and a damaged file costs nothing but that."""

import dataclasses
from pathlib import Path

import pytest

from ovi_studio.events import Progress, Stage
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.calibration import Calibration
from ovi_studio.runtime.hardware import Hardware, Held, simulate
from ovi_studio.runtime.planner import Planner

REQUEST = GenerationRequest.create(prompt="any", variant="720x720_5s").resolved()
MACHINE = simulate("1x24GB@8.9,ram=64")
# This machine denoises at half and decodes at twice the speed of its kind.
SLOWER: dict[Stage, float] = {"load": 1.0, "encode text": 1.0, "denoise": 2.0, "decode": 0.5, "mux": 1.0}


def planner_of(folder: Path, machine: Hardware = MACHINE) -> Planner:
    return Planner(folder, look=lambda: machine)


def test_predictions_converge(tmp_path: Path) -> None:
    first = planner_of(tmp_path).plan(REQUEST)
    truth = {stage: planned.seconds * SLOWER[stage] for stage, planned in first.stages.items()}
    for _ in range(6):
        planner = planner_of(tmp_path)  # what was learnt is in the file
        planner.learn(planner.plan(REQUEST), truth)
    taught = planner_of(tmp_path).plan(REQUEST)
    for stage in ("denoise", "decode"):
        assert taught.stages[stage].seconds == pytest.approx(truth[stage], rel=0.1)
    assert "calibrated" in " ".join(taught.reasons)


def test_seconds_left_are_right_from_the_second_step_on(tmp_path: Path) -> None:
    """Told by a taught plan while a run passes that takes just what the machine takes."""
    first = planner_of(tmp_path).plan(REQUEST)
    truth = {stage: planned.seconds * SLOWER[stage] for stage, planned in first.stages.items()}
    for _ in range(6):
        planner = planner_of(tmp_path)
        planner.learn(planner.plan(REQUEST), truth)
    plan = planner_of(tmp_path).plan(REQUEST)
    now = 0.0
    progress = Progress({stage: planned.seconds for stage, planned in plan.stages.items()}, clock=lambda: now)
    progress.start_stage("denoise")
    to_come = truth["decode"] + truth["mux"]
    for step in range(1, 51):
        now += truth["denoise"] / 50
        progress.finish_step(step, 50)
        if step >= 2:
            left = truth["denoise"] * (1 - step / 50) + to_come
            assert progress.seconds_left == pytest.approx(left, rel=0.15)


def test_short_stages_and_other_devices_teach_nothing(tmp_path: Path) -> None:
    calibration = Calibration(tmp_path / "calibration.json")
    plan = planner_of(tmp_path).plan(REQUEST)
    calibration.learn(plan, {"denoise": 0.01, "decode": 0.0}, MACHINE)
    assert planner_of(tmp_path).plan(REQUEST).stages == plan.stages
    assert Calibration(tmp_path / "calibration.json").rates(simulate("1x80GB@9.0,ram=64")) is None
    assert Calibration(tmp_path / "calibration.json").rates(simulate("cpu,ram=16")) is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"simulated 24 GB card": {"matmul": -1}}', "\x00"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content)
    planner = planner_of(tmp_path)
    plan = planner.plan(REQUEST)
    planner.learn(plan, {"denoise": plan.stages["denoise"].seconds})
    assert planner_of(tmp_path).plan(REQUEST).stages["denoise"].seconds == pytest.approx(plan.stages["denoise"].seconds)


def test_a_folder_that_cannot_be_written_costs_only_the_lesson(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    planner = planner_of(tmp_path / "file")
    planner.learn(planner.plan(REQUEST), {"denoise": 100.0})


def test_what_is_held_counts_as_free(tmp_path: Path) -> None:
    busy = simulate("1x24GB@8.9,ram=64,free=4,ramfree=8")
    whole = planner_of(tmp_path).plan(REQUEST)
    held = planner_of(tmp_path, busy).plan(REQUEST, Held(56 * 2**30, {"cuda:0": 20 * 2**30}))
    assert held.components == whole.components


def test_what_is_held_is_on_the_card_that_holds_it(tmp_path: Path) -> None:
    """The second card was the better one, and has become full by the run before: the next run stays there."""
    machine = simulate("2x24GB@8.9,ram=64")
    first, second = (
        dataclasses.replace(card, free_bytes=gb * 2**30) for card, gb in zip(machine.cards, (8, 4), strict=True)
    )
    machine = dataclasses.replace(machine, cards=(first, second))
    plan = planner_of(tmp_path, machine).plan(REQUEST, Held(0, {"cuda:1": 20 * 2**30}))
    assert plan.device == "cuda:1"
    assert plan.gpu_budget_bytes > 20 * 2**30
