"""`OviPipeline`: text, or text and a first frame, to picture and sound, as a diffusers pipeline.

    encode_prompts → encode_image → prepare_sampler → (FusedSampler.step)* → decode_video, decode_audio

`__call__` composes these stage methods for users of diffusers; the engine composes the same methods to report
progress and to stream frames into the encoder. Memory plans are put on from outside.
"""

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, DiffusionPipeline, MMAudioVAE
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from ovi_studio.errors import InvalidInputError
from ovi_studio.model.sampler import FusedSampler, Guidance, Latents, TextStates, draw_noise
from ovi_studio.model.schedulers import SOLVERS
from ovi_studio.model.transformer import OviTransformer
from ovi_studio.model.video_vae import decode_frames, encode_frames
from ovi_studio.model.vocoder import OviVocoder, SpectralVocoder
from ovi_studio.prompt import clean_text
from ovi_studio.variants import SIZE_MULTIPLE, Modality, Solver, Variant, get_variant

OutputType: TypeAlias = Literal["pil", "np", "pt", "latent"]
Image: TypeAlias = PIL.Image.Image | np.ndarray | Tensor
Generators: TypeAlias = Sequence[torch.Generator]  # of the video's and of the audio's noise
StepCallback: TypeAlias = Callable[["OviPipeline", int, Tensor, dict[str, Any]], dict[str, Any]]

MAX_SEED = 2**64 - 1  # of a torch.Generator


@dataclass
class OviPipelineOutput(BaseOutput):
    """A clip, or its latents.

    Args:
        frames: by `output_type`: a list of PIL images; float32 (frames, H, W, 3) in 0…1 as numpy array; float32
            (frames, 3, H, W) in 0…1 as tensor; or video latents (1, C, F, H, W). None for sound only.
        audio: the waveform in -1…1, (samples,), as numpy array ("pil", "np") or tensor; or audio latents (1, A, C).
            None for picture only.
        fps: frames per second.
        sample_rate: audio samples per second.
    """

    frames: Any
    audio: Any
    fps: int
    sample_rate: int


