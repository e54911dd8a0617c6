r"""Head for numbers that mostly stay the same: "unchanged" with probability p, else a Gaussian mixture of the change.

The distribution of each dimension is a mixture of an atom at the present value and a density. Its likelihood is with respect to
the counting measure at the atom plus the Lebesgue measure elsewhere:

.. math:: -\log p(x) = -\log p \;\text{ if } x = x_0, \qquad -\log (1 - p) - \log q(x) \;\text{ otherwise.}

A temperature divides the two log-weights, as it does those of the components of q.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.mixtures.discrete_heads import align_temperature, bernoulli, straight_through
from worldmodel.mixtures.gaussian import GaussianMixture, at_least_float32, shared_draws
from worldmodel.mixtures.heads import DEFAULT_MIN_SCALE, raw_mixture_nll, sample_raw_mixture, soft_floor
from worldmodel.mixtures.latent_head import LatentHead
from worldmodel.rng import Source, fill_uniform


class UnchangedOrDensity:
    """A batch of D independent mixtures of an atom and a Gaussian mixture.

    Args:
        logits: (..., D) log-odds of the atom.
        density: Gaussian mixtures per dimension, batch shape (...).
        atom: (..., D) position of the atoms.
    """

    def __init__(self, logits: Tensor, density: GaussianMixture, atom: Tensor):
        self.logits, self.density, self.atom = logits, density, atom

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood of ``x`` (..., D) in nats, summed over D: a probability at the atom, a density elsewhere."""
        return self.log_probs(x).sum(dim=-1)

    def log_probs(self, x: Tensor) -> Tensor:
        """Log-likelihood of each dimension, (..., D)."""
        q = self.density
        single = GaussianMixture(q.log_weights.mT, q.mean.mT.unsqueeze(-1), q.log_scale.mT.unsqueeze(-1))  # batch (..., D)
        here = x == self.atom
        return functional.logsigmoid(torch.where(here, self.logits, -self.logits)) + torch.where(
            here, 0.0, single.log_prob(torch.where(here, q.mean[..., 0, :].detach(), x).unsqueeze(-1))
        )

    def expectation(self) -> Tensor:
        """Mean, (..., D)."""
        p = self.logits.sigmoid()
        return p * self.atom + (1 - p) * self.density.expectation()

    def mode(self) -> Tensor:
        """The atom where it is at least as likely as a change, else the mode of the density: the sample at temperature 0."""
        return torch.where(self.logits >= 0, self.atom, self.density.mode())

    @torch.no_grad()
    def sample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample (..., D); see `LatentDistribution.sample`."""
        changed = self._changed(temperature, num_groups, generator)
        return torch.where(changed > 0, self.density.sample(temperature, num_groups=num_groups, generator=generator), self.atom)

    def rsample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample the same numbers as `sample`: pathwise gradients through the density, straight-through ones through p."""
        changed = self._changed(temperature, num_groups, generator)
        tau = align_temperature(temperature, self.logits)
        tau = torch.where(tau >= torch.finfo(tau.dtype).tiny, tau, 1.0)
        value = self.density.rsample(temperature, num_groups=num_groups, generator=generator)
        kept = torch.where(changed > 0, value, self.atom)
        indicator = straight_through(changed, (-self.logits / tau).sigmoid())
        return kept + (indicator - changed) * (value - self.atom).detach()  # adds 0, and the gradient with respect to p

    def affine(self, shift: Tensor, scale: Tensor) -> UnchangedOrDensity:
        """Return the distribution of ``shift`` + ``scale`` * x."""
        return UnchangedOrDensity(self.logits, self.density.affine(shift, scale), shift + scale * self.atom)

    @torch.no_grad()
    def _changed(self, temperature: float | Tensor, num_groups: int, generator: Source) -> Tensor:
        """Sample whether each dimension changes, 0 or 1: (..., D)."""
        tau = align_temperature(temperature, self.logits)
        uniform = shared_draws(self.logits, num_groups, lambda noise: fill_uniform(noise, generator))
        return bernoulli(-self.logits, tau, uniform)


