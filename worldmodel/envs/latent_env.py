"""The real environment as an agent sees a dream: observations become z, (z, h) or (z, h, c), single (`LatentEnv`) and vector.

V encodes each observation and M is advanced exactly once per step, by what really happened; its state is reset with the
episode. So a policy that was trained in `DreamEnv` or `DreamVectorEnv` moves to reality untouched, and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor

from worldmodel.dream import LatentTracker, rows_to_reset
from worldmodel.models import FeatureKind, WorldModel, open_world
from worldmodel.spaces import Value, map_leaves, stack_values


class LatentEnv(gym.Wrapper[np.ndarray, Any, Any, Any]):
    """A real environment whose observations are the features of a world model.

    Args:
        env: the real environment.
        world: V and M, or the path of a world model.
        features: "z", "zh" or "zhc".

    Raises:
        ValueError: if the spaces are not the world model's.
    """

    def __init__(self, env: gym.Env[Any, Any], world: WorldModel | str | Path, *, features: FeatureKind = "zh"):
        super().__init__(env)
        world = open_world(world)
        world.check_spaces(env.observation_space, env.action_space, source="env")
        self._tracker = LatentTracker(world, 1, features)
        self.observation_space = self._tracker.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; ``seed`` is of the environment and of the draws of z."""
        observation, info = self.env.reset(seed=seed, options=options)
        everyone = torch.ones(1, dtype=torch.bool, device=self._tracker.world.device)
        self._tracker.reseed([seed], everyone)
        self._tracker.begin(everyone, stack_values([observation]))
        return self._tracker.features()[0], info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step the environment and advance M once."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._tracker.advance(stack_values([action]), stack_values([observation]))
        return self._tracker.features()[0], reward, terminated, truncated, info


class LatentVectorEnv(VectorWrapper):
    """A real vector environment, in any autoreset mode, whose observations are the features of a world model.

    Args:
        env: the real vector environment, with NumPy observations; ``metadata["autoreset_mode"]`` says its mode.
        world: V and M, or the path of a world model.
        features: "z", "zh" or "zhc".

    Raises:
        ValueError: if the spaces are not the world model's, or the environment does not say its autoreset mode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], world: WorldModel | str | Path, *, features: FeatureKind = "zh"):
        super().__init__(env)
        world = open_world(world)
        world.check_spaces(env.single_observation_space, env.single_action_space, source="env")
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(f'env: expected metadata["autoreset_mode"] to be an AutoresetMode, got {mode!r}')
        self.autoreset_mode = mode
        self._tracker = LatentTracker(world, env.num_envs, features)
        self.single_observation_space = self._tracker.space
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._over = np.zeros(env.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes, in all rows or in those of ``options["reset_mask"]``; the options are not written to."""
        options = dict(options or {})
        mask = rows_to_reset({k: v for k, v in options.items() if k == "reset_mask"}, self.num_envs, torch.device("cpu"))
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._tracker.reseed(seed, self._mask(mask.numpy()))
        self._tracker.begin(self._mask(mask.numpy()), observations)
        self._over = self._over & ~mask.numpy()
        return self._tracker.features(), infos

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Step the environments and advance M once, where an episode goes on."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = np.asarray(terminations) | np.asarray(truncations)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._tracker.advance(actions, _with_final(observations, infos, ended))
            infos = self._final_features(infos, ended)
            self._tracker.begin(self._mask(ended), observations)
        else:
            self._tracker.advance(actions, observations)
            if self.autoreset_mode is AutoresetMode.NEXT_STEP:
                self._tracker.begin(self._mask(self._over), observations)
        self._over = ended
        return self._tracker.features(), rewards, terminations, truncations, infos

    def _mask(self, rows: np.ndarray) -> Tensor:
        return torch.as_tensor(rows, device=self._tracker.world.device)

    def _final_features(self, infos: dict[str, Any], ended: np.ndarray) -> dict[str, Any]:
        """The infos with features for ``final_obs``, one array for each row that ended."""
        if not ended.any():
            return infos
        features, final = self._tracker.features(), np.full(self.num_envs, None, dtype=object)
        for k in np.flatnonzero(ended):
            final[k] = features[k]
        return {**infos, "final_obs": final}


def _with_final(observations: Value, infos: dict[str, Any], ended: np.ndarray) -> Value:
    """The observations that the actions led to: those of ``final_obs`` where an episode ended, which was reset since."""
    if not ended.any():
        return observations
    led_to = map_leaves(np.array, observations)
    for k in np.flatnonzero(ended):
        map_leaves(lambda leaf, final, k=k: leaf.__setitem__(k, final), led_to, infos["final_obs"][k])
    return led_to
