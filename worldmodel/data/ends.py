"""How the episodes of a shard ended, from one byte of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldmodel.data.shard_table import Shard
from worldmodel.data.shards import Schema
from worldmodel.runtime import InvalidFileError, open_regular

REPAIR = "run `worldmodel store repair`"


def read_terminated(path: Path, schema: Schema, shard: Shard) -> np.ndarray:
    """Return whether each episode of a shard ended with a termination, (E,) bool. No checksum is verified.

    Raises:
        ValueError: if the file is missing or too short.
    """
    offset = next(offset for leaf, offset in zip(schema.leaves, shard.offsets, strict=True) if leaf.name == "terminations")
    ends, last = shard.starts + shard.lengths - 1, []
    try:
        with open_regular(path) as file:
            for step in ends.tolist():
                file.seek(offset + step)
                last.append(file.read(1))
    except FileNotFoundError as error:
        raise InvalidFileError(f"{path}: expected a complete shard, got no file; {REPAIR}") from error
    if b"" in last:
        raise InvalidFileError(f"{path}: expected a complete shard, got a file that was cut short; {REPAIR}")
    return np.array([byte != b"\0" for byte in last])
