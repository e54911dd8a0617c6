"""Find and repair damage in a store; every undamaged episode is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodel.data import shards
from worldmodel.data.remains import Remains
from worldmodel.data.shard_table import Shard
from worldmodel.data.shards import Schema
from worldmodel.data.store import DAMAGED, FORMAT, MANIFEST, SHARDS, VERSION, EpisodeStore
from worldmodel.runtime import TEMPORARY_SUFFIX, locked, parse_json, read_bytes, remove_temporaries


@dataclass(frozen=True)
class Problem:
    """A damaged, missing or unexpected file of a store.

    Args:
        shard: name of the file.
        kind: "manifest", "missing", "cut", "header", "data", "unreadable", "misplaced", "orphan", "stranger" or
            "temporary".
        detail: explanation for the user.
        episode_ids: ids of the episodes that are lost.
    """

    shard: str
    kind: str
    detail: str
    episode_ids: tuple[int, ...] = ()


def verify(path: str | Path) -> list[Problem]:
    """Read a store completely and list its problems; an empty list means that it is undamaged.

    Raises:
        FileNotFoundError: if there is neither a manifest nor a shard.
        ValueError: if a newer version of the library wrote the store, or if it is not a store.
    """
    store, problems = _open_or_rebuild(Path(path))
    problems += [Problem(file.name, "temporary", "left by a writer that was killed") for file in _temporaries(store.path)]
    problems += [Problem(file.name, "stranger", "it is no regular file") for file in shards.strangers(store.path / SHARDS)]
    for shard in store._index.shards:
        if found := shards.inspect(store._file(shard.name), store._schema, shard):
            problems.append(Problem(shard.name, found[0], found[1], shard.lost(found[2])))
    return problems + [Problem(file.name, "orphan", "the manifest does not list this shard") for file in store._orphans()]


def repair(path: str | Path, *, break_lock: bool = False) -> list[Problem]:
    """Repair a store and keep every undamaged episode.

    Writes the undamaged episodes of a damaged shard to a new shard, and moves the damaged file to
    the folder ``damaged``. Adopts undamaged shards that the manifest does not list. Removes
    temporary files. Rebuilds a missing or damaged manifest from the shards.

    Args:
        path: directory of the store.
        break_lock: repair although a process on another host has locked the store; see `RunConfig`.

    Returns:
        The problems that were found and fixed; `verify` finds none afterwards.

    Raises:
        FileNotFoundError: if there is neither a manifest nor a shard.
        ValueError: if a newer version of the library wrote the store, or if it is not a store.
        LockedError: if another process writes to the store.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: expected a store, got no directory")
    with locked(path, break_lock=break_lock):
        return _repair(Path(path))


def _repair(path: Path) -> list[Problem]:
    store, problems = _open_or_rebuild(path)
    problems += [Problem(file.name, "temporary", "removed") for file in _temporaries(path)]
    for file in shards.strangers(path / SHARDS):
        _move_aside(file, path / DAMAGED)
        problems.append(Problem(file.name, "stranger", f"it is no regular file; moved to {DAMAGED}/"))
    problems += _rename_misplaced(store)
    for folder in (store.path, store.path / SHARDS):
        remove_temporaries(folder)
    (store.path / SHARDS).mkdir(exist_ok=True)
    for shard in list(store._index.shards):
        if found := shards.inspect(store._file(shard.name), store._schema, shard):
            _salvage(store, store._file(shard.name), shard, found[2])
            problems.append(Problem(shard.name, found[0], f"{found[1]}; kept {len(found[2])} episodes", shard.lost(found[2])))
    problems += [Problem(name, "orphan", "adopted") for name in store.adopt()]
    problems += [_salvage_orphan(store, file) for file in store._orphans()]
    store._write_manifest(store._index)
    return problems


def _salvage(store: EpisodeStore, path: Path, shard: Shard, positions: Sequence[int]) -> None:
    """Replace a damaged shard by its episodes at ``positions``; safe against kills."""
    episodes = [store._schema.read(path, shard, position, 0, int(shard.lengths[position])) for position in positions]
    store._index = store._index.with_shards(known for known in store._index.shards if known.name != shard.name)
    if path.is_file():
        _set_aside(path, store.path / DAMAGED)
    if episodes:
        store._write_shard(episodes)  # replaces the old file if only the header was damaged
    if shard.name not in {known.name for known in store._index.shards}:
        path.unlink(missing_ok=True)


