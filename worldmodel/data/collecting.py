"""Real episodes into a store: resumable, and nothing is lost that was whole.

The episodes come from `rollouts` in any order and are written a shard at a time; a collection that was interrupted or
killed goes on with exactly the missing ones.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym

from worldmodel.data.env_factory import EnvMaker
from worldmodel.data.episode import Episode
from worldmodel.data.policies import Policy
from worldmodel.data.runner import EpisodeFailure, Runner, run_all
from worldmodel.data.store import SHARDS, EpisodeStore
from worldmodel.runtime import WorkerConfig, remove_temporaries, require_disk
from worldmodel.spaces import find_images

FLUSH_SECONDS = 10.0  # what a kill -9 can lose at most, in seconds of work ...
FLUSH_BYTES = 32 * 2**20  # ... and in bytes; also the size of a shard
JUDGED = 8  # episodes that show whether the disk can hold all; they wait up to so many times as long as a shard else does
GIVE_UP_AFTER = 10  # failures with no success: every episode fails, so say it now


@dataclass(frozen=True)
class CollectionProgress:
    """How far a collection is: episodes in the store or about to be, of a total; steps made and failures in this run."""

    episodes: int
    total: int
    steps: int
    failures: int


class EpisodeEncoder(Protocol):
    """What stores something else in the place of observations; `worldmodel.models.encoded.Encoder` is one."""

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
        encoder: stores encoded observations in the place of frames: a `worldmodel.models.encoded.Encoder` with a trained V.
        overwrite: replace an earlier store at ``out``, whatever its recipe.
        on_progress: called after each episode.

    Returns:
        The store.

    Raises:
        ValueError: if there is no such environment or policy, or a number is out of range.
        TypeError: if a space is not supported.
        FileExistsError: if ``out`` holds something else, or a collection of another recipe.
        RuntimeError: if no episode succeeds; quotes the first failure.
        OSError: if frames, or what ``encoder`` makes of them, would need more disk than there is, judging by the first of the
            missing episodes; they are not written then.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes: expected at least 1, got {num_episodes}")
    WorkerConfig.of(num_workers)
    runner = Runner(env, policy, seed=seed, max_steps=max_steps, env_kwargs=env_kwargs, wrappers=wrappers)
    try:
        recipe = runner.recipe() if encoder is None else encoder.recipe(runner.recipe())
        store = open_or_create(Path(out), lambda: _spaces(runner, encoder), recipe, overwrite=overwrite)
        done = set(store.episode_ids.tolist())
        missing = [k for k in range(num_episodes) if k not in done]
        if missing:
            _require_spaces(store, _spaces(runner, encoder))
            progress = CollectionProgress(episodes=num_episodes - len(missing), total=num_episodes, steps=0, failures=0)
            judged = JUDGED if encoder is not None or find_images(store.observation_space) else 0
            results = _results(runner, missing, num_workers, encoder, judged)
            _collect_missing(_Writer(store, len(missing), judged), results, progress, on_progress)
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
    runner: Runner, missing: Sequence[int], num_workers: int, encoder: EpisodeEncoder | None, judged: int
) -> Generator[Episode | EpisodeFailure]:
    """Make the missing episodes, encoded if asked.

    The first ``judged`` are made before all others, because of many workers the short ones come first, and make all look short.
    """
    for ids in filter(None, (missing[:judged], missing[judged:])):
        with contextlib.closing(run_all(runner, ids, num_workers)) as results:
            for result in results:
                yield encoder.encode(result) if encoder is not None and isinstance(result, Episode) else result


class _Writer:
    """Moves episodes to a store, a shard at a time, the first of them only when they show that the disk can hold all.

    Args:
        store: where they go.
        count: how many there will be.
        judged: by how many of them the disk is judged, or by fewer if those are large or slow; 0 does not judge.
    """

    def __init__(self, store: EpisodeStore, count: int, judged: int):
        self.store, self._count, self._judged = store, count, judged
        self._waiting: list[Episode] = []
        self._bytes, self._flushed = 0, time.monotonic()

    def add(self, episode: Episode) -> None:
        """Take an episode."""
        self._waiting.append(episode)
        self._bytes += episode.nbytes

    def write_if_due(self) -> None:
        """Write what waits, if it is enough or has waited for long."""
        patience, seconds = max(1, self._judged), time.monotonic() - self._flushed
        shown = 0 < self._judged <= len(self._waiting)
        if shown or self._bytes >= patience * FLUSH_BYTES or seconds >= patience * FLUSH_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        if self._judged and self._waiting:
            self._judge()
        self.store.append(self._waiting)
        self._waiting, self._bytes, self._flushed = [], 0, time.monotonic()

    def close(self) -> None:
        """Keep what waits, whatever has happened."""
        self.store.append_missing(self._waiting)

    def _judge(self) -> None:
        waiting = self._waiting
        try:
            require_disk(
                self.store.path,
                self.store.stored_bytes(waiting) / len(waiting) * self._count,
                f"{self._count} episodes, judging by {len(waiting)} of them",
                remedy="collect fewer, or store less of each: smaller frames, or what a V makes of them (encoder, --vision)",
            )
        except OSError:
            self._waiting = []
            raise
        self._judged = 0


def _collect_missing(
    writer: _Writer,
    results: Generator[Episode | EpisodeFailure],
    progress: CollectionProgress,
    on_progress: Callable[[CollectionProgress], None] | None,
) -> None:
    """Move results to the store; whatever interrupts it, what is whole by then is kept."""
    failures: list[EpisodeFailure] = []
    try:
        for result in results:
            if isinstance(result, Episode):
                writer.add(result)
                progress = replace(progress, episodes=progress.episodes + 1, steps=progress.steps + len(result))
            else:
                failures.append(result)
                progress = replace(progress, failures=progress.failures + 1)
            if on_progress is not None:
                on_progress(progress)
            writer.write_if_due()
            if progress.episodes == 0 and progress.failures == GIVE_UP_AFTER:
                break
        writer.write()
    finally:
        results.close()
        writer.close()
        writer.store.record_failures(asdict(failure) for failure in failures)
    if len(writer.store) == 0:
        first = failures[0]
        name = f"episode {first.episode_id} (seed {first.seed})"
        raise RuntimeError(f"env: expected some episode to succeed, got only failures; the first, of {name}: {first.error}")
