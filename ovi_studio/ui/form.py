"""The settings of a clip as the page shows them, and as a `GenerationRequest`.

    Form(editor, …).request(values) → GenerationRequest → Form.filled(request) → values of the same components

What stands at the model's own default is left open in the request, so that another model brings its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

import gradio as gr

from ovi_studio.errors import InvalidRequestError
from ovi_studio.prompt import Dialect, to_dialect
from ovi_studio.request import Adapter, GeneratedFrame, GenerationRequest, ImageFrame, Quality
from ovi_studio.studio.frames import Frames
from ovi_studio.ui.widgets import Choice, tiles
from ovi_studio.variants import VARIANTS, Solver, Variant, get_variant, parse_size

START = "nano"  # a new user has nothing else
MAX_PAGE_TAKES = 16  # guessed: more is a batch's business
_DEFAULTS = (
    "num_inference_steps", "solver", "shift", "video_guidance_scale", "audio_guidance_scale", "slg_layer",
    "video_negative_prompt", "audio_negative_prompt",
)  # fmt: skip
Values = Mapping[Any, Any]  # component → what stands in it


@dataclass(frozen=True)
class Form:
    """Every input of the Create tab; the names are those of the request's fields where there is one."""

    prompt: gr.HTML
    variant: gr.HTML
    modality: gr.HTML
    size: gr.HTML
    own_size: gr.Textbox
    image: gr.Image
    draw_frame: gr.Checkbox
    frame_prompt: gr.Textbox
    frame_seed: gr.Textbox
    seed: gr.Number
    keep_seed: gr.Checkbox
    takes: gr.Slider
    num_inference_steps: gr.Slider
    solver: gr.Dropdown
    shift: gr.Slider
    video_guidance_scale: gr.Slider
    audio_guidance_scale: gr.Slider
    slg_layer: gr.Slider
    video_negative_prompt: gr.Textbox
    audio_negative_prompt: gr.Textbox
    adapters: gr.Dataframe
    quality: gr.Radio
    shown_variant: gr.State  # the model that the other inputs were last made for

    @property
    def inputs(self) -> set[Any]:
        """All components that a person fills in, as an event's inputs."""
        return {getattr(self, name) for name in _INPUTS}

    @property
    def that_change_the_plan(self) -> tuple[Any, ...]:
        """Those whose change changes what a run takes."""
        return (
            self.variant, self.modality, self.size, self.takes, self.quality, self.num_inference_steps, self.image,
            self.draw_frame, self.video_guidance_scale,
        )  # fmt: skip

    def request(self, values: Values, frames: Frames, *, keep_seed: bool | None = None) -> GenerationRequest:
        """What the form asks for.

        Args:
            values: what stands in the components.
            frames: keeps the picture that the clip starts from.
            keep_seed: whether the seed counts; None goes by the form.

        Raises:
            InvalidInputError: it cannot be.
        """
        told = {name: values[getattr(self, name)] for name in _INPUTS}
        variant = get_variant(told["variant"])
        keep = told["keep_seed"] if keep_seed is None else keep_seed
        settings = {name: _open(told[name], getattr(variant.defaults, name)) for name in _DEFAULTS}
        size = (told["own_size"] or "").strip() or told["size"]
        return GenerationRequest.create(
            prompt=to_dialect(told["prompt"] or "", Dialect(variant.caption_dialect)),
            variant=variant.name,
            modality=told["modality"],
            size=tuple(parse_size(size)) if size else None,
            first_frame=_first_frame(told, frames),
            seed=int(told["seed"]) if keep and told["seed"] is not None else None,
            takes=int(told["takes"]),
            adapters=_adapters(told["adapters"]),
            quality=told["quality"],
            **settings,
        )

    def filled(self, request: GenerationRequest, *, prompt: bool = True) -> dict[Any, Any]:
        """Updates that make the form show `request`; a picture that is only known by name is left out.

        Args:
            request: what to show.
            prompt: whether its prompt too.
        """
        variant = get_variant(request.variant)
        frame = request.first_frame
        drawn = isinstance(frame, GeneratedFrame)
        updates: dict[Any, Any] = {
            self.variant: request.variant,
            self.shown_variant: request.variant,
            self.modality: request.modality,
            self.image: frame.path if isinstance(frame, ImageFrame) else None,
            self.draw_frame: drawn,
            self.frame_prompt: (frame.prompt or "") if isinstance(frame, GeneratedFrame) else "",
            self.frame_seed: str(frame.seed or "") if isinstance(frame, GeneratedFrame) else "",
            self.takes: min(request.takes, MAX_PAGE_TAKES),
            self.quality: request.quality,
            self.adapters: [[each.id, each.strength, each.tower] for each in request.adapters],
            **self._shown_size(request, variant),
        }
        if prompt:
            updates[self.prompt] = gr.update(value=request.prompt, **editor_props(variant))
        if request.seed is not None:
            updates |= {self.seed: request.seed, self.keep_seed: True}
        for name in _DEFAULTS:
            chosen = getattr(request, name)
            updates[getattr(self, name)] = getattr(variant.defaults, name) if chosen is None else chosen
        updates[self.slg_layer] = gr.update(value=updates[self.slg_layer], maximum=variant.transformer.num_layers - 1)
        return updates

    def _shown_size(self, request: GenerationRequest, variant: Variant) -> dict[Any, Any]:
        wanted = "" if request.size is None and request.aspect is None else str(request.clip_size())
        choices = size_choices(variant)
        offered = any(choice["value"] == wanted for choice in choices)
        return {
            self.size: gr.update(value=wanted if offered else "", choices=choices),
            self.own_size: "" if offered else wanted,
        }

    def for_variant(self, values: Values) -> dict[Any, Any]:
        """Updates for a new model: its sizes and dialect; what stood at the old model's default takes the new one's."""
        old, new = get_variant(values[self.shown_variant]), get_variant(values[self.variant])
        if old == new:  # the form was filled with it already
            return {self.shown_variant: new.name}
        updates: dict[Any, Any] = {
            self.prompt: gr.update(
                value=to_dialect(values[self.prompt] or "", Dialect(new.caption_dialect)), **editor_props(new)
            ),
            self.size: gr.update(value="", choices=size_choices(new)),
            self.shown_variant: new.name,
        }
        for name in _DEFAULTS:
            component = getattr(self, name)
            if values[component] == getattr(old.defaults, name):
                updates[component] = getattr(new.defaults, name)
        layer: Any = updates.get(self.slg_layer, values[self.slg_layer])
        last = new.transformer.num_layers - 1
        updates[self.slg_layer] = gr.update(value=min(layer, last), maximum=last)
        return updates


