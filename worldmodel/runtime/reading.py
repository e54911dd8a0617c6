"""Read files that may be damaged or made to do harm: regular files of bounded size, JSON of bounded depth, one error type.

Every file of the library is read through this module. Whatever is wrong with a file, the reader raises `InvalidFileError`, and
it allocates little before the content is known to be consistent.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_BYTES = 2**28  # a manifest of a million episodes has 50 MB
MAX_DEPTH = 64  # of nested JSON; Python's own parser gives up at about 1000
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


class InvalidFileError(ValueError):
    """A file that is damaged, has another format, or was written by a newer version; the message names it."""


class NewerVersionError(InvalidFileError):
    """A file of a newer version of this library, which is never changed."""


def check_regular(path: str | Path) -> os.stat_result:
    """Return the status of a regular file, without opening it: opening a FIFO waits for ever.

    Raises:
        FileNotFoundError: if there is none.
        InvalidFileError: if it is a directory, a FIFO, a device, a socket, or a link that leads nowhere or in a circle.
    """
    path = Path(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise InvalidFileError(f"{path}: expected a file, got a link that leads nowhere") from None
        raise
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InvalidFileError(f"{path}: expected a file, got a link that leads in a circle") from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidFileError(f"{path}: expected a regular file, got a directory, a FIFO or a device")
    return status


def read_bytes(path: str | Path, *, most: int | None = None) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        most: largest size allowed, in bytes; None allows every size.

    Raises:
        FileNotFoundError: if there is none.
        InvalidFileError: if it is no regular file, or larger than ``most``.
    """
    size = check_regular(path).st_size
    if most is not None and size > most:
        raise InvalidFileError(f"{path}: expected at most {most:,} bytes, got {size:,}")
    return Path(path).read_bytes()


def open_regular(path: str | Path) -> io.FileIO:
    """Open a regular file for reading, without a buffer; raises as `check_regular`."""
    check_regular(path)
    return open(path, "rb", buffering=0)


def parse_json(data: bytes | str, source: str | Path, *, what: str = "JSON") -> Any:
    """Parse JSON of bounded size and depth, without the numbers that JSON does not have.

    Args:
        data: UTF-8.
        source: name of the file, for messages.
        what: what was expected, for messages.

    Raises:
        InvalidFileError: if it is too large or too deep, not JSON, or contains NaN or infinity.
    """
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    with file_errors(source, what):
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"it has {len(data):,} bytes, more than {MAX_JSON_BYTES:,}")
        _check_depth(data)
        return json.loads(data.decode(), parse_constant=_refuse_number, parse_float=_finite)


def _check_depth(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKEN.finditer(data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token.group(), 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text} is not finite")


@contextlib.contextmanager
def file_errors(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever damaged content raises in a block into an `InvalidFileError` that names the file.

    Args:
        path: the file, for messages.
        what: what was expected.

    Raises:
        InvalidFileError: instead of every error that the content of a file can cause; those of the operating system, such as a
            missing file, stay as they are.
    """
    try:
        yield
    except InvalidFileError:
        raise
    except RecursionError as error:
        raise InvalidFileError(f"{path}: expected {what}, got one that is nested too deeply") from error
    except (
        *(ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError),
        *(RuntimeError, MemoryError, EOFError, struct.error),
    ) as error:
        shown = str(error) if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__}: {error}"
        raise InvalidFileError(f"{path}: expected {what}, got a damaged file or another format ({shown})") from error
