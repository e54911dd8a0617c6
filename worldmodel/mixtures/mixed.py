r"""A distribution over one number that has atoms: values that occur exactly, with positive probability, beside a density.

Many rewards are of this kind: 0 at most steps, 100 at a goal, a continuous cost otherwise. With atoms :math:`a_i` of
probabilities :math:`w_i`, and the density f with the remaining probability,

.. math:: P(R = a_i) = w_i, \qquad P(R \in S) = \sum_{a_i \in S} w_i + \Bigl(1 - \sum_i w_i\Bigr) \int_S f(x) \, dx .

`MixedDistribution.log_prob` is the logarithm of the density with respect to the mixed measure, which counts atoms and measures
the length of everything else: :math:`\log w_i` at an atom, and the log-density elsewhere. Log-probabilities of atoms are
dimensionless, log-densities depend on the unit of the reward; a mean over both kinds of steps compares models of the same
atoms only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.mixtures.gaussian import GaussianMixture, at_least_float32, categorical
from worldmodel.rng import Source


class MixedDistribution:
    """A batch of distributions over one number, with A atoms and, if ``density`` is given, a density beside them.

    It has the interface of a `GaussianMixture` with D = 1.

    Args:
        log_weights: (..., A + 1) log-probability of each atom, and last that of the density; (..., A) without a density.
        atoms: (A,) the values, the same for the whole batch. They are compared as float32 numbers.
        density: mixture with batch shape (...) over one number; None if the atoms are all values there are.

    Raises:
        ValueError: if the shapes are inconsistent.
    """

    def __init__(self, log_weights: Tensor, atoms: Tensor, density: GaussianMixture | None = None):
        expected = len(atoms) + (density is not None)
        if atoms.ndim != 1 or log_weights.ndim == 0 or log_weights.shape[-1] != expected:
            raise ValueError(
                f"log_weights, atoms: expected shapes (..., {expected}) and ({len(atoms)},), "
                f"got {tuple(log_weights.shape)} and {tuple(atoms.shape)}"
            )
        if density is not None and (density.batch_shape != log_weights.shape[:-1] or density.dim != 1):
            got = (*density.batch_shape, density.num_components, density.dim)
            raise ValueError(f"density: expected means of shape {(*log_weights.shape[:-1], 'K', 1)}, got {got}")
        self.log_weights = at_least_float32(log_weights)
        self.atoms, self.density = atoms, density

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions (...)."""
        return self.log_weights.shape[:-1]

    @property
    def dim(self) -> int:
        """Length of one event: 1."""
        return 1

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density with respect to the mixed measure, in nats.

        Args:
            x: (..., 1).

        Returns:
            (...): the log-probability of the atom that equals x; elsewhere the log-density, -inf without a density.

        Raises:
            ValueError: if ``x`` has another shape.
        """
        equal = self._equal(x)
        at_atom = torch.where(equal, self.log_weights[..., : len(self.atoms)], 0.0).sum(dim=-1)
        return torch.where(equal.any(dim=-1), at_atom, self._log_density(x))

    def mass(self, x: Tensor) -> Tensor:
        """Return the probability (...) of exactly ``x`` (..., 1): 0 unless it is an atom."""
        return torch.where(self._equal(x), self.log_weights[..., : len(self.atoms)].exp(), 0.0).sum(dim=-1)

    def cdf(self, x: Tensor) -> Tensor:
        """Return P(R <= x), (..., 1) for ``x`` (..., 1).

        For a calibration test by a randomised probability integral transform, subtract a uniform part of `mass`: the result is
        uniform if the distribution is right.
        """
        self._check_event(x)
        below = (self.log_weights[..., : len(self.atoms)].exp() * (self.atoms <= x.to(self.atoms.dtype))).sum(-1, keepdim=True)
        return below if self.density is None else below + self.log_weights[..., -1:].exp() * self.density.cdf(x)

    def expectation(self) -> Tensor:
        """Return the exact mean, (..., 1)."""
        mean = (self.log_weights[..., : len(self.atoms)].exp() * self.atoms).sum(dim=-1, keepdim=True)
        return mean if self.density is None else mean + self.log_weights[..., -1:].exp() * self.density.expectation()

    def variance(self) -> Tensor:
        """Return the exact variance, (..., 1)."""
        mean = self.expectation()
        weights = self.log_weights.exp()
        total = (weights[..., : len(self.atoms)] * (self.atoms - mean).square()).sum(dim=-1, keepdim=True)
        if self.density is None:
            return total
        return total + weights[..., -1:] * (self.density.variance() + (self.density.expectation() - mean).square())

    def sample(self, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample one number per distribution, (..., 1): an atom exactly as it is, or a number from the density.

        Args:
            num_groups: number of groups of the first batch dimension with common random numbers; see
                `worldmodel.mixtures.shared_draws`.
            generator: source of randomness.
        """
        index = categorical(self.log_weights, num_groups=num_groups, generator=generator).unsqueeze(-1)  # (..., 1)
        atom = self.atoms[index.clamp(max=len(self.atoms) - 1)]
        if self.density is None:
            return atom
        return torch.where(index < len(self.atoms), atom, self.density.sample(num_groups=num_groups, generator=generator))

    def _log_density(self, x: Tensor) -> Tensor:
        if self.density is None:
            return torch.full_like(self.log_weights[..., 0], -torch.inf).expand(x.shape[:-1])
        return self.log_weights[..., -1] + self.density.log_prob(x)

    def _equal(self, x: Tensor) -> Tensor:
        """Whether x (..., 1) equals each atom: (..., A)."""
        self._check_event(x)
        return x.float() == self.atoms.float()

    def _check_event(self, x: Tensor) -> None:
        expected = (*self.batch_shape, 1)
        if x.shape[max(0, x.ndim - len(expected)) :] != expected:
            raise ValueError(f"x: expected shape {expected}, got {tuple(x.shape)}")
