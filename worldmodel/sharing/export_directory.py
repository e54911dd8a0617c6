"""The directory of an export: all files of one export, or those of the one before.

A new export is written next to the old one and takes its name when it is complete. Between two renames the old one has another
name; after a kill there, the next call gives it its name back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from worldmodel.runtime import files, locked

EXPORT_FORMAT, EXPORT_VERSION = "worldmodel.onnx", 1
EXPORT_FILE = "export.json"
OUTPUTS = (EXPORT_FILE, "*.onnx")
OLD = "old"


class ExportDirectory:
    """A context manager that keeps other exports out, and removes what interrupted ones left.

    Args:
        path: the directory; a link is followed.

    Attributes:
        path: the directory as it was given.

    Raises:
        LockedError: if another process exports to it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._real = Path(os.path.realpath(path))
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> ExportDirectory:
        """Take the lock, and give an old export its name back if a kill came between two renames."""
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked(self._real.parent, name=f".{self._real.name}.lock"))
            old = self._other(OLD)
            if old.is_dir() and not self._real.exists():
                os.replace(old, self._real)
            for left in (old, self._other("new")):
                shutil.rmtree(left, ignore_errors=True)
            self._lock = lock.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Let the lock go."""
        return self._lock.__exit__(kind, error, trace)

    def check(self, *, overwrite: bool) -> None:
        """Raise if an export may not be written here; nothing is changed.

        Raises:
            FileExistsError: if the directory holds something that may not be replaced.
        """
        exists = self._real.exists()
        files.prepare_directory(self._real, marker=EXPORT_FILE, format=EXPORT_FORMAT, overwrite=overwrite)
        others = sorted(one.name for one in self._real.iterdir() if not any(one.match(name) for name in OUTPUTS))
        if not exists:
            self._real.rmdir()
        if others:
            raise FileExistsError(f"{self.path}: expected only an earlier export, got also {others[0]!r}; move it elsewhere")

    def write(self, data: Mapping[str, bytes], content: Mapping[str, Any], *, overwrite: bool) -> None:
        """Write all files, and replace an earlier export by them.

        Args:
            data: files by name.
            content: of `EXPORT_FILE`.
            overwrite: replace an earlier export.

        Raises:
            FileExistsError: as `check`.
        """
        fresh, old = self._other("new"), self._other(OLD)
        fresh.mkdir()
        try:
            for name, each in data.items():
                files.write_bytes(fresh / name, each)
            files.write_json(fresh / EXPORT_FILE, content, format=EXPORT_FORMAT, version=EXPORT_VERSION)
            self.check(overwrite=overwrite)
            if self._real.exists():
                os.replace(self._real, old)
            try:
                os.replace(fresh, self._real)
            except BaseException:
                if old.exists():
                    os.replace(old, self._real)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _other(self, kind: str) -> Path:
        return self._real.with_name(f".{self._real.name}.{kind}{files.TEMPORARY_SUFFIX}")
