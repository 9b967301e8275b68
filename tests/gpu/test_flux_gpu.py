"""What only a graphics card can show of drawing a first frame; see docs/gpu-checklist.md."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ovi_studio.engine.engine import OviEngine
from ovi_studio.events import CancelToken, Finished, FrameDrawn
from ovi_studio.request import GeneratedFrame, GenerationRequest
from ovi_studio.runtime.execution_plan import ComponentPlan
from ovi_studio.runtime.flux import at_work
from ovi_studio.runtime.planner import Planner
from ovi_studio.weights.image_model import image_model
from ovi_studio.weights.store import Store
from tests.flux import put_in_store, tiny_flux

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
CARD = torch.device("cuda:0")
PLACES = {
    "staged": ComponentPlan("bf16", "staged", "disk"),
    "streamed from host": ComponentPlan("bf16", "streamed", "host", 3),
    "streamed from disk": ComponentPlan("bf16", "streamed", "disk", 3),
    "int8": ComponentPlan("int8", "staged", "disk"),
    "nf4": ComponentPlan("nf4", "staged", "disk"),
}
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


@torch.no_grad()
def forward(planned: ComponentPlan, folder: Path) -> list[torch.Tensor]:
    """Two forwards in bf16 on the card."""
    transformer = tiny_flux().transformer
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 16, 16, generator=generator),
        "pooled_projections": torch.randn(1, 16, generator=generator),
        "encoder_hidden_states": torch.randn(1, 8, 32, generator=generator),
    }
    inputs = {name: tensor.to(CARD, torch.bfloat16) for name, tensor in inputs.items()}
    inputs |= {"timestep": torch.tensor([0.5]), "guidance": torch.tensor([4.5])}
    inputs |= {"txt_ids": torch.zeros(8, 3), "img_ids": torch.zeros(16, 3)}
    inputs = {name: tensor.to(CARD) for name, tensor in inputs.items()}
    with at_work(transformer, planned, CARD, folder):
        return [transformer(**inputs).sample.float().cpu() for _ in range(2)]


@pytest.mark.parametrize("place", PLACES)
def test_places(place: str, tmp_path: Path) -> None:
    planned = PLACES[place]
    if planned.precision in PACKAGES:
        pytest.importorskip(PACKAGES[planned.precision])
    (expected, _), made = forward(PLACES["staged"], tmp_path), forward(planned, tmp_path)
    held = torch.cuda.memory_allocated()
    if planned.precision == "bf16":
        assert all(torch.equal(tensor, expected) for tensor in made)
    else:
        bound = {"int8": 0.02, "nf4": 0.2}[planned.precision]
        assert all((tensor - expected).norm() < bound * expected.norm() for tensor in made)
    forward(planned, tmp_path)
    assert torch.cuda.memory_allocated() <= held, "nothing of it stays"


def test_text_picture_clip(tmp_path: Path) -> None:
    store, cache = Store(tmp_path / "weights"), tmp_path / "cache"
    put_in_store(tiny_flux(), store)
    engine = OviEngine(tmp_path, cache, Planner(cache, image_model=lambda: image_model(store)), store)
    request = GenerationRequest.create(
        prompt="A face.", seed=3, num_inference_steps=1, first_frame=GeneratedFrame(seed=5)
    )
    events = list(engine.generate(request, CancelToken()))
    assert isinstance(events[-1], Finished), events[-1]
    (drawn,) = (event for event in events if isinstance(event, FrameDrawn))
    first = np.asarray(PIL.Image.open(drawn.path))
    drawn.path.unlink()
    assert list(engine.draw(request, CancelToken()))[-1] == drawn
    assert np.array_equal(np.asarray(PIL.Image.open(drawn.path)), first), "the same seed, the same picture"
    engine.close()
