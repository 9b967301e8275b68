"""Many clips in one file: a zip with the mp4s and a table that makes them again.

    Exports.make(jobs, person) → token ── the page fetches studio/export/<token>.zip
                                  zip: clips.csv   images/<hash>.png   <clip>.mp4 …

The table is one that `ovi-studio batch` runs: unpacked anywhere, it names its pictures by where they are in the zip.
"""

import csv
import io
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovi_studio.errors import InvalidInputError
from ovi_studio.files import no_room, replacing, writing_errors
from ovi_studio.folders import make_folder
from ovi_studio.request import Adapter, GeneratedFrame, GenerationRequest, ImageFrame
from ovi_studio.studio.job import Job
from ovi_studio.studio.rows import EMPTY_TEXT
from ovi_studio.studio.table import harmless
from ovi_studio.variants import interval_text

TABLE = "clips.csv"
MAX_CLIPS = 2000  # guessed: some gigabytes
_KEPT_SECONDS = 3600.0  # guessed: for a download that begins late or is taken up again
_MARGIN_BYTES = 64 << 20  # guessed: what a disk should have left
_DATE = (1980, 1, 1, 0, 0, 0)  # the zip format's first; clips of the same name and content give the same file

_COLUMNS = (
    "file", "name", "tags", "model", "text_prompt", "video_negative_prompt", "audio_negative_prompt", "modality",
    "size", "aspect", "snap", "seed", "steps", "solver", "shift", "video_guidance_scale", "audio_guidance_scale",
    "video_guidance_interval", "audio_guidance_interval", "slg_layer", "adapters", "takes", "quality", "image_path",
    "draw_frame", "first_frame_prompt", "first_frame_seed",
)  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """A zip that waits to be fetched.

    Args:
        token: what its address ends in; nobody can guess it.
        clips: how many clips are in it.
        missing: how many of those asked for are not: their files are gone.
        frames_missing: how many rows name a picture that is gone.
    """

    token: str
    clips: int
    missing: int
    frames_missing: int


class Exports:
    """The zips of one page, in a folder that is made when needed. Its methods may be called from any thread.

    A person has one at a time; each is kept for an hour. Those that a killed program left are removed.

    Args:
        folder: where they are; it may be any that can be made again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._ready: dict[str, tuple[str, Path]] = {}  # by token: whose, and where

    def make(self, jobs: Sequence[Job], person: str) -> Packed:
        """Pack the clips of finished jobs for a person (their id); what they had packed before is removed.

        Raises:
            InvalidInputError: there are too many, or none whose file is there.
            MediaError: the disk has no room for them.
        """
        there = [job for job in jobs if job.status == "done" and job.output.is_file()]
        if not there:
            raise InvalidInputError("There is no clip to export.", "Select finished clips whose files are there.")
        if len(there) > MAX_CLIPS:
            raise InvalidInputError(f"{len(there)} clips are too many at once.", f"Take up to {MAX_CLIPS}.")
        make_folder(self._folder)
        self._forget(person)
        token = secrets.token_urlsafe(16)
        path = self._folder / f"{token}.zip"
        pictures = _pictures(there)
        self._check_room(path, [*(job.output for job in there), *pictures.values()])
        with replacing(path) as temporary, writing_errors(path):
            _pack(temporary, there, pictures)
        with self._lock:
            self._ready[token] = person, path
        frames = [job.request.first_frame for job in there if isinstance(job.request.first_frame, ImageFrame)]
        gone = sum(_picture_name(frame) not in pictures for frame in frames)
        return Packed(token, len(there), len(jobs) - len(there), gone)

    def find(self, token: str, person: str) -> Path:
        """The zip.

        Raises:
            InvalidInputError: there is none of this person's.
        """
        with self._lock:
            owner, path = self._ready.get(token, ("", Path()))
        if token not in self._ready or owner != person or not path.is_file():
            raise InvalidInputError("This export is gone.", "Export the clips again.")
        return path

    def close(self) -> None:
        """Remove all of them."""
        with self._lock:
            for _, path in self._ready.values():
                path.unlink(missing_ok=True)
            self._ready.clear()

    def _forget(self, person: str) -> None:
        """Remove this person's, and all that are old."""
        with self._lock:
            for token, (owner, path) in list(self._ready.items()):
                if owner == person or not path.exists():
                    path.unlink(missing_ok=True)
                    del self._ready[token]
        for path in [*self._folder.glob("*.zip"), *self._folder.glob(".*.part")]:
            with writing_errors(path):
                if path.exists() and path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                    path.unlink(missing_ok=True)

    def _check_room(self, path: Path, files: Iterable[Path]) -> None:
        needed = sum(file.stat().st_size for file in files) + _MARGIN_BYTES
        if shutil.disk_usage(self._folder).free < needed:
            raise no_room(path.parent)


