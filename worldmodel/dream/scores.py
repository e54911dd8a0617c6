"""Scores of an agent over many episodes, in dreams or in the real environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.dream.agent import Policy
from worldmodel.dream.latent_world import BatchedWorld
from worldmodel.runtime import Listener


@dataclass(frozen=True)
class Scores:
    """Undiscounted returns of many episodes, dreamed or real.

    Args:
        returns: (N,) return of each episode.
        lengths: (N,) steps of each episode.
    """

    returns: np.ndarray
    lengths: np.ndarray

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns, over episodes."""
        return float(self.returns.std())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean return; 0 for a single episode, whose spread is unknown."""
        return self.std / math.sqrt(max(1, len(self.returns) - 1))  # `std` divides by N: this is the unbiased std / sqrt(N)

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON-serialisable data."""
        return {
            "mean": self.mean,
            "std": self.std,
            "standard_error": self.standard_error,
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scores:
        """Make scores from the result of `to_json`."""
        return cls(np.asarray(data["returns"], dtype=np.float64), np.asarray(data["lengths"], dtype=np.int64))

    def __str__(self) -> str:
        digits = _digits(self.std or abs(self.mean))
        error = f"{self.standard_error:.{digits}f}"
        return f"{format_spread(self.mean, self.std)} ({len(self.returns)} episodes, standard error {error})"


def format_spread(mean: float, spread: float) -> str:
    """Return a mean and its spread as text, with as many decimals as show two digits of the spread."""
    digits = _digits(spread or abs(mean))
    return f"{mean:.{digits}f} +- {spread:.{digits}f}"


def _digits(size: float) -> int:
    """Return the decimals that show a spread of this size with two digits: 1, or more if it is below 1."""
    if not math.isfinite(size) or size <= 0 or size >= 1:
        return 1
    return min(8, 1 - math.floor(math.log10(size)))


def score(
    worlds: BatchedWorld,
    policy: Policy,
    *,
    horizon: int,
    seed: int,
    on_progress: Listener | None = None,
) -> Scores:
    """Score an agent in dreams or in the real environment.

    Args:
        worlds: the dreams or the real environments.
        policy: an agent, or a function of features (B, F); see `worldmodel.dream.as_agent`.
        horizon: longest episode, in steps.
        seed: seed of all samples.
        on_progress: called after every step with a record of stage "score" and the number of episodes that are ``running``.
    """
    returns, lengths = worlds.score(policy, horizon, generator=worlds.generator(seed), on_progress=on_progress)
    return Scores(returns.cpu().double().numpy(), lengths.cpu().numpy())
