"""The table of model variants: what each one is made of, and which clips it makes.

    VARIANTS / get_variant(name) → Variant → shapes of its five components, clip geometry, sampling defaults

Sizes are always (height, width) in pixels; aspects are written width:height. What a variant weighs and
how much work it is, `arithmetic.py` works out from the shapes. Nothing here imports torch.

Sources: arXiv 2510.01284 and the tensor shapes of the three released checkpoints; `nano` is ours.
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from ovi_studio.assets import NANO_CARD, has_data
from ovi_studio.errors import InvalidInputError
from ovi_studio.shapes import (
    AudioVaeShape,
    SpectralVocoderShape,
    TextEncoderShape,
    TransformerShape,
    VideoVaeShape,
    VocoderShape,
)

Modality: TypeAlias = Literal["both", "video", "audio"]
CaptionDialect: TypeAlias = Literal["audcap", "audio_prefix"]  # <AUDCAP>…<ENDAUDCAP>; "Audio: …" at the end
Solver: TypeAlias = Literal["unipc", "dpm++", "euler"]

WHOLE_RUN = (0.0, 1.0)  # shares of a run between which guidance works
SIZE_MULTIPLE = 32  # 16 pixels per latent × 2 latents per token side
# What a person may ask for. Guessed: sizes snap to the variant's area, and the trained ones end at 448×1152.
MIN_SIDE, MAX_SIDE = 32, 4096
MAX_ASPECT = 4.0


class Size(NamedTuple):
    """Height and width of a picture in pixels. Prints as `704x1280`."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def area(self) -> int:
        """Pixels."""
        return self.height * self.width


def is_guided(interval: tuple[float, float], step: int, steps: int) -> bool:
    """Whether guidance that works between these two shares of a run works in its step number `step`."""
    start, end = interval
    return start <= (step + 0.5) / steps < end


@dataclass(frozen=True)
class SamplingDefaults:
    """How a variant is sampled unless the request says otherwise."""

    num_inference_steps: int = 50
    solver: Solver = "unipc"
    shift: float = 5.0
    video_guidance_scale: float = 4.0
    audio_guidance_scale: float = 3.0
    video_guidance_interval: tuple[float, float] = WHOLE_RUN
    audio_guidance_interval: tuple[float, float] = WHOLE_RUN
    slg_layer: int = 11  # the block that the negative pass leaves out; 0: none
    video_negative_prompt: str = "jitter, bad hands, blur, distortion"
    audio_negative_prompt: str = "robotic, muffled, echo, distorted"


