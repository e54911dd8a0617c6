"""Sampling of batches of windows from episodes: cut, shuffle, pad and mask.

The windows of a batch are a pure function of (seed, epoch, batch number). So a run resumes at any
batch without replaying earlier ones. The sampler stores a few numbers per episode and none per
step.

A window never crosses episodes. An episode that is longer than the window is tiled by windows with
a common offset, which is sampled again in each epoch. A shorter episode is one padded window; none
is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.data import EpisodeCollection, permuted
from worldmodel.models import EncodedSteps, SequenceBatch, Vision, encode_episodes, gather
from worldmodel.runtime import check_integer
from worldmodel.spaces import FlatSpace

ENTROPY_BATCHES = 20  # of which the entropy of the samples of V is computed
RESIDENT_BYTES = 64 * 2**20  # encoded data up to this size are kept on the device by default


@dataclass(frozen=True)
class Windows:
    """The steps of a batch of B windows.

    Args:
        episode: (B,) int64, index of the episode.
        start: (B,) int64, first step, burn-in included.
        stop: (B,) int64, one past the last step.
        burn: (B,) int64, number of burn-in steps at the start.
    """

    episode: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    burn: np.ndarray


class WindowSampler:
    """Batches of windows of episodes, as a pure function of (seed, epoch, batch number).

    Args:
        episodes: (n,) indices of the episodes.
        lengths: (n,) their lengths in steps.
        window: T, maximum number of steps of a window that count in the loss.
        burn_in: maximum number of steps before them that warm up the LSTM and do not count in the
            loss.
        batch_size: B, windows per batch; the last batch of an epoch may hold fewer.
        seed: seed of offsets and order.
        shuffle: False yields the windows in order with offset 0, for evaluation.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if a number is out of range or there is no episode.
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
        if len(episodes) == 0 or len(episodes) != len(lengths):
            raise ValueError(f"episodes: expected at least one with its length, got {len(episodes)} and {len(lengths)} lengths")
        self.episodes, self.lengths = np.asarray(episodes), np.asarray(lengths)
        self.window, self.burn_in = check_integer(window, "window", least=1), check_integer(burn_in, "burn_in", least=0)
        self.batch_size, self.seed = check_integer(batch_size, "batch_size", least=1), check_integer(seed, "seed", least=0)
        self.shuffle = shuffle
        self._cut_epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches in an epoch; it varies slightly with the offsets."""
        return -(-int(self._cut(epoch)[1][-1]) // self.batch_size)

    def batch(self, epoch: int, index: int) -> Windows:
        """Return the windows of batch ``index`` of ``epoch``.

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
        """Return how the episodes are divided in an epoch.

        Returns:
            (n,) start of the first window of each episode, 0 or below, and (n,) cumulative number
            of windows.
        """
        if self._cut_epoch is None or self._cut_epoch[0] != epoch:
            first = np.zeros_like(self.lengths)
            if self.shuffle:
                offset = np.random.default_rng([self.seed, epoch]).integers(0, self.window, size=len(self.lengths))
                first = np.where(self.lengths > self.window, -offset, 0)
            self._cut_epoch = (epoch, first, np.cumsum(self._counts(self.lengths, first)))
        return self._cut_epoch[1:]

    def _counts(self, lengths: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Return the number of windows per episode if the first ones start at ``first``."""
        counts: np.ndarray = -(-(lengths - first) // self.window)
        return counts


class SequenceData:
    """Batches of encoded windows for training and evaluation.

    Args:
        episodes: source of the steps.
        sampler: sampler of windows of ``episodes``.
        vision: V, which encodes observations.
        action_space: converts actions to features.
        resident: encoded steps of *all* ``episodes``, kept on the device (see `encode_all`). None
            reads each window from disk when it is needed, so that memory does not grow with the
            data.
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
        """Return the number of batches in an epoch."""
        return self.sampler.num_batches(epoch)

    def batch(self, epoch: int, index: int, *, generator: torch.Generator | None = None) -> SequenceBatch:
        """Build batch ``index`` of ``epoch`` with latents sampled from V's posterior."""
        windows = self.sampler.batch(epoch, index)
        length = windows.stop - windows.start
        steps, first_observation, first_step = self._steps(windows)
        return gather(steps, first_observation, first_step, length, windows.burn, generator=generator)

    def posterior_entropy(self, columns: Sequence[int] | None = None) -> float | None:
        """Mean differential entropy of V's samples of z: no M can have a lower negative log-likelihood.

        Args:
            columns: the numbers of z that count; None takes all.

        Returns:
            Nats per dimension, over the last frames of at most `ENTROPY_BATCHES` batches; None if V adds no noise to a number.
        """
        total, count, number = 0.0, 0, min(ENTROPY_BATCHES, self.num_batches(0))
        for i in range(number):
            windows = self.sampler.batch(0, i * self.num_batches(0) // number)
            steps, first, _ = self._steps(windows)
            rows = torch.as_tensor(first + windows.stop - windows.start, device=steps.log_variance.device)
            found = steps.log_variance[rows] if columns is None else steps.log_variance[rows][:, list(columns)]
            total, count = total + found.double().sum().item(), count + found.numel()
        return 0.5 * (math.log(2 * math.pi * math.e) + total / count) if count and math.isfinite(total) else None

    def _steps(self, windows: Windows) -> tuple[EncodedSteps, np.ndarray, np.ndarray]:
        """Return encoded steps, and the indices of the first observation and step of each window in them."""
        if self.resident is not None:
            first_observation = self._first_observation[windows.episode] + windows.start
            return self.resident, first_observation, self._first_step[windows.episode] + windows.start
        parts = [self.episodes.read(*which) for which in zip(windows.episode, windows.start, windows.stop, strict=True)]
        length = windows.stop - windows.start
        first_step = np.cumsum(length) - length
        return encode_episodes(parts, self.vision, self.action_space), first_step + np.arange(len(length)), first_step

    def epoch(self, epoch: int, *, generator: torch.Generator | None = None) -> Iterator[SequenceBatch]:
        """Yield the batches of an epoch in order."""
        for index in range(self.num_batches(epoch)):
            yield self.batch(epoch, index, generator=generator)
