"""Real episodes into a store: resumable, and nothing is lost that was whole.

The episodes come from `rollouts` in any order and are written a shard at a time; a collection that was interrupted or
killed goes on with exactly the missing ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym

from worldmodel.checkpoint import remove_temporaries
from worldmodel.episode import Episode
from worldmodel.policies import Policy
from worldmodel.rollouts import EnvMaker, EpisodeFailure, Runner, check_workers, run_all
from worldmodel.rollouts import rollouts as rollouts
from worldmodel.store import SHARDS, EpisodeStore

FLUSH_SECONDS = 10.0  # what a kill -9 can lose at most, in seconds of work ...
FLUSH_BYTES = 32 * 2**20  # ... and in bytes; also the size of a shard
GIVE_UP_AFTER = 10  # failures with no success: every episode fails, so say it now


@dataclass(frozen=True)
class CollectionProgress:
    """How far a collection is: episodes in the store or about to be, of a total; steps made and failures in this run."""

    episodes: int
    total: int
    steps: int
    failures: int


def collect(
    env: str | EnvMaker,
    *,
    out: str | Path,
    num_episodes: int,
    policy: str | Policy = "random",
    seed: int = 0,
    num_workers: int = 0,
    max_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
    overwrite: bool = False,
    on_progress: Callable[[CollectionProgress], None] | None = None,
) -> EpisodeStore:
    """Collect episodes 0..num_episodes-1 into the store ``out``, or those of them that it does not hold yet.

    Interrupted, it keeps what is done (``kill -9`` costs the last seconds); called again with the same recipe (environment,
    its arguments and wrappers, policy, seed, max_steps), it goes on. Failed episodes are listed in ``store.failures`` and
    tried again by the next call. A callable policy is known by its ``description`` or, lacking that, its qualified name.

    Args:
        env: as in `rollouts`, like all that is not said here.
        out: directory of the store; absent, empty, or an earlier collection of the same recipe.
        num_episodes: how many, >= 1.
        policy: see `rollouts`.
        seed: see `rollouts`.
        num_workers: see `rollouts`; the result does not depend on it.
        max_steps: see `rollouts`.
        env_kwargs: see `rollouts`.
        wrappers: see `rollouts`.
        overwrite: replace an earlier store at ``out``, whatever its recipe.
        on_progress: called after each episode.

    Returns:
        The store.

    Raises:
        ValueError: if there is no such environment or policy, or a number is out of range.
        TypeError: if a space is not supported.
        FileExistsError: if ``out`` holds something else, or a collection of another recipe.
        RuntimeError: if no episode succeeds; quotes the first failure.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes: expected at least 1, got {num_episodes}")
    check_workers(num_workers)
    runner = Runner(env, policy, seed=seed, max_steps=max_steps, env_kwargs=env_kwargs, wrappers=wrappers)
    try:
        store = _open_or_create(Path(out), runner, overwrite)
        done = set(store.episode_ids.tolist())
        missing = [k for k in range(num_episodes) if k not in done]
        if missing:
            _require_spaces(store, runner.spaces())
            progress = CollectionProgress(episodes=num_episodes - len(missing), total=num_episodes, steps=0, failures=0)
            _collect_missing(store, run_all(runner, missing, num_workers), progress, on_progress)
    finally:
        runner.close()
    return store


def _open_or_create(out: Path, runner: Runner, overwrite: bool) -> EpisodeStore:
    if overwrite or not EpisodeStore.lies_in(out):
        return EpisodeStore.create(out, **runner.spaces(), recipe=runner.recipe(), overwrite=overwrite)
    store = EpisodeStore.open(out)
    wanted = json.loads(json.dumps(runner.recipe()))
    for key in sorted({*wanted, *store.recipe}):
        there, here = (json.dumps(recipe.get(key)) for recipe in (store.recipe, wanted))
        if there != here:
            raise FileExistsError(
                f"{out}: expected an earlier collection of the same recipe, got one whose {key} is {there} and not {here}; "
                "choose another directory, the recipe of this one, or overwrite (--overwrite) to replace it"
            )
    for folder in (out, out / SHARDS):
        remove_temporaries(folder)
    store.adopt()
    return store


def _require_spaces(store: EpisodeStore, spaces: Mapping[str, gym.Space[Any]]) -> None:
    for name, space in spaces.items():
        if space != getattr(store, name):
            raise ValueError(f"{store.path}: expected the {name} of its episodes, {getattr(store, name)}, got {space}")


def _collect_missing(
    store: EpisodeStore,
    results: Generator[Episode | EpisodeFailure],
    progress: CollectionProgress,
    on_progress: Callable[[CollectionProgress], None] | None,
) -> None:
    """Move results to the store, a shard at a time; whatever interrupts it, what is whole by then is kept."""
    episodes: list[Episode] = []
    failures: list[EpisodeFailure] = []
    last_flush, waiting_bytes = time.monotonic(), 0
    try:
        for result in results:
            if isinstance(result, Episode):
                episodes.append(result)
                waiting_bytes += result.nbytes
                progress = replace(progress, episodes=progress.episodes + 1, steps=progress.steps + len(result))
            else:
                failures.append(result)
                progress = replace(progress, failures=progress.failures + 1)
            if on_progress is not None:
                on_progress(progress)
            if waiting_bytes >= FLUSH_BYTES or time.monotonic() - last_flush >= FLUSH_SECONDS:
                store.append(episodes)
                episodes, last_flush, waiting_bytes = [], time.monotonic(), 0
            if progress.episodes == 0 and progress.failures == GIVE_UP_AFTER:
                break
    finally:
        results.close()
        store.adopt()  # Ctrl-C may have come in the middle of an append, when the shard was written already
        held = set(store.episode_ids.tolist())
        store.append([episode for episode in episodes if episode.episode_id not in held])
        store.record_failures(asdict(failure) for failure in failures)
    if len(store) == 0:
        first = failures[0]
        name = f"episode {first.episode_id} (seed {first.seed})"
        raise RuntimeError(f"env: expected some episode to succeed, got only failures; the first, of {name}: {first.error}")
