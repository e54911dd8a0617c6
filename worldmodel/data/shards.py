"""The format of one shard: some episodes in one safetensors file, readable by rows, each episode with its own checksum.

A shard holds the concatenation over its episodes of each leaf: ``observations[/path]``, ``actions[/path]``, ``rewards``,
``terminations``, ``truncations``. Images are packed, episode by episode (`worldmodel.data.compression`); that is version 2 of the
format, and version 1, where they lie raw, is still read. Its header says everything that is needed to read it without any
other file: spaces, recipe, and per episode id, length, seed, packed bytes, and checksum (of the images, not of how they are
packed). The header is a pure function of these, so the place of every row is computed rather than read, and a damaged header
can be told from a whole one, and mended, by writing it again.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import gymnasium as gym
import numpy as np

from worldmodel.data.compression import pack, unpack
from worldmodel.data.episode import Episode
from worldmodel.spaces import build_value, is_image, leaf_values, leaves, space_from_json, space_to_json

FORMAT = "worldmodel.shard"
VERSION = 2  # 1 where nothing is packed
SUFFIX = ".safetensors"
COLUMNS = ("episode_ids", "lengths", "seeds", "crc32")  # what is said of each episode, in header and manifest
NO_SEED = -1  # in the column of seeds: not known

_REPAIR = "run `python scripts/store.py repair`"
_DTYPES = {"bool": "BOOL", "float16": "F16", "float32": "F32", "float64": "F64"}
_DTYPES |= {f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class NewerVersionError(ValueError):
    """A shard that a newer version of this library wrote: not damaged, and not to be touched."""


@dataclass(frozen=True)
class Leaf:
    """One array of a shard: name, dtype, shape of a row, rows beyond one per step (0 or 1), and whether it can be packed."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    extra: int
    image: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Shard:
    """The table of contents of one shard.

    ``offsets`` are where its leaves start in the file, in the schema's order; ``packed`` the bytes that each episode has of
    each packed leaf, by the leaf's name; what is not in it lies there raw.
    """

    name: str
    size: int
    episode_ids: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    checksums: np.ndarray
    offsets: tuple[int, ...] = ()
    packed: Mapping[str, np.ndarray] = field(default_factory=dict)
    starts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Compute the first step of each episode."""
        object.__setattr__(self, "starts", np.cumsum(self.lengths) - self.lengths)

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is said of each episode, in the order of `COLUMNS`."""
        return self.episode_ids, self.lengths, self.seeds, self.checksums

    def to_json(self) -> dict[str, Any]:
        """What a manifest says of it."""
        entry: dict[str, Any] = {"name": self.name}
        entry |= {key: write_column(column) for key, column in zip(COLUMNS, self.columns, strict=True)}
        return entry | ({"packed": _write_packed(self.packed)} if self.packed else {})

    def lost(self, whole: Iterable[int]) -> tuple[int, ...]:
        """Return the ids of all episodes but those at the positions ``whole``."""
        return tuple(np.delete(self.episode_ids, list(whole)).tolist())


