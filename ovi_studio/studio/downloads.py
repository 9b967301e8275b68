"""Weights fetched and checked while the page goes on: one errand at a time, in a thread, told to whoever looks.

    fetch, verify → thread → standing … → done, failed, cancelled
    remove

A page that is opened anew sees what the one before began. What has arrived stays, whatever happens: fetched again, it
goes on from there. Nothing here imports torch.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from ovi_studio.errors import CancelledError, InvalidInputError, OviStudioError
from ovi_studio.events import CancelToken
from ovi_studio.variants import Variant
from ovi_studio.weights.catalog import Source, find, slots
from ovi_studio.weights.inventory import adapter_ids
from ovi_studio.weights.store import Finding, State, Store

if TYPE_CHECKING:
    from ovi_studio.weights.download import DownloadEvent
    from ovi_studio.weights.hub import Hub

Errand: TypeAlias = Literal["", "download", "verify"]
Stage: TypeAlias = Literal["idle", "asking", "waiting", "running", "done", "failed", "cancelled"]

_LINES = 50  # of news that are kept; guessed: a model has about twenty files
_AGAIN = "Press Download again: it resumes where it stopped."

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """How far the newest errand is.

    Args:
        errand: what is, or was, done; "" where nothing was yet.
        names: models and parts it is about, as they were asked for.
        stage: asking: the hub is asked what there is; waiting: another program fetches the same.
        bytes_done: of `bytes_total`; 0 of 0 where that is not known yet.
        bytes_total: see above.
        bytes_per_second: None while there is nothing to judge by.
        seconds_left: likewise.
        news: what happened, line by line, the newest last.
        problem: why it failed, or what was found damaged; else "".
        remedy: what to do about it.
    """

    errand: Errand = ""
    names: tuple[str, ...] = ()
    stage: Stage = "idle"
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: float | None = None
    seconds_left: float | None = None
    news: tuple[str, ...] = ()
    problem: str = ""
    remedy: str = ""

    @property
    def busy(self) -> bool:
        """Whether it is under way."""
        return self.stage in ("asking", "waiting", "running")

    def saying(self, line: str) -> "Standing":
        """The same with one more line of news."""
        return replace(self, news=(*self.news, line)[-_LINES:])


class Downloads:
    """Errands about the weights of one store. Use it as a context; its methods may be called from any thread.

    Args:
        store: the weights.
        hub: where they are fetched; None: huggingface.co, or what `HF_ENDPOINT` says.
    """

    def __init__(self, store: Store, hub: "Hub | None" = None) -> None:
        self.store = store
        self._hub = hub
        self._beginning = threading.Lock()
        self._standing = Standing()
        self._cancel = CancelToken()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Downloads":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def standing(self) -> Standing:
        """How far the newest errand is."""
        return self._standing

    def fetch(self, names: Sequence[str]) -> None:
        """Begin to fetch what models and parts lack.

        Raises:
            InvalidInputError: an errand is under way, a name is unknown, or nothing is lacking.
        """
        sources = list(dict.fromkeys(source for name in names for source in self._to_fetch(name)))
        if not sources:
            raise InvalidInputError(f"Nothing of {', '.join(names)} is missing.", "Verify it, if you have doubts.")
        self._begin("download", names, lambda: self._fetch(sources))

    def verify(self, names: Sequence[str]) -> None:
        """Begin to read weights that are here again, and to compare their checksums. Raises as `fetch`."""
        sources = [source for name in names for source in self._filling(name) if self._is_here(source)]
        if not sources:
            raise InvalidInputError(f"Nothing of {', '.join(names)} is here.", "Download it first.")
        self._begin("verify", names, lambda: self._verify(sources))

    def remove(self, name: str) -> int:
        """Delete a part; of a model, what no other one uses. Returns the bytes set free.

        Raises:
            InvalidInputError: an errand is under way, the name is unknown, or a file cannot be deleted.
            WeightsError: another program writes it.
        """
        with self._beginning:
            self._check_idle()
            return sum(self.store.remove(source) for source in self.removable(name))

    def removable(self, name: str) -> list[Source]:
        """The sources that `remove` would delete, as far as something of them is here."""
        found = self._find(name)
        ours = [found] if isinstance(found, Source) else [s for slot in slots(found)[:1] for s in slot.choices]
        return [source for source in ours if self.store.removable(source)]

    def cancel(self) -> None:
        """Stop the errand under way; what has arrived stays."""
        self._cancel.cancel()

    def close(self) -> None:
        """Stop, and wait until it has."""
        self.cancel()
        if self._thread is not None:
            self._thread.join()

    # --- What is meant ----------------------------------------------------------------------------------------

    def _find(self, name: str) -> Variant | Source:
        return find(name, adapter_ids(self.store))

    def _filling(self, name: str) -> list[Source]:
        """The source of that name; of a model, one for each of its slots that it cannot do without."""
        found = self._find(name)
        if isinstance(found, Source):
            return [found]
        return [self.store.filled_by(slot) for slot in slots(found) if not slot.optional]

    def _is_here(self, source: Source) -> bool:
        return self.store.status(source).state is State.PRESENT

    def _to_fetch(self, name: str) -> list[Source]:
        sources = [source for source in self._filling(name) if not self._is_here(source)]
        for source in sources:
            if source.imported:
                raise InvalidInputError(
                    f"{source.name} is made of links to files of your own: there is nothing to download.",
                    "Give the files: ovi-studio models import FOLDER.",
                )
        return sources

    # --- What is done -----------------------------------------------------------------------------------------

    def _check_idle(self) -> None:
        if self._standing.busy:
            raise InvalidInputError(
                f"{', '.join(self._standing.names)} is being seen to.", "Wait until that is over, or cancel it."
            )

    def _begin(self, errand: Errand, names: Sequence[str], work: Callable[[], None]) -> None:
        with self._beginning:
            self._check_idle()
            self._cancel = CancelToken()
            self._standing = Standing(errand, tuple(names), "asking" if errand == "download" else "running")
            self._thread = threading.Thread(target=self._do, args=(work,), name=errand, daemon=True)
            self._thread.start()

    def _do(self, work: Callable[[], None]) -> None:
        """The boundary: whatever ends the errand is told."""
        end = replace(self._standing, stage="failed", problem="It stopped for a reason of its own.", remedy=_AGAIN)
        try:
            work()
            end = replace(self._standing, stage="failed" if self._standing.problem else "done")
        except CancelledError:
            end = replace(self._standing, stage="cancelled")
        except OviStudioError as error:
            from ovi_studio.weights.hub import RESUMES  # noqa: PLC0415  (the page starts without it)

            _logger.info("%s: %s", self._standing.errand, error)
            remedy = error.remedy.replace(RESUMES, _AGAIN)
            end = replace(self._standing, stage="failed", problem=error.problem, remedy=remedy)
        finally:
            self._standing = replace(end, bytes_per_second=None, seconds_left=None)

    def _fetch(self, sources: Sequence[Source]) -> None:
        from ovi_studio.weights.download import download  # noqa: PLC0415  (a second that the page need not wait)

        for event in download(sources, self.store, self._hub, cancel=self._cancel):
            self._standing = _after(self._standing, event)

    def _verify(self, sources: Sequence[Source]) -> None:
        self._standing = replace(self._standing, bytes_total=sum(self.store.listing(s).size for s in sources))
        damaged = [path for path, finding in self._findings(sources) if finding is not Finding.INTACT]
        if damaged:
            problem = f"{len(damaged)} files are missing or damaged: {', '.join(damaged)}."
            self._standing = replace(self._standing, problem=problem, remedy="Press Download: they are fetched anew.")

    def _findings(self, sources: Sequence[Source]) -> Iterator[tuple[str, Finding]]:
        for source in sources:
            sizes = [file.size for file in self.store.listing(source).files]
            for size, (path, finding) in zip(sizes, self.store.verify(source), strict=True):
                done = self._standing.bytes_done + size
                line = f"{source.name}: {path.name} is {finding.value}"
                self._standing = replace(self._standing, bytes_done=done).saying(line)
                yield path.name, finding
                self._cancel.raise_if_cancelled()


def _after(standing: Standing, event: "DownloadEvent") -> Standing:
    """What there is to tell after one more event."""
    from ovi_studio.weights import download  # noqa: PLC0415

    match event:
        case download.WaitingForOther(source):
            line = f"Another program is fetching {source}: waiting for it"
            return replace(standing, stage="waiting").saying(line)
        case download.DownloadStarted(files, done, total, _):
            return replace(standing, stage="running", bytes_done=done, bytes_total=total).saying(f"{files} files")
        case download.DownloadProgress(done, total, speed, left):
            return replace(standing, bytes_done=done, bytes_total=total, bytes_per_second=speed, seconds_left=left)
        case download.Retrying(file, problem, _):
            return standing.saying(f"{file}: {problem}; trying again")
        case download.FileFinished(source, path, _, _):
            return standing.saying(f"{source}: {path} is here, verified")
    return standing
