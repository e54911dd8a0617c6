"""Output directories: made, recognised as an earlier or an unfinished output, and emptied.

Each output has a *marker*, a JSON file with a format name. An output whose making was killed is recognised too, so that the
same call can be repeated: it holds nothing but temporary files, empty folders and weights whose names are their digests; or its
marker says that it is being replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldmodel.runtime.locks import LOCK_FILE
from worldmodel.runtime.reading import MAX_JSON_BYTES, InvalidFileError, parse_json, read_bytes
from worldmodel.runtime.writing import TEMPORARY_SUFFIX, write_bytes

RUN_FILE = "run.json"  # how a run was made; never a reason to refuse a directory
REPLACING = "replacing"  # entry of a marker: the output is being removed to make place for a new one
_DIGEST_NAME = re.compile(r"[a-z]+-([0-9a-f]{16})\.safetensors")


def prepare_directory(
    path: str | Path, *, marker: str, format: str, overwrite: bool = False, replaces: Sequence[str] = ()
) -> Path:
    """Create an output directory, or empty an earlier output, without deleting other files.

    A directory is an earlier output if its ``marker`` is a JSON file stamped with ``format``. It is
    replaced only if ``overwrite`` is set, or if an earlier replacement was interrupted. A directory
    in which an output was being made is emptied. Any other directory must be absent or empty.

    Args:
        path: the directory.
        marker: name of the JSON file that identifies an earlier output.
        format: the format name in that file.
        overwrite: replace an earlier output.
        replaces: name patterns of all entries of an earlier output, which are removed. If the
            directory has other entries, nothing is removed and an error is raised. Empty removes
            nothing; the caller then replaces the files one by one.

    Returns:
        The directory. It exists, and is empty if ``replaces`` is given.

    Raises:
        FileExistsError: if ``path`` is a file, is not an earlier output, is one and ``overwrite``
            is not set, or has entries that do not match ``replaces``.
    """
    path = Path(path)
    if (path.exists() or path.is_symlink()) and not path.is_dir():
        raise FileExistsError(f"{path}: expected a directory or nothing, got a file or a broken link")
    entries = [one for one in sorted(path.iterdir()) if one.name not in (LOCK_FILE, RUN_FILE)] if path.is_dir() else []
    found = read_marker(path / marker, format)
    if entries and found is None:
        if not all(_is_unfinished(entry, (marker, *replaces)) for entry in entries):
            raise FileExistsError(
                f"{path}: expected an empty directory, got one with other files; choose another directory{other_output(path)}"
            )
        _remove(entries)
        entries = []
    if entries and not overwrite and not is_being_replaced(path / marker, format):
        raise FileExistsError(
            f"{path}: expected an empty directory, got an earlier output ({marker}); pass overwrite=True (--overwrite) "
            "to replace it"
        )
    others = [entry.name for entry in entries if replaces and not any(entry.match(pattern) for pattern in replaces)]
    if others:
        raise FileExistsError(f"{path}: expected only an earlier output, got also {others[0]!r}; move it elsewhere")
    if entries and replaces:
        content = {"format": format, "version": 1, REPLACING: True}
        write_bytes(path / marker, (json.dumps(content) + "\n").encode())
        _remove([*(entry for entry in entries if entry.name != marker), path / marker])  # the marker last
        (path / RUN_FILE).unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_marker(path: Path, format: str) -> dict[str, Any] | None:
    """Return the content of a file that is JSON of this format, in any version, damaged or not; None for any other."""
    try:
        content = parse_json(read_bytes(path, most=MAX_JSON_BYTES), path)
    except (OSError, InvalidFileError):
        return None
    return content if isinstance(content, dict) and content.get("format") == format else None


def formats_in(path: str | Path) -> dict[str, str]:
    """Return the format of each JSON file of this library in a directory, by name; "damaged" for what is no JSON."""
    found = {}
    for file in sorted(Path(path).glob("*.json")):
        try:
            content = parse_json(read_bytes(file, most=MAX_JSON_BYTES), file)
        except (OSError, InvalidFileError):
            found[file.name] = "damaged"
            continue
        if isinstance(content, dict) and str(content.get("format", "")).startswith("worldmodel."):
            found[file.name] = f"{content['format']} {content.get('version', '')}".strip()
    return found


def other_output(path: str | Path) -> str:
    """Return what a directory of another kind holds, as the end of a message; empty if nothing of this library."""
    found = {name: format for name, format in formats_in(path).items() if format != "damaged" and name != RUN_FILE}
    return f"; this directory holds {', '.join(f'{format} ({name})' for name, format in found.items())}" if found else ""


def is_being_replaced(path: Path, format: str) -> bool:
    """Return whether the replacement of an output, whose marker this is, was interrupted."""
    return (read_marker(path, format) or {}).get(REPLACING) is True


def _is_unfinished(entry: Path, names: Sequence[str]) -> bool:
    """Return whether an entry of a directory without marker is one that this library was still making."""
    if entry.is_symlink():
        return False
    if entry.is_dir():
        return any(entry.match(name) for name in names) and not any(entry.iterdir())
    written = re.fullmatch(rf"\.(.+)\.[0-9]+{re.escape(TEMPORARY_SUFFIX)}", entry.name)
    if written:
        target = Path(written.group(1))
        return target.suffix == ".safetensors" or any(target.match(name) for name in names)
    named = _DIGEST_NAME.fullmatch(entry.name)
    try:
        return bool(named) and hashlib.sha256(read_bytes(entry)).hexdigest().startswith(named[1])  # type: ignore[index]
    except (OSError, InvalidFileError):
        return False


def _remove(entries: Sequence[Path]) -> None:
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def discard_unfinished(directory: str | Path, *, marker: str) -> None:
    """Remove a directory without ``marker``, the file that a stage writes last."""
    if Path(directory).is_dir() and not (Path(directory) / marker).is_file():
        shutil.rmtree(directory)


def remove_temporaries(path: str | Path, *, name: str = "*") -> None:
    """Remove the temporary files that interrupted calls of `write_bytes` left in a directory.

    Args:
        path: the directory; subdirectories are not searched.
        name: name or pattern of the files that were being written; all by default.
    """
    for leftover in Path(path).glob(f".{name}.*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            leftover.unlink()


def require_disk(path: Path, needed: float, content: str, *, replaced: int = 0, remedy: str) -> None:
    """Raise if the disk has too little free space.

    Args:
        path: the output directory; it need not exist.
        needed: bytes to be written.
        content: description of these bytes for the error message.
        replaced: bytes that will be removed first.
        remedy: the fix, for the error message.

    Raises:
        OSError: if ``needed`` exceeds the free space. The message names both, in GiB.
    """
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free + replaced
    if needed > free:
        raise OSError(
            f"{path}: expected {needed / 2**30:,.2f} GiB of free disk for {content}, got {free / 2**30:,.2f} GiB; {remedy}"
        )
