"""The three solvers on stock diffusers schedulers, set so that they give the reference's schedules exactly.

The stock defaults are not equivalent: each solver spaces its noise levels in its own way. Audio and video
are stepped by one scheduler each, because a multistep scheduler remembers the outputs of its own stream.
"""

from typing import TypeAlias, get_args

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ovi_studio.errors import InvalidInputError
from ovi_studio.variants import Solver

SOLVERS: tuple[Solver, ...] = get_args(Solver)
Scheduler: TypeAlias = UniPCMultistepScheduler | DPMSolverMultistepScheduler | FlowMatchEulerDiscreteScheduler


def make_scheduler(solver: Solver, shift: float, num_inference_steps: int) -> Scheduler:
    """A scheduler that is ready to step from its first timestep.

    Args:
        solver: "unipc", "dpm++" or "euler".
        shift: how far the noise levels lean towards noise; 1 leaves them evenly spaced.
        num_inference_steps: steps of the run.

    Raises:
        InvalidInputError: an unknown solver, or so many steps that timesteps repeat, which are whole numbers
            from 0 to 1000 for unipc and dpm++.
    """
    flow = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "solver_order": 2,
    }
    if solver == "unipc":
        scheduler: SchedulerMixin = UniPCMultistepScheduler(**flow)
        sigma_max = float(np.float32(0.999))
        scheduler.set_timesteps(sigmas=np.linspace(sigma_max, 0, num_inference_steps + 1)[:-1])
    elif solver == "dpm++":
        scheduler = DPMSolverMultistepScheduler(**flow)
        scheduler.set_timesteps(num_inference_steps)
        sigmas = np.linspace(1, 0, num_inference_steps + 1)[:-1]
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0).astype(np.float32))
        scheduler.timesteps = torch.from_numpy((sigmas * 1000).astype(np.int64))
    elif solver == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(num_inference_steps)
    else:
        raise InvalidInputError(f"There is no solver called {solver!r}.", f"Choose one of {', '.join(SOLVERS)}.")

    if (scheduler.timesteps.diff() >= 0).any():
        raise InvalidInputError(
            f"{num_inference_steps} steps of {solver} at shift {shift:g} repeat a timestep.",
            "Use fewer steps (50 is the usual number), a shift nearer to 1, or the euler solver.",
        )
    scheduler.set_begin_index(0)  # else the first step searches its index with a host sync
    return scheduler
