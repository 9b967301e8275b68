"""The engine on several ranks: their clip is one process's, and a rank that is lost ends the run and not the engine."""

import contextlib
import dataclasses
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ovi_studio.engine.engine import OviEngine, load_pipeline
from ovi_studio.events import CancelToken, Event, Failed, Finished, StepDone
from ovi_studio.media import decode_audio, decode_frames
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.request import GenerationRequest
from ovi_studio.runtime.execution_plan import ComponentPlan, ExecutionPlan, StagePlan
from ovi_studio.runtime.planner import NOTHING_HELD, Planner
from ovi_studio.variants import Variant
from ovi_studio.weights.store import Store
from tests.parallel.world import parallel
from tests.runtime.plans import plan_of

pytestmark = [pytest.mark.distributed, pytest.mark.slow]  # every rank imports torch anew

REQUEST = GenerationRequest.create(prompt="A red face says <S>seven<E>.", seed=5, num_inference_steps=3)
STAGES = ("load", "encode text", "denoise", "decode", "mux")
ONE = plan_of(vae_tiling="tiled", stages={stage: StagePlan(0, 0, 1.0) for stage in STAGES})


def shared(guidance_groups: int, sequence: int, **changes: object) -> ExecutionPlan:
    """ONE on several ranks of this CPU."""
    guidance = "split" if guidance_groups > 1 else "batched"
    return dataclasses.replace(
        ONE, parallel=parallel(guidance_groups, sequence), vae_tiling="split", guidance=guidance, **changes
    )


class FixedPlanner(Planner):
    """Gives one plan, whatever is asked for."""

    def __init__(self, plan: ExecutionPlan) -> None:
        self.fixed = plan

    def plan(self, request, held=NOTHING_HELD):
        return self.fixed

    def learn(self, followed, seconds):
        pass


def load_small_tiles(variant: Variant, store: Store) -> OviPipeline:
    """nano, whose pictures are several tiles of 64 pixels."""
    pipeline = load_pipeline(variant, store)
    pipeline.video_vae.enable_tiling(64, 64, 48, 48)
    pipeline.video_vae.disable_tiling()
    return pipeline


@contextlib.contextmanager
def engine_of(plan: ExecutionPlan, folder: Path) -> Iterator[OviEngine]:
    engine = OviEngine(folder, folder / "cache", FixedPlanner(plan), Store(folder / "weights"), load_small_tiles)
    with contextlib.closing(engine):
        yield engine


def make(engine: OviEngine) -> list[Event]:
    return list(engine.generate(REQUEST, CancelToken()))


def content(event: Event) -> str:
    """Of the frames and the sound of a finished clip."""
    assert isinstance(event, Finished), event
    return hashlib.sha256(event.clip.path.read_bytes()).hexdigest()


def test_a_clip_of_four_ranks_is_the_clip_of_one(tmp_path):
    with engine_of(ONE, tmp_path) as engine:
        alone = make(engine)[-1]
    sharded = {"components": ONE.components | {"transformer": ComponentPlan("float32", "sharded", "card")}}
    with engine_of(shared(2, 2, **sharded), tmp_path) as engine:
        together = make(engine)[-1]
        again = make(engine)[-1]
    assert content(together) == content(again)
    assert_same_clip(together, alone)


def test_a_killed_rank_ends_the_run_and_the_next_one_works(tmp_path, capfd):
    with engine_of(shared(1, 3), tmp_path) as engine:
        last: Event | None = None
        for event in engine.generate(REQUEST, CancelToken()):
            if isinstance(event, StepDone) and event.step == 1:
                os.kill(engine._crew.pids[0], signal.SIGKILL)
                killed = time.monotonic()
            last = event
        took = time.monotonic() - killed
        assert isinstance(last, Failed)
        assert "rank 1 (cpu) was killed" in last.problem
        assert took < 10
        # The third rank says why it leaves too.
        assert "rank 2 leaves: The process of rank 1 (cpu) was killed" in capfd.readouterr().err
        assert isinstance(make(engine)[-1], Finished)


def assert_same_clip(one: Event, other: Event) -> None:
    """A clip is compressed: what is rounded otherwise before shows as a level here or there."""
    frames = [np.stack(list(decode_frames(event.clip.path))).astype(float) for event in (one, other)]
    sounds = [decode_audio(event.clip.path)[0] for event in (one, other)]
    assert np.abs(frames[0] - frames[1]).mean() < 0.05 * frames[0].std()
    assert np.abs(sounds[0] - sounds[1]).max() < 0.05 * np.abs(sounds[0]).max()


def test_processes_that_torchrun_started_are_used(tmp_path):
    """Two processes with torchrun's variables: the first makes the clip, the second helps and leaves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"""
from pathlib import Path
from ovi_studio.engine import crew
from tests.parallel import test_crew
if crew.torchrun_rank():
    crew.serve_torchrun()
else:
    with crew.leading_torchrun(), test_crew.engine_of(test_crew.shared(2, 1), Path({str(tmp_path)!r})) as engine:
        print(type(test_crew.make(engine)[-1]).__name__)
"""
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=os.environ | variables | {"RANK": str(rank)}, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=250)[0] for rank in ranks]
    assert said == [b"Finished\n", b""]
    assert [rank.returncode for rank in ranks] == [0, 0]
