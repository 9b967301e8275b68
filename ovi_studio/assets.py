"""Where the package's data files are: `assets/` and `presets/`, inside the wheel or beside the source."""

import json
from pathlib import Path
from typing import Any

from ovi_studio.errors import OviStudioError

NANO_CARD = ("assets", "nano", "card.json")  # is there once nano's weights are in the package
_PACKAGE = Path(__file__).parent


def data_path(*parts: str) -> Path:
    """The data file or folder `assets/…` or `presets/…`.

    Raises:
        OviStudioError: it is not there, so the installation is incomplete.
    """
    for path in _places(parts):
        if path.exists():
            return path
    raise OviStudioError(
        f"The package's file {'/'.join(parts)} is missing.",
        "Install ovi-studio again: pip install --force-reinstall.",
    )


def has_data(*parts: str) -> bool:
    """Whether the package has this data file or folder."""
    return any(path.exists() for path in _places(parts))


def nano_card() -> dict[str, Any]:
    """How nano's weights were made, what they reached and what they know.

    Raises:
        OviStudioError: they are not in the package.
    """
    card: dict[str, Any] = json.loads(data_path(*NANO_CARD).read_text(encoding="utf-8"))
    return card


def _places(parts: tuple[str, ...]) -> list[Path]:
    return [root.joinpath(*parts) for root in (_PACKAGE, _PACKAGE / "data", _PACKAGE.parent)]
