"""What a person asks for: one frozen, checked description of a clip, the same at every door.

    create(...) · from_json(text) · from_embedded(data)    the doors in; wrong input is InvalidRequestError
        GenerationRequest ── each_take() ──→ one request for every clip
                          ── resolved() ───→ nothing left open: seed, size and every number filled in
                          ── embedded() ───→ what travels inside the clip: no paths of this machine

Whether a request is possible is decided here, before anything is loaded. Sizes are (height, width) in
pixels, aspects are width:height.
"""

import json
import math
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ovi_studio.errors import InvalidInputError, InvalidRequestError
from ovi_studio.variants import (
    MAX_ASPECT,
    MAX_SIDE,
    MIN_SIDE,
    SIZE_MULTIPLE,
    Modality,
    Size,
    Solver,
    get_variant,
    parse_aspect,
)

SCHEMA_VERSION = 1  # raised when a request of an older version would be read wrongly
MAX_PROMPT = 10_000  # characters. Guessed: five times what the text encoder reads (512 tokens)
MAX_STEPS = 200  # derived: unipc's first repeated timestep at shift 5 comes at 212 steps
MAX_TAKES = 100  # guessed: a night's work on one card
SEEDS = 2**32  # seeds are 0 … 2^32 - 1: exact in every JSON reader and accepted by every generator
_INTERVAL = "two shares of the run, such as 0.1 and 0.8: from 0 to 1, the smaller one first"
_MAX_EXACT_AREA = 2.0  # times the model's area. Guessed: snapping small areas overshoots by up to 1.4

Quality: TypeAlias = Literal["auto", "exact", "fast", "smallest"]


class _Words(BaseModel):
    # strict: a bool is no number and "7" is no 7. JSON lists are read as tuples all the same.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageFrame(_Words):
    """A first frame from an image file; `sha256` is `images.image_digest` of it.

    `path` is None in a request read back from a clip: the file is known by name and hash alone.
    """

    kind: Literal["image"] = "image"
    path: str | None = Field(default=None, min_length=1, max_length=4096)
    # Without folders and control characters: it may come from a stranger's clip.
    name: str = Field(pattern=r"^[^/\\\x00-\x1f]+$", max_length=255)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class GeneratedFrame(_Words):
    """A first frame that an image model draws before the clip is made."""

    kind: Literal["generated"] = "generated"
    prompt: str | None = Field(default=None, min_length=1, max_length=MAX_PROMPT)  # None: the clip's
    seed: int | None = Field(default=None, ge=0, lt=SEEDS)  # None: the clip's


