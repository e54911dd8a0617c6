"""Atomic writes and strict reads of JSON and safetensors files.

Every JSON file carries a stamp: its format name and version. Weights are safetensors, everything
else is JSON. Nothing is pickled, so reading a file cannot run code. A write goes to a temporary
file in the same directory, is flushed to the disk and then renamed, so a reader sees the old file
or the new one, never a partial one. This costs one fsync per file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

TEMPORARY_SUFFIX = ".tmp"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: write and fsync a temporary file, then rename it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a full disk (ENOSPC) is reported without the file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the rename itself is durable only once the directory is flushed
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, content: Mapping[str, Any], *, format: str, version: int) -> None:
    """Write ``content`` as indented JSON, stamped with its format name and version, atomically.

    Raises:
        ValueError: if ``content`` contains NaN or infinity, which JSON cannot represent.
    """
    stamped = {"format": format, "version": version, **content}
    write_bytes(path, (json.dumps(stamped, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: str | Path, *, format: str, version: int) -> dict[str, Any]:
    """Read JSON written by `write_json` and check its stamp.

    Args:
        path: the file.
        format: expected format name.
        version: newest supported version.

    Returns:
        The content without ``"format"``. ``"version"`` remains, so that the caller can upgrade old
        content.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not JSON, has another format, or has a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a {format} file, found none")
    try:
        content = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: expected JSON of format {format!r}, got a damaged file or another format ({error})"
        ) from error
    check_stamp(content, path, format=format, version=version)
    del content["format"]
    return content


def check_stamp(content: Any, path: Path, *, format: str, version: int) -> None:
    """Validate the stamp of a file's content.

    Args:
        content: parsed JSON.
        path: the file, named in error messages.
        format: expected format name.
        version: newest supported version.

    Raises:
        ValueError: if the format differs, or if the version is missing, invalid or newer than
            ``version``.
    """
    found = content.get("format") if isinstance(content, dict) else None
    if found != format:
        raise ValueError(f"{path}: expected format {format!r}, got {found!r}; pass a {format} file written by worldmodel")
    found_version = content.get("version")
    if not isinstance(found_version, int) or found_version < 1:
        raise ValueError(f"{path}: expected a version number from 1 to {version}, got {found_version!r}")
    if found_version > version:
        raise ValueError(
            f"{path}: expected {format} version {version} or older, got version {found_version}; "
            "a newer worldmodel wrote it: upgrade with `pip install --upgrade worldmodel`"
        )


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors on any device, and metadata, to one safetensors file, atomically."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(stored, dict(metadata or {})))


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 of names, shapes and values, for any device and order."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tuple(tensor.shape)}".encode())
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is damaged or is not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found none")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got a damaged file or another format ({error})") from error


def prepare_directory(
    path: str | Path, *, marker: str, format: str, overwrite: bool = False, replaces: Sequence[str] = ()
) -> Path:
    """Create an output directory, or empty an earlier output, without deleting other files.

    A directory is an earlier output if its ``marker`` is a JSON file stamped with ``format``. It is
    replaced only if ``overwrite`` is set. Any other directory must be absent or empty.

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
    entries = sorted(path.iterdir()) if path.is_dir() else []
    if entries:
        if not _is_stamped(path / marker, format):
            raise FileExistsError(f"{path}: expected an empty directory, got one with other files; choose another directory")
        if not overwrite:
            raise FileExistsError(
                f"{path}: expected an empty directory, got an earlier output ({marker}); pass overwrite=True (--overwrite) "
                "to replace it"
            )
    others = [entry.name for entry in entries if replaces and not any(entry.match(pattern) for pattern in replaces)]
    if others:
        raise FileExistsError(f"{path}: expected only an earlier output, got also {others[0]!r}; move it elsewhere")
    marker_last = sorted(entries, key=lambda entry: entry.name == marker)  # so that an interrupted removal can be repeated
    for entry in marker_last if replaces else []:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _is_stamped(path: Path, format: str) -> bool:
    """Return whether a file is JSON of this format, in any version."""
    try:
        return json.loads(path.read_bytes()).get("format") == format
    except (OSError, ValueError, AttributeError):
        return False


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
