"""The shard format: several episodes in one safetensors file, with a checksum per episode.

A shard concatenates each leaf over its episodes: ``observations[/path]``, ``actions[/path]``,
``rewards``, ``terminations``, ``truncations``. Version 2 of the format compresses the images of
each episode (`worldmodel.data.compression`). Version 1 stores them uncompressed and can still be
read.

The header makes the file self-contained. It holds the spaces, the recipe, and the id, length, seed,
packed bytes and checksum of each episode. The checksum covers the uncompressed images.

The header is a pure function of this content. So the offset of every row is computed, not read, and
a damaged header is detected and repaired by writing it again.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import gymnasium as gym
import numpy as np

from worldmodel.data.compression import PIECE, fill, pack, stream, unpack
from worldmodel.data.episode import Episode
from worldmodel.data.missing import missing_numbers
from worldmodel.data.shard_table import COLUMNS, NO_SEED, Leaf, Shard, read_column, read_packed, write_column, write_packed
from worldmodel.runtime import InvalidFileError, check_regular, file_errors, open_regular, parse_json
from worldmodel.runtime import NewerVersionError as NewerVersionError
from worldmodel.spaces import build_value, is_image, leaf_values, leaves, space_from_json, space_to_json, with_sorted_keys

FORMAT = "worldmodel.shard"
VERSION = 2  # 1 where nothing is packed
SUFFIX = ".safetensors"
ELAPSED = "elapsed"  # in a recipe: whether the time of each step is stored
MAX_HEADER = 2**28  # bytes; a million episodes in one shard have 50 MB

_REPAIR = "run `worldmodel store repair`"
_DTYPES = {"bool": "BOOL", "float16": "F16", "float32": "F32", "float64": "F64"}
_DTYPES |= {f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class Schema:
    """The spaces, the recipe and the leaves that all shards of a store share.

    Args:
        observation_space: a space that `space_to_json` supports.
        action_space: a space that `space_to_json` supports.
        recipe: JSON-serialisable description of how the episodes were made.

    Raises:
        TypeError: if a space is not supported.
        ValueError: if safetensors does not support a dtype, or two leaves have the same path.
    """

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], recipe: Mapping[str, Any] | None = None
    ):
        self.observation_space, self.action_space = with_sorted_keys(observation_space), with_sorted_keys(action_space)
        self.recipe: dict[str, Any] = json.loads(json.dumps(dict(recipe or {}), allow_nan=False))
        self.metadata = {
            "observation_space": json.dumps(space_to_json(self.observation_space)),
            "action_space": json.dumps(space_to_json(self.action_space)),
            "recipe": json.dumps(self.recipe),
        }
        found = [Leaf("rewards", np.dtype(np.float64), (), 0)]
        found += [Leaf(name, np.dtype(bool), (), 0) for name in ("terminations", "truncations")]
        found += [Leaf(ELAPSED, np.dtype(np.float64), (), 0)] if self.recipe.get(ELAPSED) else []
        for name, space, extra in (("observations", self.observation_space, 1), ("actions", self.action_space, 0)):
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
        self.leaves = sorted(found, key=lambda leaf: (-leaf.dtype.itemsize, leaf.name))  # aligns every leaf

    def check_spaces(self) -> None:
        """Raise unless both spaces come back from a file as they are, and the recipe names numbers of the observation.

        Raises:
            ValueError: naming the space or the number.
        """
        for name, space in (("observation_space", self.observation_space), ("action_space", self.action_space)):
            back = space_from_json(json.loads(self.metadata[name]))
            if back != space and space_to_json(back) != space_to_json(space):
                raise ValueError(f"{name}: expected a space that a file can keep, got {space}, which comes back as {back}")
        missing_numbers(self.recipe, self.observation_space)

    def arrays(self, episode: Episode) -> dict[str, np.ndarray]:
        """Return the leaves of an episode by name, in the dtypes of the spaces."""
        given = {name: getattr(episode, name) for name in ("rewards", "terminations", "truncations", ELAPSED)}
        for name in ("observations", "actions"):
            given |= {f"{name}/{path}" if path else name: v for path, v in leaf_values(getattr(episode, name)).items()}
        return {leaf.name: np.ascontiguousarray(given[leaf.name], dtype=leaf.dtype) for leaf in self.leaves}

    def checksum(self, episode: Episode) -> int:
        """Return the CRC-32 of an episode.

        It covers id, length and seed, and the name, dtype, shape and bytes of each leaf.
        """
        value = zlib.crc32(f"{episode.episode_id} {len(episode)} {_seed_number(episode.seed)}".encode())
        for name, array in sorted(self.arrays(episode).items()):
            value = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), value)
            value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
        return value

    def unpacked_bytes(self, lengths: np.ndarray) -> int:
        """Return the uncompressed size of episodes in bytes, without headers; ``lengths`` (E,)."""
        return sum(_rows(leaf, lengths) * leaf.row_bytes for leaf in self.leaves)

    def encode(self, episodes: Sequence[Episode]) -> tuple[Shard, bytes]:
        """Return table of contents and file content of the shard that holds ``episodes``."""
        table = [(e.episode_id, len(e), _seed_number(e.seed), self.checksum(e)) for e in episodes]
        columns = [np.array(column, dtype=np.int64) for column in zip(*table, strict=True)]
        arrays = [self.arrays(episode) for episode in episodes]
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # zstd releases the GIL
            parts = {leaf.name: list(threads.map(partial(_bytes, leaf), arrays)) for leaf in self.leaves}
        packed = {leaf.name: np.array([len(part) for part in parts[leaf.name]]) for leaf in self.leaves if leaf.image}
        header = self._header(*columns, packed=packed)
        name = f"{columns[0].min():08d}-{columns[0].max():08d}-{sha256(header).hexdigest()[:12]}{SUFFIX}"
        data = b"".join(part for leaf in self.leaves for part in parts[leaf.name])
        return self.shard(name, *columns, packed=packed), header + data

    def shard_from_json(self, entry: Mapping[str, Any]) -> Shard:
        """Return the table of contents from the output of `Shard.to_json`."""
        columns = [read_column(entry[key]) for key in COLUMNS]
        shard = self.shard(entry["name"], *columns, packed=read_packed(entry.get("packed", {})))
        return replace(shard, machines=tuple(map(str, entry.get("machines", ()))))

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
        """Return the table of contents of the shard with these columns, with all offsets.

        Args:
            name: file name.
            episode_ids: (E,) int64.
            lengths: (E,) int64, steps of each episode.
            seeds: (E,) int64, `NO_SEED` where unknown.
            checksums: (E,) int64, CRC-32 of each episode.
            packed: (E,) compressed bytes of each episode, by name of the leaf.

        Raises:
            ValueError: if ``name`` is not a plain file name with the suffix of shards; a path could
                lead out of the store.
        """
        if Path(name).name != name or not name.endswith(SUFFIX):
            raise ValueError(f"name: expected the name of a shard, a file in the store that ends in {SUFFIX}, got {name!r}")
        packed = dict(packed or {})
        ends = [len(self._header(episode_ids, lengths, seeds, checksums, packed=packed))]
        for leaf in self.leaves:
            ends.append(ends[-1] + _leaf_bytes(leaf, lengths, packed))
        return Shard(name, ends[-1], episode_ids, lengths, seeds, checksums, tuple(ends[:-1]), packed)

    def header(self, shard: Shard) -> bytes:
        """Return the header of ``shard``: the first bytes of its file."""
        return self._header(*shard.columns, packed=shard.packed)

    def _header(self, *columns: np.ndarray, packed: Mapping[str, np.ndarray]) -> bytes:
        metadata = {"format": FORMAT, "version": str(VERSION if packed else 1), **self.metadata}
        metadata |= {name: write_column(column) for name, column in zip(COLUMNS, columns, strict=True)}
        if packed:
            metadata["packed"] = json.dumps(write_packed(packed))
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
        """Read steps [start, stop) of the episode at ``position`` of a shard.

        Only the bytes of these steps are read, or the chunks that hold them if frames are
        compressed. The checksum of the episode is verified if the window covers it completely.

        Raises:
            ValueError: if the file is missing or cut short, or if the episode is damaged.
        """
        found = {}
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                for leaf, offset in zip(self.leaves, shard.offsets, strict=True):
                    if leaf.name not in shard.packed and offset + (stop - start) * leaf.row_bytes > size:
                        raise EOFError  # before anything of the size that the table says is allocated
                    array = np.empty((stop - start + leaf.extra, *leaf.shape), leaf.dtype)
                    _read_rows(file, shard, leaf, offset, position, start, array)
                    found[leaf.name] = array
        except (FileNotFoundError, EOFError) as error:
            state = "no file" if isinstance(error, FileNotFoundError) else "a file that was cut short"
            raise InvalidFileError(f"{path}: expected a complete shard, got {state}; {_REPAIR}") from error
        except (ValueError, MemoryError) as error:
            number = int(shard.episode_ids[position])
            raise InvalidFileError(
                f"{path}: expected an undamaged episode {number}, got a damaged one: {error}; {_REPAIR}"
            ) from error
        episode = Episode(
            observations=self._nest("observations", self.observation_space, found),
            actions=self._nest("actions", self.action_space, found),
            rewards=found["rewards"],
            terminations=found["terminations"],
            truncations=found["truncations"],
            elapsed=found.get(ELAPSED),
            episode_id=int(shard.episode_ids[position]),
            seed=None if shard.seeds[position] == NO_SEED else int(shard.seeds[position]),
        )
        if len(episode) == shard.lengths[position] and self.checksum(episode) != shard.checksums[position]:
            raise InvalidFileError(f"{path}: expected an undamaged episode {episode.episode_id}, got a damaged one; {_REPAIR}")
        return episode

    def check(self, path: Path, shard: Shard, position: int) -> None:
        """Verify the checksum of an episode, with a small part of it in memory at a time.

        Raises:
            ValueError: if the episode is damaged.
            OSError: if its file is missing or cannot be read.
        """
        length = int(shard.lengths[position])
        value = zlib.crc32(f"{shard.episode_ids[position]} {length} {shard.seeds[position]}".encode())
        with open_regular(path) as file:
            for leaf, offset in sorted(zip(self.leaves, shard.offsets, strict=True), key=lambda each: each[0].name):
                rows = length + leaf.extra
                value = zlib.crc32(f"{leaf.name} {leaf.dtype.name} {(rows, *leaf.shape)}".encode(), value)
                try:
                    for piece in _pieces(file, shard, leaf, offset, position):
                        value = zlib.crc32(piece, value)
                except EOFError:
                    raise ValueError("the file was cut short") from None
        if value != shard.checksums[position]:
            number = int(shard.episode_ids[position])
            raise InvalidFileError(f"{path}: expected an undamaged episode {number}, got a damaged one; {_REPAIR}")

    def _nest(self, name: str, space: gym.Space[Any], found: Mapping[str, np.ndarray]) -> Any:
        return build_value(space, {path: found[f"{name}/{path}" if path else name] for path, _ in leaves(space)})


def scan(path: Path) -> tuple[Schema, Shard]:
    """Read schema and table of contents of a shard from its own header, without any other file.

    Raises:
        NewerVersionError: if a newer version of the library wrote the file.
        ValueError: if the header is damaged or the file is not a shard.
    """
    prefix, text = read_header(path)
    try:
        metadata = parse_json(text, path)["__metadata__"]
        found, version = metadata["format"], int(metadata["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidFileError(
            f"{path}: expected the header of a {FORMAT} file, got a damaged one or another format"
        ) from error
    if found == FORMAT and version > VERSION:
        raise NewerVersionError(f"{path}: expected {FORMAT} version {VERSION} or older, got {version}: upgrade worldmodel")
    with file_errors(path, f"the header of a {FORMAT} file"):
        schema, shard = from_metadata(metadata, path)
        if schema.header(shard) != prefix + text:
            raise ValueError("it differs from the one that was written: a damaged one")
    return schema, shard


def read_header(path: Path) -> tuple[bytes, bytes]:
    """Return the first 8 bytes of a shard, and the header whose length they give; empty if that is longer than the file."""
    size = check_regular(path).st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        return prefix, file.read(length) if length <= min(size, MAX_HEADER) else b""


def from_metadata(metadata: Mapping[str, str], path: Path) -> tuple[Schema, Shard]:
    """Return schema and table of contents from the metadata in the header of a shard."""
    spaces = [space_from_json(parse_json(metadata[key], path)) for key in ("observation_space", "action_space")]
    schema = Schema(spaces[0], spaces[1], parse_json(metadata["recipe"], path))
    columns = [read_column(metadata[key]) for key in COLUMNS]
    return schema, schema.shard(path.name, *columns, packed=read_packed(parse_json(metadata.get("packed", "{}"), path)))


def inspect(path: Path, schema: Schema, shard: Shard) -> tuple[str, str, list[int]] | None:
    """Check a shard for damage, with a small part of it in memory at a time.

    Returns:
        None for an undamaged shard. Otherwise the kind of damage, its detail, and the positions of
        the undamaged episodes.
    """
    if not path.is_file():
        return "missing", "the file does not exist", []
    header, size = schema.header(shard), path.stat().st_size
    try:
        with open(path, "rb") as file:
            header_matches = file.read(len(header)) == header
    except OSError as error:
        return "unreadable", str(error), [p for p in range(len(shard.lengths)) if _is_undamaged(path, schema, shard, p)]
    undamaged = [position for position in range(len(shard.lengths)) if _is_undamaged(path, schema, shard, position)]
    if size != shard.size:
        return "cut", f"expected {shard.size} bytes, got {size}", undamaged
    if not header_matches:
        return "header", "the header differs from the one that was written", undamaged
    if len(undamaged) < len(shard.lengths):
        return "data", f"{len(shard.lengths) - len(undamaged)} episodes do not match their checksum", undamaged
    return None


def _is_undamaged(path: Path, schema: Schema, shard: Shard, position: int) -> bool:
    try:
        schema.check(path, shard, position)
    except (OSError, ValueError, MemoryError):
        return False
    return True


def files(folder: Path) -> list[Path]:
    """List the shards in a folder by name, damaged ones included; only regular files, as others may block for ever."""
    return [path for path in sorted(folder.glob(f"[!.]*{SUFFIX}")) if path.is_file() and not path.is_symlink()]


def strangers(folder: Path) -> list[Path]:
    """List what has the name of a shard in a folder, but is a directory, a link, a FIFO or a device."""
    return [path for path in sorted(folder.glob(f"[!.]*{SUFFIX}")) if not path.is_file() or path.is_symlink()]


def _bytes(leaf: Leaf, arrays: Mapping[str, np.ndarray]) -> bytes:
    return pack(arrays[leaf.name]) if leaf.image else arrays[leaf.name].tobytes()


def _leaf_bytes(leaf: Leaf, lengths: np.ndarray, packed: Mapping[str, np.ndarray]) -> int:
    return int(packed[leaf.name].sum()) if leaf.name in packed else _rows(leaf, lengths) * leaf.row_bytes


def _read_rows(file: BinaryIO, shard: Shard, leaf: Leaf, offset: int, position: int, start: int, into: np.ndarray) -> None:
    """Fill ``into`` with rows of one leaf of one episode.

    Args:
        file: the shard, open for reading.
        shard: its table of contents.
        leaf: the leaf to read.
        offset: position in the file at which the leaf starts.
        position: position of the episode in the shard.
        start: first row to read.
        into: (n, *leaf.shape) array that is filled.
    """
    if leaf.name in shard.packed:
        sizes = shard.packed[leaf.name]
        rows = int(shard.lengths[position]) + leaf.extra
        unpack(file, offset + int(sizes[:position].sum()), int(sizes[position]), rows, into, start)
        return
    file.seek(offset + (int(shard.starts[position]) + start + leaf.extra * position) * leaf.row_bytes)
    fill(file, into)


def _pieces(file: BinaryIO, shard: Shard, leaf: Leaf, offset: int, position: int) -> Iterator[bytes | memoryview]:
    """Yield the uncompressed bytes of one leaf of one episode, a small part at a time."""
    rows = int(shard.lengths[position]) + leaf.extra
    if leaf.name in shard.packed:
        sizes = shard.packed[leaf.name]
        yield from stream(file, offset + int(sizes[:position].sum()), int(sizes[position]), rows, leaf.row_bytes)
        return
    file.seek(offset + (int(shard.starts[position]) + leaf.extra * position) * leaf.row_bytes)
    left = rows * leaf.row_bytes
    while left:
        piece = np.empty(min(left, PIECE), np.uint8)
        fill(file, piece)
        left -= len(piece)
        yield piece.data


def _rows(leaf: Leaf, lengths: np.ndarray) -> int:
    return int(lengths.sum()) + leaf.extra * len(lengths)


def _seed_number(seed: int | None) -> int:
    return NO_SEED if seed is None else int(seed)
