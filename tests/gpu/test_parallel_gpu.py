"""What only graphics cards can show of a shared run; see docs/gpu-checklist.md."""

import dataclasses
import os
import signal
import time
from typing import Any

import pytest
import torch

from ovi_studio.events import CancelToken, Failed, Finished, StepDone
from ovi_studio.model.attention import KeyValue
from ovi_studio.runtime.execution_plan import ComponentPlan, Parallel
from ovi_studio.runtime.sequence import attention_with_lse
from tests.parallel.test_crew import ONE, REQUEST, assert_same_clip, engine_of, make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
two_cards = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA cards")
SHARDED = ComponentPlan("float32", "sharded", "card")


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_attention_tells_the_right_lse(dtype, error):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 157, 6, 128), torch.randn(2, 1001, 6, 128), torch.randn(2, 1001, 6, 128)
    expected = attention_with_lse(query, KeyValue(key, value))
    found = attention_with_lse(*_on_card(query, key, value, dtype))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, atol=error, rtol=error)


def _on_card(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dtype: torch.dtype) -> Any:
    query, key, value = (x.to("cuda", dtype) for x in (query, key, value))
    return query, KeyValue(key, value)


def on_cards(guidance_groups: int, sequence: int, **changes: Any) -> Any:
    devices = tuple(f"cuda:{index}" for index in range(guidance_groups * sequence))
    parallel = Parallel(len(devices), guidance_groups, sequence, devices)
    guidance = "split" if guidance_groups > 1 else "batched"
    split = {"parallel": parallel, "vae_tiling": "split", "guidance": guidance}
    return dataclasses.replace(ONE, device="cuda:0", **{**split, **changes})


def with_transformer(part: ComponentPlan) -> dict[str, Any]:
    return {"components": {**ONE.components, "transformer": part}}


@two_cards
@pytest.mark.parametrize("layout", [(2, 1), (1, 2)])
@pytest.mark.parametrize("place", ["resident", "staged", "streamed", "sharded", "compiled"])
def test_two_cards_give_the_clip_of_one(tmp_path, layout, place):
    placements = {
        "sharded": SHARDED,
        "staged": ComponentPlan("float32", "staged", "host"),
        "streamed": ComponentPlan("float32", "streamed", "host", 4, 1),
    }
    changes = with_transformer(placements[place]) if place in placements else {"compile": place == "compiled"}
    with engine_of(dataclasses.replace(ONE, device="cuda:0"), tmp_path) as engine:
        alone = make(engine)[-1]
    with engine_of(on_cards(*layout, **changes), tmp_path) as engine:
        assert_same_clip(make(engine)[-1], alone)


@two_cards
def test_a_rank_killed_while_nccl_waits_ends_the_run(tmp_path):
    with engine_of(on_cards(1, 2), tmp_path) as engine:
        last = None
        for event in engine.generate(REQUEST, CancelToken()):
            if isinstance(event, StepDone) and event.step == 1 and engine._crew is not None:
                os.kill(engine._crew.pids[0], signal.SIGKILL)
                killed = time.monotonic()
            last = event
        assert isinstance(last, Failed)
        assert time.monotonic() - killed < 10
        assert isinstance(make(engine)[-1], Finished)
