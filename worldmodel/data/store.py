"""Episodes on disk: append, read windows, verify and repair.

A store is a directory of safetensors shards and a small JSON manifest. Every file is written under
a temporary name, flushed and renamed: first the shard, then the manifest. A killed writer leaves at
worst a complete shard that the manifest does not list. The next writer adopts it.

Memory does not grow with the data. Reading a window reads only its own bytes; the store holds a few
numbers per episode. One writer and any number of readers can use a store at a time, also in other
processes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.data import shards
from worldmodel.data.compression import DamagedChunkError
from worldmodel.data.ends import read_terminated
from worldmodel.data.episode import Episode, check_episode
from worldmodel.data.index import Index, read_failures
from worldmodel.data.missing import missing_numbers
from worldmodel.data.reading import ReadableEpisodes, describe_store
from worldmodel.data.shard_table import Shard
from worldmodel.data.shards import Schema
from worldmodel.runtime import (
    InvalidFileError,
    NewerVersionError,
    check_integer,
    file_errors,
    files,
    is_being_replaced,
    local_path,
    locked,
    other_output,
    prepare_directory,
    write_bytes,
)
from worldmodel.spaces import check_space, space_from_json, space_to_json

FORMAT = "worldmodel.episodes"
VERSION = 2
MANIFEST = "manifest.json"
SHARDS = "shards"
DAMAGED = "damaged"
OUTPUTS = ("manifest.json*", "shards", DAMAGED, ".*.tmp")

_REBUILD = "`worldmodel store repair` rebuilds it from the shards"


class EpisodeStore(ReadableEpisodes):
    """The episodes of one directory, in the order of their ids; returned by `create` and `open`."""

    def __init__(self, path: Path, schema: Schema, known: Iterable[Shard] = (), failures: Iterable[Mapping[str, Any]] = ()):
        self.path = path
        self._schema = schema
        self._unfinished: str | None = None
        self._verified: dict[str, tuple[tuple[int, int, int], np.ndarray]] = {}  # by shard: its file, and which episodes
        self._index = Index(tuple(known), read_failures(failures))  # replaced as a whole: an interruption leaves the old one

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        recipe: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> EpisodeStore:
        """Create an empty store.

        Args:
            path: an absent or empty directory.
            observation_space: Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple.
            action_space: a space of the same kinds.
            recipe: JSON-serialisable description of how the episodes were made.
            overwrite: replace an earlier store.

        Raises:
            FileExistsError: if ``path`` holds other files, or a store and ``overwrite`` is False.
            TypeError, ValueError: if a space is not supported; see `worldmodel.spaces.check_space`.
        """
        schema = Schema(check_space(observation_space, "observation_space"), check_space(action_space, "action_space"), recipe)
        schema.check_spaces()
        if Path(path).exists() and not Path(path).is_dir():
            prepare_directory(path, marker=MANIFEST, format=FORMAT)  # raises
        with locked(path):
            directory = prepare_directory(path, marker=MANIFEST, format=FORMAT, overwrite=overwrite, replaces=OUTPUTS)
            store = cls(directory, schema)
            (store.path / SHARDS).mkdir()
            store._write_manifest(store._index)
        return store

    @classmethod
    def open(cls, path: str | Path) -> EpisodeStore:
        """Open a store; reads only its manifest.

        Raises:
            FileNotFoundError: if there is no store; the message says if `repair` can rebuild it.
            ValueError: if the manifest is damaged or of a newer version.
        """
        path = local_path(path)
        if not (path / MANIFEST).is_file():
            hint = f"; its shards exist: {_REBUILD}" if shards.files(path / SHARDS) else ""
            found = hint or other_output(path)
            raise FileNotFoundError(f"{path / MANIFEST}: expected the manifest of an episode store, got none{found}")
        try:
            content = files.read_json(path / MANIFEST, format=FORMAT, version=VERSION)
            with file_errors(path / MANIFEST, "an undamaged manifest"):
                del content["version"]
                if content.pop("checksum", None) != _checksum(content):
                    raise ValueError("its checksum is not the one recorded")
                spaces = [space_from_json(content[name]) for name in ("observation_space", "action_space")]
                schema = Schema(spaces[0], spaces[1], content["recipe"])
                store = cls(path, schema, map(schema.shard_from_json, content["shards"]), content["failures"])
                store._unfinished = content.get("unfinished")
                return store
        except NewerVersionError:
            raise
        except InvalidFileError as error:
            raise InvalidFileError(f"{error}; {_REBUILD}") from error

    @staticmethod
    def lies_in(path: str | Path) -> bool:
        """Return True if a directory holds a store or the shards of one, and is not being replaced."""
        if is_being_replaced(Path(path) / MANIFEST, FORMAT):
            return False
        return (Path(path) / MANIFEST).is_file() or bool(shards.files(Path(path) / SHARDS))

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Space of the observations."""
        return self._schema.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Space of the actions."""
        return self._schema.action_space

    @property
    def recipe(self) -> dict[str, Any]:
        """Copy of the recipe given to `create`: how the episodes were made."""
        return copy.deepcopy(self._schema.recipe)

    @property
    def missing(self) -> dict[str, tuple[int, ...]]:
        """Numbers of the observation that may be missing (NaN), by leaf, as the recipe says (`worldmodel.data.missing`)."""
        return missing_numbers(self._schema.recipe, self.observation_space)

    @property
    def has_elapsed(self) -> bool:
        """Whether the time of each step is stored (``recipe["elapsed"]``)."""
        return bool(self._schema.recipe.get(shards.ELAPSED))

    @property
    def episode_ids(self) -> np.ndarray:
        """(episodes,) int64: ids of the episodes, ascending."""
        return self._index.ids

    @property
    def lengths(self) -> np.ndarray:
        """(episodes,) int64: steps of each episode, in the order of ``episode_ids``."""
        return self._index.lengths

    def terminated(self) -> np.ndarray:
        """Return whether each episode ended with a termination, (episodes,) bool. It reads one byte of each, unverified.

        Raises:
            ValueError: if a shard is missing or was cut short.
        """
        known = self._index
        ends = [read_terminated(self._file(shard.name), self._schema, shard) for shard in known.shards]
        first = np.cumsum([0, *map(len, ends)])
        return np.concatenate([np.zeros(0, dtype=bool), *ends])[first[known.shard_of] + known.position_of]

    @property
    def num_steps(self) -> int:
        """Total number of steps."""
        return int(self._index.lengths.sum())

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Episodes that could not be collected, by id: ``episode_id``, ``seed``, ``error``."""
        return [dict(self._index.failures[key]) for key in sorted(self._index.failures)]

    @property
    def machines(self) -> list[str]:
        """Names of the machines that made the episodes, as far as the manifest knows them; `repair` cannot recover them."""
        return sorted({machine for shard in self._index.shards for machine in shard.machines})

    @property
    def unfinished(self) -> str | None:
        """Reason why the store is incomplete, as after a killed collection or import; None if it is complete."""
        return self._unfinished

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of ids and checksums; independent of the division into shards."""
        return sha256(np.stack([self._index.ids, self._index.checksums], axis=1).astype("<i8").tobytes()).hexdigest()

    def __repr__(self) -> str:
        return describe_store(self)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._index.ids)

    def __iter__(self) -> Iterator[Episode]:
        """Iterate over complete episodes by id, with one in memory at a time."""
        return (self.read(index) for index in range(len(self)))

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Episode:
        """Read one episode or a window of it. Its checksum is verified, for windows once, before the first one is read.

        Args:
            index: position in the order of ``episode_ids``, 0 <= index < len(store).
            start: first step of the window.
            stop: one past the last step of the window; None means the end of the episode.

        Returns:
            The steps [start, stop), with stop - start + 1 observations.

        Raises:
            IndexError: if there is no such episode.
            ValueError: if the window leaves the episode, or if its shard is missing or damaged.
        """
        index, known = check_integer(index, "index"), self._index
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        length, start = int(known.lengths[index]), check_integer(start, "start")
        stop = length if stop is None else check_integer(stop, "stop")
        if not 0 <= start < stop <= length:
            given = f"start {start} and stop {stop}"
            raise ValueError(f"window of episode {known.ids[index]}: expected 0 <= start < stop <= {length}, got {given}")
        shard = known.shards[known.shard_of[index]]
        if stop - start < length:
            self._verify_once(shard, int(known.position_of[index]))
        return self._schema.read(self._file(shard.name), shard, int(known.position_of[index]), start, stop)

    def _verify_once(self, shard: Shard, position: int) -> None:
        """Verify an episode before its first window is read, and again if its file changed since.

        A checksum covers a complete episode, and a window is a part of it.
        """
        path = self._file(shard.name)
        try:
            status = path.stat()
        except OSError:
            return  # reading says what is wrong
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        before, done = self._verified.get(shard.name, (None, np.zeros(0, dtype=bool)))
        if before != state:
            done = np.zeros(len(shard.lengths), dtype=bool)
            self._verified[shard.name] = state, done
        if not done[position]:
            with contextlib.suppress(DamagedChunkError):  # each chunk of frames is verified when it is read
                self._schema.check(path, shard, position)
            done[position] = True

    def append(self, episodes: Sequence[Episode]) -> None:
        """Add episodes as one shard, flushed to disk and read back on return, and remove them from `failures`.

        Raises:
            OSError: if what was written does not read back; nothing is added then.
            LockedError: if another process writes to the store.
            ValueError: if an episode is invalid or its id is in use; nothing is added then.
        """
        if not episodes:
            return
        for episode in episodes:
            check_episode(episode, self.observation_space, self.action_space, missing=self.missing, timed=self.has_elapsed)
        with locked(self.path):
            self.adopt()
            ids, counts = np.unique([episode.episode_id for episode in episodes], return_counts=True)
            taken = ids[np.isin(ids, self._index.ids) | (counts > 1)]
            if taken.size:
                raise ValueError(f"episode_id: expected ids that are not in use, got {taken.tolist()} again")
            self._write_shard(episodes)

    def mark_unfinished(self, reason: str | None) -> None:
        """Record why the store is incomplete, or with None that it is complete."""
        if reason == self._unfinished:
            return
        with locked(self.path):
            self._unfinished = reason
            self._write_manifest(self._index)

    def remove(self) -> None:
        """Remove the files of the store; its directory stays."""
        with locked(self.path):
            prepare_directory(self.path, marker=MANIFEST, format=FORMAT, overwrite=True, replaces=OUTPUTS)

    def holds(self, episode: Episode) -> bool:
        """Return whether the store holds an episode with the same content."""
        index = int(np.searchsorted(self._index.ids, episode.episode_id))
        found = index < len(self) and self._index.ids[index] == episode.episode_id
        return bool(found and self._index.checksums[index] == self._schema.checksum(episode))

    def append_missing(self, episodes: Sequence[Episode]) -> None:
        """Append the episodes that the store lacks, as after an interrupted `append`."""
        if not episodes:
            return
        self.adopt()  # a killed writer may have written the shard but not the manifest
        held = set(self.episode_ids.tolist())
        self.append([episode for episode in episodes if episode.episode_id not in held])

    def stored_bytes(self, episodes: Sequence[Episode]) -> int:
        """Return the size in bytes of a shard of these episodes, at least one."""
        return self._schema.encode(episodes)[0].size

    def record_failures(self, failures: Iterable[Mapping[str, Any]]) -> None:
        """Record episodes that could not be collected, in the form of `failures`."""
        with locked(self.path):
            index = self._index.with_failures(failures)
            self._write_manifest(index)
            self._index = index

    def adopt(self) -> list[str]:
        """Add undamaged shards that a killed writer left without listing them in the manifest.

        Returns:
            Names of these shards. `repair` handles damaged shards and duplicate episodes.
        """
        if not self._orphans():
            return []
        with locked(self.path):
            adopted = self._adopt_undamaged_shards()
            if adopted:
                self._write_manifest(self._index)
            return adopted

    def _adopt_undamaged_shards(self) -> list[str]:
        taken = []
        for path in self._orphans():
            try:
                schema, shard = shards.scan(path)
            except ValueError:
                continue
            fits = schema.metadata == self._schema.metadata and not np.isin(shard.episode_ids, self._index.ids).any()
            if fits and shards.inspect(path, schema, shard) is None:
                self._index = self._index.with_shards([*self._index.shards, shard])
                taken.append(path.name)
        return taken

    def _orphans(self) -> list[Path]:
        """List the shards that are not in the manifest."""
        known = {shard.name for shard in self._index.shards}
        return [path for path in shards.files(self.path / SHARDS) if path.name not in known]

    def _file(self, name: str) -> Path:
        return self.path / SHARDS / name

    def _write_shard(self, episodes: Sequence[Episode]) -> None:
        shard, data = self._schema.encode(episodes)
        path = self._file(shard.name)
        write_bytes(path, data)
        if not self._reads_back(path, shard):
            path.unlink(missing_ok=True)
            raise OSError(f"{path}: expected the shard that was written, but other bytes were read back; check disk and memory")
        others = [known for known in self._index.shards if known.name != shard.name]
        machines = sorted({episode.machine for episode in episodes if episode.machine is not None})
        index = self._index.with_shards([*others, replace(shard, machines=tuple(machines))])
        self._write_manifest(index)
        self._index = index

    def _reads_back(self, path: Path, shard: Shard) -> bool:
        """Return whether a shard on disk is the one that was written, as its own header and its checksums say."""
        try:
            schema, found = shards.scan(path)
        except (OSError, ValueError):
            return False
        same = schema.metadata == self._schema.metadata and np.array_equal(found.checksums, shard.checksums)
        return same and shards.inspect(path, schema, found) is None

    def _write_manifest(self, index: Index) -> None:
        content: dict[str, Any] = {
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "recipe": self._schema.recipe,
            "failures": [index.failures[key] for key in sorted(index.failures)],
            "shards": [shard.to_json() for shard in index.shards],
            **({} if self._unfinished is None else {"unfinished": self._unfinished}),
        }
        content = {"checksum": _checksum(content), **content}  # of its own, which earlier versions verify too
        files.write_json(self.path / MANIFEST, content, format=FORMAT, version=VERSION, checksum=False)


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
