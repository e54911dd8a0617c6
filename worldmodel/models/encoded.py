"""Encoded episodes: (mean, log-variance) of z instead of frames, in an ordinary store.

M trains on them without reading a frame, and the store is a fraction of the frames' size. Its recipe contains the fingerprint
of the V that encoded it, and another V is refused. The store holds mean and log-variance rather than a sample of z, so that
every batch samples again. A vector in addition to an image is encoded without noise, which is stored as a log-variance of
`NOISELESS`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.data import Episode, EpisodeCollection, EpisodeStore
from worldmodel.models.batch import SequenceBatch
from worldmodel.models.vision import Vision, draw_latent
from worldmodel.runtime import resolve_precision
from worldmodel.spaces import FlatSpace, Value, check_float32_range, check_magnitude, leaves, map_leaves

ENCODE_BYTES = 32 * 2**20  # of observations encoded at once by `encode_all`

NOISELESS = -1e4  # finite, as a store requires, and exp of half of it is 0
DTYPES = ("float16", "float32")
KEY = "encoded_with"  # in the recipe of an encoded store
BATCH_FRAMES = 2048  # encoded at once


class EncodedObservations(Vision):
    """V for encoded episodes: reads mean and log-variance as they were written.

    Args:
        latent_size: D.
        dtype: dtype of the stored numbers, "float16" or "float32".
    """

    device_of: Tensor

    def __init__(self, latent_size: int, dtype: str = "float16"):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
        self.latent_size, self.dtype = latent_size, np.dtype(dtype)
        self.register_buffer("device_of", torch.zeros((), dtype=torch.float32), persistent=False)

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

    def to_observation(self, mean: Tensor, log_variance: Tensor) -> Value:
        """Turn the mean and log-variance of a V into an observation of the space, as arrays.

        Raises:
            ValueError: if a number is beyond the range of the dtype.
        """
        kept = {"log_variance": log_variance.clamp(min=NOISELESS), "mean": mean}
        limit = float(np.finfo(self.dtype).max)
        for name, part in kept.items():
            too_large = part.abs() > limit
            if bool(too_large.any()):
                *_, latent = (int(index) for index in too_large.nonzero()[0])
                raise ValueError(
                    f"dtype: expected {self.dtype} to hold the encodings, up to {limit:g}, got a {name.replace('_', '-')} of "
                    f"{part[too_large][0]:g} in latent {latent}; encode in float32 (dtype, --dtype)"
                )
        return {name: part.detach().cpu().numpy().astype(self.dtype) for name, part in kept.items()}


class Encoder:
    """Encodes episodes with a V.

    Args:
        vision: V, on the device that is to encode.
        dtype: dtype of the stored numbers; dev/LOG.md has the cost of float16.
        precision: "float32"; "bfloat16" for the matrix products of the network; "auto" for the faster one on V's device.
    """

    def __init__(self, vision: Vision, *, dtype: str = "float16", precision: str = "float32"):
        self._device = next(iter(vision.state_dict().values())).device
        self.vision, self.precision = vision, resolve_precision(precision, self._device)
        self.form = EncodedObservations(vision.latent_size, dtype)

    @property
    def device(self) -> torch.device:
        """Device that encodes."""
        return self._device

    def on(self, device: torch.device | str) -> Encoder:
        """Return an encoder with the same numbers and a copy of V on a device."""
        return Encoder(copy.deepcopy(self.vision).to(device), dtype=self.form.dtype.name, precision=self.precision)

    @property
    def observation_space(self) -> gym.Space:
        """Space of encoded observations."""
        return self.form.observation_space

    def check(self, observation_space: gym.Space) -> None:
        """Raise if the observation space is not V's.

        Raises:
            ValueError: naming both spaces.
        """
        if observation_space != self.vision.observation_space:
            expected = self.vision.observation_space
            raise ValueError(f"observation_space: expected V's observation space {expected}, got {observation_space}")

    def recipe(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe of the episodes, extended by V's fingerprint, dtype and precision.

        Raises:
            ValueError: if numbers of the observations may be missing.
        """
        if source.get("missing"):
            raise ValueError(
                f"data: expected complete observations, got some in which numbers of {sorted(source['missing'])} may be "
                "missing; train on them as they are, with V as vision"
            )
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
        return replace(episode, observations=self.form.to_observation(mean, log_variance))


def encoded_with(store: EpisodeStore) -> str | None:
    """Return the fingerprint of the V that a store was encoded with; None if it holds the original observations."""
    return store.recipe.get(KEY, {}).get("fingerprint")


