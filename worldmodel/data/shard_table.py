"""Table of contents of a shard: its leaves, and one number per episode in each column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COLUMNS = ("episode_ids", "lengths", "seeds", "crc32")  # per episode, in header and manifest
MAX_STEPS = 2**40  # of an episode; sums of more could overflow
NO_SEED = -1  # marks an unknown seed in the column of seeds


@dataclass(frozen=True)
class Leaf:
    """One array of a shard.

    Args:
        name: name of the array in the file.
        dtype: dtype of its elements.
        shape: shape of one row.
        extra: rows per episode in addition to one per step, 0 or 1.
        image: True for images, which are compressed.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    extra: int
    image: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Shard:
    """Table of contents of one shard with E episodes.

    Args:
        name: file name.
        size: file size in bytes.
        episode_ids: (E,) int64.
        lengths: (E,) int64, steps of each episode.
        seeds: (E,) int64, `NO_SEED` where unknown.
        checksums: (E,) int64, CRC-32 of each episode.
        offsets: position in the file at which each leaf starts, in the order of `Schema.leaves`.
        packed: (E,) compressed bytes of each episode, by name of the leaf; leaves that are missing
            are uncompressed.
        machines: names of the machines that made the episodes, where the manifest knows them.
    """

    name: str
    size: int
    episode_ids: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    checksums: np.ndarray
    offsets: tuple[int, ...] = ()
    packed: Mapping[str, np.ndarray] = field(default_factory=dict)
    machines: tuple[str, ...] = ()
    starts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Check the columns, and compute the first step of each episode."""
        sizes = {len(column) for column in (*self.columns, *self.packed.values())}
        if len(sizes) != 1 or len(np.unique(self.episode_ids)) != len(self.episode_ids):
            raise ValueError(f"{self.name}: expected columns of equal lengths and different episode ids")
        if not ((self.lengths > 0) & (self.lengths <= MAX_STEPS)).all() or not (self.seeds >= NO_SEED).all():
            raise ValueError(f"{self.name}: expected lengths from 1 to {MAX_STEPS} and seeds of at least {NO_SEED}")
        object.__setattr__(self, "starts", np.cumsum(self.lengths) - self.lengths)

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Arrays with one number per episode, in the order of `COLUMNS`."""
        return self.episode_ids, self.lengths, self.seeds, self.checksums

    def to_json(self) -> dict[str, Any]:
        """Return the entry of this shard in a manifest."""
        entry: dict[str, Any] = {"name": self.name}
        entry |= {key: write_column(column) for key, column in zip(COLUMNS, self.columns, strict=True)}
        entry |= {"packed": write_packed(self.packed)} if self.packed else {}
        return entry | ({"machines": list(self.machines)} if self.machines else {})

    def lost(self, undamaged: Iterable[int]) -> tuple[int, ...]:
        """Return the ids of all episodes except those at the positions ``undamaged``."""
        return tuple(np.delete(self.episode_ids, list(undamaged)).tolist())


def write_column(column: np.ndarray) -> str:
    """Write integers as one line of text; far shorter than an indented JSON list."""
    return " ".join(map(str, column.tolist()))


def read_column(text: str) -> np.ndarray:
    """Parse the output of `write_column`: (E,) int64."""
    return np.array(text.split(), dtype=np.int64)


def write_packed(packed: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write `Shard.packed` as JSON-serialisable data."""
    return {name: write_column(column) for name, column in packed.items()}


def read_packed(columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Parse the output of `write_packed`."""
    return {name: read_column(text) for name, text in columns.items()}