@dataclass(frozen=True)
class Variant:
    """One released (or embedded) model: its components, the one clip length it makes, and its defaults.

    Args:
        name: what requests and commands call it.
        title: a few words for a menu.
        description: one sentence for a person who chooses.
        fusion_file: the transformer's file in the released checkpoints; None where the package has it.
        transformer: and the other shapes: its components.
        text_len: text tokens the transformer attends to; prompts are cut or padded to it.
        video_latent_frames: latent frames of a clip.
        audio_latents: audio latents of a clip.
        target_area: pixels per frame it was trained at; sizes snap to it.
        caption_dialect: how it was taught to read the caption of the sound.
        default_size: of a clip, where neither size, aspect nor image is given.
        trained: False while the weights are random: every door says "untrained: expect noise".
    """

    name: str
    title: str
    description: str
    fusion_file: str | None
    transformer: TransformerShape
    text_encoder: TextEncoderShape
    video_vae: VideoVaeShape
    audio_vae: AudioVaeShape
    vocoder: VocoderShape | SpectralVocoderShape
    text_len: int
    video_latent_frames: int
    audio_latents: int
    target_area: int
    caption_dialect: CaptionDialect
    default_size: Size
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    fps: int = 24
    sample_rate: int = 16_000
    spatial_factor: int = 16  # pixels per latent, each way
    temporal_factor: int = 4  # frames per latent frame, after the first
    samples_per_latent: int = 512  # two mel frames of 256 samples
    trained: bool = True

    @property
    def num_frames(self) -> int:
        """Frames of a clip: the first latent frame is one frame, every other `temporal_factor`."""
        return 1 + self.temporal_factor * (self.video_latent_frames - 1)

    @property
    def num_samples(self) -> int:
        """Audio samples of a clip."""
        return self.audio_latents * self.samples_per_latent

    @property
    def video_duration(self) -> float:
        """Seconds of picture."""
        return self.num_frames / self.fps

    @property
    def audio_duration(self) -> float:
        """Seconds of sound: some milliseconds off the picture's; nothing is stretched."""
        return self.num_samples / self.sample_rate

    @property
    def duration(self) -> float:
        """Seconds of a clip: the longer of picture and sound."""
        return max(self.video_duration, self.audio_duration)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes to offer: the recommended ones as they snap to this variant's area, without repeats."""
        return tuple(dict.fromkeys(self.snap_size(*size) for size in RECOMMENDED_SIZES))

    def snap_size(self, height: int, width: int) -> Size:
        """The size a clip really gets when this one is asked for."""
        return snap_size(height, width, self.target_area)

    def size_for_aspect(self, aspect: str) -> Size:
        """The size for an aspect written width:height."""
        return size_for_aspect(aspect, self.target_area)

    def size_for_image(self, height: int, width: int) -> Size:
        """The size of a clip that starts from an image of this size (after EXIF rotation)."""
        return size_for_image(height, width, self.target_area)

    def latent_grid(self, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a clip of this size.

        Raises:
            InvalidInputError: a side is not a positive multiple of 32.
        """
        if min(height, width) <= 0 or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise InvalidInputError(
                f"The size {height}x{width} is not a multiple of {SIZE_MULTIPLE} each way.",
                f"Snap it first; {self.name} would use {self.snap_size(max(height, 1), max(width, 1))}.",
            )
        return self.video_latent_frames, height // self.spatial_factor, width // self.spatial_factor

    def video_tokens(self, height: int, width: int) -> int:
        """Tokens of the video tower for a clip of this size."""
        grid = zip(self.latent_grid(height, width), self.transformer.patch_size, strict=True)
        return math.prod(latents // patch for latents, patch in grid)

    @property
    def audio_tokens(self) -> int:
        """Tokens of the audio tower: one per latent."""
        return self.audio_latents


def get_variant(name: str) -> Variant:
    """The variant called `name`.

    Raises:
        InvalidInputError: there is none; the message lists all, and the one that was probably meant.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    names = ", ".join(VARIANTS)
    raise InvalidInputError(f"There is no model called {name!r}.", f"{guess}Choose one of: {names}.")


# --- Sizes ------------------------------------------------------------------------------------------------


def snap_size(height: int, width: int, area: int | None = None) -> Size:
    """The nearest size in multiples of 32 at about `area` pixels; without `area`, at its own.

    Sides are first rounded to whole pixels, and ties go to the even multiple: so does the reference.

    Raises:
        InvalidInputError: a side is not positive.
    """
    _check_positive(height, width)
    if area:
        scale = math.sqrt(area / (height * width))
        height, width = round(height * scale), round(width * scale)
    return Size(_nearest_multiple(height, SIZE_MULTIPLE), _nearest_multiple(width, SIZE_MULTIPLE))


def scale_to_area(height: int, width: int, area: int, multiple: int = SIZE_MULTIPLE) -> Size:
    """The size at about `area` pixels with each side rounded to a `multiple`, as image models want it.

    Raises:
        InvalidInputError: a side is not positive.
    """
    _check_positive(height, width)
    scale = math.sqrt(area / (height * width))
    return Size(_nearest_multiple(height * scale, multiple), _nearest_multiple(width * scale, multiple))


def size_for_image(height: int, width: int, area: int) -> Size:
    """The size in multiples of 32 at which an image becomes a first frame.

    Candidates are seven heights about the ideal one, each with the width that fits the image's aspect best,
    and the size with both sides rounded on their own. The nearest to `area` wins, then the nearest in aspect.

    Raises:
        InvalidInputError: a side is not positive.
    """
    _check_positive(height, width)
    aspect = width / height
    cells = max(1, area // SIZE_MULTIPLE**2)
    ideal_rows = max(1, round(math.sqrt(cells / aspect)))
    candidates = []
    for rows in range(max(1, ideal_rows - 3), ideal_rows + 4):
        columns = max(1, round(rows * aspect))
        candidates.append(Size(rows * SIZE_MULTIPLE, columns * SIZE_MULTIPLE))
    candidates.append(scale_to_area(height, width, area))
    return min(candidates, key=lambda size: (abs(size.area - area), abs(size.width / size.height - aspect)))


def size_for_aspect(aspect: str, area: int) -> Size:
    """The largest size in multiples of 32 within the rectangle of this `area` and aspect (width:height)."""
    across, down = parse_aspect(aspect)
    unit = math.sqrt(area / (across * down))
    height, width = (max(1, int(unit * side) // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in (down, across))
    return Size(height, width)


def parse_aspect(text: str) -> tuple[float, float]:
    """Reads `16:9`, width first; decimals such as `2.39:1` are fine.

    Raises:
        InvalidInputError: it is not two positive numbers, or the picture would be a thin strip.
    """
    match = re.fullmatch(r"\s*(\d{1,5}(?:\.\d{1,5})?)\s*:\s*(\d{1,5}(?:\.\d{1,5})?)\s*", text)
    across, down = (float(number) for number in match.groups()) if match else (0.0, 0.0)
    if not across or not down:
        raise InvalidInputError(
            f"The aspect {text[:40]!r} is not width:height.",
            "Write two positive numbers, for example 16:9.",
        )
    _check_aspect(across, down, text)
    return across, down


def parse_size(text: str) -> Size:
    """Reads `704x1280`, height first, as it was asked for: not snapped.

    Raises:
        InvalidInputError: it is not two whole numbers, or no clip could be that large, small or thin.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×*]\s*(\d{1,9})\s*", text)
    if not match:
        raise InvalidInputError(
            f"The size {text[:40]!r} is not heightxwidth.",
            "Write two positive whole numbers of pixels, for example 704x1280.",
        )
    size = Size(int(match[1]), int(match[2]))
    if min(size) < MIN_SIDE or max(size) > MAX_SIDE:
        raise InvalidInputError(
            f"The size {size} is out of range.", f"Each side must be {MIN_SIDE} to {MAX_SIDE} pixels."
        )
    _check_aspect(size.width, size.height, text)
    return size


def parse_interval(text: str) -> tuple[float, float]:
    """Reads `0.1:0.8`, two shares of a run.

    Raises:
        InvalidInputError: it is not two numbers.
    """
    start, _, end = text.partition(":")
    try:
        return float(start), float(end)
    except ValueError as error:
        raise InvalidInputError(
            f"The interval {text[:40]!r} is not start:end.", "Write two shares of the run, for example 0.1:0.8."
        ) from error


def interval_text(interval: tuple[float, float] | None) -> str:
    """As `parse_interval` reads it; empty for none."""
    return "" if interval is None else ":".join(map(repr, interval))


def _nearest_multiple(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)


def _check_positive(height: int, width: int) -> None:
    if height <= 0 or width <= 0:
        raise InvalidInputError(
            f"The size {height}x{width} is not a picture.", "Height and width must be at least 1 pixel."
        )


def _check_aspect(across: float, down: float, text: str) -> None:
    if max(across / down, down / across) > MAX_ASPECT:
        raise InvalidInputError(
            f"The picture {text.strip()!r} is too thin.",
            f"One side may be at most {MAX_ASPECT:g} times the other.",
        )


# --- The table --------------------------------------------------------------------------------------------

RECOMMENDED_SIZES = (
    Size(704, 1280), Size(1280, 704), Size(960, 960), Size(512, 992), Size(992, 512), Size(960, 512),
    Size(512, 960), Size(720, 720), Size(448, 1120),
)  # fmt: skip

# Statistics of the 48 latent channels of Wan2.2's VAE: normalised latent = (mode - mean) / std.
_WAN_LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
_WAN_LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


def _released(name: str, title: str, description: str, **facts: Any) -> Variant:
    """A released variant: all three share every component but the transformer's weights."""
    return Variant(
        name=name,
        title=title,
        description=description,
        transformer=TransformerShape(),
        text_encoder=TextEncoderShape(
            vocab_size=256_384, d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64
        ),
        video_vae=VideoVaeShape(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            dim_mult=(1, 2, 4, 4),
            num_res_blocks=2,
            temperal_downsample=(False, True, True),
            patch_size=2,
            in_channels=12,
            out_channels=12,
            latents_mean=_WAN_LATENTS_MEAN,
            latents_std=_WAN_LATENTS_STD,
        ),
        audio_vae=AudioVaeShape(latent_channels=20, hidden_channels=384, layers_per_block=2),
        vocoder=VocoderShape(),
        text_len=512,
        **facts,
    )


def _nano() -> Variant:
    """The embedded variant: the same classes, small enough to travel in the package (≤ 25 MB in float16)."""
    return Variant(
        name="nano",
        title="nano, 2 s",
        description="A toy model inside the package: 96×96 pixels, a clip in seconds on a laptop's CPU.",
        fusion_file=None,
        transformer=TransformerShape(
            num_attention_heads=6,
            attention_head_dim=32,
            ffn_dim=384,
            num_layers=4,
            freq_dim=128,
            text_dim=128,
            in_channels=16,
            audio_in_channels=8,
        ),
        text_encoder=TextEncoderShape(vocab_size=1024, d_model=128, d_kv=32, d_ff=256, num_layers=4, num_heads=4),
        video_vae=VideoVaeShape(
            base_dim=32,
            decoder_base_dim=32,
            z_dim=16,
            dim_mult=(1, 2, 2),
            num_res_blocks=1,
            temperal_downsample=(True, True),
            patch_size=4,
            in_channels=48,
            out_channels=48,
            latents_mean=(0.0,) * 16,
            latents_std=(1.0,) * 16,
        ),
        audio_vae=AudioVaeShape(latent_channels=8, hidden_channels=32, layers_per_block=1),
        vocoder=SpectralVocoderShape(),
        text_len=96,
        video_latent_frames=13,
        audio_latents=64,
        target_area=96 * 96,
        caption_dialect="audio_prefix",
        default_size=Size(96, 96),
        defaults=SamplingDefaults(
            num_inference_steps=30, video_guidance_scale=2.0, audio_guidance_scale=2.0, slg_layer=1
        ),
        trained=has_data(*NANO_CARD),
    )


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        variant.name: variant
        for variant in (
            _nano(),
            _released(
                "720x720_5s",
                "720×720, 5 s",
                "The first release: 5 seconds at half a megapixel; the quickest of the full-size models.",
                fusion_file="Ovi/model.safetensors",
                video_latent_frames=31,
                audio_latents=157,
                target_area=720 * 720,
                caption_dialect="audcap",
                default_size=Size(512, 992),
            ),
            _released(
                "960x960_5s",
                "960×960, 5 s",
                "5 seconds at close to a megapixel: sharper, and 2.4 times the work of 720×720.",
                fusion_file="Ovi/model_960x960.safetensors",
                video_latent_frames=31,
                audio_latents=157,
                target_area=960 * 960,
                caption_dialect="audio_prefix",
                default_size=Size(704, 1280),
            ),
            _released(
                "960x960_10s",
                "960×960, 10 s",
                "10 seconds at close to a megapixel: seven times the work of 720×720, 5 s.",
                fusion_file="Ovi/model_960x960_10s.safetensors",
                video_latent_frames=61,
                audio_latents=314,
                target_area=960 * 960,
                caption_dialect="audio_prefix",
                default_size=Size(704, 1280),
            ),
        )
    }
)