def encoded_form(stores: Sequence[EpisodeStore], vision: Vision | None) -> EncodedObservations | None:
    """Return the V that reads encoded stores; None if the stores are not encoded.

    Args:
        stores: stores of the same spaces.
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
                "the episodes with this one (worldmodel encode)"
            )
    assert vision is not None
    return EncodedObservations(vision.latent_size, stores[0].recipe[KEY]["dtype"])


@dataclass(frozen=True)
class EncodedSteps:
    """Encoded episodes, concatenated: the latents of L + 1 observations and the actions, rewards and ends of L steps of each.

    Args:
        mean: (sum (L + 1), D) mean of V's posterior.
        log_variance: (sum (L + 1), D) its log-variance; -inf if V has no noise.
        action: (sum L, A) action features; (sum L, A + 1), with the seconds of each step, if the episodes have them.
        reward: (sum L,).
        terminated: (sum L,) bool.
    """

    mean: Tensor
    log_variance: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor


@torch.no_grad()
def encode_episodes(episodes: Sequence[Episode], vision: Vision, action_space: FlatSpace) -> EncodedSteps:
    """Encode complete episodes or windows of them, all at once, on the device of ``vision``.

    Raises:
        ValueError: if a number is beyond float32's range. The message names episode, dimension, value and fix.
    """
    device = action_space.low.device
    for episode in episodes:
        _check_magnitudes(episode, vision.observation_space, action_space.space)
    mean, log_variance = vision.encode(_concatenate(e.observations for e in episodes))
    action = action_space.flatten(_concatenate(e.actions for e in episodes))
    if all(e.elapsed is not None for e in episodes):
        elapsed = np.concatenate([np.asarray(e.elapsed) for e in episodes])
        action = torch.cat([action, torch.as_tensor(elapsed, dtype=action.dtype, device=device).unsqueeze(-1)], dim=-1)
    return EncodedSteps(
        mean,
        log_variance,
        action,
        torch.as_tensor(np.concatenate([e.rewards for e in episodes]), dtype=torch.float32, device=device),
        torch.as_tensor(np.concatenate([e.terminations for e in episodes]), device=device),
    )


def encode_all(episodes: EpisodeCollection, vision: Vision, action_space: FlatSpace) -> EncodedSteps:
    """Encode a complete collection, some episodes at a time, and keep the result on the device of ``vision``."""
    row_bytes = sum(
        np.dtype(leaf.dtype).itemsize * math.prod(leaf.shape or ()) for _, leaf in leaves(episodes.observation_space)
    )
    chunk = np.cumsum(episodes.lengths) * row_bytes // ENCODE_BYTES
    groups = np.split(np.arange(len(episodes)), np.flatnonzero(np.diff(chunk)) + 1)
    parts = [encode_episodes([episodes.read(int(i)) for i in group], vision, action_space) for group in groups]
    return EncodedSteps(*(torch.cat([getattr(part, name) for part in parts]) for name in EncodedSteps.__dataclass_fields__))


def encoded_bytes(episodes: EpisodeCollection, vision: Vision, action_space: FlatSpace) -> int:
    """Return the bytes that the result of `encode_all` takes: two latents, action, reward and termination of each step."""
    action_bytes = 8 if action_space.exact and action_space.needs_float64 else 4
    return int(episodes.lengths.sum() + len(episodes)) * (2 * 4 * vision.latent_size + action_bytes * action_space.size + 5)


def gather(
    steps: EncodedSteps,
    first_observation: np.ndarray,
    first_step: np.ndarray,
    length: np.ndarray,
    burn: np.ndarray,
    *,
    generator: torch.Generator | None = None,
) -> SequenceBatch:
    """Cut windows out of concatenated steps and pad them on the right to the longest by repeating their last row.

    Args:
        steps: the concatenated steps.
        first_observation: (B,) row of each window's first observation.
        first_step: (B,) row of each window's first step.
        length: (B,) steps of each window.
        burn: (B,) steps at its beginning that do not count.
        generator: source of the randomness of V's posterior.
    """
    device = steps.mean.device
    which = torch.as_tensor(np.stack([first_observation, first_step, length, burn]), device=device).unsqueeze(-1)  # (4, B, 1)
    t = torch.arange(int(length.max()) + 1, device=device)  # (T + 1,)
    observation = which[0] + torch.minimum(t, which[2])  # (B, T + 1)
    step = which[1] + torch.minimum(t[:-1], which[2] - 1)  # (B, T)
    return SequenceBatch(
        z=draw_latent(steps.mean[observation], steps.log_variance[observation], generator=generator),
        action=steps.action[step],
        reward=steps.reward[step],
        terminated=steps.terminated[step],
        mask=(t[:-1] < which[2]) & (t[:-1] >= which[3]),
    )


def _check_magnitudes(episode: Episode, observation_space: gym.Space, action_space: gym.Space) -> None:
    """Raise if a number of an episode is beyond float32's range; the loss would be infinite at the first update."""
    name = f"episode {episode.episode_id}"
    check_magnitude(observation_space, episode.observations, f"{name} observations")
    check_magnitude(action_space, episode.actions, f"{name} actions")
    check_float32_range(torch.as_tensor(episode.rewards), f"{name} rewards")


def _concatenate(values: Iterable[Value]) -> Value:
    return map_leaves(lambda *parts: np.concatenate(parts), *values)
