"""What a damaged manifest still says; fields are believed only where checksums of episodes confirm them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.data import shards
from worldmodel.data.shard_table import COLUMNS, Shard
from worldmodel.data.shards import Schema
from worldmodel.runtime import InvalidFileError, check_regular

MAX_BYTES = 2**28
SPACES = ("observation_space", "action_space", "recipe")


@dataclass(frozen=True)
class Remains:
    """Parts of a manifest.

    Args:
        metadata: the spaces and the recipe, as in the header of a shard; those that can be read.
        entries: the columns of each shard that can be read, by its name.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    entries: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Path) -> Remains:
        """Read what can be read of a manifest, damaged or missing."""
        try:
            check_regular(manifest)
            with open(manifest, "rb") as file:
                text = file.read(MAX_BYTES).decode(errors="replace")
        except (OSError, InvalidFileError):
            return cls()
        metadata = {}
        for name in SPACES:
            place = text.find(f'"{name}": ')
            try:
                value, _ = json.JSONDecoder().raw_decode(text, place + len(name) + 4)
                metadata[name] = json.dumps(value)
            except (ValueError, RecursionError):
                continue
        entries = {}
        for part in re.split(r'"name": ', text)[1:]:
            shard = re.match(r'"([^"]+)"', part)
            if shard:
                entries[shard[1]] = _columns(part)
        return cls(metadata, entries)

    def names(self, schema: Schema) -> bool:
        """Return whether the manifest is one of shards of this schema, as far as it can be read."""
        return bool(self.metadata) and all(schema.metadata[name] == value for name, value in self.metadata.items())

    def restore(self, path: Path, schemas: Sequence[Schema]) -> tuple[Schema, Shard] | None:
        """Find the table of contents of a shard with a damaged header.

        Every field is taken from the header or from the manifest, whichever combination has the most undamaged episodes.

        Args:
            path: the shard.
            schemas: those of other shards of the folder.

        Returns:
            None if no combination confirms a single episode.
        """
        with open(path, "rb") as file:
            text = file.read(shards.MAX_HEADER // 256).decode(errors="replace")
        header = {**_columns(text), **_columns_of_header(text)}
        entry = self.entries.get(path.name, {})
        choices: dict[str, list[str]] = {}
        for name in (*SPACES, *COLUMNS, "packed"):
            given = [part[name] for part in (header, entry, self.metadata, *(s.metadata for s in schemas)) if name in part]
            choices[name] = list(dict.fromkeys(given))[:3] or ([""] if name == "packed" else [])
        best: tuple[int, Schema, Shard] | None = None
        for values in itertools.islice(itertools.product(*choices.values()), 256):
            metadata = {name: value for name, value in zip(choices, values, strict=True) if value}
            try:
                schema, shard = shards.from_metadata(metadata, path)
                if not self._confirms(schema, shard, text, schemas):
                    continue
                damage = shards.inspect(path, schema, shard)
            except (ValueError, LookupError, TypeError, AssertionError, OSError, MemoryError):
                continue
            count = len(shard.lengths) if damage is None else len(damage[2])
            if count and (best is None or count > best[0]):
                best = count, schema, shard
                if count == len(shard.lengths):
                    break
        return None if best is None else best[1:]

    def _confirms(self, schema: Schema, shard: Shard, text: str, schemas: Sequence[Schema]) -> bool:
        """Return whether the spaces and the recipe, which checksums of episodes do not cover, are those of a whole source."""
        checksum = re.search(r'"checksum":"([0-9]+)"', text)
        if checksum and checksum[0].encode() in schema.header(shard):
            return True
        known = [other.metadata for other in schemas] + ([self.metadata] if len(self.metadata) == len(SPACES) else [])
        return schema.metadata in known


def _columns(text: str) -> dict[str, str]:
    """Find the columns in the entry of a manifest or in a header."""
    found: dict[str, Any] = {name: re.search(rf'"{name}": ?"([-0-9 ]*)"', text) for name in COLUMNS}
    columns = {name: match[1] for name, match in found.items() if match}
    packed = re.search(r'"packed": (\{[^}]*\})', text)
    return columns | ({"packed": packed[1]} if packed else {})


def _columns_of_header(text: str) -> dict[str, str]:
    """Find the fields that a header holds as JSON in a string."""
    found = {}
    for name in (*SPACES, "packed"):
        match = re.search(rf'"{name}":("(?:[^"\\]|\\.)*")', text)
        try:
            if match:
                found[name] = str(json.loads(match[1]))
        except ValueError:
            continue
    return found
