"""Real episodes, one by one: any Gymnasium environment and any policy, in this process or in many, with the same result.

Episode k is a pure function of (seed, k): the environment is reset with `episode_seed` and the policy with a generator of
its own, so the result does not depend on the number of workers. What raises or kills its worker is tried once more with a
fresh environment and then reported, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import operator
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.episode import Episode, check_episode, stack_values
from worldmodel.policies import POLICIES, Policy, make_policy
from worldmodel.spaces import leaves, map_leaves
from worldmodel.workers import run_here, run_in_processes

ATTEMPTS = 2

# Streams of a user's seed (`derive_seed`), one for each use, so that no two see the same luck.
EVALUATION_STREAM = 1  # real episodes that controllers are scored on
COLLECT_STREAM, VALIDATE_STREAM, AGENT_STREAM = 2, 3, 4  # of the paper's loop
DREAM_TEST_STREAM, VIDEO_STREAM = 5, 6  # of an experiment
SEARCH_STREAM = 7  # the generations of a search
PPO_TEST_STREAM, PPO_LEARN_STREAM = 8, 9
PROBE_STREAM = 10  # random actions in a probe's dreams

_POLICY_STREAM = 1  # keeps the policy's draws apart from those of any other user of (seed, k)

EnvMaker = Callable[..., gym.Env]


@dataclass(frozen=True)
class EpisodeFailure:
    """An episode that could not be made: its id, the seed of its reset, the last error in words, and the attempts."""

    episode_id: int
    seed: int
    error: str
    attempts: int


def episode_seed(seed: int, episode_id: int) -> int:
    """Return what episode ``episode_id`` of a run with base seed ``seed`` resets its environment with.

    Within a run all are different; they lie in [0, 2^31), which also environments with an old random generator accept.
    """
    if seed < 0 or episode_id < 0:
        raise ValueError(f"seed, episode_id: expected numbers >= 0, got {seed}, {episode_id}")
    return int((int(np.random.SeedSequence(seed).generate_state(1)[0]) + episode_id) % 2**31)


def derive_seed(seed: int, *stream: int) -> int:
    """Return the seed of a stream of its own: a hash of ``seed`` and the numbers that name the stream, in [0, 2^63).

    Of a seed that users give, the first number is one of those above; a 0 at the end counts for nothing.
    """
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def rollouts(
    env: str | EnvMaker,
    policy: str | Policy = "random",
    *,
    episode_ids: Iterable[int],
    seed: int,
    num_workers: int = 0,
    max_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
) -> Generator[Episode | EpisodeFailure]:
    """Make real episodes, one per id, and yield them in the order in which they are done.

    Args:
        env: Gymnasium id, or a constructor called with ``env_kwargs``.
        policy: "random", "repeat", "repeat-long", "sweep", "brownian", or a callable ``observation -> action``; its
            ``reset(rng)``, if any, is called at the start of each episode. Every worker has a copy of its own.
        episode_ids: which episodes to make.
        seed: base seed; episode k depends on (seed, k) only.
        num_workers: 0 runs them here; n >= 1 in n processes. Then a script needs ``if __name__ == "__main__":``.
        max_steps: truncate an episode after so many steps. An environment that never ends needs it.
        env_kwargs: keyword arguments of the environment.
        wrappers: applied to it in this order.

    Yields:
        The episode, checked against the spaces; or what is known of one that failed twice.

    Raises:
        ValueError: if there is no such environment or policy, or a number is out of range.
    """
    runner = Runner(env, policy, seed=seed, max_steps=max_steps, env_kwargs=env_kwargs, wrappers=wrappers)
    ids = [operator.index(episode_id) for episode_id in episode_ids]
    episode_seed(seed, min(ids, default=0))
    check_workers(num_workers)
    return run_all(runner, ids, num_workers)


class Runner:
    """Makes episodes in one environment, which it builds when it needs it and drops when it raised."""

    def __init__(
        self,
        env: str | EnvMaker,
        policy: str | Policy,
        *,
        seed: int,
        max_steps: int | None,
        env_kwargs: Mapping[str, Any] | None,
        wrappers: Sequence[Callable[[gym.Env], gym.Env]],
    ):
        episode_seed(seed, 0)
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
        if isinstance(policy, str) and policy not in POLICIES:
            make_policy(policy, gym.spaces.Discrete(1))  # raises, and says which there are
        self._make_env = env_maker(env)
        self._env_name, self._policy, self._seed, self._max_steps = describe(env), policy, seed, max_steps
        self._env_kwargs, self._wrappers = dict(env_kwargs or {}), tuple(wrappers)
        self._env: gym.Env | None = None

    def recipe(self) -> dict[str, Any]:
        """Describe what makes the episodes what they are."""
        return {
            "env": self._env_name,
            "env_kwargs": jsonable(self._env_kwargs),
            "wrappers": [describe(wrapper) for wrapper in self._wrappers],
            "policy": describe(self._policy),
            "seed": self._seed,
            "max_steps": self._max_steps,
        }

    def spaces(self) -> dict[str, gym.Space[Any]]:
        """Return the two spaces of the environment; raises a TypeError if one is not supported."""
        env = self._ready_env()
        for space in (env.observation_space, env.action_space):
            leaves(space)
        return {"observation_space": env.observation_space, "action_space": env.action_space}

    def seed_of(self, episode_id: int) -> int:
        """Return the seed that an episode resets the environment with."""
        return episode_seed(self._seed, episode_id)

    def run(self, episode_id: int) -> Episode:
        """Make one episode; on any error the environment is dropped, so that the next one starts with a fresh one."""
        try:
            env = self._ready_env()
            episode = self._roll(env, episode_id)
            check_episode(episode, env.observation_space, env.action_space)
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
            self._env = env = make_env(self._make_env, self._env_kwargs, self._wrappers)
            self._act = make_policy(self._policy, env.action_space)
        return self._env

    def _roll(self, env: gym.Env, episode_id: int) -> Episode:
        if hasattr(self._act, "reset"):
            self._act.reset(np.random.default_rng([self._seed, episode_id, _POLICY_STREAM]))
        seed = self.seed_of(episode_id)
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards = [_copy(observation)], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            action = self._act(observation)
            actions.append(_copy(action))
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(_copy(observation))
            rewards.append(reward)
            truncated = truncated or (len(rewards) == self._max_steps and not terminated)
        last = np.arange(len(rewards)) == len(rewards) - 1
        return Episode(
            observations=stack_values(observations),
            actions=stack_values(actions),
            rewards=np.array(rewards, dtype=np.float64).reshape(len(rewards)),
            terminations=last & bool(terminated),
            truncations=last & bool(truncated),
            episode_id=episode_id,
            seed=seed,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the environment: the copy builds its own."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_env", "_act")} | {"_env": None}


def run_all(runner: Runner, episode_ids: Sequence[int], num_workers: int) -> Generator[Episode | EpisodeFailure]:
    """Make the episodes as `rollouts` does, with a runner that is there already."""
    if num_workers:
        runner.close()  # what it may have open here is of no more use
        results = run_in_processes(runner, episode_ids, num_workers=num_workers, attempts=ATTEMPTS)
    else:
        results = run_here(runner, episode_ids, attempts=ATTEMPTS)
    with contextlib.closing(results):
        for episode_id, attempts, outcome in results:
            failed = not isinstance(outcome, Episode)
            yield EpisodeFailure(episode_id, runner.seed_of(episode_id), outcome, attempts) if failed else outcome


def describe(thing: Any) -> str:
    """Return a stable name for an id, a policy or a constructor: itself, its ``description``, or its qualified name."""
    if isinstance(thing, str):
        return thing
    description = getattr(thing, "description", None)
    if isinstance(description, str):
        return description
    if isinstance(thing, functools.partial):
        return f"{describe(thing.func)}(*{jsonable(thing.args)}, **{jsonable(thing.keywords)})"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def jsonable(value: Any) -> Any:
    """Return ``value`` as JSON keeps it, with names for what JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return describe(value)


