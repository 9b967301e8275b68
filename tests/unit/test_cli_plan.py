"""`ovi-studio plan`: what it prints, and how it refuses."""

import json

import pytest

from ovi_studio.cli import main
from ovi_studio.runtime.execution_plan import ExecutionPlan

CARD = "1x24GB@8.9,ram=64"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_plan_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--model", "720x720_5s", "--size", "704x704", "--simulate", CARD)
    assert code == 0
    for words in ("transformer", "fp8 compute", "Stages", "Why", "Turned down", "usable card memory"):
        assert words in out


def test_a_plan_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--model", "960x960_10s", "--size", "960x960", "--simulate", CARD, "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["components"]["transformer"]["precision"] == "fp8_compute"
    assert {"precision", "placement"} <= set(plan["components"]["transformer"])
    assert all({"peak_gpu_bytes", "peak_host_bytes", "seconds"} <= set(stage) for stage in plan["stages"].values())
    assert {"peak_gpu_bytes", "peak_host_bytes", "seconds", "parallel", "reasons", "rejected"} <= set(plan)
    assert plan["peak_gpu_bytes"] == max(stage["peak_gpu_bytes"] for stage in plan["stages"].values())
    assert ExecutionPlan.from_json(plan).to_json() == plan


def test_a_plan_that_draws_the_first_frame(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--model", "720x720_5s", "--draw-frame", "--simulate", CARD, "--json")
    assert code == 0
    plan = json.loads(out)
    assert next(iter(plan["stages"])) == "draw frame"
    assert plan["components"]["flux_transformer"]["precision"] == "int8"
    code, _, err = run(capsys, "--draw-frame", "--simulate", "cpu,ram=64")
    assert code == 2
    assert "Give an image" in err


def test_this_machine_can_run_nano(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    assert out.startswith("nano at 96x96")


@pytest.mark.parametrize(
    ("part", "check"),
    [
        ("transformer_precision=int8", lambda plan: plan["components"]["transformer"]["precision"] == "int8"),
        ("text_cache=false", lambda plan: plan["text_cache"] is False),
        ("gpu_limit_bytes=12GB", lambda plan: plan["peak_gpu_bytes"] < 12 * 2**30),
    ],
)
def test_parts_are_forced(capsys: pytest.CaptureFixture[str], part: str, check) -> None:
    code, out, _ = run(capsys, "--model", "720x720_5s", "--simulate", CARD, "--set", part, "--json")
    assert code == 0
    assert check(json.loads(out))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "720x720_5s", "--simulate", "cpu,ram=16"], "nano"),
        (["--model", "960x960_10s", "--simulate", "1x4GB@8.6,ram=16"], "GB"),
        (["--model", "720x720"], "Did you mean '720x720_5s'"),
        (["--size", "9x9"], "pixels"),
        (["--quality", "best"], "'smallest'"),
        (["--simulate", "a toaster"], "1x24GB@8.9"),
        (["--set", "colour=red"], "transformer_precision"),
        (["--set", "compile=perhaps"], "compile"),
    ],
)
def test_the_impossible_ends_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
