"""Longest episode of an environment, as its wrappers and its spec say, and of data that do not name their environment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.data.action_repeat import ActionRepeat
from worldmodel.data.collection import EpisodeCollection

TIME_LIMIT = "time_limit"  # in a store's recipe: the limit that was found in the environment when the store was made
MOST_READ = 2000  # episodes, spread evenly, whose last step is read


def find_time_limit(env: gym.Env) -> int | None:
    """Return the smallest limit of an environment in steps: of its spec and of every TimeLimit among its wrappers.

    Limits within an `ActionRepeat` are divided by its repeats, rounded up, as its steps are decisions.

    A wrapper of another class counts if it keeps its limit as Gymnasium's does, in ``_max_episode_steps``.

    Args:
        env: the environment, with its wrappers.

    Returns:
        The limit; None if there is none.
    """
    limits: list[int] = []
    repeat, layer = 1, env
    while isinstance(layer, gym.Wrapper):
        repeat *= layer.repeat if isinstance(layer, ActionRepeat) else 1
        limits += _decisions(vars(layer).get("_max_episode_steps"), repeat)
        layer = layer.env
    limits += _decisions(vars(layer).get("_max_episode_steps"), repeat)
    spec = env.env.spec if isinstance(env, ActionRepeat) else env.spec
    limits += _decisions(None if spec is None else spec.max_episode_steps, env.repeat if isinstance(env, ActionRepeat) else 1)
    return min(limits, default=None)


def _decisions(limit: Any, repeat: int) -> list[int]:
    return [math.ceil(limit / repeat) for limit in positive_limits(limit)]


def positive_limits(*values: Any) -> list[int]:
    """Return the values that are numbers of steps, as Python's integers; Gymnasium's -1 is no limit."""
    kinds = (int, float, np.integer, np.floating)
    numbers: list[Any] = [value for value in values if isinstance(value, kinds) and not isinstance(value, bool)]
    return [int(number) for number in numbers if 0 < number < math.inf and number == int(number)]


def recorded_limits(recipe: Mapping[str, Any]) -> list[int]:
    """Return the limits that the recipe of a store records: ``max_steps``, and what was found in the environment."""
    return positive_limits(recipe.get("max_steps"), recipe.get(TIME_LIMIT))


def common_truncation(episodes: EpisodeCollection) -> int | None:
    """Return the length at which episodes are truncated, if the data show one.

    Truncation can have other reasons than a limit. So at least half of the truncated episodes must have this length, and no
    episode may be longer.

    Args:
        episodes: of one environment; the last step is read of at most `MOST_READ` of them.

    Returns:
        The length in steps; None if no episode is truncated or they differ.
    """
    count = min(len(episodes), MOST_READ)
    truncated: Counter[int] = Counter()
    for number in range(count):
        index = number * len(episodes) // count
        length = int(episodes.lengths[index])
        last = episodes.read(index, length - 1)
        truncated[length] += bool(last.truncations[-1]) and not bool(last.terminations[-1])
    length, frequency = truncated.most_common(1)[0]
    enough = frequency > 0 and 2 * frequency >= truncated.total()
    return length if enough and int(episodes.lengths.max()) <= length else None
