"""Restore a store from rows that an export wrote: a row per observation, of which the last of an episode has no step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.data.collecting import open_or_create
from worldmodel.data.episode import Episode, check_episode
from worldmodel.data.formats.rows import Rows, Source
from worldmodel.data.missing import missing_numbers
from worldmodel.data.shards import ELAPSED
from worldmodel.data.store import EpisodeStore
from worldmodel.data.writer import EpisodeWriter
from worldmodel.runtime import Progress, RunConfig, file_errors, single_writer
from worldmodel.spaces import build_value, leaves, space_from_json

SHARD_BYTES = 32 * 2**20
STEPS = {"rewards": "reward", "terminations": "termination", "truncations": "truncation"}  # of an episode: column


@single_writer()
def restore(source: Source, ours: Mapping[str, Any], *, out: str | Path, run: RunConfig | None = None) -> EpisodeStore:
    """Restore a store; the same call continues an interrupted one.

    Args:
        source: a row per observation, with the columns that `to_parquet` writes.
        ours: recipe and spaces of the store.
        out: directory of the store.
        run: whether an earlier import is resumed or replaced, and how progress is shown.

    Raises:
        ValueError: if the data are damaged; nothing is written then.
        FileExistsError: if ``out`` holds something else.
    """
    run = run or RunConfig()
    with file_errors(source.described, "the description that to_parquet writes"):
        described = {name: space_from_json(ours[name]) for name in ("observation_space", "action_space")}
        timed, missing = bool(ours["recipe"].get(ELAPSED)), missing_numbers(ours["recipe"], described["observation_space"])
        for episode in _episodes(source, **described, timed=timed):  # before anything is written
            check_episode(episode, *described.values(), missing=missing, timed=timed)
    store = open_or_create(Path(out), lambda: described, ours["recipe"], run=run)
    store.mark_unfinished("its import was interrupted; run the same command or call again")
    done = set(store.episode_ids.tolist())
    with run.reporter() as report, EpisodeWriter(store, max_bytes=SHARD_BYTES) as writer:
        for count, episode in enumerate(_episodes(source, **described, timed=timed)):
            if episode.episode_id not in done:
                writer.add(episode)
                writer.write_if_due()
            report(Progress("convert", count + 1, None, "episode"))
    store.mark_unfinished(None)
    return store


def _episodes(
    source: Source, observation_space: gym.Space[Any], action_space: gym.Space[Any], timed: bool
) -> Iterator[Episode]:
    """Yield the episodes of a file of `to_parquet`."""
    waiting: list[Rows] = []
    for rows, _ in source.pieces(list(source.names())):
        starts = np.flatnonzero(np.diff(rows.values["step"], prepend=0 if waiting else 1) <= 0)
        starts = starts[rows.values["step"][starts] == 0]
        for start, stop in zip([0, *starts], [*starts, len(rows)], strict=True):
            if start < stop and rows.values["step"][start] == 0 and waiting:
                yield _joined(waiting, observation_space, action_space, timed)
                waiting = []
            if start < stop:
                waiting.append(rows.part(start, stop))
    if waiting:
        yield _joined(waiting, observation_space, action_space, timed)


def _joined(parts: Sequence[Rows], observation_space: gym.Space[Any], action_space: gym.Space[Any], timed: bool) -> Episode:
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    missing = {name: np.concatenate([_mask(part, name) for part in parts]) for name in values}
    where, length = parts[0].where(0), len(values["step"]) - 1
    columns = _Columns(values, missing, where)
    if not np.array_equal(columns.all("step", np.int64), np.arange(length + 1)):
        raise ValueError(f"{where}: expected the steps 0 to {length} of an episode, got others")

    def nested(part: str, space: gym.Space[Any], count: int) -> Any:
        if space.shape == (0,):
            return np.zeros((count, 0), space.dtype)
        read = columns.all if part == "observation" else columns.steps
        return build_value(space, {path: read(f"{part}/{path}" if path else part, leaf.dtype) for path, leaf in leaves(space)})

    kinds = {"rewards": np.float64, "terminations": np.bool_, "truncations": np.bool_}
    steps: dict[str, Any] = {long: columns.steps(short, kinds[long]) for long, short in STEPS.items()}
    return Episode(
        observations=nested("observation", observation_space, length + 1),
        actions=nested("action", action_space, length),
        **steps,
        elapsed=columns.steps(ELAPSED, np.float64) if timed else None,
        episode_id=columns.same("episode"),
        seed=None if missing["seed"].all() else columns.same("seed"),
    )


def _mask(rows: Rows, name: str) -> np.ndarray:
    return rows.missing.get(name, np.zeros(len(rows), dtype=bool))


@dataclass(frozen=True)
class _Columns:
    """The columns of one episode; each value must be there, in the dtype that `to_parquet` writes."""

    values: Mapping[str, np.ndarray]
    missing: Mapping[str, np.ndarray]
    where: str

    def all(self, name: str, dtype: Any) -> np.ndarray:
        """Return the values of all rows, (T + 1, ...)."""
        return self._first(name, len(self.values[name]), dtype)

    def steps(self, name: str, dtype: Any) -> np.ndarray:
        """Return the values of all rows but the last, (T, ...), which has none."""
        if not self.missing[name][-1]:
            raise ValueError(f"{self.where}: expected no {name!r} in the last row of an episode, got one; rows may be missing")
        return self._first(name, len(self.values[name]) - 1, dtype)

    def same(self, name: str) -> int:
        """Return the integer that all rows have."""
        value = self.all(name, np.int64)
        if (value != value[0]).any():
            raise ValueError(f"{self.where}: expected one {name!r} in all rows of an episode, got several")
        return int(value[0])

    def _first(self, name: str, count: int, dtype: Any) -> np.ndarray:
        value = self.values[name][:count]
        if self.missing[name][:count].any():
            row = int(np.argmax(self.missing[name]))
            raise ValueError(f"{self.where}: expected a value of {name!r} in each row, got none in row {row} of the episode")
        if value.dtype != dtype:
            raise ValueError(f"{self.where}: expected {name!r} of {np.dtype(dtype)}, got {value.dtype}")
        return value
