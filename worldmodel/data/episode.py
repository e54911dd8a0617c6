"""The Episode record: L actions and what they led to, L+1 observations; and its validation against the spaces.

``actions[t]`` is taken at ``observations[t]`` and leads to ``observations[t+1]``, ``rewards[t]``, ``terminations[t]`` and
``truncations[t]``, as in Minari. A window cut out of an episode has the same shape and is an `Episode` too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.spaces import Value, leaf_bounds, leaf_values, leaves


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode of L >= 1 steps, or a window of one.

    Args:
        observations: nested arrays as the observation space nests them, leading dimension L+1.
        actions: nested arrays as the action space nests them, leading dimension L.
        rewards: (L,) float64.
        terminations: (L,) bool, true where the process itself ended.
        truncations: (L,) bool, true where the episode was cut off from outside.
        episode_id: its number in the collection.
        seed: what the environment was reset with, if known; 0 <= seed < 2^63.

    Raises:
        ValueError: if the leading dimensions do not fit each other. The values are `check_episode`'s matter.
    """

    observations: Value
    actions: Value
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    episode_id: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the leading dimensions."""
        steps = len(self.rewards)
        if steps < 1:
            raise ValueError(f"episode {self.episode_id} rewards: expected at least one step, got none")
        for name, rows in (("terminations", steps), ("truncations", steps), ("actions", steps), ("observations", steps + 1)):
            for path, leaf in leaf_values(getattr(self, name)).items():
                if len(leaf) != rows:
                    leaf_name = f"episode {self.episode_id} {name} {path}".strip()
                    raise ValueError(f"{leaf_name}: expected {rows} rows, as there are {steps} rewards, got {len(leaf)}")

    def __len__(self) -> int:
        """Return L, the number of steps."""
        return len(self.rewards)

    @property
    def nbytes(self) -> int:
        """Bytes of observations and actions."""
        return sum(np.asarray(leaf).nbytes for part in (self.observations, self.actions) for leaf in leaf_values(part).values())


def check_episode(episode: Episode, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
    """Check every value of an episode against the spaces it comes from.

    Checked are the leaves and their shapes, dtypes (castable without changing kind), finiteness, and the ranges of the
    discrete leaves. Bounds of a Box are not: environments break them, and nothing here depends on them.

    Raises:
        ValueError: naming the episode, the leaf and, where there is one, the step.
    """
    name = f"episode {episode.episode_id}"
    _check_leaves(f"{name} observations", episode.observations, observation_space)
    _check_leaves(f"{name} actions", episode.actions, action_space)
    _check_finite(f"{name} rewards", np.asarray(episode.rewards))
    for kind in ("rewards", "terminations", "truncations"):
        shape = np.shape(getattr(episode, kind))
        if shape != (len(episode),):
            raise ValueError(f"{name} {kind}: expected shape ({len(episode)},), got {shape}")
    for kind in ("terminations", "truncations"):
        early = np.flatnonzero(getattr(episode, kind)[:-1])
        if early.size:
            raise ValueError(
                f"{name} {kind}: expected none before the last step {len(episode) - 1}, got one at step {early[0]}"
            )


def _check_leaves(name: str, value: Value, space: gym.Space[Any]) -> None:
    expected, given = dict(leaves(space)), leaf_values(value)
    if set(expected) != set(given):
        raise ValueError(f"{name}: expected leaves {sorted(expected)}, got {sorted(given)}")
    for path, leaf_space in expected.items():
        _check_leaf(f"{name} {path}".strip(), np.asarray(given[path]), leaf_space)


def _check_leaf(name: str, leaf: np.ndarray, space: gym.Space[Any]) -> None:
    if leaf.shape[1:] != space.shape:
        raise ValueError(f"{name}: expected shape {tuple(space.shape or ())} at each step, got {leaf.shape[1:]}")
    _check_finite(name, leaf)
    if isinstance(space, spaces.Box):
        is_float = np.issubdtype(space.dtype, np.floating) and np.can_cast(leaf.dtype, space.dtype, casting="same_kind")
        if not is_float and not _fits(leaf, space.dtype):  # floats may be rounded, whole numbers may not be changed
            raise ValueError(f"{name}: expected {space.dtype} or what converts to it unchanged, got {leaf.dtype}")
        with np.errstate(over="ignore"):
            _check_finite(f"{name} as {space.dtype}", leaf.astype(space.dtype))
        return
    if not np.issubdtype(leaf.dtype, np.integer) and leaf.dtype != bool:
        raise ValueError(f"{name}: expected whole numbers for {space}, got {leaf.dtype}")
    low, high = leaf_bounds(space)
    wrong = ((leaf < low) | (leaf > high)).reshape(len(leaf), -1).any(axis=1)
    if wrong.any():
        step = int(np.argmax(wrong))
        raise ValueError(f"{name}: expected a value of {space}, got {leaf[step]} at step {step}")


def _check_finite(name: str, leaf: np.ndarray) -> None:
    if not np.issubdtype(leaf.dtype, np.inexact) or np.isfinite(leaf).all():
        return
    finite = np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
    raise ValueError(f"{name}: expected finite numbers, got NaN or infinity at step {int(np.argmin(finite))}")


def _fits(leaf: np.ndarray, dtype: np.dtype) -> bool:
    """Tell whether every value survives the conversion, e.g. int64 rows of a uint8 image."""
    with np.errstate(all="ignore"):
        return leaf.dtype.kind in "biuf" and np.array_equal(leaf.astype(dtype).astype(leaf.dtype), leaf)
