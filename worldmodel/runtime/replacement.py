"""Replace a directory as a whole: at every moment it is the old output or the new one.

The new output is written next to the old one and takes its name when it is complete. Between two renames the old one has
another name; after a kill there, the next call gives it its name back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from worldmodel.runtime.directories import prepare_directory
from worldmodel.runtime.locks import locked
from worldmodel.runtime.writing import TEMPORARY_SUFFIX


@contextlib.contextmanager
def fresh_directory(path: str | Path, *, marker: str, format: str, overwrite: bool, replaces: Sequence[str]) -> Iterator[Path]:
    """Yield a new directory, which takes the place of ``path`` if no error occurs: an output is complete or not there.

    Args:
        path: absent, empty or, with ``overwrite``, an earlier output; a link is followed.
        marker: name of the JSON file that identifies an output.
        format: the format name in that file.
        overwrite: replace an earlier output.
        replaces: name patterns of all entries of an output.

    Raises:
        FileExistsError: if ``path`` may not be replaced; it is checked before anything is done, and again at the end.
        LockedError: if another process writes to it.
    """
    real = Path(os.path.realpath(path))
    fresh, old = (real.with_name(f".{real.name}.{kind}{TEMPORARY_SUFFIX}") for kind in ("new", "old"))
    with locked(real.parent, name=f".{real.name}.lock"):
        if old.is_dir() and not real.exists():
            os.replace(old, real)
        for left in (old, fresh):
            shutil.rmtree(left, ignore_errors=True)
        _check(real, marker=marker, format=format, overwrite=overwrite, replaces=replaces)
        fresh.mkdir()
        try:
            yield fresh
            _check(real, marker=marker, format=format, overwrite=overwrite, replaces=replaces)
            _replace(real, fresh, old)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _check(path: Path, *, marker: str, format: str, overwrite: bool, replaces: Sequence[str]) -> None:
    """Raise if a directory may not be replaced; nothing is changed."""
    exists = path.exists()
    prepare_directory(path, marker=marker, format=format, overwrite=overwrite)
    others = sorted(entry.name for entry in path.iterdir() if not any(entry.match(name) for name in replaces))
    if not exists:
        path.rmdir()
    if others:
        raise FileExistsError(f"{path}: expected only an earlier output, got also {others[0]!r}; move it elsewhere")


def _replace(path: Path, fresh: Path, old: Path) -> None:
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(fresh, path)
    except BaseException:
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
