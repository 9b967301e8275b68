"""The vocoders as diffusers models: they save, load and stay in float32. BigVGAN's numbers are in the goldens."""

import pytest
import torch

from ovi_studio.model.vocoder import OviVocoder, SpectralVocoder

FRESH = {
    "bigvgan": lambda: OviVocoder(num_mels=4, upsample_initial_channel=64),
    "spectral": lambda: SpectralVocoder(num_mels=4, dim=16, ffn_dim=32, num_layers=2),
}


@pytest.fixture(scope="module", params=FRESH)
def vocoder(request) -> OviVocoder | SpectralVocoder:
    torch.manual_seed(0)
    return FRESH[request.param]()


@pytest.fixture(scope="module")
def mel() -> torch.Tensor:
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in model.state_dict().values()}


def test_makes_a_bounded_waveform_of_one_hop_a_frame(vocoder, mel):
    with torch.no_grad():
        loud = vocoder(mel * 100).sample
    assert loud.shape == (2, 1, 5 * 256)
    assert loud.abs().max() <= 1


def test_the_last_convolution_has_a_bias_and_a_soft_end():
    """Unlike the library's: in place of a clamp, tanh."""
    vocoder = FRESH["bigvgan"]()
    x = torch.randn(1, vocoder.conv_post.in_channels, 20)
    linear = torch.nn.functional.conv1d(x, vocoder.conv_post.weight, vocoder.conv_post.bias, padding=3)
    assert torch.equal(vocoder.conv_post(x), linear.tanh())


def test_loads_as_it_was_saved(vocoder, mel, tmp_path):
    vocoder.save_pretrained(tmp_path)
    loaded = type(vocoder).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(mel).sample, vocoder(mel).sample)


def test_stays_in_float32_when_loaded_in_another_precision(vocoder, mel, tmp_path):
    vocoder.save_pretrained(tmp_path)
    loaded = type(vocoder).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert dtypes(loaded) == {torch.float32}
    with torch.no_grad():
        assert torch.equal(loaded(mel.bfloat16()).sample, vocoder(mel.bfloat16().float()).sample)


@pytest.mark.parametrize("kind", FRESH)
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.bfloat16,), {}),
        (("cpu", torch.bfloat16), {}),
        ((), {"device": "cpu", "dtype": torch.float16}),
        ((), {"dtype": torch.float16}),
    ],
)
def test_stays_in_float32_when_the_pipeline_is_cast(kind, args, kwargs):
    assert dtypes(FRESH[kind]().to(*args, **kwargs)) == {torch.float32}


@pytest.mark.parametrize("kind", FRESH)
def test_still_moves(kind):
    vocoder = FRESH[kind]()
    assert vocoder.to("meta", torch.bfloat16).device.type == "meta"


def test_a_spectrum_becomes_the_tone_that_it_shows():
    """One that draws the same magnitude and turning phase in each frame makes a steady tone, where it should be."""
    vocoder = FRESH["spectral"]()
    bins, hop, at = vocoder.config.n_fft // 2 + 1, vocoder.config.hop_length, 64  # 64 of 1024: 1 kHz; a hop is 16 turns
    with torch.no_grad():
        vocoder.proj_out.weight.zero_()
        vocoder.proj_out.bias.fill_(-20)
        vocoder.proj_out.bias[at] = 4.6  # a magnitude of 100
        vocoder.proj_out.bias[bins:] = 0
        waveform = vocoder(torch.zeros(1, 4, 12)).sample[0, 0, hop:-hop]
    n = torch.arange(hop, 11 * hop)
    tone = torch.cos(2 * torch.pi * at * n / vocoder.config.n_fft)
    assert torch.corrcoef(torch.stack((waveform, tone)))[0, 1] > 0.999
