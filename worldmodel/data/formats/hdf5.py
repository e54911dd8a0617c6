"""HDF5 files to a store (extra ``formats``): flat data sets as in D4RL, or a group per episode as in robomimic and Minari."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.formats.config import GUESSES, OBSERVATIONS, Columns, ConversionConfig
from worldmodel.data.formats.conversion import convert_source
from worldmodel.data.formats.files import FileSource, list_files, natural
from worldmodel.data.formats.rows import Rows
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import InvalidFileError, RunConfig, file_errors, missing_extra

try:
    import h5py
except ImportError:  # `from_hdf5` raises
    h5py = None

BATCH_BYTES = 8 * 2**20
MOST_UNSTORED = 2**28  # bytes of a data set that need not be in the file
MOST_COMPRESSION = 5000  # gzip and LZ4 reach 1000
MEASURED = {*OBSERVATIONS, *(name for use in ("action", "reward", "termination", "truncation") for name in GUESSES[use])}


def from_hdf5(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    columns: Columns | None = None,
    config: ConversionConfig | None = None,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Convert HDF5 files to a store.

    Two forms are recognised. *Flat*: data sets with a row per step, of all episodes (D4RL: ``observations``, ``actions``,
    ``rewards``, ``terminals``, ``timeouts``). *Groups*: each group that holds data sets of rows is an episode (robomimic:
    ``data/demo_0/obs/...``, ``actions``); its keys are relative to the group, such as "obs/image". With T actions an episode
    has T + 1 observations; of T observations and T actions the last action is dropped.

    Args:
        source: a file, several, or a directory of .hdf5 or .h5 files.
        out: directory of the store.
        columns: names of data sets, with "/" between groups.
        config: how rows become episodes.
        run: whether an earlier conversion is resumed or replaced, and how progress is shown.

    Returns:
        The store; `describe_conversion` tells what was found and assumed.

    Raises:
        ImportError: if h5py is not installed.
        ValueError: if a file is damaged, a data set is missing or a row is wrong; names the file and the row.
    """
    return convert_source(Hdf5Source.of(source), out=out, columns=columns, config=config, run=run)


@dataclass(frozen=True)
class Hdf5Source(FileSource):
    """HDF5 files of the same keys.

    Args:
        paths: the files.
        groups: paths of the episodes' groups in each file; [""] if it is flat.
        keys: data sets, relative to the group.
        rows: number of rows in all files.
    """

    groups: Sequence[Sequence[str]]
    keys: Sequence[str]
    rows: int
    format: str = "hdf5"
    images: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str | Path | Sequence[str | Path]) -> Hdf5Source:
        """List the episodes and their data sets.

        Raises:
            ValueError: if a file is damaged or holds no data sets of rows.
        """
        if h5py is None:
            raise missing_extra("formats")
        paths = list_files(source, (".hdf5", ".h5", ".hdf"))
        groups, keys, rows = [], [], 0
        for path in paths:
            with _opened(path) as file:
                with file_errors(path, "a complete HDF5 file"):
                    found = _episodes_of(file)
                    _check_sizes(file)
                if not found:
                    raise ValueError(f"{path}: expected data sets with a row per step, got none")
                groups.append(sorted(found, key=natural))
                first = found[groups[-1][0]]
                keys.append(first)
                rows += sum(len(file[group or "/"].get(first[0], ())) for group in found)  # `pieces` names what lacks it
        return cls(paths, groups, keys[0], rows)

    def names(self) -> Sequence[str]:
        """Return the keys of the data sets."""
        return self.keys

    def total(self) -> tuple[int, str]:
        """Return the number of rows."""
        return max(1, self.rows), "row"

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[Rows, int]]:
        """Yield episodes, or of flat files the rows of some megabytes."""
        index, number = 0, 0
        for path, groups in zip(self.paths, self.groups, strict=True):
            with _opened(path) as file:
                for group in groups:
                    for rows in _read(path, file, group, names, index, number):
                        index += len(rows)
                        yield rows, min(index, self.total()[0])
                    number += 1

    def frames(self, name: str, index: int, count: int) -> np.ndarray:
        """Not needed: all images are among the rows."""
        raise NotImplementedError(name)


