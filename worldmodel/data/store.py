"""Episodes on disk: append, read windows, verify and repair.

A store is a directory of safetensors shards and a small JSON manifest. Every file is written under
a temporary name, flushed and renamed: first the shard, then the manifest. A killed writer leaves at
worst a complete shard that the manifest does not list. The next writer adopts it.

Memory does not grow with the data. Reading a window reads only its own bytes; the store holds a few
numbers per episode. One writer and any number of readers can use a store at a time, also in other
processes.
"""

from __future__ import annotations

import copy
import json
import operator
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.data import shards
from worldmodel.data.episode import Episode, check_episode
from worldmodel.data.reading import ReadableEpisodes, describe_store
from worldmodel.data.shard_table import Shard
from worldmodel.data.shards import Schema
from worldmodel.runtime import TEMPORARY_SUFFIX, prepare_directory, read_json, remove_temporaries, write_bytes, write_json
from worldmodel.spaces import space_from_json, space_to_json

FORMAT = "worldmodel.episodes"
VERSION = 2
MANIFEST = "manifest.json"
SHARDS = "shards"
DAMAGED = "damaged"
OUTPUTS = ("manifest.json*", "shards", DAMAGED, ".*.tmp")

_REBUILD = "`python scripts/store.py repair` rebuilds it from the shards"


@dataclass(frozen=True)
class Problem:
    """A damaged, missing or unexpected file of a store.

    Args:
        shard: name of the file.
        kind: "manifest", "missing", "cut", "header", "data", "orphan" or "temporary".
        detail: explanation for the user.
        episode_ids: ids of the episodes that are lost.
    """

    shard: str
    kind: str
    detail: str
    episode_ids: tuple[int, ...] = ()


