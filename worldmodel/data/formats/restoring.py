"""Restore a store from rows that an export wrote: a row per observation, of which the last of an episode has no step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.data.collecting import open_or_create
from worldmodel.data.episode import Episode, check_episode
from worldmodel.data.formats.rows import Rows, Source
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
        for episode in _episodes(source, **described):  # before anything is written
            check_episode(episode, **described)
    store = open_or_create(Path(out), lambda: described, ours["recipe"], run=run)
    store.mark_unfinished("its import was interrupted; run the same command or call again")
    done = set(store.episode_ids.tolist())
    with run.reporter() as report, EpisodeWriter(store, max_bytes=SHARD_BYTES) as writer:
        for count, episode in enumerate(_episodes(source, **described)):
            if episode.episode_id not in done:
                writer.add(episode)
                writer.write_if_due()
            report(Progress("convert", count + 1, None, "episode"))
    store.mark_unfinished(None)
    return store


def _episodes(source: Source, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> Iterator[Episode]:
    """Yield the episodes of a file of `to_parquet`."""
    waiting: list[Rows] = []
    for rows, _ in source.pieces(list(source.names())):
        starts = np.flatnonzero(np.diff(rows.values["step"], prepend=0 if waiting else 1) <= 0)
        starts = starts[rows.values["step"][starts] == 0]
        for start, stop in zip([0, *starts], [*starts, len(rows)], strict=True):
            if start < stop and rows.values["step"][start] == 0 and waiting:
                yield _joined(waiting, observation_space, action_space)
                waiting = []
            if start < stop:
                waiting.append(rows.part(start, stop))
    if waiting:
        yield _joined(waiting, observation_space, action_space)


def _joined(parts: Sequence[Rows], observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> Episode:
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    length = len(values["step"]) - 1

    def nested(part: str, space: gym.Space[Any], count: int) -> Any:
        if space.shape == (0,):
            return np.zeros((count, 0), space.dtype)
        found = {path: values[f"{part}/{path}" if path else part][:count].astype(leaf.dtype) for path, leaf in leaves(space)}
        return build_value(space, found)

    steps: dict[str, Any] = {long: values[short][:length] for long, short in STEPS.items()}
    seed = None if "seed" in parts[0].missing and parts[0].missing["seed"][0] else int(values["seed"][0])
    return Episode(
        observations=nested("observation", observation_space, length + 1),
        actions=nested("action", action_space, length),
        **steps,
        episode_id=int(values["episode"][0]),
        seed=seed,
    )
