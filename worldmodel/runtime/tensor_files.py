"""Safetensors files that are written atomically, verify themselves, and are checked before anything is allocated.

A file of `save_tensors` holds the SHA-256 of its own bytes in its metadata, computed with zeros in the place of the digest.
Files of earlier versions have none and are still read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from worldmodel.runtime.reading import file_errors, parse_json, read_bytes
from worldmodel.runtime.writing import write_bytes

DIGEST_KEY = "sha256"
NO_DIGEST = "0" * 64
MAX_HEADER_BYTES = 2**26
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
_ITEM_BYTES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors on any device, and metadata, to one safetensors file with its own digest, atomically."""
    data = serialise(tensors, metadata)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {**dict(metadata or {}), DIGEST_KEY: NO_DIGEST}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = struct.pack("<Q", len(text)) + text + data[8 + size :]
    place = data.rindex(NO_DIGEST.encode(), 0, 8 + len(text))
    write_bytes(path, data[:place] + hashlib.sha256(data).hexdigest().encode() + data[place + len(NO_DIGEST) :])


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file of named tensors on any device."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(stored, dict(metadata or {}))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file, and verify its digest if it has one.

    Returns:
        The tensors, on the CPU, and the metadata without the digest.

    Raises:
        FileNotFoundError: if the file does not exist.
        InvalidFileError: if the file is damaged or is not a safetensors file.
    """
    return parse_tensors(read_tensor_bytes(path), path)


def read_tensor_bytes(path: str | Path) -> bytes:
    """Read the bytes of a safetensors file; errors as `load_tensors`."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a safetensors file, found none") from None


def parse_tensors(data: bytes, source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file from its bytes; see `load_tensors`.

    Args:
        data: bytes of the file.
        source: its name, for messages.
    """
    with file_errors(source, "a safetensors file"):
        header, start = _read_header(data, source)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not text")
        _check_header(header, len(data) - start)
        digest = metadata.pop(DIGEST_KEY, None)
        if digest is not None and digest != _digest(data, start):
            raise ValueError("its digest is not the one that it records: it was changed after it was written")
        try:
            return load(data), metadata
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error


def tensor_shapes(data: bytes, source: str | Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor of a safetensors file from its header; nothing is allocated.

    Args:
        data: bytes of the file.
        source: its name, for messages.

    Raises:
        InvalidFileError: if the header is damaged.
    """
    with file_errors(source, "a safetensors file"):
        header, start = _read_header(data, source)
        header.pop("__metadata__", None)
        _check_header(header, len(data) - start)
        return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _read_header(data: bytes, source: str | Path) -> tuple[dict[str, Any], int]:
    """Return the parsed header and the position of the first tensor."""
    size = struct.unpack("<Q", data[:8])[0]
    if size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"its header has {size:,} bytes, but the file {len(data):,}")
    header = parse_json(data[8 : 8 + size], source, what="a safetensors file")
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header, 8 + size


def _check_header(entries: Mapping[str, Any], size: int) -> None:
    """Raise unless the tensors of a header fill ``size`` bytes exactly, without gaps."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        first, last = entry["data_offsets"]
        shape = entry["shape"]
        if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
            raise ValueError(f"sizes of {name!r} are not integers from 0")
        if first != end or last - first != math.prod(shape) * _ITEM_BYTES[entry["dtype"]]:
            raise ValueError(f"shape and place of {name!r} do not fit")
        end = last
    if end != size:
        raise ValueError(f"its tensors take {end:,} bytes, but there are {size:,}")


def _digest(data: bytes, start: int) -> str:
    """Return the SHA-256 of a file with zeros in the place of its digest."""
    places = [match.span(1) for match in _DIGEST.finditer(data, 0, start)]
    if len(places) != 1:
        raise ValueError("its metadata hold more than one digest")
    first, last = places[0]
    result = hashlib.sha256(data[:first])
    result.update(NO_DIGEST.encode())
    result.update(memoryview(data)[last:])
    return result.hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 of names, shapes and values, for any device and order."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tuple(tensor.shape)}".encode())
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()


def check_weights(tensors: Mapping[str, Tensor], *, most: float, infinite: tuple[str, ...] = ()) -> None:
    """Raise unless all weights are finite and of a size with which a network can compute.

    Args:
        tensors: weights and buffers by name. Those whose name ends in "_scale" or "units.scale" must be positive.
        most: largest absolute value of a trained weight; buffers of data statistics, which are named "mean" and "scale", may
            have any finite value.
        infinite: names that may be infinite.

    Raises:
        ValueError: naming the first tensor that is wrong.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if bool(tensor.isnan().any()) or (name not in infinite and bool(tensor.isinf().any())):
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
        is_statistic = name.endswith(("mean", "scale", *infinite))
        if not is_statistic and tensor.numel() and float(tensor.abs().max()) > most:
            raise ValueError(f"{name}: expected weights of at most {most:g}, got {float(tensor.abs().max()):g}")
        if name.endswith(("_scale", "units.scale")) and not bool((tensor > 0).all()):
            raise ValueError(f"{name}: expected positive numbers, got {float(tensor.min()):g}")
