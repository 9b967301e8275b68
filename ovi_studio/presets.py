"""Presets: settings worth having, each with a worked prompt for 5 and for 10 seconds.

    presets/*.toml     ours, inside the package ─┐
    <data>/presets/*.toml    the user's own ─────┴→ Preset ──→ GenerationRequest

A preset's prompts are written with an `Audio:` caption; a request gets the dialect of its model. A user's file
is read with care: somebody may have sent it.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import tomli_w

from ovi_studio.assets import data_path
from ovi_studio.errors import InvalidInputError
from ovi_studio.files import replacing, writing_errors
from ovi_studio.folders import app_folders, make_folder
from ovi_studio.prompt import Dialect, to_dialect
from ovi_studio.request import GenerationRequest
from ovi_studio.variants import get_variant

Length: TypeAlias = Literal["5s", "10s"]
LENGTHS: tuple[Length, ...] = ("5s", "10s")

MAX_BYTES = 1 << 20  # guessed: far beyond two prompts
MAX_TITLE = 80  # characters; guessed: a line of a menu
_LONG_SECONDS = 7.5  # halfway: longer clips take the prompt for 10 seconds
_MAX_STEM = 60  # characters of a file name; guessed
# What a preset does not say: it is about one clip, or about this machine.
_PERSONAL = frozenset(("schema_version", "prompt", "seed", "takes", "first_frame", "snap"))


@dataclass(frozen=True)
class Preset:
    """Settings with worked prompts.

    Args:
        name: of its file, without suffix.
        title: for a menu.
        description: what it is for, in a sentence or two.
        settings: fields of a `GenerationRequest`.
        prompts: by the length of the clip; at least one.
        own: whether the user saved it.
    """

    name: str
    title: str
    description: str
    settings: Mapping[str, Any]
    prompts: Mapping[Length, str]
    own: bool = False

    def request(self, variant: str | None = None) -> GenerationRequest:
        """A request with these settings and the prompt for the model's length, in the model's dialect.

        Args:
            variant: the model; None takes the preset's own, or the default one.

        Raises:
            InvalidInputError: the model cannot do what the settings say.
        """
        fields = {**self.settings, **({"variant": variant} if variant else {})}
        model = get_variant(fields.get("variant", GenerationRequest.model_fields["variant"].default))
        wanted: Length = "10s" if model.duration > _LONG_SECONDS else "5s"
        prompt = self.prompts.get(wanted) or next(iter(self.prompts.values()))
        return GenerationRequest.from_embedded({**fields, "prompt": to_dialect(prompt, Dialect(model.caption_dialect))})


def builtin_presets() -> tuple[Preset, ...]:
    """Those in the package, by title."""
    return _sorted(read_preset(path) for path in data_path("presets").glob("*.toml"))


def user_presets(folder: Path | None = None) -> tuple[tuple[Preset, ...], tuple[InvalidInputError, ...]]:
    """Those that the user saved, by title; and what is wrong with the files that cannot be read.

    Args:
        folder: where they are; None: in the application's data.
    """
    read = [_read_own(path) for path in sorted((folder or user_folder()).glob("*.toml"))]
    faults = tuple(each for each in read if isinstance(each, InvalidInputError))
    return _sorted(each for each in read if isinstance(each, Preset)), faults


def user_folder() -> Path:
    """Where saved presets go."""
    return app_folders().data / "presets"


def read_preset(path: Path, *, own: bool = False) -> Preset:
    """The preset in a file.

    Raises:
        InvalidInputError: it cannot be read, or asks for what cannot be.
    """
    try:
        with path.open("rb") as file:
            data = tomllib.loads(file.read(MAX_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:  # tomllib's and decoding errors are ValueErrors
        raise InvalidInputError(f"The preset {path} cannot be read: {error}.", "Mend or delete the file.") from error
    preset = _checked(path, data, own)
    try:
        for prompt in preset.prompts.values():
            GenerationRequest.from_embedded({**preset.settings, "prompt": prompt})
    except InvalidInputError as error:
        raise InvalidInputError(f"The preset {path} is wrong: {error.problem}", error.remedy) from error
    return preset


def save_preset(title: str, request: GenerationRequest, *, description: str = "", folder: Path | None = None) -> Preset:
    """Save the settings and the prompt of a request, such as a clip's, under a title.

    Seed, takes and first frame stay behind: they are of that clip.

    Args:
        title: for the menu; it names the file too.
        request: what the clip was made from.
        description: what it is for.
        folder: where it goes; None: into the application's data.

    Raises:
        InvalidInputError: the title is empty, too long or taken, or the file cannot be written.
    """
    title = title.strip()
    stem = re.sub(r"[\W_]+", "-", title.casefold()).strip("-")[:_MAX_STEM]
    if not stem or len(title) > MAX_TITLE:
        raise InvalidInputError(f"A preset cannot be called {title[:60]!r}.", f"Give 1 to {MAX_TITLE} characters.")
    folder = folder or user_folder()
    path = folder / f"preset-{stem}.toml"
    if path.exists():
        raise InvalidInputError(f"There is a preset called {title!r} already.", "Give another title, or delete it.")
    settings = {
        name: value
        for name, value in request.model_dump(mode="json", exclude_defaults=True).items()
        if name not in _PERSONAL and value is not None
    }
    length: Length = "10s" if get_variant(request.variant).duration > _LONG_SECONDS else "5s"
    prompts = {length: to_dialect(request.prompt, Dialect.AUDIO_PREFIX)}
    text = tomli_w.dumps(
        {"title": title, "description": description, "settings": settings, "prompts": prompts}, multiline_strings=True
    )
    make_folder(folder)
    with replacing(path) as temporary, writing_errors(path):
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return read_preset(path, own=True)


def _read_own(path: Path) -> Preset | InvalidInputError:
    try:
        return read_preset(path, own=True)
    except InvalidInputError as error:
        return error


def _checked(path: Path, data: dict[str, Any], own: bool) -> Preset:
    """The preset in a file's data, once its form is what it should be."""
    settings, prompts = data.get("settings", {}), data.get("prompts")
    texts = [data.get("title"), data.get("description", ""), *(prompts.values() if isinstance(prompts, dict) else ())]
    if (
        not all(isinstance(text, str) for text in texts)
        or not isinstance(settings, dict)
        or not isinstance(prompts, dict)
        or not prompts
        or not prompts.keys() <= set(LENGTHS)
        or settings.keys() & _PERSONAL
    ):
        raise InvalidInputError(
            f"{path} is not a preset.",
            "It needs a title, a description, [settings] of a request, and [prompts] for 5s, 10s or both.",
        )
    return Preset(
        path.stem,
        data["title"],
        data.get("description", ""),
        MappingProxyType(settings),
        MappingProxyType({length: prompts[length].strip() for length in LENGTHS if length in prompts}),
        own,
    )


def _sorted(presets: Iterable[Preset]) -> tuple[Preset, ...]:
    return tuple(sorted(presets, key=lambda preset: preset.title.casefold()))