class EpisodeStore(ReadableEpisodes):
    """The episodes of one directory, in the order of their ids; returned by `create` and `open`."""

    def __init__(self, path: Path, schema: Schema, known: Iterable[Shard] = (), failures: Iterable[Mapping[str, Any]] = ()):
        self.path = path
        self._schema = schema
        self._failures = {int(failure["episode_id"]): dict(failure) for failure in failures}
        self._set_shards(list(known))

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
            TypeError: if a space is not supported; the message names the nearest supported one.
        """
        schema = Schema(observation_space, action_space, recipe)
        store = cls(prepare_directory(path, marker=MANIFEST, format=FORMAT, overwrite=overwrite, replaces=OUTPUTS), schema)
        (store.path / SHARDS).mkdir()
        store._write_manifest()
        return store

    @classmethod
    def open(cls, path: str | Path) -> EpisodeStore:
        """Open a store; reads only its manifest.

        Raises:
            FileNotFoundError: if there is no store; the message says if `repair` can rebuild it.
            ValueError: if the manifest is damaged or of a newer version.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            hint = f"; its shards exist: {_REBUILD}" if shards.files(path / SHARDS) else ""
            raise FileNotFoundError(f"{path / MANIFEST}: expected the manifest of an episode store, got none{hint}")
        content = read_json(path / MANIFEST, format=FORMAT, version=VERSION)
        del content["version"]
        if content.pop("checksum", None) != _checksum(content):
            raise ValueError(f"{path / MANIFEST}: expected an undamaged manifest, got a damaged one; {_REBUILD}")
        observation_space, action_space = (space_from_json(content[name]) for name in ("observation_space", "action_space"))
        schema = Schema(observation_space, action_space, content["recipe"])
        return cls(path, schema, map(schema.shard_from_json, content["shards"]), content["failures"])

    @staticmethod
    def lies_in(path: str | Path) -> bool:
        """Return True if a directory holds a store or the shards of one."""
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
    def episode_ids(self) -> np.ndarray:
        """(episodes,) int64: ids of the episodes, ascending."""
        return self._ids

    @property
    def lengths(self) -> np.ndarray:
        """(episodes,) int64: steps of each episode, in the order of ``episode_ids``."""
        return self._lengths

    @property
    def num_steps(self) -> int:
        """Total number of steps."""
        return int(self._lengths.sum())

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Episodes that could not be collected, by id: ``episode_id``, ``seed``, ``error``."""
        return [dict(self._failures[key]) for key in sorted(self._failures)]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of ids and checksums; independent of the division into shards."""
        return sha256(np.stack([self._ids, self._checksums], axis=1).astype("<i8").tobytes()).hexdigest()

    def __repr__(self) -> str:
        return describe_store(self)

    def __iter__(self) -> Iterator[Episode]:
        """Iterate over complete episodes by id, with one in memory at a time."""
        return (self.read(index) for index in range(len(self)))

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Episode:
        """Read one episode or a window of it, and no other bytes.

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
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        length = int(self._lengths[index])
        stop = length if stop is None else stop
        if not 0 <= start < stop <= length:
            given = f"start {start} and stop {stop}"
            raise ValueError(f"window of episode {self._ids[index]}: expected 0 <= start < stop <= {length}, got {given}")
        shard = self._shards[self._shard_of[index]]
        return self._schema.read(self._file(shard.name), shard, int(self._position_of[index]), start, stop)

    def append(self, episodes: Sequence[Episode]) -> None:
        """Add episodes as one shard, flushed to disk on return, and remove them from `failures`.

        Raises:
            ValueError: if an episode is invalid or its id is in use; nothing is added then.
        """
        if not episodes:
            return
        for episode in episodes:
            check_episode(episode, self.observation_space, self.action_space)
        self.adopt()
        ids, counts = np.unique([episode.episode_id for episode in episodes], return_counts=True)
        taken = ids[np.isin(ids, self._ids) | (counts > 1)]
        if taken.size:
            raise ValueError(f"episode_id: expected ids that are not in use, got {taken.tolist()} again")
        self._write_shard(episodes)

    def append_missing(self, episodes: Sequence[Episode]) -> None:
        """Append the episodes that the store lacks, as after an interrupted `append`."""
        self.adopt()  # a killed writer may have written the shard but not the manifest
        held = set(self.episode_ids.tolist())
        self.append([episode for episode in episodes if episode.episode_id not in held])

    def stored_bytes(self, episodes: Sequence[Episode]) -> int:
        """Return the size in bytes of a shard of these episodes, at least one."""
        return self._schema.encode(episodes)[0].size

    def record_failures(self, failures: Iterable[Mapping[str, Any]]) -> None:
        """Record episodes that could not be collected, in the form of `failures`."""
        self._failures |= {int(f["episode_id"]): {key: f[key] for key in ("episode_id", "seed", "error")} for f in failures}
        self._write_manifest()

    def adopt(self) -> list[str]:
        """Add undamaged shards that a killed writer left without listing them in the manifest.

        Returns:
            Names of these shards. `repair` handles damaged shards and duplicate episodes.
        """
        adopted = self._adopt_undamaged_shards()
        if adopted:
            self._write_manifest()
        return adopted

    def _adopt_undamaged_shards(self) -> list[str]:
        taken = []
        for path in self._orphans():
            try:
                schema, shard = shards.scan(path)
            except ValueError:
                continue
            fits = schema.metadata == self._schema.metadata and not np.isin(shard.episode_ids, self._ids).any()
            if fits and shards.inspect(path, schema, shard) is None:
                self._set_shards([*self._shards, shard])
                taken.append(path.name)
        return taken

    def _orphans(self) -> list[Path]:
        """List the shards that are not in the manifest."""
        known = {shard.name for shard in self._shards}
        return [path for path in shards.files(self.path / SHARDS) if path.name not in known]

    def _file(self, name: str) -> Path:
        return self.path / SHARDS / name

    def _write_shard(self, episodes: Sequence[Episode]) -> None:
        shard, data = self._schema.encode(episodes)
        write_bytes(self._file(shard.name), data)
        self._set_shards([*self._shards, shard])
        self._write_manifest()

    def _set_shards(self, known: list[Shard]) -> None:
        self._shards = known
        empty = [np.zeros(0, dtype=np.int64)]
        ids = np.concatenate(empty + [shard.episode_ids for shard in known])
        order = np.argsort(ids)
        self._ids = ids[order]
        self._lengths = np.concatenate(empty + [shard.lengths for shard in known])[order]
        self._checksums = np.concatenate(empty + [shard.checksums for shard in known])[order]
        self._shard_of = np.repeat(np.arange(len(known)), [len(shard.lengths) for shard in known])[order]
        self._position_of = np.concatenate(empty + [np.arange(len(shard.lengths)) for shard in known])[order]
        made = set(self._ids.tolist())
        self._failures = {key: failure for key, failure in self._failures.items() if key not in made}

    def _write_manifest(self) -> None:
        content = {
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "recipe": self._schema.recipe,
            "failures": self.failures,
            "shards": [shard.to_json() for shard in self._shards],
        }
        write_json(self.path / MANIFEST, {"checksum": _checksum(content), **content}, format=FORMAT, version=VERSION)


def verify(path: str | Path) -> list[Problem]:
    """Read a store completely and list its problems; an empty list means that it is undamaged.

    Raises:
        FileNotFoundError: if there is neither a manifest nor a shard.
        ValueError: if a newer version of the library wrote the store, or if it is not a store.
    """
    store, problems = _open_or_rebuild(Path(path))
    problems += [Problem(file.name, "temporary", "left by a writer that was killed") for file in _temporaries(store.path)]
    for shard in store._shards:
        if found := shards.inspect(store._file(shard.name), store._schema, shard):
            problems.append(Problem(shard.name, found[0], found[1], shard.lost(found[2])))
    return problems + [Problem(file.name, "orphan", "the manifest does not list this shard") for file in store._orphans()]


def repair(path: str | Path) -> list[Problem]:
    """Repair a store and keep every undamaged episode.

    Writes the undamaged episodes of a damaged shard to a new shard, and moves the damaged file to
    the folder ``damaged``. Adopts undamaged shards that the manifest does not list. Removes
    temporary files. Rebuilds a missing or damaged manifest from the shards.

    Returns:
        The problems that were found and fixed; `verify` finds none afterwards.

    Raises:
        FileNotFoundError: if there is neither a manifest nor a shard.
        ValueError: if a newer version of the library wrote the store, or if it is not a store.
    """
    store, problems = _open_or_rebuild(Path(path))
    problems += [Problem(file.name, "temporary", "removed") for file in _temporaries(store.path)]
    for folder in (store.path, store.path / SHARDS):
        remove_temporaries(folder)
    (store.path / SHARDS).mkdir(exist_ok=True)
    for shard in list(store._shards):
        if found := shards.inspect(store._file(shard.name), store._schema, shard):
            _salvage(store, store._file(shard.name), shard, found[2])
            problems.append(Problem(shard.name, found[0], f"{found[1]}; kept {len(found[2])} episodes", shard.lost(found[2])))
    problems += [Problem(name, "orphan", "adopted") for name in store.adopt()]
    problems += [_salvage_orphan(store, file) for file in store._orphans()]
    store._write_manifest()
    return problems


def _salvage(store: EpisodeStore, path: Path, shard: Shard, positions: Sequence[int]) -> None:
    """Replace a damaged shard by its episodes at ``positions``; safe against kills."""
    episodes = [store._schema.read(path, shard, position, 0, int(shard.lengths[position])) for position in positions]
    store._set_shards([known for known in store._shards if known.name != shard.name])
    if path.is_file():
        shards.set_aside(path, store.path / DAMAGED)
    if episodes:
        store._write_shard(episodes)  # replaces the old file if only the header was damaged
    if shard.name not in {known.name for known in store._shards}:
        path.unlink(missing_ok=True)


def _salvage_orphan(store: EpisodeStore, path: Path) -> Problem:
    try:
        schema, shard = shards.scan(path)
        if schema.metadata != store._schema.metadata:
            raise ValueError("it belongs to another collection")
    except shards.NewerVersionError:
        raise
    except ValueError as error:
        shards.set_aside(path, store.path / DAMAGED)
        path.unlink()
        return Problem(path.name, "orphan", f"moved to {DAMAGED}/: {error}")
    found = shards.inspect(path, schema, shard)
    undamaged = range(len(shard.lengths)) if found is None else found[2]
    new = [position for position in undamaged if shard.episode_ids[position] not in store._ids]
    lost = [i for i in shard.lost(undamaged) if i not in store._ids]
    _salvage(store, path, shard, new)
    return Problem(path.name, "orphan", f"took {len(new)} episodes that the store did not have", tuple(lost))


def _open_or_rebuild(path: Path) -> tuple[EpisodeStore, list[Problem]]:
    """Open a store; if its manifest is missing or damaged, rebuild it from the shards in memory."""
    try:
        return EpisodeStore.open(path), []
    except (FileNotFoundError, ValueError) as error:
        if _is_newer(path / MANIFEST):
            raise
        for file in shards.files(path / SHARDS):
            try:
                schema, _ = shards.scan(file)
            except shards.NewerVersionError:
                raise
            except ValueError:
                continue
            store = EpisodeStore(path, schema)
            store._adopt_undamaged_shards()
            return store, [Problem(MANIFEST, "manifest", str(error))]
        raise


def _is_newer(manifest: Path) -> bool:
    try:
        content = json.loads(manifest.read_bytes())
        return bool(content["format"] == FORMAT and content["version"] > VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _temporaries(path: Path) -> list[Path]:
    return [file for folder in (path, path / SHARDS) for file in sorted(folder.glob(f".*{TEMPORARY_SUFFIX}"))]


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
