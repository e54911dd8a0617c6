"""A real environment that follows a dream: the same start, the same actions, and the same steps back.

A world names its environment, and building one can import any module. So a world of somebody else could run code of its
author's choice. `check_trusted` lets only environments through that need no code but that of Gymnasium and this library.
"""

from __future__ import annotations

import base64
import functools
import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data import EnvConfig
from worldmodel.play.description import leaf_name
from worldmodel.runtime import RemoteObject
from worldmodel.spaces import build_value, leaf_values, leaves, select_leaves, space_from_json

Message = dict[str, Any]

BUILD_SECONDS, STEP_SECONDS = 45.0, 5.0  # limits of the construction or a reset, and of a step; the page waits for 60 s
OWN_MODULE = "worldmodel.environments"
OWN_CODE = ("gymnasium.envs.", "worldmodel.")
HARMLESS = (bool, int, float, type(None))  # arguments


def check_trusted(recipe: Mapping[str, Any]) -> None:
    """Raise unless an environment can be built without code and files that a world names.

    That is one which Gymnasium itself or `worldmodel.environments` registers, without wrappers, whose arguments are numbers and
    flags: a text could name a module or a file.

    Args:
        recipe: how it is built, from a world's ``page.json``.

    Raises:
        ValueError: naming what would be used.
    """
    module, _, name = recipe["env"].rpartition(":")
    if module == OWN_MODULE:
        importlib.import_module(module)  # registers its environments
    spec = gym.registry.get(name)
    entry = getattr(spec, "entry_point", None)
    ours = module in ("", OWN_MODULE) and isinstance(entry, str) and entry.startswith(OWN_CODE)
    needed = [] if ours else [recipe["env"]]
    needed += [str(wrapper) for wrapper in recipe.get("wrappers", ())]
    needed += [f"{key}={value!r}" for key, value in recipe.get("env_kwargs", {}).items() if not isinstance(value, HARMLESS)]
    if needed:
        raise ValueError(
            f"environment: expected one of Gymnasium or of this library, got {', '.join(needed)}, for which code or files that "
            "this world names would be used; if you trust it, name it in the command: worldmodel play RUN --trust-env"
        )


class Reality:
    """A real environment, as `Companion` calls it in a process of its own.

    Args:
        recipe: how it is built; see `EnvConfig.from_recipe`.
    """

    def __init__(self, recipe: Mapping[str, Any]):
        self.env = EnvConfig.from_recipe(recipe).make()

    def action_space(self) -> gym.Space:
        """Return the space of its actions."""
        return self.env.action_space

    def reset(self, seed: int) -> Any:
        """Start an episode and return its first observation."""
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> tuple[Any, float, bool]:
        """Take a step and return observation, reward and whether the episode has ended."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, float(reward), bool(terminated or truncated)

    def close(self) -> None:
        """Close it."""
        self.env.close()


class Companion:
    """One episode of a real environment, which can go back: it is reset with the same seed and repeats its actions.

    The environment runs in a process of its own. If it hangs or crashes, this costs that process.

    Args:
        page: content of a world's ``page.json``.
        trusted: build the environment even if that imports code that the world names; see `check_trusted`.

    Raises:
        ValueError: if the world does not record how its environment is built, it is not trusted, or the environment has other
            spaces now.
        RemoteError: if the environment cannot be built.
    """

    def __init__(self, page: Mapping[str, Any], *, trusted: bool = False):
        recipe = page.get("environment")
        if not recipe:
            raise ValueError("environment: expected a record of how it is built, got none in this world; dream without it")
        kinds = {"env": str, "env_kwargs": dict, "wrappers": list, "action_repeat": int}
        known = isinstance(recipe, dict) and "env" in recipe
        if not known or not all(isinstance(recipe.get(name, kind()), kind) for name, kind in kinds.items()):
            raise ValueError(f"environment: expected id, arguments and wrappers, got {recipe!r}")
        if not trusted:
            check_trusted(recipe)
        self.observation_space = space_from_json(page["observation_space"])
        self.action_space = space_from_json(page["action_space"])
        self.env = RemoteObject(functools.partial(Reality, recipe), name="environment", seconds=BUILD_SECONDS)
        self.seed, self.actions, self.total, self.ended = 0, list[Any](), 0.0, False
        found = self.env.call("action_space", seconds=STEP_SECONDS)
        if found != self.action_space:
            self.close()
            raise ValueError(f"environment: expected the action space {self.action_space}, got {found}")

    def start(self, seed: int) -> Message:
        """Reset with a seed in [0, 2^31); return the leaves of the first observation."""
        self.seed, self.actions, self.total, self.ended = seed, [], 0.0, False
        return self._as_json(self.env.call("reset", seed, seconds=BUILD_SECONDS))

    def act(self, action: Mapping[str, Any]) -> Message:
        """Take a step.

        Args:
            action: the numbers of each leaf, by its name in the exported step.

        Returns:
            Observation, reward, return so far, and whether the episode has ended.

        Raises:
            ValueError: if the action is not in the action space, or the episode has ended.
        """
        if self.ended:
            raise ValueError("action: expected a running episode, got one that has ended; start a new one")
        value = self._action(action)
        if not self.action_space.contains(value):
            raise ValueError(f"action: expected a value of {self.action_space}, got {value}")
        return self._step(value)

    def back(self, steps: int) -> None:
        """Return to the state after ``steps`` steps.

        Raises:
            ValueError: if the episode has fewer.
        """
        if not 0 <= steps <= len(self.actions):
            raise ValueError(f"t: expected 0 to {len(self.actions)}, the steps of the real episode, got {steps}")
        actions = self.actions[:steps]
        self.start(self.seed)
        for action in actions:
            self._step(action)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _step(self, action: Any) -> Message:
        observation, reward, self.ended = self.env.call("step", action, seconds=STEP_SECONDS)
        self.actions.append(action)
        self.total += reward
        return {
            "observation": self._as_json(observation),
            "reward": reward,
            "total": self.total,
            "ended": self.ended,
        }

    def _as_json(self, observation: Any) -> Message:
        """Return the leaves that V encodes: lists of numbers, or bytes in base64 for images and other large uint8 arrays."""
        found = leaf_values(select_leaves(self.observation_space, observation))
        leaf: Message = {}
        for path, _ in leaves(self.observation_space):
            array = np.asarray(found[path])
            if array.dtype == np.uint8 and array.ndim > 1:
                leaf[leaf_name(path)] = {"base64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}
            else:
                leaf[leaf_name(path)] = array.reshape(-1).astype(float).tolist()
        return leaf

    def _action(self, action: Mapping[str, Any]) -> Any:
        found: dict[str, Any] = {}
        for path, space in leaves(self.action_space):
            name = f"action/{path}".rstrip("/")
            array = np.asarray(action.get(name, ())).reshape(-1)
            if array.size != max(1, int(np.prod(space.shape or ()))) or array.dtype.kind not in "iuf":
                raise ValueError(f"action: expected the numbers of {space} as {name!r}, got {action.get(name)!r}")
            value = array.astype(space.dtype).reshape(space.shape or ())
            found[path] = value[()] if isinstance(space, spaces.Discrete) else value
        return build_value(self.action_space, found)
