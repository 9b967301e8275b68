"""The store: the folder of weights, and what is known about each file in it.

    <store>/<owner>/<repository>/<path>                  a file, under its hub name
    <store>/<owner>/<repository>/<path>.record.json      what was verified about it: `FileRecord`
    <store>/<owner>/<repository>/<path>.<digest>.part    the beginning of it, while it is fetched
    <store>/<owner>/<repository>/<path>.safetensors      what a pickle was converted to (`pickles.py`)
    <store>/imported/<source>/<name>                     a link to a file of the user's own, with a record too
    <store>/adapters/<id>.safetensors                    the same of an adapter
    <store>/.listings/<source>.json                      which files make up a source: `Listing`
    <store>/.locks/<source>.lock                         held while a source is written

A source is present when every file of its listing is there, of the right length, with a record that fits. A file
without a record is never taken for complete; only files with a record, and what was made of them, are ever removed.
A file may be a link to one that lies elsewhere (imports make such links): then the link is ours, and what it points
at is not.
Nothing here imports torch or asks the network.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import TypeVar

from huggingface_hub.utils import WeakFileLock
from pydantic import TypeAdapter, ValidationError

from ovi_studio.errors import InvalidInputError, WeightsError
from ovi_studio.files import replacing, writing_errors
from ovi_studio.folders import make_folder
from ovi_studio.weights.catalog import Slot, Source
from ovi_studio.weights.headers import PICKLES, converted_path, converting_paths

RECORD_SUFFIX = ".record.json"
PART_SUFFIX = ".part"
CHUNK_BYTES = 8 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class ListedFile:
    """A file as the hub (or an import) describes it.

    Args:
        path: inside the repository, with `/`.
        size: bytes.
        sha256: 64 hex digits; "" where the hub keeps the file in git and tells only the next.
        git_sha1: git's hash of the file, 40 hex digits, or "".
    """

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def digest(self) -> str:
        """Some hash of the content."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Listing:
    """The files that make up a source, at one revision of its repository ("" where it was imported)."""

    repo: str
    revision: str
    files: tuple[ListedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class FileRecord:
    """What was found out about a stored file by reading it whole.

    Args:
        repo: where it is from.
        revision: of the repository; "" where it was imported.
        path: inside the repository.
        size: bytes.
        sha256: computed from the file here, 64 hex digits.
        intact: False once `verify` found other content: then it counts as missing.
    """

    repo: str
    revision: str
    path: str
    size: int
    sha256: str
    intact: bool = True


class State(Enum):
    """How much of a source is there."""

    PRESENT = "present"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True)
class Status:
    """A source in the store: bytes that are there (of complete files and of beginnings), and bytes in all.

    `bytes_total` is 0 as long as the hub has not been asked.
    """

    state: State
    bytes_present: int
    bytes_total: int


class Finding(Enum):
    """What `Store.verify` says about a file."""

    INTACT = "intact"
    MISSING = "missing"
    DAMAGED = "damaged"


