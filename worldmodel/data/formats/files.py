"""Files of recorded data: found, ordered and identified."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_FILES = 100  # that are listed one by one
SAMPLE_BYTES = 2**20  # at both ends of a file, and between them


def list_files(source: str | Path | Sequence[str | Path], suffixes: Sequence[str]) -> list[Path]:
    """Return the files of a source in natural order, in which "2" precedes "10".

    Args:
        source: a file, several in their order, or a directory, of which the files with these suffixes are taken.
        suffixes: such as ".csv".

    Raises:
        FileNotFoundError: if there is none.
    """
    given = [source] if isinstance(source, (str, Path)) else list(source)
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            found += sorted((one for one in path.rglob("*") if one.suffix.lower() in suffixes and one.is_file()), key=natural)
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: expected a file or a directory, got nothing")
    if not found:
        raise FileNotFoundError(f"{source}: expected a file that ends in {' or '.join(suffixes)}, got none")
    return found


def natural(name: str | Path) -> list[Any]:
    """Return a key that sorts the numbers in names by value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(name))]


def identity_of(paths: Sequence[Path]) -> list[Any]:
    """Return name, size and checksum of each file; of many files, their number, size and checksum."""
    found = [file_identity(path) for path in paths]
    if len(found) <= MOST_FILES:
        return found
    return [len(found), sum(size for _, size, _ in found), zlib.crc32(repr(found).encode())]


def file_identity(path: Path) -> list[Any]:
    """Return name, size and a checksum of 16 samples of a file; a larger file is not read as a whole."""
    size, checksum = path.stat().st_size, 0
    with open(path, "rb") as file:
        for part in range(16):
            file.seek(max(0, (size - SAMPLE_BYTES) * part // 15))
            checksum = zlib.crc32(file.read(SAMPLE_BYTES), checksum)
            if size <= SAMPLE_BYTES:
                break
    return [path.name, size, checksum]


@dataclass(frozen=True)
class FileSource:
    """Part of a source that is made of files.

    Args:
        paths: the files, in order.
    """

    paths: list[Path]

    @property
    def described(self) -> str:
        """Name of the first file."""
        return str(self.paths[0])

    def identity(self) -> Any:
        """Return name, size and checksum of each file."""
        return identity_of(self.paths)
