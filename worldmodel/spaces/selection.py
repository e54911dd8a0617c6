"""Leave leaves out of a space and of its values, and nest values as their space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from worldmodel.spaces.nested import Value


def without_leaves(space: gym.Space, names: Iterable[str]) -> gym.Space:
    """Return a space without some of its leaves, which may be of any kind (Text, Sequence, Graph).

    Args:
        space: a Dict or Tuple, nested at will.
        names: paths of leaves, such as "mission" or "arm/notes", or of a nested Dict or Tuple as a
            whole. A Tuple of which elements are left out becomes a Dict whose keys are the numbers
            of the others, so that paths stay the same.

    Returns:
        The space that remains; the same object if ``names`` is empty.

    Raises:
        ValueError: if there is no such leaf, or nothing remains. The message lists the paths.
    """
    names = tuple(names)
    if not names:
        return space
    known = list(_paths(space))
    for name in names:
        if name not in known:
            raise ValueError(f"leave_out: expected paths of leaves among {known}, got {name!r}")
    remaining = _without(space, set(names), "")
    if remaining is None:
        raise ValueError(f"leave_out: expected at least one leaf of {space} to remain, got {sorted(names)}")
    return remaining


def known_leaves(space: gym.Space, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the names that are paths in a space, without repetition."""
    known = set(_paths(space))
    return tuple(name for name in dict.fromkeys(names) if name in known)


def select_leaves(space: gym.Space, value: Value) -> Value:
    """Restrict a value, or a batch of values, to the leaves of a space, and take lists for tuples.

    Args:
        space: the space, usually a result of `without_leaves`.
        value: a value of the original space, or of ``space``.

    Returns:
        The value, nested as ``space``. Leaves that are missing stay missing.
    """
    return _nest(space, value, keep_others=False)


def as_tuples(space: gym.Space, value: Value) -> Value:
    """Return a value with lists in place of tuples converted; other parts are unchanged."""
    return _nest(space, value, keep_others=True)


def _nest(space: gym.Space, value: Value, *, keep_others: bool) -> Value:
    if isinstance(space, spaces.Dict):
        if isinstance(value, (list, tuple)):  # of a Tuple of which elements were left out
            value = {str(index): child for index, child in enumerate(value)}
        if not isinstance(value, Mapping):
            return value
        found: dict[str, Any] = {
            key: _nest(child, value[key], keep_others=keep_others) for key, child in space.spaces.items() if key in value
        }
        return {**found, **{key: child for key, child in value.items() if key not in found}} if keep_others else found
    if isinstance(space, spaces.Tuple) and isinstance(value, (list, tuple)) and len(value) == len(space.spaces):
        return tuple(_nest(child, part, keep_others=keep_others) for child, part in zip(space.spaces, value, strict=True))
    return value


def _children(space: gym.Space) -> list[tuple[str, gym.Space]] | None:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return [(str(index), child) for index, child in enumerate(space.spaces)]
    return None


def _paths(space: gym.Space, path: str = "") -> Iterable[str]:
    """Paths of all leaves, and of all nested Dicts and Tuples."""
    if path:
        yield path
    for key, child in _children(space) or ():
        yield from _paths(child, f"{path}/{key}" if path else key)


def _without(space: gym.Space, names: set[str], path: str) -> gym.Space | None:
    children = _children(space)
    if children is None:
        return space
    kept = {}
    for key, child in children:
        child_path = f"{path}/{key}" if path else key
        remaining = None if child_path in names else _without(child, names, child_path)
        if remaining is not None:
            kept[key] = remaining
    if not kept and children:
        return None
    if isinstance(space, spaces.Tuple) and len(kept) == len(children):
        return spaces.Tuple(list(kept.values()))
    return spaces.Dict(kept)
