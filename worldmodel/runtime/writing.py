"""Atomic writes: a reader sees the old file or the new one, never a partial one."""

from __future__ import annotations

import os
from pathlib import Path

from worldmodel.runtime.disk_errors import naming

TEMPORARY_SUFFIX = ".tmp"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: write and fsync a temporary file, then rename it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the rename itself is durable only once the directory is flushed
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with naming(path.parent):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
