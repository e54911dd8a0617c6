"""Record the pictures that a page sends as an mp4 or GIF file (extra video)."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from worldmodel.plots import write_video
from worldmodel.runtime import require_extras

FORMATS = ("mp4", "gif")
MOST_PIXELS, MOST_FPS = 4096 * 4096, 120
WAITING = 64  # frames that may wait for the encoder


class Film:
    """A film that is being recorded; frames are encoded in a thread of its own.

    Args:
        path: the file, which appears when `save` returns.
        width: of a frame in pixels.
        height: of a frame.
        fps: frames per second.

    Raises:
        ImportError: if the extra video is not installed.
        ValueError: if the format, a size or the rate is out of range.
    """

    def __init__(self, path: Path, *, width: int, height: int, fps: int):
        require_extras("video")
        if path.suffix[1:] not in FORMATS:
            raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {path.suffix[1:]!r}")
        for name, value in (("width", width), ("height", height), ("fps", fps)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected an integer from 1, got {value!r}")
        if width * height > MOST_PIXELS or fps > MOST_FPS:
            raise ValueError(
                f"width, height, fps: expected at most {MOST_PIXELS:,} pixels and {MOST_FPS}, got {width}, {height}, {fps}"
            )
        self.path, self.shape, self.fps = path, (height, width, 3), fps
        self.frames = 0
        self.error: Exception | None = None
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=WAITING)
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def add(self, data: bytes) -> None:
        """Add a frame of RGB bytes; waits if the encoder is behind.

        Raises:
            ValueError: if the number of bytes is not that of a frame.
        """
        expected = self.shape[0] * self.shape[1] * 3
        if len(data) != expected:
            raise ValueError(f"frame: expected {expected:,} bytes, got {len(data):,}")
        self._put(np.frombuffer(data, np.uint8).reshape(self.shape))

    def save(self) -> int:
        """Complete the file and return the number of frames.

        Raises:
            ValueError: if there are none.
            OSError: if the file cannot be written.
        """
        self.discard(keep=True)
        if self.error is not None:
            raise self.error
        return self.frames

    def discard(self, *, keep: bool = False) -> None:
        """End the recording; remove the file unless it is to be kept."""
        self._put(None)
        self._thread.join()
        if not keep:
            self.path.unlink(missing_ok=True)

    def _put(self, frame: np.ndarray | None) -> None:
        """Hand something to the encoder, unless it has stopped after an error."""
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(frame, timeout=1)
                return

    def _write(self) -> None:
        try:
            self.frames = write_video(self.path, self._waiting(), fps=self.fps, enlarge=1)
        except (OSError, ValueError, ImportError) as error:
            self.error = error

    def _waiting(self) -> Iterator[np.ndarray]:
        while (frame := self._queue.get()) is not None:
            yield frame
