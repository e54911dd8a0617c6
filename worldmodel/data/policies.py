"""Behaviour policies for collection: uniform, repeated, sweeping and Brownian actions.

A policy is any callable ``observation -> action``. If it has a method ``reset(rng)``, each episode
calls that first with its own generator. A policy takes all randomness from this generator, so that
an episode depends only on its seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data.noise import SlowDriver
from worldmodel.runtime import check_integer
from worldmodel.spaces import Value, sample_value

Policy = Callable[[Value], Any]

POLICIES = ("random", "repeat", "repeat-long", "sweep", "brownian", "slow-driver")
MAX_HOLD = 100  # steps for which "repeat-long" holds an action at most


class RandomPolicy:
    """Independent random actions, sampled as by Gymnasium's ``Space.sample`` (see `worldmodel.spaces.sample_value`).

    Uniform in discrete spaces and between finite bounds. A dimension of a Box without bounds is
    standard normal. One with a single bound is that bound plus or minus a standard exponential.

    Args:
        action_space: space of the actions.
    """

    description = "random"

    def __init__(self, action_space: gym.Space[Any]):
        self._space = copy.deepcopy(action_space)  # a copy, as `reset` seeds its generator
        self._rng: np.random.Generator | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode whose actions take all randomness from ``rng``."""
        self._space.seed(int(rng.integers(2**31)))
        self._rng = rng

    def __call__(self, observation: Value) -> Any:
        """Sample an action; ignores the observation."""
        _require_reset(self._rng)
        return sample_value(self._space)


class RepeatPolicy:
    """Random actions, each held for a random number of steps from 1 to ``max_repeat``.

    "repeat" holds actions for 1 to 10 steps, uniformly, as Ha & Schmidhuber (2018) do for VizDoom.
    "repeat-long" holds them for 1 to 100 steps, log-uniformly: about as many steps are spent in
    short holds as in long ones, so that the data contain both quick changes and long movements.

    Args:
        action_space: space of the actions; they are sampled as by `RandomPolicy`.
        max_repeat: maximum number of steps of a hold, >= 1.
        log_uniform: n steps have probability log(1 + 1/n) / log(1 + max_repeat) instead of 1 /
            max_repeat.

    Raises:
        ValueError: if ``max_repeat`` is below 1.
    """

    def __init__(self, action_space: gym.Space[Any], max_repeat: int = 10, *, log_uniform: bool = False):
        max_repeat = check_integer(max_repeat, "max_repeat", least=1)
        self.max_repeat, self.log_uniform = max_repeat, log_uniform
        self.description = f"repeat(max_repeat={max_repeat}{', log_uniform=True' if log_uniform else ''})"
        self._random = RandomPolicy(action_space)
        self._rng: np.random.Generator | None = None
        self._remaining = 0
        self._action: Any = None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode whose actions take all randomness from ``rng``."""
        self._random.reset(rng)
        self._rng = rng
        self._remaining = 0

    def __call__(self, observation: Value) -> Any:
        """Return the held action, or a new one if the hold is over; ignores the observation."""
        rng = _require_reset(self._rng)
        if self._remaining == 0:
            self._action = self._random(observation)
            self._remaining = self._steps(rng)
        self._remaining -= 1
        return self._action

    def _steps(self, rng: np.random.Generator) -> int:
        if self.log_uniform:
            return _log_uniform(rng, self.max_repeat)
        return int(rng.integers(1, self.max_repeat, endpoint=True))


class SweepPolicy:
    """Alternate between the first and the last action in long sweeps, mixed with random actions.

    For games in which an agent must keep moving to survive. Random actions turn too early there and
    end the episode before the game becomes hard, so that the data contain few of the states that a
    good agent visits.

    Each episode samples a typical length of a sweep, log-uniformly; each sweep lasts 0.5 to 1.5
    times as long. Some changes, and all changes in some of the episodes, are random actions as by
    "repeat-long" instead.

    Args:
        action_space: Discrete; its first and last action are the two directions.
        lengths: minimum and maximum of the typical length of a sweep, in steps.
        random_changes: probability that a change is to a random action.
        random_episodes: probability that an episode has only random actions.

    Raises:
        TypeError: if the action space is not Discrete.
        ValueError: if ``lengths`` are not in order or below 1, or if a probability is outside of
            [0, 1].
    """

    def __init__(
        self,
        action_space: gym.Space[Any],
        lengths: tuple[int, int] = (20, 160),
        *,
        random_changes: float = 0.1,
        random_episodes: float = 0.25,
    ):
        if not isinstance(action_space, spaces.Discrete):
            raise TypeError(f"action_space: expected Discrete for policy 'sweep', got {action_space}; use 'repeat-long'")
        if not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(f"lengths: expected 1 <= minimum <= maximum, got {lengths}")
        if not (0 <= random_changes <= 1 and 0 <= random_episodes <= 1):
            given = f"{random_changes} and {random_episodes}"
            raise ValueError(f"random_changes, random_episodes: expected probabilities in [0, 1], got {given}")
        self.description = (
            f"sweep({lengths[0]}-{lengths[1]}, random_changes={random_changes}, random_episodes={random_episodes})"
        )
        self._lengths, self._random_changes, self._random_episodes = lengths, random_changes, random_episodes
        self._ends = int(action_space.start), int(action_space.start + action_space.n - 1)
        self._random = RandomPolicy(action_space)
        self._rng: np.random.Generator | None = None
        self._only_random, self._typical, self._backwards = False, 1.0, False
        self._action: Any = None
        self._remaining = 0

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode whose actions take all randomness from ``rng``."""
        self._random.reset(rng)
        self._rng = rng
        self._only_random = rng.random() < self._random_episodes
        self._typical = np.exp(rng.uniform(*np.log(self._lengths)))
        self._backwards = rng.random() < 0.5
        self._remaining = 0

    def __call__(self, observation: Value) -> Any:
        """Return the held action, or the next one if the hold is over; ignores the observation."""
        rng = _require_reset(self._rng)
        if self._remaining == 0:
            if self._only_random or rng.random() < self._random_changes:
                self._action, self._remaining = self._random(observation), _log_uniform(rng, MAX_HOLD)
            else:
                self._action, self._backwards = self._ends[self._backwards], not self._backwards
                self._remaining = max(1, round(self._typical * rng.uniform(0.5, 1.5)))
        self._remaining -= 1
        return self._action


