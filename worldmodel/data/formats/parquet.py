"""Parquet files to a store and back (extra ``formats``), read a row group's pages at a time.

`to_parquet` writes one row per observation, and the spaces, the recipe and the seeds next to the values. So `from_parquet`
restores the same store. The last row of an episode lacks action, reward and ends.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.data.episode import Episode
from worldmodel.data.formats.config import Columns, ConversionConfig
from worldmodel.data.formats.conversion import convert_source
from worldmodel.data.formats.files import FileSource, list_files
from worldmodel.data.formats.restoring import STEPS, restore
from worldmodel.data.formats.rows import Rows
from worldmodel.data.shards import ELAPSED
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import (
    InvalidFileError,
    Progress,
    RunConfig,
    check_integer,
    file_errors,
    files,
    locked,
    missing_extra,
    naming,
    parse_json,
)
from worldmodel.spaces import leaf_values, leaves, space_to_json

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError:  # `open_parquet` and `to_parquet` raise
    pa = pc = pq = None

BATCH_BYTES = 4 * 2**20  # read at once
GROUP_BYTES = 32 * 2**20  # of a row group that is written, uncompressed
KEY = b"worldmodel"  # of what is not in the columns


def from_parquet(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    columns: Columns | None = None,
    config: ConversionConfig | None = None,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Convert parquet files to a store, or restore the store that `to_parquet` wrote.

    Columns hold numbers, or lists of numbers, which are vectors. Values keep their dtype.

    Args:
        source: a file, several, or a directory of .parquet files, in the order of their names. Each begins another episode.
        out: directory of the store.
        columns: names of columns. None restores the store if `to_parquet` wrote the file.
        config: how rows become episodes.
        run: whether an earlier conversion is resumed or replaced, and how progress is shown.

    Returns:
        The store; `describe_conversion` tells what was found and assumed.

    Raises:
        ImportError: if pyarrow is not installed.
        ValueError: if a file is damaged, a column is missing or a row is wrong; names the file and the row.
    """
    found = ParquetSource.of(source)
    if columns is None and config is None and found.ours is not None:
        return restore(found, found.ours, out=out, run=run)
    return convert_source(found, out=out, columns=columns, config=config, run=run)


@dataclass(frozen=True)
class ParquetSource(FileSource):
    """Parquet files of the same columns.

    Args:
        paths: the files.
        shapes: shape of the columns that are images or matrices stored as lists, by name.
        ours: what `to_parquet` wrote next to the columns, if it wrote the first file.
        rows: number of rows of each file.
        columns: names of all columns.
    """

    shapes: Mapping[str, tuple[int, ...]]
    ours: Mapping[str, Any] | None
    rows: Sequence[int]
    columns: Sequence[str]
    format: str = "parquet"
    images: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str | Path | Sequence[str | Path]) -> ParquetSource:
        """Read the schemas.

        Raises:
            ValueError: if a file is damaged, or has other columns than the first.
        """
        paths = list_files(source, (".parquet", ".pq"))
        files = [open_parquet(path) for path in paths]
        schema = files[0].schema_arrow
        for path, file in zip(paths, files, strict=True):
            if file.schema_arrow.names != schema.names:
                raise ValueError(f"{path}: expected the columns of {paths[0]}, {schema.names}, got {file.schema_arrow.names}")
        with file_errors(paths[0], "the description that to_parquet writes"):
            shapes = {one.name: _shape(one, paths[0]) for one in schema if b"shape" in (one.metadata or {})}
            ours = parse_json(schema.metadata[KEY], paths[0]) if KEY in (schema.metadata or {}) else None
            if not isinstance(ours, (dict, type(None))):
                raise ValueError("it is no object")
        rows = [file.metadata.num_rows for file in files]
        return cls(paths, shapes, ours, rows, schema.names)

    def names(self) -> Sequence[str]:
        """Return the names of the columns."""
        return self.columns

    def total(self) -> tuple[int, str]:
        """Return the number of rows."""
        return sum(self.rows), "row"

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[Rows, int]]:
        """Yield the rows of some megabytes at a time."""
        index = 0
        for path in self.paths:
            first = 0
            known: dict[str, tuple[Any, Any]] = {}  # shape and dtype
            for batch in batches(path, names):
                values, missing, seconds = {}, {}, False
                for name in names:
                    where = f"{path}, row {first}: column {name!r}"
                    value, mask, is_date = to_numpy(batch.column(name), where)
                    with file_errors(where, "numbers of the shape that the column records"):
                        values[name] = value.reshape(len(value), *self.shapes[name]) if name in self.shapes else value
                    seconds = seconds or is_date
                    if mask is not None:
                        missing[name] = mask
                        if mask.all() and name in known:  # lists of unknown length
                            values[name] = np.zeros((len(value), *known[name][0]), known[name][1])
                    known[name] = values[name].shape[1:], values[name].dtype
                rows = Rows(
                    values,
                    str(path),
                    first=first,
                    index=index,
                    begins=first == 0,
                    missing=missing,
                    seconds=seconds,
                    count=batch.num_rows,
                )
                index, first = index + batch.num_rows, first + batch.num_rows
                yield rows, index

    def frames(self, name: str, index: int, count: int) -> np.ndarray:
        """Not needed: all images are among the rows."""
        raise NotImplementedError(name)


