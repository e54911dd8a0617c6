"""Episodes whose observations are encoded once: (mean, log-variance) of z in the place of frames, in a store like any other.

M trains on them without touching a frame, and the store is a fraction of the frames' size. Its recipe names the V that encoded
it by fingerprint, and another is refused. Kept are mean and log-variance rather than a draw of z, so that every batch
draws afresh. Beside an image, a vector is encoded without noise, which is written as a log-variance of `NOISELESS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.collect import open_or_create, require_disk
from worldmodel.episode import Episode
from worldmodel.machine import fast_precision
from worldmodel.shards import Schema
from worldmodel.spaces import Value, leaf_values, map_leaves
from worldmodel.store import EpisodeStore
from worldmodel.vision import Vision

NOISELESS = -1e4  # as finite as a store wants its numbers, and exp of half of it is 0
DTYPES = ("float16", "float32")
KEY = "encoded_with"  # in the recipe of an encoded store
BATCH_FRAMES = 2048  # encoded at once
FLUSH_SECONDS, FLUSH_FRAMES = 10.0, 2**17  # a shard is written after so much work


class EncodedObservations(Vision):
    """V for episodes that are encoded already: reads mean and log-variance as they were written.

    Args:
        latent_size: D.
        dtype: that they are stored in, "float16" or "float32".
    """

    device_of: Tensor

    def __init__(self, latent_size: int, dtype: str = "float16"):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
        self.latent_size, self.dtype = latent_size, np.dtype(dtype)
        self.register_buffer("device_of", torch.zeros(()), persistent=False)

    @property
    def observation_space(self) -> gym.Space:
        """Dict of mean and log-variance, (D,) each."""
        limit = float(np.finfo(self.dtype).max)
        box = spaces.Box(-limit, limit, (self.latent_size,), self.dtype.type)
        return spaces.Dict({"log_variance": box, "mean": box})

    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, (..., D) float32 each."""
        found = (torch.as_tensor(observation[name], device=self.device_of.device).float() for name in ("mean", "log_variance"))
        mean, log_variance = found
        return mean, torch.where(log_variance <= NOISELESS, -torch.inf, log_variance)

    def decode(self, z: Tensor) -> Value:
        """Return z as an observation without noise."""
        return {"mean": z, "log_variance": torch.full_like(z, NOISELESS)}

    def write(self, mean: Tensor, log_variance: Tensor) -> Value:
        """Turn what a V gave into an observation of the space, as arrays."""
        kept = {"log_variance": log_variance.clamp(min=NOISELESS), "mean": mean}
        return {name: part.detach().cpu().numpy().astype(self.dtype) for name, part in kept.items()}