class UnchangedHead(LatentHead, registered=False):
    """A linear layer from features to D mixtures of "no change" and a Gaussian mixture of the change.

    The target is the change, so the atom is at 0.

    Args:
        in_features: F, size of the features.
        dim: D.
        num_components: K of the density of a change.
        min_scale: floor of the standard deviations, in the units of the target.
    """

    def __init__(self, in_features: int, dim: int, num_components: int, min_scale: float):
        super().__init__()
        self.dim, self.num_components, self.min_scale = dim, num_components, min_scale
        self.linear = nn.Linear(in_features, dim * (1 + 3 * num_components))

    @classmethod
    def from_config(cls, in_features: int, dim: int, config: Any) -> UnchangedHead:
        """Make a head from ``num_components`` and ``min_scale`` of an `MDNRNNConfig`."""
        least = DEFAULT_MIN_SCALE if config.min_scale is None else config.min_scale
        return cls(in_features, dim, config.num_components, least)

    def forward(self, features: Tensor) -> UnchangedOrDensity:
        """Turn features (..., F) into distributions over changes (..., D)."""
        logits, weights, mean, log_scale = self._split_raw(at_least_float32(self.linear(features)))
        density = GaussianMixture(weights.log_softmax(dim=-2), mean, soft_floor(log_scale, self.min_scale))
        return UnchangedOrDensity(logits, density, torch.zeros_like(logits))

    @torch.no_grad()
    def set_rates(self, unchanged: Tensor) -> None:
        """Set the initial probability of "no change" of each dimension, (D,) in (0, 1)."""
        self.linear.bias[: self.dim] = unchanged.logit()

    @property
    def numbers_per_sample(self) -> int:
        """A uniform number for the change, exponential ones for the component, and normal ones in pairs."""
        return self.dim * (1 + self.num_components) + self.dim + self.dim % 2

    @property
    def supports_raw(self) -> bool:
        """Always."""
        return True

    @property
    def num_uniforms(self) -> int:
        """One per dimension for the change, and one for the component."""
        return 2 * self.dim

    @property
    def num_normals(self) -> int:
        """One per dimension."""
        return self.dim

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum -log p(target) of changes (N, D), in nats; see `LatentHead.raw_nll`.

        The density is computed for the numbers that changed only.
        """
        logits, *parameters = self._split_raw(raw)
        unchanged = target == 0
        nll = functional.binary_cross_entropy_with_logits(logits, unchanged.to(raw.dtype), reduction="sum")
        row, column = (~unchanged).nonzero(as_tuple=True)
        chosen = [part[row, :, column].unsqueeze(-1) for part in parameters]  # (M, K, 1) each
        if len(row):
            weights, mean, log_scale = chosen
            nll = nll + raw_mixture_nll(
                weights, mean, log_scale, target[row, column].unsqueeze(-1), self.min_scale, gradient=gradient
            )
        if gradient:
            logits.sigmoid_().sub_(unchanged.to(raw.dtype))
            for part, slope in zip(parameters, chosen, strict=True):
                part.zero_()
                part[row, :, column] = slope[..., 0]
        return nll

    def log_volume(self, target: Tensor, log_unit: Tensor) -> Tensor:
        """Sum the log-units of the numbers that changed: "no change" has a probability, without units."""
        return (target != 0).sum(dim=0).to(log_unit.dtype) @ log_unit

    def sample_raw(self, raw: Tensor, *, temperature: float | Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sample changes (B, D); see `LatentHead.sample_raw`."""
        logits, weights, mean, log_scale = self._split_raw(raw)
        tau = torch.as_tensor(temperature, dtype=raw.dtype, device=raw.device).reshape(-1, 1)
        changed = bernoulli(-logits, tau, uniform[:, : self.dim])
        change = sample_raw_mixture(
            weights,
            mean,
            log_scale,
            self.min_scale,
            temperature=temperature,
            uniform=uniform[:, self.dim :],
            normal=normal,
        )
        return torch.where(changed > 0, change, 0.0)

    def _split_raw(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split raw outputs (..., O) into log-odds (..., D) and logits, means and raw log-scales (..., K, D), as views."""
        size = self.num_components * self.dim
        logits, *rest = raw.split([self.dim, size, size, size], dim=-1)
        weights, mean, log_scale = (part.unflatten(-1, (self.num_components, self.dim)) for part in rest)
        return logits, weights, mean, log_scale