class Store:
    """The weights under one folder. Asking changes nothing; the folder need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # --- Where things are ---

    def folder_of(self, source: Source) -> Path:
        """The folder of the source's repository; sources of one repository share it."""
        return self.folder.joinpath(*source.repo.split("/"))

    def path(self, source: Source, path: str) -> Path:
        """Where the repository's file `path` is stored.

        Raises:
            WeightsError: it would lie outside the source's folder.
        """
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or any(c in path for c in '\\:\0*?"<>|'):
            raise WeightsError(f"{source.repo} has a file named {path!r}.", "Do not use this hub: the name is unsafe.")
        return self.folder_of(source).joinpath(*parts)

    def part_path(self, source: Source, file: ListedFile) -> Path:
        """Where the beginning of a file is kept; its content is in the name, so two versions never mix."""
        path = self.path(source, file.path)
        return path.with_name(f"{path.name}.{file.digest[:16]}{PART_SUFFIX}")

    def paths(self, source: Source) -> tuple[Path, ...]:
        """The files of a source that is present, in the order of its listing.

        Raises:
            WeightsError: it is not present.
        """
        if self.status(source).state is not State.PRESENT:
            raise WeightsError(
                f"The weights {source.name} are not here.", f"Fetch them: ovi-studio models download {source.name}."
            )
        return tuple(self.path(source, file.path) for file in self.listing(source).files)

    # --- What is known ---

    def listing(self, source: Source) -> Listing:
        """The files that make up the source; an empty listing where that is not known (yet)."""
        unknown = Listing(source.repo, "", ())
        listing = _read(self._listing_path(source), _LISTINGS, unknown)
        return listing if listing.repo == source.repo else unknown

    def write_listing(self, source: Source, listing: Listing) -> None:
        """Remember which files make up the source."""
        path = self._listing_path(source)
        make_folder(path.parent)
        _write(path, listing)

    def record(self, source: Source, path: str) -> FileRecord:
        """What was verified about a file; a record that fits nothing where there is none."""
        return _read(self._record_path(source, path), _RECORDS, FileRecord(source.repo, "", path, -1, "", False))

    def write_record(self, source: Source, record: FileRecord) -> None:
        """Remember what was verified about a file that lies under its final name."""
        _write(self._record_path(source, record.path), record)

    def complete(self, source: Source, file: ListedFile) -> bool:
        """Whether the file is there as its listing says, by length and record; nothing is read."""
        record = self.record(source, file.path)
        path = self.path(source, file.path)
        return (
            record.intact
            and record.size == file.size
            and record.sha256 == (file.sha256 or record.sha256)
            and size_on_disk(path) == file.size
        )

    def bytes_present(self, source: Source, file: ListedFile) -> int:
        """Bytes of the file that need not be fetched any more."""
        if self.complete(source, file):
            return file.size
        return min(max(0, size_on_disk(self.part_path(source, file))), file.size)

    def status(self, source: Source) -> Status:
        """How much of the source is there."""
        listing = self.listing(source)
        present = sum(self.bytes_present(source, file) for file in listing.files)
        if listing.files and all(self.complete(source, file) for file in listing.files):
            state = State.PRESENT
        else:
            state = State.PARTIAL if present else State.MISSING
        return Status(state, present, listing.size)

    def filled_by(self, slot: Slot) -> Source:
        """The source that fills the slot: the first one present, else the download furthest along, or the preferred."""

        def rank(source: Source) -> tuple[bool, int]:
            status = self.status(source)
            return status.state is State.PRESENT, 0 if source.imported else status.bytes_present

        return max(slot.choices, key=rank)  # of equals, the first

    # --- What is done ---

    @contextlib.contextmanager
    def locked(self, source: Source, *, seconds: float = 0.1) -> Iterator[None]:
        """Hold the source against other processes (and threads).

        Raises:
            TimeoutError: another one held it all that time.
        """
        folder = self.folder / ".locks"
        make_folder(folder)
        with WeakFileLock(folder / f"{source.name}.lock", timeout=seconds):
            yield

    def verify(self, source: Source) -> Iterator[tuple[Path, Finding]]:
        """Read every file of the source again. A damaged one is marked, so that the next download replaces it."""
        for file in self.listing(source).files:
            path, record = self.path(source, file.path), self.record(source, file.path)
            if size_on_disk(path) < 0 or record.size < 0:
                yield path, Finding.MISSING
                continue
            intact = sha256_of(path) == record.sha256
            if intact != record.intact:
                self.write_record(source, dataclasses.replace(record, intact=intact))
            yield path, Finding.INTACT if intact else Finding.DAMAGED

    def removable(self, source: Source) -> tuple[Path, ...]:
        """What `remove` would delete: files with a record, what they were converted to, and beginnings. Of links, the
        links.

        Raises:
            WeightsError: a folder of the store is a link to somewhere else.
        """
        folder = self.folder_of(source)
        ours: list[Path] = []
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if name.endswith(RECORD_SUFFIX):
                file = path.with_name(path.name.removesuffix(RECORD_SUFFIX))
                made = (converted_path(file), *converting_paths(file)) if file.suffix in PICKLES else ()
                found = (path, *(each for each in (file, *made) if os.path.lexists(each)))
                name = name.removesuffix(RECORD_SUFFIX)
            elif name.endswith(PART_SUFFIX):
                found, name = (path,), name.removesuffix(PART_SUFFIX).rpartition(".")[0]
            else:
                continue
            if source.selects(name):
                ours += found
        root = self.folder.resolve()
        for path in ours:
            if root not in path.parent.resolve().parents:
                raise WeightsError(
                    f"{path.parent} leads out of the store {self.folder}.",
                    "Remove that link first; nothing was deleted.",
                )
        return tuple(ours)

    def remove(self, source: Source) -> int:
        """Delete what `removable` names and the folders that it leaves empty; returns the bytes set free.

        Raises:
            WeightsError: the source is being written by another process, or leads out of the store.
            InvalidInputError: a file cannot be deleted.
        """
        paths = self.removable(source)
        listing = self._listing_path(source)
        if not paths and not listing.exists():
            return 0
        freed = sum(path.lstat().st_size for path in paths)
        try:
            with self.locked(source):
                for path in (*paths, listing):
                    path.unlink(missing_ok=True)
        except TimeoutError as error:
            raise WeightsError(
                f"{source.name} is being downloaded by another process.", "Wait for it, or stop it first."
            ) from error
        except OSError as error:
            raise InvalidInputError(
                f"{error.filename} cannot be deleted: {error.strerror}.", "Mend its permissions and try again."
            ) from error
        self.tidy(source)
        return freed

    def tidy(self, source: Source) -> None:
        """Delete the listing of a source of which nothing is there, and folders without anything in them."""
        if self.status(source).state is State.MISSING:
            self._listing_path(source).unlink(missing_ok=True)
        folder = self.folder_of(source)
        inner = sorted((p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True)
        for path in (*inner, folder, folder.parent, self._listing_path(source).parent):
            with contextlib.suppress(OSError):  # not empty, or not there
                path.rmdir()

    def _listing_path(self, source: Source) -> Path:
        return self.folder / ".listings" / f"{source.name}.json"

    def _record_path(self, source: Source, path: str) -> Path:
        file = self.path(source, path)
        return file.with_name(file.name + RECORD_SUFFIX)


def size_on_disk(path: Path) -> int:
    """Bytes of a file; -1 where there is none that can be reached (a folder may be closed, a disk gone)."""
    try:
        status = path.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def sha256_of(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """The SHA-256 of a file, 64 hex digits; `advance` is told the bytes read.

    Raises:
        InvalidInputError: it cannot be read.
    """
    return _digest(path, hashlib.sha256(), advance)


def git_sha1_of(path: Path) -> str:
    """Git's hash of a file's content, which the hub names for small files.

    Raises:
        InvalidInputError: it cannot be read.
    """
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    return _digest(path, digest, lambda _: None)


def _digest(path: Path, digest: "hashlib._Hash", advance: Callable[[int], None]) -> str:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                advance(len(chunk))
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.", "Mend its permissions.") from error
    return digest.hexdigest()


_LISTINGS, _RECORDS = TypeAdapter(Listing), TypeAdapter(FileRecord)


def _read(path: Path, kind: TypeAdapter[T], otherwise: T) -> T:
    """What `_write` wrote; `otherwise` where there is nothing, or nothing that can be understood."""
    try:
        return kind.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return otherwise


def _write(path: Path, value: Listing | FileRecord) -> None:
    with replacing(path) as temporary, writing_errors(path):
        temporary.write_text(json.dumps(dataclasses.asdict(value), indent=1), encoding="utf-8")
