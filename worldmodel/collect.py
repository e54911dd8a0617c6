"""Real episodes into a store: resumable, and nothing is lost that was whole.

The episodes come from `rollouts` in any order and are written a shard at a time; a collection that was interrupted or
killed goes on with exactly the missing ones.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym

from worldmodel.checkpoint import remove_temporaries
from worldmodel.episode import Episode
from worldmodel.images import find_images
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


class EpisodeEncoder(Protocol):
    """What stores something else in the place of observations; `worldmodel.encoding.Encoder` is one."""

    @property
    def observation_space(self) -> gym.Space:
        """Space of what is stored."""

    def check(self, observation_space: gym.Space) -> None:
        """Refuse observations of another space than it encodes."""

    def recipe(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of what is stored, of episodes of recipe ``source``."""

    def encode(self, episode: Episode) -> Episode:
        """The episode as it is stored."""


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
    encoder: EpisodeEncoder | None = None,
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
        encoder: stores encoded observations in the place of frames: a `worldmodel.encoding.Encoder` with a trained V.
        overwrite: replace an earlier store at ``out``, whatever its recipe.
        on_progress: called after each episode.

    Returns:
        The store.

    Raises:
        ValueError: if there is no such environment or policy, or a number is out of range.
        TypeError: if a space is not supported.
        FileExistsError: if ``out`` holds something else, or a collection of another recipe.
        RuntimeError: if no episode succeeds; quotes the first failure.
        OSError: if the frames would need more disk than there is, judging by the first of them; nothing is collected then.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes: expected at least 1, got {num_episodes}")
    check_workers(num_workers)
    runner = Runner(env, policy, seed=seed, max_steps=max_steps, env_kwargs=env_kwargs, wrappers=wrappers)
    try:
        recipe = runner.recipe() if encoder is None else encoder.recipe(runner.recipe())
        store = open_or_create(Path(out), lambda: _spaces(runner, encoder), recipe, overwrite=overwrite)
        done = set(store.episode_ids.tolist())
        missing = [k for k in range(num_episodes) if k not in done]
        if missing:
            _require_spaces(store, _spaces(runner, encoder))
            progress = CollectionProgress(episodes=num_episodes - len(missing), total=num_episodes, steps=0, failures=0)
            results = _results(store, runner, missing, num_workers, encoder)
            _collect_missing(store, results, progress, on_progress)
    finally:
        runner.close()
    return store


def open_or_create(
    out: Path, spaces: Callable[[], Mapping[str, gym.Space[Any]]], recipe: Mapping[str, Any], *, overwrite: bool = False
) -> EpisodeStore:
    """Open the store of an earlier run of the same recipe, in order to go on with it, or create it.

    Args:
        out: its directory.
        spaces: gives ``observation_space`` and ``action_space``, and is called only to create a store.
        recipe: what makes the episodes what they are.
        overwrite: replace an earlier store, whatever its recipe.

    Raises:
        FileExistsError: if ``out`` holds something else, or a store of another recipe.
    """
    if overwrite or not EpisodeStore.lies_in(out):
        return EpisodeStore.create(out, **spaces(), recipe=recipe, overwrite=overwrite)
    store = EpisodeStore.open(out)
    wanted = json.loads(json.dumps(recipe))
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


def _spaces(runner: Runner, encoder: EpisodeEncoder | None) -> dict[str, gym.Space[Any]]:
    found = runner.spaces()
    if encoder is None:
        return found
    encoder.check(found["observation_space"])
    return {**found, "observation_space": encoder.observation_space}


def _require_spaces(store: EpisodeStore, spaces: Mapping[str, gym.Space[Any]]) -> None:
    for name, space in spaces.items():
        if space != getattr(store, name):
            raise ValueError(f"{store.path}: expected the {name} of its episodes, {getattr(store, name)}, got {space}")


def _results(
    store: EpisodeStore, runner: Runner, missing: Sequence[int], num_workers: int, encoder: EpisodeEncoder | None
) -> Generator[Episode | EpisodeFailure]:
    """Make the missing episodes. Where frames are stored, one is made alone, and shows whether the disk can hold them all."""
    to_judge = bool(find_images(store.observation_space))
    for ids in (missing[:1], missing[1:]) if to_judge else (missing,):
        with contextlib.closing(run_all(runner, ids, num_workers)) as results:
            for result in results:
                if isinstance(result, Episode):
                    result = result if encoder is None else encoder.encode(result)
                    if to_judge:
                        _require_disk(store, result, len(missing))
                        to_judge = False
                yield result


def _require_disk(store: EpisodeStore, episode: Episode, count: int) -> None:
    """Refuse ``count`` episodes of images, each as large as this one, that the disk cannot hold."""
    needed, free = store.stored_bytes(episode) * count, shutil.disk_usage(store.path).free
    if needed > free:
        raise OSError(
            f"{store.path}: expected {needed / 2**30:,.2f} GiB of free disk for {count} episodes, judging by the first "
            f"of them, got {free / 2**30:,.2f} GiB; collect fewer, make the frames smaller, or store them encoded (encoder)"
        )


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
        store.append_missing(episodes)
        store.record_failures(asdict(failure) for failure in failures)
    if len(store) == 0:
        first = failures[0]
        name = f"episode {first.episode_id} (seed {first.seed})"
        raise RuntimeError(f"env: expected some episode to succeed, got only failures; the first, of {name}: {first.error}")