def _shape(one: Any, path: Path) -> tuple[int, ...]:
    """Return the shape of a column that is stored as lists of fixed size."""
    shape = tuple(check_integer(number, "shape", least=0) for number in parse_json(one.metadata[b"shape"], path))
    if pa.types.is_fixed_size_list(one.type) and math.prod(shape) != one.type.list_size:
        raise ValueError(f"the shape {shape} of {one.name!r} does not fit its type {one.type}")
    return shape


def open_parquet(path: Path) -> Any:
    """Open a file for reading page by page.

    Raises:
        ValueError: if it is no parquet file, or is cut short.
    """
    _require_pyarrow()
    try:
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidFileError(f"{path}: expected a complete parquet file, got a damaged one: {_one_line(error)}") from error


def batches(path: Path, names: Sequence[str]) -> Iterator[Any]:
    """Yield record batches of a few megabytes with these columns.

    Raises:
        ValueError: if the file is damaged.
    """
    file = open_parquet(path)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    row = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    try:
        yield from file.iter_batches(batch_size=max(1, min(65_536, int(BATCH_BYTES / max(row, 1)))), columns=list(names))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InvalidFileError(f"{path}: expected a complete parquet file, got a damaged one: {_one_line(error)}") from error


def read_columns(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read columns of a small file completely; text becomes an array of objects."""
    file = open_parquet(path)
    if missing := [name for name in names if name not in file.schema_arrow.names]:
        raise ValueError(f"{path}: expected a column {missing[0]!r}, got {file.schema_arrow.names}")
    table = file.read(columns=list(names))
    return {name: to_numpy(table.column(name).combine_chunks(), f"{path}: column {name!r}")[0] for name in names}


def to_numpy(column: Any, where: str) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Convert an Arrow array to NumPy.

    Returns:
        Values (N, ...), with zeros in place of missing integers; which are missing (None if none is); and whether they are
        dates, which become seconds.

    Raises:
        ValueError: if the type is not supported, or lists have different lengths.
    """
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind, mask = column.type, column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if pa.types.is_timestamp(kind):
        factor = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[kind.unit]
        return pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False) * factor, mask, True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(column, mask, where), mask, False
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        with file_errors(where, "text"):
            return np.array(column.to_pylist(), dtype=object), mask, False
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"{where}: expected numbers or lists of numbers, got {kind}; leave the column out")
    if mask is not None:
        column = pc.fill_null(column, False if pa.types.is_boolean(kind) else 0)
    return column.to_numpy(zero_copy_only=False), mask, False


def _lists(column: Any, mask: np.ndarray | None, where: str) -> np.ndarray:
    """Convert lists of the same length to (N, length, ...); missing lists become zeros."""
    lengths = pc.list_value_length(column).drop_null().unique().to_pylist()
    if len(lengths) > 1:
        raise ValueError(f"{where}: expected lists of one length, got lengths {sorted(lengths)[0]} and {sorted(lengths)[-1]}")
    inner, missing, _ = to_numpy(column.drop_null().flatten(), where)
    if missing is not None:
        inner = np.where(missing.reshape(-1, *(1,) * (inner.ndim - 1)), np.nan, inner)
    length = column.type.list_size if pa.types.is_fixed_size_list(column.type) else lengths[0] if lengths else 0
    rows = inner.reshape(len(column) - column.null_count, length, *inner.shape[1:])
    if mask is None:
        return rows
    filled = np.zeros((len(mask), *rows.shape[1:]), rows.dtype)
    filled[~mask] = rows
    return filled


