"""The three solvers against recorded schedules and trajectories."""

import numpy as np
import pytest
import torch

from ovi_studio.errors import InvalidInputError
from ovi_studio.model.schedulers import make_scheduler
from tests.goldens import cases

pytestmark = pytest.mark.golden
FACTS = cases.facts("schedulers")
TENSORS = cases.tensors("schedulers")


@pytest.mark.parametrize("case", FACTS["cases"])
def test_schedule_and_trajectory(case: str) -> None:
    solver, steps, shift = case.split(".", 2)
    scheduler = make_scheduler(solver, float(shift), int(steps))
    torch.testing.assert_close(scheduler.timesteps, TENSORS[f"{case}.timesteps"], atol=0, rtol=0)
    torch.testing.assert_close(scheduler.sigmas, TENSORS[f"{case}.sigmas"], atol=1e-6, rtol=0)

    sample = TENSORS["x0"]
    for index, timestep in enumerate(scheduler.timesteps):
        angle = np.float32(timestep.item()) / 1000
        velocity = 0.3 * sample + torch.sin(torch.tensor(angle)) + TENSORS["noise"]
        sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
        torch.testing.assert_close(sample, TENSORS[f"{case}.traj"][index], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_repeated_timesteps_are_refused(solver: str) -> None:
    with pytest.raises(InvalidInputError, match="repeat a timestep"):
        make_scheduler(solver, 5.0, 700)


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
@pytest.mark.parametrize("steps", [1, 2, 150])
def test_unusual_step_counts_work(solver: str, steps: int) -> None:
    scheduler = make_scheduler(solver, 5.0, steps)
    sample = TENSORS["x0"]
    for timestep in scheduler.timesteps:
        sample = scheduler.step(TENSORS["noise"], timestep, sample, return_dict=False)[0]
    assert len(scheduler.timesteps) == steps
    assert sample.isfinite().all()


def test_unknown_solver_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="unipc"):
        make_scheduler("heun", 5.0, 10)
