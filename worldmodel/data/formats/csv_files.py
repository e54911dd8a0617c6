"""CSV files as a store, read a few megabytes at a time."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldmodel.data.formats.config import Columns, ConversionConfig
from worldmodel.data.formats.conversion import convert_source
from worldmodel.data.formats.files import FileSource, list_files
from worldmodel.data.formats.rows import Rows
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import InvalidFileError, RunConfig

CHUNK_BYTES = 4 * 2**20  # characters read at once
MISSING = ("", "nan", "na", "n/a", "null", "none", "-")
TRUTH = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
DELIMITERS = ",;\t|"
MEGABYTE = 10**6


def from_csv(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    columns: Columns | None = None,
    config: ConversionConfig | None = None,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Convert CSV files with a header to a store; only a few megabytes are in memory, and the rows of one episode.

    Numbers are float64; columns of whole numbers alone are integers. An empty cell, "nan", "null" and the like are missing
    values. Times may be numbers, or dates such as 2026-05-01T12:00:00.250. The delimiter is found in the header.

    Args:
        source: a file, several, or a directory of .csv files, in the order of their names. Each file begins another episode.
        out: directory of the store.
        columns: names of columns.
        config: how rows become episodes.
        run: whether an earlier conversion is resumed or replaced, and how progress is shown.

    Returns:
        The store; `describe_conversion` tells what was found and assumed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing or a row is wrong; names the file and the line.
    """
    found = CsvSource.of(source, columns or Columns())
    return convert_source(found, out=out, columns=columns, config=config, run=run)


@dataclass(frozen=True)
class CsvSource(FileSource):
    """CSV files of the same columns.

    Args:
        paths: the files.
        header: names of the columns.
        delimiter: between cells.
        named: the columns as the caller names them.
    """

    header: tuple[str, ...]
    delimiter: str
    named: Columns
    format: str = "csv"
    images: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str | Path | Sequence[str | Path], named: Columns) -> CsvSource:
        """Read the header of the first file.

        Raises:
            ValueError: if a file is empty or has another header.
        """
        paths = list_files(source, (".csv", ".tsv", ".txt"))
        headers = [_header(path) for path in paths]
        for path, header in zip(paths, headers, strict=True):
            if header != headers[0]:
                raise ValueError(f"{path}: expected the columns of {paths[0]}, {list(headers[0][0])}, got {list(header[0])}")
        return cls(paths, *headers[0], named)

    def names(self) -> Sequence[str]:
        """Return the names of the columns."""
        return self.header

    def total(self) -> tuple[int, str]:
        """Return the size of all files in megabytes."""
        return max(1, sum(path.stat().st_size for path in self.paths) // MEGABYTE), "MB"

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[Rows, int]]:
        """Yield the rows of some megabytes at a time."""
        chosen, _ = self.named.resolve(self.header, self.described)
        index, characters = 0, 0
        for path in self.paths:
            begins = True
            for lines, numbers in _lines(path):
                characters += sum(map(len, lines))
                parser = _Parser(self, path, [chosen.episode, chosen.time])
                rows = Rows(
                    parser.parse(lines, numbers, names),
                    str(path),
                    unit="line",
                    lines=numbers,
                    index=index,
                    begins=begins,
                    seconds=bool(parser.found_dates),
                )
                index, begins = index + len(lines), False
                yield rows, characters // MEGABYTE

    def frames(self, name: str, index: int, count: int) -> np.ndarray:
        """Not available: a CSV file has no images."""
        raise NotImplementedError(name)


