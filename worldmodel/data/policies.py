"""Behaviour policies for collection: uniform, repeated action, sweeps from end to end, Brownian.

A policy is any callable ``observation -> action``. If it has ``reset(rng)``, that is called at the start of each episode
with the episode's own generator, and all its randomness comes from there: so an episode depends on nothing but its seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.runtime import check_integer
from worldmodel.spaces import Value

Policy = Callable[[Value], Any]

POLICIES = ("random", "repeat", "repeat-long", "sweep", "brownian")
LONGEST_HOLD = 100  # steps, of "repeat-long"


class RandomPolicy:
    """Uniform actions: every observation gets an independent draw of the action space.

    Draws as Gymnasium's ``Space.sample`` does: uniform in a discrete space and between finite bounds; a Box dimension
    without bounds is standard normal, one with a single bound is that bound plus or minus a standard exponential.

    Args:
        action_space: the space to draw from.
    """

    description = "random"

    def __init__(self, action_space: gym.Space[Any]):
        self._space = copy.deepcopy(action_space)  # its hidden generator is seeded per episode: never the caller's space
        self._rng: np.random.Generator | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode: all of its actions follow from ``rng``."""
        self._space.seed(int(rng.integers(2**31)))
        self._rng = rng

    def __call__(self, observation: Value) -> Any:
        """Return a fresh draw; the observation is not looked at."""
        _require_reset(self._rng)
        return self._space.sample()


class RepeatPolicy:
    """Uniform actions, each held for a number of steps drawn from 1..max_repeat.

    With a uniform draw from 1 to 10 ("repeat") it is the collection policy of Ha & Schmidhuber (2018) for VizDoom. A
    log-uniform draw spreads the steps evenly over holds of all lengths, so that M sees both haste and long movements; from 1
    to 100 it is "repeat-long".

    Args:
        action_space: the space to draw from, as `RandomPolicy` does.
        max_repeat: the longest hold, >= 1.
        log_uniform: whether n steps have probability log(1 + 1/n) / log(1 + max_repeat), rather than 1 / max_repeat.
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
        """Start an episode: all of its actions follow from ``rng``."""
        self._random.reset(rng)
        self._rng = rng
        self._remaining = 0

    def __call__(self, observation: Value) -> Any:
        """Return the held action, or a fresh one when its time is over."""
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
    """Sweeps from one end of a line of choices to the other and back, with random draws between them.

    Where an agent lives by moving on, random draws turn too soon and die before the game grows hard, so M sees little of what
    a good agent will. Each episode has a typical length of its sweeps, log-uniform, and each sweep lasts 0.5 to 1.5 times as
    long. In between, and all through some of the episodes, choices are drawn as by "repeat-long".

    Args:
        action_space: Discrete; its choices lie on a line.
        lengths: least and greatest typical length of a sweep, in steps.
        random_changes: probability that a change is a random draw.
        random_episodes: probability that an episode has nothing but those.

    Raises:
        TypeError: if the action space is not Discrete.
        ValueError: if ``lengths`` are out of order or below 1, or a probability is none.
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
            raise ValueError(f"lengths: expected 1 <= least <= greatest, got {lengths}")
        if not (0 <= random_changes <= 1 and 0 <= random_episodes <= 1):
            given = f"{random_changes} and {random_episodes}"
            raise ValueError(f"random_changes, random_episodes: expected probabilities from 0 to 1, got {given}")
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
        """Start an episode: all of its actions follow from ``rng``."""
        self._random.reset(rng)
        self._rng = rng
        self._only_random = rng.random() < self._random_episodes
        self._typical = np.exp(rng.uniform(*np.log(self._lengths)))
        self._backwards = rng.random() < 0.5
        self._remaining = 0

    def __call__(self, observation: Value) -> Any:
        """Return the held action, or the next one when its time is over."""
        rng = _require_reset(self._rng)
        if self._remaining == 0:
            if self._only_random or rng.random() < self._random_changes:
                self._action, self._remaining = self._random(observation), _log_uniform(rng, LONGEST_HOLD)
            else:
                self._action, self._backwards = self._ends[self._backwards], not self._backwards
                self._remaining = max(1, round(self._typical * rng.uniform(0.5, 1.5)))
        self._remaining -= 1
        return self._action


