"""Batches of single frames for training V."""

from __future__ import annotations

import math

import numpy as np
import torch

from worldmodel.data import EpisodeCollection, permuted
from worldmodel.models import FrameBatch
from worldmodel.spaces import leaf_values, leaves
from worldmodel.training.windows import Windows, WindowSampler

WINDOW = 64  # consecutive steps that are read together
POOL_BATCHES = 64  # batches per pool: 200 MB for 64x64 colour frames in batches of 256
POOL_BYTES = 2**30  # maximum size of a pool; it holds fewer windows if frames are large


class FrameData:
    """Batches of single frames for training and evaluation.

    Frames are read as windows of `WINDOW` steps. The frames of several random windows form a
    *pool*, which is shuffled and divided into batches.

    Args:
        episodes: source of the frames.
        which: (n,) indices of the episodes to use.
        path: path of the image in the observation space.
        batch_size: images per batch. An epoch skips the remainder of each pool. A pool that is
            smaller than a batch (see `POOL_BYTES`) is one batch.
        seed: seed of the order.
        shuffle: False reads all frames in order, for evaluation; a pool of about ``batch_size``
            frames is one batch.
        device: device of the batches.
    """

    def __init__(
        self,
        episodes: EpisodeCollection,
        which: np.ndarray,
        *,
        path: str,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
    ):
        self._episodes, self._path, self._batch_size, self._seed = episodes, path, batch_size, seed
        self._shuffle, self._device = shuffle, device
        space = dict(leaves(episodes.observation_space))[path]
        self._shape = space.shape or ()
        frames = min((POOL_BATCHES if shuffle else 1) * batch_size, POOL_BYTES // math.prod(self._shape))
        windows = max(1, frames // WINDOW)
        lengths = episodes.lengths[which]
        self._sampler = WindowSampler(which, lengths, window=WINDOW, batch_size=windows, seed=seed, shuffle=shuffle)
        self._counted: tuple[int, np.ndarray] | None = None
        self._pool: tuple[tuple[int, int], torch.Tensor] | None = None

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches in an epoch; it varies slightly with the windows."""
        return int(self._ends(epoch)[-1])

    def batch(self, epoch: int, index: int, *, generator: torch.Generator | None = None) -> FrameBatch:
        """Build batch ``index`` of ``epoch``; ignores ``generator``, as nothing is sampled."""
        ends = self._ends(epoch)
        if not 0 <= index < ends[-1]:
            raise IndexError(f"index: expected a batch in [0, {ends[-1]}), got {index}")
        number = int(np.searchsorted(ends, index, side="right"))
        frames = self._frames(epoch, number)
        if not self._shuffle:
            return FrameBatch(frames.to(self._device))
        first = (index - (int(ends[number - 1]) if number else 0)) * self._batch_size
        positions = np.arange(first, min(first + self._batch_size, len(frames)))
        chosen = permuted(positions, len(frames), key=(self._seed, epoch, number))
        return FrameBatch(frames[torch.as_tensor(chosen)].to(self._device))

    def _ends(self, epoch: int) -> np.ndarray:
        """Return the cumulative number of batches over the pools of an epoch."""
        if self._counted is None or self._counted[0] != epoch:
            pools = [self._sampler.batch(epoch, number) for number in range(self._sampler.num_batches(epoch))]
            frames = [int(self._frame_counts(pool).sum()) for pool in pools]
            self._counted = epoch, np.cumsum([self._num_batches_of_pool(count) for count in frames])
        return self._counted[1]

    def _num_batches_of_pool(self, frames: int) -> int:
        """Return the number of batches of a pool of ``frames`` frames."""
        return max(1, frames // self._batch_size) if self._shuffle else 1

    def _frame_counts(self, pool: Windows) -> np.ndarray:
        """Return the number of frames of each window of a pool.

        A window at the end of its episode includes the frame after its last step.
        """
        counts: np.ndarray = pool.stop - pool.start + (pool.stop == self._episodes.lengths[pool.episode])
        return counts

    def _frames(self, epoch: int, number: int) -> torch.Tensor:
        """Return the frames of a pool; caches the latest pool."""
        if self._pool is None or self._pool[0] != (epoch, number):
            self._pool = None  # frees the old pool first, so that memory holds one
            pool = self._sampler.batch(epoch, number)
            ends = np.cumsum(self._frame_counts(pool))
            frames, first = np.empty((ends[-1], *self._shape), np.uint8), 0
            for *which, end in zip(pool.episode, pool.start, pool.stop, ends, strict=True):
                observations = self._episodes.read(*(int(part) for part in which)).observations
                frames[first:end] = leaf_values(observations)[self._path][: end - first]
                first = end
            self._pool = (epoch, number), torch.from_numpy(frames)
        return self._pool[1]
