"""Longest episode of an environment or of a world model's data, in steps."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
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
    own = (spec and spec.max_episode_steps) if asked is None else asked
    if isinstance(own, int) and own > 0:
        own = math.ceil(own / recipe.get("action_repeat", 1))
    return min(
        (limit for limit in (recipe.get("max_steps"), own) if isinstance(limit, int) and limit > 0), default=DEFAULT_HORIZON
    )


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
    """Return the longest episode in steps: the smaller of ``max_steps`` and the environment's own limit; 1000 without either.

    With ``action_repeat`` these are decisions: the environment's own limit divided by the repeats, rounded up.

    Raises:
        ValueError: if there is no such environment.
    """
    config = EnvConfig.of(env)
    with contextlib.closing(replace(config, action_repeat=1).make()) as built:
        limits = [None if built.spec is None else built.spec.max_episode_steps]
        while isinstance(built, gym.Wrapper):  # a constructor's environment may have a limit without a spec that says so
            if isinstance(built, TimeLimit):
                limits.append(built._max_episode_steps)
            built = built.env
    own = [math.ceil(limit / config.action_repeat) for limit in limits if limit is not None]
    return min([*own, *([] if config.max_steps is None else [config.max_steps])], default=DEFAULT_HORIZON)
