"""The twin DiT against the recorded forwards: outputs and what lies between, float32 within 5e-5."""

from typing import Any

import pytest
import torch
from torch import nn

from ovi_studio.model.attention import apply_rotary, audio_rotary_table, video_rotary_table
from ovi_studio.model.transformer import OviTransformer, sinusoidal_embedding
from tests.goldens import cases
from tests.goldens.fusion import load_transformer, padded_text

pytestmark = pytest.mark.golden
FACTS = cases.facts("fusion_tiny")
TENSORS = cases.tensors("fusion_tiny")
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def transformer() -> OviTransformer:
    return load_transformer("fusion_tiny")


def run(model: OviTransformer, case: dict[str, Any], **options: Any) -> dict[str, torch.Tensor]:
    """The outputs of one recorded case, named as the recording names them, without batch dimension."""
    length = FACTS["video_config"]["text_len"]

    def tensor(name: str) -> torch.Tensor | None:
        return None if case[name] is None else TENSORS[case[name]].float()

    def text(name: str) -> torch.Tensor | None:
        states = tensor(name)
        return None if states is None else padded_text(states, length)

    video, audio = tensor("vid"), tensor("audio")
    with torch.no_grad():
        out = model(
            None if video is None else video[None],
            None if audio is None else audio[None],
            torch.tensor(case["t"]),
            text("vid_context"),
            text("audio_context"),
            first_frame_is_clean=case.get("first_frame_is_clean", False),
            skip_layer=case.get("slg_layer", 0),
            **options,
        )
    named = {"vid": out.video, "audio": out.audio}
    return {name: value[0] for name, value in named.items() if value is not None}


@pytest.mark.parametrize("name", FACTS["cases"])
def test_outputs(transformer: OviTransformer, name: str) -> None:
    outputs = run(transformer, FACTS["cases"][name])
    expected = {
        key.rsplit(".", 1)[1]: value
        for key, value in TENSORS.items()
        if key in (f"{name}.float32.vid", f"{name}.float32.audio")
    }
    assert set(outputs) == set(expected)
    for stream, value in outputs.items():
        cases.assert_close(value, expected[stream], TOLERANCE)


@pytest.mark.parametrize("name", [n for n in FACTS["cases"] if f"{n}.float32.block0.vid" in TENSORS])
def test_intermediates(transformer: OviTransformer, name: str) -> None:
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(_recorder(key, seen)) for key, module in _watched_modules(transformer).items()
    ]
    run(transformer, FACTS["cases"][name])
    for hook in hooks:
        hook.remove()
    seen |= _first_and_last_token(seen)

    compared = 0
    prefix = f"{name}.float32."
    for key, expected in TENSORS.items():
        if key.startswith(prefix) and key.removeprefix(prefix) not in ("vid", "audio"):
            cases.assert_close(seen[key.removeprefix(prefix)], expected, TOLERANCE)
            compared += 1
    assert compared >= 10


@pytest.mark.parametrize("name", FACTS["cases"])
def test_projected_text_gives_the_same(transformer: OviTransformer, name: str) -> None:
    case = FACTS["cases"][name]
    length = FACTS["video_config"]["text_len"]
    states = [
        None if case[key] is None else padded_text(TENSORS[case[key]].float(), length)
        for key in ("vid_context", "audio_context")
    ]
    with torch.no_grad():
        projected = transformer.project_text(*states)
    outputs = run(transformer, {**case, "vid_context": None, "audio_context": None}, text_key_values=projected)
    for stream, value in outputs.items():
        cases.assert_close(value, TENSORS[f"{name}.float32.{stream}"], TOLERANCE)


