"""What the sound looks at: the weights are attention's own, and the overlay is the clip with heat on it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ovi_studio import media
from ovi_studio.cli import main
from ovi_studio.engine.attention_maps import AttentionMap, AttentionWatch, Choice, blend, write_overlay
from ovi_studio.engine.engine import OviEngine
from ovi_studio.errors import EngineError
from ovi_studio.events import CancelToken, Finished
from ovi_studio.model.attention import AttentionProcessor, KeyValue
from ovi_studio.model.sampler import FusedSampler, Guidance, TextStates, draw_noise
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.request import GenerationRequest
from ovi_studio.weights.nano import load_nano

GRID = (3, 2, 2)  # tokens of latents of 3 × 4 × 4
STEPS = 3


class Recorder(AttentionProcessor):
    """Attends as ever, and keeps the weights of the first sample as a plain softmax gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __call__(self, query: torch.Tensor, memory: KeyValue) -> torch.Tensor:
        scores = torch.einsum("bqnk,bsnk->bnqs", query, memory.key_BSNK) / query.shape[-1] ** 0.5
        self.weights.append(scores.softmax(-1)[0].mean(0))
        return super().__call__(query, memory)


@pytest.fixture
def transformer() -> OviTransformer:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 3, "freq_dim": 16}
    model = OviTransformer(**sizes, text_dim=16, in_channels=4, audio_in_channels=3)
    for parameter in model.parameters():  # so that attention prefers something
        parameter.data.mul_(2.0)
    return model.eval().requires_grad_(False)


def sample(transformer: OviTransformer, *, batched: bool = True, video: bool = True, scale: float = 4.0) -> None:
    states = TextStates(*torch.randn(3, 1, 5, 16, generator=torch.Generator().manual_seed(1)))
    sampler = FusedSampler(transformer, states, Guidance(scale, scale, 1, batched), "unipc", 5.0, STEPS)
    generators = [torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)]
    latents = sampler.begin(draw_noise((4, 3, 4, 4) if video else None, (7, 3), generators))
    for index in range(STEPS):
        latents = sampler.step(latents, index)


def watched(transformer: OviTransformer, choice: Choice, **how: object) -> AttentionMap:
    watch = AttentionWatch(choice)
    watch.attach(transformer)
    sample(transformer, **how)
    watch.detach()
    return watch.seen()


ALL = Choice(frozenset(range(3)), frozenset(range(STEPS)))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("blocks", "steps"), [({0, 1, 2}, {0, 1, 2}), ({2}, {1}), ({1}, {0, 2})])
def test_the_weights_are_the_softmax_of_the_prompts_pass(transformer, blocks, steps, batched):
    recorders = [Recorder() for _ in transformer.blocks]
    for block, recorder in zip(transformer.blocks, recorders, strict=True):
        block.audio.cross_attn.processor = recorder
    seen = watched(transformer, Choice(frozenset(blocks), frozenset(steps)), batched=batched)
    expected = []
    for index in blocks:
        to_video = recorders[index].weights[1::2]  # after each attention to the text
        # One after the other, the second pass of a step is the negative prompts'; block 1 is left out of it.
        per_step = to_video[::2] if not batched and index != 1 else to_video
        assert len(per_step) == STEPS
        expected += [per_step[step] for step in steps]
    torch.testing.assert_close(seen.weights_AV, torch.stack(expected).mean(0))
    assert seen.grid == GRID


def test_every_sounds_weights_sum_to_one_and_so_does_the_heat(transformer):
    seen = watched(transformer, ALL)
    assert seen.weights_AV.shape == (7, 12)
    torch.testing.assert_close(seen.weights_AV.sum(1), torch.ones(7))
    assert seen.heat().shape == GRID
    torch.testing.assert_close(seen.heat().sum(), torch.tensor(1.0))
    assert seen.heat().std() > 1e-3


def test_the_model_computes_what_it_did_and_keeps_no_hook(transformer):
    inputs = (torch.randn(1, 4, 3, 4, 4), torch.randn(1, 7, 3), torch.tensor([500.0]), torch.randn(1, 5, 16))
    before = transformer(*inputs)
    watch = AttentionWatch(ALL)
    watch.attach(transformer)
    during = transformer(*inputs)
    watch.detach()
    assert torch.equal(before.video, during.video)
    assert torch.equal(before.audio, during.audio)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in transformer.modules())


def test_without_guidance_and_after_a_second_start_only_the_last_run_counts(transformer):
    watch = AttentionWatch(ALL)
    for scale in (4.0, 1.0):
        watch.attach(transformer)
        sample(transformer, scale=scale)
    torch.testing.assert_close(watch.seen().weights_AV, watched(transformer, ALL, scale=1.0).weights_AV)