def to_parquet(store: EpisodeStore, path: str | Path, *, overwrite: bool = False, run: RunConfig | None = None) -> Path:
    """Write a store as one parquet file, a row per observation; `from_parquet` restores it without loss.

    Columns: ``episode``, ``seed``, ``step``, ``observation`` (or ``observation/LEAF``), ``action``, ``reward``,
    ``termination``, ``truncation``, and ``elapsed`` if it is stored. The last row of an episode has no action, reward and
    ends. Vectors and images are lists of fixed size.

    Args:
        store: the episodes.
        path: the file; it appears when it is complete.
        overwrite: replace an earlier file.
        run: how progress is shown; stage "export".

    Returns:
        The path.

    Raises:
        ImportError: if pyarrow is not installed.
        FileExistsError: if the file exists and ``overwrite`` is False.
        LockedError: if another process writes the file.
    """
    _require_pyarrow()
    path, run = Path(path), run or RunConfig()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: expected no file, got one; replace it (overwrite=True, --overwrite)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, name=f".{path.name}.lock", break_lock=run.break_lock), naming(path):
        files.remove_temporaries(path.parent, name=path.name)
        return _write(store, path, run)


def _write(store: EpisodeStore, path: Path, run: RunConfig) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{files.TEMPORARY_SUFFIX}")
    schema = _schema(store)
    try:
        with (
            pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
            run.reporter() as report,
        ):
            waiting: list[Episode] = []
            for count, episode in enumerate(store, start=1):
                waiting.append(episode)
                if count == len(store) or sum(one.nbytes for one in waiting) >= GROUP_BYTES:
                    writer.write_table(_table(waiting, schema))
                    waiting = []
                report(Progress("export", count, len(store), "episode"))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _schema(store: EpisodeStore) -> Any:
    described = {name: space_to_json(getattr(store, name)) for name in ("observation_space", "action_space")}
    entries = [pa.field("episode", pa.int64()), pa.field("seed", pa.int64()), pa.field("step", pa.int64())]
    for part, space in (("observation", store.observation_space), ("action", store.action_space)):
        stored = [(path, leaf) for path, leaf in leaves(space) if leaf.shape != (0,)]  # that of data without actions
        entries += [_field(f"{part}/{path}" if path else part, leaf) for path, leaf in stored]
    kinds = {"reward": pa.float64(), "termination": pa.bool_(), "truncation": pa.bool_()}
    kinds |= {ELAPSED: pa.float64()} if store.has_elapsed else {}
    entries += [pa.field(name, kind) for name, kind in kinds.items()]
    return pa.schema(entries, metadata={KEY: json.dumps({"recipe": store.recipe, **described}).encode()})


def _field(name: str, leaf: gym.Space[Any]) -> Any:
    shape, kind = tuple(leaf.shape or ()), pa.from_numpy_dtype(leaf.dtype)
    if shape == ():
        return pa.field(name, kind)
    size = int(np.prod(shape))
    return pa.field(name, pa.list_(kind, size), metadata={b"shape": json.dumps(shape).encode()})


def _table(episodes: Sequence[Episode], schema: Any) -> Any:
    """Return the rows of episodes."""
    rows = [len(episode) + 1 for episode in episodes]
    columns: dict[str, Any] = {
        "episode": pa.array(np.repeat([episode.episode_id for episode in episodes], rows)),
        "step": pa.array(np.concatenate([np.arange(count) for count in rows])),
    }
    seeds = [pa.array([episode.seed] * count, pa.int64()) for episode, count in zip(episodes, rows, strict=True)]
    columns["seed"] = pa.concat_arrays(seeds)
    parts = {"observation": "observations", "action": "actions", **{short: long for long, short in STEPS.items()}}
    parts |= {ELAPSED: ELAPSED} if ELAPSED in schema.names else {}
    for part, attribute in parts.items():
        values = [leaf_values(getattr(episode, attribute)) for episode in episodes]
        for path in values[0]:
            name = f"{part}/{path}" if path else part
            if schema.get_field_index(name) >= 0:
                pairs, kind = zip(values, rows, strict=True), schema.field(name).type
                columns[name] = pa.concat_arrays([_array(np.asarray(one[path]), count, kind) for one, count in pairs])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _array(value: np.ndarray, rows: int, kind: Any) -> Any:
    """Return an Arrow array with ``rows`` entries; missing ones at its end."""
    if pa.types.is_fixed_size_list(kind):
        numbers = pa.array(np.ascontiguousarray(value).reshape(-1), kind.value_type)
        made = pa.FixedSizeListArray.from_arrays(numbers, kind.list_size)
    else:
        made = pa.array(np.ascontiguousarray(value), kind)
    missing = rows - len(value)
    return made if missing == 0 else pa.concat_arrays([made, pa.nulls(missing, kind)])


def _require_pyarrow() -> None:
    if pa is None:
        raise missing_extra("formats")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
