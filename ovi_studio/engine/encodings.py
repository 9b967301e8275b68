"""What the text encoder and the video VAE made of prompts and first frames, kept for the next clip.

Takes differ in their seed alone, and negative prompts hardly ever change: what is known need not be encoded again,
and where all prompts are, the text encoder need not come to the card. An encoding is kept under what went in: the
text or the pixels, the weights, and how they were computed with.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager

import PIL.Image
from torch import Tensor, nn

from ovi_studio.events import Stage
from ovi_studio.model.pipeline import OviPipeline
from ovi_studio.model.sampler import TextStates
from ovi_studio.runtime.execution_plan import ComponentName, ExecutionPlan
from ovi_studio.variants import Size

MAX_BYTES = 256 << 20  # guessed: 60 prompts of full size, 4 MB each
_SAMPLES = 64  # elements of every tensor that tell weights apart; guessed: training changes all of them

Staging = Callable[[Stage], AbstractContextManager[None]]


class Encodings:
    """Encodings in host memory; the one that was used longest ago goes first.

    Args:
        max_bytes: of all together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
        self._digests: dict[ComponentName, str] = {}

    def loaded(self, pipeline: OviPipeline) -> None:
        """Another pipeline is at work, its weights as they were loaded."""
        self._digests = {
            "text_encoder": weights_digest(pipeline.text_encoder),
            "video_vae": weights_digest(pipeline.video_vae),
        }

    def prompts(
        self, pipeline: OviPipeline, plan: ExecutionPlan, texts: tuple[str, str, str], stage: Staging
    ) -> TextStates:
        """`OviPipeline.encode_prompts`, inside of its stage if there is anything to encode."""
        keys = [(*self._way("text_encoder", plan), pipeline.variant.text_len, text) for text in texts]
        known = {key: self._kept[key] for key in keys if key in self._kept}
        if len(known) < len(set(keys)):
            with stage("encode text"):
                known |= {
                    k: pipeline.encode_prompt(text) for k, text in zip(keys, texts, strict=True) if k not in known
                }
        for key, state in known.items():
            self._keep(key, state)
        return TextStates(*(known[key] for key in keys))

    def first_frame(
        self, pipeline: OviPipeline, plan: ExecutionPlan, image: PIL.Image.Image, size: Size, stage: Staging
    ) -> Tensor:
        """`OviPipeline.encode_image`, inside of its stage if it is not known."""
        pixels = image.convert("RGB")
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        key = (*self._way("video_vae", plan), pixels.size, digest, tuple(size))
        latent = self._kept.get(key)
        if latent is None:
            with stage("first frame"):
                latent = pipeline.encode_image(image, *size)
        self._keep(key, latent)
        return latent

    def _way(self, component: ComponentName, plan: ExecutionPlan) -> tuple[object, ...]:
        """What else an encoding depends on: weights, and how they are computed with."""
        return component, self._digests[component], plan.components[component].precision, plan.device_name

    def _keep(self, key: tuple[object, ...], encoding: Tensor) -> None:
        self._kept[key] = encoding.cpu()
        self._kept.move_to_end(key)
        while sum(tensor.nbytes for tensor in self._kept.values()) > self._max_bytes:
            self._kept.popitem(last=False)


def weights_digest(module: nn.Module) -> str:
    """Tells weights apart by some elements of every tensor, so that mapped files need not be read whole."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES]
        digest.update(f"{name} {tuple(tensor.shape)} {some.double().tolist()}".encode())
    return digest.hexdigest()
