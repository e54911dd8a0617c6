"""Collect real episodes into a store; an interrupted collection resumes.

The episodes come from `rollouts` in any order and are written a shard at a time. After an interruption or a kill, exactly
the missing episodes are collected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym

from worldmodel.data.env_factory import EnvConfig, EnvMaker
from worldmodel.data.episode import Episode
from worldmodel.data.policies import Policy
from worldmodel.data.runner import EpisodeFailure, Runner, run_all, spaces_of
from worldmodel.data.store import SHARDS, EpisodeStore
from worldmodel.data.time_limits import TIME_LIMIT
from worldmodel.data.writer import EpisodeWriter
from worldmodel.runtime import (
    Listener,
    Progress,
    RunConfig,
    WorkerConfig,
    check_integer,
    check_same_run,
    explains_keywords,
    keeps_threads,
    record_run,
    remove_temporaries,
    set_threads,
    single_writer,
)
from worldmodel.spaces import find_images

FLUSH_BYTES = 32 * 2**20  # size of a shard
SAMPLE = 8  # episodes from which the disk space of all is estimated
GIVE_UP_AFTER = 10  # failures without a success: then every episode fails


class EpisodeEncoder(Protocol):
    """Replaces observations before they are stored; `worldmodel.models.Encoder` is one."""

    @property
    def observation_space(self) -> gym.Space:
        """Space of the stored observations."""

    def check(self, observation_space: gym.Space) -> None:
        """Raise unless it encodes observations of this space."""

    def recipe(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe of the stored episodes, given the recipe of the original ones."""

    def encode(self, episode: Episode) -> Episode:
        """Return the episode as it is stored."""