def table_of(jobs: Iterable[Job], names: Sequence[str]) -> str:
    """The table that makes the jobs' clips again, as CSV that no spreadsheet runs anything in.

    Args:
        jobs: what was made.
        names: of the clips' files, in the same order.
    """
    rows = [_cells(job, name) for job, name in zip(jobs, names, strict=True)]
    used = [column for column in _COLUMNS if any(row.get(column) for row in rows)]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(used)
    writer.writerows([[harmless(row.get(column, "")) for column in used] for row in rows])
    return text.getvalue()


# --- The table ------------------------------------------------------------------------------------------------


def _cells(job: Job, file: str) -> dict[str, str]:
    """A row's cells; what is left open stays empty."""
    request = job.request
    cells = {
        "file": file,
        "name": job.name,
        "tags": "; ".join(tag.replace(";", ",") for tag in job.tags),
        "model": request.variant,
        "text_prompt": request.prompt,
        "video_negative_prompt": _text(request.video_negative_prompt),
        "audio_negative_prompt": _text(request.audio_negative_prompt),
        "modality": request.modality,
        "size": "" if request.size is None else "x".join(map(str, request.size)),
        "aspect": request.aspect or "",
        "snap": "" if request.snap else "false",
        "seed": _number(request.seed),
        "steps": _number(request.num_inference_steps),
        "solver": request.solver or "",
        "shift": _number(request.shift),
        "video_guidance_scale": _number(request.video_guidance_scale),
        "audio_guidance_scale": _number(request.audio_guidance_scale),
        "video_guidance_interval": interval_text(request.video_guidance_interval),
        "audio_guidance_interval": interval_text(request.audio_guidance_interval),
        "slg_layer": _number(request.slg_layer),
        "adapters": "; ".join(map(_adapter, request.adapters)),
        "takes": "" if request.takes == 1 else str(request.takes),
        "quality": request.quality,
    }
    return cells | _frame_cells(request)


def _frame_cells(request: GenerationRequest) -> dict[str, str]:
    match request.first_frame:
        case ImageFrame() as frame:
            return {"image_path": _picture_name(frame)}
        case GeneratedFrame(prompt=prompt, seed=seed):
            return {"draw_frame": "true", "first_frame_prompt": prompt or "", "first_frame_seed": _number(seed)}
    return {}


def _text(text: str | None) -> str:
    """A text that may be left open, or be empty on purpose."""
    return "" if text is None else text or EMPTY_TEXT


def _number(number: float | None) -> str:
    return "" if number is None else repr(number)


def _adapter(adapter: Adapter) -> str:
    return f"{adapter.id}:{adapter.strength!r}:{adapter.tower}"


# --- The zip --------------------------------------------------------------------------------------------------


def _pictures(jobs: Iterable[Job]) -> dict[str, Path]:
    """The first frames that are there: name in the zip, and file."""
    frames = (job.request.first_frame for job in jobs)
    kept = (frame for frame in frames if isinstance(frame, ImageFrame))
    named = {_picture_name(frame): Path(frame.path) for frame in kept if frame.path}
    return {name: path for name, path in named.items() if path.is_file()}


def _picture_name(frame: ImageFrame) -> str:
    stem = frame.sha256[:32] if frame.sha256 else Path(frame.path or frame.name).stem
    return f"images/{stem}{Path(frame.path or frame.name).suffix.lower()}"


def _pack(path: Path, jobs: Sequence[Job], pictures: dict[str, Path]) -> None:
    names = _file_names(jobs)
    # Nothing is compressed: clips are as small as they get.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        table = table_of(jobs, names).encode("utf-8-sig", "replace")
        archive.writestr(zipfile.ZipInfo(TABLE, _DATE), table, zipfile.ZIP_DEFLATED)
        files = [*pictures.items(), *((name, job.output) for name, job in zip(names, jobs, strict=True))]
        for name, file in files:
            archive.write(file, name)


def _file_names(jobs: Iterable[Job]) -> list[str]:
    """The clips' own names, numbered where two folders have the same; in any case, as some systems see it."""
    names: list[str] = []
    taken: set[str] = set()
    for job in jobs:
        name, number = job.output.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{job.output.stem}-{number}{job.output.suffix}"
        taken.add(name.casefold())
        names.append(name)
    return names