def _salvage_orphan(store: EpisodeStore, path: Path) -> Problem:
    try:
        schema, shard = shards.scan(path)
        if schema.metadata != store._schema.metadata:
            raise ValueError("it belongs to another collection")
    except shards.NewerVersionError:
        raise
    except ValueError as error:
        _set_aside(path, store.path / DAMAGED)
        path.unlink()
        return Problem(path.name, "orphan", f"moved to {DAMAGED}/: {error}")
    found = shards.inspect(path, schema, shard)
    undamaged = range(len(shard.lengths)) if found is None else found[2]
    new = [position for position in undamaged if shard.episode_ids[position] not in store._index.ids]
    lost = [i for i in shard.lost(undamaged) if i not in store._index.ids]
    _salvage(store, path, shard, new)
    return Problem(path.name, "orphan", f"took {len(new)} episodes that the store did not have", tuple(lost))


def _open_or_rebuild(path: Path) -> tuple[EpisodeStore, list[Problem]]:
    """Open a store; if its manifest is missing or damaged, rebuild it from the shards in memory.

    What is left of a damaged manifest says which recipe is the store's, and completes shards whose header is damaged too;
    without one, the recipe of most episodes is the store's.
    """
    try:
        return EpisodeStore.open(path), []
    except (FileNotFoundError, ValueError) as error:
        if _is_newer(path / MANIFEST):
            raise
        remains = Remains.of(path / MANIFEST)
        found, unreadable = [], []
        for file in shards.files(path / SHARDS):
            try:
                found.append(shards.scan(file))
            except shards.NewerVersionError:  # noqa: PERF203 (reading a file takes far longer than a try)
                raise
            except (OSError, ValueError):
                unreadable.append(file)
        restored = [pair for file in unreadable if (pair := remains.restore(file, [schema for schema, _ in found])) is not None]
        if not found and not restored:
            raise
        schema = _schema_of_most([*found, *restored], remains)
        store = EpisodeStore(path, schema)
        store._adopt_undamaged_shards()
        for other, shard in restored:
            if other.metadata == schema.metadata and not np.isin(shard.episode_ids, store.episode_ids).any():
                store._index = store._index.with_shards([*store._index.shards, shard])
        return store, [Problem(MANIFEST, "manifest", str(error))]


def _schema_of_most(found: Sequence[tuple[Schema, Shard]], remains: Remains) -> Schema:
    """Return the schema that a damaged manifest names, or else the one of the most episodes."""
    for schema, _ in found:
        if remains.names(schema):
            return schema
    episodes: Counter[str] = Counter()
    for schema, shard in found:
        episodes[json.dumps(schema.metadata)] += len(shard.lengths)
    most = episodes.most_common(1)[0][0]
    return next(schema for schema, _ in found if json.dumps(schema.metadata) == most)


def _rename_misplaced(store: EpisodeStore) -> list[Problem]:
    """Give undamaged shards the name that the manifest has for them, if another file has it, as after a wrong copy."""
    known = {shard.name: shard for shard in store._index.shards}
    headers = {store._schema.header(shard): name for name, shard in known.items()}
    wrong: list[tuple[Path, str]] = []
    for file in shards.files(store.path / SHARDS):
        try:
            header = b"".join(shards.read_header(file))
        except (OSError, ValueError):
            continue
        if headers.get(header, file.name) != file.name:
            wrong.append((file, headers[header]))
    moved = []
    for number, (file, name) in enumerate(wrong):  # first all away, under names that another repair still finds
        moved.append((file.rename(file.with_name(f"misplaced-{number}-{name}")), name))
    for file, name in moved:
        target = file.with_name(name)
        if not target.exists():
            file.rename(target)
    return [Problem(file.name, "misplaced", f"it holds the shard {name}; renamed") for file, name in wrong]


def _move_aside(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    path.rename(folder / path.name)


def _set_aside(path: Path, folder: Path) -> None:
    """Copy a damaged file to ``folder`` under a name that is not in use there."""
    folder.mkdir(exist_ok=True)
    target, number = folder / path.name, 0
    while target.exists():
        number += 1
        target = folder / f"{path.name}.{number}"
    try:
        shutil.copy2(path, target)
    except OSError:  # a bad sector: what can be read is in the new shard by then
        target.unlink(missing_ok=True)
        os.replace(path, target)


def _is_newer(manifest: Path) -> bool:
    try:
        content = parse_json(read_bytes(manifest), manifest)
        return bool(content["format"] == FORMAT and content["version"] > VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _temporaries(path: Path) -> list[Path]:
    return [file for folder in (path, path / SHARDS) for file in sorted(folder.glob(f".*{TEMPORARY_SUFFIX}"))]
