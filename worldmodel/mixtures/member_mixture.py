r"""Mixture of the predictions of the members of an ensemble, of whatever kind these distributions are.

.. math:: p(x) = \sum_k w_k \, p_k(x), \quad w_k = 1 / K

A weight of 1 for one member makes it that member's distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from worldmodel.mixtures.composite_head import CompositeDistribution
from worldmodel.mixtures.gaussian import categorical
from worldmodel.rng import Source


class MemberMixture:
    """A batch of mixtures of K distributions over vectors of D numbers, batch shape (...).

    Args:
        members: the distributions, with batch shape (...) each: of the next latent, or of a reward.
        log_weights: (K,) or (..., K) log of the weights, normalised over K.

    Raises:
        ValueError: if there is not one weight per member.
    """

    def __init__(self, members: Sequence[Any], log_weights: Tensor):
        if log_weights.shape[-1:] != (len(members),) or not members:
            raise ValueError(f"log_weights: expected shape (..., {len(members)}), got {tuple(log_weights.shape)}")
        self.members, self.log_weights = tuple(members), log_weights

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of ``x`` (..., D) in nats: (...)."""
        return (self.log_weights + _each(self.members, lambda member: member.log_prob(x))).logsumexp(dim=-1)

    def log_probs(self, x: Tensor) -> dict[str, Tensor]:
        """Log-likelihood of the numbers of each kind in ``x`` (..., D), given the kinds before it: (...) each, in nats.

        By the chain rule they sum to `log_prob`: each kind changes the weights of the members for the kinds after it.
        """
        return self.chained([log_probs_by_kind(member, x) for member in self.members])

    def chained(self, each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Log-likelihood by kind, given the kinds before it, of the log-likelihoods of each member by kind, (...) each."""
        joint, found = self.log_weights, dict[str, Tensor]()
        before = joint.logsumexp(dim=-1)
        for metric in each[0]:
            joint = joint + torch.stack([kinds[metric] for kinds in each], dim=-1)
            total = joint.logsumexp(dim=-1)
            found[metric], before = total - before, total
        return found

    def expectation(self) -> Tensor:
        """Mean, (..., D)."""
        return (self.log_weights.exp().unsqueeze(-1) * self.means()).sum(dim=-2)

    def means(self) -> Tensor:
        """Mean of each member's distribution: (..., K, D)."""
        return torch.stack([member.expectation() for member in self.members], dim=-2)

    def mode(self) -> Tensor:
        """The sample at temperature 0, (..., D); of a random member if several have weight."""
        return self.sample(0.0)

    @torch.no_grad()
    def sample(self, *temperature: float | Tensor, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample (..., D): a member by the weights, and x from its distribution; see `LatentDistribution.sample`."""
        return self._sampled("sample", *temperature, num_groups=num_groups, generator=generator)

    def rsample(self, *temperature: float | Tensor, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample the same numbers as `sample`, with gradients to the parameters of the sampled member, not to the weights."""
        return self._sampled("rsample", *temperature, num_groups=num_groups, generator=generator)

    def affine(self, shift: Tensor, scale: Tensor) -> MemberMixture:
        """Return the mixture of ``shift`` + ``scale`` * x."""
        return MemberMixture([member.affine(shift, scale) for member in self.members], self.log_weights)

    def _sampled(self, method: str, *temperature: float | Tensor, num_groups: int, generator: Source) -> Tensor:
        given = {"num_groups": num_groups, "generator": generator}
        each = torch.stack([getattr(member, method)(*temperature, **given) for member in self.members], dim=-2)  # (..., K, D)
        weights = self.log_weights.expand(each.shape[:-1])
        index = categorical(weights, num_groups=num_groups, generator=generator)[..., None, None]  # (..., 1, 1)
        return each.gather(-2, index.expand(*each.shape[:-2], 1, each.shape[-1])).squeeze(-2)


def log_probs_by_kind(latent: Any, x: Tensor) -> dict[str, Tensor]:
    """Log-likelihood of a latent ``x`` (..., D), by kind of its numbers: (...) each, in nats.

    Args:
        latent: a `LatentDistribution` with batch shape (...); one without kinds is of ``nll_per_dim`` alone.
        x: (..., D).
    """
    if isinstance(latent, (CompositeDistribution, MemberMixture)):
        return latent.log_probs(x)
    return {"nll_per_dim": latent.log_prob(x)}


def _each(members: Sequence[Any], function: Callable[[Any], Tensor]) -> Tensor:
    """Stack a number of each member: (..., K)."""
    return torch.stack([function(member) for member in members], dim=-1)
