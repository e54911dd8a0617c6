"""Encode a store of episodes with a trained V into another store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from worldmodel.data import Episode, EpisodeStore, Schema, open_or_create
from worldmodel.models import Encoder, Vision
from worldmodel.runtime import require_disk
from worldmodel.spaces import leaf_values

FLUSH_SECONDS, FLUSH_FRAMES = 10.0, 2**17  # a shard is written after so much work


def encode_store(
    data: str | Path,
    *,
    vision: Vision,
    out: str | Path,
    dtype: str = "float16",
    precision: str = "float32",
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> EpisodeStore:
    """Encode the episodes of a store into another one, or those of them that it does not hold yet.

    Args:
        data: path of the store.
        vision: V.
        out: path of the encoded store: absent, empty, or begun with the same V and arguments, which is gone on with.
        dtype: see `Encoder`.
        precision: see `Encoder`.
        overwrite: replace an earlier encoded store.
        on_progress: called with the episodes done and their number.

    Returns:
        The encoded store.

    Raises:
        ValueError: if the observations are not V's or are encoded already, or ``out`` is ``data``.
        FileExistsError: if ``out`` holds something else, or episodes encoded otherwise or from another store.
        OSError: if the disk cannot hold what is missing; nothing is written or replaced then.
    """
    if Path(out).resolve() == Path(data).resolve():
        raise ValueError(f"out: expected another directory than that of the episodes, got {out} for both")
    source, encoder = EpisodeStore.open(data), Encoder(vision, dtype=dtype, precision=precision)
    encoder.check(source.observation_space)
    spaces_of_store = {"observation_space": encoder.observation_space, "action_space": source.action_space}
    _require_disk(Path(out), source, Schema(encoder.observation_space, source.action_space), overwrite)
    store = open_or_create(Path(out), lambda: spaces_of_store, encoder.recipe(source.recipe), overwrite=overwrite)
    done = _require_same_episodes(store, source)
    waiting: list[Episode] = []
    frames, flushed = 0, time.monotonic()
    missing = [index for index, episode_id in enumerate(source.episode_ids.tolist()) if episode_id not in done]
    try:
        for count, index in enumerate(missing):
            waiting.append(encoder.encode(source.read(index)))
            frames += len(waiting[-1])
            if frames >= FLUSH_FRAMES or time.monotonic() - flushed >= FLUSH_SECONDS:
                store.append(waiting)
                waiting, frames, flushed = [], 0, time.monotonic()
            if on_progress is not None:
                on_progress(len(done) + count + 1, len(source))
    finally:  # what is encoded by the time of Ctrl-C is kept
        store.append_missing(waiting)
    return store


def _require_disk(out: Path, source: EpisodeStore, schema: Schema, overwrite: bool) -> None:
    """Refuse to encode what the disk cannot hold, in a store that is there already or not."""
    held: Sequence[int] = []
    replaced = 0
    if overwrite:
        replaced = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    elif EpisodeStore.lies_in(out):
        held = EpisodeStore.open(out).episode_ids.tolist()
    lengths = source.lengths[~np.isin(source.episode_ids, held)]
    needed, remedy = schema.unpacked_bytes(lengths), "free some, write to another, or encode into float16 (dtype, --dtype)"
    require_disk(out, needed, f"{len(lengths)} encoded episodes", replaced=replaced, remedy=remedy)


def _require_same_episodes(store: EpisodeStore, source: EpisodeStore) -> set[int]:
    """The ids that an encoded store holds, which must be of its source: recipes alone do not tell recordings apart.

    Compared are ids and lengths of all, and what was done and rewarded in the first.
    """
    there = {episode_id: index for index, episode_id in enumerate(source.episode_ids.tolist())}
    held = store.episode_ids.tolist()
    for index, episode_id in enumerate(held):
        same = episode_id in there and store.lengths[index] == source.lengths[there[episode_id]]
        if not same or (index == 0 and not _same_steps(store.read(0), source.read(there[episode_id]))):
            raise FileExistsError(
                f"{store.path}: expected episodes of {source.path}, got an episode {episode_id} that is not there or another; "
                "choose another directory, or overwrite (--overwrite) to replace it"
            )
    return set(held)


def _same_steps(one: Episode, other: Episode) -> bool:
    """Whether two episodes are the same but for their observations."""
    actions, expected = leaf_values(one.actions), leaf_values(other.actions)
    same_actions = all(np.array_equal(actions[path], expected[path]) for path in expected)
    return one.seed == other.seed and np.array_equal(one.rewards, other.rewards) and same_actions
