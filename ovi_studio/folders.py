"""Where the application keeps what is its own: weights, cache, settings.

    app_folders() → Folders(data, cache, weights, settings)

Everything lies under the system's usual folders for applications. `OVI_STUDIO_HOME` moves all of it to one folder;
the setting `weights_folder` moves the weights alone, which are by far the largest part. Nothing is made by asking.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from ovi_studio.errors import InvalidInputError
from ovi_studio.files import replacing

APP = "ovi-studio"
HOME_VARIABLE = "OVI_STUDIO_HOME"
_WEIGHTS_SETTING = "weights_folder"


@dataclass(frozen=True)
class Folders:
    """Absolute paths; none of them need exist.

    Args:
        data: what must be kept.
        cache: what can be made or fetched again.
        weights: downloaded and imported model weights.
        settings: the settings file, JSON.
    """

    data: Path
    cache: Path
    weights: Path
    settings: Path


def app_folders(environment: Mapping[str, str] = os.environ) -> Folders:
    """The folders in force now.

    Raises:
        InvalidInputError: the settings file cannot be understood.
    """
    home = environment.get(HOME_VARIABLE)
    if home:
        data = Path(home).expanduser().absolute()
        cache, settings = data / "cache", data / "settings.json"
    else:
        data = platformdirs.user_data_path(APP, appauthor=False)
        cache = platformdirs.user_cache_path(APP, appauthor=False)
        settings = platformdirs.user_config_path(APP, appauthor=False) / "settings.json"
    weights = _read_settings(settings).get(_WEIGHTS_SETTING, str(data / "weights"))
    return Folders(data, cache, Path(weights), settings)


def set_weights_folder(folder: Path | None, environment: Mapping[str, str] = os.environ) -> Folders:
    """Keep the weights in `folder` from now on (None: in the usual place); files stay where they are.

    Raises:
        InvalidInputError: it is a file, or the settings cannot be read or written.
    """
    path = app_folders(environment).settings
    settings = _read_settings(path)
    settings.pop(_WEIGHTS_SETTING, None)
    if folder is not None:
        folder = folder.expanduser().absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir():
            raise InvalidInputError(f"{existing} is not a folder.", "Name a folder; it need not exist yet.")
        settings[_WEIGHTS_SETTING] = str(folder)
    make_folder(path.parent)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return app_folders(environment)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, if they are missing.

    Raises:
        InvalidInputError: that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"The folder {folder} cannot be made: {error.strerror or error}.",
            f"Mend its permissions, or set {HOME_VARIABLE} to a folder that can be written.",
        ) from error


def _read_settings(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"The settings in {path} cannot be read: {error}.", "Mend or delete the file."
        ) from error
    if not isinstance(settings, dict) or not isinstance(settings.get(_WEIGHTS_SETTING, ""), str):
        raise InvalidInputError(f"The settings in {path} are not what they should be.", "Mend or delete the file.")
    return settings
