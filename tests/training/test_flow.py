"""The towers and their fusion: what trains, what is weighed, and what a batch is."""

import pytest
import torch

from ovi_studio.errors import OviStudioError
from ovi_studio.training.flow import FlowStage, fuse_towers, joint_loss, sound_ends, tower_of, train_only
from ovi_studio.training.latents import LatentSet
from ovi_studio.training.loop import Share
from tests.training import tiny


def test_fusion_freezes_the_feed_forward_layers_and_nothing_else():
    model = tiny.transformer()
    train_only(model, "both")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".ffn." in name}
    assert len(frozen) == 2 * 2 * 4  # blocks × streams × weights and biases of two layers


@pytest.mark.parametrize(("streams", "other"), [("audio", "video"), ("video", "audio")])
def test_a_tower_trains_alone_without_what_joins_it(streams, other):
    model = tiny.transformer()
    train_only(model, streams)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(tower_of(name) == streams and "fusion" not in name for name in trained)
    assert f"blocks.1.{streams}.ffn.0.weight" in trained
    assert f"{streams}.patch_embedding" in " ".join(trained)
    assert not any(name.startswith((f"{other}.", f"blocks.0.{other}.")) for name in trained)


def test_every_trained_parameter_of_every_stage_gets_a_gradient():
    for streams in ("audio", "video", "both"):
        stage = tiny.flow_stage(streams).train()
        stage(**stage.batch(0, Share()))["loss"].backward()
        for name, parameter in stage.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (streams, name)


def test_the_papers_weighting():
    losses = {"video": torch.tensor(2.0), "audio": torch.tensor(10.0)}
    assert float(joint_loss(losses)) == pytest.approx(0.85 * 2 + 0.15 * 10)
    assert float(joint_loss({"audio": torch.tensor(10.0)})) == 10


def test_noises_are_independent_and_the_timestep_is_shared():
    stage, seen = tiny.flow_stage(), []
    batch = stage.batch(0, Share())
    video, audio = batch["video_noise"].flatten(1), batch["audio_noise"].flatten(1)
    assert not torch.allclose(video[:, : audio.shape[1]], audio, atol=0.1)
    assert batch["sigma"].shape == (4,)
    hook = stage.transformer.register_forward_pre_hook(
        lambda _, arguments, options: seen.append((*arguments, options)), with_kwargs=True
    )
    batch["first_frame"] = torch.tensor(True)
    stage(**batch)
    hook.remove()
    ((noisy_video, noisy_audio, timestep, *_, options),) = seen
    assert torch.equal(timestep, batch["sigma"] * 1000)
    assert options == {"first_frame_is_clean": True}
    assert torch.equal(noisy_video[:, :, 0], batch["video"][:, :, 0])
    sigma = batch["sigma"][:, None, None]
    torch.testing.assert_close(noisy_audio, (1 - sigma) * batch["audio"] + sigma * batch["audio_noise"])


def test_the_loss_is_the_velocitys_and_a_given_frame_does_not_count(monkeypatch):
    stage = tiny.flow_stage()
    batch = stage.batch(0, Share())

    class Answer:
        video = batch["video_noise"] - batch["video"]
        audio = batch["audio_noise"] - batch["audio"] + 2

    monkeypatch.setattr(stage.transformer, "forward", lambda *_, **__: Answer)
    Answer.video[:, :, 0] += 100
    batch["first_frame"] = torch.tensor(True)
    losses = stage(**batch)
    assert float(losses["video"]) == 0
    assert float(losses["audio"]) == pytest.approx(4)
    assert float(losses["loss"]) == pytest.approx(0.6)
    batch["first_frame"] = torch.tensor(False)
    assert float(stage(**batch)["video"]) > 1000


def test_batches_are_shared_and_repeatable():
    stage = tiny.flow_stage()
    for step in range(4):
        whole = stage.batch(step, Share())
        assert all(torch.equal(whole[name], again) for name, again in stage.batch(step, Share()).items())
        for rank in (0, 1):
            part = stage.batch(step, Share(rank, 2))
            assert torch.equal(part.pop("first_frame"), whole["first_frame"])
            assert all(torch.equal(whole[name][rank::2], tensor) for name, tensor in part.items())


def test_first_frames_are_given_and_captions_left_out_now_and_then():
    stage = tiny.flow_stage(steps=100)
    batches = [stage.batch(step, Share()) for step in range(100)]
    assert 10 < sum(bool(batch["first_frame"]) for batch in batches) < 45
    texts = stage._texts
    negative = texts.tokens([texts.variant.defaults.video_negative_prompt])[0][0]
    dropped = sum(int((batch["video_tokens"] == negative).all(1).sum()) for batch in batches)
    assert 15 < dropped < 75  # of 400, a tenth
    audio_negative = texts.tokens([texts.variant.defaults.audio_negative_prompt])[0][0]
    assert dropped == sum(int((batch["audio_tokens"] == audio_negative).all(1).sum()) for batch in batches)


def test_sounds_vary_in_length_first_and_are_whole_later():
    stage = tiny.flow_stage("audio", steps=40)
    lengths = [stage.batch(step, Share())["audio"].shape[1] for step in range(40)]
    assert len(set(lengths[:20])) > 2
    assert set(lengths[20:]) == {16}
    assert "video" not in stage.batch(0, Share())


def test_short_sounds_are_over_by_their_end():
    audio = torch.zeros(3, 10, 2)
    audio[0, :4] = 5
    audio[1, 2] = 5
    assert sound_ends(audio).tolist() == [4, 3, 0]


@torch.no_grad()
def test_fused_towers_begin_as_they_were_alone():
    video, audio, fused = (tiny.transformer(seed) for seed in (1, 2, 3))
    fuse_towers(fused, video, audio)
    batch = tiny.flow_stage().batch(0, Share())
    text = torch.randn(4, 48, 16)
    together = fused(batch["video"], batch["audio"], batch["sigma"], text)
    # Joining adds one zero to each cross step: the values that are exchanged have no bias left either.
    torch.testing.assert_close(together.video, video(batch["video"], None, batch["sigma"], text).video)
    torch.testing.assert_close(together.audio, audio(None, batch["audio"], batch["sigma"], text).audio)


def test_pictures_are_asked_for_where_there_are_none():
    sounds = LatentSet(torch.zeros(4, 16, 3), None, ("a",) * 4)
    with pytest.raises(OviStudioError, match="no picture"):
        FlowStage(tiny.transformer(), tiny.texts(), sounds, sounds, "both", 4)