def make_env(
    env: str | EnvMaker, env_kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[Callable[[gym.Env], gym.Env]] = ()
) -> gym.Env:
    """Build one environment, wrapped; a ValueError names an unknown id."""
    built = env_maker(env)(**(env_kwargs or {}))
    for wrapper in wrappers:
        built = wrapper(built)
    return built


def env_maker(env: str | EnvMaker) -> EnvMaker:
    """Return a constructor that also works in another process, where the ids that were registered here are unknown."""
    if not isinstance(env, str):
        if not callable(env):
            raise TypeError(f"env: expected a Gymnasium id or a constructor, got {type(env).__name__}")
        return env
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return functools.partial(gym.make, gym.spec(name))
    except (gym.error.Error, ImportError) as error:
        close = difflib.get_close_matches(env, gym.registry, n=3, cutoff=0.4)
        raise ValueError(
            f"env: expected a registered Gymnasium id, got {env!r}{f'; close to it: {close}' if close else ''}. "
            'An environment of another package: install it and name its module too, "module:Id-v0". '
            f"Gymnasium says: {error}"
        ) from error


def check_workers(num_workers: int) -> None:
    """Raise a ValueError unless ``num_workers`` can be a number of workers."""
    if num_workers < 0:
        raise ValueError(f"num_workers: expected 0 or more, got {num_workers}")


def _copy(value: Any) -> Any:
    return map_leaves(np.array, value)
