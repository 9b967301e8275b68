"""Pictures that clips start from, kept as long as their clips may be made again.

    <folder>/<first 32 digits of the SHA-256><suffix>

A picture that somebody uploads lies in a passing place; here it is named by its content, once.
"""

import shutil
from pathlib import Path

import PIL.Image

from ovi_studio.files import replacing, writing_errors
from ovi_studio.folders import make_folder
from ovi_studio.images import image_digest, read_image
from ovi_studio.media import last_frame
from ovi_studio.request import ImageFrame


class Frames:
    """The pictures in one folder, which is made when needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, path: str | Path) -> ImageFrame:
        """A copy of the picture, as a first frame.

        Raises:
            MediaError: it is not a picture that can be read.
        """
        path = Path(path)
        read_image(path)
        digest = image_digest(path)
        kept = self._folder / f"{digest[:32]}{path.suffix.lower()}"
        if not kept.exists():
            make_folder(self._folder)
            with replacing(kept) as temporary, writing_errors(kept):
                shutil.copyfile(path, temporary)
        return ImageFrame(path=str(kept), name=path.name, sha256=digest)

    def keep_last(self, clip: Path) -> Path:
        """The last frame of a clip as a picture, to go on from.

        Raises:
            MediaError: it cannot be read, or has no picture.
        """
        kept = self._folder / f"{clip.stem} last frame.png"
        make_folder(self._folder)
        with replacing(kept) as temporary, writing_errors(kept):
            PIL.Image.fromarray(last_frame(clip)).save(temporary, "PNG")
        return kept
