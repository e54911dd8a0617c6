"""Real environments whose observations are z, (z, h) or (z, h, c): `LatentEnv`, and `LatentVectorEnv` for vector environments.

A `LatentTracker` encodes each observation and advances M exactly once per step; M's state is reset with the episode. So an
agent that was trained in `DreamEnv` or `DreamVectorEnv` runs in the real environment unchanged, and vice versa.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from worldmodel.dream import LatentTracker, rows_to_reset
from worldmodel.models import FeatureKind, WorldModel, feature_space, open_world
from worldmodel.spaces import Value, as_tuples, map_leaves, select_leaves, stack_values


class LatentEnv(gym.Wrapper[np.ndarray, Any, Any, Any], RecordConstructorArgs):
    """A real environment whose observations are the features of a world model.

    Args:
        env: the real environment.
        world: V and M, or the path of a world model.
        features: "z", "zh" or "zhc".

    Raises:
        ValueError: if the spaces are not the world model's.
    """

    def __init__(self, env: gym.Env[Any, Any], world: WorldModel | str | Path, *, features: FeatureKind = "zh"):
        RecordConstructorArgs.__init__(self, world=world, features=features)  # for `gym.make(env.spec)`
        gym.Wrapper.__init__(self, env)
        world = open_world(world)
        world.check_spaces(env.observation_space, env.action_space, source="env")
        self._tracker, self._features = LatentTracker(world), features
        self.observation_space = feature_space(world, features)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; ``seed`` is the seed of the environment and of V's noise."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._tracker.reset(seed=[seed])
        self._tracker.observe(self._batch_of_one(observation))
        return _features(self._tracker, self._features)[0], info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step the environment and advance M once."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        last_action = stack_values([as_tuples(self.action_space, action)])
        self._tracker.observe(self._batch_of_one(observation), last_action)
        return _features(self._tracker, self._features)[0], reward, terminated, truncated, info

    def _batch_of_one(self, observation: Value) -> Value:
        """The leaves of V's space of an observation, as a batch."""
        return stack_values([select_leaves(self._tracker.world.observation_space, observation)])


class LatentVectorEnv(VectorWrapper):
    """A real vector environment, in any autoreset mode, whose observations are the features of a world model.

    Args:
        env: the real vector environment, with NumPy observations and its mode in ``metadata["autoreset_mode"]``.
        world: V and M, or the path of a world model.
        features: "z", "zh" or "zhc".

    Raises:
        ValueError: if the spaces are not the world model's, or the environment does not declare its autoreset mode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], world: WorldModel | str | Path, *, features: FeatureKind = "zh"):
        super().__init__(env)
        world = open_world(world)
        world.check_spaces(env.single_observation_space, env.single_action_space, source="env")
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(f'env: expected metadata["autoreset_mode"] to be an AutoresetMode, got {mode!r}')
        self.autoreset_mode = mode
        self._tracker, self._features = LatentTracker(world, env.num_envs), features
        self.single_observation_space = feature_space(world, features)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._over = np.zeros(env.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes in all rows, or in those of ``options["reset_mask"]``; the options are not modified."""
        options = dict(options or {})
        mask = rows_to_reset({k: v for k, v in options.items() if k == "reset_mask"}, self.num_envs, torch.device("cpu"))
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._tracker.reset(seed=seed, mask=mask)
        self._tracker.observe(observations)
        self._over = self._over & ~mask.numpy()
        return _features(self._tracker, self._features), infos

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Step the environments and advance M once in every running episode."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = np.asarray(terminations) | np.asarray(truncations)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            observations = select_leaves(self._tracker.world.observation_space, observations)
            self._tracker.observe(self._with_final(observations, infos, ended), actions)
            if ended.any():
                infos = self._final_features(infos, ended)
                self._tracker.reset(mask=ended)
                self._tracker.observe(observations)
        else:
            if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._over.any():
                self._tracker.reset(mask=self._over)
            self._tracker.observe(observations, actions)
        self._over = ended
        return _features(self._tracker, self._features), rewards, terminations, truncations, infos

    def _with_final(self, observations: Value, infos: dict[str, Any], ended: np.ndarray) -> Value:
        """Return the observations that the actions led to: ``final_obs`` in rows whose episode ended and was reset."""
        if not ended.any():
            return observations
        led_to = map_leaves(np.array, observations)
        for k in np.flatnonzero(ended):
            final = select_leaves(self._tracker.world.observation_space, infos["final_obs"][k])
            map_leaves(lambda leaf, last, k=k: leaf.__setitem__(k, last), led_to, final)
        return led_to

    def _final_features(self, infos: dict[str, Any], ended: np.ndarray) -> dict[str, Any]:
        """Return the infos with features in ``final_obs``, one array for each row that ended."""
        features, final = _features(self._tracker, self._features), np.full(self.num_envs, None, dtype=object)
        for k in np.flatnonzero(ended):
            final[k] = features[k]
        return {**infos, "final_obs": final}


def _features(tracker: LatentTracker, kind: FeatureKind) -> np.ndarray:
    """Features of all rows: (B, F) float32, in new memory."""
    return tracker.state.features(kind).float().cpu().numpy().copy()
