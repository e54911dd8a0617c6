"""Infer spaces from recorded data: bounds, choices and constants of each column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.spaces import build_value, has_image_shape, leaves

MAX_CHOICES = 256  # integers with more values are numbers
MAX_INT64 = 2**63 - 1
FEW_VALUES, VISITS = 16, 50  # a real number with at most so many values, each so often on average, looks like a choice
NUMBERS = {"observation": "state", "action": "control"}  # leaf of all scalar columns of real numbers, if there are others
NO_ACTIONS = spaces.Box(-1.0, 1.0, (0,), np.float32)


class Found:
    """Range, values and dtype of one column, collected from its rows.

    Args:
        name: the column.
        text: whether the values come from text, where whole numbers are integers.
    """

    def __init__(self, name: str, *, text: bool = False):
        self.name, self._text, self.count = name, text, 0
        self.dtype: np.dtype[Any] = np.dtype(np.float64)
        self.shape: tuple[int, ...] = (0,)
        self.low, self.high = np.zeros(0), np.zeros(0)
        self.is_whole = True
        self.values: list[set[float] | None] = []
        self.lacks: np.ndarray = np.zeros(0, dtype=bool)  # which numbers are missing in some row

    def add(self, value: np.ndarray, where: str) -> None:
        """Add rows (N, ...).

        Raises:
            ValueError: if dtype or shape differ from those of earlier rows.
        """
        if self.count == 0 and 0 in value.shape[1:]:
            raise ValueError(f"{where}: expected at least one number per row in {self.name!r}, got shape {value.shape[1:]}")
        if self.count == 0:
            self.dtype, self.shape = value.dtype, value.shape[1:]
        elif (value.dtype, value.shape[1:]) != (self.dtype, self.shape):
            raise ValueError(
                f"{where}: expected {self.name!r} to be {self.dtype} of shape {self.shape}, as before, got {value.dtype} of "
                f"shape {value.shape[1:]}"
            )
        if len(value) and not self.is_image:
            rows = value.reshape(len(value), -1)
            lacking = np.isnan(rows) if self.dtype.kind == "f" else np.zeros((1, rows.shape[1]), dtype=bool)
            low, high = (_known(end, rows, lacking) for end in (np.fmin, np.fmax))
            if self.count:
                low, high = np.fmin(low, self.low), np.fmax(high, self.high)
            self.low, self.high = low, high
            self.lacks = np.asarray(lacking.any(axis=0) | (self.lacks if self.count else False))
            whole = self.dtype.kind in "biu" or bool(((rows == np.round(rows)) | lacking).all())
            self.is_whole = self.is_whole and whole
            self._add_values(rows)
        self.count += len(value)

    @property
    def is_empty(self) -> bool:
        """Whether a number of the column is missing in every row."""
        return bool(np.isnan(self.low).any()) if self.dtype.kind == "f" else False

    def _add_values(self, rows: np.ndarray) -> None:
        if not self.values:
            self.values = [set() for _ in range(rows.shape[1])]
        for index, known in enumerate(self.values):
            if known is not None:
                values = np.unique(rows[:, index])
                known.update(values[values == values].tolist())  # not NaN
                if len(known) > MAX_CHOICES:
                    self.values[index] = None

    @property
    def is_image(self) -> bool:
        """Whether the column holds images."""
        return self.dtype == np.uint8 and has_image_shape(self.shape)

    @property
    def is_integer(self) -> bool:
        """Whether all numbers are integers by their dtype, or as text and small enough to be exact."""
        if self.dtype.kind in "iu":
            return True
        if self.lacks.any():
            return False  # only real numbers can be missing
        limits = [abs(float(bound)) for bound in (*self.low, *self.high)]
        return self._text and self.is_whole and bool(limits) and max(limits) < 2**53

    @property
    def is_real_number(self) -> bool:
        """Whether the column is one real number per row, to be joined with others to a vector."""
        return self.shape == () and self.dtype.kind == "f" and not self.is_integer

    def numbers(self) -> list[dict[str, Any]]:
        """Describe each number: name, kind, low, high and, of choices, values; images are one entry."""
        if self.is_image:
            return [{"name": self.name, "kind": "image", "shape": list(self.shape)}]
        size = math.prod(self.shape)
        return [self._number(i, self.name if size == 1 else f"{self.name}[{i}]") for i in range(size)]

    def _number(self, index: int, name: str) -> dict[str, Any]:
        low, high, values = float(self.low[index]), float(self.high[index]), self.values[index]
        found: dict[str, Any] = {"name": name, "kind": "real", "low": low, "high": high}
        if low == high:
            found["kind"] = "constant"
        elif self.dtype.kind == "b" or (self.is_integer and values is not None):
            found |= {"kind": "choice", "values": sorted(map(float, values or (0, 1)))}
        elif self.is_integer:
            found["kind"] = "integer"
        elif values is not None and len(values) <= FEW_VALUES and self.count >= VISITS * len(values):
            found |= {"kind": "real, few values", "values": sorted(values)}
        return found | ({"missing": True} if self.lacks[index : index + 1].any() else {})


@dataclass(frozen=True)
class Leaf:
    """A leaf of a space, and the columns that it is made of.

    Args:
        path: its path; empty for a bare space.
        columns: one column, or several real numbers that are joined.
        space: its space.
    """

    path: str
    columns: tuple[str, ...]
    space: gym.Space[Any]

    def value(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return (N, *shape) from columns."""
        if len(self.columns) > 1 or (self.space.shape == (1,) and values[self.columns[0]].ndim == 1):
            return np.stack([values[name] for name in self.columns], axis=-1).astype(self.space.dtype)
        return values[self.columns[0]].astype(self.space.dtype, copy=False)


