"""Arrays in memory as a store: flat ones with the ends of episodes, or one array per episode."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.formats.config import Columns, ConversionConfig
from worldmodel.data.formats.conversion import convert_source
from worldmodel.data.formats.rows import Rows
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import RunConfig

CHUNK_ROWS = 65_536

Arrays = np.ndarray | Sequence[np.ndarray]  # of all episodes, one behind the other, or one array per episode


def from_arrays(
    observations: Arrays | Mapping[str, Arrays],
    actions: Arrays | Mapping[str, Arrays] | None = None,
    rewards: Arrays | None = None,
    *,
    out: str | Path,
    terminations: Arrays | None = None,
    truncations: Arrays | None = None,
    episodes: np.ndarray | None = None,
    time: Arrays | None = None,
    config: ConversionConfig | None = None,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Convert arrays to a store.

    Two forms are accepted. *Flat*: each argument is one array with a row per step, of all episodes; they end where
    ``terminations`` (D4RL: terminals) or ``truncations`` (timeouts) are true, or where ``episodes`` changes. *Per episode*:
    each argument is a list of arrays, which may have different lengths. With T actions an episode has T + 1 observations; of T
    observations and T actions the last action is dropped.

    Args:
        observations: one array or list, or a mapping of several, which become a Dict. uint8 arrays of the shape of images are
            images.
        actions: likewise; None makes an action-free model.
        rewards: one number per step.
        out: directory of the store.
        terminations: whether the step led to a terminal state.
        truncations: whether the episode was cut off after the step.
        episodes: (N,) number or name of the episode of each row, if the arrays are flat.
        time: time of each observation, which is checked.
        config: how rows become episodes.
        run: whether an earlier conversion is resumed or replaced, and how progress is shown.

    Returns:
        The store; `describe_conversion` tells what was found and assumed.

    Raises:
        TypeError: if arrays and lists are mixed, or something else is given.
        ValueError: if lengths or dtypes do not fit each other, or a number is not finite; names the argument and the row.
    """
    named: dict[str, Any] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for part, given in (("observation", observations), ("action", actions)):
        entries = dict(given) if isinstance(given, Mapping) else {} if given is None else {f"{part}s": given}
        repeated = {name: f"{part}.{name}" if name in named else name for name in entries}
        groups[part] = tuple(repeated.values())
        named |= {repeated[name]: value for name, value in entries.items()}
    if not groups["observation"]:
        raise TypeError(
            "observations: expected an array of rows, a list with one array per episode, or a mapping of these, got "
            f"{'an empty mapping' if isinstance(observations, Mapping) else type(observations).__name__}"
        )
    single = {"reward": rewards, "termination": terminations, "truncation": truncations, "episode": episodes, "time": time}
    names = {"reward": "rewards", "termination": "terminations", "truncation": "truncations", "episode": "episodes"}
    columns = {role: "" if value is None else names.get(role, role) for role, value in single.items()}
    named |= {columns[role]: value for role, value in single.items() if value is not None}
    chosen = Columns(observation=groups["observation"], action=groups["action"], next_observation="", **columns)
    return convert_source(ArraySource(_checked(named, chosen)), out=out, columns=chosen, config=config, run=run)


def _checked(named: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Return arrays or lists of arrays, all of one form and of the same length or number."""
    flat = {name: isinstance(value, np.ndarray) for name, value in named.items()}
    if len(set(flat.values())) > 1:
        kinds = [f"{name} {'an array' if is_flat else 'a list'}" for name, is_flat in flat.items()]
        raise TypeError(f"arrays: expected arrays of all episodes, or lists with one array per episode, got {', '.join(kinds)}")
    if not all(flat.values()):
        return {name: [np.asarray(one) for one in value] for name, value in _same_lengths(named, "episodes").items()}
    return _same_lengths(named, "rows")


def _same_lengths(named: Mapping[str, Any], unit: str) -> dict[str, Any]:
    first = next(iter(named))
    for name, value in named.items():
        if not hasattr(value, "__len__") or (isinstance(value, np.ndarray) and value.ndim == 0):
            raise TypeError(f"{name}: expected an array of rows, or a list with one array per episode, got {value!r}")
        if len(value) != len(named[first]):
            hint = "" if unit == "episodes" else "; give lists with one array per episode for T + 1 observations and T actions"
            raise ValueError(f"{name}: expected {len(named[first])} {unit}, as in {first}, got {len(value)}{hint}")
    return dict(named)


@dataclass(frozen=True)
class ArraySource:
    """Arrays of all episodes, or lists with one array per episode, by name."""

    arrays: Mapping[str, Any]
    format: str = "arrays"
    described: str = "arrays"
    images: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def _is_flat(self) -> bool:
        return all(isinstance(value, np.ndarray) for value in self.arrays.values())

    def names(self) -> list[str]:
        """Return the names of the arrays."""
        return list(self.arrays)

    def identity(self) -> dict[str, Any]:
        """Return shape, dtype and checksum of each array, or their number and checksum."""
        if self._is_flat:
            return {name: [str(one.dtype), list(one.shape), _checksum(one)] for name, one in self.arrays.items()}
        found: dict[str, Any] = {}
        for name, listed in self.arrays.items():
            checksum = 0
            for one in listed:
                checksum = zlib.crc32(f"{one.dtype} {one.shape} {_checksum(one)}".encode(), checksum)
            found[name] = [len(listed), checksum]
        return found

    def total(self) -> tuple[int, str]:
        """Return the number of rows or episodes."""
        return len(next(iter(self.arrays.values()))), "row" if self._is_flat else "episode"

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[Rows, int]]:
        """Yield slices of flat arrays, or the episodes."""
        total = self.total()[0]
        if not self._is_flat:
            for number in range(total):
                values = {name: self.arrays[name][number] for name in names}
                yield Rows(values, f"episode {number}", begins=True, complete=True, label=number), number + 1
            return
        for first in range(0, total, CHUNK_ROWS):
            values = {name: self.arrays[name][first : first + CHUNK_ROWS] for name in names}
            yield Rows(values, "arrays", first=first, index=first, begins=first == 0), min(first + CHUNK_ROWS, total)

    def frames(self, name: str, index: int, count: int) -> np.ndarray:
        """Not needed: all images are among the rows."""
        raise NotImplementedError(name)


def _checksum(array: np.ndarray) -> int:
    if array.dtype.kind == "O":
        return zlib.crc32(repr(array.tolist()).encode())
    checksum = 0
    for first in range(0, max(1, len(array)) if array.ndim else 1, CHUNK_ROWS):
        part = np.ascontiguousarray(array[first : first + CHUNK_ROWS] if array.ndim else array)
        checksum = zlib.crc32(part.reshape(-1).view(np.uint8).data, checksum) if part.size else checksum
    return checksum
