"""The hub, as a client sees it: which files a source has, and the bytes of a file from wherever it stopped.

    Hub.list_files(source) → Listing          revision, sizes and hashes, as the hub tells them
    Hub.fetch(source, revision, file, part)   the file's bytes in `part`, verified

Session, proxies, tokens, mirrors (`HF_ENDPOINT`) and offline mode are huggingface_hub's. The transfer itself is not:
since its version 1.18 `hf_hub_download` writes every attempt to a name of its own, so that a killed download starts
anew, and a transfer by Xet cannot be continued either. Here a file is one HTTP stream into one `.part` file, which
the next attempt, also that of another process, continues with a Range request.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from ovi_studio import __version__
from ovi_studio.errors import CancelledError, WeightsError
from ovi_studio.weights.catalog import Source
from ovi_studio.weights.store import ListedFile, Listing, git_sha1_of, sha256_of, size_on_disk

_LIES = "Try again later, or use another endpoint: nothing counts as downloaded until length and checksum agree."
RESUMES = "Run the same command again: it resumes where it stopped."
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be others in a moment
_PROGRESS_BYTES = 1 << 20  # guessed: an attempt that gained less than this counts as one that gained nothing
_ASK_SECONDS = 30.0  # for the answer to one question; guessed
_LONGEST_WAIT = 60.0  # seconds between attempts, whatever the hub asks for; guessed


class Watcher(Protocol):
    """Who looks on while the hub is asked; called from the asking thread."""

    def gained(self, size: int) -> None:
        """So many bytes more are there (fewer, if negative)."""

    def retrying(self, what: str, problem: str, attempt: int) -> None:
        """An attempt at `what` failed; the `attempt`th of those that gain nothing follows."""


class _TransientError(Exception):
    """An attempt failed in a way that another one may not."""

    def __init__(self, problem: str, wait_seconds: float = 0.0) -> None:
        super().__init__(problem)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class Hub:
    """A hub or a mirror of it.

    Args:
        endpoint: its address.
        retries: further attempts after one that gained nothing.
        wait_seconds: before the first of them; doubled for each of the next.
    """

    endpoint: str = constants.ENDPOINT  # huggingface.co, or what `HF_ENDPOINT` says
    retries: int = 4
    wait_seconds: float = 1.0

    def list_files(self, source: Source, revision: str, watcher: Watcher, stop: threading.Event) -> Listing:
        """The files of `source` at a revision; at the newest, where that one is gone or "".

        Raises:
            WeightsError: the hub cannot be reached, refuses, or has no such files.
            CancelledError: `stop` was set.
        """
        failures = 0
        while True:
            try:
                with _explained(source, source.repo, self.endpoint):
                    return self._listing(source, self._model_info(source, revision))
            except _TransientError as error:
                failures += 1
                self._wait(source.repo, error, failures, watcher, stop)

    def fetch(
        self, source: Source, revision: str, file: ListedFile, part: Path, watcher: Watcher, stop: threading.Event
    ) -> str:
        """Bring `part` to the whole, verified content of `file`; returns its SHA-256.

        Raises:
            WeightsError: the hub cannot be reached, refuses, or sends something else than it told; or the disk does.
            CancelledError: `stop` was set; what has arrived stays.
        """
        failures = 0
        while size_on_disk(part) < file.size:
            before = _size(part)
            try:
                with _explained(source, file.path, self.endpoint), _disk_errors(part):
                    self._stream(source, revision, file, part, watcher, stop)
                if _size(part) < file.size:
                    raise _TransientError("the connection ended early")  # noqa: TRY301
            except _TransientError as error:
                failures = 0 if _size(part) - before >= _PROGRESS_BYTES else failures + 1
                self._wait(file.path, error, failures, watcher, stop)
        return _verified(source, file, part, watcher)

    def _model_info(self, source: Source, revision: str) -> ModelInfo:
        api = HfApi(endpoint=self.endpoint, library_name="ovi-studio", library_version=__version__)
        try:
            return api.model_info(source.repo, revision=revision or None, files_metadata=True, timeout=_ASK_SECONDS)
        except RevisionNotFoundError:
            if not revision:
                raise
            return self._model_info(source, "")
        except (ValueError, TypeError, KeyError) as error:  # no JSON, or not a model's
            raise WeightsError(
                f"What answers at {self.endpoint} is not a hub.", "Check HF_ENDPOINT, and whether a proxy interferes."
            ) from error

    def _listing(self, source: Source, info: ModelInfo) -> Listing:
        found = [sibling for sibling in info.siblings or () if source.selects(sibling.rfilename)]
        missing = source.unmatched(sibling.rfilename for sibling in found)
        if missing:
            raise WeightsError(
                f"The hub's repository {source.repo} has no file {missing[0]}.",
                f"Look at {source.page}: if it has moved, update ovi-studio.",
            )
        files = []
        for sibling in found:
            sha256 = sibling.lfs.sha256 if sibling.lfs else ""
            if sibling.size is None or sibling.size < 0 or not (sha256 or sibling.blob_id):
                raise WeightsError(
                    f"The hub tells no size or no checksum of {source.repo}/{sibling.rfilename}.",
                    "Use another endpoint: without them a download cannot be verified.",
                )
            files.append(ListedFile(sibling.rfilename, sibling.size, sha256, "" if sha256 else sibling.blob_id or ""))
        return Listing(source.repo, info.sha or "", tuple(files))

    def _stream(
        self, source: Source, revision: str, file: ListedFile, part: Path, watcher: Watcher, stop: threading.Event
    ) -> None:
        """One request, from where `part` ends; returns when the server has no more to send."""
        url = hf_hub_url(source.repo, file.path, revision=revision or None, endpoint=self.endpoint)
        headers = build_hf_headers(library_name="ovi-studio", library_version=__version__)
        headers["Accept-Encoding"] = "identity"  # compressed bytes could be neither counted nor continued
        offset = _size(part)
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            if response.status_code == 416:  # Range Not Satisfiable
                _forget(part, watcher)
                raise _TransientError("the hub cannot continue the file; starting it anew")
            hf_raise_for_status(response)
            start, total = _extent(response)
            if total not in {file.size, None}:
                raise WeightsError(
                    f"The hub lists {source.repo}/{file.path} with {file.size} bytes and sends {total}.",
                    _LIES,
                )
            if start != offset:
                _forget(part, watcher)
            if start not in {offset, 0}:
                raise _TransientError("the hub sent another piece than was asked for")
            part.touch()
            with part.open("r+b") as output:
                output.seek(start)  # not "append": should a lock fail, two writers put the same bytes in the same place
                for chunk in response.iter_bytes():
                    if stop.is_set():
                        raise CancelledError
                    if output.tell() + len(chunk) > file.size:
                        raise WeightsError(
                            f"The hub sends more of {source.repo}/{file.path} than the {file.size} bytes it lists.",
                            _LIES,
                        )
                    output.write(chunk)
                    watcher.gained(len(chunk))

    def _wait(self, what: str, error: _TransientError, failures: int, watcher: Watcher, stop: threading.Event) -> None:
        if failures > self.retries:
            raise WeightsError(f"{what} could not be fetched from {self.endpoint}: {error}.", RESUMES) from error
        watcher.retrying(what, str(error), failures)
        own = self.wait_seconds * 2 ** max(failures - 1, 0)
        if stop.wait(min(max(own, error.wait_seconds), _LONGEST_WAIT)):
            raise CancelledError


def _size(part: Path) -> int:
    return max(0, size_on_disk(part))


def _forget(part: Path, watcher: Watcher) -> None:
    """Start the file anew."""
    watcher.gained(-_size(part))
    part.unlink(missing_ok=True)


def _extent(response: httpx2.Response) -> tuple[int, int | None]:
    """Where in the file the answer's bytes start, and how long the file is (None where it does not say)."""
    if response.status_code != 206:
        length = response.headers.get("Content-Length", "")
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        return 0, int(length) if plain and length.isdigit() else None
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return int(start) if start.isdigit() else -1, int(total) if total.isdigit() else None


