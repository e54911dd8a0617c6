"""Stable-Baselines3 in dreams and in latent reality: any vector environment in SAME_STEP mode as SB3's `VecEnv`.

`SB3VecEnv` hands on what the environment gives, at once for all rows, and says in SB3's words how episodes ended. `SB3Policy`
goes the other way: it makes a trained agent one that `worldmodel.evaluate` scores in dream and reality.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from worldmodel.models import FEATURE_KINDS, FeatureKind, WorldModel, feature_size
from worldmodel.spaces import Value

try:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError("stable_baselines3: expected the package to be installed; `pip install worldmodel[sb3]`") from error


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment as Stable-Baselines3 wants it.

    The info of row k holds what the environment says of k (in a dream with a range of temperatures, ``temperature``),
    ``TimeLimit.truncated``, and at an episode's end ``terminal_observation``; ``reset_infos[k]`` is that of the new episode.

    Args:
        env: in SAME_STEP mode, with NumPy observations: `DreamVectorEnv`, `LatentVectorEnv`, or any other.

    Raises:
        ValueError: if the environment resets itself in another way, or gives tensors.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]):
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f'env: expected the autoreset mode SAME_STEP, got {mode!r}; make it with autoreset_mode="SameStep" (a dream) '
                'or vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP} (gym.make_vec)'
            )
        if getattr(env, "tensors", False):
            raise ValueError("env: expected NumPy observations, got tensors; make the dream with tensors=False")
        self.env = env
        self._actions: Value = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Begin an episode in every row, with the seeds and options that `seed` and `set_options` left for it.

        Raises:
            ValueError: if the rows have different options.
        """
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        if any(options != self._options[0] for options in self._options):
            raise ValueError(f"set_options: expected the same options for all environments, got {self._options}")
        observations, infos = self.env.reset(seed=seeds, options=self._options[0] or None)  # type: ignore[arg-type]
        self.reset_infos = _split(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions (B, ...) for `step_wait`."""
        self._actions = _as_bits(actions, self.action_space)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all rows: observations, rewards (B,) float32, dones (B,) and infos."""
        observations, rewards, terminations, truncations, infos = self.env.step(self._actions)
        dones, rows = terminations | truncations, _split(infos, self.num_envs)
        for k in np.flatnonzero(dones):
            final = rows[k].pop("final_info", {}) | {"terminal_observation": rows[k].pop("final_obs")}
            self.reset_infos[k], rows[k] = rows[k], final
        for row, terminated, truncated in zip(rows, terminations, truncations, strict=True):
            row["TimeLimit.truncated"] = bool(truncated and not terminated)
        return observations, np.asarray(rewards, dtype=np.float32), dones, rows

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One picture for each row; None without a render mode."""
        return self.env.render() or [None] * self.num_envs  # type: ignore[return-value]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vector environment, which all rows share, once for each of ``indices``."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment, for all rows.

        Raises:
            ValueError: if ``indices`` are of some rows only.
        """
        self._check_all(self._get_indices(indices), attr_name)
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the vector environment once; its result, which all rows share, once for each row.

        Raises:
            ValueError: if ``indices`` are of some rows only.
        """
        self._check_all(self._get_indices(indices), method_name)
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """Whether each of the single environments has such a wrapper; dreams are not made of single environments."""
        single = getattr(self.env.unwrapped, "envs", None)
        return [single is not None and is_wrapped(single[k], wrapper_class) for k in self._get_indices(indices)]

    def _check_all(self, indices: Iterable[int], name: str) -> None:
        if sorted(indices) != list(range(self.num_envs)):
            raise ValueError(f"indices: expected None, as all {self.num_envs} environments share one {name!r}, got {indices}")


class SB3Policy:
    """A trained Stable-Baselines3 agent as a policy on features, for `evaluate`, `Dreams` and `Reality`.

    Args:
        model: an agent that was trained on features of the world: z, (z, h) or (z, h, c); their number tells which.
        world: the world model.
        deterministic: take the likeliest action, not a draw from torch's global generator.

    Raises:
        ValueError: if the agent's spaces are not those of the world.

    Attributes:
        features: the kind of features that the agent was trained on.
    """

    features: FeatureKind

    def __init__(self, model: BaseAlgorithm, world: WorldModel, *, deterministic: bool = True):
        sizes = {feature_size(world, kind): kind for kind in FEATURE_KINDS}
        shape, actions = model.observation_space.shape, model.action_space
        if shape is None or len(shape) != 1 or shape[0] not in sizes:
            offered = ", ".join(f"({size},) for {kind!r}" for size, kind in sizes.items())
            raise ValueError(f"model: expected an agent for features of this world, {offered}, got one for {shape}")
        if actions != world.action_space:
            raise ValueError(f"model: expected actions of {world.action_space}, got {actions}")
        self.features, self._size = sizes[shape[0]], shape[0]
        self._model, self._deterministic = model, deterministic

    def __call__(self, features: Tensor) -> Value:
        """Choose actions for features (B, F).

        Raises:
            ValueError: if F is not what the agent was trained on.
        """
        if features.ndim != 2 or features.shape[1] != self._size:
            raise ValueError(f"features: expected (B, {self._size}), which are {self.features!r}, got {tuple(features.shape)}")
        actions, _ = self._model.predict(features.cpu().numpy(), deterministic=self._deterministic)
        return torch.as_tensor(_as_bits(actions, self._model.action_space), device=features.device)


def _as_bits(actions: np.ndarray, space: gym.Space[Any]) -> np.ndarray:
    """Actions as they are, but those of a MultiBinary space, which SB3 gives as floating-point zeros and ones, as integers."""
    return np.asarray(actions).astype(space.dtype) if isinstance(space, spaces.MultiBinary) else actions


def _split(infos: dict[str, Any], num_rows: int) -> list[dict[str, Any]]:
    """The infos of each row, where ``_name`` says which rows ``name`` is of; nested infos too."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_rows)]
    for name, value in infos.items():
        if name.startswith("_"):
            continue
        there = infos.get(f"_{name}", np.ones(num_rows, dtype=bool))
        values = _split(value, num_rows) if isinstance(value, dict) else value
        for k in np.flatnonzero(there):
            rows[k][name] = values[k]
    return rows