class Schema:
    """What all shards of a store have in common: the two spaces, the recipe, and the leaves that follow from them.

    Args:
        observation_space: as `space_to_json` supports it.
        action_space: likewise.
        recipe: JSON-able description of where the episodes come from.

    Raises:
        TypeError: if a space is not supported.
        ValueError: if a dtype has no name in safetensors.
    """

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], recipe: Mapping[str, Any] | None = None
    ):
        self.observation_space = observation_space
        self.action_space = action_space
        self.recipe: dict[str, Any] = json.loads(json.dumps(dict(recipe or {}), allow_nan=False))
        self.metadata = {
            "observation_space": json.dumps(space_to_json(observation_space)),
            "action_space": json.dumps(space_to_json(action_space)),
            "recipe": json.dumps(self.recipe),
        }
        found = [Leaf("rewards", np.dtype(np.float64), (), 0)]
        found += [Leaf(name, np.dtype(bool), (), 0) for name in ("terminations", "truncations")]
        for name, space, extra in (("observations", observation_space, 1), ("actions", action_space, 0)):
            for path, child in leaves(space):
                full_name, shape = f"{name}/{path}" if path else name, tuple(child.shape or ())
                found.append(Leaf(full_name, np.dtype(child.dtype), shape, extra, is_image(child)))
        names = [leaf.name for leaf in found]
        for leaf in found:
            if names.count(leaf.name) > 1:
                raise ValueError(
                    f"space: expected one leaf per path, got {leaf.name!r} twice; rename the Dict key that holds a '/'"
                )
            if leaf.dtype.name not in _DTYPES:
                raise ValueError(f"{leaf.name}: expected a dtype of {sorted(_DTYPES)}, got {leaf.dtype}")
        self.leaves = sorted(found, key=lambda leaf: (-leaf.dtype.itemsize, leaf.name))  # so that every leaf is aligned

    def arrays(self, episode: Episode) -> dict[str, np.ndarray]:
        """Return the leaves of an episode by name, in the dtypes of the spaces."""
        given = {"rewards": episode.rewards, "terminations": episode.terminations, "truncations": episode.truncations}
        for name in ("observations", "actions"):
            given |= {f"{name}/{path}" if path else name: v for path, v in leaf_values(getattr(episode, name)).items()}
        return {leaf.name: np.ascontiguousarray(given[leaf.name], dtype=leaf.dtype) for leaf in self.leaves}

    def checksum(self, episode: Episode) -> int:
        """Return the CRC-32 of all that an episode says: id, length, seed, and name, dtype, shape and bytes of its leaves."""
        value = zlib.crc32(f"{episode.episode_id} {len(episode)} {_seed_number(episode.seed)}".encode())
        for name, array in sorted(self.arrays(episode).items()):
            value = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), value)
            value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
        return value

    def unpacked_bytes(self, lengths: np.ndarray) -> int:
        """Return the bytes that episodes of these lengths take where nothing is packed, headers left out."""
        return sum(_rows(leaf, lengths) * leaf.row_bytes for leaf in self.leaves)

    def encode(self, episodes: Sequence[Episode]) -> tuple[Shard, bytes]:
        """Return the contents and the bytes of the shard that holds ``episodes``."""
        table = [(e.episode_id, len(e), _seed_number(e.seed), self.checksum(e)) for e in episodes]
        columns = [np.array(column, dtype=np.int64) for column in zip(*table, strict=True)]
        arrays = [self.arrays(episode) for episode in episodes]
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # zstd lets others run
            parts = {leaf.name: list(threads.map(partial(_bytes, leaf), arrays)) for leaf in self.leaves}
        packed = {leaf.name: np.array([len(part) for part in parts[leaf.name]]) for leaf in self.leaves if leaf.image}
        header = self._header(*columns, packed=packed)
        name = f"{columns[0].min():08d}-{columns[0].max():08d}-{sha256(header).hexdigest()[:12]}{SUFFIX}"
        data = b"".join(part for leaf in self.leaves for part in parts[leaf.name])
        return self.shard(name, *columns, packed=packed), header + data

    def shard_from_json(self, entry: Mapping[str, Any]) -> Shard:
        """Return the table of contents that `Shard.to_json` described."""
        columns = [read_column(entry[key]) for key in COLUMNS]
        return self.shard(entry["name"], *columns, packed=_read_packed(entry.get("packed", {})))

    def shard(
        self,
        name: str,
        episode_ids: np.ndarray,
        lengths: np.ndarray,
        seeds: np.ndarray,
        checksums: np.ndarray,
        *,
        packed: Mapping[str, np.ndarray] | None = None,
    ) -> Shard:
        """Return the table of contents of the shard with these columns, with the place of everything in it.

        Raises:
            ValueError: if ``name`` is not that of a shard but a path, which might lead out of the store.
        """
        if Path(name).name != name or not name.endswith(SUFFIX):
            raise ValueError(f"name: expected the name of a shard, a file in the store that ends in {SUFFIX}, got {name!r}")
        packed = dict(packed or {})
        ends = [len(self._header(episode_ids, lengths, seeds, checksums, packed=packed))]
        for leaf in self.leaves:
            ends.append(ends[-1] + _leaf_bytes(leaf, lengths, packed))
        return Shard(name, ends[-1], episode_ids, lengths, seeds, checksums, tuple(ends[:-1]), packed)

    def header(self, shard: Shard) -> bytes:
        """Return the bytes that the file of ``shard`` starts with."""
        return self._header(*shard.columns, packed=shard.packed)

    def _header(self, *columns: np.ndarray, packed: Mapping[str, np.ndarray]) -> bytes:
        metadata = {"format": FORMAT, "version": str(VERSION if packed else 1), **self.metadata}
        metadata |= {name: write_column(column) for name, column in zip(COLUMNS, columns, strict=True)}
        if packed:
            metadata["packed"] = json.dumps(_write_packed(packed))
        metadata["checksum"] = str(zlib.crc32(json.dumps(metadata).encode()))
        entries: dict[str, Any] = {"__metadata__": metadata}
        offset = 0
        for leaf in self.leaves:
            end = offset + _leaf_bytes(leaf, columns[1], packed)
            shape = [end - offset] if leaf.name in packed else [_rows(leaf, columns[1]), *leaf.shape]
            entries[leaf.name] = {"dtype": _DTYPES[leaf.dtype.name], "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def read(self, path: Path, shard: Shard, position: int, start: int, stop: int) -> Episode:
        """Read steps [start, stop) of the episode at ``position`` of a shard: only their bytes leave the disk.

        Raises:
            ValueError: if the file is missing or ends before them, if they are a whole episode and damaged, or if packed frames
                are.
        """
        found = {}
        try:
            with open(path, "rb", buffering=0) as file:
                for leaf, offset in zip(self.leaves, shard.offsets, strict=True):
                    array = np.empty((stop - start + leaf.extra, *leaf.shape), leaf.dtype)
                    _read_rows(file, shard, leaf, offset, position, start, array)
                    found[leaf.name] = array
        except (FileNotFoundError, EOFError) as error:
            state = "none" if isinstance(error, FileNotFoundError) else "one that was cut short"
            raise ValueError(f"{path}: expected a whole shard, got {state}; {_REPAIR}") from error
        except ValueError as error:
            number = int(shard.episode_ids[position])
            raise ValueError(f"{path}: expected episode {number} whole, got a damaged one: {error}; {_REPAIR}") from error
        episode = Episode(
            observations=self._nest("observations", self.observation_space, found),
            actions=self._nest("actions", self.action_space, found),
            **{name: found[name] for name in ("rewards", "terminations", "truncations")},
            episode_id=int(shard.episode_ids[position]),
            seed=None if shard.seeds[position] == NO_SEED else int(shard.seeds[position]),
        )
        if len(episode) == shard.lengths[position] and self.checksum(episode) != shard.checksums[position]:
            raise ValueError(f"{path}: expected episode {episode.episode_id} whole, got a damaged one; {_REPAIR}")
        return episode

    def _nest(self, name: str, space: gym.Space[Any], found: Mapping[str, np.ndarray]) -> Any:
        return build_value(space, {path: found[f"{name}/{path}" if path else name] for path, _ in leaves(space)})


def scan(path: Path) -> tuple[Schema, Shard]:
    """Read schema and contents of a shard from its own header, without any other file.

    Raises:
        NewerVersionError: if a newer version wrote it.
        ValueError: if the header is damaged or foreign.
    """
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        text = file.read(length) if length <= path.stat().st_size else b""
    try:
        metadata = json.loads(text)["__metadata__"]
        found, version = metadata["format"], int(metadata["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the header of a {FORMAT} file, got a damaged or foreign one") from error
    if found == FORMAT and version > VERSION:
        raise NewerVersionError(f"{path}: expected {FORMAT} version {VERSION} or older, got {version}: upgrade worldmodel")
    try:
        spaces = [space_from_json(json.loads(metadata[key])) for key in ("observation_space", "action_space")]
        schema = Schema(spaces[0], spaces[1], json.loads(metadata["recipe"]))
        columns = [read_column(metadata[key]) for key in COLUMNS]
        shard = schema.shard(path.name, *columns, packed=_read_packed(json.loads(metadata.get("packed", "{}"))))
        whole = schema.header(shard) == prefix + text
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path}: expected the header of a {FORMAT} file, got a damaged one ({error})") from error
    if not whole:
        raise ValueError(f"{path}: expected the header of a {FORMAT} file, got a damaged one")
    return schema, shard


def inspect(path: Path, schema: Schema, shard: Shard) -> tuple[str, str, list[int]] | None:
    """Look for damage in a shard, reading one episode at a time.

    Returns:
        None for a whole shard; else kind of damage, detail, and the positions of the episodes that are whole all the same.
    """
    if not path.is_file():
        return "missing", "the file is not there", []
    header = schema.header(shard)
    with open(path, "rb") as file:
        header_whole = file.read(len(header)) == header
    size = path.stat().st_size
    whole = [position for position in range(len(shard.lengths)) if _is_whole(path, schema, shard, position)]
    if size != shard.size:
        return "cut", f"expected {shard.size} bytes, got {size}", whole
    if not header_whole:
        return "header", "the header does not say what was written", whole
    if len(whole) < len(shard.lengths):
        return "data", f"{len(shard.lengths) - len(whole)} episodes do not match their checksum", whole
    return None


def _is_whole(path: Path, schema: Schema, shard: Shard, position: int) -> bool:
    try:
        schema.read(path, shard, position, 0, int(shard.lengths[position]))
    except ValueError:
        return False
    return True


def files(folder: Path) -> list[Path]:
    """List the shards in a folder, whole or not, by name."""
    return sorted(folder.glob(f"[!.]*{SUFFIX}"))


def set_aside(path: Path, folder: Path) -> None:
    """Copy a damaged file to ``folder``, under a name that is free there."""
    folder.mkdir(exist_ok=True)
    target, number = folder / path.name, 0
    while target.exists():
        number += 1
        target = folder / f"{path.name}.{number}"
    shutil.copy2(path, target)


def write_column(column: np.ndarray) -> str:
    """Write whole numbers as one line: far shorter, and easier on the eye, than a JSON list with a number per line."""
    return " ".join(map(str, column.tolist()))


def read_column(text: str) -> np.ndarray:
    """Read what `write_column` wrote."""
    return np.array(text.split(), dtype=np.int64)


def _write_packed(packed: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: write_column(column) for name, column in packed.items()}


def _read_packed(columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    return {name: read_column(text) for name, text in columns.items()}


def _bytes(leaf: Leaf, arrays: Mapping[str, np.ndarray]) -> bytes:
    return pack(arrays[leaf.name]) if leaf.image else arrays[leaf.name].tobytes()


def _leaf_bytes(leaf: Leaf, lengths: np.ndarray, packed: Mapping[str, np.ndarray]) -> int:
    return int(packed[leaf.name].sum()) if leaf.name in packed else _rows(leaf, lengths) * leaf.row_bytes


def _read_rows(file: BinaryIO, shard: Shard, leaf: Leaf, offset: int, position: int, start: int, into: np.ndarray) -> None:
    """Fill ``into`` with the rows of a leaf from step ``start`` of an episode on; the leaf begins at ``offset``."""
    if leaf.name in shard.packed:
        sizes = shard.packed[leaf.name]
        rows = int(shard.lengths[position]) + leaf.extra
        unpack(file, offset + int(sizes[:position].sum()), int(sizes[position]), rows, into, start)
        return
    file.seek(offset + (int(shard.starts[position]) + start + leaf.extra * position) * leaf.row_bytes)
    _fill(file, into)


def _rows(leaf: Leaf, lengths: np.ndarray) -> int:
    return int(lengths.sum()) + leaf.extra * len(lengths)


def _seed_number(seed: int | None) -> int:
    return NO_SEED if seed is None else int(seed)


def _fill(file: BinaryIO, array: np.ndarray) -> None:
    view = array.reshape(-1).view(np.uint8).data
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
