"""Frames into the encoder while the next ones are decoded: the encoder works in a thread of its own."""

import queue
import threading
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ovi_studio.media import ClipEncoder

WAITING = 2  # chunks of four frames between decoder and encoder; guessed: evens out, and is few megabytes


class FrameFeeder:
    """Hands frames to an encoder, in order. All are in the file's stream when the block ends.

    Args:
        encoder: nobody else may use it meanwhile.
    """

    def __init__(self, encoder: ClipEncoder) -> None:
        self._encoder = encoder
        self._chunks: queue.Queue[NDArray[np.uint8] | None] = queue.Queue(WAITING)
        self._abandoned = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._encode, name="encoder", daemon=True)

    def add(self, frames: NDArray[np.uint8]) -> None:
        """The next frames, (n, height, width, 3); waits while the encoder is behind.

        Raises:
            MediaError: an earlier frame could not be encoded.
        """
        self._chunks.put(frames)
        self._raise_error()

    def __enter__(self) -> "FrameFeeder":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandoned.set()
        self._chunks.put(None)
        self._thread.join()
        if error is None:
            self._raise_error()

    def _encode(self) -> None:
        """Takes chunks to the last one, also after an error: who adds must never wait for nobody."""
        while (chunk := self._chunks.get()) is not None:
            if self._error is not None or self._abandoned.is_set():
                continue
            try:
                for frame in chunk:
                    self._encoder.add_frame(frame)
            except Exception as error:  # noqa: BLE001  raised again by whoever adds
                self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