class OviPipeline(DiffusionPipeline):
    """Makes a short clip whose picture and sound are sampled as one process (arXiv 2510.01284).

    Args:
        tokenizer: of the text encoder.
        text_encoder: UMT5 encoder, shared by both streams.
        transformer: the twin DiT.
        video_vae: Wan2.2's video VAE.
        audio_vae: latents to mel spectrogram.
        vocoder: mel spectrogram to waveform; kept in float32.
        variant: name of the model variant, which sets clip length, sizes and defaults.
    """

    model_cpu_offload_seq = "text_encoder->transformer->video_vae->audio_vae->vocoder"
    _callback_tensor_inputs = ("latents", "audio_latents")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: UMT5EncoderModel,
        transformer: OviTransformer,
        video_vae: AutoencoderKLWan,
        audio_vae: MMAudioVAE,
        vocoder: OviVocoder | SpectralVocoder,
        variant: str = "720x720_5s",
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            transformer=transformer,
            video_vae=video_vae,
            audio_vae=audio_vae,
            vocoder=vocoder,
        )
        self.register_to_config(variant=variant)

    @property
    def variant(self) -> Variant:
        """The model variant: clip length, sizes, defaults."""
        return get_variant(self.config.variant)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | None = None,
        image: Image | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        video_guidance_scale: float | None = None,
        audio_guidance_scale: float | None = None,
        video_guidance_interval: tuple[float, float] | None = None,
        audio_guidance_interval: tuple[float, float] | None = None,
        slg_layer: int | None = None,
        shift: float | None = None,
        solver: Solver | None = None,
        seed: int | None = None,
        generator: Generators | None = None,
        video_negative_prompt: str | None = None,
        audio_negative_prompt: str | None = None,
        modality: Modality = "both",
        num_frames: int | None = None,
        num_audio_latents: int | None = None,
        text_states: TextStates | None = None,
        batched_guidance: bool = True,
        cache_text: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents", "audio_latents"),
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> OviPipelineOutput | tuple[Any, Any]:
        """Makes one clip. Whatever is left None takes the variant's default.

        Args:
            prompt: what is seen and heard; speech as `<S>words<E>`, the sound's caption in the variant's dialect.
            image: first frame; the clip takes its aspect unless a size is given.
            height: pixels, a multiple of 32.
            width: pixels, a multiple of 32; give both or neither.
            num_inference_steps: steps of the sampler.
            video_guidance_scale: how strongly the picture follows the prompt; 1 turns guidance off.
            audio_guidance_scale: how strongly the sound follows the prompt; 1 turns guidance off.
            video_guidance_interval: shares of the run, from 0 to 1, between which the picture is guided.
            audio_guidance_interval: the same for the sound. Steps outside of both run one pass instead of two.
            slg_layer: block that the negative pass skips; 0 skips none.
            shift: of the schedule.
            solver: "unipc", "dpm++" or "euler".
            seed: of both noises; random if neither it nor `generator` is given.
            generator: a pair of CPU generators, of the video's and the audio's noise, instead of `seed`.
            video_negative_prompt: what the picture is led away from.
            audio_negative_prompt: what the sound is led away from.
            modality: "both", "video" or "audio".
            num_frames: frames of the clip, 4k+1; the released models are trained at their variant's length only.
            num_audio_latents: audio latents of the clip, 512 samples each; likewise.
            text_states: encoded prompts, instead of the three texts.
            batched_guidance: run both guidance passes as one batch (faster) or one by one (less memory).
            cache_text: keep the text's keys and values over the run (faster) or not (less memory).
            callback_on_step_end: called as `f(pipeline, step, timestep, tensors)`; tensors that it returns under
                "latents" or "audio_latents" replace the sampler's.
            callback_on_step_end_tensor_inputs: which of the two it wants.
            output_type: "pil", "np", "pt" or "latent", see `OviPipelineOutput`.
            return_dict: whether to return an `OviPipelineOutput` or the tuple (frames, audio).

        Raises:
            InvalidInputError: an input is wrong; the message says which values are right.
        """
        # 0. Defaults, then checks
        variant, defaults = self.variant, self.variant.defaults
        image = None if image is None else _upright(image)
        height, width = self._size(height, width, image)
        num_frames = variant.num_frames if num_frames is None else num_frames
        num_audio_latents = variant.audio_latents if num_audio_latents is None else num_audio_latents
        solver = defaults.solver if solver is None else solver
        shift = defaults.shift if shift is None else shift
        num_inference_steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = Guidance(
            defaults.video_guidance_scale if video_guidance_scale is None else video_guidance_scale,
            defaults.audio_guidance_scale if audio_guidance_scale is None else audio_guidance_scale,
            defaults.slg_layer if slg_layer is None else slg_layer,
            batched_guidance,
            defaults.video_guidance_interval if video_guidance_interval is None else video_guidance_interval,
            defaults.audio_guidance_interval if audio_guidance_interval is None else audio_guidance_interval,
        )
        self.check_inputs(prompt, text_states, image, height, width, num_frames, num_inference_steps, modality)
        self._check_numbers(guidance, shift, num_audio_latents)
        self._check_choices(solver, seed, generator, output_type, callback_on_step_end_tensor_inputs)

        # 1. Prompts to text states
        if text_states is None:
            text_states = self.encode_prompts(
                prompt or "",
                defaults.video_negative_prompt if video_negative_prompt is None else video_negative_prompt,
                defaults.audio_negative_prompt if audio_negative_prompt is None else audio_negative_prompt,
            )

        # 2. First frame to its latent
        first_frame = None
        if image is not None and modality != "audio":
            first_frame = self.encode_image(image, height, width)

        # 3. Sampler and noise
        sampler = self.prepare_sampler(
            text_states, guidance, solver, shift, num_inference_steps, first_frame, cache_text
        )
        latents = sampler.begin(
            self.prepare_noise(height, width, num_frames, num_audio_latents, modality, seed, generator)
        )

        # 4. Denoise
        with self.progress_bar(total=num_inference_steps) as progress:
            for index, timestep in enumerate(sampler.timesteps):
                latents = sampler.step(latents, index)
                if callback_on_step_end is not None:
                    latents = self._call_back(
                        callback_on_step_end, index, timestep, latents, callback_on_step_end_tensor_inputs
                    )
                progress.update()

        # 5. Decode
        del sampler  # with its text keys and values
        frames, audio = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return frames, audio
        return OviPipelineOutput(frames, audio, variant.fps, variant.sample_rate)

    # --- Stages ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_prompt(self, prompt: str, max_sequence_length: int | None = None) -> Tensor:
        """Text states (1, max_sequence_length, text_dim) of one prompt, zero-padded after its own tokens.

        The text is cleaned as the model was trained on it, cut to the length with its end token kept. The length
        is the variant's unless given.
        """
        length = max_sequence_length or self.variant.text_len
        tokens = self.tokenizer(
            clean_text(prompt),
            max_length=length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        device = self._execution_device
        states = self.text_encoder(
            tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device)
        ).last_hidden_state
        return F.pad(states, (0, 0, 0, length - states.shape[1]))

    def encode_prompts(self, prompt: str, video_negative_prompt: str, audio_negative_prompt: str) -> TextStates:
        """Text states of the prompt and both negative prompts."""
        return TextStates(
            *(self.encode_prompt(text) for text in (prompt, video_negative_prompt, audio_negative_prompt))
        )

    @torch.no_grad()
    def encode_image(self, image: Image, height: int, width: int) -> Tensor:
        """Normalized latent (1, C, 1, H/16, W/16) of a first frame."""
        return encode_frames(self.video_vae, preprocess_image(_upright(image), height, width)[:, :, None])

    def prepare_sampler(
        self,
        text: TextStates,
        guidance: Guidance,
        solver: Solver,
        shift: float,
        num_inference_steps: int,
        first_frame: Tensor | None = None,
        cache_text: bool = True,
    ) -> FusedSampler:
        """The sampler of one run, with the text on the transformer's device and in its type; see `FusedSampler`."""
        device, dtype = self._execution_device, self.transformer.dtype
        placed = TextStates(*(x.to(device, dtype) for x in (text.positive, text.video_negative, text.audio_negative)))
        return FusedSampler(
            self.transformer, placed, guidance, solver, shift, num_inference_steps, first_frame, cache_text
        )

    def prepare_noise(
        self,
        height: int,
        width: int,
        num_frames: int | None = None,
        num_audio_latents: int | None = None,
        modality: Modality = "both",
        seed: int | None = None,
        generator: Generators | None = None,
    ) -> Latents:
        """Initial noise for a clip of this size, on the CPU in float32; two generators start from one seed."""
        variant, config = self.variant, self.transformer.config
        if generator is None:
            seed = secrets.randbelow(2**63) if seed is None else seed
            generator = (torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed))
        ratio = self.video_vae.spatial_compression_ratio
        latent_frames = 1 + ((num_frames or variant.num_frames) - 1) // variant.temporal_factor
        video_shape = (config.in_channels, latent_frames, height // ratio, width // ratio)
        audio_shape = (num_audio_latents or variant.audio_latents, config.audio_in_channels)
        return draw_noise(
            None if modality == "audio" else video_shape,
            None if modality == "video" else audio_shape,
            generator,
        )

    @torch.no_grad()
    def decode_video(self, latents_BCFHW: Tensor) -> Iterator[Tensor]:
        """Frames as they are decoded: (n, 3, H, W) in -1…1 on the VAE's device; n is 1, then 4 each time."""
        for frames_BCFHW in decode_frames(self.video_vae, latents_BCFHW):
            yield frames_BCFHW[0].transpose(0, 1)

    @torch.no_grad()
    def decode_audio(self, latents_BAC: Tensor) -> Tensor:
        """The waveform (samples,) in -1…1, float32, on the CPU: 512 samples a latent."""
        device, dtype = self._execution_device, self.audio_vae.dtype
        mel = self.audio_vae.decode(latents_BAC.transpose(1, 2).to(device, dtype)).sample
        waveform: Tensor = self.vocoder(mel.to(self.vocoder.dtype)).sample
        return waveform.flatten().float().cpu()

    # --- Inputs and outputs ------------------------------------------------------------------------------------

    def check_inputs(
        self,
        prompt: str | None,
        text_states: TextStates | None,
        image: Image | None,
        height: int,
        width: int,
        num_frames: int,
        num_inference_steps: int,
        modality: str,
    ) -> None:
        """Refuses what cannot become a clip.

        Raises:
            InvalidInputError: one of the inputs is wrong.
        """
        if (prompt is None) == (text_states is None):
            raise InvalidInputError(
                "The clip needs a prompt, or encoded prompts, and not both.",
                "Pass `prompt` or `text_states`.",
            )
        if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            raise InvalidInputError("The prompt is empty or not a single text.", "Pass one prompt per call.")
        if modality not in ("both", "video", "audio"):
            raise InvalidInputError(f"There is no modality called {modality!r}.", "Choose 'both', 'video' or 'audio'.")
        if image is not None and modality == "audio":
            raise InvalidInputError(
                "A clip of sound only cannot start from a picture.",
                "Leave out `image`, or choose another modality.",
            )
        if min(height, width) < SIZE_MULTIPLE or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            snapped = self.variant.snap_size(max(1, height), max(1, width))
            raise InvalidInputError(
                f"Height and width must be multiples of {SIZE_MULTIPLE}, not {height}x{width}.",
                f"{self.variant.name} would use {snapped}.",
            )
        if num_frames < 1 or (num_frames - 1) % self.variant.temporal_factor:
            raise InvalidInputError(
                f"The number of frames must be 4k+1, not {num_frames}.",
                f"The variant's own length is {self.variant.num_frames} frames.",
            )
        if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise InvalidInputError(
                f"The sampler needs at least one step, not {num_inference_steps}.",
                f"{self.variant.defaults.num_inference_steps} is the usual number.",
            )

    def _check_choices(
        self,
        solver: str | None,
        seed: int | None,
        generator: Generators | None,
        output_type: str,
        callback_tensors: tuple[str, ...],
    ) -> None:
        if solver is not None and solver not in SOLVERS:
            raise InvalidInputError(f"There is no solver called {solver!r}.", f"Choose one of {', '.join(SOLVERS)}.")
        if seed is not None and generator is not None:
            raise InvalidInputError("Both a seed and generators were given.", "Pass only one of them.")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed <= MAX_SEED):
            raise InvalidInputError(f"The seed {seed} is out of range.", f"Choose one from 0 to {MAX_SEED}.")
        if generator is not None and not (
            isinstance(generator, (tuple, list)) and [g.device.type for g in generator] == ["cpu", "cpu"]
        ):
            raise InvalidInputError(
                "`generator` must be a pair of CPU generators.",
                "Pass one for the video's and one for the audio's noise.",
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InvalidInputError(
                f"There is no output type called {output_type!r}.", "Choose 'pil', 'np', 'pt' or 'latent'."
            )
        if unknown := set(callback_tensors) - set(self._callback_tensor_inputs):
            raise InvalidInputError(
                f"The step callback cannot have {sorted(unknown)}.",
                f"Choose from {self._callback_tensor_inputs}.",
            )

    def _check_numbers(self, guidance: Guidance, shift: float, num_audio_latents: int) -> None:
        if not all(math.isfinite(x) and x >= 1 for x in (guidance.video_scale, guidance.audio_scale)):
            raise InvalidInputError(
                f"Guidance scales of {guidance.video_scale} and {guidance.audio_scale} are not possible.",
                "Choose numbers from 1 (no guidance) upwards.",
            )
        for start, end in (guidance.video_interval, guidance.audio_interval):
            if not 0 <= start <= end <= 1:
                raise InvalidInputError(
                    f"Guidance cannot work from {start} to {end}.", "Give shares of the run, 0 ≤ start ≤ end ≤ 1."
                )
        layers = self.transformer.config.num_layers
        if not 0 <= guidance.skip_layer < layers:
            raise InvalidInputError(
                f"There is no block {guidance.skip_layer} to skip: the transformer has {layers}.",
                f"Choose `slg_layer` from 1 to {layers - 1}, or 0 to skip none.",
            )
        if not (math.isfinite(shift) and shift > 0):
            raise InvalidInputError(f"A shift of {shift} is not possible.", "Choose a positive number; 5 is usual.")
        if num_audio_latents < 1:
            raise InvalidInputError(
                f"A clip of {num_audio_latents} audio latents has no sound.",
                f"The variant's own length is {self.variant.audio_latents}.",
            )

    def _size(self, height: int | None, width: int | None, image: Image | None) -> tuple[int, int]:
        """What was asked for, or else the variant's size, in the image's aspect if there is one."""
        if height is not None and width is not None:
            return height, width
        if height is not None or width is not None:
            raise InvalidInputError("Only one of height and width was given.", "Give both, or neither.")
        if image is None:
            return self.variant.default_size
        return self.variant.size_for_image(*_image_size(image))

    def _call_back(
        self, callback: StepCallback, index: int, timestep: Tensor, latents: Latents, wanted: tuple[str, ...]
    ) -> Latents:
        tensors = {"latents": latents.video, "audio_latents": latents.audio}
        returned = callback(self, index, timestep, {name: tensors[name] for name in wanted}) or {}
        return Latents(returned.get("latents", latents.video), returned.get("audio_latents", latents.audio))

    def _decode(self, latents: Latents, output_type: OutputType) -> tuple[Any, Any]:
        if output_type == "latent":
            return latents.video, latents.audio
        audio: Any = None if latents.audio is None else self.decode_audio(latents.audio)
        audio = audio.numpy() if audio is not None and output_type != "pt" else audio
        if latents.video is None:
            return None, audio
        if output_type == "pil":
            parts = (frames_to_uint8(frames) for frames in self.decode_video(latents.video))
            return [PIL.Image.fromarray(frame) for part in parts for frame in part], audio
        frames = torch.cat([(frames.float().cpu() + 1) / 2 for frames in self.decode_video(latents.video)])
        return frames if output_type == "pt" else frames.permute(0, 2, 3, 1).numpy(), audio


def preprocess_image(image: Image, height: int, width: int) -> Tensor:
    """A picture to (1, 3, height, width), float32, resized as the reference does: bicubic, without antialiasing.

    Args:
        image: a PIL image; an uint8 array (H, W, 3); or a float tensor (3, H, W) or (1, 3, H, W) in -1…1.
        height: pixels.
        width: pixels.

    Returns:
        Values about -1…1; bicubic resizing overshoots at edges, as in the reference.
    """
    if isinstance(image, Tensor):
        pixels = image.float() if image.ndim == 4 else image.float()[None]
    else:
        array = np.asarray(image.convert("RGB")) if isinstance(image, PIL.Image.Image) else image
        pixels = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    return F.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False)


def frames_to_uint8(frames_FCHW: Tensor) -> np.ndarray:
    """Frames in -1…1 to an uint8 array (n, H, W, 3), rounded down as the reference does."""
    scaled = (frames_FCHW.float().clamp(-1.0, 1.0) + 1.0) / 2.0 * 255.0
    array: np.ndarray = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def _upright(image: Image) -> Image:
    """A picture as it is meant to be seen: a PIL image turned as its EXIF data says.

    Raises:
        InvalidInputError: it is none of the kinds that `preprocess_image` takes.
    """
    if isinstance(image, PIL.Image.Image):
        return PIL.ImageOps.exif_transpose(image)
    pixels = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
    values = isinstance(image, Tensor) and image.is_floating_point() and image.shape[-3:-2] == (3,)
    if not (pixels or (values and image.ndim in (3, 4))):
        raise InvalidInputError(
            f"A first frame cannot be a {type(image).__name__} of this kind.",
            "Pass a PIL image, an uint8 array (H, W, 3), or a float tensor (3, H, W) in -1…1.",
        )
    return image


def _image_size(image: Image) -> tuple[int, int]:
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    return int(height), int(width)