def _header(path: Path) -> tuple[tuple[str, ...], str]:
    """Return the names of the columns and the delimiter."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            line = file.readline(CHUNK_BYTES + 1)
        except UnicodeDecodeError as error:
            raise InvalidFileError(f"{path}: expected text in UTF-8, got other bytes") from error
    delimiter = max(DELIMITERS, key=line.count)
    if len(line) > CHUNK_BYTES:
        raise InvalidFileError(f"{path}, line 1: expected a header with names of columns, got a line of more than 4 MB")
    try:
        names = tuple(cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error as error:
        raise InvalidFileError(f"{path}, line 1: expected a header with names, got another text ({error})") from error
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError(f"{path}, line 1: expected a header with different names of columns, got {line.strip()!r}")
    if all(re.fullmatch(r"[-+.\deE]+", name) for name in names):
        raise ValueError(f"{path}, line 1: expected a header with names of columns, got numbers: {line.strip()[:60]!r}")
    return names, delimiter


def _lines(path: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield lines after the header with their numbers; blank lines are left out."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        file.readline()
        number = 2
        while True:
            try:
                lines = file.readlines(CHUNK_BYTES)
            except UnicodeDecodeError as error:
                raise InvalidFileError(f"{path}, after line {number - 1}: expected text in UTF-8, got other bytes") from error
            if not lines:
                return
            numbers = np.arange(number, number + len(lines))
            number += len(lines)
            if any(line.isspace() for line in lines):
                kept = [i for i, line in enumerate(lines) if not line.isspace()]
                lines, numbers = [lines[i] for i in kept], numbers[kept]
            if lines:
                yield lines, numbers


class _Parser:
    """Parses lines of one file: by NumPy's fast reader if all cells are numbers, else by columns, else cell by cell.

    Args:
        source: the files' columns and delimiter.
        path: the file, for messages.
        others: names of the columns of episodes, which may be text, and of times, which may be dates.
    """

    def __init__(self, source: CsvSource, path: Path, others: Sequence[str | None]):
        self._header, self._delimiter, self._path = source.header, source.delimiter, path
        self._episode, self._time = others
        self.found_dates: bool | None = None  # whether times are dates; None before the first

    def parse(self, lines: list[str], numbers: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the columns, float64 but for episodes that are text."""
        positions = [self._header.index(name) for name in names]
        cells = len(self._header) - 1
        if not any('"' in line for line in lines):
            wrong = next((i for i, line in enumerate(lines) if line.count(self._delimiter) != cells), None)
            if wrong is not None:
                self._refuse(lines[wrong].count(self._delimiter) + 1, int(numbers[wrong]), wrong == len(lines) - 1)
            try:
                table = np.loadtxt(lines, delimiter=self._delimiter, usecols=positions, comments=None, ndmin=2)
            except ValueError:
                pass
            else:
                return {name: table[:, column] for column, name in enumerate(names)}
        rows: list[list[str]] = []
        try:
            rows.extend(csv.reader(lines, delimiter=self._delimiter))
        except csv.Error as error:
            line = int(numbers[min(len(rows), len(lines) - 1)])
            raise InvalidFileError(f"{self._path}, line {line}: expected cells, got another text ({error})") from error
        if len(rows) != len(lines):
            raise ValueError(f"{self._path}, line {numbers[0]}: expected a row per line, got a line break in a cell")
        for i, row in enumerate(rows):
            if len(row) != cells + 1:
                self._refuse(len(row), int(numbers[i]), i == len(lines) - 1)
        by_column = list(zip(*rows, strict=True))
        return {name: self._column(name, by_column[at], numbers) for name, at in zip(names, positions, strict=True)}

    def _refuse(self, found: int, line: int, is_last: bool) -> None:
        cut = "; the file may be cut short" if is_last and found < len(self._header) else ""
        raise ValueError(f"{self._path}, line {line}: expected {len(self._header)} cells, got {found}{cut}")

    def _column(self, name: str, cells: Sequence[str], numbers: np.ndarray) -> np.ndarray:
        try:
            if not any("_" in cell for cell in cells):  # Python reads 1_000 as a number, other programs do not
                return np.array(cells).astype(np.float64)
        except ValueError:
            pass
        if name == self._episode:
            return np.array([_label(cell.strip()) for cell in cells], dtype=object)
        return np.array([self._cell(name, cell, int(line)) for cell, line in zip(cells, numbers, strict=True)])

    def _cell(self, name: str, cell: str, line: int) -> float:
        text = cell.strip().lower()
        if text in MISSING:
            return np.nan
        number, is_time = _number(text), name == self._time
        found = _seconds(cell.strip()) if number is None and is_time else number
        if found is None:
            date = " or a date such as 2026-05-01T12:00:00.250" if is_time else ""
            raise ValueError(f"{self._path}, line {line}: expected a number{date} in {name!r}, got {cell!r}")
        if is_time and self.found_dates not in (None, number is None):
            kind = "date" if self.found_dates else "number"
            raise ValueError(f"{self._path}, line {line}: expected a {kind} in {name!r}, as in the lines before, got {cell!r}")
        self.found_dates = number is None if is_time else self.found_dates
        return found


def _number(text: str) -> float | None:
    """Return the number or the truth value that a cell in lower case holds; None if it holds another text."""
    try:
        return TRUTH[text] if text in TRUTH else None if "_" in text else float(text)
    except ValueError:
        return None


def _seconds(cell: str) -> float | None:
    """Return a date in seconds since 1970; None if it is none."""
    if not re.match(r"[0-9]{4}-[0-9]{2}", cell):  # NumPy would read "today" and "NaT" too
        return None
    try:
        moment = np.datetime64(cell.removesuffix("Z").replace(" ", "T"), "ns")
    except ValueError:
        return None
    return float(moment.astype(np.int64)) * 1e-9


def _label(cell: str) -> int | str | None:
    """Return the name of an episode; whole numbers are integers, as in files where all are numbers; None if it is missing."""
    if cell.lower() in MISSING:
        return None
    if re.fullmatch(r"[-+]?[0-9]{1,18}", cell):
        return int(cell)  # exact, unlike float64
    try:
        return int(float(cell)) if float(cell).is_integer() else cell
    except ValueError:
        return cell
