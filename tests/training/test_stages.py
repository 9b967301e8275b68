"""The command line of the training, and its stages at nano's real shapes."""

import json

import pytest
import torch
from diffusers import AutoencoderKLWan, MMAudioVAE

from ovi_studio.model import components
from ovi_studio.training import stages, video_vae, voices
from ovi_studio.training.__main__ import main
from ovi_studio.training.loop import Settings, train
from ovi_studio.training.toyland import Toyland
from ovi_studio.training.video_vae import Phase, VideoVaeStage, begin
from tests.training import tiny


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder whose word bank needs no espeak-ng."""
    monkeypatch.setattr(voices, "record", lambda _: tiny.bank())
    return tmp_path


def test_a_stage_whose_predecessor_is_missing_says_which(out, capsys):
    assert main(["fusion", "--out", str(out)]) == 1
    assert "stage video-tower has left nothing" in capsys.readouterr().err
    assert main(["latents", "--out", str(out)]) == 1
    assert "stage video-vae has left nothing" in capsys.readouterr().err


def test_an_unknown_stage_is_refused(out, capsys):
    with pytest.raises(SystemExit):
        main(["sculpture", "--out", str(out)])
    assert "video-vae" in capsys.readouterr().err


def test_what_has_no_blocks_is_not_compiled(out, capsys):
    with pytest.raises(SystemExit):
        main(["vocoder", "--out", str(out), "--compile"])
    assert "--compile is for audio-tower, fusion, video-tower; leave it out" in capsys.readouterr().err


@pytest.mark.slow
def test_audio_stages_follow_one_another(out, monkeypatch):
    """Each for a step or two, from the word bank to a trained audio tower."""
    monkeypatch.setattr(stages, "TEST_LATENTS", 2)
    monkeypatch.setattr("ovi_studio.training.latents.SHARD", 20)
    for stage, steps in (("audio-vae", 2), ("text-encoder", 2), ("audio-latents", 20), ("audio-tower", 1)):
        assert main([stage, "--out", str(out), "--steps", str(steps), "--seed", "1"]) == 0
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    assert main(["audio-tower", "--out", str(out), "--steps", "1", "--seed", "1", "--compile"]) == 0
    assert compiled == ["FusionBlock"] * 4
    rows = [json.loads(line) for line in (out / "audio-tower" / "curves.jsonl").read_text().splitlines()]
    assert {"loss", "audio"} <= rows[0].keys()
    assert {"test_loss", "test_audio_0.5"} <= rows[1].keys()
    assert MMAudioVAE.from_pretrained(out / "audio-vae" / "weights").config.latent_channels == 8


def test_the_saved_video_vae_scales_its_latents_to_about_one(out, monkeypatch):
    monkeypatch.setattr(video_vae, "TEST_CLIPS", 3)
    torch.manual_seed(0)
    worlds = Toyland(0, tiny.bank()), Toyland(0, tiny.bank(), "test", voices.TEST_VOICES)
    vae = components.build_video_vae(stages.NANO)
    stage = VideoVaeStage(begin(vae), *worlds, 2, (Phase(1.0, 5, 2, 64),))
    train(stage.train(), Settings(2, log_every=1, evaluate_every=2), out / "video-vae")
    saved = AutoencoderKLWan.from_pretrained(out / "video-vae" / "weights")
    assert len(saved.config.latents_mean) == len(saved.config.latents_std) == 16
    assert saved.config.latents_std != list(stages.NANO.video_vae.latents_std)
    gates = json.loads((out / "video-vae" / "curves.jsonl").read_text().splitlines()[-1])
    assert {"psnr_whole", "psnr_box"} <= gates.keys()
