"""Build Gymnasium environments from ids or constructors."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

EnvMaker = Callable[..., gym.Env]


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
