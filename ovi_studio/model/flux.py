"""Drawing with FLUX.1 step by step: the stages of diffusers' `FluxPipeline`, apart, so that its parts can take turns.

    encode_prompt(pipeline, prompt)  → FluxText       text encoders
    FluxSampler(transformer, …)      → latents        transformer
    decode(vae, latents)             → picture        VAE

In float32 the picture is the pipeline's own, to the last bit. Where the transformer is in bf16 the state between steps
stays in float32, and the noise is drawn in float32 on the CPU, so that every device begins with the same.

Shapes: B 1, T text tokens, L picture tokens of 2×2 latents, D width of a token, C channels, H and W latents each way.
"""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from ovi_studio.model.preview import LatentPreview
from ovi_studio.variants import Size

_LATENT = 8  # pixels a latent, each way


@dataclass(frozen=True)
class FluxText:
    """An encoded prompt.

    Args:
        words_BTD: T5's states.
        summary_BD: CLIP's.
        ids_T3: positions of the words; all zero.
    """

    words_BTD: Tensor
    summary_BD: Tensor
    ids_T3: Tensor


@torch.no_grad()
def encode_prompt(pipeline: FluxPipeline, prompt: str, text_len: int, device: torch.device) -> FluxText:
    """The prompt for the sampler, by a pipeline that has its text encoders on the device."""
    return FluxText(*pipeline.encode_prompt(prompt, None, device, max_sequence_length=text_len))


class FluxSampler:
    """Denoises latents in the schedule of the model.

    Args:
        transformer: on its device.
        scheduler: its own.
        text: the encoded prompt, on the same device.
        size: of the picture in pixels, multiples of 16.
        steps: of the schedule.
        guidance_scale: what the model was distilled for.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text: FluxText,
        size: Size,
        steps: int,
        guidance_scale: float,
    ) -> None:
        self._transformer, self._scheduler, self._text, self._size = transformer, scheduler, text, size
        self._device, self._dtype = text.words_BTD.device, text.words_BTD.dtype
        rows, columns = self._grid
        self._ids_L3 = FluxPipeline._prepare_latent_image_ids(1, rows, columns, self._device, self._dtype)
        config = scheduler.config
        shift = calculate_shift(
            rows * columns,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=self._device, mu=shift)
        scheduler.set_begin_index(0)
        self._guidance_B = None
        if transformer.config.guidance_embeds:
            self._guidance_B = torch.full([1], guidance_scale, device=self._device)
        self.steps = len(scheduler.timesteps)

    def begin(self, seed: int) -> Tensor:
        """The noise, (B, L, D) in float32."""
        rows, columns = self._grid
        channels = self._transformer.config.in_channels // 4
        noise_BCHW = torch.randn(1, channels, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(seed))
        return FluxPipeline._pack_latents(noise_BCHW, 1, channels, 2 * rows, 2 * columns).to(self._device)

    @torch.no_grad()
    def step(self, latents_BLD: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The latents after step `index`, and what they would be if all went straight on from here."""
        timestep = self._scheduler.timesteps[index]
        velocity_BLD = self._transformer(
            hidden_states=latents_BLD.to(self._dtype),
            timestep=timestep.expand(1).to(self._dtype) / 1000,
            guidance=self._guidance_B,
            pooled_projections=self._text.summary_BD,
            encoder_hidden_states=self._text.words_BTD,
            txt_ids=self._text.ids_T3,
            img_ids=self._ids_L3,
            return_dict=False,
        )[0].float()
        estimate_BLD = latents_BLD - self._scheduler.sigmas[index].to(self._device) * velocity_BLD
        return self._scheduler.step(velocity_BLD, timestep, latents_BLD, return_dict=False)[0], estimate_BLD

    def unpacked(self, latents_BLD: Tensor) -> Tensor:
        """The latents in their places, (B, C, H, W)."""
        latents_BCHW: Tensor = FluxPipeline._unpack_latents(latents_BLD, *self._size, _LATENT)
        return latents_BCHW

    @property
    def _grid(self) -> tuple[int, int]:
        """Tokens each way."""
        return self._size.height // (2 * _LATENT), self._size.width // (2 * _LATENT)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents_BCHW: Tensor) -> PIL.Image.Image:
    """The picture."""
    latents_BCHW = latents_BCHW.to(vae.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    pixels_BCHW = vae.decode(latents_BCHW, return_dict=False)[0].float()
    picture: PIL.Image.Image = VaeImageProcessor(vae_scale_factor=_LATENT).postprocess(pixels_BCHW, "pil")[0]
    return picture


@torch.no_grad()
def fit_preview(vae: AutoencoderKL) -> LatentPreview:
    """Colours of latents, fitted as those of the video VAE are: on soft colour fields sent through the VAE itself."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(-1.2, 1.2, (1, 3, 8, 8)).astype(np.float32))
    pixels_BCHW = F.interpolate(coarse, size=(256, 256), mode="bilinear", align_corners=True).clamp(-1, 1)
    latents_BCHW = vae.encode(pixels_BCHW.to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
    latents_CN = ((latents_BCHW - vae.config.shift_factor) * vae.config.scaling_factor)[0].flatten(1)
    design = torch.cat((latents_CN.T, torch.ones(latents_CN.shape[1], 1)), dim=1)
    target = (F.avg_pool2d(pixels_BCHW, _LATENT)[0].flatten(1).T + 1) / 2
    solution = torch.linalg.lstsq(design, target, driver="gelsd").solution
    return LatentPreview(solution[:-1], solution[-1])
