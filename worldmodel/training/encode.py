"""Encode a store of episodes with a trained V into another store."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from worldmodel.data import Episode, EpisodeStore, EpisodeWriter, Schema, open_or_create
from worldmodel.models import Encoder, Vision
from worldmodel.runtime import (
    Progress,
    RunConfig,
    WorkerConfig,
    explains_keywords,
    keeps_threads,
    led,
    require_disk,
    set_threads,
    single_writer,
)
from worldmodel.spaces import leaf_values
from worldmodel.training import quality
from worldmodel.training.encoding import encode_each

FLUSH_STEPS = 2**17  # size of a shard
JUDGED = 50  # encoded episodes that show whether V has collapsed
LEAST_OBSERVATIONS = 200  # of them


@explains_keywords
@keeps_threads
@led
@single_writer()
def encode_store(
    data: str | Path,
    *,
    vision: Vision,
    out: str | Path,
    dtype: str = "float16",
    precision: str = "float32",
    workers: int | WorkerConfig = 0,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Encode the episodes of a store into another one, except those that it holds already.

    Args:
        data: path of the store.
        vision: V.
        out: path of the encoded store: absent, empty, or an earlier one with the same V and arguments, which is completed.
        dtype: see `Encoder`.
        precision: see `Encoder`.
        workers: number of worker processes, or a `WorkerConfig` with an executor, whose machines must see ``data`` under the
            same path; they encode on the CPU. 0 encodes in this process, on the device of V. The result does not depend on it.
        run: whether an earlier store is continued or replaced, and how progress is shown. Stage "encode", in episodes.

    Returns:
        The encoded store.

    Raises:
        ValueError: if the observations are not V's or are encoded already, or ``out`` is ``data``.
        FileExistsError: if ``out`` holds something else, episodes encoded otherwise or from another store, or a store that
            ``run`` does not resume.
        RuntimeError: if workers cannot encode an episode; names it. What is complete is kept.
        OSError: if the disk cannot hold what is missing; nothing is written or replaced then.
    """
    if Path(out).resolve() == Path(data).resolve():
        raise ValueError(f"out: expected another directory than that of the episodes, got {out} for both")
    source, encoder = EpisodeStore.open(data), Encoder(vision, dtype=dtype, precision=precision)
    encoder.check(source.observation_space)
    spaces_of_store = {"observation_space": encoder.observation_space, "action_space": source.action_space}
    run = run or RunConfig()
    set_threads(None, run.threads, out)  # an encoding does not depend on it
    _require_disk(Path(out), source, Schema(encoder.observation_space, source.action_space), run.overwrite)
    store = open_or_create(Path(out), lambda: spaces_of_store, encoder.recipe(source.recipe), run=run)
    done = _require_same_episodes(store, source)
    missing = [index for index, episode_id in enumerate(source.episode_ids.tolist()) if episode_id not in done]
    seen: list[dict[str, np.ndarray]] = []
    if missing:
        store.mark_unfinished(f"the encoding of {len(source)} episodes of {source.path} was interrupted; encode it again")
    encodings = encode_each(encoder, source, missing, WorkerConfig.of(workers))
    with (
        contextlib.closing(encodings),
        run.reporter() as report,
        EpisodeWriter(store, max_steps=FLUSH_STEPS) as writer,
    ):
        for count, encoded in enumerate(encodings, start=len(done) + 1):
            seen += [encoded.observations] if len(seen) < JUDGED else []
            writer.add(encoded)
            writer.write_if_due()
            report(Progress("encode", count, len(source), "episode"))
    store.mark_unfinished(None)
    _warn_if_collapsed(seen)
    return store


def _warn_if_collapsed(seen: Sequence[dict[str, np.ndarray]]) -> None:
    """Warn if V's means hardly change over many observations of some episodes, compared with its noise."""
    if sum(len(one["mean"]) for one in seen) < LEAST_OBSERVATIONS:
        return
    mean, log_variance = (
        torch.from_numpy(np.concatenate([one[name] for one in seen])).float() for name in ("mean", "log_variance")
    )
    quality.warn(quality.vision_problems(quality.latents_in_use(mean, log_variance), mean.shape[1]))


def _require_disk(out: Path, source: EpisodeStore, schema: Schema, overwrite: bool) -> None:
    """Raise if the disk has too little space for the episodes still to encode."""
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
    """Return the ids in an encoded store; raise if they are not of its source. Recordings can have equal recipes.

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