def _verified(source: Source, file: ListedFile, part: Path, watcher: Watcher) -> str:
    """The SHA-256 of the whole file; it is deleted if it is not the one that the hub lists."""
    sha256 = sha256_of(part)
    right = sha256 == file.sha256 if file.sha256 else git_sha1_of(part) == file.git_sha1
    if part.stat().st_size != file.size or not right:
        _forget(part, watcher)
        raise WeightsError(
            f"What arrived as {source.repo}/{file.path} is damaged: its checksum is not the one that the hub lists.",
            "It was deleted; run the same command again to fetch it anew.",
        )
    return sha256


# --- Errors -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(source: Source, what: str, endpoint: str) -> Iterator[None]:
    """Turn the client's errors into ours: lasting ones into words, passing ones into `_TransientError`."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise WeightsError(
            "huggingface_hub is in offline mode, so nothing can be fetched.", "Unset HF_HUB_OFFLINE, or import files."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in _PASSING:
            after = error.response.headers.get("Retry-After", "")
            raise _TransientError(f"it answered {status}", float(after) if after.isdigit() else 0.0) from error
        raise _refusal(source, what, endpoint, status, gated=isinstance(error, GatedRepoError)) from error
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise WeightsError(
            f"{endpoint} is not the address of a hub: {str(error).rstrip('.')}.", "Mend HF_ENDPOINT."
        ) from error
    except httpx2.HTTPError as error:
        raise _TransientError(str(error) or type(error).__name__) from error


def _refusal(source: Source, what: str, endpoint: str, status: int, *, gated: bool) -> WeightsError:
    if status in {401, 403} and (gated or source.gated):
        return WeightsError(
            f"{source.repo} is gated: its owner asks you to accept the licence first (the hub answered {status}).",
            f"Accept it at {source.page}, sign in with `hf auth login` (or set HF_TOKEN), and run this again.",
        )
    if status in {401, 403}:
        return WeightsError(
            f"{endpoint} does not let us read {source.repo} (it answered {status}).",
            "It is public on huggingface.co: check your token (HF_TOKEN, `hf auth whoami`) and HF_ENDPOINT.",
        )
    if status == 404:
        return WeightsError(
            f"{endpoint} has no {what} of {source.name} (it answered 404).",
            f"Check HF_ENDPOINT; if it is right, look whether {source.page} has moved, and update ovi-studio.",
        )
    return WeightsError(f"{endpoint} refuses {what} (it answered {status}).", f"{RESUMES} If it recurs, report it.")


@contextlib.contextmanager
def _disk_errors(part: Path) -> Iterator[None]:
    """Words for a full or closed disk. The client's own errors, some of them `OSError`s, pass."""
    try:
        yield
    except (HfHubHTTPError, OfflineModeIsEnabled):
        raise
    except OSError as error:
        raise WeightsError(
            f"{part.parent} cannot be written: {error.strerror or error}.",
            f"Free some space or mend its permissions. {RESUMES}",
        ) from error
