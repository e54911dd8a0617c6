"""Play real episodes: any Gymnasium environment and policy, in this process or in workers, with the same result.

Episode k is a pure function of (seed, k): the environment is reset with `episode_seed` and the policy with a generator of
its own, so the result does not depend on the number of workers. An episode that raises or kills its worker
is tried again with a new environment and then reported; the other episodes continue.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.data.env_factory import EnvConfig, EnvMaker, env_maker
from worldmodel.data.episode import Episode, as_flag, as_reward, check_episode, unmasked
from worldmodel.data.policies import POLICIES, Policy, make_policy
from worldmodel.data.time_limits import TIME_LIMIT, find_time_limit
from worldmodel.rng import POLICY_STREAM, episode_seed
from worldmodel.runtime import StepWatch, WorkerConfig, check_integer, describe, machine_name
from worldmodel.spaces import as_tuples, check_space, leaf_values, map_leaves, select_leaves, stack_values, without_leaves

LONG_EPISODE = 100_000  # steps after which a warning asks whether the episode has an end


@dataclass(frozen=True)
class EpisodeFailure:
    """A failed episode: its id, the seed of its reset, the message of the last error, and the number of attempts."""

    episode_id: int
    seed: int
    error: str
    attempts: int


def rollouts(
    env: str | EnvMaker | EnvConfig,
    policy: str | Policy = "random",
    *,
    episode_ids: Iterable[int],
    seed: int,
    workers: int | WorkerConfig = 0,
) -> Generator[Episode | EpisodeFailure]:
    """Make real episodes, one per id, and yield them in the order in which they are done.

    Args:
        env: Gymnasium id, constructor, or `EnvConfig`; an environment without an end needs ``max_steps`` in the latter.
        policy: "random", "repeat", "repeat-long", "sweep", "brownian", or a callable ``observation -> action``; its
            ``reset(rng)``, if any, is called at the start of each episode. Every worker has a copy of its own.
        episode_ids: which episodes to make.
        seed: base seed; episode k depends on (seed, k) only.
        workers: number of worker processes, or a `WorkerConfig`; 0 plays in this process.

    Yields:
        The episode, validated against the spaces; or an `EpisodeFailure` if all attempts failed.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if there is no such environment or policy, or a number is out of range.
    """
    runner = Runner(env, policy, seed=seed)
    ids = [check_integer(episode_id, "episode_ids", least=0) for episode_id in episode_ids]
    return run_all(runner, ids, WorkerConfig.of(workers))


class Runner:
    """Makes episodes in one environment, which it builds when it needs it and drops when it raised."""

    def __init__(
        self,
        env: str | EnvMaker | EnvConfig,
        policy: str | Policy,
        *,
        seed: int,
    ):
        self._seed, self._policy = check_integer(seed, "seed", least=0), policy
        if isinstance(policy, str) and policy not in POLICIES:
            make_policy(policy, gym.spaces.Discrete(1))  # an unknown policy raises with the known names
        config = EnvConfig.of(env)
        self._env_recipe = config.recipe()
        self._config = replace(config, env=env_maker(config.env), kwargs=dict(config.kwargs), wrappers=tuple(config.wrappers))
        self._env: gym.Env | None = None

    def recipe(self) -> dict[str, Any]:
        """Return everything that the episodes depend on, as JSON-serialisable data."""
        return {
            **{name: self._env_recipe[name] for name in ("env", "env_kwargs", "wrappers")},
            "policy": describe(self._policy),
            "seed": self._seed,
            **{
                name: self._env_recipe[name] for name in ("max_steps", "leave_out", "action_repeat") if name in self._env_recipe
            },
        }

    def spaces(self) -> dict[str, gym.Space[Any]]:
        """Return the two spaces of the episodes; raises an error if one is not supported (see `check_space`)."""
        env = self._ready_env()
        found = {"observation_space": self._observed, "action_space": env.action_space}
        for name, space in found.items():
            check_space(space, name)
        return found

    def found(self) -> dict[str, Any]:
        """Return what the recipe of a new store records of the built environment: its time limit, if it has one."""
        limit = find_time_limit(self._ready_env())
        return {} if limit is None else {TIME_LIMIT: limit}

    def seed_of(self, episode_id: int) -> int:
        """Return the seed that an episode resets the environment with."""
        return episode_seed(self._seed, episode_id)

    def run(self, episode_id: int, watch: StepWatch) -> Episode:
        """Make one episode; on any error the environment is dropped, so that the next one starts with a fresh one."""
        watch.step()
        try:
            env = self._ready_env()
            episode = self._roll(env, episode_id, watch)
            check_episode(episode, self._observed, env.action_space)
            return episode
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the environment, if there is one."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _ready_env(self) -> gym.Env:
        if self._env is None:
            self._env = env = self._config.make()
            self._observed = without_leaves(env.observation_space, self._config.leave_out)
            self._act = make_policy(self._policy, env.action_space)
        return self._env

    def _roll(self, env: gym.Env, episode_id: int, watch: StepWatch) -> Episode:
        if hasattr(self._act, "reset"):
            self._act.reset(np.random.default_rng([self._seed, episode_id, POLICY_STREAM]))
        seed = self.seed_of(episode_id)
        watch.step()
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards = [self._kept(observation)], list[Any](), list[Any]()
        terminated = truncated = False
        step_size = 0
        while not (terminated or truncated):
            watch.step(step_size * len(rewards))
            action = self._act(observation)
            actions.append(_copy(as_tuples(env.action_space, action)))
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(self._kept(observation))
            rewards.append(as_reward(reward))
            terminated, truncated = as_flag(terminated, "terminated"), as_flag(truncated, "truncated")
            step_size = step_size or _size(observations[-1]) + _size(actions[-1])
            if len(rewards) == LONG_EPISODE:
                _warn_long(episode_id, step_size)
            truncated = truncated or (len(rewards) == self._config.max_steps and not terminated)
        watch.pause()
        last = np.arange(len(rewards)) == len(rewards) - 1
        return Episode(
            observations=stack_values(observations),
            actions=stack_values(actions),
            rewards=np.array(rewards, dtype=np.float64),
            terminations=last & terminated,
            truncations=last & truncated,
            episode_id=episode_id,
            seed=seed,
            machine=machine_name(),
        )

    def _kept(self, observation: Any) -> Any:
        """Copy the leaves of an observation that are recorded."""
        return _copy(select_leaves(self._observed, observation))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the environment; the copy builds its own."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_env", "_act", "_observed")} | {"_env": None}


def run_all(runner: Runner, episode_ids: Sequence[int], workers: WorkerConfig) -> Generator[Episode | EpisodeFailure]:
    """Make the episodes as `rollouts` does, with a given runner."""
    if not workers.is_local:
        runner.close()  # the workers open environments of their own
    with contextlib.closing(workers.run(runner, episode_ids)) as results:
        for episode_id, attempts, outcome in results:
            failed = not isinstance(outcome, Episode)
            yield EpisodeFailure(episode_id, runner.seed_of(episode_id), outcome, attempts) if failed else outcome


class _SpacesRunner:
    """Builds the environment of another runner in a worker and returns its spaces."""

    def __init__(self, runner: Runner):
        self._runner = runner

    def run(self, task: int, watch: StepWatch) -> dict[str, gym.Space[Any]]:
        """Return the two spaces; an error of the environment is re-raised in the parent as a `RuntimeError`."""
        watch.step()
        return self._runner.spaces()

    def close(self) -> None:
        """Close the environment."""
        self._runner.close()


def spaces_of(runner: Runner, workers: WorkerConfig) -> dict[str, gym.Space[Any]]:
    """Return the two spaces of an environment; with a step timeout, it is built in a worker, which can be stopped.

    Raises:
        TypeError: if a space is not supported.
        RuntimeError: if the environment cannot be built within the step timeout.
    """
    if workers.step_timeout is None:
        return runner.spaces()
    runner.close()
    with contextlib.closing(replace(workers, num_workers=1).run(_SpacesRunner(runner), [0])) as results:
        for _, attempts, outcome in results:
            if isinstance(outcome, dict):
                return outcome
            raise RuntimeError(f"env: expected to build the environment, got {attempts} times: {outcome}")
    raise AssertionError("a task without an outcome")


def _copy(value: Any) -> Any:
    return map_leaves(lambda leaf: np.array(unmasked(leaf, "value")), value)


def _size(value: Any) -> int:
    """Return the bytes of a value of a space."""
    return sum(np.asarray(leaf).nbytes for leaf in leaf_values(value).values())


def _warn_long(episode_id: int, step_size: int) -> None:
    size = step_size * LONG_EPISODE / 2**20
    warnings.warn(
        f"env: episode {episode_id} has taken {LONG_EPISODE:,} steps ({size:,.0f} MiB) without an end, and is kept in memory "
        "until it ends; if the environment has no end, set max_steps (--max-steps)",
        RuntimeWarning,
        stacklevel=2,
    )
