"""Buffered, interruptible writing of episodes to a store."""

from __future__ import annotations

import time

from worldmodel.data.episode import Episode
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import require_disk

FLUSH_SECONDS = 10.0  # work that a kill -9 can lose at most


class EpisodeWriter:
    """Buffers episodes and appends them to a store, one shard at a time; a context manager.

    On exit the buffered episodes are written, also after an exception or Ctrl-C.

    Args:
        store: store to append to.
        max_bytes: write once the buffer holds this many bytes.
        max_steps: write once the buffer holds this many steps.
        total: number of episodes that will be written; used with ``sample`` only.
        sample: number of episodes from whose size on disk the size of all is estimated, before the first shard is written.
            Such a sample may take ``sample`` times as many bytes and seconds as another shard. 0 estimates nothing.
    """

    def __init__(
        self,
        store: EpisodeStore,
        *,
        max_bytes: float = float("inf"),
        max_steps: float = float("inf"),
        total: int = 0,
        sample: int = 0,
    ):
        self.store, self._max_bytes, self._max_steps = store, max_bytes, max_steps
        self._total, self._sample = total, sample
        self._clear()

    def add(self, episode: Episode) -> None:
        """Buffer an episode."""
        self._waiting.append(episode)
        self._bytes += episode.nbytes
        self._steps += len(episode)

    def write_if_due(self) -> None:
        """Write the buffered episodes if they are many or have waited for long."""
        patience, seconds = max(1, self._sample), time.monotonic() - self._flushed
        large = self._bytes >= patience * self._max_bytes or self._steps >= patience * self._max_steps
        sampled = 0 < self._sample <= len(self._waiting)
        if large or sampled or seconds >= patience * FLUSH_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the buffered episodes.

        Raises:
            OSError: if the disk cannot hold all episodes, judging by the sample; the sample is not written then.
        """
        if self._sample and self._waiting:
            self._require_disk()
        self.store.append(self._waiting)
        self._clear()

    def __enter__(self) -> EpisodeWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        """Write the buffered episodes; after an exception without an estimate, as there may be no more to come."""
        try:
            if kind is None:
                self.write()
        finally:
            self.store.append_missing(self._waiting)

    def _clear(self) -> None:
        self._waiting: list[Episode] = []
        self._bytes, self._steps, self._flushed = 0, 0, time.monotonic()

    def _require_disk(self) -> None:
        waiting = self._waiting
        try:
            require_disk(
                self.store.path,
                self.store.stored_bytes(waiting) / len(waiting) * self._total,
                f"{self._total} episodes, judging by {len(waiting)} of them",
                remedy="collect fewer, or store less of each: smaller frames, or their encoding by a V (encoder, --vision)",
            )
        except OSError:
            self._waiting = []
            raise
        self._sample = 0
