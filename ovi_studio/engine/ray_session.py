"""Ray, as the commands use it: the connection to a cluster, or a cluster of this machine alone.

This comes before `cluster.py`, which imports Ray: some of its settings are read when it is imported.
"""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from ovi_studio.errors import EngineError, InvalidInputError

_OBJECT_STORE_BYTES = 128 << 20  # of a cluster that is started here: pieces of clips are all that passes through it


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connected to a cluster as long as this lasts; one that was started here ends with it.

    What Ray prints meanwhile is kept from stdout, which programs read: Ray's own logs have it.

    Args:
        address: "auto" for the cluster of this machine, or else a new one of this machine alone; "local" for that in
            any case; "ray://HOST:PORT" for one elsewhere.

    Raises:
        InvalidInputError: the address is none of these.
        EngineError: Ray is not installed, or there is no such cluster.
    """
    if address not in ("auto", "local") and not address.startswith("ray://"):
        raise InvalidInputError(f"{address!r} is no cluster.", "Give auto, local or ray://HOST:10001.")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # nothing starts a cluster but this
    # Ray's name for keeping to the loopback interface what it starts; of no effect on a cluster that is there.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise EngineError("Ray is not installed.", 'Install it: pip install "ovi-studio[cluster]".') from error
    with contextlib.redirect_stdout(_KeptFromStdout(sys.stdout)):
        try:
            with _same_signals():
                _connect(address)
            yield
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray  # noqa: PLC0415

    if address != "local":
        try:
            _join(address)
        except (ConnectionError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as error:
            if address != "auto" or not isinstance(error, ConnectionError):
                words = " ".join(str(error).split())[:300].rstrip(".: ")
                raise EngineError(
                    f"The cluster {address} cannot be reached: {words}.",
                    "Check the address, the head's port 10001, and that Ray and Python have the same versions there.",
                ) from error
        else:
            return
    ray.init(
        "local",
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _join(address: str) -> None:
    """Connects; once more where the head has not made a server for us: seen with Ray 2.60, whose fork may hang."""
    import ray  # noqa: PLC0415

    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionAbortedError:
        ray.shutdown()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)


@contextlib.contextmanager
def _same_signals() -> Iterator[None]:
    """Ray puts its own handler on SIGTERM, which would leave without telling the library."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class _KeptFromStdout(io.TextIOBase):
    """Stdout for those who write bytes to it, as our commands do; text that others print is dropped."""

    def __init__(self, stdout: "io.TextIOBase | object") -> None:
        super().__init__()
        self._stdout = stdout

    @property
    def buffer(self) -> BinaryIO:
        """Of the real one."""
        return getattr(self._stdout, "buffer")  # noqa: B009  (some stand-ins for stdout have none)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the real one."""
        return getattr(self._stdout, "encoding", None) or "utf-8"

    def write(self, text: str, /) -> int:
        """Drop it."""
        return len(text)
