"""What there is to see and hear of a run while it is denoised."""

from ovi_studio.media import wav_bytes
from ovi_studio.model.preview import LatentPreview
from ovi_studio.model.sampler import Latents
from ovi_studio.runtime.apply import AppliedPlan

SOUNDS = 5  # of a run, from its middle on; guessed: before, there is only noise to hear


class Looks:
    """The picture and the sound of a run as its sampler foresees them.

    The picture is a product with a small matrix, at every step. The sound is decoded, some times: only where the
    audio VAE and the vocoder stay on the device anyhow. What they need for it is less than a step of the
    transformer does (`runtime.memory.vocoder_bytes`), and is counted in the plan.

    Args:
        placed: the pipeline at work.
        preview: of the video VAE; None for a run without a picture.
    """

    def __init__(self, placed: AppliedPlan, preview: LatentPreview | None) -> None:
        self._pipeline = placed.pipeline
        self._preview = preview
        decoders = (placed.plan.components.get("audio_vae"), placed.plan.components.get("vocoder"))
        self._can_hear = all(part is not None and part.placement == "resident" for part in decoders)

    def picture(self, latents: Latents) -> bytes | None:
        """A small JPEG; None without a picture."""
        return None if self._preview is None or latents.video is None else self._preview.jpeg(latents.video)

    def sound(self, latents: Latents, step: int, steps: int) -> bytes | None:
        """A WAV file, after `step` of `steps`; None where there is none to be heard yet, or none new."""
        every = max(1, steps // (2 * SOUNDS))
        due = steps // 2 <= step < steps and step % every == 0
        if not (due and self._can_hear) or latents.audio is None:
            return None
        return wav_bytes(self._pipeline.decode_audio(latents.audio).numpy(), self._pipeline.variant.sample_rate)