class Encoder:
    """Encodes episodes with a V.

    Args:
        vision: V, on the device that shall do the work.
        dtype: of what is written; dev/LOG.md says what float16 costs.
        precision: "float32"; "bfloat16" for the matrix products of the network; "auto" for what is faster where V is.
    """

    def __init__(self, vision: Vision, *, dtype: str = "float16", precision: str = "float32"):
        if precision not in ("float32", "bfloat16", "auto"):
            raise ValueError(f"precision: expected 'float32', 'bfloat16' or 'auto', got {precision!r}")
        self._device = next(iter(vision.state_dict().values())).device
        self.vision, self.precision = vision, fast_precision(self._device) if precision == "auto" else precision
        self.form = EncodedObservations(vision.latent_size, dtype)

    @property
    def observation_space(self) -> gym.Space:
        """Space of encoded observations."""
        return self.form.observation_space

    def check(self, observation_space: gym.Space) -> None:
        """Refuse observations of another space than V's.

        Raises:
            ValueError: naming both spaces.
        """
        if observation_space != self.vision.observation_space:
            expected = self.vision.observation_space
            raise ValueError(f"observation_space: expected V's observation space {expected}, got {observation_space}")

    def recipe(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """Extend the recipe of the episodes by what encodes them."""
        form = {"dtype": self.form.dtype.name, "precision": self.precision}
        return {**source, KEY: {"fingerprint": self.vision.fingerprint, **form}}

    def encode(self, episode: Episode) -> Episode:
        """Return the episode with its observations encoded."""
        parts = []
        for first in range(0, len(episode) + 1, BATCH_FRAMES):
            part = map_leaves(lambda leaf, first=first: leaf[first : first + BATCH_FRAMES], episode.observations)
            with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                parts.append(self.vision.encode(part))
        mean, log_variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return replace(episode, observations=self.form.write(mean, log_variance))


def encoded_with(store: EpisodeStore) -> str | None:
    """Fingerprint of the V that a store was encoded with; None if it holds observations as they were made."""
    return store.recipe.get(KEY, {}).get("fingerprint")


def encoded_form(stores: Sequence[EpisodeStore], vision: Vision | None) -> EncodedObservations | None:
    """How to read stores that are encoded; None if they are not.

    Args:
        stores: all of the same spaces.
        vision: the V that they must be encoded with.

    Raises:
        ValueError: if only some are encoded, if they were encoded with another V than ``vision``, or if none is given.
    """
    found = {encoded_with(store) for store in stores}
    if found == {None}:
        return None
    for store in stores:
        if vision is None or encoded_with(store) != vision.fingerprint:
            given = "none" if vision is None else f"one with fingerprint {vision.fingerprint[:12]}"
            name = (encoded_with(store) or "no V")[:12]
            raise ValueError(
                f"vision: expected the V that {store.path} was encoded with ({name}), got {given}; give that one, or encode "
                "the episodes with this one (scripts/encode.py)"
            )
    assert vision is not None
    return EncodedObservations(vision.latent_size, stores[0].recipe[KEY]["dtype"])


def encode_store(
    data: str | Path,
    *,
    vision: Vision,
    out: str | Path,
    dtype: str = "float16",
    precision: str = "float32",
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> EpisodeStore:
    """Encode the episodes of a store into another one, or those of them that it does not hold yet.

    Args:
        data: path of the store.
        vision: V.
        out: path of the encoded store: absent, empty, or begun with the same V and arguments, which is gone on with.
        dtype: see `Encoder`.
        precision: see `Encoder`.
        overwrite: replace an earlier encoded store.
        on_progress: called with the episodes done and their number.

    Returns:
        The encoded store.

    Raises:
        ValueError: if the observations are not V's or are encoded already, or ``out`` is ``data``.
        FileExistsError: if ``out`` holds something else, or episodes encoded otherwise or from another store.
        OSError: if the disk cannot hold what is missing; nothing is written or replaced then.
    """
    if Path(out).resolve() == Path(data).resolve():
        raise ValueError(f"out: expected another directory than that of the episodes, got {out} for both")
    source, encoder = EpisodeStore.open(data), Encoder(vision, dtype=dtype, precision=precision)
    encoder.check(source.observation_space)
    spaces_of_store = {"observation_space": encoder.observation_space, "action_space": source.action_space}
    _require_disk(Path(out), source, Schema(encoder.observation_space, source.action_space), overwrite)
    store = open_or_create(Path(out), lambda: spaces_of_store, encoder.recipe(source.recipe), overwrite=overwrite)
    done = _require_same_episodes(store, source)
    waiting: list[Episode] = []
    frames, flushed = 0, time.monotonic()
    missing = [index for index, episode_id in enumerate(source.episode_ids.tolist()) if episode_id not in done]
    try:
        for count, index in enumerate(missing):
            waiting.append(encoder.encode(source.read(index)))
            frames += len(waiting[-1])
            if frames >= FLUSH_FRAMES or time.monotonic() - flushed >= FLUSH_SECONDS:
                store.append(waiting)
                waiting, frames, flushed = [], 0, time.monotonic()
            if on_progress is not None:
                on_progress(len(done) + count + 1, len(source))
    finally:  # what is encoded by the time of Ctrl-C is kept
        store.append_missing(waiting)
    return store


def _require_disk(out: Path, source: EpisodeStore, schema: Schema, overwrite: bool) -> None:
    """Refuse to encode what the disk cannot hold, in a store that is there already or not."""
    held: Sequence[int] = []
    replaced = 0
    if overwrite:
        replaced = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    elif EpisodeStore.lies_in(out):
        held = EpisodeStore.open(out).episode_ids.tolist()
    lengths = source.lengths[~np.isin(source.episode_ids, held)]
    needed, remedy = schema.unpacked_bytes(lengths), "free some, write to another, or encode into float16 (dtype, --dtype)"
    require_disk(out, needed, f"{len(lengths)} encoded episodes", replaced=replaced, remedy=remedy)


def _require_same_episodes(store: EpisodeStore, source: EpisodeStore) -> set[int]:
    """The ids that an encoded store holds, which must be of its source: recipes alone do not tell recordings apart.

    Compared are ids and lengths of all, and what was done and rewarded in the first.
    """
    there = {episode_id: index for index, episode_id in enumerate(source.episode_ids.tolist())}
    held = store.episode_ids.tolist()
    for index, episode_id in enumerate(held):
        same = episode_id in there and store.lengths[index] == source.lengths[there[episode_id]]
        if not same or (index == 0 and not _same_steps(store.read(0), source.read(there[episode_id]))):
            raise FileExistsError(
                f"{store.path}: expected episodes of {source.path}, got an episode {episode_id} that is not there or another; "
                "choose another directory, or overwrite (--overwrite) to replace it"
            )
    return set(held)


def _same_steps(one: Episode, other: Episode) -> bool:
    """Whether two episodes are the same but for their observations."""
    actions, expected = leaf_values(one.actions), leaf_values(other.actions)
    same_actions = all(np.array_equal(actions[path], expected[path]) for path in expected)
    return one.seed == other.seed and np.array_equal(one.rewards, other.rewards) and same_actions
