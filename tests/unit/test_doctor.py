"""The doctor: each ailment is found, by its name, with what mends it; a healthy machine has none."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ovi_studio import cli
from ovi_studio.runtime.hardware import simulate
from ovi_studio.studio.doctor import Check, Surroundings, examine, look_around
from ovi_studio.weights.catalog import RELEASED, SOURCES
from ovi_studio.weights.inventory import Readiness

CARD = simulate("1x24GB@8.9,ram=64,kernels=all")
AROUND = Surroundings(
    system="Linux",
    wsl=False,
    python="3.12.1",
    packages={"ovi-studio": "1.0", "torch": "2.9.0+cu128", "diffusers": "0.42.1"},
    required=("torch", "diffusers"),
    weights_folder=Path("/data/weights"),
    free_disk_bytes=200 * 10**9,
    models=tuple(Readiness(name, (), 0, ()) for name in RELEASED),
)


def found(hardware=CARD, **changes) -> list[Check]:
    return list(examine(hardware, dataclasses.replace(AROUND, **changes)))


def the(checks: list[Check], name: str, text: str) -> Check:
    (check,) = [check for check in checks if check.name == name and text in check.text]
    return check


def test_a_healthy_machine_has_no_remedy():
    checks = found()
    assert {check.state for check in checks} == {"ok"}
    assert not any(check.remedy for check in checks)


def test_a_card_beside_a_torch_for_cpus_is_a_problem():
    checks = found(dataclasses.replace(CARD, torch_cuda=False), packages=AROUND.packages | {"torch": "2.9.0+cpu"})
    check = the(checks, "torch", "for CPUs only")
    assert check.state == "problem"
    assert "download.pytorch.org/whl/cu" in check.remedy


def test_companions_of_another_torch_are_a_problem():
    packages = AROUND.packages | {"torch": "2.9.0+cpu", "torchvision": "0.24.0", "torchaudio": "2.9.0+cpu"}
    check = the(found(simulate("cpu,ram=64"), packages=packages), "torch", "another torch")
    assert check.state == "problem"
    assert check.remedy == "pip uninstall torchvision"


def test_what_is_not_installed_is_named():
    checks = found(packages={"ovi-studio": "1.0"})
    assert the(checks, "packages", "torch, diffusers").remedy == "pip install torch diffusers"
    assert the(checks, "torch", "not installed").state == "problem"


def test_absent_kernels_say_what_is_used_instead():
    checks = found(simulate("1x24GB@8.9,ram=64,kernels=none"))
    check = the(checks, "attention", "torch's own fused attention is used")
    assert (check.state, check.remedy) == ("note", "pip install flash-attn")
    assert {c.name for c in checks if c.state == "note"} == {"attention", "torchao", "bitsandbytes", "triton"}


def test_windows_and_wsl_have_notes_of_their_own():
    checks = found(simulate("1x24GB@8.9,ram=64,kernels=none"), system="Windows")
    assert "no official wheels for Windows" in the(checks, "attention", "flash-attn").remedy
    assert the(checks, "triton", "not installed").remedy == "pip install triton-windows"
    assert "developer mode" in the(checks, "windows", "links").text
    checks = found(wsl=True, weights_folder=Path("/mnt/c/weights"))
    assert ".wslconfig" in the(checks, "wsl", "64 GB").remedy
    assert "--set" in the(checks, "wsl", "slowly").remedy
    without = dataclasses.replace(simulate("cpu,ram=64"), notes=("There is no NVIDIA card that can be used.",))
    assert "driver in Windows" in the(found(without, wsl=True), "card", "no NVIDIA card").remedy


def test_a_machine_without_a_card_is_no_problem():
    without = dataclasses.replace(simulate("cpu,ram=64"), notes=("There is no NVIDIA card that can be used.",))
    checks = found(without)
    assert "problem" not in {check.state for check in checks}
    assert "nano" in the(checks, "card", "no NVIDIA card").remedy


def test_too_little_memory_is_noted():
    assert the(found(simulate("1x24GB@8.9,ram=8,kernels=all")), "memory", "stream from").state == "note"


def test_missing_weights_come_with_the_command_and_too_small_a_disk_with_another():
    lacks = (SOURCES["fusion-960x960_5s"], SOURCES["tokenizer"])
    models = (*AROUND.models[:1], Readiness("960x960_5s", lacks, 23 * 10**9, ()))
    check = the(found(models=models), "weights", "960x960_5s")
    assert (check.state, check.remedy) == ("missing", "ovi-studio models download 960x960_5s")
    assert "fusion-960x960_5s, tokenizer; about 23.0 GB" in check.text
    check = the(found(models=models, free_disk_bytes=10**10), "weights", "960x960_5s")
    assert "has 10 GB free" in check.text
    assert "--set" in check.remedy


def test_every_state_but_ok_has_a_remedy():
    models = tuple(Readiness(name, (SOURCES["vocoder"],), 1, ()) for name in RELEASED)
    ailing = found(simulate("1x6GB@7.5,ram=8,kernels=none"), packages={}, models=models)
    assert all(check.remedy for check in ailing if check.state != "ok")


def test_this_machine_can_be_looked_at(tmp_path):
    around = look_around(tmp_path / "none" / "weights")
    assert around.packages["torch"]
    assert around.free_disk_bytes > 0
    assert [model.variant for model in around.models] == list(RELEASED)
    assert all(SOURCES["tokenizer"] in model.missing for model in around.models)


def test_the_command_prints_json(tmp_path, monkeypatch, capsysbinary):
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path))
    code = cli.main(["doctor", "--json"])
    report = json.loads(capsysbinary.readouterr().out)
    assert code == (0 if report["healthy"] else 1)
    assert {check["name"] for check in report["checks"]} >= {"python", "torch", "card", "memory", "weights"}
    assert cli.main(["doctor"]) == code
    assert b"models download 960x960_10s" in capsysbinary.readouterr().out


@pytest.mark.parametrize("arguments", ["['doctor']", "['models', 'import', '--help']"])
def test_it_imports_no_torch(arguments, tmp_path):
    code = (
        "import sys; from ovi_studio import cli\n"
        f"try: cli.main({arguments})\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={"OVI_STUDIO_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
    )
