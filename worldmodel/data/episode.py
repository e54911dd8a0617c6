"""The `Episode` record (L steps, L + 1 observations) and its validation against the spaces.

``actions[t]`` is taken at ``observations[t]`` and leads to ``observations[t+1]``, ``rewards[t]``,
``terminations[t]`` and ``truncations[t]``, as in Minari. A window of an episode has the same layout
and is also an `Episode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data.missing import without_missing
from worldmodel.runtime import check_integer
from worldmodel.spaces import Value, leaf_bounds, leaf_values, leaves


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode of L >= 1 steps, or a window of an episode.

    Args:
        observations: arrays nested like the observation space, with leading dimension L + 1.
        actions: arrays nested like the action space, with leading dimension L.
        rewards: (L,) float64; (L, 1), one number per step in an array, becomes (L,).
        terminations: (L,) bool, True where the environment reached a terminal state.
        truncations: (L,) bool, True where the episode was cut off, as by a time limit.
        episode_id: number of the episode in the collection.
        seed: seed of the environment's reset, if known; 0 <= seed < 2^63.
        elapsed: (L,) float64, seconds that each step took, if they are recorded.
        machine: where it was made, if known; written to the store's list of shards, and not read back.

    Raises:
        TypeError: if ``episode_id`` or ``seed`` is not an integer.
        ValueError: if one of them does not fit 64 bits, or the leading dimensions do not match.
            `check_episode` validates the values.
    """

    observations: Value
    actions: Value
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    episode_id: int = 0
    seed: int | None = None
    machine: str | None = None
    elapsed: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Validate id, seed and leading dimensions; integers of every kind become Python's."""
        object.__setattr__(self, "episode_id", _int64(self.episode_id, "episode_id", least=-(2**63)))
        if self.seed is not None:
            object.__setattr__(self, "seed", _int64(self.seed, "seed", least=0))
        if np.shape(self.rewards)[1:] == (1,):
            object.__setattr__(self, "rewards", np.asarray(self.rewards)[:, 0])
        steps = len(self.rewards)
        if steps < 1:
            raise ValueError(f"episode {self.episode_id} rewards: expected at least one step, got none")
        timed = () if self.elapsed is None else (("elapsed", steps),)
        named = (("terminations", steps), ("truncations", steps), ("actions", steps), ("observations", steps + 1), *timed)
        for name, rows in named:
            for path, leaf in leaf_values(getattr(self, name)).items():
                if len(leaf) != rows:
                    leaf_name = f"episode {self.episode_id} {name} {path}".strip()
                    raise ValueError(f"{leaf_name}: expected {rows} rows for {steps} rewards, got {len(leaf)}")

    def __len__(self) -> int:
        """Return L, the number of steps."""
        return len(self.rewards)

    @property
    def nbytes(self) -> int:
        """Size of observations and actions in bytes."""
        return sum(np.asarray(leaf).nbytes for part in (self.observations, self.actions) for leaf in leaf_values(part).values())


def as_reward(value: Any) -> float:
    """Return a reward as a number; an array that holds a single number, as of shape (1,), is accepted.

    Raises:
        ValueError: if it is no number or several.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or np.ma.is_masked(value):
        raise ValueError(
            f"reward: expected one number per step, got {value!r}; combine several in a wrapper of the environment"
        )
    return float(array.reshape(-1)[0])


def as_flag(value: Any, name: str) -> bool:
    """Return ``terminated`` or ``truncated`` as a bool; 0, 1 and arrays that hold a single one of them are accepted.

    Raises:
        ValueError: if it is anything else, whose truth Python would invent: None, NaN, 2, "no".
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or np.ma.is_masked(value) or array.reshape(-1)[0] not in (0, 1):
        raise ValueError(f"{name}: expected a bool at each step, got {value!r}")
    return bool(array.reshape(-1)[0])


def unmasked(value: Any, name: str) -> np.ndarray:
    """Return numbers as an array, whose mask NumPy would drop.

    Raises:
        ValueError: if a number is masked.
    """
    if np.ma.is_masked(value):
        raise ValueError(f"{name}: expected numbers, got masked ones, which an array cannot keep; fill them in")
    return np.asarray(value)


