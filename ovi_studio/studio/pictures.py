"""Pictures that came with a table, each under the name that the table calls it by; one folder for every person.

They lie here until their table is run: then `Frames` keeps a copy as long as the clips may be made again.
"""

import re
from pathlib import Path

from ovi_studio.errors import MediaError
from ovi_studio.files import replacing, writing_errors
from ovi_studio.folders import make_folder
from ovi_studio.images import read_image
from ovi_studio.studio.sheet import picture_name

MAX_PICTURES = 200  # guessed: a batch by hand has fewer
MAX_BYTES = 256 << 20  # of all of a person's; guessed
_MAX_NAME = 150  # bytes; every file system takes 255, and a passing name is longer
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*]')  # what some system does not take


class Pictures:
    """The pictures in one folder, which is made when needed.

    Args:
        folder: theirs alone.
        max_bytes: that all of them may have together.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def names(self) -> tuple[str, ...]:
        """What is here, by name."""
        return tuple(sorted(path.name for path in self._files()))

    def keep(self, name: str, data: bytes) -> str:
        """Put a picture here, in the place of one of the same name; gives the name by which it is found.

        Raises:
            MediaError: it is none that can be read, its name cannot be a file's, or there are too many.
        """
        name = picture_name(name.strip())
        if not name or name[0] == "." or not name.isprintable() or _NOT_IN_NAMES.search(name):
            raise MediaError(f"A picture cannot be called {name[:40]!r}.", "Rename it, in the table too.")
        if len(name.encode(errors="replace")) > _MAX_NAME:
            raise MediaError(f"The name {name[:40]!r}… is too long.", "Rename the picture, in the table too.")
        try:
            read_image(data)
        except MediaError as error:  # one of several that were dropped: which one?
            raise MediaError(error.problem.replace("The image", name, 1), error.remedy) from error
        others = [path.stat().st_size for path in self._files() if path.name != name]
        if len(others) >= MAX_PICTURES or sum(others) + len(data) > self._max_bytes:
            raise MediaError(
                f"There is room for {MAX_PICTURES} pictures of {self._max_bytes >> 20} MiB together.",
                "Forget the pictures of older tables first, or save these ones smaller.",
            )
        make_folder(self.folder)
        path = self.folder / name
        with replacing(path) as temporary, writing_errors(path):
            temporary.write_bytes(data)
        return name

    def forget(self) -> None:
        """Remove all of them."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("[!.]*") if path.is_file() and not path.is_symlink()]
