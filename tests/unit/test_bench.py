"""`ovi-studio bench`: rates are measured, kept, and plans stand on them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ovi_studio.cli import main
from ovi_studio.folders import HOME_VARIABLE, app_folders
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime import measure
from ovi_studio.runtime.calibration import Calibration
from ovi_studio.runtime.hardware import simulate
from ovi_studio.runtime.plan import plan
from ovi_studio.runtime.rates import Rates
from ovi_studio.variants import get_variant

HOPPER = simulate("1x80GB@9.0,ram=128,kernels=triton+flash_attn_interface+flash_attn")
REQUEST = GenerationRequest.create(prompt="any", variant="720x720_5s").resolved()


def test_rates_are_measured_and_survive_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    machine = simulate("cpu,ram=16")
    rates = measure.measure_rates(torch.device("cpu"), Rates.of(machine, None))
    assert rates.kernels == {"native": 1.0}
    assert 0 < rates.convolution < 1
    Calibration(tmp_path / "calibration.json").keep("the CPU", rates)
    assert Calibration(tmp_path / "calibration.json").rates(machine) == rates


def test_the_best_measured_kernel_is_chosen() -> None:
    """Guessed shares count until there are measured ones; a kernel that is installed and failed is not chosen."""
    variant, believed = get_variant("720x720_5s"), Rates.of(HOPPER, HOPPER.cards[0])
    assert plan(REQUEST, variant, HOPPER).attention_backend == "_flash_3"
    for kernels, best in (
        ({"native": 0.7, "_native_cudnn": 1.0, "_flash_3": 0.9}, "_native_cudnn"),
        ({"native": 0.7, "_native_cudnn": 0.8}, "_native_cudnn"),
        ({"native": 1.0, "_flash_3": 0.9, "sage": 1.4}, "native"),  # sage is approximate: for the wish 'fast' alone
    ):
        rates = dataclasses.replace(believed, kernels=kernels)
        assert plan(REQUEST, variant, HOPPER, rates=rates).attention_backend == best


def test_bench_keeps_what_it_measured_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr("ovi_studio.runtime.hardware.probe", lambda: simulate("cpu,ram=16"))
    assert main(["bench", "--steps", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kernels"] == {"native": 1.0}
    assert set(result["stages"]) == {"load", "encode text", "denoise", "decode", "mux"}
    assert all(pair["measured"] >= 0 and pair["predicted"] >= 0 for pair in result["stages"].values())
    kept = Calibration(app_folders().cache / "calibration.json").rates(simulate("cpu,ram=16"))
    assert kept is not None
    assert kept.kernels == {"native": 1.0}
