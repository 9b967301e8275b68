"""The vocoder as a diffusers model: it saves, loads and stays in float32. Its numbers are in the goldens."""

import pytest
import torch

from ovi_studio.model.vocoder import OviVocoder


@pytest.fixture(scope="module")
def vocoder() -> OviVocoder:
    torch.manual_seed(0)
    return OviVocoder(num_mels=4, upsample_initial_channel=64)


@pytest.fixture(scope="module")
def mel() -> torch.Tensor:
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))


def dtypes(model: OviVocoder) -> set[torch.dtype]:
    return {tensor.dtype for tensor in model.state_dict().values()}


def test_makes_a_bounded_waveform_of_one_hop_a_frame(vocoder, mel):
    with torch.no_grad():
        loud = vocoder(mel * 100).sample
    assert loud.shape == (2, 1, 5 * 256)
    assert loud.abs().max() <= 1


def test_the_last_convolution_has_a_bias_and_a_soft_end(vocoder):
    """Unlike the library's: in place of a clamp, tanh."""
    x = torch.randn(1, vocoder.conv_post.in_channels, 20)
    linear = torch.nn.functional.conv1d(x, vocoder.conv_post.weight, vocoder.conv_post.bias, padding=3)
    assert torch.equal(vocoder.conv_post(x), linear.tanh())


def test_loads_as_it_was_saved(vocoder, mel, tmp_path):
    vocoder.save_pretrained(tmp_path)
    loaded = OviVocoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(mel).sample, vocoder(mel).sample)


def test_stays_in_float32_when_loaded_in_another_precision(vocoder, mel, tmp_path):
    vocoder.save_pretrained(tmp_path)
    loaded = OviVocoder.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert dtypes(loaded) == {torch.float32}
    with torch.no_grad():
        assert torch.equal(loaded(mel.bfloat16()).sample, vocoder(mel.bfloat16().float()).sample)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.bfloat16,), {}),
        (("cpu", torch.bfloat16), {}),
        ((), {"device": "cpu", "dtype": torch.float16}),
        ((), {"dtype": torch.float16}),
    ],
)
def test_stays_in_float32_when_the_pipeline_is_cast(args, kwargs):
    assert dtypes(OviVocoder(num_mels=4, upsample_initial_channel=64).to(*args, **kwargs)) == {torch.float32}


def test_still_moves():
    vocoder = OviVocoder(num_mels=4, upsample_initial_channel=64)
    assert vocoder.to("meta", torch.bfloat16).device.type == "meta"
