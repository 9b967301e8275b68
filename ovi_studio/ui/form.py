"""The settings of a clip as the page shows them, and as a `GenerationRequest`.

    Form(editor, …).request(values) → GenerationRequest → Form.filled(request) → values of the same components

What stands at the model's own default is left open in the request, so that another model brings its own.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from ovi_studio.errors import InvalidInputError, InvalidRequestError, MediaError
from ovi_studio.prompt import Dialect, to_dialect
from ovi_studio.request import SEEDS, Adapter, GeneratedFrame, GenerationRequest, ImageFrame, Quality
from ovi_studio.studio.frames import Frames
from ovi_studio.ui.adapters import shown_adapters
from ovi_studio.ui.widgets import Choice, picture, shown_picture, tiles, uploaded
from ovi_studio.variants import (
    MAX_SIDE,
    MIN_SIDE,
    VARIANTS,
    Modality,
    Size,
    Solver,
    Variant,
    get_variant,
    interval_text,
    parse_interval,
    parse_size,
)

START = "nano"  # a new user has nothing else
_DEFAULTS = (
    "num_inference_steps", "solver", "shift", "video_guidance_scale", "audio_guidance_scale", "slg_layer",
    "video_negative_prompt", "audio_negative_prompt",
)  # fmt: skip
_INTERVALS = ("video_guidance_interval", "audio_guidance_interval")
Values = Mapping[Any, Any]  # component → what stands in it, as the browser tells it


@dataclass(frozen=True)
class Told:
    """What a browser says of the form's inputs, as far as it was asked, once it is what each of them can hold.

    Whole numbers may come as 30.0. Whether all of it can be asked for, the request knows.
    """

    prompt: str | None = None
    variant: str = START
    modality: str = "both"
    size: str | None = None
    own_size: str | None = None
    image: dict[str, Any] | None = None
    draw_frame: bool = False
    frame_prompt: str | None = None
    frame_seed: str | None = None
    seed: int | None = None
    keep_seed: bool = False
    takes: int | None = None
    num_inference_steps: int | None = None
    solver: str | None = None
    shift: float | None = None
    video_guidance_scale: float | None = None
    audio_guidance_scale: float | None = None
    slg_layer: int | None = None
    video_guidance_interval: str | None = None
    audio_guidance_interval: str | None = None
    video_negative_prompt: str | None = None
    audio_negative_prompt: str | None = None
    adapters: dict[str, Any] | None = None
    quality: str = "auto"
    shown_variant: str = START


_TOLD = TypeAdapter(Told)
_ADAPTER_ROWS = TypeAdapter(list[tuple[str, float, Modality]])


@dataclass(frozen=True)
class Form:
    """Every input of the Create tab; the names are those of the request's fields where there is one."""

    frames: Frames  # keeps the pictures that clips start from
    prompt: gr.HTML
    variant: gr.HTML
    modality: gr.HTML
    size: gr.HTML
    own_size: gr.Textbox
    first_frame: gr.Accordion
    image: gr.Image
    draw_frame: gr.Checkbox
    frame_prompt: gr.Textbox
    frame_seed: gr.Textbox
    draw_now: gr.Button
    seed: gr.Number
    keep_seed: gr.Checkbox
    takes: gr.Number
    num_inference_steps: gr.Number
    solver: gr.Dropdown
    shift: gr.Number
    video_guidance_scale: gr.Number
    audio_guidance_scale: gr.Number
    slg_layer: gr.Number
    video_guidance_interval: gr.Textbox
    audio_guidance_interval: gr.Textbox
    video_negative_prompt: gr.Textbox
    audio_negative_prompt: gr.Textbox
    adapters: gr.Dataframe
    quality: gr.Radio
    chosen_adapters: gr.Dropdown  # the same as the table's rows, to choose them by
    shown_variant: gr.Textbox  # hidden: the model that the other inputs were last made for

    @property
    def inputs(self) -> set[Any]:
        """All components that a request is read from, as an event's inputs."""
        return {getattr(self, name) for name in _INPUTS}

    @property
    def all(self) -> list[Any]:
        """The same and what follows from them, as the outputs of an event that fills the form."""
        return [*self.inputs, self.chosen_adapters, self.first_frame]

    @property
    def that_change_the_plan(self) -> tuple[Any, ...]:
        """Those whose change changes what a run takes."""
        return (
            self.variant, self.modality, self.size, self.takes, self.quality, self.num_inference_steps, self.image,
            self.draw_frame, self.video_guidance_scale, self.audio_guidance_scale, self.video_guidance_interval,
            self.audio_guidance_interval, self.adapters,
        )  # fmt: skip

    def request(self, values: Values) -> GenerationRequest:
        """What the form asks for.

        Raises:
            InvalidInputError: it cannot be.
        """
        told = self.told(values)
        # of a model that was chosen a moment ago the defaults may not stand in the form yet
        variant, shown = get_variant(told.variant), get_variant(told.shown_variant)
        settings: dict[str, Any] = {name: _interval(getattr(told, name)) for name in _INTERVALS}
        settings |= {name: _open(getattr(told, name), getattr(shown.defaults, name)) for name in _DEFAULTS}
        chosen_size = told.size if shown == variant else ""
        size = _typed_size(told.own_size) or (parse_size(chosen_size) if chosen_size else None)
        try:
            return GenerationRequest.create(
                prompt=to_dialect(told.prompt or "", Dialect(variant.caption_dialect)),
                variant=variant.name,
                modality=told.modality,
                size=tuple(size) if size else None,
                first_frame=_first_frame(told, self.frames),
                seed=told.seed if told.keep_seed else None,
                takes=1 if told.takes is None else told.takes,
                adapters=_adapters(told.adapters),
                quality=told.quality,
                **settings,
            )
        except InvalidRequestError as error:  # which names the request's field
            name, _, rest = error.problem.partition(" ")
            if name not in _INPUTS or not getattr(self, name).label:
                raise
            raise InvalidRequestError(f"{getattr(self, name).label} {rest}", error.remedy) from error

    def told(self, values: Values) -> Told:
        """What stands in the form.

        Raises:
            InvalidRequestError: something that cannot.
        """
        inputs = {name: getattr(self, name) for name in _INPUTS}
        try:
            return _TOLD.validate_python({name: values[each] for name, each in inputs.items() if each in values})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            name = inputs[str(fault["loc"][0])].label or str(fault["loc"][0])
            whole = "whole " if fault["type"] == "int_from_float" else ""
            number = f"a {whole}number" if fault["type"].startswith(("int", "float")) else "something else"
            raise InvalidRequestError(f"{name}: this cannot be.", f"Give {number}.") from error

    def filled(self, request: GenerationRequest, *, prompt: str | None = None) -> dict[Any, Any]:
        """Updates that make the form show `request`; a picture that is not on this machine is left out.

        Args:
            request: what to show.
            prompt: shown in place of the request's, in its model's dialect.
        """
        variant = get_variant(request.variant)
        frame = request.first_frame
        drawn = frame if isinstance(frame, GeneratedFrame) else GeneratedFrame()
        updates: dict[Any, Any] = {
            self.image: self._picture_of(frame) if isinstance(frame, ImageFrame) else None,
            self.draw_frame: isinstance(frame, GeneratedFrame),
            self.frame_prompt: drawn.prompt or "",
            self.frame_seed: "" if drawn.seed is None else str(drawn.seed),
            self.takes: request.takes,
            **self.filled_settings(request),
        }
        if frame is not None:
            updates[self.first_frame] = gr.update(open=True)  # what counts is seen
        shown = request.prompt if prompt is None else to_dialect(prompt, Dialect(variant.caption_dialect))
        updates[self.prompt] = gr.update(value=shown, **editor_props(variant))
        if request.seed is not None:
            updates |= {self.seed: request.seed, self.keep_seed: True}
        return updates

    def filled_settings(self, request: GenerationRequest) -> dict[Any, Any]:
        """The same for what a preset settles: neither prompt nor seed, takes and first frame."""
        variant = get_variant(request.variant)
        updates: dict[Any, Any] = {
            self.variant: request.variant,
            self.shown_variant: request.variant,
            self.modality: request.modality,
            self.quality: request.quality,
            **shown_adapters(self.chosen_adapters, self.adapters, request.adapters),
        }
        for name in _DEFAULTS:
            chosen = getattr(request, name)
            updates[getattr(self, name)] = getattr(variant.defaults, name) if chosen is None else chosen
        updates |= {getattr(self, name): interval_text(getattr(request, name)) for name in _INTERVALS}
        asked = request.size is not None or request.aspect is not None
        return updates | self._shown_size(request.clip_size() if asked else None, variant)

    def for_own_size(self, values: Values) -> dict[Any, Any]:
        """Updates once a size was typed: it becomes a tile, as it snaps, and the chosen one.

        Raises:
            InvalidInputError: it is no size.
        """
        told = self.told(values)
        typed, variant = _typed_size(told.own_size), get_variant(told.variant)
        return self._shown_size(variant.snap_size(*typed), variant) if typed else {self.own_size: ""}

    def for_variant(self, values: Values) -> dict[Any, Any]:
        """Updates for a new model: its sizes and dialect; what stood at the old model's default takes the new one's."""
        told = self.told(values)
        old, new = get_variant(told.shown_variant), get_variant(told.variant)
        if old == new:  # the form was filled with it already
            return {self.shown_variant: new.name}
        written = told.prompt or ""
        prompt = to_dialect(written, Dialect(new.caption_dialect))
        updates: dict[Any, Any] = {
            self.prompt: gr.update(conversion=[written, prompt], **editor_props(new)),
            self.shown_variant: new.name,
            **self._shown_size(None, new),
        }
        for name in _DEFAULTS:
            if getattr(told, name) == getattr(old.defaults, name):
                updates[getattr(self, name)] = getattr(new.defaults, name)
        layer: Any = updates.get(self.slg_layer, told.slg_layer)
        updates[self.slg_layer] = min(layer or 0, new.transformer.num_layers - 1)
        return updates

    def _shown_size(self, size: Size | None, variant: Variant) -> dict[Any, Any]:
        """`size` as the chosen tile, among those that the model offers; None: it comes by itself."""
        choices = size_choices(variant, size)
        return {self.size: gr.update(value="" if size is None else str(size), choices=choices), self.own_size: ""}

    def _picture_of(self, frame: ImageFrame) -> str | None:
        """The picture as its component shows it; None where it is known by name only, or gone."""
        try:
            return shown_picture(self.frames.keep(frame.path).path or "") if frame.path else None
        except MediaError:
            return None


