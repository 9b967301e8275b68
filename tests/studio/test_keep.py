"""Keeping what there is of a run, with the real engine: the clip is made of the steps that were done."""

from pathlib import Path

from ovi_studio.engine.engine import OviEngine
from ovi_studio.events import CancelToken, Finished, StepDone
from ovi_studio.media import decode_frames, read_clip
from ovi_studio.request import GenerationRequest
from ovi_studio.variants import get_variant


def test_a_run_that_ends_early_leaves_a_whole_clip_and_says_so(tmp_path: Path) -> None:
    engine = OviEngine(tmp_path, tmp_path / "cache")
    cancel = CancelToken()
    events = []
    for event in engine.generate(GenerationRequest.create(prompt="a", seed=1, num_inference_steps=8), cancel):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            cancel.finish_early()
    assert [(event.step, event.steps) for event in events if isinstance(event, StepDone) and event.steps == 8] == [
        (1, 8),
        (2, 8),
    ]
    assert isinstance(events[-1], Finished)
    clip = read_clip(events[-1].clip.path)
    assert clip.num_frames == get_variant("nano").num_frames == sum(1 for _ in decode_frames(clip.path))
    assert clip.has_sound
    assert clip.metadata["steps_done"] == 2
    assert clip.metadata["request"]["num_inference_steps"] == 8
