"""Numbers of observations that a store may lack (NaN), as its recipe names them, and simple ways to fill them.

``recipe["missing"]`` maps the path of a leaf to the indices of its numbers that may be missing, as in `{"state": [0, 2]}`; the
path of a bare space is "". Conversions write it (``missing="mask"``). A number that it does not name is never NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.runtime import check_integer
from worldmodel.spaces import leaves

KEY = "missing"  # in a recipe


def missing_numbers(recipe: Mapping[str, Any], observation_space: gym.Space[Any]) -> dict[str, tuple[int, ...]]:
    """Return the numbers that may be missing, by path of the leaf; only of leaves of the space.

    Args:
        recipe: of a store.
        observation_space: space of its observations, or of those that are read.

    Raises:
        ValueError: if a leaf does not hold floating-point numbers, or has no such number.
    """
    known, found = dict(leaves(observation_space)), {}
    for path, indices in recipe.get(KEY, {}).items():
        if path not in known:
            continue  # left out
        size = int(np.prod(known[path].shape or (), dtype=int))
        if not np.issubdtype(known[path].dtype, np.floating):
            raise ValueError(f"missing: expected leaves of floating-point numbers, got {path!r}, {known[path]}")
        numbers = tuple(sorted({check_integer(index, "missing", least=0) for index in indices}))
        if numbers and numbers[-1] >= size:
            raise ValueError(f"missing: expected numbers 0 to {size - 1} of {path!r}, got {numbers[-1]}")
        found[path] = numbers
    return found


def joined_missing(each: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, tuple[int, ...]]:
    """Return the numbers that may be missing in any of several stores."""
    found: dict[str, set[int]] = {}
    for one in each:
        for path, indices in one.items():
            found.setdefault(path, set()).update(indices)
    return {path: tuple(sorted(indices)) for path, indices in found.items()}


def without_missing(leaf: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Return a leaf (N, ...) with zeros in place of the NaN of some numbers."""
    rows = leaf.reshape(len(leaf), -1)
    columns = list(indices)
    filled = rows.copy()
    filled[:, columns] = np.where(np.isnan(rows[:, columns]), 0, rows[:, columns])
    return filled.reshape(leaf.shape)


def held(rows: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Fill the NaN of rows (N, D): by the last value before, else by the first one after, else by ``otherwise`` (D,)."""
    known = ~np.isnan(rows)
    at = np.where(known, np.arange(len(rows))[:, None], -1)
    before = np.maximum.accumulate(at, axis=0)
    first = np.where(known.any(axis=0), known.argmax(axis=0), 0)
    filled = np.take_along_axis(rows, np.where(before >= 0, before, first), axis=0)
    return np.where(np.isnan(filled), otherwise, filled)


def interpolated(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Fill the NaN of rows (N, D) by straight lines between neighbours at times ``at`` (N,); at the ends, by the nearest.

    Whole numbers, which may be names of modes, are held instead. Every number has a value in some row.
    """
    filled = rows.copy()
    for column in np.flatnonzero(np.isnan(rows).any(axis=0)):
        values = rows[:, column]
        known = ~np.isnan(values)
        if (values[known] == np.round(values[known])).all():
            filled[:, column] = held(values[:, None], np.zeros(1))[:, 0]
        else:
            filled[:, column] = np.interp(at, at[known], values[known])
    return filled