@explains_keywords
@keeps_threads
@single_writer()
def collect(
    env: str | EnvMaker | EnvConfig,
    *,
    out: str | Path,
    num_episodes: int,
    policy: str | Policy = "random",
    seed: int = 0,
    workers: int | WorkerConfig = 0,
    encoder: EpisodeEncoder | None = None,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Collect episodes 0..num_episodes-1 into the store ``out``, or those of them that it does not hold yet.

    An interrupted collection keeps the finished episodes (``kill -9`` costs the last seconds). Called again with the same
    recipe (environment, its arguments and wrappers, policy, seed, max_steps), it collects the missing ones. Failed episodes are
    listed in ``store.failures`` and tried again by the next call. A callable policy is known by its ``description`` or, lacking
    that, its qualified name.

    Args:
        env: see `rollouts`.
        out: directory of the store: absent, empty, or an earlier collection of the same recipe.
        num_episodes: number of episodes in the finished store, >= 1.
        policy: see `rollouts`.
        seed: see `rollouts`.
        workers: see `rollouts`; the result does not depend on it.
        encoder: stores encoded observations in place of frames: a `worldmodel.models.Encoder` with a trained V.
        run: whether an earlier collection is continued or replaced, and how progress is shown. Stage "collect", in episodes,
            with ``steps`` and ``failures`` of this call.

    Returns:
        The store.

    Raises:
        ValueError: if there is no such environment or policy, or a number is out of range.
        TypeError: if a space is not supported, or a number is not an integer.
        FileExistsError: if ``out`` holds something else, a collection of another recipe, or one that ``run`` does not resume.
        RuntimeError: if no episode succeeds; quotes the first failure.
        OSError: if frames, or what ``encoder`` makes of them, would need more disk than there is, judging by the first of the
            missing episodes; they are not written then.
    """
    num_episodes, run = check_integer(num_episodes, "num_episodes", least=1), run or RunConfig()
    set_threads(None, run.threads, out)  # of V and of policies with a network; no episode depends on it
    pool = WorkerConfig.of(workers)
    runner = Runner(env, policy, seed=seed)
    try:
        recipe = runner.recipe() if encoder is None else encoder.recipe(runner.recipe())
        make_spaces = partial(_spaces, runner, encoder, pool)
        store = open_or_create(Path(out), make_spaces, recipe, run=run, found=runner.found)
        done = set(store.episode_ids.tolist())
        missing = [k for k in range(num_episodes) if k not in done]
        if missing:
            _require_spaces(store, make_spaces())
            _require_time_limit(store, runner.found())
            sample = SAMPLE if encoder is not None or find_images(store.observation_space) else 0
            results = _results(runner, missing, pool, encoder, sample)
            writer = EpisodeWriter(store, max_bytes=FLUSH_BYTES, total=len(missing), sample=sample)
            with run.reporter() as report:
                _collect_missing(writer, results, num_episodes - len(missing), num_episodes, report)
    finally:
        runner.close()
    return store


def open_or_create(
    out: Path,
    spaces: Callable[[], Mapping[str, gym.Space[Any]]],
    recipe: Mapping[str, Any],
    *,
    run: RunConfig,
    found: Callable[[], Mapping[str, Any]] = dict,
) -> EpisodeStore:
    """Open the store of an earlier run of the same recipe to continue it, or create it.

    Args:
        out: its directory.
        spaces: gives ``observation_space`` and ``action_space``, and is called only to create a store.
        recipe: arguments that the episodes depend on.
        run: whether an earlier store is continued, replaced or refused.
        found: gives what the environment says of itself, for the recipe of a new store; stores of earlier versions lack it.

    Raises:
        FileExistsError: if ``out`` holds something else, a store of another recipe, or one that ``run`` does not resume.
    """
    if run.overwrite or not run.resume or not EpisodeStore.lies_in(out):
        given = spaces()
        created = EpisodeStore.create(out, **given, recipe={**recipe, **found()}, overwrite=run.overwrite)
        record_run(out)
        return created
    store = EpisodeStore.open(out)
    earlier, now = ({name: each[name] for name in each if name != TIME_LIMIT} for each in (store.recipe, recipe))
    check_same_run(earlier, now, out, error=FileExistsError)
    for folder in (out, out / SHARDS):
        remove_temporaries(folder)
    store.adopt()
    record_run(out)
    return store


def _spaces(runner: Runner, encoder: EpisodeEncoder | None, workers: WorkerConfig) -> dict[str, gym.Space[Any]]:
    found = spaces_of(runner, workers)
    if encoder is None:
        return found
    encoder.check(found["observation_space"])
    return {**found, "observation_space": encoder.observation_space}


def _require_spaces(store: EpisodeStore, spaces: Mapping[str, gym.Space[Any]]) -> None:
    for name, space in spaces.items():
        if space != getattr(store, name):
            raise ValueError(f"{store.path}: expected the {name} of its episodes, {getattr(store, name)}, got {space}")


def _require_time_limit(store: EpisodeStore, found: Mapping[str, Any]) -> None:
    """Raise if the environment's limit has changed; stores of earlier versions do not record it."""
    earlier, now = store.recipe.get(TIME_LIMIT), found.get(TIME_LIMIT)
    if earlier is not None and earlier != now:
        raise FileExistsError(
            f"{store.path}: expected the time limit of its episodes, {earlier} steps, got {now}; use the same environment, "
            "choose another output, or overwrite (--overwrite) to start again"
        )


def _results(
    runner: Runner, missing: Sequence[int], workers: WorkerConfig, encoder: EpisodeEncoder | None, sample: int
) -> Generator[Episode | EpisodeFailure]:
    """Make the missing episodes, encoded if requested.

    The first ``sample`` are made before all others: many workers finish short episodes first, and a sample of these would make
    all look short.
    """
    for ids in filter(None, (missing[:sample], missing[sample:])):
        with contextlib.closing(run_all(runner, ids, workers)) as results:
            for result in results:
                yield encoder.encode(result) if encoder is not None and isinstance(result, Episode) else result


def _collect_missing(
    writer: EpisodeWriter, results: Generator[Episode | EpisodeFailure], done: int, total: int, report: Listener
) -> None:
    """Move results to the store; an interruption keeps the finished ones."""
    failures: list[EpisodeFailure] = []
    steps = 0
    try:
        with writer, contextlib.closing(results):
            for result in results:
                if isinstance(result, Episode):
                    writer.add(result)
                    done, steps = done + 1, steps + len(result)
                else:
                    failures.append(result)
                report(Progress("collect", done, total, "episode", {"steps": steps, "failures": len(failures)}))
                writer.write_if_due()
                if done == 0 and len(failures) == GIVE_UP_AFTER:
                    break
    finally:
        writer.store.record_failures(asdict(failure) for failure in failures)
    if len(writer.store) == 0:
        first = failures[0]
        name = f"episode {first.episode_id} (seed {first.seed})"
        raise RuntimeError(f"env: expected some episode to succeed, got only failures; the first, of {name}: {first.error}")
