"""What the twin DiT promises beyond the recorded numbers: no syncs, blocks that are called, library features."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ovi_studio.model.sampler import FusedSampler, Guidance, TextStates, draw_noise
from ovi_studio.model.transformer import FusionBlock, OviTransformer

SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 48,
    "freq_dim": 8,
    "text_dim": 16,
    "in_channels": 4,
    "audio_in_channels": 3,
}
# Operations that make the host wait for the device: reading values, and copies between devices.
SYNCS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select", "unique")


class SyncCounter(TorchDispatchMode):
    """Counts operations that would stall a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        crosses = name == "_to_copy" and (kwargs or {}).get("device") not in (None, args[0].device)
        copies = name == "copy_" and args[0].device != args[1].device
        self.count += name in SYNCS or crosses or copies
        return func(*args, **(kwargs or {}))


def small_inputs(batch: int = 1, device: str = "cpu") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    return {
        "hidden_states": draw(batch, 4, 3, 4, 6),
        "audio_hidden_states": draw(batch, 7, 3),
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": draw(batch, 5, 16),
    }


def small_model(num_layers: int = 2) -> OviTransformer:
    torch.manual_seed(0)
    return OviTransformer(num_layers=num_layers, **SMALL).eval()


@torch.no_grad()
def test_counter_counts() -> None:
    with SyncCounter() as counter:
        torch.ones(2).sum().item()
        torch.ones(2).nonzero()
        torch.ones(2).to("meta")
    assert counter.count == 3


@pytest.mark.parametrize("first_frame", [False, True], ids=["t2v", "i2v"])
@torch.no_grad()
def test_no_host_sync_in_the_loop(first_frame: bool) -> None:
    syncs = {}
    for layers in (2, 6):
        model = small_model(layers)
        text = torch.zeros(1, 5, 16)
        sampler = FusedSampler(
            model,
            TextStates(text, text, text),
            Guidance(skip_layer=1),
            "unipc",
            5.0,
            4,
            torch.zeros(1, 4, 1, 4, 6) if first_frame else None,
        )
        latents = sampler.begin(draw_noise((4, 3, 4, 6), (7, 3), (torch.Generator(), torch.Generator())))
        latents = sampler.step(latents, 0)
        with SyncCounter() as counter:
            for index in range(1, 4):
                latents = sampler.step(latents, index)
        syncs[layers] = counter.count
    assert syncs == {2: 0, 6: 0}


@torch.no_grad()
def test_forward_runs_where_nothing_can_be_read() -> None:
    """On the meta device any read of a value raises, so the graph cannot depend on one."""
    with torch.device("meta"):
        model = OviTransformer(num_layers=2, **SMALL)
    out = model(**small_inputs(batch=2, device="meta"), first_frame_is_clean=True, skip_layer=1, skip_from=1)
    assert out.video.shape == (2, 4, 3, 4, 6)
    assert out.audio.shape == (2, 7, 3)


@torch.no_grad()
def test_every_block_is_called_also_when_skipped() -> None:
    model = small_model(3)
    called: list[int] = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: called.append(index))
    model(**small_inputs(), skip_layer=1)
    assert called == [0, 1, 2]


@torch.no_grad()
def test_skipping_part_of_a_batch_equals_skipping_alone() -> None:
    model = small_model(3)
    inputs = small_inputs(batch=2)
    both = model(**inputs, skip_layer=1, skip_from=1)
    for sample, skip in ((0, 0), (1, 1)):
        alone = model(
            inputs["hidden_states"][sample : sample + 1],
            inputs["audio_hidden_states"][sample : sample + 1],
            inputs["timestep"],
            inputs["encoder_hidden_states"][sample : sample + 1],
            skip_layer=skip,
        )
        torch.testing.assert_close(both.video[sample : sample + 1], alone.video, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both.audio[sample : sample + 1], alone.audio, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_streams_read_each_other_and_only_each_other() -> None:
    model = small_model()
    inputs = small_inputs()
    base = model(**inputs)
    changed = model(**(inputs | {"audio_hidden_states": inputs["audio_hidden_states"] + 1}))
    assert not torch.allclose(base.video, changed.video)
    video_alone = model(**(inputs | {"audio_hidden_states": None}))
    assert video_alone.audio is None
    assert not torch.allclose(base.video, video_alone.video)


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = small_model().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        out = model(**small_inputs())
        (out.video.square().mean() + out.audio.square().mean()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_attention_backend_is_chosen_from_outside() -> None:
    model = small_model()
    inputs = small_inputs()
    expected = model(**inputs).video
    model.set_attention_backend("_native_math")
    try:
        torch.testing.assert_close(model(**inputs).video, expected, atol=1e-5, rtol=1e-5)
    finally:
        model.set_attention_backend("native")  # the backend is process-wide


@torch.no_grad()
def test_block_level_group_offload() -> None:
    model = small_model(3)
    inputs = small_inputs()
    expected = model(**inputs)
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=False,
    )
    projected = model.project_text(inputs["encoder_hidden_states"], inputs["encoder_hidden_states"])
    offloaded = model(**(inputs | {"encoder_hidden_states": None}), text_key_values=projected, skip_layer=0)
    torch.testing.assert_close(offloaded.video, expected.video, atol=1e-6, rtol=1e-6)
    assert all(hasattr(block, "_diffusers_hook") for block in model.blocks)


@torch.no_grad()
def test_regional_compile_takes_all_blocks() -> None:
    torch.compiler.reset()  # what other tests compiled counts against the limit of graphs
    model = small_model()
    expected = model(**small_inputs()).video
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(**small_inputs()).video, expected, atol=1e-6, rtol=1e-6)
    assert all(isinstance(block, FusionBlock) and block._compiled_call_impl is not None for block in model.blocks)


@pytest.mark.parametrize("shape", [(1, 4, 3, 5, 6), (1, 4, 3, 4, 7)])
def test_latents_that_do_not_divide_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        small_model()(**(small_inputs() | {"hidden_states": torch.zeros(shape)}))


def test_empty_calls_are_refused() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="at least one"):
        model(None, None, torch.tensor([1]))
    with pytest.raises(ValueError, match="text_key_values"):
        model(**(small_inputs() | {"encoder_hidden_states": None}))