class BrownianPolicy:
    """Random walk in a Box of actions, clipped to its bounds; smoother than independent actions.

    a_0 is uniform and a_{t+1} = clip(a_t + n_t) with n_t ~ N(0, (scale * half_range)^2) in each
    dimension, where half_range is (high - low) / 2, or 1 in a dimension without bounds.

    Ports of "World Models" usually collect CarRacing this way (ctallec/world-models,
    ``sample_continuous_policy`` with dt = 1/50, hence the default scale sqrt(1/50)). They use the
    same absolute step in every dimension. So gas and brake, whose half_range is 0.5, change half as
    fast here.

    Args:
        action_space: a Box of floats.
        scale: standard deviation of an increment in units of half_range, > 0.

    Raises:
        TypeError: if the action space is not a Box of floats.
        ValueError: if ``scale`` is not positive.
    """

    def __init__(self, action_space: gym.Space[Any], scale: float = 0.02**0.5):
        if not isinstance(action_space, spaces.Box) or not np.issubdtype(action_space.dtype, np.floating):
            raise TypeError(f"action_space: expected a Box of floats for policy 'brownian', got {action_space}; use 'repeat'")
        if not scale > 0:
            raise ValueError(f"scale: expected a number > 0, got {scale}")
        self.description = "brownian" if scale == 0.02**0.5 else f"brownian(scale={scale})"
        self._space = action_space
        self._random = RandomPolicy(action_space)
        low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
        self._step = scale * np.where(np.isfinite(high - low), (high - low) / 2, 1.0)
        self._rng: np.random.Generator | None = None
        self._action: np.ndarray | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode whose actions take all randomness from ``rng``."""
        self._random.reset(rng)
        self._rng = rng
        self._action = None

    def __call__(self, observation: Value) -> np.ndarray:
        """Return the next action of the walk; ignores the observation."""
        rng = _require_reset(self._rng)
        if self._action is None:
            self._action = self._random(observation)
        else:
            moved = self._action + self._step * rng.standard_normal(self._step.shape)
            self._action = np.clip(moved, self._space.low, self._space.high).astype(self._space.dtype)
        return self._action


def make_policy(policy: str | Policy, action_space: gym.Space[Any]) -> Policy:
    """Build the policy of this name; return callables unchanged.

    Args:
        policy: one of `POLICIES`, or a callable.
        action_space: space of its actions.

    Raises:
        ValueError: if no policy has this name.
        TypeError: if ``policy`` is neither a name nor a callable, or does not support the action
            space.
    """
    if callable(policy):
        return policy
    if not isinstance(policy, str):
        raise TypeError(f"policy: expected one of {list(POLICIES)} or a callable, got {type(policy).__name__}")
    classes: dict[str, Callable[[gym.Space[Any]], Policy]]
    long = partial(RepeatPolicy, max_repeat=MAX_HOLD, log_uniform=True)
    classes = dict(zip(POLICIES, (RandomPolicy, RepeatPolicy, long, SweepPolicy, BrownianPolicy, SlowDriver), strict=True))
    if policy not in classes:
        raise ValueError(f"policy: expected one of {list(POLICIES)} or a callable, got {policy!r}")
    return classes[policy](action_space)


def _log_uniform(rng: np.random.Generator, maximum: int) -> int:
    """Sample n in 1..maximum with probability log(1 + 1/n) / log(1 + maximum)."""
    return min(maximum, int(np.exp(rng.uniform(0, np.log1p(maximum)))))


def _require_reset(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise RuntimeError("policy: expected reset(rng) before the first action, got no generator")
    return rng


class CyclicPolicy:
    """Fixed actions in a cycle, independent of the observation.

    Args:
        actions: values of the action space.
        hold: number of steps for which each action is held.
    """

    def __init__(self, actions: Sequence[Any], hold: int = 1):
        self._actions, self._hold, self._steps = actions, hold, 0
        self.description = f"cyclic({list(actions)}, hold={hold})"

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode with the first action; uses no randomness."""
        self._steps = 0

    def __call__(self, observation: Value) -> Any:
        """Return the next action of the cycle."""
        action = self._actions[self._steps // self._hold % len(self._actions)]
        self._steps += 1
        return action
