"""Adapters to Stable-Baselines3 (extra ``sb3``).

`SB3VecEnv` wraps a vector environment, such as a batch of dreams, as an SB3 `VecEnv` for training.
`SB3Policy` wraps a trained SB3 agent as a policy that `worldmodel.evaluate` scores in dreams and in
the real environment.
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
from worldmodel.runtime import missing_extra
from worldmodel.spaces import Value

try:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise missing_extra("sb3") from error


class SB3VecEnv(VecEnv):
    """Gymnasium vector environment as a Stable-Baselines3 `VecEnv`.

    The info of row k holds the environment's infos of row k (``temperature`` in a dream with a
    range of temperatures) and ``TimeLimit.truncated``. At the end of an episode it also holds
    ``terminal_observation``, and ``reset_infos[k]`` holds the infos of the new episode.

    Args:
        env: `DreamVectorEnv`, `LatentVectorEnv` or another vector environment, in SAME_STEP mode,
            with NumPy observations.

    Raises:
        ValueError: if the autoreset mode is not SAME_STEP, or the environment returns tensors.
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
        """Start an episode in every row, with the seeds of `seed` and the options of `set_options`.

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
        """Store the actions (B, ...) for `step_wait`."""
        self._actions = _as_bits(actions, self.action_space)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all rows; return observations, rewards (B,) float32, dones (B,) bool and infos."""
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
        """Render one picture per row; None without a render mode."""
        return self.env.render() or [None] * self.num_envs  # type: ignore[return-value]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return the attribute of the vector environment once for each of ``indices``."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment, for all rows.

        Raises:
            ValueError: if ``indices`` are not all rows.
        """
        self._check_all(self._get_indices(indices), attr_name)
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the vector environment once; return its result, repeated for each row.

        ``compute_reward``, which has no state, may be called for some rows with a batch of any size, as the HER buffer does.

        Raises:
            ValueError: if ``indices`` are not all rows.
        """
        if method_name == "compute_reward":
            rewards = getattr(self.env, method_name)(*method_args, **method_kwargs)
            return [rewards] * len(list(self._get_indices(indices)))
        self._check_all(self._get_indices(indices), method_name)
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """Return for each row whether its single environment has this wrapper; False in dreams."""
        single = getattr(self.env.unwrapped, "envs", None)
        return [single is not None and is_wrapped(single[k], wrapper_class) for k in self._get_indices(indices)]

    def _check_all(self, indices: Iterable[int], name: str) -> None:
        if sorted(indices) != list(range(self.num_envs)):
            raise ValueError(f"indices: expected None, because all {self.num_envs} rows share one {name!r}, got {indices}")


class SB3Policy:
    """Trained SB3 agent as a policy on features, for `evaluate`, `Dreams` and `Reality`.

    Args:
        model: an agent trained on features of the world: z, (z, h) or (z, h, c). Their size
            determines the kind.
        world: the world model.
        deterministic: take the most likely action instead of sampling with torch's global
            generator.

    Raises:
        ValueError: if the agent's spaces differ from those of the world.

    Attributes:
        features: kind of features on which the agent was trained.
    """

    features: FeatureKind

    def __init__(self, model: BaseAlgorithm, world: WorldModel, *, deterministic: bool = True):
        sizes = {feature_size(world, kind): kind for kind in FEATURE_KINDS}
        shape, actions = model.observation_space.shape, model.action_space
        if shape is None or len(shape) != 1 or shape[0] not in sizes:
            offered = ", ".join(f"({size},) for {kind!r}" for size, kind in sizes.items())
            raise ValueError(f"model: expected an agent on features of this world, {offered}, got one on shape {shape}")
        if actions != world.action_space:
            raise ValueError(f"model: expected the action space {world.action_space}, got {actions}")
        self.features, self._size = sizes[shape[0]], shape[0]
        self._model, self._deterministic = model, deterministic

    def __call__(self, features: Tensor) -> Value:
        """Return the actions for features (B, F).

        Raises:
            ValueError: if F is not the size on which the agent was trained.
        """
        if features.ndim != 2 or features.shape[1] != self._size:
            raise ValueError(f"features: expected (B, {self._size}) of kind {self.features!r}, got {tuple(features.shape)}")
        actions, _ = self._model.predict(features.cpu().numpy(), deterministic=self._deterministic)
        return torch.as_tensor(_as_bits(actions, self._model.action_space), device=features.device)


def _as_bits(actions: np.ndarray, space: gym.Space[Any]) -> np.ndarray:
    """Convert MultiBinary actions, which SB3 returns as floats, to integers."""
    return np.asarray(actions).astype(space.dtype) if isinstance(space, spaces.MultiBinary) else actions


def _split(infos: dict[str, Any], num_rows: int) -> list[dict[str, Any]]:
    """Split infos, also nested ones, into one dict per row by their masks ``_name``."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_rows)]
    for name, value in infos.items():
        if name.startswith("_"):
            continue
        present = infos.get(f"_{name}", np.ones(num_rows, dtype=bool))
        values = _split(value, num_rows) if isinstance(value, dict) else value
        for k in np.flatnonzero(present):
            rows[k][name] = values[k]
    return rows
