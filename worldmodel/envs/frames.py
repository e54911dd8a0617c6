"""Wrapper that puts stacked frames on the channel axis, where V expects them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.spaces import Value, has_image_shape


class FramesAsChannels(gym.ObservationWrapper[Any, Any, Any]):
    """Join stacked images along their channels: (N, H, W, C) becomes (H, W, N C), and (N, C, H, W) becomes (N C, H, W).

    For environments under ``gymnasium.wrappers.FrameStackObservation``. Grey frames (N, H, W) need no
    wrapper: N counts as their channel axis.

    Args:
        env: an environment whose observation is such a stack, or a Dict that holds one; other leaves are unchanged.

    Raises:
        ValueError: if no leaf is a stack of images.
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self.observation_space = _joined_space(env.observation_space)
        if self.observation_space == env.observation_space:
            raise ValueError(
                f"env: expected stacked images, such as uint8 of shape (4, 64, 64, 3), got {env.observation_space}"
            )

    def observation(self, observation: Value) -> Value:
        """Join the frames of an observation."""
        return _joined(self.env.observation_space, observation)


def _is_stack(space: gym.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 4 and has_image_shape(space.shape[1:])


def _join(frames: np.ndarray) -> np.ndarray:
    n, first, middle, last = frames.shape
    if last < min(first, middle):
        return frames.transpose(1, 2, 0, 3).reshape(first, middle, n * last)
    return frames.reshape(n * first, middle, last)


def _joined(space: gym.Space, value: Value) -> Value:
    if isinstance(space, spaces.Dict):
        return {key: _joined(child, value[key]) for key, child in space.spaces.items()}
    return _join(np.asarray(value)) if _is_stack(space) else value


def _joined_space(space: gym.Space) -> gym.Space:
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _joined_space(child) for key, child in space.spaces.items()})
    if not _is_stack(space):
        return space
    assert isinstance(space, spaces.Box)
    return spaces.Box(_join(space.low), _join(space.high), dtype=space.dtype.type)
