"""Atomic writes and strict reads of JSON and safetensors files.

Every JSON file carries a stamp: its format name and version. Weights are safetensors, everything
else is JSON. Nothing is pickled, so reading a file cannot run code. A write goes to a temporary
file in the same directory, is flushed to the disk and then renamed, so a reader sees the old file
or the new one, never a partial one. This costs one fsync per file.
"""

from __future__ import annotations

import hashlib
import json
import os as os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldmodel.runtime.directories import discard_unfinished as discard_unfinished
from worldmodel.runtime.directories import prepare_directory as prepare_directory
from worldmodel.runtime.directories import remove_temporaries as remove_temporaries
from worldmodel.runtime.directories import require_disk as require_disk
from worldmodel.runtime.reading import MAX_JSON_BYTES, NewerVersionError
from worldmodel.runtime.reading import InvalidFileError as InvalidFileError
from worldmodel.runtime.reading import parse_json as parse_json
from worldmodel.runtime.reading import read_bytes as read_bytes
from worldmodel.runtime.replacement import fresh_directory as fresh_directory
from worldmodel.runtime.tensor_files import check_weights as check_weights
from worldmodel.runtime.tensor_files import digest_tensors as digest_tensors
from worldmodel.runtime.tensor_files import load_tensors as load_tensors
from worldmodel.runtime.tensor_files import save_tensors as save_tensors
from worldmodel.runtime.writing import TEMPORARY_SUFFIX as TEMPORARY_SUFFIX
from worldmodel.runtime.writing import write_bytes as write_bytes

CHECKSUM_KEY = "sha256"


def write_json(path: str | Path, content: Mapping[str, Any], *, format: str, version: int, checksum: bool = True) -> None:
    """Write ``content`` as indented JSON, stamped with its format name and version, atomically.

    Args:
        path: the file.
        content: JSON-serialisable.
        format: format name.
        version: version of the format.
        checksum: add the SHA-256 of the content, which `read_json` verifies.

    Raises:
        ValueError: if ``content`` contains NaN or infinity, which JSON cannot represent.
    """
    stamped = {"format": format, "version": version, **content}
    if checksum:
        stamped = {"format": format, "version": version, CHECKSUM_KEY: _checksum(stamped), **content}
    write_bytes(path, (json.dumps(stamped, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: str | Path, *, format: str, version: int) -> dict[str, Any]:
    """Read JSON written by `write_json`, and check its stamp and its checksum.

    Args:
        path: the file.
        format: expected format name.
        version: newest supported version.

    Returns:
        The content without ``"format"`` and the checksum. ``"version"`` remains, so that the caller can upgrade old
        content. Files of earlier versions have no checksum.

    Raises:
        FileNotFoundError: if the file does not exist.
        InvalidFileError: if the file is not JSON, has another format, was changed, or has a newer version.
    """
    path = Path(path)
    try:
        data = read_bytes(path, most=MAX_JSON_BYTES)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a {format} file, found none") from None
    content = parse_json(data, path, what=f"JSON of format {format!r}")
    check_stamp(content, path, format=format, version=version)
    checksum = content.pop(CHECKSUM_KEY, None)
    if checksum is not None and checksum != _checksum(content):
        raise InvalidFileError(f"{path}: expected the {format} file that was written, got a damaged or changed one")
    del content["format"]
    return dict(content)


def _checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON-serialisable content, whatever its order and indentation."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_stamp(content: Any, path: Path, *, format: str, version: int) -> None:
    """Validate the stamp of a file's content.

    Args:
        content: parsed JSON.
        path: the file, named in error messages.
        format: expected format name.
        version: newest supported version.

    Raises:
        InvalidFileError: if the format differs, or if the version is missing, invalid or newer than
            ``version``.
    """
    found = content.get("format") if isinstance(content, dict) else None
    if found != format:
        raise InvalidFileError(f"{path}: expected format {format!r}, got {found!r}; pass a {format} file written by worldmodel")
    found_version = content.get("version")
    if type(found_version) is not int or found_version < 1:
        raise InvalidFileError(f"{path}: expected a version number from 1 to {version}, got {found_version!r}")
    if found_version > version:
        raise NewerVersionError(
            f"{path}: expected {format} version {version} or older, got version {found_version}; "
            "a newer worldmodel wrote it: upgrade with `pip install --upgrade worldmodel`"
        )


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(read_bytes(path)).hexdigest()
