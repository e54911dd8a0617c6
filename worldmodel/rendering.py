"""Pictures of observations, real or dreamed: an image as it is, classic control as the real environment draws it, else bars."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.spaces import FlatSpace, Value, leaf_values, leaves
from worldmodel.world import WorldModel

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
        self._image = next((path for path, space in leaves(world.observation_space) if _is_image(space)), None)
        recipe: dict[str, Any] = next(iter(world.provenance.get("recipes", [])), {})
        self._env_id: str = recipe.get("env", "")
        self._env: gym.Env | None = None

    def __call__(self, observation: Value) -> np.ndarray:
        """Draw one observation: (height, width, 3) uint8."""
        if self._image is not None:
            return _as_rgb(np.asarray(leaf_values(observation)[self._image]))
        env = self._classic_env()
        return (
            self._draw_bars(observation) if env is None else self._draw_classic(env, np.asarray(observation, dtype=np.float64))
        )

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
        flat = FlatSpace(self._world.observation_space)
        natural = flat.flatten(observation).numpy()
        low, high = (self._world.mdnrnn.latent_low.cpu().numpy(), self._world.mdnrnn.latent_high.cpu().numpy())
        z = self._world.encode(observation).cpu().numpy()
        share = np.where(np.isfinite(high - low), (z - low) / np.where(high > low, high - low, 1.0), 0.5 + np.tanh(z) / 2)
        frame = np.full((BAR_GAP + len(natural) * (BAR_HEIGHT + BAR_GAP), BAR_WIDTH, 3), BACKGROUND, dtype=np.uint8)
        middle = BAR_WIDTH // 2
        frame[:, middle] = AXIS
        for row, part in enumerate(np.clip(share, 0, 1)):
            top = BAR_GAP + row * (BAR_HEIGHT + BAR_GAP)
            end = round(part * (BAR_WIDTH - 1))
            frame[top : top + BAR_HEIGHT, min(middle, end) : max(middle, end) + 1] = BAR
        return frame


def _is_image(space: gym.Space) -> bool:
    """Whether a leaf is a grey or colour image of bytes, channels first or last."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return False
    return len(space.shape) == 2 or space.shape[0] in (1, 3) or space.shape[-1] in (1, 3)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """Turn (H, W), (H, W, 1 or 3) or (1 or 3, H, W) bytes into (H, W, 3)."""
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] not in (1, 3):
        image = np.moveaxis(image, 0, -1)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


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
