"""Copy episodes to and from Minari datasets (extra ``minari``).

The round trip of a store is lossless: values, dtypes, terminations, truncations, seeds and ids are
preserved. What Minari lacks (ids with gaps, recipe, dtypes of Discrete spaces) is stored in the
metadata of the dataset. What a store lacks (infos, reset options) is dropped when a dataset is
read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data import TIME_LIMIT, Episode, EpisodeStore, check_episode, open_or_create, positive_limits
from worldmodel.runtime import RunConfig, check_integer, missing_extra, parse_json, single_writer
from worldmodel.spaces import build_value, leaf_values, leaves, select_leaves, space_from_json, space_to_json, without_leaves

if TYPE_CHECKING:
    import minari

CHUNK_BYTES = 32 * 2**20  # size of the episodes in memory at a time; also the size of a shard

_KEY = "worldmodel"
_ID_KEY = "worldmodel_episode_id"


@single_writer()
def from_minari(
    dataset: str | minari.MinariDataset,
    out: str | Path,
    *,
    overwrite: bool = False,
    leave_out: Sequence[str] = (),
    break_lock: bool = False,
) -> EpisodeStore:
    """Copy a Minari dataset to a store, or those of its episodes that the store does not hold yet.

    An import that was killed is continued by the same call, and one of a dataset that has grown since is extended. Until an
    import is complete, the recipe of the store is marked as unfinished (`EpisodeStore.unfinished`).

    Values keep their dtype. If the dtype of the first episode is wider than its space (float64
    values of a float32 Box), the store's space gets the wider dtype. Invalid episodes (NaN in
    other numbers than the recipe names, termination before the last step, values that the dtypes of the first episode cannot
    represent) are skipped and listed in ``store.failures``.

    Args:
        dataset: a dataset, or the id of a local one.
        out: directory of the store; absent, empty, or an earlier import of the same dataset.
        overwrite: replace an earlier store at ``out``.
        leave_out: paths of leaves of the observations that are not copied, such as "mission"; leaves
            that are not supported (Text, Sequence, Graph) must be among them.
        break_lock: write although a process on another host has locked ``out``; see `RunConfig`.

    Returns:
        The store. Its recipe is the one stored by `to_minari`, or else the id of the dataset, with
        ``leave_out`` added.

    Raises:
        ImportError: if Minari is not installed.
        FileExistsError: if ``out`` holds something else, or the episodes of another dataset.
        TypeError: if a space is not supported.
        ValueError: if ``leave_out`` names no leaf, or if the dataset is empty.
    """
    minari = _import_minari()
    if isinstance(dataset, str):
        dataset = minari.load_dataset(dataset)
    if len(dataset) == 0:
        raise ValueError(f"dataset: expected at least one episode, got none in {dataset.id!r}")
    ours = parse_json(dataset.storage.metadata.get(_KEY, "{}"), dataset.id)
    observed = without_leaves(dataset.observation_space, leave_out)

    def make_spaces() -> dict[str, gym.Space[Any]]:
        first = next(iter(dataset))
        return {
            "observation_space": _space(observed, None if leave_out else ours.get("observation_space"), first.observations),
            "action_space": _space(dataset.action_space, ours.get("action_space"), first.actions),
        }

    recipe = ours.get("recipe", _recipe(dataset))
    if leave_out:
        recipe = {**recipe, "leave_out": [*recipe.get("leave_out", ()), *leave_out]}
    store = open_or_create(Path(out), make_spaces, recipe, run=RunConfig(overwrite=overwrite))
    failures: list[dict[str, Any]] = []
    store.mark_unfinished(f"the import of {len(dataset)} episodes of {dataset.id!r} was interrupted; import it again")
    for chunk in _chunks(_new(_episodes(dataset, store, failures), store)):
        store.append(chunk)
    store.record_failures(failures)
    store.mark_unfinished(None)
    return store


def to_minari(
    store: EpisodeStore,
    dataset_id: str,
    *,
    env: str | gym.Env | gym.envs.registration.EnvSpec | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> minari.MinariDataset:
    """Copy a store to a new local Minari dataset. Images are stored uncompressed, not as JPEG.

    Args:
        store: the episodes. Minari numbers them 0, 1, ... in the order of their ids.
        dataset_id: id of the dataset, such as ``"cartpole/random-v0"``.
        env: the environment, for Minari's ``recover_environment``; Minari builds it once.
        metadata: further arguments of ``minari.create_dataset_from_buffers``: author, description,
            ...

    Returns:
        The dataset.

    Raises:
        ImportError: if Minari is not installed.
        ValueError: if the dataset exists already, its id is malformed, or the store has the time of each step.
    """
    minari = _import_minari()
    if store.has_elapsed:
        raise ValueError(
            f"{store.path}: expected a store without the time of each step, for which Minari has no place; use to_parquet"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".* is set to None|env_spec is None", category=UserWarning
        )  # about missing metadata
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            [],
            env=env,
            observation_space=store.observation_space,
            action_space=store.action_space,
            jpeg_encoding=False,
            **(metadata or {}),
        )
    described = {name: space_to_json(getattr(store, name)) for name in ("observation_space", "action_space")}
    dataset.storage.update_metadata({_KEY: json.dumps({"recipe": store.recipe, **described})})
    for chunk in _chunks(store):
        first = dataset.storage.total_episodes
        dataset.update_dataset_from_buffer([_buffer(minari, episode) for episode in chunk])
        ids = [{_ID_KEY: episode.episode_id} for episode in chunk]
        dataset.storage.update_episode_metadata(ids, range(first, first + len(ids)))
    return dataset


def _import_minari() -> Any:
    try:
        import minari
        import minari.data_collector
    except ImportError as error:
        raise missing_extra("minari") from error
    return minari


def _recipe(dataset: minari.MinariDataset) -> dict[str, Any]:
    """Describe a dataset that `to_minari` did not make, with the time limit of its environment if it names one."""
    limits = positive_limits(getattr(dataset.env_spec, "max_episode_steps", None))
    return {"minari": dataset.id, **({TIME_LIMIT: limits[0]} if limits else {})}


def _episodes(dataset: minari.MinariDataset, store: EpisodeStore, failures: list[dict[str, Any]]) -> Iterator[Episode]:
    """Yield the valid episodes and append the others to ``failures``."""
    stored = dataset.storage.get_episode_metadata(dataset.episode_indices)
    for data, metadata in zip(dataset, stored, strict=True):
        number = check_integer(metadata.get(_ID_KEY, data.id), "episode_id")
        seed = metadata.get("seed")
        is_seed = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and 0 <= seed < 2**63
        known = int(seed) if is_seed else None
        try:
            episode = _episode(data, store, number, known)
            check_episode(episode, store.observation_space, store.action_space, missing=store.missing)
        except (ValueError, TypeError, LookupError, OverflowError) as error:  # of one episode; the others are imported
            failures.append({"episode_id": number, "seed": known, "error": f"{type(error).__name__}: {error}"})
        else:
            yield episode


def _episode(data: Any, store: EpisodeStore, number: int, seed: int | None) -> Episode:
    return Episode(
        observations=_cast(data.observations, store.observation_space),
        actions=_cast(data.actions, store.action_space),
        rewards=np.asarray(data.rewards, dtype=np.float64).reshape(-1),
        terminations=np.asarray(data.terminations, dtype=bool).reshape(-1),
        truncations=np.asarray(data.truncations, dtype=bool).reshape(-1),
        episode_id=number,
        seed=seed,
    )


def _new(episodes: Iterable[Episode], store: EpisodeStore) -> Iterator[Episode]:
    """Yield the episodes that the store lacks; those that it holds must be the same.

    Raises:
        FileExistsError: if it holds another episode of the same id.
    """
    held = {number: index for index, number in enumerate(store.episode_ids.tolist())}
    for episode in episodes:
        if episode.episode_id not in held:
            yield episode
        elif not store.holds(episode):
            raise FileExistsError(
                f"{store.path}: expected episodes of this dataset, got another episode {episode.episode_id}; choose another "
                "directory, or overwrite (overwrite=True) to replace them"
            )


def _space(space: gym.Space[Any], ours: Mapping[str, Any] | None, value: Any) -> gym.Space[Any]:
    """Return the space stored by `to_minari`, or else the dataset's space widened to ``value``."""
    if ours is not None:
        return space_from_json(ours)
    leaves(space)  # raises for an unsupported leaf
    return _widen(space, select_leaves(space, value))


