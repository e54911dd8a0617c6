"""From episodes on disk to batches of windows: split by episode, cut, shuffled, padded, masked.

Which windows a batch holds is a pure function of (seed, epoch, number of the batch): a run resumes at any batch without
replaying, and the sampler keeps a few numbers per episode, none per step. Windows never cross episodes. An episode longer than
the window is tiled by windows whose common offset is drawn anew each epoch; a shorter one is one padded window, never dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.data import EpisodeCollection, permuted
from worldmodel.models import EncodedSteps, SequenceBatch, Vision, encode_episodes, gather
from worldmodel.runtime import check_integer
from worldmodel.spaces import FlatSpace

RESIDENT_BYTES = 64 * 2**20  # encoded sets up to this size are kept on the device unless the caller says otherwise


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
