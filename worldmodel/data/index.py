"""Index of a store: its shards, and where each episode lies; immutable, so that a store changes in one assignment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldmodel.data.shard_table import Shard
from worldmodel.runtime import check_integer

FAILURE_FIELDS = ("episode_id", "seed", "error")


@dataclass(frozen=True, eq=False)
class Index:
    """The shards of a store and its failures, with columns in the order of the episodes' ids.

    Args:
        shards: tables of contents.
        failures: episodes that could not be collected, by id; those that the shards hold are left out.

    Raises:
        ValueError: if a shard or an episode is listed twice.
    """

    shards: tuple[Shard, ...] = ()
    failures: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    ids: np.ndarray = field(init=False)
    lengths: np.ndarray = field(init=False)
    checksums: np.ndarray = field(init=False)
    shard_of: np.ndarray = field(init=False)
    position_of: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Check that everything is listed once, and build the columns."""
        names = [shard.name for shard in self.shards]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"expected each shard to be listed once, got {twice!r} again")
        empty = [np.zeros(0, dtype=np.int64)]
        ids = np.concatenate(empty + [shard.episode_ids for shard in self.shards])
        order = np.argsort(ids)
        columns = {
            "ids": ids,
            "lengths": np.concatenate(empty + [shard.lengths for shard in self.shards]),
            "checksums": np.concatenate(empty + [shard.checksums for shard in self.shards]),
            "shard_of": np.repeat(np.arange(len(names)), [len(shard.lengths) for shard in self.shards]),
            "position_of": np.concatenate(empty + [np.arange(len(shard.lengths)) for shard in self.shards]),
        }
        for name, column in columns.items():
            object.__setattr__(self, name, column[order])
        same = np.flatnonzero(np.diff(self.ids) == 0)
        if same.size:
            raise ValueError(f"expected each episode to be listed once, got {self.ids[same[0]]} again")
        held = set(self.ids.tolist())
        kept = {number: dict(failure) for number, failure in self.failures.items() if number not in held}
        object.__setattr__(self, "failures", kept)

    def with_shards(self, known: Iterable[Shard]) -> Index:
        """Return the index with these shards instead."""
        return Index(tuple(known), self.failures)

    def with_failures(self, failures: Iterable[Mapping[str, Any]]) -> Index:
        """Return the index with these failures in addition."""
        return Index(self.shards, {**self.failures, **read_failures(failures)})


def read_failures(failures: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return failures by id, with integers for their ids and seeds.

    Raises:
        TypeError: if an id or a seed is not an integer.
    """
    found = {}
    for failure in failures:
        number, seed = check_integer(failure["episode_id"], "episode_id"), failure["seed"]
        seed = None if seed is None else check_integer(seed, "seed")
        found[number] = dict(zip(FAILURE_FIELDS, (number, seed, str(failure["error"])), strict=True))
    return found
