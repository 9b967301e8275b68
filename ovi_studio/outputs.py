"""Where clips go: names from prompts, numbered takes, and never over a file that nobody offered up.

output_paths(…) ── before the run: every name is free and can be written
folder_beside(path) ── during the run: clips in the making, on the same disk
take_name(temporary, path) ── after it: the whole clip gets its name in one step
"""

import contextlib
import itertools
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ovi_studio.errors import MediaError
from ovi_studio.files import check_writable, writing_errors
from ovi_studio.prompt import strip_tags

_MAX_STEM = 40  # characters of a name made from a prompt. Guessed: it still fits a column of a file list
_WINDOWS_DEVICES = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]")


def output_paths(output: str | None, prompt: str, takes: int, *, force: bool) -> list[Path]:
    """The file of every take, numbered from 1 where there are several.

    Args:
        output: the name that was asked for; None takes a free one made from the prompt.
        prompt: the prompt, tags and all.
        takes: how many clips there will be.
        force: whether existing files may be replaced.

    Raises:
        MediaError: the name is not that of an mp4, cannot be written, or is taken.
    """
    if output is None:
        paths = next(paths for paths in _names(prompt, takes) if not any(map(os.path.lexists, paths)))
    else:
        if Path(output).suffix.lower() != ".mp4":
            raise MediaError(f"{output!r} does not end in .mp4.", "Clips are mp4 files: name it so.")
        paths = _numbered(Path(output), takes)
    for path in paths:
        check_writable(path)
        if os.path.lexists(path) and not force:
            raise MediaError(f"{path} exists already.", "Give another name, or --force to replace it.")
    return paths


def _names(prompt: str, takes: int) -> Iterator[list[Path]]:
    """`a-dog-barks.mp4`, `a-dog-barks-2.mp4`, …: of letters, digits and dashes, which every system takes."""
    stem = stem_for(prompt)
    for number in itertools.count(1):
        yield _numbered(Path(f"{stem}.mp4" if number == 1 else f"{stem}-{number}.mp4"), takes)


def stem_for(prompt: str) -> str:
    """A file name without suffix: the first words of what is seen, or "clip" where none can be spelt so."""
    text = unicodedata.normalize("NFKD", strip_tags(prompt)).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", text[: 4 * _MAX_STEM])
    lengths = itertools.accumulate(len(word) + 1 for word in words)
    stem = "-".join(word for word, length in zip(words, lengths, strict=True) if length <= _MAX_STEM + 1)
    return f"clip-{stem}" if _WINDOWS_DEVICES.fullmatch(stem) else stem or "clip"


def _numbered(path: Path, takes: int) -> list[Path]:
    if takes == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{take}{path.suffix}") for take in range(1, takes + 1)]


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A passing folder on the disk of `path`, so that a clip in it can take its name in one step.

    Raises:
        MediaError: it cannot be made.
    """
    with writing_errors(path):
        folder = tempfile.TemporaryDirectory(
            prefix=".ovi-studio-", dir=Path(os.path.realpath(path)).parent, ignore_cleanup_errors=True
        )
    with folder as name:
        yield Path(name)


def take_name(temporary: Path, output: Path, *, force: bool) -> Path:
    """Give the clip its name and return it: a numbered one if `output` was taken during the run.

    Args:
        temporary: the clip, in the folder that `folder_beside(output)` gave.
        output: the name it shall have.
        force: whether an existing file may be replaced; where it is a link, the file that it points at.

    Raises:
        MediaError: it cannot be written.
    """
    with writing_errors(output):
        if force:
            temporary.replace(os.path.realpath(output))
            return output
        numbers = itertools.count(2)
        path = output
        while not claim_name(temporary, path):
            path = output.with_name(f"{output.stem}-{next(numbers)}{output.suffix}")
    return path


def claim_name(temporary: Path, path: Path) -> bool:
    """Rename unless there is a file at `path`, and tell whether it was done.

    Unlike a rename, a link fails where there is one. The old name may stay too: it belongs to a passing folder.
    """
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.lexists(path):
            return False
        temporary.rename(path)
    return True
