"""A population whose candidates are divided among the ranks of a group: only fitness travels between them.

Every rank draws all candidates itself, from the seed of the search and all fitness so far, and evaluates its share. In each
generation the ranks add up one vector of P + 1 numbers in float64: the fitness of the candidates, zero outside a rank's share,
and a digest of the candidates, by which a rank that has drawn others is found. A ring moves less than 16 bytes per candidate
and rank.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.agents.population import Population
from worldmodel.models import WorldModel
from worldmodel.runtime import Ranks

DIGEST_BITS = 40  # a sum over thousands of ranks is exact in float64


class SharedPopulation:
    """Divides the candidates of a population among ranks, all of which run the same search.

    Args:
        population: evaluates candidates on this rank.
        ranks: the processes.
    """

    def __init__(self, population: Population, ranks: Ranks):
        self._population, self._ranks = population, ranks

    @property
    def world(self) -> WorldModel:
        """The world model whose states the candidates act on."""
        return self._population.world

    def recipe(self) -> dict[str, Any]:
        """Return everything that the scores depend on, with the number of ranks."""
        return {**self._population.recipe(), "ranks": self._ranks.size}

    def fitness(self, agent: Any, candidates: Tensor, *, horizon: int, seed: int, name: str) -> np.ndarray:
        """Mean return (P,) of each candidate.

        Raises:
            RuntimeError: if a rank has drawn other candidates.
            RankLostError: if another process ended.
        """
        ranks, number = self._ranks, len(candidates)
        rows, digest = ranks.rows(number), _digest(candidates)
        sent = torch.zeros(number + 1, dtype=torch.float64)
        sent[number] = digest
        with ranks.watched():
            if rows.start < rows.stop:
                own = self._population.fitness(agent, candidates[rows], horizon=horizon, seed=seed, name=name)
                sent[rows] = torch.as_tensor(own, dtype=torch.float64)
            found = ranks.sum(sent)
            if found[number].item() != ranks.size * digest:
                raise RuntimeError(
                    f"{name}: expected the same candidates on all {ranks.size} ranks, got others on some; they need the same "
                    "versions of this library, NumPy and cma, and equal processors"
                )
        return found[:number].numpy()

    def test(self, agent: Any, *, episodes: int, horizon: int, seed: int, name: str) -> float:
        """Mean return of one agent, which rank 0 tests."""
        ranks = self._ranks
        with ranks.watched():
            found = (
                self._population.test(agent, episodes=episodes, horizon=horizon, seed=seed, name=name) if ranks.leads else 0.0
            )
            return float(ranks.share(found))


def _digest(candidates: Tensor) -> int:
    """Return an integer below 2**DIGEST_BITS that identifies the weights of all candidates."""
    data = candidates.detach().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[: DIGEST_BITS // 8], "big")
