import json
from pathlib import Path

import pytest

from ovi_studio.runtime import costs

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def newest():
    """Of every knob, its last measurement on nano."""
    lines = [line for file in sorted(RESULTS.glob("*-speed.jsonl")) for line in file.read_text().splitlines()]
    runs = [run for run in map(json.loads, lines) if run["benchmark"] == "quality_of_speed" and run["model"] == "nano"]
    return {name: measured for run in runs for name, measured in run["knobs"].items() if "PSNR" in measured}


@pytest.mark.parametrize("name", costs.MEASURED)
def test_a_cost_is_what_was_measured_last(name):
    measured = newest()[name]
    cost = costs.MEASURED[name]
    assert cost.times == pytest.approx(measured["times as fast"], abs=0.005)
    assert cost.psnr == pytest.approx(measured["PSNR"], abs=0.05)


def test_costs_are_told_at_the_nearest_share():
    assert "half the steps" in costs.of_steps(0.4)
    assert "a quarter of the steps" in costs.of_steps(0.3)
    assert "0.8 of them" in costs.of_guidance(0.7)
    assert "0.5 of them" in costs.of_guidance(0.6)
    told = (costs.of_precision("fp8_compute"), costs.of_steps(0.1), costs.of_guidance(0.2), costs.of_step_cache(0.3))
    assert set(told) == {costs.UNMEASURED}
