"""Summary of a store from a sample of its episodes: lengths, rewards, ends, gaps, and the kind of each number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.data.formats.conversion import KEY
from worldmodel.data.formats.inference import Found
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import check_integer
from worldmodel.spaces import image_layout, is_image, leaf_values, leaves

MOST_NUMBERS = 256  # of which all values of the sample are kept
FRAMES = 10  # of each camera


@dataclass(frozen=True)
class Number:
    """A number of an observation or an action.

    Args:
        name: its leaf and index.
        found: its kind, range and values, as a conversion describes them.
        values: (N,) its values in the sample, without those that are missing.
    """

    name: str
    found: dict[str, Any]
    values: np.ndarray


@dataclass(frozen=True)
class StoreSummary:
    """What is in a store; figures but the lengths are of the sampled episodes.

    Args:
        lengths: (E,) steps of every episode.
        num_sampled: number of sampled episodes.
        rewards: (N,) rewards of all steps; empty if none were recorded.
        returns: (S,) sums of the rewards of each episode.
        ends: number of episodes that terminated, were truncated, or have no end.
        observation: its numbers, without images.
        action: its numbers.
        frames: (F, H, W, 3) uint8 frames of each camera, spread over the sample.
        notes: gaps in the data and assumptions of a conversion, in words.
    """

    lengths: np.ndarray
    num_sampled: int
    rewards: np.ndarray
    returns: np.ndarray
    ends: dict[str, int]
    observation: list[Number]
    action: list[Number]
    frames: dict[str, np.ndarray]
    notes: list[str]


def summarise_store(store: EpisodeStore, *, num_episodes: int = 200) -> StoreSummary:
    """Read a sample of the episodes of a store and summarise it.

    Args:
        store: the episodes.
        num_episodes: most episodes that are read, spread evenly.

    Raises:
        ValueError: if the store is empty.
    """
    if len(store) == 0:
        raise ValueError(f"{store.path}: expected at least one episode, got none")
    count = min(len(store), check_integer(num_episodes, "num_episodes", least=1))
    chosen = [k * len(store) // count for k in range(count)]
    parts: dict[str, dict[str, list[np.ndarray]]] = {"observation": {}, "action": {}}
    cameras = [path for path, leaf in leaves(store.observation_space) if is_image(leaf)]
    rewards, returns = [], []
    images: dict[str, list[np.ndarray]] = {path: [] for path in cameras}
    ends = {"terminated": 0, "truncated": 0, "no end": 0}
    shown = {chosen[k * count // FRAMES]: None for k in range(FRAMES)}
    for index in chosen:
        episode = store.read(index)
        rewards.append(episode.rewards)
        returns.append(float(episode.rewards.sum()))
        kind = "terminated" if episode.terminations[-1] else "truncated" if episode.truncations[-1] else "no end"
        ends[kind] += 1
        for part, value in (("observation", episode.observations), ("action", episode.actions)):
            for path, leaf in leaf_values(value).items():
                if path in cameras and part == "observation":
                    steps = [len(leaf) // 2] if len(shown) > 1 else range(0, len(leaf), max(1, len(leaf) // FRAMES))
                    images[path] += [leaf[t] for t in steps] if index in shown else []
                elif np.size(leaf):
                    parts[part].setdefault(path, []).append(np.asarray(leaf))
    found = {
        part: [number for path, rows in listed.items() for number in _numbers(path or part, rows, _columns(store, part, path))]
        for part, listed in parts.items()
    }
    has_rewards = store.recipe.get("rewards", True)
    return StoreSummary(
        lengths=store.lengths,
        num_sampled=count,
        rewards=np.concatenate(rewards) if has_rewards else np.zeros(0),
        returns=np.array(returns),
        ends=ends,
        observation=found["observation"],
        action=found["action"],
        frames={path: _colour(store, path, np.stack(listed[:FRAMES])) for path, listed in images.items()},
        notes=_notes(store),
    )


def _columns(store: EpisodeStore, part: str, path: str) -> list[str]:
    """Return the columns that a conversion joined to a leaf; none if it is one column."""
    columns = store.recipe.get(KEY, {}).get("leaves", {}).get(part, {}).get(path, [])
    return list(columns) if len(columns) > 1 else []


def _numbers(name: str, rows: list[np.ndarray], columns: list[str]) -> list[Number]:
    found = Found(name)
    for part in rows:
        found.add(part, name)
    values = np.concatenate(rows).reshape(sum(map(len, rows)), -1)
    described = found.numbers()
    if len(columns) == len(described):
        described = [{**one, "name": column} for one, column in zip(described, columns, strict=True)]
    numbers = [(one, values[:, i]) for i, one in enumerate(described[:MOST_NUMBERS]) if one["kind"] != "image"]
    return [Number(one["name"], one, known[known == known]) for one, known in numbers]  # without NaN


def _colour(store: EpisodeStore, path: str, images: np.ndarray) -> np.ndarray:
    """Return images as (F, H, W, 3)."""
    import torch

    layout = image_layout(dict(leaves(store.observation_space))[path], path)  # type: ignore[arg-type]
    return layout.to_rgb(torch.from_numpy(images)).numpy()


def _notes(store: EpisodeStore) -> list[str]:
    ids = store.episode_ids
    missing = int(ids[-1] - ids[0] + 1 - len(ids))
    notes = [f"{missing} episodes are missing between {ids[0]} and {ids[-1]}"] if missing else []
    notes += [f"{len(store.failures)} episodes failed"] if store.failures else []
    notes += [store.unfinished] if store.unfinished else []
    return notes + list(store.recipe.get(KEY, {}).get("assumed", []))