class BrownianPolicy:
    """A random walk in a Box of actions, clipped to its bounds: smoother than independent draws.

    a_0 uniform, a_{t+1} = clip(a_t + n_t) with n_t ~ N(0, (scale * half_range)^2) per dimension, where half_range is
    (high - low) / 2, or 1 in a dimension without bounds. This is the usual CarRacing collection of the ports of "World
    Models" (ctallec/world-models, ``sample_continuous_policy`` with dt = 1/50, hence the default scale sqrt(1/50)); they
    use the same absolute step in every dimension, so gas and brake, with half_range 0.5, walk half as fast here.

    Args:
        action_space: a Box of real numbers.
        scale: standard deviation of an increment, as a share of half the range; > 0.

    Raises:
        TypeError: if the action space is no Box of real numbers.
    """

    def __init__(self, action_space: gym.Space[Any], scale: float = 0.02**0.5):
        if not isinstance(action_space, spaces.Box) or not np.issubdtype(action_space.dtype, np.floating):
            raise TypeError(
                f"action_space: expected a Box of real numbers for policy 'brownian', got {action_space}; use 'repeat'"
            )
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
        """Start an episode: all of its actions follow from ``rng``."""
        self._random.reset(rng)
        self._rng = rng
        self._action = None

    def __call__(self, observation: Value) -> np.ndarray:
        """Return the next point of the walk; the observation is not looked at."""
        rng = _require_reset(self._rng)
        if self._action is None:
            self._action = self._random(observation)
        else:
            moved = self._action + self._step * rng.standard_normal(self._step.shape)
            self._action = np.clip(moved, self._space.low, self._space.high).astype(self._space.dtype)
        return self._action


def make_policy(policy: str | Policy, action_space: gym.Space[Any]) -> Policy:
    """Return the policy called ``policy`` for this action space; a callable is returned as it is.

    Raises:
        ValueError: if there is no policy of that name.
        TypeError: if ``policy`` is neither a name nor a callable, or the action space does not suit it.
    """
    if callable(policy):
        return policy
    if not isinstance(policy, str):
        raise TypeError(f"policy: expected one of {list(POLICIES)} or a callable, got {type(policy).__name__}")
    classes: dict[str, Callable[[gym.Space[Any]], Policy]]
    long = partial(RepeatPolicy, max_repeat=LONGEST_HOLD, log_uniform=True)
    classes = dict(zip(POLICIES, (RandomPolicy, RepeatPolicy, long, SweepPolicy, BrownianPolicy), strict=True))
    if policy not in classes:
        raise ValueError(f"policy: expected one of {list(POLICIES)} or a callable, got {policy!r}")
    return classes[policy](action_space)


def _log_uniform(rng: np.random.Generator, most: int) -> int:
    """Draw a number of steps n in 1..most with probability log(1 + 1/n) / log(1 + most)."""
    return min(most, int(np.exp(rng.uniform(0, np.log1p(most)))))


def _require_reset(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise RuntimeError("policy: expected reset(rng) before the first action, got none: its randomness has no source")
    return rng


class CyclicPolicy:
    """Actions in turn, each for so many steps, and from the first again, whatever is seen; one alone is held for ever.

    Args:
        actions: values of the action space.
        hold: steps.
    """

    def __init__(self, actions: Sequence[Any], hold: int = 1):
        self._actions, self._hold, self._steps = actions, hold, 0
        self.description = f"cyclic({list(actions)}, hold={hold})"

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self._steps = 0

    def __call__(self, observation: Value) -> Any:
        """Return the action whose turn it is."""
        action = self._actions[self._steps // self._hold % len(self._actions)]
        self._steps += 1
        return action
