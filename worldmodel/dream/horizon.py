"""Longest episode in steps, where none is given: of a real environment, or of a world model's data."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from worldmodel.data import EnvConfig, EnvMaker, find_time_limit, positive_limits, recorded_limits
from worldmodel.models import WorldModel

DEFAULT_HORIZON = 1000  # steps of a dream if the longest episode is unknown


def usual_horizon(world: WorldModel) -> int:
    """Return the longest episode of the environment that a world model's data came from, in steps.

    This is the smallest of ``max_steps``, the limit of the registered environment, and every TimeLimit that was found when the
    data were collected; the largest of these for data of several stores. Data without such a record count with the length at
    which their episodes are truncated. Otherwise it is 1000, with a warning.

    Only ids that are registered already are looked up: a model directory must not make anything be imported.
    """
    limits = [limit for recipe in world.provenance.get("recipes", []) if (limit := _limit_of(recipe)) is not None]
    if not limits:
        limits = positive_limits(world.provenance.get("truncated_at"))
    return max(limits) if limits else _guess("the world model's data have none, and no common length of truncated episodes")


def check_action_repeat(world: WorldModel, env: EnvConfig) -> None:
    """Raise if a real environment repeats actions another number of times than that of a world model's data.

    Raises:
        ValueError: if so, naming both numbers. Data of unknown origin are not checked.
    """
    for recipe in world.provenance.get("recipes", []):
        repeat = recipe.get("action_repeat", 1)
        if "env" in recipe and repeat != env.action_repeat:
            raise ValueError(
                f"action_repeat: expected {repeat}, as in the data of the world model, got {env.action_repeat}; set it in "
                "EnvConfig (--action-repeat)"
            )


def time_limit(env: str | EnvMaker | EnvConfig) -> int:
    """Return the longest episode of a real environment in steps.

    This is the smallest of ``max_steps``, the limit of its spec, and every TimeLimit among its wrappers, also those inside of a
    constructor; 1000, with a warning, without any of them.

    With ``action_repeat`` these are decisions: the environment's own limit divided by the repeats, rounded up.

    Raises:
        ValueError: if there is no such environment.
    """
    config = EnvConfig.of(env)
    with contextlib.closing(config.make()) as built:
        limits = [limit for limit in (config.max_steps, find_time_limit(built)) if limit is not None]
    return min(limits) if limits else _guess(f"{config.recipe()['env']} has none, and max_steps is not given")


def _limit_of(recipe: Mapping[str, Any]) -> int | None:
    """Return the smallest limit that the recipe of a store leads to; None without one."""
    env = recipe.get("env")
    spec = gym.registry.get(env.rpartition(":")[2]) if isinstance(env, str) else None  # ids may be "module:Id-v0"
    asked = (recipe.get("env_kwargs") or {}).get("max_episode_steps")  # overrides the registered limit; -1 is no limit
    registered = (spec and spec.max_episode_steps) if asked is None else asked
    own = [math.ceil(limit / recipe.get("action_repeat", 1)) for limit in positive_limits(registered)]
    return min([*recorded_limits(recipe), *own], default=None)


def _guess(reason: str) -> int:
    warnings.warn(
        f"horizon: expected a limit of an episode, but {reason}; episodes are cut off after {DEFAULT_HORIZON} steps. "
        "Give horizon, or max_steps of the environment (--max-steps)",
        stacklevel=3,
    )
    return DEFAULT_HORIZON
