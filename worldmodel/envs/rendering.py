"""Render observations, real or dreamed, as RGB images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from worldmodel.models import WorldModel
from worldmodel.spaces import Value, find_images, leaf_values

BAR_WIDTH, BAR_HEIGHT, BAR_GAP = 320, 16, 4  # pixels
BACKGROUND, AXIS, BAR = (255, 255, 255), (120, 120, 120), (46, 110, 180)


class ObservationRenderer:
    """Renderer of single observations as RGB images.

    An image observation (the first image of a Dict) is shown unchanged. For Gymnasium's classic
    control environments, the real environment is set to the state of the observation and renders it
    (needs ``gymnasium[classic-control]``). Any other observation becomes one bar per latent
    dimension, scaled to the range to which dreams clip it.

    Args:
        world: the world model; it determines the observation space and, by its provenance, the
            environment.
    """

    def __init__(self, world: WorldModel):
        self._world = world
        self._image = next(iter(find_images(world.observation_space)), None)
        recipe: dict[str, Any] = next(iter(world.provenance.get("recipes", [])), {})
        self._env_id: str = recipe.get("env", "").rpartition(":")[2]  # also of "module:Id-v0"
        self._env: gym.Env | None = None

    def __call__(self, observation: Value) -> np.ndarray:
        """Render one observation: (height, width, 3) uint8."""
        if self._image is not None:
            image = torch.as_tensor(leaf_values(observation)[self._image.path])
            return self._image.to_rgb(image.unsqueeze(0))[0].contiguous().numpy()
        env = self._classic_env()
        if env is None:
            return self._draw_bars(observation)
        return self._draw_classic(env, np.asarray(observation, dtype=np.float64))

    def close(self) -> None:
        """Close the rendering environment, if any."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _classic_env(self) -> gym.Env | None:
        """Return the rendering environment; None unless it is classic control without a wrapper.

        A wrapper is detected by another observation space.
        """
        if self._env is None and self._env_id in CLASSIC:
            env = gym.make(self._env_id, render_mode="rgb_array").unwrapped
            env.reset(seed=0)
            if env.observation_space == self._world.observation_space:
                self._env = env
            else:
                env.close()
                self._env_id = ""
        return self._env

    def _draw_classic(self, env: gym.Env, observation: np.ndarray) -> np.ndarray:
        env.state = CLASSIC[self._env_id](observation)  # type: ignore[attr-defined]
        frame = env.render()
        assert isinstance(frame, np.ndarray)
        return frame

    def _draw_bars(self, observation: Value) -> np.ndarray:
        mean, _ = self._world.vision.encode(observation)  # the mean, so that rendering is deterministic
        model = self._world.mdnrnn
        z, low, high = (part.detach().cpu().numpy() for part in (mean, model.latent_low, model.latent_high))  # (D,) each
        scaled = np.where(np.isfinite(high - low), (z - low) / np.where(high > low, high - low, 1.0), 0.5 + np.tanh(z) / 2)
        frame = np.full((BAR_GAP + len(z) * (BAR_HEIGHT + BAR_GAP), BAR_WIDTH, 3), BACKGROUND, dtype=np.uint8)
        middle = BAR_WIDTH // 2
        frame[:, middle] = AXIS
        for row, fraction in enumerate(np.clip(scaled, 0, 1)):
            top = BAR_GAP + row * (BAR_HEIGHT + BAR_GAP)
            end = round(fraction * (BAR_WIDTH - 1))
            frame[top : top + BAR_HEIGHT, min(middle, end) : max(middle, end) + 1] = BAR
        return frame


def _pendulum(observation: np.ndarray) -> np.ndarray:
    cosine, sine, velocity = observation
    return np.array([math.atan2(sine, cosine), velocity])


def _acrobot(observation: np.ndarray) -> np.ndarray:
    c1, s1, c2, s2, *velocities = observation
    return np.array([math.atan2(s1, c1), math.atan2(s2, c2), *velocities])


CLASSIC: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # environment id -> function from observation to state
    "CartPole-v1": np.array,
    "Pendulum-v1": _pendulum,
    "Acrobot-v1": _acrobot,
    "MountainCar-v0": np.array,
    "MountainCarContinuous-v0": np.array,
}