def test_rotary_tables_and_rotation() -> None:
    head_dim = TENSORS["rope.in_video"].shape[-1]
    scale = FACTS["audio_config"]["temporal_rope_scaling_factor"]
    sizes = zip(TENSORS["in.vid"].shape[1:], FACTS["video_config"]["patch_size"], strict=True)
    frames, height, width = (size // patch for size, patch in sizes)
    grid = (frames, height, width)
    cpu = torch.device("cpu")
    video = video_rotary_table(grid, head_dim, cpu)
    audio = audio_rotary_table(TENSORS["rope.in_audio"].shape[1], head_dim, scale, cpu)
    cases.assert_close(apply_rotary(TENSORS["rope.in_video"], video), TENSORS["rope.out_video"], TOLERANCE)
    cases.assert_close(apply_rotary(TENSORS["rope.in_audio"], audio), TENSORS["rope.out_audio"], TOLERANCE)

    # The recorded tables hold one row a position and one column a pair: time, height, width side by side.
    rows = TENSORS["freqs.video.real"].shape[0]
    diagonal = video_rotary_table((rows, 1, 1), head_dim, cpu)
    time_pairs = TENSORS["freqs.audio.real"].shape[1]
    cases.assert_close(diagonal.cos_QP[:, :time_pairs], TENSORS["freqs.video.real"][:, :time_pairs], 1e-6)
    long_audio = audio_rotary_table(rows, head_dim, scale, cpu)
    cases.assert_close(long_audio.cos_QP[:, :time_pairs], TENSORS["freqs.audio.real"], 1e-6)
    cases.assert_close(long_audio.sin_QP[:, :time_pairs], TENSORS["freqs.audio.imag"], 1e-6)
    assert (long_audio.cos_QP[:, time_pairs:] == 1).all()


def test_full_size_tables() -> None:
    full = cases.tensors("fusion_full_tables")
    rows = full["rows"]
    count = int(rows.max()) + 1
    head_dim = 2 * full["video.real"].shape[1]
    cpu = torch.device("cpu")
    axes = [video_rotary_table(grid, head_dim, cpu) for grid in ((count, 1, 1), (1, count, 1), (1, 1, count))]
    splits = ((0, 22), (22, 43), (43, 64))
    for (start, end), axis in zip(splits, axes, strict=True):
        cases.assert_close(axis.cos_QP[rows, start:end], full["video.real"][:, start:end], 1e-6)
        cases.assert_close(axis.sin_QP[rows, start:end], full["video.imag"][:, start:end], 1e-6)
    audio = audio_rotary_table(count, head_dim, 0.19676, cpu)
    cases.assert_close(audio.cos_QP[rows, :22], full["audio.real"], 1e-6)
    cases.assert_close(audio.sin_QP[rows, :22], full["audio.imag"], 1e-6)
    embedded = sinusoidal_embedding(full["time.t"], full["time.sincos_float64"].shape[1])
    torch.testing.assert_close(embedded, full["time.sincos_float64"], atol=1e-9, rtol=0)


def test_sinusoidal_embedding() -> None:
    embedded = sinusoidal_embedding(TENSORS["sincos.t"], TENSORS["sincos.emb"].shape[1])
    torch.testing.assert_close(embedded, TENSORS["sincos.emb"], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "name", [n for n in FACTS.get("bf16_vs_float32", {}) if FACTS["cases"][n]["vid"] and FACTS["cases"][n]["audio"]]
)
def test_bf16_stays_near_float32(name: str) -> None:
    model = load_transformer("fusion_tiny").to(torch.bfloat16)
    case = FACTS["cases"][name]
    length = FACTS["video_config"]["text_len"]
    with torch.no_grad():
        out = model(
            TENSORS[case["vid"]].bfloat16()[None],
            TENSORS[case["audio"]].bfloat16()[None],
            torch.tensor(case["t"]),
            padded_text(TENSORS[case["vid_context"]].bfloat16(), length),
            padded_text(TENSORS[case["audio_context"]].bfloat16(), length),
            first_frame_is_clean=case.get("first_frame_is_clean", False),
            skip_layer=case.get("slg_layer", 0),
        )
    for stream, value in (("vid", out.video), ("audio", out.audio)):
        expected = TENSORS[f"{name}.float32.{stream}"]
        error = (value[0].float() - expected).norm() / expected.norm()
        reference_error = FACTS["bf16_vs_float32"][name][f"bf16.{stream}"]["rel_l2"]
        assert error < 1.25 * reference_error


def _watched_modules(model: OviTransformer) -> dict[str, nn.Module]:
    watched: dict[str, nn.Module] = {}
    for stream, tower in (("vid", model.video), ("audio", model.audio)):
        watched[f"{stream}_tokens"] = tower.patch_embedding
        watched[f"{stream}_context_emb"] = tower.text_embedding
        watched[f"{stream}_e"] = tower.time_embedding
        watched[f"{stream}_e0"] = tower.time_projection
    return watched | {f"block{index}": block for index, block in enumerate(model.blocks)}


def _recorder(key: str, seen: dict[str, torch.Tensor]):
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if key.startswith("block"):
            seen[f"{key}.vid"], seen[f"{key}.audio"] = output
        elif key.endswith("_tokens"):
            seen[key] = output.flatten(2).transpose(1, 2)
        else:
            seen[key] = output

    return record


def _first_and_last_token(seen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Timestep rows as the recording has them: of the first token (clean in i2v) and of the last."""
    tokens = {}
    for stream in ("vid", "audio"):
        embedded, projected = seen[f"{stream}_e"], seen[f"{stream}_e0"].unflatten(-1, (6, -1))
        for name, rows in ((f"{stream}_e", embedded), (f"{stream}_e0", projected)):
            tokens[f"{name}_first_token"] = rows[:, -1:]
            tokens[f"{name}_last_token"] = rows[:, :1]
    return tokens