class Adapter(_Words):
    """A LoRA on one tower or both."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$", max_length=200)
    strength: float = Field(default=1.0, ge=-4, le=4)
    tower: Modality = "both"


class GenerationRequest(_Words):
    """One clip, or several takes of it. Make it with `create`, `from_json` or `from_embedded`.

    A number left None takes the variant's default. The descriptions end up in error messages, after "Give".
    """

    schema_version: int = Field(
        default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION, description=f"{SCHEMA_VERSION}, or update Ovi Studio"
    )
    prompt: str = Field(max_length=MAX_PROMPT, description=f"a text of 1 to {MAX_PROMPT} characters")
    video_negative_prompt: str | None = Field(
        default=None, max_length=MAX_PROMPT, description=f"a text of at most {MAX_PROMPT} characters"
    )
    audio_negative_prompt: str | None = Field(
        default=None, max_length=MAX_PROMPT, description=f"a text of at most {MAX_PROMPT} characters"
    )
    variant: str = Field(default="nano", max_length=100, description="the name of a model")
    modality: Modality = Field(default="both", description="'both', 'video' or 'audio'")
    first_frame: Annotated[ImageFrame | GeneratedFrame, Field(discriminator="kind")] | None = Field(
        default=None, description="nothing, an image (its path and name) or a frame to generate"
    )
    size: tuple[int, int] | None = Field(
        default=None,
        description=f"height and width in pixels, each a whole number from {MIN_SIDE} to {MAX_SIDE}",
    )
    aspect: str | None = Field(
        default=None, max_length=32, description="width:height, such as 16:9, in at most 32 characters"
    )
    snap: bool = Field(default=True, description="true, or false for a size that must be taken as it is")
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=SEEDS,
        description=f"a whole number from 0 to {SEEDS - 1}, or none to have one drawn",
    )
    num_inference_steps: int | None = Field(
        default=None, ge=1, le=MAX_STEPS, description=f"a whole number from 1 to {MAX_STEPS}"
    )
    solver: Solver | None = Field(default=None, description="'unipc', 'dpm++' or 'euler'")
    # Outside these bounds nearly all steps fall at one end of the noise schedule.
    shift: float | None = Field(default=None, ge=0.1, le=20, description="a number from 0.1 to 20")
    # 1 is no guidance; beyond about 10 the picture saturates; 30 is generous.
    video_guidance_scale: float | None = Field(default=None, ge=1, le=30, description="a number from 1 to 30")
    audio_guidance_scale: float | None = Field(default=None, ge=1, le=30, description="a number from 1 to 30")
    # Outside of both intervals a step runs one pass instead of two.
    video_guidance_interval: tuple[float, float] | None = Field(default=None, description=_INTERVAL)
    audio_guidance_interval: tuple[float, float] | None = Field(default=None, description=_INTERVAL)
    slg_layer: int | None = Field(default=None, ge=0, description="the index of a block, or 0 to skip none")
    adapters: tuple[Adapter, ...] = Field(
        default=(),
        max_length=16,
        description="at most 16 adapters, each with id, strength from -4 to 4 and tower",
    )
    takes: int = Field(default=1, ge=1, le=MAX_TAKES, description=f"a whole number from 1 to {MAX_TAKES}")
    quality: Quality = Field(default="auto", description="'auto', 'exact', 'fast' or 'smallest'")

    # --- The doors in --------------------------------------------------------------------------------

    @classmethod
    def create(cls, **fields: object) -> "GenerationRequest":
        """A request from its fields.

        Raises:
            InvalidRequestError: a field is wrong or unknown; the message says which and what it may be.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _in_words(error) from error

    @classmethod
    def from_json(cls, text: str | bytes) -> "GenerationRequest":
        """A request from what `model_dump_json` wrote. Raises as `create`."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _in_words(error) from error

    @classmethod
    def from_embedded(cls, data: object) -> "GenerationRequest":
        """A request from what a clip carries: untrusted, so it can name no file of this machine.

        Raises:
            InvalidRequestError: as `create`.
        """
        if isinstance(data, Mapping) and isinstance(data.get("first_frame"), Mapping):
            frame = {key: value for key, value in data["first_frame"].items() if key != "path"}
            data = {**data, "first_frame": frame}
        try:
            text = json.dumps(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError("The request is not JSON data.", "Set the fields by hand.") from error
        return cls.from_json(text)

    def replace(self, **fields: object) -> "GenerationRequest":
        """A copy with some fields changed, checked anew. Raises as `create`."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return self.create(**{**own, **fields})

    # --- What is possible ----------------------------------------------------------------------------

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise InvalidRequestError("The prompt is empty.", "Describe what to see and hear.")
        return prompt

    @field_validator("variant")
    @classmethod
    def _known(cls, name: str) -> str:
        return get_variant(name).name

    @field_validator("aspect")
    @classmethod
    def _readable(cls, aspect: str | None) -> str | None:
        if aspect is not None:
            parse_aspect(aspect)
        return aspect

    @field_validator("video_guidance_interval", "audio_guidance_interval")
    @classmethod
    def _ordered(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
            raise InvalidRequestError(
                f"Guidance cannot work from {interval[0]:g} to {interval[1]:g}.", f"Give {_INTERVAL}."
            )
        return interval

    @model_validator(mode="after")
    def _possible(self) -> "GenerationRequest":
        if self.modality == "audio" and self.first_frame is not None:
            raise InvalidRequestError(
                "A first frame has no use in a clip without a picture.",
                "Leave out first_frame, or ask for modality 'both' or 'video'.",
            )
        self._check_size()
        defaults, variant = get_variant(self.variant).defaults, get_variant(self.variant)
        blocks = variant.transformer.num_layers
        if self.slg_layer is not None and self.slg_layer >= blocks:
            raise InvalidRequestError(
                f"slg_layer cannot be {_shown(self.slg_layer)}: {variant.name} has {blocks} blocks.",
                f"Give 1 to {blocks - 1}, or 0 to skip none.",
            )
        _check_timesteps(
            self.solver or defaults.solver,
            self.shift or defaults.shift,
            self.num_inference_steps or defaults.num_inference_steps,
        )
        return self

    def _check_size(self) -> None:
        if self.size is None:
            return
        if self.aspect is not None:
            raise InvalidRequestError("Both size and aspect are given.", "Give one of them.")
        height, width = self.size
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in self.size):
            raise InvalidRequestError(
                f"A size of {_shown(height)}x{_shown(width)} pixels is not possible.",
                f"Height and width may be {MIN_SIDE} to {MAX_SIDE} pixels.",
            )
        if self.snap and max(height / width, width / height) > MAX_ASPECT:
            raise InvalidRequestError(
                f"A size of {height}x{width} is too thin a picture.",
                f"One side may be at most {MAX_ASPECT:g} times the other.",
            )
        area = get_variant(self.variant).target_area * _MAX_EXACT_AREA
        if not self.snap and (height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or height * width > area):
            raise InvalidRequestError(
                f"{self.variant} cannot make {height}x{width} as it is.",
                f"Let it snap, or give multiples of {SIZE_MULTIPLE} with at most {area:.0f} pixels.",
            )

    # --- What becomes of it --------------------------------------------------------------------------

    def clip_size(self, image_size: tuple[int, int] | None = None) -> Size:
        """The size the clip really gets: size, else aspect, else the image's, snapped to the variant.

        Args:
            image_size: of the first frame's image in pixels, after EXIF rotation; None without one.
        """
        variant = get_variant(self.variant)
        if self.size is not None:
            return variant.snap_size(*self.size) if self.snap else Size(*self.size)
        if self.aspect is not None:
            return variant.size_for_aspect(self.aspect)
        return variant.size_for_image(*image_size) if image_size is not None else variant.default_size

    def with_real_seed(self) -> "GenerationRequest":
        """The same with a seed drawn and written down, where none was given."""
        return self if self.seed is not None else self.replace(seed=secrets.randbelow(SEEDS))

    def each_take(self) -> tuple["GenerationRequest", ...]:
        """One request of one take for every take, with seeds that count up from the first."""
        first = self.with_real_seed().replace(takes=1)
        seed = first.seed or 0
        return tuple(first.replace(seed=(seed + take) % SEEDS) for take in range(self.takes))

    def resolved(self, image_size: tuple[int, int] | None = None) -> "GenerationRequest":
        """The same clip with nothing left open; resolving it again changes nothing.

        Args:
            image_size: as for `clip_size`; without it a first frame has no say in the size.

        Raises:
            InvalidRequestError: the image is so thin that the clip would exceed the largest side.
        """
        request = self.with_real_seed()
        defaults = get_variant(self.variant).defaults
        fields = {name: value for name, value in vars(defaults).items() if getattr(request, name) is None}
        frame = request.first_frame
        if isinstance(frame, GeneratedFrame) and frame.seed is None:
            frame = frame.model_copy(update={"seed": request.seed})
        size = tuple(request.clip_size(image_size))
        return request.replace(**fields, first_frame=frame, size=size, aspect=None, snap=False)

    def embedded(self) -> dict[str, Any]:
        """JSON data to store in the clip: the whole request, of an image only its name and hash."""
        data = self.model_dump(mode="json")
        if isinstance(self.first_frame, ImageFrame):
            del data["first_frame"]["path"]
        return data