def test_sound_alone_looks_at_nothing(transformer):
    with pytest.raises(EngineError, match="No attention of the sound"):
        watched(transformer, ALL, video=False)


def test_there_is_heat_where_the_weight_is_and_the_rest_stays():
    frame = np.full((8, 8, 3), 77, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:4] = 1
    hot = blend(frame, heat)
    assert (hot[4:] == 77).all()
    assert (hot[:4] != 77).all()


# --- Clips ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    engine = OviEngine(folder, folder / "cache", load=lambda _variant, _store: load_nano())
    request = GenerationRequest.create(prompt="A red face says <S>seven<E>.", seed=3, num_inference_steps=2)
    last = list(engine.generate(request, CancelToken()))[-1]
    assert isinstance(last, Finished)
    return last.clip.path


def test_the_overlay_has_the_clips_frames_size_and_sound_and_heat_in_its_place(clip, tmp_path):
    weights = torch.full((64, 13 * 3 * 3), 1e-3)
    weights[:, 5 * 9 + 4] = 1  # latent frame 5, which is frames 17 to 20; the middle
    seen = AttentionMap(weights / weights.sum(1, keepdim=True), (13, 3, 3))
    request = GenerationRequest.from_embedded(media.read_metadata(clip)["request"])
    made = write_overlay(
        media.read_clip(clip), seen, request, Choice(frozenset({1}), frozenset({0})), tmp_path / "m.mp4"
    )
    given = media.read_clip(clip)
    assert (made.width, made.height, made.num_frames, made.fps) == (96, 96, 49, 24)
    assert (made.num_samples, made.sample_rate) == (given.num_samples, given.sample_rate)
    sound, again = (media.decode_audio(path)[0] for path in (clip, made.path))
    assert np.corrcoef(sound, again)[0, 1] > 0.98
    assert made.metadata["attention"] == {"blocks": [1], "steps": [0]}
    frames, heated = (np.stack(list(media.decode_frames(path))).astype(int) for path in (clip, made.path))
    change = np.abs(heated - frames).mean(-1)
    assert change[17:21, 40:56, 40:56].mean() > 40
    assert change[:16].mean() < 12  # what encoding twice changes in a clip that is noise
    assert change[24:].mean() < 12


def test_the_command_writes_the_map_beside_the_clip(clip, monkeypatch, capfd):
    monkeypatch.chdir(clip.parent)
    assert main(["attention", clip.name, "--blocks", "0,2-3", "--steps", "2"]) == 0
    out, err = capfd.readouterr()
    path = Path(out.strip())
    assert path.name == f"{clip.stem}-attention.mp4"
    assert "made now" not in err
    made = media.read_clip(path)
    assert (made.num_frames, made.num_samples) == (49, media.read_clip(clip).num_samples)
    assert made.metadata["attention"] == {"blocks": [0, 2, 3], "steps": [1]}
    assert made.metadata["request"] == media.read_metadata(clip)["request"]
    assert sorted(p.suffix for p in clip.parent.iterdir() if p.is_file()) == [".mp4", ".mp4"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--blocks", "0-4"], "blocks are 0 to 3"),
        (["--blocks", "all"], "no list of numbers"),
        (["--blocks", "3-1"], "blocks are 0 to 3"),
        (["--steps", "0"], "steps are 1 to 2"),
        (["-o", "map.gif"], "does not end in .mp4"),
        (["-o", "nowhere/map.mp4"], "no folder"),
    ],
)
def test_what_cannot_be_is_told_before_the_run(clip, tmp_path, monkeypatch, capfd, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(["attention", str(clip), *arguments]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert told in err
    assert err.count("\n") == 1


def test_clips_that_have_no_map(tmp_path, capfd):
    silence = np.zeros(16_000, np.float32)
    frames = [np.zeros((32, 32, 3), np.uint8)]
    request = {"prompt": "A dog", "modality": "video", "seed": 1}
    for name, metadata in (("video", {"request": request}), ("foreign", {"request": None})):
        made = media.write_clip(
            tmp_path / f"{name}.mp4", frames=frames, waveform=silence, fps=24, sample_rate=16_000, metadata=metadata
        )
        assert main(["attention", str(made.path)]) == 2
    assert main(["attention", str(tmp_path / "none.mp4")]) == 2
    picture, foreign, missing = capfd.readouterr().err.splitlines()
    assert "its sound looks at nothing" in picture
    assert "request" in foreign
    assert "no file" in missing


def test_the_help_loads_no_torch():
    program = (
        "import sys; from ovi_studio.cli import main\n"
        "try: main(['attention', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--blocks" in shown.stdout