def check_episode(
    episode: Episode,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    *,
    missing: Mapping[str, Sequence[int]] | None = None,
    timed: bool = False,
) -> None:
    """Validate every value of an episode against the spaces.

    Checks the leaves, their shapes and dtypes (castable without changing kind), that numbers are
    finite, and the ranges of discrete leaves. Does not check the bounds of a Box: environments
    violate them, and nothing depends on them.

    Args:
        episode: the episode.
        observation_space: space of its observations.
        action_space: space of its actions.
        missing: numbers of the observation that may be NaN, by leaf; see `worldmodel.data.missing_numbers`.
        timed: whether the episode must have ``elapsed``.

    Raises:
        ValueError: if a value does not fit; names the episode, the leaf and, if possible, the step.
    """
    name = f"episode {episode.episode_id}"
    _check_leaves(f"{name} observations", episode.observations, observation_space, missing or {})
    _check_leaves(f"{name} actions", episode.actions, action_space, {})
    _check_rewards(f"{name} rewards", unmasked(episode.rewards, f"{name} rewards"))
    if timed != (episode.elapsed is not None):
        raise ValueError(
            f"{name} elapsed: expected {'the seconds of each step' if timed else 'none'}, as the store's recipe says"
        )
    if episode.elapsed is not None:
        _check_elapsed(f"{name} elapsed", unmasked(episode.elapsed, f"{name} elapsed"))
    for kind in ("rewards", "terminations", "truncations"):
        shape = np.shape(getattr(episode, kind))
        if shape != (len(episode),):
            raise ValueError(f"{name} {kind}: expected shape ({len(episode)},), got {shape}")
    for kind in ("terminations", "truncations"):
        flags = unmasked(getattr(episode, kind), f"{name} {kind}")
        if flags.dtype.kind not in "biuf" or not np.isin(flags, (0, 1)).all():
            raise ValueError(f"{name} {kind}: expected bool, got {flags.dtype}")
        early = np.flatnonzero(getattr(episode, kind)[:-1])
        if early.size:
            raise ValueError(
                f"{name} {kind}: expected none before the last step {len(episode) - 1}, got one at step {early[0]}"
            )


def _int64(value: Any, name: str, *, least: int) -> int:
    number = check_integer(value, name, least=least)
    if number >= 2**63:
        raise ValueError(f"{name}: expected an integer below 2^63, got {number}")
    return number


def _check_rewards(name: str, rewards: np.ndarray) -> None:
    if rewards.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected real numbers, got {rewards.dtype}")
    if rewards.dtype.kind != "f" and not _fits(rewards, np.dtype(np.float64)):
        raise ValueError(f"{name}: expected integers that convert to float64 exactly, got {rewards.dtype}")
    with np.errstate(over="ignore"):
        _check_finite(name, rewards.astype(np.float64))


def _check_elapsed(name: str, elapsed: np.ndarray) -> None:
    wrong = ~(np.isfinite(elapsed) & (elapsed > 0)) if elapsed.dtype.kind in "iuf" else np.ones(len(elapsed), dtype=bool)
    if elapsed.ndim != 1 or wrong.any():
        step = int(np.argmax(wrong.reshape(len(elapsed), -1).any(axis=1)))
        raise ValueError(f"{name}: expected a positive number of seconds for each step, got {elapsed[step]} at step {step}")


def _check_leaves(name: str, value: Value, space: gym.Space[Any], missing: Mapping[str, Sequence[int]]) -> None:
    expected, given = dict(leaves(space)), leaf_values(value)
    if set(expected) != set(given):
        raise ValueError(f"{name}: expected leaves {sorted(expected)}, got {sorted(given)}")
    for path, leaf_space in expected.items():
        leaf_name = f"{name} {path}".strip()
        leaf = unmasked(given[path], leaf_name)
        _check_leaf(leaf_name, without_missing(leaf, missing[path]) if path in missing else leaf, leaf_space)


def _check_leaf(name: str, leaf: np.ndarray, space: gym.Space[Any]) -> None:
    if leaf.shape[1:] != space.shape:
        raise ValueError(f"{name}: expected shape {tuple(space.shape or ())} at each step, got {leaf.shape[1:]}")
    _check_finite(name, leaf)
    if isinstance(space, spaces.Box):
        is_float = np.issubdtype(space.dtype, np.floating) and np.can_cast(leaf.dtype, space.dtype, casting="same_kind")
        if not is_float and not _fits(leaf, space.dtype):  # only floats may be rounded
            raise ValueError(f"{name}: expected {space.dtype} or values that convert to it exactly, got {leaf.dtype}")
        with np.errstate(over="ignore"):
            _check_finite(f"{name} as {space.dtype}", leaf.astype(space.dtype))
        return
    if not np.issubdtype(leaf.dtype, np.integer) and leaf.dtype != bool:
        raise ValueError(f"{name}: expected integers for {space}, got {leaf.dtype}")
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
    """Return True if the conversion keeps every value, as of int64 rows of a uint8 image."""
    with np.errstate(all="ignore"):
        return leaf.dtype.kind in "biuf" and np.array_equal(leaf.astype(dtype).astype(leaf.dtype), leaf)
