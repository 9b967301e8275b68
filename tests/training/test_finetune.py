"""Fine-tuning: an adapter learns, is small, is read by the project's own loader, and acts in a clip."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovi_studio.engine.engine import OviEngine
from ovi_studio.errors import OviStudioError, WeightsError
from ovi_studio.events import CancelToken, Finished
from ovi_studio.model import components
from ovi_studio.request import Adapter, GenerationRequest
from ovi_studio.training import finetune
from ovi_studio.training.__main__ import main
from ovi_studio.training.finetune import ADAPTER_FILE, FinetuneStage, LowRank
from ovi_studio.training.loop import Share, train
from ovi_studio.variants import get_variant
from ovi_studio.weights.adapters import AdapterUse, put_on, read_adapter
from ovi_studio.weights.catalog import ADAPTERS
from ovi_studio.weights.nano import fresh_nano
from ovi_studio.weights.store import Store
from tests.training import tiny

STEPS = 5
LOW = LowRank(rank=3)


def stage_of(low_rank: LowRank | None = LOW, streams: str = "both", dtype: torch.dtype = torch.float32, **more):
    transformer, texts = tiny.transformer(), tiny.texts()
    if dtype != torch.float32:
        transformer, texts = transformer.to(dtype), replace(texts, encoder=texts.encoder.to(dtype))
    given = tiny.latents(8), tiny.latents(4, "test")
    return FinetuneStage(transformer, texts, *given, streams, low_rank, STEPS, **{"batch_size": 2, **more})


def trained_names(stage: FinetuneStage) -> list[str]:
    return [name for name, parameter in stage.named_parameters() if parameter.requires_grad]


def outputs(transformer) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = ((1, 4, 3, 4, 4), (1, 16, 3), (1, 48, 16))
    video, audio, text = (torch.randn(shape, generator=generator) for shape in shapes)
    with torch.no_grad():
        out = transformer.eval()(video, audio, torch.tensor([400.0]), text)
    return out.video, out.audio


def test_what_five_steps_have_learned_is_read_by_the_loader_and_does_the_same(tmp_path):
    stage = stage_of()
    before = outputs(stage.transformer)
    train(stage.train(), replace(tiny.settings(STEPS), ema_decay=0.0), tmp_path)
    learned = outputs(stage.transformer)
    assert not torch.allclose(before[0], learned[0], atol=1e-4)
    use = AdapterUse(read_adapter(tmp_path / "weights" / ADAPTER_FILE))
    fresh = tiny.transformer()
    # 2 blocks × (4 of self-attention and 6 of cross-attention)
    assert {tower: len(layers) for tower, layers in use.weights.towers.items()} == {"video": 20, "audio": 20}
    put_on(fresh, [use])
    for one, other in zip(outputs(fresh), learned, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_only_the_adapter_is_trained_and_kept_in_checkpoints(tmp_path):
    stage = stage_of()
    names = trained_names(stage)
    assert len(names) == 80
    assert all(".lora_" in name for name in names)
    assert sorted(stage.state_dict()) == sorted(names)
    base = {name: x.clone() for name, x in tiny.transformer().state_dict().items()}
    train(stage.train(), tiny.settings(2), tmp_path)
    state = stage.transformer.state_dict()
    for name, tensor in base.items():
        wrapped = state.get(name, state.get(f"{name.rpartition('.')[0]}.base_layer.{name.rpartition('.')[2]}"))
        assert torch.equal(tensor, wrapped), name
    assert len(load_file(tmp_path / "weights" / ADAPTER_FILE)) == 80


def test_it_goes_on_with_the_identical_curve(tmp_path):
    class Killed(Exception):
        pass

    torch.manual_seed(0)
    train(stage_of().train(), tiny.settings(STEPS), tmp_path / "whole")
    torch.manual_seed(0)
    stage = stage_of().train()
    whole_batch = stage.batch

    def batch(step: int, share: Share):
        if step == 3:
            raise Killed
        return whole_batch(step, share)

    stage.batch = batch
    with pytest.raises(Killed):
        train(stage, tiny.settings(STEPS), tmp_path / "stopped")
    torch.manual_seed(77)  # other fresh weights, which the checkpoint replaces
    train(stage_of().train(), tiny.settings(STEPS), tmp_path / "stopped")
    curves = [(tmp_path / name / "curves.jsonl").read_text() for name in ("whole", "stopped")]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("low_rank", "streams", "count"),
    [(LowRank(2, "all"), "both", 2 * 48), (LOW, "video", 40), (LowRank(2, "all"), "audio", 48)],
)
def test_targets_and_towers(low_rank, streams, count):
    stage = stage_of(low_rank, streams)
    names = trained_names(stage)
    assert len(names) == count
    assert any(".ffn." in name for name in names) == (low_rank.targets == "all")
    if streams != "both":
        assert all(f".{streams}." in name for name in names)
    assert torch.isfinite(stage(**stage.batch(0, Share()))["loss"])


def test_the_whole_transformer_learns_as_in_the_fusion_stage(tmp_path):
    stage = stage_of(None)
    assert {name.removeprefix("transformer.") for name in trained_names(stage)} == {
        name for name, _ in tiny.transformer().named_parameters() if ".ffn." not in name
    }
    train(stage.train(), tiny.settings(2), tmp_path)
    assert type(stage.transformer).from_pretrained(tmp_path / "weights").config.num_layers == 2


def test_weights_in_bfloat16_stay_and_the_adapter_learns_in_float32(tmp_path):
    stage = stage_of(dtype=torch.bfloat16)
    kinds = {parameter.dtype for parameter in stage.transformer.parameters() if parameter.requires_grad}
    assert kinds == {torch.float32}
    train(stage.train(), tiny.settings(2), tmp_path)
    assert stage.transformer.blocks[0].video.ffn[0].weight.dtype == torch.bfloat16
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows if "loss" in row)


def test_float8_weights_and_missing_latents_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "has_float8", lambda _: True)
    with pytest.raises(WeightsError, match="float8"):
        stage_of()
    with pytest.raises(OviStudioError, match="no latents"):
        finetune.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_full_size_model_takes_the_same_adapter():
    """Its names and shapes; nothing of it is computed."""
    variant = get_variant("960x960_5s")
    with torch.device("meta"):
        transformer = components.build_transformer(variant)
        transformer.requires_grad_(False).add_adapter(LowRank(rank=16).config("both"))
    trained = [(name, p) for name, p in transformer.named_parameters() if p.requires_grad]
    assert len(trained) == 30 * 2 * 10 * 2
    # Each of 20 layers a block is 3072 wide both ways.
    assert sum(parameter.numel() for _, parameter in trained) == 30 * 20 * 2 * 16 * 3072


@pytest.mark.slow
def test_the_command_makes_an_adapter_that_acts_in_a_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "load_for_training", lambda _: fresh_nano())
    shard = {"video": torch.randn(4, 16, 13, 6, 6).half(), "audio": torch.randn(4, 64, 8).half()}
    (tmp_path / "data" / "train").mkdir(parents=True)
    captions = json.dumps(["A red ball in the middle bounces once. Audio: one thud."] * 4)
    save_file(shard, tmp_path / "data" / "train" / "a.safetensors", {"captions": captions})
    options = ["--steps", str(STEPS), "--batch-size", "2", "--rank", "4", "--learning-rate", "0.01"]
    assert main(["finetune", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *options]) == 0

    store = Store(tmp_path / "weights")
    folder = store.folder / ADAPTERS
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").write_bytes((tmp_path / "out" / "weights" / ADAPTER_FILE).read_bytes())
    engine = OviEngine(tmp_path, tmp_path / "cache", store=store, load=lambda _variant, _store: fresh_nano())
    clips = []
    for adapters in ((), (Adapter(id="mine"),)):
        request = GenerationRequest.create(
            prompt="A red ball bounces.", seed=3, num_inference_steps=2, adapters=adapters
        )
        last = list(engine.generate(request, CancelToken()))[-1]
        assert isinstance(last, Finished), last
        clips.append(last.clip.path.read_bytes())
    assert clips[0] != clips[1]
