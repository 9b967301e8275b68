"""What the clips on the disk say: whether one is there already, and a library rebuilt from them.

Clips may come from anyone: what travels inside them is read as untrusted, and names no file of this machine.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ovi_studio.errors import InvalidInputError, MediaError, StoreError
from ovi_studio.media import read_metadata, thumbnail
from ovi_studio.request import GenerationRequest
from ovi_studio.studio.job import Job, is_answer
from ovi_studio.studio.library import Filter, Library, default_outputs
from ovi_studio.studio.records import insert_row, labels


@dataclass(frozen=True)
class Rescanned:
    """What a rescan found.

    Args:
        added: clips that the library did not know.
        moved: clips that it knew elsewhere, or was about to make.
        known: clips that it knew.
        skipped: files that are none of ours, each with the reason.
        missing: clips that it knows and nobody found.
    """

    added: int
    moved: int
    known: int
    skipped: tuple[tuple[Path, str], ...]
    missing: tuple[Path, ...]


def embedded_request(path: Path) -> GenerationRequest:
    """What a clip was made from.

    Raises:
        MediaError: it cannot be read, or is not ours.
        InvalidRequestError: it holds no request that this version can make.
    """
    return GenerationRequest.from_embedded(read_metadata(path).get("request"))


def is_made(path: Path, request: GenerationRequest) -> bool:
    """Whether the file at `path` is the clip that was asked for."""
    try:
        return os.path.lexists(path) and is_answer(embedded_request(path), request)
    except (MediaError, InvalidInputError):
        return False


def small_picture(path: Path) -> bytes | None:
    """A thumbnail; None where the clip has no picture, or none that can be read."""
    with contextlib.suppress(MediaError):
        return thumbnail(path)
    return None


def rescan(library: Library, folders: Iterable[Path]) -> Rescanned:
    """Take up every clip in `folders` and the folders in them that the library does not know.

    A clip that the library knows under another name, where there is nothing any more, has moved. One that
    lies where a queued job's clip shall be, and is that clip, settles the job.

    Raises:
        StoreError: the library cannot be written.
    """
    rows = {job.output: job for job in library.find(Filter())}
    lost = [job for job in rows.values() if job.status == "done" and not job.output.exists()]
    added = moved = known = 0
    skipped: list[tuple[Path, str]] = []
    for path in sorted({path for folder in folders for path in clips_in(folder.absolute())}):
        job = rows.get(path)
        if job is not None and job.status == "done":
            known += 1
            continue
        try:
            request = embedded_request(path).with_real_seed()
            str(path).encode()
        except (InvalidInputError, UnicodeEncodeError) as error:
            skipped.append((path, str(error)))
            continue
        job = job or next((each for each in lost if is_answer(request, each.request)), None)
        if job is None:
            add_clip(library, path, request)
            added += 1
        elif is_answer(request, job.request):
            moved += _settle(library, job, path)
            lost = [each for each in lost if each is not job]
    return Rescanned(added, moved, known, tuple(skipped), tuple(job.output for job in lost))


def known_folders(library: Library) -> tuple[Path, ...]:
    """Where clips of the library lie, and where they go when nobody says otherwise."""
    rows = library.store.rows("SELECT DISTINCT output FROM jobs")
    return tuple(sorted({Path(row["output"]).parent for row in rows} | {default_outputs()}))


def put_aside(path: Path) -> Path:
    """Rename a damaged library and the files that SQLite keeps beside it, so that a new one can be made.

    Raises:
        StoreError: it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.stem}.damaged-{stamp}{path.suffix}")
    try:
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise StoreError(f"{path} cannot be put aside: {error.strerror}.", "Rename it by hand.") from error
    return aside


def clips_in(folder: Path) -> Iterator[Path]:
    """Every mp4 below `folder`; hidden folders hold clips in the making, and links may lead anywhere."""
    for parent, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if name.lower().endswith(".mp4") and not name.startswith(".") and not path.is_symlink():
                yield path


def add_clip(
    library: Library, path: Path, request: GenerationRequest, columns: Mapping[str, object] = MappingProxyType({})
) -> str:
    """A new row for a clip that is there; its id.

    Args:
        library: where it goes.
        path: the clip.
        request: what it was made from, with its seed.
        columns: more of the row.
    """
    made = path.stat().st_mtime
    row: dict[str, object] = {
        "id": secrets.token_hex(8),
        "status": "done",
        "created": made,
        "finished": made,
        "progress": 1.0,
        "variant": request.variant,
        "seed": request.seed,
        "output": str(path),
        "request": json.dumps(request.embedded()),
        "thumbnail": small_picture(path),
        **labels(request.prompt, "", ()),
        **columns,
    }
    with library.store.transaction() as connection:
        known = connection.execute("SELECT id FROM jobs WHERE output = ?", [str(path)]).fetchone()
        if known is not None:  # another program was faster
            return str(known["id"])
        insert_row(connection, row)
    return str(row["id"])


def _settle(library: Library, job: Job, path: Path) -> int:
    """The clip of `job` is at `path`, and nobody is making it; 1, or 0 where somebody is."""
    return library.store.change(
        "UPDATE jobs SET status = 'done', output = ?, thumbnail = ?, progress = 1, problem = '', remedy = '',"
        " finished = ifnull(finished, ?) WHERE id = ? AND status <> 'running'",
        [str(path), small_picture(path), path.stat().st_mtime, job.id],
    )
