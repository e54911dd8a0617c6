"""Track z and M's state over real episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.models import FeatureKind, State, WorldModel, draw_latent, feature_space, latent_features
from worldmodel.rng import Streams
from worldmodel.spaces import Value, as_numbers

LARGEST_SEED = 2**62  # s + i stays an int64


class LatentTracker:
    """z and M's state for B real episodes, kept in step with what happens.

    Args:
        world: V and M.
        num_rows: B.
        features: the kind of features: "z", "zh" or "zhc".

    Raises:
        ValueError: if ``features`` is unknown.
    """

    def __init__(self, world: WorldModel, num_rows: int, features: FeatureKind):
        self.world, self.kind = world, features
        self.space = feature_space(world, features)
        self._seeds = EpisodeSeeds(num_rows, world.device)
        self._z = world.start_mean.new_zeros(num_rows, world.vision.latent_size)
        self._lstm = world.mdnrnn.initial_state(num_rows)

    def reseed(self, seed: int | Sequence[int | None] | None, mask: Tensor) -> None:
        """Give seeds to the draws of z, as `EpisodeSeeds.reseed` does, with which the environment's own are left alone."""
        self._seeds.reseed(seed, mask, np.random.default_rng())

    @torch.no_grad()
    def begin(self, mask: Tensor, observations: Value) -> None:
        """Begin episodes in the rows of ``mask`` (B,) bool, with theirs of the ``observations``, a batch of B."""
        rows = Rows(mask)
        if rows.count == 0:
            return
        streams = self._seeds.begin(rows)
        z = draw_latent(*(rows.take(part) for part in self._encode(observations)), generator=streams)
        zeros = self.world.mdnrnn.initial_state(rows.count)
        self._z = rows.put(self._z, z)
        self._lstm = State(*(rows.put(*parts, dim=1) for parts in zip(self._lstm, zeros, strict=True)))
        self._seeds.adopt(rows, streams)

    @torch.no_grad()
    def advance(self, actions: Value, observations: Value) -> None:
        """Take in one step of every row: the ``actions`` that were taken and the ``observations`` that they led to."""
        action = self.world.action_features.flatten(actions)
        self._lstm = self.world.mdnrnn.advance(self._z, action, self._lstm)
        self._z = draw_latent(*self._encode(observations), generator=self._seeds.streams)

    def _encode(self, observations: Value) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of z, (B, D) each, of observations that must be finite."""
        mean, log_variance = self.world.vision.encode(observations)
        finite = mean.isfinite().all(dim=-1)
        if not bool(finite.all()):
            raise ValueError(f"env: expected finite observations, got NaN or infinity in row {int(finite.int().argmin())}")
        return mean, log_variance

    def features(self) -> np.ndarray:
        """What the agent sees: (B, F) float32, in fresh memory."""
        return latent_features(self._z, self._lstm, self.kind).float().cpu().numpy().copy()


class Rows:
    """Some rows of a batch that get new values, which need to be computed for these rows only.

    On a GPU, whose host would have to wait for their number, values are computed for all rows and selected.

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
        """Entries of a column (B, ...) for the rows that values are computed for: (count, ...)."""
        return column if self.index is None else column[self.index]

    def put(self, old: Tensor, new: Tensor, *, dim: int = 0) -> Tensor:
        """Put the values of ``new``, ``count`` along ``dim``, into the rows of ``old``, B of them; use what is returned.

        ``old`` is written to where only its rows are computed: it must be the caller's own.
        """
        if self.index is not None:
            return old.index_copy_(dim, self.index, new)
        return torch.where(self.mask.reshape(-1, *(1,) * (old.ndim - 1 - dim)), new, old)


class EpisodeSeeds:
    """The seed and the number of the episode of each of B rows, and the random streams that follow from them.

    Args:
        num_rows: B.
        device: where the streams are.
    """

    def __init__(self, num_rows: int, device: torch.device):
        self._seeds = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._episodes = torch.full((num_rows,), -1, dtype=torch.int64, device=device)  # the next one is the first, 0
        self._seeded = False
        self.streams = Streams(self._seeds)

    def reseed(self, seed: int | Sequence[int | None] | None, rows: Tensor, rng: np.random.Generator) -> None:
        """Give seeds to ``rows`` (B,) bool, as `gymnasium.vector.VectorEnv.reset` takes them; their next episode is the first.

        Args:
            seed: an int s gives row i the seed s + i; a list one each or None, which keeps the seed a row has.
            rows: which rows.
            rng: draws the seeds of rows that never had one.

        Raises:
            ValueError: if a list has another length, or a seed is out of range.
            TypeError: if a seed is no integer.
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
        """Count one more episode in the rows, and return the streams of these episodes, at their beginning."""
        self._episodes = self._episodes + rows.mask
        return Streams(rows.take(self._seeds), rows.take(self._episodes))

    def adopt(self, rows: Rows, streams: Streams) -> None:
        """Go on in the rows where ``streams`` stand, which `begin` gave."""
        self.streams.counter = rows.put(self.streams.counter, streams.counter)

    def _set(self, seeds: list[int], rows: Tensor) -> None:
        self._seeds = torch.where(rows, torch.tensor(seeds, device=rows.device), self._seeds)
        self._episodes = torch.where(rows, -1, self._episodes)


def rows_to_reset(options: Mapping[str, Any] | None, num_rows: int, device: torch.device) -> Tensor:
    """Read ``reset_mask`` from the options of a vector environment's reset: (B,) bool, all True where there is none.

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
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected integers, got {seed!r}")
    if not 0 <= seed < LARGEST_SEED:
        raise ValueError(f"seed: expected 0 <= seed < 2^62, got {seed}")
    return int(seed)
