"""Per-episode seeds and random streams for batches of episodes, and updates of some rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.rng import Streams
from worldmodel.runtime import check_integer
from worldmodel.spaces import as_numbers

LARGEST_SEED = 2**62  # s + i stays an int64


class Rows:
    """Rows of a batch that get new values, which are computed for these rows only.

    On a GPU they are computed for all rows and selected, because reading the number of rows would synchronise the GPU.

    Args:
        mask: (B,) bool.
        dense: compute values for all rows; None does so except on a CPU.
    """

    def __init__(self, mask: Tensor, *, dense: bool | None = None):
        dense = mask.device.type != "cpu" if dense is None else dense
        self.mask = mask
        self.index = None if dense else mask.nonzero().flatten()
        self.count = len(mask) if self.index is None else len(self.index)  # rows that values are computed for

    def take(self, column: Tensor) -> Tensor:
        """Return the entries of a column (B, ...) for the rows that values are computed for: (count, ...)."""
        return column if self.index is None else column[self.index]

    def put(self, old: Tensor, new: Tensor, *, dim: int = 0) -> Tensor:
        """Return ``old``, of B rows along ``dim``, with its rows replaced by ``new``, of ``count``.

        Writes into ``old`` if only some rows are computed, so ``old`` must be the caller's own.
        """
        if self.index is not None:
            return old.index_copy_(dim, self.index, new)
        return torch.where(self.mask.reshape(-1, *(1,) * (old.ndim - 1 - dim)), new, old)


class EpisodeSeeds:
    """Seed, episode number and random stream of each of B rows.

    Args:
        num_rows: B.
        device: device of the streams.
    """

    def __init__(self, num_rows: int, device: torch.device):
        self._seeds = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._episodes = torch.full((num_rows,), -1, dtype=torch.int64, device=device)  # the next one is the first, 0
        self._seeded = False
        self.streams = Streams(self._seeds)

    def reseed(self, seed: int | Sequence[int | None] | None, rows: Tensor, rng: np.random.Generator) -> None:
        """Set the seeds of ``rows`` (B,) bool, in the form that `gymnasium.vector.VectorEnv.reset` takes; restart their count.

        Args:
            seed: an int s gives row i the seed s + i; a list holds one seed per row, or None to keep a row's seed.
            rows: the rows.
            rng: samples the seeds of rows that never had one.

        Raises:
            ValueError: if a list has another length, or a seed is out of range.
            TypeError: if a seed is not an integer.
        """
        n = len(self._seeds)
        if not self._seeded:
            self._set(rng.integers(LARGEST_SEED, size=n).tolist(), torch.ones_like(rows))
            self._seeded = True
        if seed is None:
            return
        if not isinstance(seed, Sequence):
            seed = [_checked(seed) + index for index in range(n)]
        if len(seed) != n:
            raise ValueError(f"seed: expected an integer or a list of {n}, got a list of {len(seed)}")
        given = torch.tensor([value is not None for value in seed], device=rows.device)
        self._set([0 if value is None else _checked(value) for value in seed], rows & given)

    def begin(self, rows: Rows) -> Streams:
        """Start the next episode in the rows and return the streams of these episodes."""
        self._episodes = self._episodes + rows.mask
        return Streams(rows.take(self._seeds), rows.take(self._episodes))

    def adopt(self, rows: Rows, streams: Streams) -> None:
        """Continue the rows from the position of ``streams``, which `begin` returned."""
        self.streams.counter = rows.put(self.streams.counter, streams.counter)

    def _set(self, seeds: list[int], rows: Tensor) -> None:
        self._seeds = torch.where(rows, torch.tensor(seeds, device=rows.device), self._seeds)
        self._episodes = torch.where(rows, -1, self._episodes)


def rows_to_reset(options: Mapping[str, Any] | None, num_rows: int, device: torch.device) -> Tensor:
    """Read ``reset_mask`` from the options of a vector environment's reset: (B,) bool, all True without one.

    Raises:
        ValueError: if the mask has another shape or no True, or there is another option.
        TypeError: if the mask is not boolean.
    """
    options = options or {}
    if unknown := sorted(set(options) - {"reset_mask"}):
        raise ValueError(f"options: expected 'reset_mask' or nothing, got {unknown}")
    if "reset_mask" not in options:
        return torch.ones(num_rows, dtype=torch.bool, device=device)
    mask = as_numbers(options["reset_mask"], "reset_mask").to(device)
    if mask.dtype != torch.bool:
        raise TypeError(f"reset_mask: expected booleans, got {mask.dtype}")
    if mask.shape != (num_rows,):
        raise ValueError(f"reset_mask: expected shape ({num_rows},), got {tuple(mask.shape)}")
    if not bool(mask.any()):
        raise ValueError("reset_mask: expected at least one True, got none")
    return mask


def _checked(seed: Any) -> int:
    seed = check_integer(seed, "seed", least=0)
    if seed >= LARGEST_SEED:
        raise ValueError(f"seed: expected an integer below 2^62, got {seed}")
    return seed