def _read(path: Path, file: Any, group: str, names: Sequence[str], index: int, number: int) -> Iterator[Rows]:
    """Yield the rows of one group: all, or of a flat file some at a time."""
    where = f"{path}, {group}" if group else str(path)
    place = file[group] if group else file
    for name in names:
        if name not in place:
            raise ValueError(f"{where}: expected a data set {name!r}, got {', '.join(sorted(_datasets(place)))}")
    sets = {name: place[name] for name in names}
    try:
        if group:
            label = int(digits) if (digits := "".join(filter(str.isdecimal, group.rsplit("/", 1)[-1]))) else number
            with file_errors(where, "a complete HDF5 file"):
                values = {name: _values(one[()]) for name, one in sets.items()}
            yield Rows(values, where, index=index, begins=True, complete=True, label=label)
            return
        total = {name: len(one) for name, one in sets.items()}
        if len(set(total.values())) > 1:
            raise ValueError(f"{where}: expected data sets of the same length, got {total}")
        size = next(iter(total.values()), 0)
        row = sum(one.dtype.itemsize * int(np.prod(one.shape[1:])) for one in sets.values())
        step = max(1, min(65_536, BATCH_BYTES // max(1, row)))
        for first in range(0, size, step):
            with file_errors(where, "a complete HDF5 file"):
                values = {name: _values(one[first : first + step]) for name, one in sets.items()}
            yield Rows(values, where, first=first, index=index + first, begins=first == 0)
    except OSError as error:
        raise InvalidFileError(f"{where}: expected a complete HDF5 file, got a damaged one: {_one_line(error)}") from error


def _opened(path: Path) -> Any:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InvalidFileError(f"{path}: expected a complete HDF5 file, got a damaged one: {_one_line(error)}") from error


def _episodes_of(file: Any) -> dict[str, list[str]]:
    """Return the groups of episodes with the keys of their data sets; one named "" if the file is flat."""
    found = _datasets(file)
    if any("/" not in name for name in found):
        return {"": [name for name, one in found.items() if "/" not in name or len(one) == _longest(found)]}
    episodes: dict[str, list[str]] = {}
    depth = min(name.count("/") for name in found) if found else 0
    for name in found:
        parts = name.split("/")
        episodes.setdefault("/".join(parts[:depth]), []).append("/".join(parts[depth:]))
    if len(episodes) == 1 and depth and not any(map(str.isdecimal, next(iter(episodes)))):
        return {"": list(found)}  # D4RL's ``infos/...`` alone
    return episodes


def _longest(found: Mapping[str, Any]) -> int:
    return max(len(one) for one in found.values())


def _datasets(place: Any) -> dict[str, Any]:
    """Return the data sets with rows below a group, by their path: all of numbers, and those whose names have a use."""
    found: dict[str, Any] = {}

    def visit(name: str, thing: Any) -> None:
        if not isinstance(thing, h5py.Dataset) or not thing.shape:
            return
        if thing.dtype.kind in "biuf" or name.rsplit("/", 1)[-1].lower() in MEASURED:
            found[name] = thing  # of actions that are text, say, the reader tells that they are no numbers

    place.visititems(visit)
    return found


def _check_sizes(file: Any) -> None:
    """Raise if data sets claim far more numbers than the file can hold, which would fill the memory with zeros."""
    for name, one in _datasets(file).items():
        claimed, stored = one.dtype.itemsize * math.prod(one.shape), one.id.get_storage_size()
        if claimed > MOST_UNSTORED and claimed > MOST_COMPRESSION * stored:
            raise ValueError(f"{name!r} has {claimed:,} bytes, but only {stored:,} of them were written")


def _values(value: np.ndarray) -> np.ndarray:
    """Return rows of one number as (N,), as D4RL's flags may be (N, 1)."""
    return value[:, 0] if value.ndim == 2 and value.shape[1] == 1 and value.dtype.kind == "b" else value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