# --- Schedules and words --------------------------------------------------------------------------------


def _check_timesteps(solver: Solver, shift: float, steps: int) -> None:
    """Refuse repeated timesteps: unipc and dpm++ round theirs, and a repeated one breaks the run.

    A shifted noise level is s·x / (1 + (s - 1)·x) for x evenly spaced from the solver's first level to 0.
    """
    if solver == "euler":  # its timesteps are not rounded
        return
    first = 0.999 if solver == "unipc" else 1.0  # as the schedules were recorded
    levels = [first * (steps - step) / steps for step in range(steps)]
    timesteps = [math.floor(1000 * shift * x / (1 + (shift - 1) * x)) for x in levels]
    if len(set(timesteps)) < steps:
        raise InvalidRequestError(
            f"{solver} repeats timesteps at {steps} steps and shift {shift:g}.",
            "Take fewer steps, a shift nearer to 1, or the euler solver.",
        )


def _in_words(error: ValidationError) -> InvalidRequestError:
    """The first fault that pydantic found, as problem and remedy."""
    fault = error.errors(include_url=False)[0]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, InvalidInputError):  # raised by a validator above, or by the table of variants
        return InvalidRequestError(cause.problem, cause.remedy)
    if not fault["loc"]:
        return InvalidRequestError("The request is not a JSON object.", "Give one with at least a prompt.")
    fields = GenerationRequest.model_fields
    name, place = str(fault["loc"][0]), ".".join(str(part) for part in fault["loc"])
    if name not in fields:
        return InvalidRequestError(f"A request has no field {_shown(name)}.", f"Its fields are {', '.join(fields)}.")
    match fault["type"]:
        case "missing":
            problem = f"{place} is missing."
        case "extra_forbidden":
            problem = f"{_shown(place)} is not a field."
        case "string_too_long":
            problem = f"{place} is too long: {len(fault['input'])} characters."
        case _:
            problem = f"{place} cannot be {_shown(fault['input'])}."
    return InvalidRequestError(problem, f"Give {fields[name].description}.")


def _shown(value: object) -> str:
    """A value as a person may see it in one line: short, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # it holds an integer of thousands of digits
        text = "so large a number"
    return text if len(text) <= 60 else f"{text[:57]}…"
