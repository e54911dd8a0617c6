"""Who encodes the episodes of a store: this process, worker processes, an executor, or the ranks of a group."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

from worldmodel.data import Episode, EpisodeStore
from worldmodel.models import Encoder
from worldmodel.runtime import Kept, Ranks, StepWatch, WorkerConfig, choose_device

EPISODES_AT_ONCE = 8  # that a rank encodes before it sends them to rank 0


def encode_each(encoder: Encoder, source: EpisodeStore, which: Sequence[int], workers: WorkerConfig) -> Generator[Episode]:
    """Encode episodes, and yield them in the order in which they are done.

    Args:
        encoder: V.
        source: the store.
        which: numbers of the episodes in it.
        workers: who encodes; several ranks share the work instead.

    Raises:
        RuntimeError: if a worker cannot encode an episode.
    """
    ranks = Ranks.current()
    if not ranks.alone:
        yield from _encode_with_ranks(encoder, source, which, ranks)
    elif workers.is_local:
        for index in which:
            yield encoder.encode(source.read(index))
    else:
        runner = _EncodingRunner(source.path.resolve(), Kept(encoder.on("cpu")))
        with contextlib.closing(workers.run(runner, which)) as results:
            for index, attempts, outcome in results:
                if isinstance(outcome, str):
                    name = f"episode {source.episode_ids[index]} of {source.path}"
                    raise RuntimeError(f"{name}: expected to be encoded, got {attempts} times: {outcome}")
                yield outcome


class _EncodingRunner:
    """Encodes episodes of a store in a worker."""

    def __init__(self, path: Path, encoder: Kept[Encoder]):
        self._path, self._encoder = path, encoder
        self._source: EpisodeStore | None = None

    def run(self, task: int, watch: StepWatch) -> Episode:
        """Encode one episode."""
        watch.step()
        if self._source is None:
            self._source = EpisodeStore.open(self._path)
        return self._encoder.value.encode(self._source.read(task))

    def close(self) -> None:
        """Close the store."""
        self._source = None


def _encode_with_ranks(encoder: Encoder, source: EpisodeStore, which: Sequence[int], ranks: Ranks) -> Generator[Episode]:
    """Encode with all ranks, on rank 0."""
    ranks.start_job(partial(_encode_share, encoder.on("cpu"), encoder.device.type, source.path, which))
    ranks.require_same({"data": source.fingerprint})
    for block in _blocks(which, ranks):
        ranks.agree(True)
        for episode in _encode_block(encoder, source, block, ranks):
            with ranks.releasing():
                yield episode
    ranks.agree(False)


def _encode_share(encoder: Encoder, device_type: str, path: Path, which: Sequence[int]) -> None:
    """Encode the share of a rank other than 0."""
    ranks, source, encoder = Ranks.current(), EpisodeStore.open(path), encoder.on(choose_device(device_type))
    ranks.require_same({"data": source.fingerprint})
    blocks = _blocks(which, ranks)
    while ranks.agree(False):
        _encode_block(encoder, source, next(blocks), ranks)


def _blocks(which: Sequence[int], ranks: Ranks) -> Generator[Sequence[int]]:
    """Divide the episodes into blocks that all ranks encode together."""
    size = EPISODES_AT_ONCE * ranks.size
    yield from (which[first : first + size] for first in range(0, len(which), size))


def _encode_block(encoder: Encoder, source: EpisodeStore, block: Sequence[int], ranks: Ranks) -> list[Episode]:
    """Encode this rank's episodes of a block; return all of them on rank 0."""
    with ranks.watched():
        parts = ranks.collect([encoder.encode(source.read(index)) for index in block[ranks.rank :: ranks.size]])
    return [episode for part in parts for episode in part]
