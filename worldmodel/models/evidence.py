"""Evidence about the numbers of observations, collected in one pass: what is constant, unchanged, or one of few values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data import held
from worldmodel.spaces import leaf_bounds

MAX_VALUES = 256  # of a choice
TOLERANCE = 1e-6  # a number this far outside of a Box, as a share of its range, counts as a rounding error


@dataclass(frozen=True)
class Leaf:
    """A leaf of an observation space as N numbers: those of a Box or MultiBinary, or its choices.

    Args:
        path: path of the leaf.
        space: its space.
    """

    path: str
    space: gym.Space

    @property
    def count(self) -> int:
        """N."""
        return int(np.prod(self.space.shape or (), dtype=int))

    @property
    def is_box(self) -> bool:
        """Whether the leaf holds numbers rather than choices or bits."""
        return isinstance(self.space, spaces.Box)

    @property
    def is_integer(self) -> bool:
        """Whether the leaf is a Box of integers."""
        return self.is_box and np.issubdtype(self.space.dtype, np.integer)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of each number, (N,) float64 each."""
        low, high = (np.broadcast_to(np.asarray(b, np.float64), self.space.shape or ()) for b in leaf_bounds(self.space))
        return low.reshape(-1), high.reshape(-1)

    def name(self, index: int | slice) -> str:
        """Name a number, or a run of them, in messages and as a key of ``kinds``."""
        if isinstance(index, slice):
            if (index.start, index.stop) == (0, self.count):
                return self.path
            if index.stop - index.start > 1:
                return f"{self.path}[{index.start}:{index.stop}]"
            index = index.start
        return self.path if self.count == 1 else f"{self.path}[{index}]"


@dataclass(frozen=True)
class Change:
    """Where a number first differed: from the step before it or, for a constant, from its first value.

    Args:
        before: the earlier value.
        after: the other value.
        step: index of the observation in its episode.
        episode: index of the episode.
    """

    before: float
    after: float
    step: int
    episode: int

    def __str__(self) -> str:
        """Describe values and place."""
        return f"{self.before:g} and then {self.after:g} at step {self.step} of episode {self.episode}"


class Evidence:
    """What the data say about each number of a leaf.

    Args:
        leaf: the leaf.
        max_values: (N,) largest number of different values that are remembered of each number; 0 remembers none.
        missing: indices of the numbers that may be missing (NaN).

    Attributes:
        num_episodes: episodes seen.
        steps: steps seen.
        pairs: (N,) steps before and after which each number was observed.
        unchanged: (N,) how many of these left it the same.
        within: for each number, its first change within an episode; None if it never changed.
        across: for each number, its first value that differs from the first of all data; None if there is none.
        values: for each number, the set of its values; None if there are more than remembered.
        outside: a value outside of the bounds of a Box with its index; None if there is none.
    """

    def __init__(self, leaf: Leaf, max_values: np.ndarray, missing: Sequence[int] = ()):
        n = leaf.count
        self._may_lack = np.isin(np.arange(n), list(missing))
        self.leaf, self._max_values = leaf, max_values
        self.num_episodes = self.steps = self.observations = 0
        self.pairs = np.zeros(n, dtype=np.int64)
        self.unchanged = np.zeros(n, dtype=np.int64)
        self.within: list[Change | None] = [None] * n
        self.across: list[Change | None] = [None] * n
        self.values: list[set[float] | None] = [set() if most > 0 else None for most in max_values]
        self.outside: tuple[int, float] | None = None
        self._low, self._high = leaf.bounds()
        self._first: np.ndarray | None = None

    def add(self, given: np.ndarray, episode: int) -> None:
        """Add the L + 1 observations of an episode, (L + 1, ...); missing numbers count as unchanged nowhere.

        Raises:
            ValueError: if a value is not finite and may not be missing, or is a choice outside of its space.
        """
        values = np.asarray(given).reshape(len(given), -1).astype(np.float64)  # (L + 1, N)
        known = ~np.isnan(values) | ~self._may_lack
        values = held(values, self._otherwise) if not known.all() else values
        self._check_range(values, episode)
        same, pairs = values[1:] == values[:-1], known[1:] & known[:-1]
        self.pairs += pairs.sum(axis=0)
        self.unchanged += (same & pairs).sum(axis=0)
        for column in np.flatnonzero(~same.all(axis=0)).tolist():
            if self.within[column] is None:
                step = int(same[:, column].argmin()) + 1
                self.within[column] = self._change(values[step - 1, column], values[step, column], step, episode)
        self._first = values[0].copy() if self._first is None else self._first
        differs = values != self._first
        for column in np.flatnonzero(differs.any(axis=0)).tolist():
            if self.across[column] is None:
                step = int(differs[:, column].argmax())
                self.across[column] = self._change(self._first[column], values[step, column], step, episode)
        for column, found in enumerate(self.values):
            if found is not None:
                found.update(np.unique(values[:, column]).tolist())
                if len(found) > self._max_values[column]:
                    self.values[column] = None
        self.num_episodes += 1
        self.steps += len(values) - 1
        self.observations += len(values)

    @property
    def _otherwise(self) -> np.ndarray:
        """What stands for a number that is missing throughout an episode: its first value of all, or one in its range."""
        return np.clip(0.0, self._low, self._high) if self._first is None else self._first

    def _check_range(self, values: np.ndarray, episode: int) -> None:
        name = f"observation {self.leaf.path!r}" if self.leaf.path else "observation"
        if not np.isfinite(values).all():
            step, column = (int(part[0]) for part in np.nonzero(~np.isfinite(values)))
            raise ValueError(f"{name}: expected finite numbers, got {values[step, column]} at step {step} of episode {episode}")
        slack = np.zeros_like(self._low)
        if self.leaf.is_box:
            with np.errstate(over="ignore"):
                width = self._high - self._low
            slack = np.where(np.isfinite(width), TOLERANCE * width, 0.0)
        wrong = (values < self._low - slack) | (values > self._high + slack)
        if not wrong.any():
            return
        step, column = (int(part[0]) for part in np.nonzero(wrong))
        if self.leaf.is_box:
            self.outside = self.outside or (column, float(values[step, column]))
            return
        raise ValueError(
            f"{name}: expected integers from {self._low[column]:g} to {self._high[column]:g} in {self.leaf.space}, got "
            f"{values[step, column]:g} at step {step} of episode {episode}; correct the data or the space"
        )

    @staticmethod
    def _change(before: Any, after: Any, step: int, episode: int) -> Change:
        return Change(float(before), float(after), step, episode)
