"""Random values of a space from its own generator."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.spaces.nested import Value

LARGEST = 2**63 - 1


def sample_value(space: gym.Space) -> Value:
    """Sample one value as Gymnasium's ``Space.sample`` does, and also where that overflows.

    Gymnasium adds 1 to the upper bounds of integers in int64. For bounds of 2^63 - 1 and above it raises an error, or returns
    the lower bound each time. Here a Box of integers with such a bound is uniform between its bounds.

    Args:
        space: any space; its own generator is used.

    Returns:
        A value of the space.
    """
    if isinstance(space, spaces.Dict):
        return {key: sample_value(child) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(sample_value(child) for child in space.spaces)
    if isinstance(space, spaces.Box) and space.dtype.kind in "iu":
        both = space.bounded_below & space.bounded_above
        if (both & (space.high >= LARGEST)).any():
            return np.asarray(space.np_random.integers(space.low, space.high, endpoint=True, dtype=space.dtype))
    return space.sample()
