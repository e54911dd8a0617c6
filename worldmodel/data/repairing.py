"""Find and repair damage in a store; every undamaged episode is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldmodel.data import shards
from worldmodel.data.shard_table import Shard
from worldmodel.data.store import DAMAGED, FORMAT, MANIFEST, SHARDS, VERSION, EpisodeStore
from worldmodel.runtime import TEMPORARY_SUFFIX, locked, remove_temporaries


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


def verify(path: str | Path) -> list[Problem]:
    """Read a store completely and list its problems; an empty list means that it is undamaged.

    Raises:
        FileNotFoundError: if there is neither a manifest nor a shard.
        ValueError: if a newer version of the library wrote the store, or if it is not a store.
    """
    store, problems = _open_or_rebuild(Path(path))
    problems += [Problem(file.name, "temporary", "left by a writer that was killed") for file in _temporaries(store.path)]
    for shard in store._index.shards:
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
        shards.set_aside(path, store.path / DAMAGED)
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
        shards.set_aside(path, store.path / DAMAGED)
        path.unlink()
        return Problem(path.name, "orphan", f"moved to {DAMAGED}/: {error}")
    found = shards.inspect(path, schema, shard)
    undamaged = range(len(shard.lengths)) if found is None else found[2]
    new = [position for position in undamaged if shard.episode_ids[position] not in store._index.ids]
    lost = [i for i in shard.lost(undamaged) if i not in store._index.ids]
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
