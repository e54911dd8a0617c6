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
from gymnasium.vector import AutoresetMode, VectorEnv, VectorObservationWrapper, VectorWrapper
from torch import Tensor

from worldmodel.envs import LatentEnv, LatentVectorEnv
from worldmodel.models import FEATURE_KINDS, FeatureKind, FeatureSpace, WorldModel, check_features, feature_size, feature_space
from worldmodel.runtime import missing_extra
from worldmodel.spaces import Value

try:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, VecTransposeImage
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
        """Set an attribute of the vector environment, for all rows: of the wrapper that has it, else of the innermost one.

        Raises:
            ValueError: if ``indices`` are not all rows.
            AttributeError: if it cannot be set, as most options of a dream.
        """
        self._check_all(self._get_indices(indices), attr_name)
        setattr(self._owner(attr_name), attr_name, value)

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

    def _owner(self, name: str) -> Any:
        """Return the wrapper or environment that has an attribute of its own; on a wrapper it would shadow that one's."""
        layer: Any = self.env
        while isinstance(layer, VectorWrapper) and name not in vars(layer) and not hasattr(type(layer), name):
            layer = layer.env
        return layer

    def _check_all(self, indices: Iterable[int], name: str) -> None:
        if sorted(indices) != list(range(self.num_envs)):
            raise ValueError(f"indices: expected None, because all {self.num_envs} rows share one {name!r}, got {indices}")


class SB3Policy:
    """Trained SB3 agent as a policy on features, for `evaluate`, `Dreams` and `Reality`.

    Dreams and `LatentEnv` mark their space of observations with the kind of features and the world model that they come from,
    and SB3 saves the space with the agent. An agent from an earlier version, or trained in an environment of your own, has an
    unmarked space; then the bounds of the space decide, or ``features``.

    Args:
        model: an agent trained on features of the world: z, (z, h) or (z, h, c).
        world: the world model.
        deterministic: take the most likely action instead of sampling with torch's global generator.
        features: kind of features, for an agent whose space does not say it.
        normalizer: the `VecNormalize` of its training; None takes it from the agent's environment. It is applied to features.

    Raises:
        ValueError: if the agent was trained on decoded observations, in another world model, or behind a wrapper that changes
            observations and is not a VecNormalize; if its VecNormalize is missing, or its spaces are not those of the world.

    Attributes:
        features: kind of features on which the agent was trained.
    """

    features: FeatureKind

    def __init__(
        self,
        model: BaseAlgorithm,
        world: WorldModel,
        *,
        deterministic: bool = True,
        features: FeatureKind | None = None,
        normalizer: VecNormalize | None = None,
    ):
        if model.action_space != world.action_space:
            raise ValueError(f"model: expected the action space {world.action_space}, got {model.action_space}")
        self._space, self._model, self._deterministic = model.observation_space, model, deterministic
        self.features = _kind_of(self._space, world, features)
        self._size = feature_size(world, self.features)
        self._normalize = _normalizer_of(model, normalizer)
        self.check_world(world)

    def check_world(self, world: WorldModel) -> None:
        """Raise unless the agent was trained on features of this world model.

        Raises:
            ValueError: naming what differs.
        """
        if isinstance(self._space, FeatureSpace):
            self._space.origin.check(world, self.features, name="model")
        if feature_size(world, self.features) != self._size:
            raise ValueError(f"model: expected one on {feature_size(world, self.features)} features, got {self._size}")

    def __call__(self, features: Tensor) -> Value:
        """Return the actions for features (B, F).

        Raises:
            ValueError: if F is not the size on which the agent was trained.
        """
        if features.ndim != 2 or features.shape[1] != self._size:
            raise ValueError(f"features: expected (B, {self._size}) of kind {self.features!r}, got {tuple(features.shape)}")
        seen: Any = features.cpu().numpy()
        if self._normalize is not None:
            seen = self._normalize.normalize_obs(seen)
        actions, _ = self._model.predict(seen, deterministic=self._deterministic)
        return torch.as_tensor(_as_bits(actions, self._model.action_space), device=features.device)


def _kind_of(space: gym.Space[Any], world: WorldModel, features: FeatureKind | None) -> FeatureKind:
    """Return the kind of features of an agent's observations; raise if they are no features of the world."""
    marked = space.kind if isinstance(space, FeatureSpace) else None
    if features is not None:
        check_features(features)
        if marked not in (None, features) or space.shape != (feature_size(world, features),):
            raise ValueError(f"features: expected the kind of the agent's observations, {marked or space}, got {features!r}")
    chosen = marked or features
    if chosen is not None and space.shape == (feature_size(world, chosen),):
        return chosen
    offered = {kind: feature_space(world, kind) for kind in FEATURE_KINDS}
    fitting = [kind for kind, known in offered.items() if known == space]
    if fitting and space != world.observation_space:
        return fitting[0]
    wanted = ", ".join(f"{known.shape} for {kind!r}" for kind, known in offered.items())
    decoded = " (the space of observations: decoded or real ones)" if space == world.observation_space else ""
    same = [kind for kind, known in offered.items() if known.shape == space.shape]
    fix = f'; if these are features {same[0]!r} nevertheless, pass features="{same[0]}"' if same else ""
    raise ValueError(
        f"model: expected an agent on features of this world, {wanted}, got one on shape {space.shape}, {space}{decoded}; "
        f'train it in dreams with observation="zh", "z" or "zhc"{fix}'
    )


def _normalizer_of(model: BaseAlgorithm, given: VecNormalize | None) -> VecNormalize | None:
    """Return what normalises the observations of an agent; raise if that is lost, or not a VecNormalize."""
    env = model.get_env()
    if others := _observation_wrappers(env):
        raise ValueError(
            f"model: expected observations that only VecNormalize changes, got {', '.join(others)}; score the agent in that "
            "environment, or train it without"
        )
    found = given if given is not None else model.get_vec_normalize_env()
    if found is None and getattr(model, "_last_original_obs", None) is not None:
        raise ValueError(
            "normalizer: expected the VecNormalize that this agent was trained with, got none; pass "
            "normalizer=VecNormalize.load(path, env), or load the agent with its environment"
        )
    if found is not None and not isinstance(found, VecNormalize):
        raise ValueError(f"normalizer: expected a VecNormalize, got {type(found).__name__}")
    return found if found is not None and found.norm_obs else None


def _observation_wrappers(env: Any) -> list[str]:
    """Return the names of the wrappers of an agent's environment that change observations, except VecNormalize."""
    names, layers = [], [env]
    while layers:
        layer = layers.pop()
        if isinstance(layer, (VecTransposeImage, VecFrameStack, gym.ObservationWrapper, VectorObservationWrapper)):
            names.append(type(layer).__name__)
        inner = getattr(layer, "venv", None) or getattr(layer, "env", None)
        layers += [inner] if inner is not None else list(getattr(layer, "envs", ()))[:1]
        if isinstance(layer, (LatentEnv, LatentVectorEnv)):
            return names  # what is inside made the observations of the world, not the features
    return names


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