_INPUTS = tuple(field.name for field in fields(Form) if field.name != "shown_variant")


def _open(value: Any, default: Any) -> Any:
    """None where the model's default would be the same."""
    return None if value in (None, default) else value


def _first_frame(told: Mapping[str, Any], frames: Frames) -> ImageFrame | GeneratedFrame | None:
    if told["modality"] == "audio":
        return None
    if told["draw_frame"]:
        prompt, seed = ((told[name] or "").strip() for name in ("frame_prompt", "frame_seed"))
        if seed and not seed.isdecimal():
            raise InvalidRequestError("The seed of the first frame is not a whole number.", "Clear it, or give one.")
        return GeneratedFrame(prompt=prompt or None, seed=int(seed) if seed else None)
    return frames.keep(told["image"]) if told["image"] else None


def _adapters(rows: Sequence[Sequence[Any]]) -> tuple[Adapter, ...]:
    return tuple(Adapter(id=name, strength=float(strength), tower=tower) for name, strength, tower in rows if name)


def editor_props(variant: Variant) -> dict[str, str]:
    """What the editor must know of the model."""
    return {"variant": variant.name, "variant_dialect": variant.caption_dialect}


# --- Choices --------------------------------------------------------------------------------------------------


def variant_choices(missing: Mapping[str, str]) -> list[Choice]:
    """The models as tiles; `missing` says of those without weights what to do."""
    return [
        {
            "value": each.name,
            "label": each.title,
            "hint": "to be downloaded first" if each.name in missing else _facts(each),
            "title": each.description,
        }
        for each in VARIANTS.values()
    ]


def _facts(variant: Variant) -> str:
    return "ready" if variant.trained else "untrained: expect noise"


def size_choices(variant: Variant) -> list[Choice]:
    """The sizes that a model offers, as tiles in their shape."""
    usual = variant.default_size
    choices: list[Choice] = [
        {"value": "", "label": "As it comes", "hint": f"the picture's, or {usual.width}×{usual.height}", "sign": "◰"}
    ]
    choices += [
        {"value": str(size), "label": f"{size.width} × {size.height}", "hint": _shape(size), "shape": list(size)}
        for size in variant.sizes
    ]
    return choices


def _shape(size: Any) -> str:
    return "square" if size.width == size.height else "wide" if size.width > size.height else "tall"


def build_choices(missing: Mapping[str, str]) -> dict[str, Any]:
    """Model, kind of clip and size, drawn where this is called."""
    variant = get_variant(START)
    kinds = (
        {"value": "both", "label": "Picture and sound", "sign": "▣"},
        {"value": "audio", "label": "Sound only", "sign": "♪"},
        {"value": "video", "label": "Picture only", "sign": "▢"},
    )
    return {
        "variant": tiles("Model", START, variant_choices(missing), kind="wide"),
        "modality": tiles("Make", "both", kinds, kind="small"),
        "size": tiles("Size", "", size_choices(variant)),
    }


def build_advanced() -> dict[str, Any]:
    """The rest of the settings, drawn where this is called."""
    variant = get_variant(START)
    usual = variant.defaults
    with gr.Row():
        made: dict[str, Any] = {
            "num_inference_steps": gr.Slider(1, 200, usual.num_inference_steps, step=1, label="Steps"),
            "solver": gr.Dropdown(list(get_args(Solver)), value=usual.solver, label="Solver"),
            "shift": gr.Slider(0.1, 20, usual.shift, step=0.1, label="Shift"),
        }
    with gr.Row():
        made["video_guidance_scale"] = gr.Slider(1, 15, usual.video_guidance_scale, step=0.1, label="Guidance: picture")
        made["audio_guidance_scale"] = gr.Slider(1, 15, usual.audio_guidance_scale, step=0.1, label="Guidance: sound")
        made["slg_layer"] = gr.Slider(
            0, variant.transformer.num_layers - 1, usual.slg_layer, step=1,
            label="Skipped block",
        )  # fmt: skip
    with gr.Row():
        made["video_negative_prompt"] = gr.Textbox(usual.video_negative_prompt, label="Not to be seen", lines=2)
        made["audio_negative_prompt"] = gr.Textbox(usual.audio_negative_prompt, label="Not to be heard", lines=2)
    with gr.Row():
        made["own_size"] = gr.Textbox(
            label="Own size", placeholder="height x width, such as 704x1280", info="Snaps to what the model can make"
        )
        made["quality"] = gr.Radio(
            list(get_args(Quality)), value="auto", label="Wish", info="How the machine is used",
        )  # fmt: skip
    return made
