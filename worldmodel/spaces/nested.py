"""Nested values of Gymnasium spaces: dicts and tuples of arrays or tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from torch import Tensor

Value = Any  # np.ndarray | Tensor | dict[str, Value] | tuple[Value, ...]: a space's value, or a batch of values

_NEAREST_SUPPORTED = {
    "Text": "MultiDiscrete over character codes",
    "Graph": "Dict of fixed-size Box arrays for nodes and edges",
    "Sequence": "Box of a fixed maximal length with a mask",
    "OneOf": "Dict of the alternatives with a Discrete selector",
}


def stack_values(values: Sequence[Value]) -> Value:
    """Stack N equally nested values along a new leading dimension: nested arrays (N, ...), copied.

    Raises:
        ValueError: if the shapes of a leaf differ. The message names both shapes and the index.
    """
    return map_leaves(_stack, *values)


def _stack(*leaf: Any) -> np.ndarray:
    parts = [np.asarray(part) for part in leaf]
    for index, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise ValueError(
                f"values: expected equal shapes, got {parts[0].shape} at index 0 and {part.shape} at index {index}"
            )
    return np.stack(parts)


def leaves(space: gym.Space, path: str = "") -> list[tuple[str, gym.Space]]:
    """List the leaf spaces with their paths, in the order of the space.

    The path of a bare space is ``""``; others are such as ``"arm/angle"`` (Dict) and ``"0"``
    (Tuple). A bare Box of shape (0,) is the action space of data without actions.

    Raises:
        TypeError: if a leaf is not Box, Discrete, MultiDiscrete or MultiBinary, or has no numbers,
            or a Dict or Tuple is empty. The message names the path and the nearest supported space.
    """
    where = f"space at {path!r}" if path else "space"
    children: list[tuple[str, gym.Space]] | None = None
    if isinstance(space, spaces.Dict):
        children = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        children = [(str(index), child) for index, child in enumerate(space.spaces)]
    if children is not None:
        if not children:
            raise TypeError(f"{where}: expected a {type(space).__name__} of at least one space, got an empty one")
        return [leaf for key, child in children for leaf in leaves(child, f"{path}/{key}" if path else key)]
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        kind = type(space).__name__
        nearest = _NEAREST_SUPPORTED.get(kind, "Box")
        raise TypeError(
            f"{where}: expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them, got {kind}; the nearest "
            f"supported space is {nearest}: wrap the environment to convert it{_left_out(path)}"
        )
    if 0 in (space.shape or ()) and (path or space.shape != (0,)):
        raise TypeError(f"{where}: expected at least one number, got shape {space.shape}{_left_out(path)}")
    return [(path, space)]


def _left_out(path: str) -> str:
    """The other fix of a leaf that is not supported; a bare space has no leaf to leave out."""
    return f', or skip this leaf of the observations: leave_out=("{path}",)' if path else ""


def map_leaves(function: Callable[..., Any], *values: Value) -> Value:
    """Apply ``function`` to the leaves of equally nested values; keep the nesting."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: map_leaves(function, *(value[key] for value in values)) for key in first}
    if isinstance(first, tuple):
        return tuple(map_leaves(function, *children) for children in zip(*values, strict=True))
    return function(*values)


def map_paths(function: Callable[[str, Any], Any], value: Value, path: str = "") -> Value:
    """Apply ``function`` to path and leaf of every leaf of a nested value; keep the nesting."""
    if isinstance(value, Mapping):
        return {key: map_paths(function, child, f"{path}/{key}" if path else key) for key, child in value.items()}
    if isinstance(value, tuple):
        return tuple(map_paths(function, child, f"{path}/{i}" if path else str(i)) for i, child in enumerate(value))
    return function(path, value)


def leaf_values(value: Value, path: str = "") -> dict[str, Any]:
    """Flatten a nested value to ``{path: leaf}`` with the paths of `leaves`."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, tuple):
        items = [(str(index), child) for index, child in enumerate(value)]
    else:
        return {path: value}
    result: dict[str, Any] = {}
    for key, child in items:
        result |= leaf_values(child, f"{path}/{key}" if path else key)
    return result


def build_value(space: gym.Space, leaf: Mapping[str, Any], path: str = "") -> Value:
    """Nest ``{path: leaf}`` as ``space`` is nested: the inverse of `leaf_values`."""
    if isinstance(space, spaces.Dict):
        return {k: build_value(child, leaf, f"{path}/{k}" if path else k) for k, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(build_value(child, leaf, f"{path}/{i}" if path else str(i)) for i, child in enumerate(space.spaces))
    return leaf[path]


def take_row(space: gym.Space, batch: Value, row: int) -> Value:
    """Return a row of a batch of arrays as ``space`` contains it: an array for Box, also of shape (), a scalar for Discrete."""
    boxes = {path for path, leaf in leaves(space) if isinstance(leaf, spaces.Box)}
    return map_paths(lambda path, leaf: leaf[row, ...] if path in boxes else leaf[row], batch)


def to_numpy(value: Value) -> Value:
    """Convert tensors in a nested value to arrays, and integers of shape () to NumPy scalars."""
    return map_leaves(lambda leaf: _leaf_to_numpy(leaf) if isinstance(leaf, Tensor) else leaf, value)


def _leaf_to_numpy(leaf: Tensor) -> np.ndarray | np.generic:
    array = leaf.detach().cpu().numpy()
    return array if leaf.is_floating_point() else array[()]  # a Box of shape () contains arrays, a Discrete scalars
