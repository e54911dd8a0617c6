"""Nested values of Gymnasium spaces: dicts and tuples of arrays or tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from torch import Tensor

Value = Any  # np.ndarray | Tensor | dict[str, Value] | tuple[Value, ...]: a space's value, or a batch of values

_NEAREST = {
    "Text": "MultiDiscrete over character codes",
    "Graph": "Dict of fixed-size Box arrays for nodes and edges",
    "Sequence": "Box of a fixed maximal length with a mask",
    "OneOf": "Dict of the alternatives with a Discrete selector",
}


def stack_values(values: Sequence[Value]) -> Value:
    """Stack equally nested values along a new leading dimension: N values -> nested arrays (N, ...). Copies.

    Raises:
        ValueError: if a leaf changes its shape; names both shapes and where.
    """
    return map_leaves(_stack, *values)


def _stack(*leaf: Any) -> np.ndarray:
    parts = [np.asarray(part) for part in leaf]
    for number, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise ValueError(f"expected values of one shape, got {parts[0].shape} at first and {part.shape} at number {number}")
    return np.stack(parts)


def leaves(space: gym.Space, path: str = "") -> list[tuple[str, gym.Space]]:
    """List the leaf spaces in a fixed order with their paths: ``""`` for a bare space, else e.g. ``"arm/angle"``, ``"0"``.

    Raises:
        TypeError: if a leaf is not Box, Discrete, MultiDiscrete or MultiBinary; the message names the nearest that is.
    """
    children: list[tuple[str, gym.Space]] | None = None
    if isinstance(space, spaces.Dict):
        children = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        children = [(str(index), child) for index, child in enumerate(space.spaces)]
    if children is not None:
        return [leaf for key, child in children for leaf in leaves(child, f"{path}/{key}" if path else key)]
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        kind = type(space).__name__
        nearest = _NEAREST.get(kind, "Box")
        raise TypeError(
            f"space{f' at {path!r}' if path else ''}: expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple "
            f"of them, got {kind}; the nearest supported space is {nearest}: wrap the environment to convert it"
        )
    if 0 in (space.shape or ()):
        raise TypeError(f"space{f' at {path!r}' if path else ''}: expected at least one number, got shape {space.shape}")
    return [(path, space)]


def map_leaves(function: Callable[..., Any], *values: Value) -> Value:
    """Apply ``function`` to the leaves of equally nested values, keeping the dicts and tuples around them."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: map_leaves(function, *(value[key] for value in values)) for key in first}
    if isinstance(first, tuple):
        return tuple(map_leaves(function, *children) for children in zip(*values, strict=True))
    return function(*values)


def leaf_values(value: Value, path: str = "") -> dict[str, Any]:
    """Flatten a nested value to ``{path: leaf}`` with the paths of :func:`leaves`."""
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
    """Nest ``{path: leaf}`` as ``space`` does: the inverse of :func:`leaf_values`."""
    if isinstance(space, spaces.Dict):
        return {k: build_value(child, leaf, f"{path}/{k}" if path else k) for k, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(build_value(child, leaf, f"{path}/{i}" if path else str(i)) for i, child in enumerate(space.spaces))
    return leaf[path]


def to_numpy(value: Value) -> Value:
    """Turn the tensors in a nested value into arrays; a single integer becomes a NumPy scalar, as environments expect."""
    return map_leaves(lambda leaf: _leaf_to_numpy(leaf) if isinstance(leaf, Tensor) else leaf, value)


def _leaf_to_numpy(leaf: Tensor) -> np.ndarray | np.generic:
    array = leaf.detach().cpu().numpy()
    return array if leaf.is_floating_point() else array[()]  # a Box of shape () wants an array, a Discrete a number