_NO_INPUTS = ("frames", "first_frame", "draw_now", "chosen_adapters")
_INPUTS = tuple(field.name for field in fields(Form) if field.name not in _NO_INPUTS)


def _open(value: Any, default: Any) -> Any:
    """None where the model's default would be the same."""
    return None if value in (None, default) else value


def _typed_size(text: str | None) -> Size | None:
    """Width first, as the tiles show sizes; None where nothing is typed."""
    if not text or not text.strip():
        return None
    try:
        return Size(*reversed(parse_size(text)))
    except InvalidInputError as error:
        raise InvalidRequestError(
            f"Own size cannot be {text.strip()[:40]!r}.",
            f"Give width and height in pixels, {MIN_SIDE} to {MAX_SIDE} each and not too thin, such as 1280x704.",
        ) from error


def _interval(text: str | None) -> tuple[float, float] | None:
    """None for the whole run."""
    return parse_interval(text) if text and text.strip() else None


def _first_frame(told: Told, frames: Frames) -> ImageFrame | GeneratedFrame | None:
    if told.modality == "audio":
        return None
    if told.draw_frame:
        prompt, seed = (told.frame_prompt or "").strip(), (told.frame_seed or "").strip()
        if seed and not (seed.isdecimal() and len(seed) <= len(str(SEEDS))):
            raise InvalidRequestError("The seed of the first frame is not a whole number.", "Clear it, or give one.")
        return GeneratedFrame(prompt=prompt or None, seed=int(seed) if seed else None)
    return _kept(uploaded(told.image), frames) if told.image else None


