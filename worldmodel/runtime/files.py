"""Files that are whole or absent: atomic writes, strict reads, one stamp (format and version) in every JSON file.

Weights are safetensors and everything else is readable JSON; there is no pickle, so nothing in a file can run code.
A write goes to a temporary name in the same directory, is flushed to the disk and then renamed, so a reader sees the
old file or the new one and never a half. The price is one fsync per file.
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
    """Write ``data`` to ``path`` atomically: temporary name, flush, fsync, rename, fsync of the directory."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the rename itself is durable only once the directory is flushed
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | Path, content: Mapping[str, Any], *, format: str, version: int) -> None:
    """Write ``content`` as readable JSON, stamped with its format name and version.

    Raises:
        ValueError: if ``content`` holds NaN or infinity, which JSON cannot say.
    """
    stamped = {"format": format, "version": version, **content}
    write_bytes(path, (json.dumps(stamped, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: str | Path, *, format: str, version: int) -> dict[str, Any]:
    """Read JSON written by :func:`write_json` and check its stamp.

    Args:
        path: the file.
        format: the format name that the file must carry.
        version: the newest version that the caller understands.

    Returns:
        The content, without the format name; ``"version"`` is kept, so that a reader can upgrade older files.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not JSON, is not of this format, or is of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a {format} file, found none")
    try:
        content = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON of format {format!r}, got a damaged or foreign file ({error})") from error
    check_stamp(content, path, format=format, version=version)
    del content["format"]
    return content


def check_stamp(content: Any, path: Path, *, format: str, version: int) -> None:
    """Refuse content that is not of a format, or of a newer version than ``version``.

    Raises:
        ValueError: naming the file, what was expected and what was found.
    """
    found = content.get("format") if isinstance(content, dict) else None
    if found != format:
        raise ValueError(f"{path}: expected format {format!r}, got {found!r}; this is not one of our {format} files")
    found_version = content.get("version")
    if not isinstance(found_version, int) or found_version < 1:
        raise ValueError(f"{path}: expected a version number from 1 to {version}, got {found_version!r}")
    if found_version > version:
        raise ValueError(
            f"{path}: expected {format} version {version} or older, got version {found_version}; "
            "it was written by a newer worldmodel: upgrade with `pip install --upgrade worldmodel`"
        )


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors, from any device, and strings about them as one safetensors file, atomically."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(stored, dict(metadata or {})))


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values, in hexadecimal; the same on any device and in any order."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tuple(tensor.shape)}".encode())
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors, on the CPU, and the strings about them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut short or is not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found none")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got a damaged or foreign one ({error})") from error


def prepare_directory(
    path: str | Path, *, marker: str, format: str, overwrite: bool = False, replaces: Sequence[str] = ()
) -> Path:
    """Make ``path`` an output directory without ever touching what belongs to somebody else.

    An absent or empty directory is fine. One that holds something is refused, unless ``overwrite`` is set *and* its
    ``marker`` is a JSON file stamped with ``format``: then it is an earlier output of the same kind. Of that one only the
    entries named in ``replaces`` are removed, and if it holds others too, it is refused.

    Args:
        path: the directory to create.
        marker: name of the JSON file that tells our outputs of this kind.
        format: the format name in that file.
        overwrite: replace an earlier output of the same kind.
        replaces: patterns of the names of all that such an output consists of, removed before a new one is made. Empty leaves
            everything as it is, for files to be replaced one by one.

    Returns:
        The directory, which exists, and is empty if ``replaces`` is given.

    Raises:
        FileExistsError: if ``path`` is a file or holds something that may not be replaced.
    """
    path = Path(path)
    if (path.exists() or path.is_symlink()) and not path.is_dir():
        raise FileExistsError(f"{path}: expected a directory or nothing, got a file or a broken link")
    entries = sorted(path.iterdir()) if path.is_dir() else []
    if entries:
        if not _is_stamped(path / marker, format):
            raise FileExistsError(f"{path}: expected an empty directory, got one that holds something else; choose another")
        if not overwrite:
            raise FileExistsError(
                f"{path}: already holds an earlier output ({marker}); pass overwrite (--overwrite) to replace it"
            )
    foreign = [entry.name for entry in entries if replaces and not any(entry.match(pattern) for pattern in replaces)]
    if foreign:
        raise FileExistsError(f"{path}: expected nothing but an earlier output, got {foreign[0]!r} beside it; move that away")
    last = sorted(entries, key=lambda entry: entry.name == marker)  # the marker: so what was killed here can be done again
    for entry in last if replaces else []:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _is_stamped(path: Path, format: str) -> bool:
    """Whether a file is JSON of this format, of whatever version."""
    try:
        return json.loads(path.read_bytes()).get("format") == format
    except (OSError, ValueError, AttributeError):
        return False


def discard_unfinished(directory: str | Path, *, marker: str) -> None:
    """Remove what a stage that was killed while it wrote left of its directory, if ``marker``, written last, is not there."""
    if Path(directory).is_dir() and not (Path(directory) / marker).is_file():
        shutil.rmtree(directory)


def remove_temporaries(path: str | Path, *, name: str = "*") -> None:
    """Remove the temporary files that writers killed in the middle of :func:`write_bytes` left directly in ``path``.

    Args:
        path: a directory.
        name: of the file that was to be written; all by default.
    """
    for leftover in Path(path).glob(f".{name}.*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            leftover.unlink()


def require_disk(path: Path, needed: float, content: str, *, replaced: int = 0, remedy: str) -> None:
    """Refuse what the disk cannot hold.

    Args:
        path: a directory, there already or to be made.
        needed: bytes that are to be written.
        content: what they are, in words.
        replaced: bytes that go before they are written.
        remedy: what to do, in words.

    Raises:
        OSError: naming the bytes needed and free.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free + replaced
    if needed > free:
        raise OSError(
            f"{path}: expected {needed / 2**30:,.2f} GiB of free disk for {content}, got {free / 2**30:,.2f} GiB; {remedy}"
        )
