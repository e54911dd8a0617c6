"""Several stores as one list of episodes, and its split into training and test sets."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldmodel.data.episode import Episode
from worldmodel.data.missing import joined_missing, missing_numbers
from worldmodel.data.reading import ReadableEpisodes, describe_episodes, describe_recipe
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import check_integer, local_path
from worldmodel.spaces import select_leaves, without_leaves


class EpisodeCollection(ReadableEpisodes):
    """One or several stores of the same environment as one list of episodes.

    Args:
        stores: at least one store; all have the same spaces.
        min_length: minimum number of steps; shorter episodes are left out.
        leave_out: paths of leaves of the observations that are left out.

    Attributes:
        reads_time: whether episodes have the time of each step: if all stores have it. A reader that needs none may set it to
            False.

    Raises:
        ValueError: if there is no store, no episode of at least ``min_length`` steps, or if the
            spaces differ.
    """

    def __init__(self, stores: Sequence[EpisodeStore], *, min_length: int = 1, leave_out: Sequence[str] = ()):
        if not stores:
            raise ValueError("stores: expected at least one, got none")
        for store in stores[1:]:
            for name in ("observation_space", "action_space"):
                expected, actual = getattr(stores[0], name), getattr(store, name)
                if actual != expected:
                    raise ValueError(f"{store.path}: expected {name} {expected} as in {stores[0].path}, got {actual}")
        self.stores = list(stores)
        self._selects = bool(leave_out)
        self.reads_time = all(store.has_elapsed for store in stores)
        self.observation_space = without_leaves(stores[0].observation_space, leave_out)
        self.action_space = stores[0].action_space
        lengths = np.concatenate([store.lengths for store in stores])
        self._kept = np.flatnonzero(lengths >= min_length)  # indices into all episodes
        self.lengths = lengths[self._kept]
        self._first = np.cumsum([0] + [len(store) for store in stores])
        if len(self.lengths) == 0:
            paths, least = (
                ", ".join(str(store.path) for store in stores),
                f" of at least {min_length} steps" if min_length > 1 else "",
            )
            raise ValueError(f"{paths}: expected at least one episode{least} to train on, got none; collect some first")

    @classmethod
    def open(
        cls, data: str | Path | Sequence[str | Path], *, min_length: int = 1, leave_out: Sequence[str] = ()
    ) -> EpisodeCollection:
        """Open one or several stores by path.

        Args:
            data: one path or several.
            min_length: minimum number of steps; shorter episodes are left out.
            leave_out: paths of leaves of the observations that are left out.

        Raises:
            FileNotFoundError: if a path holds no store.
            ValueError: if a store is given twice, if no episode is long enough, or if the spaces
                differ.
        """
        paths = [data] if isinstance(data, (str, Path)) else list(data)
        if len({local_path(path).resolve() for path in paths}) < len(paths):
            raise ValueError(f"data: expected different stores, got one twice in {[str(path) for path in paths]}")
        stores = [EpisodeStore.open(path) for path in paths]
        for store in stores:
            if store.unfinished is not None:
                found = f"{store.path}: expected a complete store, got {len(store)} episodes"
                warnings.warn(f"{found}: {store.unfinished}", UserWarning, stacklevel=2)
        return cls(stores, min_length=min_length, leave_out=leave_out)

    def __repr__(self) -> str:
        sources = "".join(f"\n  {store.path}: {describe_recipe(store.recipe)}" for store in self.stores)
        return f"EpisodeCollection: {describe_episodes(self.lengths, self.observation_space, self.action_space)}{sources}"

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.lengths)

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Episode:
        """Read steps [start, stop) of episode ``index``; ``stop=None`` means its end."""
        index = int(self._kept[index])
        which = int(np.searchsorted(self._first, index, side="right")) - 1
        episode = self.stores[which].read(index - int(self._first[which]), start, stop)
        if episode.elapsed is not None and not self.reads_time:
            episode = replace(episode, elapsed=None)
        if not self._selects:
            return episode
        return replace(episode, observations=select_leaves(self.observation_space, episode.observations))

    @property
    def missing(self) -> dict[str, tuple[int, ...]]:
        """Numbers of the observation that may be missing (NaN) in some store, by leaf."""
        return joined_missing(missing_numbers(store.recipe, self.observation_space) for store in self.stores)

    def terminated(self) -> np.ndarray:
        """Return whether each episode ended with a termination, (episodes,) bool; see `EpisodeStore.terminated`."""
        return np.concatenate([store.terminated() for store in self.stores])[self._kept]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the fingerprints of the stores, in order."""
        return hashlib.sha256("".join(store.fingerprint for store in self.stores).encode()).hexdigest()


def split_episodes(num_episodes: int, *, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split episode indices into training and test sets at random.

    With two or more episodes, both sets hold at least one, unless ``test_fraction`` is 0. A single
    episode is for training.

    Args:
        num_episodes: number of episodes, >= 1.
        test_fraction: fraction of the episodes in the test set, in [0, 1).
        seed: seed of the split.

    Returns:
        Sorted indices of the training episodes and of the test episodes.

    Raises:
        TypeError: if ``num_episodes`` or ``seed`` is not an integer.
        ValueError: if a number is out of range.
    """
    num_episodes, seed = check_integer(num_episodes, "num_episodes", least=1), check_integer(seed, "seed", least=0)
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number in [0, 1), got {test_fraction}")
    held_out = 0 if test_fraction == 0 else min(max(1, round(num_episodes * test_fraction)), num_episodes - 1)
    order = np.random.default_rng([seed, num_episodes]).permutation(num_episodes)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def permuted(positions: np.ndarray, size: int, *, key: Sequence[int]) -> np.ndarray:
    """Return entries of a pseudo-random permutation of range(size) without storing the permutation.

    A four-round Feistel network over the smallest even number of bits that holds ``size``, with
    cycle walking: apply it again until the result is below ``size`` (Black & Rogaway 2002). Memory
    is O(len(positions)) for any ``size``.

    Args:
        positions: (n,) integers in [0, size).
        size: length of the permutation.
        key: integers that select the permutation.

    Returns:
        (n,) int64 integers in [0, size), distinct for distinct positions.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    half_mask = np.uint64((1 << int(half_bits)) - 1)
    round_keys = np.random.default_rng(list(key)).integers(0, 2**63, size=4, dtype=np.uint64)
    result = np.asarray(positions).astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half_bits, result[outside] & half_mask
        for round_key in round_keys:
            mixed = (right + round_key) * np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2^64
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & half_mask)
        result[outside] = (left << half_bits) | right
        outside = result >= size
    return result.astype(np.int64)
