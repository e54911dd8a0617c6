"""A real environment that follows a dream: the same start, the same actions, and the same steps back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data import EnvConfig
from worldmodel.play.description import leaf_name
from worldmodel.spaces import build_value, leaf_values, leaves, select_leaves, space_from_json

Message = dict[str, Any]


class Companion:
    """One episode of a real environment, which can go back: it is reset with the same seed and repeats its actions.

    Args:
        page: content of a world's ``page.json``.

    Raises:
        ValueError: if the world does not record how its environment is built, or the environment cannot be built or has other
            spaces now.
    """

    def __init__(self, page: Mapping[str, Any]):
        recipe = page.get("environment")
        if not recipe:
            raise ValueError("environment: expected a record of how it is built, got none in this world; dream without it")
        self.observation_space = space_from_json(page["observation_space"])
        self.action_space = space_from_json(page["action_space"])
        config = EnvConfig(recipe["env"], recipe.get("env_kwargs", {}), action_repeat=recipe.get("action_repeat", 1))
        self.env: gym.Env = config.make()
        if self.env.action_space != self.action_space:
            self.env.close()
            raise ValueError(f"environment: expected the action space {self.action_space}, got {self.env.action_space}")
        self.seed, self.actions, self.total, self.ended = 0, list[Any](), 0.0, False

    def start(self, seed: int) -> Message:
        """Reset with a seed in [0, 2^31); return the leaves of the first observation."""
        self.seed, self.actions, self.total, self.ended = seed, [], 0.0, False
        return self._as_json(self.env.reset(seed=seed)[0])

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
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.actions.append(action)
        self.total += float(reward)
        self.ended = bool(terminated or truncated)
        return {
            "observation": self._as_json(observation),
            "reward": float(reward),
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
