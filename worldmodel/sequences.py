"""From episodes on disk to batches of windows: split by episode, cut, shuffled, padded, masked.

Which windows a batch holds is a pure function of (seed, epoch, number of the batch): a run resumes at any batch without
replaying, and the sampler keeps a few numbers per episode, none per step. Windows never cross episodes. An episode longer than
the window is tiled by windows whose common offset is drawn anew each epoch; a shorter one is one padded window, never dropped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldmodel.batches import SequenceBatch
from worldmodel.episode import Episode
from worldmodel.spaces import FlatSpace, Value, leaves, map_leaves
from worldmodel.store import EpisodeStore
from worldmodel.vision import Vision, draw_latent

RESIDENT_BYTES = 64 * 2**20  # encoded sets up to this size are kept on the device unless the caller says otherwise
ENCODE_BYTES = 32 * 2**20  # observations that are encoded at once when a whole set is made resident


class EpisodeCollection:
    """One or several stores of the same environment, seen as one list of episodes.

    Args:
        stores: at least one store; all with the same spaces.
        min_length: episodes of fewer steps are left out.

    Raises:
        ValueError: if there is none, they hold no such episode, or their spaces differ.
    """

    def __init__(self, stores: Sequence[EpisodeStore], *, min_length: int = 1):
        if not stores:
            raise ValueError("stores: expected at least one, got none")
        for store in stores[1:]:
            for name in ("observation_space", "action_space"):
                expected, actual = getattr(stores[0], name), getattr(store, name)
                if actual != expected:
                    raise ValueError(f"{store.path}: expected {name} {expected} as in {stores[0].path}, got {actual}")
        self.stores = list(stores)
        self.observation_space = stores[0].observation_space
        self.action_space = stores[0].action_space
        lengths = np.concatenate([store.lengths for store in stores])
        self._kept = np.flatnonzero(lengths >= min_length)  # among the episodes of all stores
        self.lengths = lengths[self._kept]
        self._first = np.cumsum([0] + [len(store) for store in stores])
        if len(self.lengths) == 0:
            paths, least = ", ".join(str(store.path) for store in stores), f" of {min_length} steps" if min_length > 1 else ""
            raise ValueError(f"{paths}: expected at least one episode{least} to train on, got none; collect some first")

    @classmethod
    def open(cls, data: str | Path | Sequence[str | Path], *, min_length: int = 1) -> EpisodeCollection:
        """Open one store or several by their paths.

        Raises:
            FileNotFoundError: if there is no store.
            ValueError: if a store is given twice, or as said above.
        """
        paths = [data] if isinstance(data, (str, Path)) else list(data)
        if len({Path(path).resolve() for path in paths}) < len(paths):
            raise ValueError(f"data: expected different stores, got one twice in {[str(path) for path in paths]}")
        return cls([EpisodeStore.open(path) for path in paths], min_length=min_length)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Episode:
        """Read steps ``start`` to ``stop`` of an episode, and nothing else, from disk."""
        index = int(self._kept[index])
        which = int(np.searchsorted(self._first, index, side="right")) - 1
        return self.stores[which].read(index - int(self._first[which]), start, stop)

    @property
    def fingerprint(self) -> str:
        """A digest of the content of all stores, in order."""
        return hashlib.sha256("".join(store.fingerprint for store in self.stores).encode()).hexdigest()


def split_episodes(num_episodes: int, *, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split episode indices into train and test at random.

    With two or more episodes both parts hold at least one (unless ``test_fraction`` is 0); a single one goes to train.

    Args:
        num_episodes: how many there are, at least 1.
        test_fraction: part that is held out, in [0, 1).
        seed: the split is a function of it.

    Returns:
        Sorted indices of the train and of the test episodes.

    Raises:
        ValueError: if a number is out of range.
    """
    if num_episodes < 1 or not 0 <= test_fraction < 1 or seed < 0:
        given = f"{num_episodes}, {test_fraction} and {seed}"
        raise ValueError(f"num_episodes, test_fraction, seed: expected >= 1, in [0, 1) and >= 0, got {given}")
    held_out = 0 if test_fraction == 0 else min(max(1, round(num_episodes * test_fraction)), num_episodes - 1)
    order = np.random.default_rng([seed, num_episodes]).permutation(num_episodes)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def permuted(positions: np.ndarray, size: int, *, key: Sequence[int]) -> np.ndarray:
    """Look up positions in a pseudo-random permutation of range(size) that is never written out.

    A four-round Feistel network over the smallest even number of bits that holds ``size``, walked along its cycle until it
    lands below ``size`` (Black & Rogaway 2002): a bijection, in O(len(positions)) memory whatever ``size`` is.

    Args:
        positions: (n,) integers in [0, size).
        size: length of the permutation.
        key: the permutation is a function of it and of ``size``.

    Returns:
        (n,) int64 integers in [0, size), distinct for distinct positions.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    half_mask = np.uint64((1 << int(half_bits)) - 1)
    round_keys = np.random.default_rng(list(key)).integers(0, 2**63, size=4, dtype=np.uint64)
    result = np.asarray(positions).astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half_bits, result[outside] & half_mask
        for round_key in round_keys:
            mixed = (right + round_key) * np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2^64
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & half_mask)
        result[outside] = (left << half_bits) | right
        outside = result >= size
    return result.astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """Which steps a batch holds, (B,) integers each: steps start to stop of an episode, the first ``burn`` of them burn-in."""

    episode: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    burn: np.ndarray


class WindowSampler:
    """Cuts episodes into windows and deals them in batches, as a pure function of (seed, epoch, number of the batch).

    Args:
        episodes: (n,) indices of the episodes to cut.
        lengths: (n,) their lengths in steps.
        window: T, the number of steps that count in a window.
        burn_in: steps before the window that warm up the LSTM without counting, where the episode has them.
        batch_size: B, windows in a batch; the last batch of an epoch may hold fewer.
        seed: seed of offsets and order.
        shuffle: False gives the windows in order with offset 0, for evaluation.

    Raises:
        ValueError: if a size is out of range or there is no episode.
    """

    def __init__(
        self,
        episodes: np.ndarray,
        lengths: np.ndarray,
        *,
        window: int,
        burn_in: int = 0,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
    ):
        if window < 1 or burn_in < 0 or batch_size < 1:
            raise ValueError(f"window, burn_in, batch_size: expected >= 1, >= 0, >= 1, got {window}, {burn_in}, {batch_size}")
        if len(episodes) == 0 or len(episodes) != len(lengths):
            raise ValueError(f"episodes: expected at least one with its length, got {len(episodes)} and {len(lengths)} lengths")
        self.episodes, self.lengths = np.asarray(episodes), np.asarray(lengths)
        self.window, self.burn_in, self.batch_size, self.seed, self.shuffle = window, burn_in, batch_size, seed, shuffle
        self._cut_epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def num_batches(self, epoch: int) -> int:
        """Number of batches in an epoch; it varies a little, as the offsets do."""
        return -(-int(self._cut(epoch)[1][-1]) // self.batch_size)

    def batch(self, epoch: int, index: int) -> Windows:
        """Deal batch ``index`` of ``epoch``.

        Raises:
            IndexError: if the epoch has no such batch.
        """
        first, last = self._cut(epoch)
        total = int(last[-1])
        positions = np.arange(index * self.batch_size, min((index + 1) * self.batch_size, total))
        if index < 0 or len(positions) == 0:
            raise IndexError(f"index: expected a batch in [0, {self.num_batches(epoch)}), got {index}")
        number = permuted(positions, total, key=(self.seed, epoch)) if self.shuffle else positions
        which = np.searchsorted(last, number, side="right")
        before = last[which] - self._counts(self.lengths[which], first[which])  # windows of earlier episodes
        begin = first[which] + (number - before) * self.window
        start, stop = np.maximum(begin, 0), np.minimum(begin + self.window, self.lengths[which])
        burn = np.minimum(self.burn_in, start)
        return Windows(self.episodes[which], start - burn, stop, burn)

    def _cut(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each episode's first window begins (0 or below), and the running total of the numbers of windows."""
        if self._cut_epoch is None or self._cut_epoch[0] != epoch:
            first = np.zeros_like(self.lengths)
            if self.shuffle:
                offset = np.random.default_rng([self.seed, epoch]).integers(0, self.window, size=len(self.lengths))
                first = np.where(self.lengths > self.window, -offset, 0)
            self._cut_epoch = (epoch, first, np.cumsum(self._counts(self.lengths, first)))
        return self._cut_epoch[1:]

    def _counts(self, lengths: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Windows of episodes of these lengths whose first one begins at ``first``."""
        counts: np.ndarray = -(-(lengths - first) // self.window)
        return counts


@dataclass(frozen=True)
class EncodedSteps:
    """Encoded episodes, concatenated: the latents of L + 1 observations and what belongs to L steps of each.

    Args:
        mean: (sum (L + 1), D) mean of V's posterior.
        log_variance: (sum (L + 1), D) its log-variance; -inf where V has no noise.
        action: (sum L, A) action features.
        reward: (sum L,).
        terminated: (sum L,) bool.
    """

    mean: Tensor
    log_variance: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor


class SequenceData:
    """Batches of encoded windows for training and evaluation.

    Args:
        episodes: where the steps are.
        sampler: which windows a batch holds.
        vision: V.
        action_space: how actions become features.
        resident: encoded steps of *all* ``episodes``, kept on the device (see `encode_all`); None reads each window from disk
            when it is needed, so that memory does not grow with the data.
    """

    def __init__(
        self,
        episodes: EpisodeCollection,
        sampler: WindowSampler,
        vision: Vision,
        action_space: FlatSpace,
        *,
        resident: EncodedSteps | None = None,
    ):
        self.episodes, self.sampler, self.vision, self.action_space = episodes, sampler, vision, action_space
        self.resident = resident
        self._first_step = np.cumsum(episodes.lengths) - episodes.lengths  # of each episode, among all steps
        self._first_observation = self._first_step + np.arange(len(episodes))

    def num_batches(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return self.sampler.num_batches(epoch)

    def batch(self, epoch: int, index: int, *, generator: torch.Generator | None = None) -> SequenceBatch:
        """Assemble batch ``index`` of ``epoch``; its latents are drawn afresh from V's posterior with ``generator``."""
        windows = self.sampler.batch(epoch, index)
        length = windows.stop - windows.start
        if self.resident is not None:
            first_observation = self._first_observation[windows.episode] + windows.start
            first_step = self._first_step[windows.episode] + windows.start
            return gather(self.resident, first_observation, first_step, length, windows.burn, generator=generator)
        parts = [self.episodes.read(*which) for which in zip(windows.episode, windows.start, windows.stop, strict=True)]
        first_step = np.cumsum(length) - length
        first_observation = first_step + np.arange(len(length))
        steps = encode_episodes(parts, self.vision, self.action_space)
        return gather(steps, first_observation, first_step, length, windows.burn, generator=generator)

    def epoch(self, epoch: int, *, generator: torch.Generator | None = None) -> Iterator[SequenceBatch]:
        """Yield the batches of an epoch in order."""
        for index in range(self.num_batches(epoch)):
            yield self.batch(epoch, index, generator=generator)


@torch.no_grad()
def encode_episodes(episodes: Sequence[Episode], vision: Vision, action_space: FlatSpace) -> EncodedSteps:
    """Encode whole episodes or windows of them, all at once, on the device of ``vision``."""
    device = action_space.low.device
    mean, log_variance = vision.encode(_concatenate(e.observations for e in episodes))
    return EncodedSteps(
        mean,
        log_variance,
        action_space.flatten(_concatenate(e.actions for e in episodes)),
        torch.as_tensor(np.concatenate([e.rewards for e in episodes]), dtype=torch.float32, device=device),
        torch.as_tensor(np.concatenate([e.terminations for e in episodes]), device=device),
    )


def encode_all(episodes: EpisodeCollection, vision: Vision, action_space: FlatSpace) -> EncodedSteps:
    """Encode a whole collection, some episodes at a time, to be kept on the device of ``vision``."""
    row_bytes = sum(
        np.dtype(leaf.dtype).itemsize * math.prod(leaf.shape or ()) for _, leaf in leaves(episodes.observation_space)
    )
    chunk = np.cumsum(episodes.lengths) * row_bytes // ENCODE_BYTES
    groups = np.split(np.arange(len(episodes)), np.flatnonzero(np.diff(chunk)) + 1)
    parts = [encode_episodes([episodes.read(int(i)) for i in group], vision, action_space) for group in groups]
    return EncodedSteps(*(torch.cat([getattr(part, name) for part in parts]) for name in EncodedSteps.__dataclass_fields__))


def encoded_bytes(episodes: EpisodeCollection, vision: Vision, action_space: FlatSpace) -> int:
    """Bytes that `encode_all` would keep: two latents, the action, the reward and the end of each step."""
    return int(episodes.lengths.sum() + len(episodes)) * (2 * 4 * vision.latent_size + 4 * action_space.size + 5)


def gather(
    steps: EncodedSteps,
    first_observation: np.ndarray,
    first_step: np.ndarray,
    length: np.ndarray,
    burn: np.ndarray,
    *,
    generator: torch.Generator | None = None,
) -> SequenceBatch:
    """Cut windows out of concatenated steps and pad them on the right to the longest, by repeating their last row.

    Args:
        steps: where the windows are.
        first_observation: (B,) row of each window's first observation.
        first_step: (B,) row of each window's first step.
        length: (B,) steps of each window.
        burn: (B,) steps at its beginning that do not count.
        generator: source of the draws from V's posterior.
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


def _concatenate(values: Iterable[Value]) -> Value:
    return map_leaves(lambda *parts: np.concatenate(parts), *values)