def _known(end: np.ufunc, rows: np.ndarray, lacking: np.ndarray) -> np.ndarray:
    """Return the smallest or largest number of each column (N, D) that is not NaN; NaN if all are."""
    if not lacking.any():
        return rows.min(axis=0) if end is np.fmin else rows.max(axis=0)
    return np.asarray(end.reduce(rows, axis=0))


def make_leaves(found: Sequence[Found], *, part: str, widen: float, resize: int | None, narrow: bool) -> list[Leaf]:
    """Return the leaves of the observation or the action.

    Args:
        found: its columns.
        part: "observation" or "action".
        widen: see `ConversionConfig`.
        resize: see `ConversionConfig`.
        narrow: store float64 as float32.
    """
    joined = [one for one in found if one.is_real_number]
    groups = [[one] for one in found if one not in joined]
    if joined:
        groups.insert(0, joined)
    made = []
    for group in groups:
        is_joined = group is groups[0] and bool(joined)
        name = group[0].name if len(group) == 1 else NUMBERS[part]
        for prefix in ("obs.", "obs/", *(f"{part}{mark}" for mark in (".", "s.", "/", "s/"))):
            name = name.removeprefix(prefix)
        space = _space(group, part=part, widen=widen, resize=resize, narrow=narrow, joined=is_joined)
        made.append(Leaf(name.replace("/", "."), tuple(one.name for one in group), space))
    if len(made) == 1:
        return [Leaf("", made[0].columns, made[0].space)]
    names = [leaf.path for leaf in made]
    return [leaf if names.count(leaf.path) == 1 else Leaf(leaf.columns[0], leaf.columns, leaf.space) for leaf in made]


def space_of(made: Sequence[Leaf]) -> gym.Space[Any]:
    """Return the space of leaves: a bare one, a Dict, or, without leaves, one without numbers."""
    if not made:
        return NO_ACTIONS
    return made[0].space if made[0].path == "" else spaces.Dict({leaf.path: leaf.space for leaf in made})


def leaves_of(space: gym.Space[Any], columns: Mapping[str, Sequence[str]]) -> list[Leaf]:
    """Return the leaves of a space, given the columns of each by its path."""
    by_path = dict(leaves(space)) if columns else {}
    return [Leaf(path, tuple(names), by_path[path]) for path, names in columns.items()]


def require_numbers(found: Mapping[str, Found], source: str) -> None:
    """Raise if a number of a column is missing in every row.

    Raises:
        ValueError: naming the column.
    """
    for name, one in found.items():
        if one.is_empty:
            raise ValueError(
                f"{source}: expected a number in {name!r} in some row, got none; leave the column out (observation, "
                "--observation)"
            )


def missing_in_leaves(made: Sequence[Leaf], found: Mapping[str, Found], source: str) -> dict[str, list[int]]:
    """Return the numbers that are missing in some row, by leaf.

    Raises:
        ValueError: if a column lacks numbers where the space has choices.
    """
    missing: dict[str, list[int]] = {}
    for leaf in made:
        for name in leaf.columns:
            if found[name].lacks.any() and not np.issubdtype(leaf.space.dtype, np.floating):
                raise ValueError(
                    f"{source}: expected {name!r} in every row, as it is {leaf.space} in the other store (like), got rows "
                    "without; convert both with the spaces of the data that lack it, or fill it (missing='interpolate')"
                )
        indices = np.flatnonzero(np.concatenate([found[name].lacks for name in leaf.columns])).tolist()
        if indices:
            missing[leaf.path] = indices
    return missing


