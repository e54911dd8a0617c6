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

from worldmodel.episode import stack_values
from worldmodel.features import FeatureKind, feature_space, latent_features
from worldmodel.mdnrnn import State
from worldmodel.seeding import EpisodeSeeds, Rows, rows_to_reset
from worldmodel.spaces import Value, map_leaves
from worldmodel.vision import draw_latent
from worldmodel.world import WorldModel, open_world


class LatentTracker:
    """z and M's state for B real episodes, kept in step with what happens.

    Args:
        world: V and M.
        num_rows: B.
        features: the kind of features: "z", "zh" or "zhc".

    Raises:
        ValueError: if ``features`` is unknown.
    """

    def __init__(self, world: WorldModel, num_rows: int, features: FeatureKind):
        self.world, self.kind = world, features
        self.space = feature_space(world, features)
        self._seeds = EpisodeSeeds(num_rows, world.device)
        self._z = world.start_mean.new_zeros(num_rows, world.vision.latent_size)
        self._lstm = world.mdnrnn.initial_state(num_rows)

    def reseed(self, seed: int | Sequence[int | None] | None, mask: Tensor) -> None:
        """Give seeds to the draws of z, as `EpisodeSeeds.reseed` does, with which the environment's own are left alone."""
        self._seeds.reseed(seed, mask, np.random.default_rng())

    @torch.no_grad()
    def begin(self, mask: Tensor, observations: Value) -> None:
        """Begin episodes in the rows of ``mask`` (B,) bool, with theirs of the ``observations``, a batch of B."""
        rows = Rows(mask)
        if rows.count == 0:
            return
        streams = self._seeds.begin(rows)
        z = draw_latent(*(rows.take(part) for part in self._encode(observations)), generator=streams)
        zeros = self.world.mdnrnn.initial_state(rows.count)
        self._z = rows.put(self._z, z)
        self._lstm = State(*(rows.put(*parts, dim=1) for parts in zip(self._lstm, zeros, strict=True)))
        self._seeds.adopt(rows, streams)

    @torch.no_grad()
    def advance(self, actions: Value, observations: Value) -> None:
        """Take in one step of every row: the ``actions`` that were taken and the ``observations`` that they led to."""
        action = self.world.action_features.flatten(actions)
        self._lstm = self.world.mdnrnn.advance(self._z, action, self._lstm)
        self._z = draw_latent(*self._encode(observations), generator=self._seeds.streams)

    def _encode(self, observations: Value) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of z, (B, D) each, of observations that must be finite."""
        mean, log_variance = self.world.vision.encode(observations)
        finite = mean.isfinite().all(dim=-1)
        if not bool(finite.all()):
            raise ValueError(f"env: expected finite observations, got NaN or infinity in row {int(finite.int().argmin())}")
        return mean, log_variance

    def features(self) -> np.ndarray:
        """What the agent sees: (B, F) float32, in fresh memory."""
        return latent_features(self._z, self._lstm, self.kind).float().cpu().numpy().copy()


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