def _kept(picture: Path, frames: Frames) -> ImageFrame:
    """An uploaded picture; it is called by its name, as the place it passes through tells nobody anything."""
    try:
        return frames.keep(picture)
    except MediaError as error:
        raise MediaError(error.problem.replace(str(picture), picture.name), error.remedy) from error


def _adapters(table: Mapping[str, Any] | None) -> tuple[Adapter, ...]:
    """Those of the table's rows."""
    try:
        rows = _ADAPTER_ROWS.validate_python((table or {}).get("data", []))
        return tuple(Adapter(id=name, strength=strength, tower=tower) for name, strength, tower in rows if name)
    except ValidationError as error:
        raise InvalidRequestError(
            "An adapter cannot be put on like this.", "Give a strength from -4 to 4, and both, video or audio."
        ) from error


def editor_props(variant: Variant) -> dict[str, str]:
    """What the editor must know of the model."""
    return {"variant": variant.name, "variant_dialect": variant.caption_dialect}


# --- Choices --------------------------------------------------------------------------------------------------


def variant_choices(absent: Collection[str]) -> list[Choice]:
    """The models as tiles; the weights of those in `absent` are not here."""
    return [
        {
            "value": each.name,
            "label": each.title,
            "hint": "to be downloaded first" if each.name in absent else _facts(each),
            "title": each.description,
        }
        for each in VARIANTS.values()
    ]


def _facts(variant: Variant) -> str:
    return "ready" if variant.trained else "untrained: expect noise"


def size_choices(variant: Variant, own: Size | None = None) -> list[Choice]:
    """The sizes that a model offers, and a person's own, as tiles in their shape."""
    usual = variant.default_size
    choices: list[Choice] = [
        {
            "value": "", "label": "Automatic", "hint": f"{usual.width} × {usual.height}", "sign": "◰",
            "title": f"The shape of the first frame; without one {usual.width} × {usual.height}",
        }
    ]  # fmt: skip
    choices += [_size_choice(size, _shape(size)) for size in variant.sizes]
    return choices if own is None or own in variant.sizes else [*choices, _size_choice(own, "your own")]


