"""Longest episode of an environment or of a world model's data, in steps."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import TimeLimit

from worldmodel.data import EnvConfig, EnvMaker
from worldmodel.models import WorldModel

DEFAULT_HORIZON = 1000  # steps of a dream if the longest episode is unknown


def usual_horizon(world: WorldModel) -> int:
    """Longest episode of the environment that a world model's data came from, as far as its provenance says; else 1000.

    Only looked up among the ids that are registered already: a model directory must not make anything be imported.
    """
    recipe: dict[str, Any] = next(iter(world.provenance.get("recipes", [])), {})
    spec = gym.registry.get(recipe.get("env", "").rpartition(":")[2])  # ids may be "module:Id-v0"
    asked = (recipe.get("env_kwargs") or {}).get("max_episode_steps")  # overrides the registered limit; -1 is no limit
    limits = (recipe.get("max_steps"), (spec and spec.max_episode_steps) if asked is None else asked)
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=DEFAULT_HORIZON)


def time_limit(env: str | EnvMaker | EnvConfig) -> int:
    """Return the longest episode in steps: the smaller of ``max_steps`` and the environment's own limit; 1000 without either.

    Raises:
        ValueError: if there is no such environment.
    """
    config = EnvConfig.of(env)
    with contextlib.closing(config.make()) as built:
        limits = [config.max_steps, None if built.spec is None else built.spec.max_episode_steps]
        while isinstance(built, gym.Wrapper):  # a constructor's environment may have a limit without a spec that says so
            if isinstance(built, TimeLimit):
                limits.append(built._max_episode_steps)
            built = built.env
    return min((limit for limit in limits if limit is not None), default=DEFAULT_HORIZON)
