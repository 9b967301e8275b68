"""The key maps, held against the recorded name lists of the published files."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovi_studio.errors import WeightsError
from ovi_studio.weights import convert

MANIFESTS = Path(__file__).parents[1] / "manifests"


def recorded_map(name: str) -> dict[str, str]:
    loaded: dict[str, str] = json.loads((MANIFESTS / f"{name}.json").read_text())
    return loaded


def manifest_keys(name: str) -> list[str]:
    return list(json.loads((MANIFESTS / f"{name}.json").read_text())["keys"])


def numbered(keys) -> dict[str, Tensor]:
    """A state dict whose every tensor can be told from the others."""
    return {key: torch.tensor(float(index)) for index, key in enumerate(keys)}


def names(renamed: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, str]:
    """Old name → new name, by the identity of the tensors."""
    new_names = {id(tensor): key for key, tensor in renamed.items()}
    return {key: new_names[id(tensor)] for key, tensor in state.items()}


# --- fusion


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("video_model.blocks.7.self_attn.q.weight", "blocks.7.video.self_attn.q.weight"),
        ("audio_model.blocks.29.modulation.modulation", "blocks.29.audio.modulation.modulation"),
        (
            "audio_model.blocks.0.cross_attn.pre_attn_norm_fusion.bias",
            "blocks.0.audio.cross_attn.pre_attn_norm_fusion.bias",
        ),
        ("video_model.patch_embedding.bias", "video.patch_embedding.bias"),
        ("audio_model.patch_embedding.2.w3.weight", "audio.patch_embedding.2.w3.weight"),
        ("video_model.head.modulation", "video.head.modulation"),
    ],
)
def test_fusion_blocks_gather_both_towers(theirs, ours):
    assert convert.fusion_key(theirs) == ours
    assert list(convert.fusion_to_checkpoint({ours: torch.empty(0)})) == [theirs]


def test_every_recorded_fusion_tensor_goes_there_and_back():
    state = numbered(manifest_keys("fusion"))
    ours = convert.fusion_from_checkpoint(state)
    assert len(ours) == len(state)
    assert convert.fusion_to_checkpoint(ours) == state


@pytest.mark.parametrize(
    "key",
    [
        "blocks.7.video.self_attn.q.weight",
        "video_model.blocks.7.self_attn.q.weight_scale",
        "video_model.blocks.x.ffn.0.bias",
        "video_model.blocks.7.ffn.0",
        "text_model.head.modulation",
        "video_model.freqs",
        "xvideo_model.head.modulation",
        "video_model.head.modulation\n",
    ],
)
def test_an_unknown_fusion_key_is_an_error_that_names_it(key):
    with pytest.raises(WeightsError) as caught:
        convert.fusion_key(key)
    assert repr(key) in str(caught.value)


def test_an_unknown_fusion_key_of_ours_is_an_error_that_names_it():
    with pytest.raises(WeightsError, match=r"video_model\.head"):
        convert.fusion_to_checkpoint({"video_model.head.modulation": torch.empty(0)})


# --- video VAE


def test_video_vae_map_equals_the_recorded_one():
    recorded = recorded_map("wan_vae22_to_diffusers_keys")
    state = numbered(recorded)
    ours = convert.video_vae_from_checkpoint(state)
    assert names(ours, state) == recorded
    assert convert.video_vae_to_checkpoint(ours) == state


@pytest.mark.parametrize("residual_blocks", [1, 3, 11])
def test_video_vae_map_numbers_the_resampler_after_any_count_of_residual_blocks(residual_blocks):
    up = [f"decoder.upsamples.0.upsamples.{j}.residual.2.weight" for j in range(residual_blocks)]
    down = [f"encoder.downsamples.1.downsamples.{j}.residual.0.gamma" for j in range(residual_blocks + 1)]
    resamplers = [
        f"decoder.upsamples.0.upsamples.{residual_blocks}.resample.1.bias",
        f"encoder.downsamples.1.downsamples.{residual_blocks + 1}.time_conv.weight",
    ]
    state = numbered(up + down + resamplers)
    assert convert.video_vae_to_checkpoint(convert.video_vae_from_checkpoint(state)) == state


def test_video_vae_refuses_what_it_does_not_know():
    with pytest.raises(WeightsError, match=r"encoder\.conv9\.weight"):
        convert.video_vae_from_checkpoint(numbered(["encoder.conv9.weight"]))
    with pytest.raises(WeightsError, match=r"decoder\.conv1\.weight"):
        convert.video_vae_to_checkpoint(numbered(["decoder.conv1.weight"]))


# --- text encoder


def test_text_encoder_map_equals_the_recorded_one_and_ties_the_embedding():
    recorded = recorded_map("umt5_to_transformers_keys")
    state = numbered(recorded)
    ours = convert.text_encoder_from_checkpoint(state)
    assert ours.pop("encoder.embed_tokens.weight") is ours["shared.weight"]
    assert names(ours, state) == recorded
    tied = {**ours, "encoder.embed_tokens.weight": ours["shared.weight"]}
    assert convert.text_encoder_to_checkpoint(tied) == state


def test_text_encoder_refuses_a_decoder():
    with pytest.raises(WeightsError, match=r"decoder\.block\.0"):
        convert.text_encoder_from_checkpoint(numbered(["decoder.block.0.attn.q.weight"]))


# --- audio VAE


def audio_vae_state(scale: float) -> dict[str, Tensor]:
    """Two convolutions and what surrounds them, the rows of the first of known length."""
    generator = torch.Generator().manual_seed(0)
    return {
        "data_mean": torch.zeros(1, 8, 1),
        "data_std": torch.ones(1, 8, 1),
        "encoder.learnable_gain": torch.tensor(0.25),
        "encoder.conv_in.weight": scale * torch.randn(4, 8, 3, generator=generator),
        "decoder.up.1.upsample.conv.weight": scale * torch.randn(4, 4, 3, generator=generator),
    }


def test_audio_vae_rows_get_unit_norm_and_nothing_else_changes():
    ours = convert.audio_vae_from_checkpoint(audio_vae_state(scale=3.0))
    rows = ours["vae.encoder.conv_in.weight"].flatten(1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4), atol=1e-3, rtol=0)
    direction = torch.nn.functional.cosine_similarity(rows, audio_vae_state(3.0)["encoder.conv_in.weight"].flatten(1))
    torch.testing.assert_close(direction, torch.ones(4))
    assert ours["vae.encoder.learnable_gain"] == 0.25


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_audio_vae_goes_back_to_weights_of_the_same_effect(scale):
    state = audio_vae_state(scale)
    ours = convert.audio_vae_from_checkpoint(state)
    theirs = convert.audio_vae_to_checkpoint(ours)
    assert theirs.keys() == state.keys()
    again = convert.audio_vae_from_checkpoint(theirs)
    for key, tensor in ours.items():
        torch.testing.assert_close(again[key], tensor, atol=1e-6, rtol=1e-6)


def test_audio_vae_rows_of_exactly_unit_norm_survive_the_way_back():
    ours = convert.audio_vae_from_checkpoint(audio_vae_state(1.0))
    weight = torch.nn.functional.normalize(ours["vae.encoder.conv_in.weight"].flatten(1), dim=1).view(4, 8, 3)
    ours["vae.encoder.conv_in.weight"] = weight
    again = convert.audio_vae_from_checkpoint(convert.audio_vae_to_checkpoint(ours))
    torch.testing.assert_close(again["vae.encoder.conv_in.weight"], weight, atol=1e-6, rtol=1e-6)


def test_audio_vae_front_end_is_made_on_the_cpu_even_for_a_meta_model():
    with torch.device("meta"):
        ours = convert.audio_vae_from_checkpoint(audio_vae_state(1.0))
    assert ours["mel_converter.mel_basis"].device.type == "cpu"
    assert ours["mel_converter.mel_basis"].shape == (8, 513)


def test_audio_vae_refuses_what_it_does_not_know():
    with pytest.raises(WeightsError, match=r"encoder\.conv_in\.bias"):
        convert.audio_vae_from_checkpoint(audio_vae_state(1.0) | numbered(["encoder.conv_in.bias"]))
    with pytest.raises(WeightsError, match="data_mean"):
        convert.audio_vae_from_checkpoint({})


# --- vocoder


def weight_normed_vocoder(*, parametrized: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Torch's own weight norm in a state dict under the vocoder's names, and the weights it computes."""
    torch.manual_seed(0)
    layers = {
        "conv_pre": torch.nn.Conv1d(3, 4, 7),
        "ups.0.0": torch.nn.ConvTranspose1d(4, 2, 8),
        "resblocks.0.convs1.1": torch.nn.Conv1d(2, 2, 3),
    }
    old, new = torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm
    state: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        normed = new(layer) if parametrized else old(layer)
        trained = {key: value * 1.5 for key, value in normed.state_dict().items()}
        normed.load_state_dict(trained)
        normed(torch.zeros(1, normed.in_channels, 16))  # the old form computes its weight in `forward`
        state |= {f"{name}.{key}": value for key, value in trained.items()}
        weights[f"{name}.weight"] = normed.weight.detach()
        weights[f"{name}.bias"] = trained["bias"]
    filters = {"activation_post.upsample.filter": torch.rand(1, 1, 12)}
    return state | filters, weights | filters


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("parametrized", [False, True])
def test_vocoder_folds_both_forms_of_weight_norm(parametrized):
    state, weights = weight_normed_vocoder(parametrized=parametrized)
    assert any(("original0" if parametrized else "weight_g") in key for key in state)
    ours = convert.vocoder_from_checkpoint(state)
    assert ours.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(ours[key], weight)


def test_vocoder_takes_folded_weights_and_goes_back_to_a_pair():
    _, weights = weight_normed_vocoder(parametrized=True)
    theirs = convert.vocoder_to_checkpoint(weights)
    assert "ups.0.0.weight_g" in theirs
    assert "ups.0.0.weight" not in theirs
    again = convert.vocoder_from_checkpoint(theirs)
    folded = convert.vocoder_from_checkpoint(weights)
    assert again.keys() == folded.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(again[key], weight)
        assert torch.equal(folded[key], weight)


@pytest.mark.parametrize(
    "key",
    [
        "conv_pre.weight_g",
        "conv_pre.parametrizations.weight.original1",
        "discriminator.weight",
        "conv_pre.weight_scale",
    ],
)
def test_vocoder_refuses_half_a_pair_and_what_it_does_not_know(key):
    with pytest.raises(WeightsError, match=r"conv_pre|discriminator"):
        convert.vocoder_from_checkpoint({key: torch.ones(4, 3, 7)})