def value_of(made: Sequence[Leaf], values: Mapping[str, np.ndarray], length: int) -> Any:
    """Return the value of the space of leaves from columns, (N, ...) each; N is ``length`` if there are none."""
    if not made:
        return np.zeros((length, 0), np.float32)
    return build_value(space_of(made), {leaf.path: leaf.value(values) for leaf in made})


def _space(
    group: Sequence[Found], *, part: str, widen: float, resize: int | None, narrow: bool, joined: bool
) -> gym.Space[Any]:
    first = group[0]
    if first.is_image:
        return spaces.Box(0, 255, resized_shape(first.shape, resize), np.uint8)
    if first.dtype.kind == "b":
        return spaces.Discrete(2) if first.shape == () else spaces.MultiBinary(first.shape)
    if first.is_integer:
        return _integer_space(first, part, widen)
    low, high = (np.concatenate([getattr(one, bound) for one in group]).astype(np.float64) for bound in ("low", "high"))
    dtype = np.result_type(*(one.dtype for one in group))
    dtype = np.dtype(np.float32) if narrow and dtype == np.float64 else dtype
    low, high = _rounded(low, high) if part == "action" else _widened(low, high, widen)
    shape = (len(group),) if joined else first.shape
    limit = float(np.finfo(dtype).max)
    low, high = (np.clip(bound, -limit, limit).astype(dtype).reshape(shape) for bound in (low, high))
    return spaces.Box(low, high, shape, dtype.type)


def _integer_space(found: Found, part: str, widen: float) -> gym.Space[Any]:
    bounds = [(int(a), int(b)) for a, b in zip(found.low, found.high, strict=True)]  # differences of int64 would wrap
    few = all(b - a < MAX_CHOICES and b <= MAX_INT64 for a, b in bounds)
    if found.shape == () and few:
        return spaces.Discrete(bounds[0][1] - bounds[0][0] + 1, start=bounds[0][0])
    if part == "action" and few:
        start = np.array([a for a, _ in bounds], dtype=np.int64).reshape(found.shape)
        counts = np.array([b - a + 1 for a, b in bounds], dtype=np.int64).reshape(found.shape)
        return spaces.MultiDiscrete(counts, start=start, dtype=np.int64)
    dtype: np.dtype[Any] = np.dtype(np.int64) if found.dtype.kind == "f" else found.dtype
    if part == "observation":
        limits = np.iinfo(dtype)
        margins = [max(1, math.ceil((b - a) * widen)) for a, b in bounds]
        bounds = [(max(a - m, int(limits.min)), min(b + m, int(limits.max))) for (a, b), m in zip(bounds, margins, strict=True)]
    low, high = (np.array(bound, dtype=dtype).reshape(found.shape) for bound in zip(*bounds, strict=True))
    return spaces.Box(low, high, found.shape, dtype.type)


def _widened(low: np.ndarray, high: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Move bounds apart by a share of their range; those of a constant by its size, at least 1."""
    with np.errstate(over="ignore"):  # the caller clips infinity to the largest number
        margin = np.where(high > low, share * high - share * low, np.maximum(1.0, np.abs(low)))
        return low - margin, high + margin


def _rounded(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round bounds outwards to two digits of their range."""
    varies = high > low
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # near the ends of float64 the data bound themselves
        step = 10.0 ** (np.floor(np.log10(np.where(varies, high - low, 1.0))) - 1)
        rounded = np.floor(low / step + 1e-9) * step, np.ceil(high / step - 1e-9) * step
    constant = _widened(low, high, 0.0)
    tidy = (np.array([float(f"{value:.12g}") for value in bound]) for bound in rounded)
    low, high = np.fmin(next(tidy), low), np.fmax(next(tidy), high)
    return np.where(varies, low, constant[0]), np.where(varies, high, constant[1])


def resized_shape(shape: tuple[int, ...], size: int | None) -> tuple[int, ...]:
    """Return the shape of an image after resizing; its channel axis stays."""
    if size is None:
        return shape
    if len(shape) == 2:
        return (size, size)
    return (size, size, shape[2]) if shape[2] < min(shape[:2]) else (shape[0], size, size)
