"""Random numbers for a batch with independent rows: one counter-based stream per row.

A `torch.Generator` yields one sequence for the batch, so the numbers of row i depend on the number
of rows and on their earlier samples. Here, number j of call n for row i is a hash of (seed of i,
episode of i, n, j). A dream therefore samples the same numbers alone or among thousands, regardless
of the other rows, on a CPU or a GPU (the integers are identical).

Keys have 64 bits, from SplitMix64 (Steele, Lea & Flood 2014). The 32-bit numbers of a call are a
multiplicative hash of the two halves of the key and the number's index (finaliser: C. Wellons,
"lowbias32"). On a CPU this takes a fifth of the time of `torch.Tensor.exponential_` (dev/LOG.md).
Not for cryptography.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

GOLDEN_64, GOLDEN_32 = 0x9E3779B97F4A7C15, 0x9E3779B1  # odd, near 2^64 and 2^32 divided by the golden ratio
SEED_FACTOR = 0xD1342543DE82EF95  # odd, so that seed * SEED_FACTOR + episode differs for all (seed, episode) << 2^64


class Streams:
    """B streams of random numbers. Each call advances all of them.

    Args:
        seeds: (B,) int64, one per row.
        episodes: (B,) int64, or one number for all rows. Rows with equal seed and episode get equal
            numbers.

    Attributes:
        counter: (B,) int64 positions of the streams. Rows may be replaced by rows of other streams.
    """

    def __init__(self, seeds: Tensor, episodes: Tensor | int = 0):
        self.counter = _mix_64(seeds * _signed(SEED_FACTOR, 64) + episodes)
        self._reserved: Tensor | None = None

    def reserve(self, n: int) -> None:
        """Sample n numbers per row in advance, for the next calls.

        The rest of an earlier reserve is dropped. A call of any size takes about thirty tensor
        operations, which dominate the step of a small model.
        """
        self._reserved = None
        self._reserved = self._uniform(n)

    def uniform_(self, tensor: Tensor) -> Tensor:
        """Fill ``tensor`` (B, ...) with uniform odd multiples of 2^-24 in (0, 1) and return it.

        Raises:
            ValueError: if the first dimension is not B.
        """
        if tensor.ndim == 0 or tensor.shape[0] != len(self.counter):
            raise ValueError(f"tensor: expected a first dimension of {len(self.counter)} streams, got {tuple(tensor.shape)}")
        return tensor.copy_(self._uniform(tensor[0].numel()).reshape(tensor.shape))

    def exponential_(self, tensor: Tensor) -> Tensor:
        """Fill ``tensor`` (B, ...) with standard exponential numbers and return it."""
        return self.uniform_(tensor).log_().neg_()

    def normal_(self, tensor: Tensor) -> Tensor:
        """Fill ``tensor`` (B, ...) with standard normal numbers, by `box_muller`, and return it."""
        n = tensor[0].numel()
        return tensor.copy_(box_muller(self._uniform(n + n % 2))[:, :n].reshape(tensor.shape))

    def _uniform(self, n: int) -> Tensor:
        """Return the next n numbers of each row: (B, n) float32 in (0, 1)."""
        if self._reserved is not None and self._reserved.shape[1] >= n:
            numbers, self._reserved = self._reserved.tensor_split([n], dim=1)
            return numbers
        self.counter = self.counter + _signed(GOLDEN_64, 64)
        low, high = _mix_64(self.counter).view(torch.int32).reshape(-1, 2, 1).unbind(dim=1)  # (B, 1) each
        lanes = _lane_hashes(n, self.counter.device)
        bits = torch.bitwise_xor(lanes, low).mul_(_signed(GOLDEN_32, 32)).bitwise_xor_(high)
        return _shift_right(_mix_32(bits), 9, 32).float().mul_(2.0**-23).add_(2.0**-24)  # exact: a 24th bit would round to 1


class BatchRows:
    """Some rows of the random numbers of a batch: those that a generator would give them if it filled the whole batch.

    Args:
        generator: source of the numbers of the whole batch; it advances as if it had filled it.
        rows: the rows of this part.
        total: number of rows of the batch.
    """

    def __init__(self, generator: torch.Generator | None, rows: slice, total: int):
        self._generator, self._rows, self._total = generator, rows, total

    def uniform_(self, tensor: Tensor) -> Tensor:
        """Fill ``tensor`` (rows, ...) with uniform numbers in [0, 1) and return it."""
        return tensor.copy_(self._whole(tensor).uniform_(generator=self._generator)[self._rows])

    def exponential_(self, tensor: Tensor) -> Tensor:
        """Fill ``tensor`` (rows, ...) with standard exponential numbers and return it."""
        return tensor.copy_(self._whole(tensor).exponential_(generator=self._generator)[self._rows])

    def normal_(self, tensor: Tensor) -> Tensor:
        """Fill ``tensor`` (rows, ...) with standard normal numbers and return it."""
        return tensor.copy_(self._whole(tensor).normal_(generator=self._generator)[self._rows])

    def bernoulli_(self, tensor: Tensor, probability: float) -> Tensor:
        """Fill ``tensor`` (rows, ...) with ones of a probability, and zeros, and return it."""
        return tensor.copy_(self._whole(tensor).bernoulli_(probability, generator=self._generator)[self._rows])

    def _whole(self, tensor: Tensor) -> Tensor:
        return tensor.new_empty((self._total, *tensor.shape[1:]))


Source = torch.Generator | Streams | BatchRows | None  # source of random numbers; None is torch's global generator
_OWN = (Streams, BatchRows)  # sources that fill a tensor themselves


def fill_uniform(tensor: Tensor, source: Source) -> Tensor:
    """Fill ``tensor`` in place with uniform numbers in [0, 1) and return it."""
    return source.uniform_(tensor) if isinstance(source, _OWN) else tensor.uniform_(generator=source)


def fill_exponential(tensor: Tensor, source: Source) -> Tensor:
    """Fill ``tensor`` in place with standard exponential numbers and return it."""
    return source.exponential_(tensor) if isinstance(source, _OWN) else tensor.exponential_(generator=source)


def fill_normal(tensor: Tensor, source: Source) -> Tensor:
    """Fill ``tensor`` in place with standard normal numbers and return it."""
    return source.normal_(tensor) if isinstance(source, _OWN) else tensor.normal_(generator=source)


def fill_bernoulli(tensor: Tensor, probability: float, source: torch.Generator | BatchRows | None) -> Tensor:
    """Fill ``tensor`` in place with ones of a probability, and zeros, and return it."""
    if isinstance(source, BatchRows):
        return source.bernoulli_(tensor, probability)
    return tensor.bernoulli_(probability, generator=source)


def box_muller(uniform: Tensor) -> Tensor:
    """Convert uniform numbers in (0, 1) to normal ones: (..., 2 n) each (Box & Muller 1958)."""
    radius, angle = uniform.chunk(2, dim=-1)  # (..., n) each
    radius, angle = (-2.0 * radius.log()).sqrt(), 2 * math.pi * angle
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)


@functools.lru_cache(maxsize=64)
def _lane_hashes(n: int, device: torch.device) -> Tensor:
    """Hash of the index of each number of a call: (n,) int32. Cached; do not write to it."""
    return _mix_32(torch.arange(n, dtype=torch.int32, device=device))


def _mix_64(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of int64."""
    x = (x ^ _shift_right(x, 30, 64)) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ _shift_right(x, 27, 64)) * _signed(0x94D049BB133111EB, 64)
    return x ^ _shift_right(x, 31, 64)


def _mix_32(x: Tensor) -> Tensor:
    """Hash int32 numbers in place by a bijection (lowbias32)."""
    x.bitwise_xor_(_shift_right(x, 16, 32)).mul_(_signed(0x7FEB352D, 32))
    x.bitwise_xor_(_shift_right(x, 15, 32)).mul_(_signed(0x846CA68B, 32))
    return x.bitwise_xor_(_shift_right(x, 16, 32))


def _shift_right(x: Tensor, by: int, width: int) -> Tensor:
    """Shift right as if ``x`` were unsigned; torch shifts ones into negative numbers."""
    return (x >> by).bitwise_and_((1 << (width - by)) - 1)


def _signed(x: int, width: int) -> int:
    """Return the signed integer with the same ``width`` bits."""
    return x - (1 << width) if x >> (width - 1) else x
