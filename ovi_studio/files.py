"""Files that appear whole or not at all.

A file is written under a passing name in its own folder, brought to the disk, and then takes its name in
one step. Whatever goes wrong, a file that was there before stays as it was and nothing else is left.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ovi_studio.errors import MediaError

_MIN_FREE_BYTES = 32 << 20  # guessed: a clip of ten seconds and quiet content; noise takes several times that


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new empty file to fill, which becomes `path` when the block ends well and vanishes when not.

    Raises:
        MediaError: `path` cannot be written, or the disk is full. Errors of the block pass unchanged.
    """
    temporary = _temporary_beside(path)
    target = _followed(path)
    try:
        with writing_errors(path):
            _create(temporary)
        yield temporary
        with writing_errors(path):
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Find out before a long run whether a file can be written at `path`; leaves no trace.

    Raises:
        MediaError: the folder is missing or closed, the name is taken by something that is no ordinary
            file, or the disk is nearly full.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        with writing_errors(path):
            _create(temporary)
            free = shutil.disk_usage(temporary.parent).free
    finally:
        temporary.unlink(missing_ok=True)
    if free < _MIN_FREE_BYTES:
        raise no_room(path)


@contextlib.contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors about writing `path` into words.

    PyAV's errors about files are OSErrors too.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise no_room(path) from error
        raise MediaError(
            f"{path} cannot be written: {error.strerror or error}.", "Choose another file name or folder."
        ) from error


def no_room(path: Path) -> MediaError:
    """The error that tells so."""
    return MediaError(f"The disk that should hold {path} is full.", "Free some space, or write to another disk.")


def _followed(path: Path) -> Path:
    """The file that `path` means, so that writing to a link replaces what it points at, not the link."""
    return Path(os.path.realpath(path))


def _temporary_beside(path: Path) -> Path:
    """A fresh name in the folder of the file, if a file may be there."""
    if "\0" in str(path):
        raise MediaError(f"{str(path)!r} is not a file name.", "Give one without a zero byte.")
    target = _followed(path)
    with writing_errors(path):
        if target.is_dir():
            raise MediaError(f"{path} is a folder.", "Give a file name in it, such as clip.mp4.")
        if target.exists() and not target.is_file():
            raise MediaError(f"{path} is not an ordinary file.", "Give another file name.")
        if not target.parent.is_dir():
            raise MediaError(f"There is no folder {target.parent}.", "Make it first, or give another path.")
    return target.with_name(f".{secrets.token_hex(8)}.part")


def _create(file: Path) -> None:
    """An empty new file with the usual permissions (those of `tempfile` are for the owner only)."""
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def sync_folder(folder: Path) -> None:
    """Let the new name survive a power cut, where the system can."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse; the file itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
