"""What a store and a collection of stores have in common: they can be indexed and printed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, SupportsIndex, overload

import gymnasium as gym
import numpy as np

from worldmodel.data.episode import Episode

SHOWN = ("env", "minari", "policy", "seed", "max_steps", "time_limit")  # of a recipe


class ReadableEpisodes:
    """Base of sequences of episodes, which a subclass reads with ``read(index)``."""

    lengths: Any
    observation_space: Any
    action_space: Any

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.lengths)

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Episode:
        """Read an episode or a window of it."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: SupportsIndex) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Episode | list[Episode]:
        """Read an episode by its position, also from the end; a slice reads a list of episodes.

        Raises:
            IndexError: if there is no such episode.
        """
        if isinstance(index, slice):
            return [self.read(number) for number in range(*index.indices(len(self)))]
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index: expected {-len(self)} to {len(self) - 1}, got {position}")
        return self.read(position % len(self))


def describe_episodes(lengths: np.ndarray, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> str:
    """Return number and lengths of episodes, and their spaces, as text."""
    lengths_text = f", of {lengths.min()} to {lengths.max()} steps, {lengths.sum():,} in all" if len(lengths) else ""
    return f"{len(lengths)} episodes{lengths_text}\n  observations  {observation_space}\n  actions       {action_space}"


def describe_recipe(recipe: Mapping[str, Any]) -> str:
    """Return where episodes come from, as text."""
    known = [f"{name} {recipe[name]}" for name in SHOWN if recipe.get(name) is not None]
    return ", ".join(known) or "unknown source"


def describe_store(store: Any) -> str:
    """Return path, number of episodes, shapes and source of a store as text."""
    failed = f"\n  failed        {len(store.failures)}" if store.failures else ""
    shown = describe_episodes(store.lengths, store.observation_space, store.action_space)
    return f"{type(store).__name__} {store.path}: {shown}\n  source        {describe_recipe(store.recipe)}{failed}"
