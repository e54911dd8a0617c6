"""Name the file in errors of the operating system that do not: a write or a flush to a full disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Add the name of a file to each OSError that names none.

    Args:
        path: the file that is written.

    Raises:
        OSError: with the same number and message, and the name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