def _widen(space: gym.Space[Any], value: Any) -> gym.Space[Any]:
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _widen(child, value[key]) for key, child in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_widen(child, part) for child, part in zip(space.spaces, value, strict=True)])
    dtype = np.asarray(value).dtype
    if not isinstance(space, spaces.Box) or np.can_cast(dtype, space.dtype, casting="safe"):
        return space
    dtype = np.promote_types(dtype, space.dtype)
    return spaces.Box(space.low.astype(dtype), space.high.astype(dtype), space.shape, dtype.type)


def _cast(value: Any, space: gym.Space[Any]) -> Any:
    given, cast = leaf_values(select_leaves(space, value)), {}
    for path, leaf in leaves(space):
        rows = np.asarray(given[path])
        with np.errstate(invalid="ignore"):
            cast[path] = rows.astype(leaf.dtype)
        if not np.array_equal(cast[path], rows, equal_nan=rows.dtype.kind == "f"):
            raise ValueError(
                f"dataset{f' leaf {path!r}' if path else ''}: expected values that {leaf.dtype} can represent, got {rows.dtype}"
            )
    return build_value(space, cast)


def _chunks(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    chunk, size = [], 0
    for episode in episodes:
        chunk.append(episode)
        size += episode.nbytes
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _buffer(minari: Any, episode: Episode) -> Any:
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    return minari.data_collector.EpisodeBuffer(seed=episode.seed, **{name: getattr(episode, name) for name in names})