def _size_choice(size: Size, hint: str) -> Choice:
    return {"value": str(size), "label": f"{size.width} × {size.height}", "hint": hint, "shape": list(size)}


def _shape(size: Size) -> str:
    return "square" if size.width == size.height else "wide" if size.width > size.height else "tall"


def build_choices(absent: Collection[str]) -> dict[str, Any]:
    """Model, kind of clip and size, drawn where this is called."""
    variant = get_variant(START)
    kinds = (
        {"value": "both", "label": "Picture and sound", "sign": "▣"},
        {"value": "audio", "label": "Sound only", "sign": "♪"},
        {"value": "video", "label": "Picture only", "sign": "▢"},
    )
    return {
        "variant": tiles("Model", START, variant_choices(absent), kind="wide"),
        "modality": tiles("Make", "both", kinds, kind="small"),
        "size": tiles("Size", "", size_choices(variant)),
    }


def build_advanced() -> dict[str, Any]:
    """The rest of the settings, drawn where this is called. What they may be, the request knows and says."""
    usual = get_variant(START).defaults
    made: dict[str, Any] = {}
    with gr.Row():
        made["num_inference_steps"] = _number(
            "Steps", usual.num_inference_steps, "more are finer, and slower", whole=True
        )
        made["solver"] = gr.Dropdown(
            list(get_args(Solver)), value=usual.solver, label="Solver", info="how a step is taken", min_width=120
        )
        made["shift"] = _number("Shift", usual.shift, "more: more steps for the outline", step=0.5)
    with gr.Row():
        made["video_guidance_scale"] = _number(
            "Picture guidance", usual.video_guidance_scale, "more: closer to the prompt", step=0.5
        )
        made["audio_guidance_scale"] = _number(
            "Sound guidance", usual.audio_guidance_scale, "the same; 1 is none", step=0.5
        )
        made["slg_layer"] = _number("Skipped block", usual.slg_layer, "left out for contrast; 0: none", whole=True)
    with gr.Row():
        for name, label in zip(_INTERVALS, ("Picture guided during", "Sound guided during"), strict=True):
            made[name] = gr.Textbox(
                label=label, placeholder="the whole run, or a part: 0:0.8", max_lines=1, min_width=160
            )
    with gr.Row():
        made["video_negative_prompt"] = gr.Textbox(usual.video_negative_prompt, label="Not to be seen", lines=2)
        made["audio_negative_prompt"] = gr.Textbox(usual.audio_negative_prompt, label="Not to be heard", lines=2)
    with gr.Row():
        made["own_size"] = gr.Textbox(
            label="Own size", placeholder="width x height", max_lines=1, scale=1, min_width=160
        )
        made["quality"] = gr.Radio(
            list(get_args(Quality)), value="auto", label="How the machine is used", scale=2,
            info="exact: full precision; fast: least time, approximate; smallest: least memory",
        )  # fmt: skip
    return made


def _number(label: str, value: float, info: str, *, step: float = 1, whole: bool = False) -> gr.Number:
    return gr.Number(value, label=label, info=info, step=step, precision=0 if whole else None, min_width=120)


def build_first_frame() -> dict[str, Any]:
    """The picture that the clip starts from, drawn where this is called."""
    with gr.Accordion("First frame", open=False) as fold:
        image = picture("Picture")
        draw = gr.Checkbox(label="Have it drawn by FLUX before the clip is made", value=False)
        with gr.Row():
            prompt = gr.Textbox(
                label="What FLUX draws", placeholder="the clip's prompt, without speech and sound", max_lines=4, scale=3
            )
            seed = gr.Textbox(label="Its seed", placeholder="the clip's", max_lines=1, min_width=100)
        now = gr.Button("Draw it now", size="sm")
    return {
        "first_frame": fold, "image": image, "draw_frame": draw, "frame_prompt": prompt, "frame_seed": seed,
        "draw_now": now,
    }  # fmt: skip


def build_seed_and_takes() -> tuple[dict[str, Any], gr.Button]:
    """Seed and takes, and the button that draws a new seed, drawn where this is called."""
    with gr.Row(elem_classes="ovi-line"):
        seed = gr.Number(new_seed(), label="Seed", precision=0, min_width=130)
        roll = gr.Button("⚄ Roll", size="sm", min_width=80, scale=0)
        keep = gr.Checkbox(label="Keep it", value=False, min_width=100, scale=0)
        takes = gr.Number(1, label="Takes", precision=0, min_width=80)
    return {"seed": seed, "keep_seed": keep, "takes": takes}, roll


def new_seed() -> int:
    """Of all seeds one that a person can read out."""
    return secrets.randbelow(10**9)
