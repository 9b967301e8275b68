"""Where the package's data files are: `assets/` and `presets/`, inside the wheel or beside the source."""

from pathlib import Path

from ovi_studio.errors import OviStudioError

_PACKAGE = Path(__file__).parent


def data_path(*parts: str) -> Path:
    """The data file or folder `assets/…` or `presets/…`.

    Raises:
        OviStudioError: it is not there, so the installation is incomplete.
    """
    for root in (_PACKAGE, _PACKAGE / "data", _PACKAGE.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise OviStudioError(
        f"The package's file {'/'.join(parts)} is missing.",
        "Install ovi-studio again: pip install --force-reinstall.",
    )
