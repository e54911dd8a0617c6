"""Build Gymnasium environments from ids or constructors."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from worldmodel.data.action_repeat import ActionRepeat
from worldmodel.runtime import check_integers, check_names, describe, jsonable, missing_extra

EnvMaker = Callable[..., gym.Env]
_PARTIAL = re.compile(r"([\w.]+)\(\*(\[.*\]), \*\*(\{.*\})\)")  # as `describe` names a functools.partial


@dataclass(frozen=True)
class EnvConfig:
    """An environment and how it is built.

    Args:
        env: Gymnasium id, or a constructor called with ``kwargs``.
        kwargs: keyword arguments of the environment.
        wrappers: applied to it in this order.
        max_steps: truncate an episode after this many steps; None leaves it to the environment. With ``action_repeat`` these
            are decisions of the policy, each of several steps of the environment.
        leave_out: paths of leaves of the observations that are not recorded, such as "mission"; leaves that are not supported
            (Text, Sequence, Graph) must be among them. Policies of a collection still see them.
        action_repeat: steps of the environment per action, whose rewards are summed; see `ActionRepeat`. A step of M, of a
            dream and of an episode is one decision then.

    Raises:
        TypeError: if a number is not an integer, or ``leave_out`` is not a sequence of strings.
        ValueError: if a number is below 1.
    """

    env: str | EnvMaker
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = ()
    max_steps: int | None = None
    leave_out: tuple[str, ...] = ()
    action_repeat: int = 1

    def __post_init__(self) -> None:
        """Check the numbers and ``leave_out``."""
        check_integers(self, {"max_steps": 1, "action_repeat": 1}, optional=("max_steps",))
        check_names(self, "leave_out")

    @classmethod
    def of(cls, env: str | EnvMaker | EnvConfig) -> EnvConfig:
        """Read an argument that is an environment or a configuration of one."""
        return env if isinstance(env, EnvConfig) else cls(env)

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> EnvConfig:
        """Read what `recipe` returned, such as the recipe of a store; wrappers are imported by their names.

        Args:
            recipe: data of a file. It decides which modules are imported, so it must come from somebody whom you trust.

        Raises:
            ValueError: if a wrapper cannot be imported: a lambda, an instance, or a class of a module that is not there.
            TypeError: if a value has another type.
        """
        return cls(
            recipe["env"],
            recipe.get("env_kwargs") or {},
            wrappers=tuple(_find_wrapper(name) for name in recipe.get("wrappers") or ()),
            max_steps=recipe.get("max_steps"),
            leave_out=tuple(recipe.get("leave_out") or ()),
            action_repeat=recipe.get("action_repeat") or 1,
        )

    def make(self) -> gym.Env:
        """Build one environment, wrapped, with its repeated actions; ``max_steps`` is left to the caller.

        Raises:
            ValueError: if there is no environment of this id.
        """
        made = make_env(self.env, self.kwargs, self.wrappers)
        return made if self.action_repeat == 1 else ActionRepeat(made, self.action_repeat)

    def recipe(self) -> dict[str, Any]:
        """Describe the environment as JSON-serialisable data."""
        return {
            "env": describe(self.env),
            "env_kwargs": jsonable(self.kwargs),
            "wrappers": [describe(wrapper) for wrapper in self.wrappers],
            "max_steps": self.max_steps,
            **({"leave_out": list(self.leave_out)} if self.leave_out else {}),  # else as in recipes of earlier versions
            **({"action_repeat": self.action_repeat} if self.action_repeat > 1 else {}),
        }


def make_env(
    env: str | EnvMaker, env_kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[Callable[[gym.Env], gym.Env]] = ()
) -> gym.Env:
    """Build one environment, wrapped; a ValueError names an unknown id, an ImportError the extra that it needs."""
    try:
        built = env_maker(env)(**(env_kwargs or {}))
    except gym.error.DependencyNotInstalled as error:
        if "gymnasium[box2d]" in str(error):
            raise missing_extra("box2d") from error
        raise
    for wrapper in wrappers:
        built = wrapper(built)
    return built


def _find_wrapper(name: str) -> Callable[[gym.Env], gym.Env]:
    """Import the wrapper that `describe` named: "module.Class", or a partial of one with arguments that JSON can hold."""
    partial = _PARTIAL.fullmatch(name)
    try:
        found = pkgutil.resolve_name(partial[1] if partial else name)
        arguments, keywords = (ast.literal_eval(partial[2]), ast.literal_eval(partial[3])) if partial else ((), {})
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"wrappers: expected a class or function that can be imported, got {name!r} ({error}); define it in an importable "
            "module, or register an environment that has it"
        ) from error
    return functools.partial(found, *arguments, **keywords) if partial else found


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
