"""Rows of recorded data, and the episodes that they form.

A row is an observation with the action that followed it, and the reward and the ends of that step. The last row of an episode
may lack them (T + 1 observations for T actions). If it has them (T and T), its action is dropped, as the observation after it
was not recorded. Rows are read a piece at a time, so memory holds one episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Rows:
    """A piece of a source: N rows of some columns.

    Args:
        values: (N, ...) each, by column. If ``complete``, columns of steps may have N - 1 rows.
        source: name of the file or argument.
        first: number of the first row, for messages.
        unit: what is numbered, "row" or "line".
        lines: (N,) numbers of the rows, if they do not follow each other.
        index: position of the first row among all rows of the source, for its videos.
        begins: whether the first row begins an episode, as that of a file does.
        complete: whether the piece is a complete episode.
        label: name of this episode, if it is complete.
        missing: (N,) bool by column, True where a value is missing; NaN counts as missing anyway.
        seconds: whether times are seconds, whatever the configuration says.
        count: N, if there are no values, as of a video alone.
    """

    values: Mapping[str, np.ndarray]
    source: str
    first: int = 0
    unit: str = "row"
    lines: np.ndarray | None = None
    index: int = 0
    begins: bool = False
    complete: bool = False
    label: Any = None
    missing: Mapping[str, np.ndarray] = field(default_factory=dict)
    seconds: bool = False
    count: int = 0

    def __len__(self) -> int:
        """Return N."""
        return max((len(value) for value in self.values.values()), default=self.count)

    def where(self, row: int) -> str:
        """Describe a row: file and number."""
        number = self.first + row if self.lines is None else int(self.lines[row])
        return f"{self.source}, {self.unit} {number}"

    def part(self, start: int, stop: int) -> Rows:
        """Return the rows [start, stop)."""
        return replace(
            self,
            values={name: value[start:stop] for name, value in self.values.items()},
            missing={name: mask[start:stop] for name, mask in self.missing.items()},
            lines=None if self.lines is None else self.lines[start:stop],
            first=self.first + start,
            index=self.index + start,
            count=stop - start,
        )


class Source(Protocol):
    """Recorded data in some format."""

    @property
    def format(self) -> str:
        """Name of the format."""

    @property
    def described(self) -> str:
        """Name of the file or directory, for messages."""

    @property
    def images(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the columns that are not among the rows, but read by `frames`."""

    def names(self) -> Sequence[str]:
        """Return the names of all columns, in order."""

    def identity(self) -> Any:
        """Return what distinguishes the data from others, as JSON-serialisable data."""

    def total(self) -> tuple[int, str]:
        """Return the size of the source and its unit, for the progress bar; see `done`."""

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[Rows, int]]:
        """Yield pieces with these columns, and how much of `total` was read so far."""

    def frames(self, name: str, index: int, count: int) -> np.ndarray:
        """Return the images of ``count`` rows from row ``index`` of the source."""


@dataclass(frozen=True)
class Recording:
    """An episode of a source.

    Args:
        values: by column; (N, ...) of observations, (N - 1, ...) of steps.
        count: N.
        label: name of the episode in the source; None if it has none.
        index: position of its first row in the source.
        where: describes its first row.
        fragment: whether it is a part of an episode of the source, which was split or cut.
        seconds: whether times are seconds, whatever the configuration says.
    """

    values: dict[str, np.ndarray]
    count: int
    label: Any
    index: int
    where: str
    fragment: bool
    seconds: bool = False


def missing_in(rows: Rows, name: str) -> np.ndarray:
    """Return which rows lack a number of a column, (N,) bool."""
    value = rows.values[name]
    missing = rows.missing.get(name, np.zeros(len(value), dtype=bool))
    if value.dtype.kind == "f":
        missing = missing | np.isnan(value.reshape(len(value), -1)).any(axis=1)
    return missing
