"""Plans for nano, made by hand: everything resident in float32 on the CPU unless told otherwise."""

import dataclasses
from typing import Any

from ovi_studio.events import STAGES
from ovi_studio.runtime.execution_plan import ComponentPlan, ExecutionPlan, Parallel, StagePlan

PLAIN = ComponentPlan("float32", "resident", "card")


def streamed(precision: str = "float32", home: str = "host", resident: int = 0, outside: bool = True) -> ComponentPlan:
    return ComponentPlan(precision, "streamed", home, 4, resident, outside)


def plan_of(device: str = "cpu", default: ComponentPlan = PLAIN, **changes: Any) -> ExecutionPlan:
    """A plan; component names among the changes replace that component's, the rest are fields."""
    components = dict.fromkeys(("text_encoder", "transformer", "video_vae", "audio_vae", "vocoder"), default)
    components |= {name: changes.pop(name) for name in tuple(changes) if name in components}
    plan = ExecutionPlan(
        variant="nano",
        size=(96, 96),
        quality="auto",
        device=device,
        device_name="test",
        components=components,
        attention_backend="native",
        vae_tiling="none",
        text_cache=True,
        guidance="batched",
        compile=False,
        step_cache="none",
        ffn_chunks=1,
        parallel=Parallel(),
        stages={stage: StagePlan(0, 0, 0.0) for stage in STAGES},
        gpu_budget_bytes=0,
        host_budget_bytes=0,
    )
    return dataclasses.replace(plan, **changes)
