"""Pictures of observations, real or dreamed: an image as it is, classic control as the real environment draws it, else bars."""

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
    """Draws single observations of a world model's environment as RGB images.

    An image observation (the first one of a Dict) is shown as it is. For the classic control environments of Gymnasium, the
    real environment is put into the state that the observation tells of, and draws it (needs ``gymnasium[classic-control]``).
    Any other observation becomes one bar per number, from the least to the most that a dream may hold.

    Args:
        world: says the observation space and, by its provenance, the environment.
    """

    def __init__(self, world: WorldModel):
        self._world = world
        self._image = next(iter(find_images(world.observation_space)), None)
        recipe: dict[str, Any] = next(iter(world.provenance.get("recipes", [])), {})
        self._env_id: str = recipe.get("env", "").rpartition(":")[2]  # of "module:Id-v0" as well
        self._env: gym.Env | None = None

    def __call__(self, observation: Value) -> np.ndarray:
        """Draw one observation: (height, width, 3) uint8."""
        if self._image is not None:
            image = torch.as_tensor(leaf_values(observation)[self._image.path])
            return self._image.to_rgb(image.unsqueeze(0))[0].contiguous().numpy()
        env = self._classic_env()
        if env is None:
            return self._draw_bars(observation)
        return self._draw_classic(env, np.asarray(observation, dtype=np.float64))

    def close(self) -> None:
        """Close the environment that draws, if there is one."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _classic_env(self) -> gym.Env | None:
        """The environment that draws; None where there is none, or the observations are not its own but a wrapper's."""
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
        mean, _ = self._world.vision.encode(observation)  # a picture draws nothing at random
        model = self._world.mdnrnn
        z, low, high = (part.detach().cpu().numpy() for part in (mean, model.latent_low, model.latent_high))  # (D,) each
        share = np.where(np.isfinite(high - low), (z - low) / np.where(high > low, high - low, 1.0), 0.5 + np.tanh(z) / 2)
        frame = np.full((BAR_GAP + len(z) * (BAR_HEIGHT + BAR_GAP), BAR_WIDTH, 3), BACKGROUND, dtype=np.uint8)
        middle = BAR_WIDTH // 2
        frame[:, middle] = AXIS
        for row, part in enumerate(np.clip(share, 0, 1)):
            top = BAR_GAP + row * (BAR_HEIGHT + BAR_GAP)
            end = round(part * (BAR_WIDTH - 1))
            frame[top : top + BAR_HEIGHT, min(middle, end) : max(middle, end) + 1] = BAR
        return frame


def _pendulum(observation: np.ndarray) -> np.ndarray:
    cosine, sine, velocity = observation
    return np.array([math.atan2(sine, cosine), velocity])


def _acrobot(observation: np.ndarray) -> np.ndarray:
    c1, s1, c2, s2, *velocities = observation
    return np.array([math.atan2(s1, c1), math.atan2(s2, c2), *velocities])


CLASSIC: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # environment -> its state as a function of the observation
    "CartPole-v1": np.array,
    "Pendulum-v1": _pendulum,
    "Acrobot-v1": _acrobot,
    "MountainCar-v0": np.array,
    "MountainCarContinuous-v0": np.array,
}
