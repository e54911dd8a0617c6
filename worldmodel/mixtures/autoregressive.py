r"""Latent head with dependence between dimensions: a mixture per dimension, given the dimensions before it.

.. math:: p(x) = \prod_d p(x_d \mid x_1, \dots, x_{d-1}), \qquad
    p(x_d \mid x_{<d}) = \sum_k \pi_{kd} \, N(x_d;\, \mu_{kd}, \sigma_{kd}^2),

where the logits of the weights, the means and the raw log-scales of dimension d are those of `MixtureHead` plus a linear
function of :math:`x_{<d}`, the *coupling*, with one set of coefficients per component. The density is exact. Gaussians with any
covariance, mixtures of them, and modes that depend on each other are special cases; the coupling costs one more input of the
linear layer per dimension. Without coupling it is the per-dimension factorisation. Earlier dimensions count as `REACH` units at
most: far from the data, where sigmas grow, one could otherwise make the next overflow. Samples are drawn one dimension
after the other, at a temperature that acts on each conditional mixture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.mixtures.gaussian import GaussianMixture, at_least_float32, check_temperature, shared_draws
from worldmodel.mixtures.heads import DEFAULT_MIN_SCALE, Factorization, MixtureHead, NoiseType, sample_raw_mixture, soft_floor
from worldmodel.mixtures.initialization import fit_components
from worldmodel.mixtures.latent_head import within_reach
from worldmodel.mixtures.reparameterization import reparameterize
from worldmodel.rng import Source, fill_exponential, fill_normal


class AutoregressiveMixture:
    """A batch of distributions over vectors of D numbers, each number a Gaussian mixture given those before it.

    Args:
        raw: (..., 3, K, D) logits, means and raw log-scales where all earlier dimensions are 0.
        coupling: (3, K, D, D) change of these parameters of dimension d per unit of dimension j, zero unless j < d.
        min_scale: floor of the sigmas, a number or (D,).
        shift: (..., D), of what is sampled; None is 0.
        scale: (..., D), positive; None is 1.
    """

    def __init__(
        self,
        raw: Tensor,
        coupling: Tensor,
        min_scale: float | Tensor,
        *,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
    ):
        self.raw, self.coupling, self.min_scale = at_least_float32(raw), coupling, min_scale
        self.shift = raw.new_zeros(raw.shape[-1]) if shift is None else shift
        self.scale = raw.new_ones(raw.shape[-1]) if scale is None else scale

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions (...)."""
        return self.raw.shape[:-3]

    @property
    def dim(self) -> int:
        """Length D of one vector."""
        return self.raw.shape[-1]

    def conditionals(self, x: Tensor) -> GaussianMixture:
        """Return the mixtures of each dimension given the ones before it in ``x`` (..., D), in the units of x."""
        if x.shape[max(0, x.ndim - len(self.batch_shape) - 1) :] != (*self.batch_shape, self.dim):
            raise ValueError(f"x: expected shape {(*self.batch_shape, self.dim)}, got {tuple(x.shape)}")
        u = (x - self.shift) / self.scale
        with torch.autocast(u.device.type, enabled=False):
            change = (within_reach(u) @ self.coupling.flatten(0, 2).t()).unflatten(-1, self.coupling.shape[:3])
        logits, mean, raw_log_scale = (self.raw + change).unbind(dim=-3)
        mixture = GaussianMixture(logits.log_softmax(dim=-2), mean, soft_floor(raw_log_scale, self.min_scale))
        return mixture.affine(self.shift, self.scale)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density of ``x`` (..., D) in nats, summed over D, constants included: (...)."""
        return self.conditionals(x).log_prob(x)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return the posterior probability of each component of each conditional mixture, (..., K, D)."""
        return self.conditionals(x).responsibilities(x)

    def cdf(self, x: Tensor) -> Tensor:
        """Return P(X_d <= x_d | X_<d = x_<d) of each dimension, for calibration: (..., D)."""
        return self.conditionals(x).cdf(x)

    def affine(self, shift: Tensor, scale: Tensor) -> AutoregressiveMixture:
        """Return the distribution of ``shift`` + ``scale`` * x; both broadcast to (..., D)."""
        return AutoregressiveMixture(
            self.raw, self.coupling, self.min_scale, shift=shift + scale * self.shift, scale=scale * self.scale
        )

    def mode(self) -> Tensor:
        """Return the sample at temperature 0, (..., D): each dimension the mean of its heaviest component."""
        return self.rsample(0.0)

    @torch.no_grad()
    def sample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample (..., D) at a temperature, which acts on each conditional mixture; see `GaussianMixture.sample`."""
        return self._sample(temperature, num_groups, generator)

    def rsample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample as `sample`, with exact pathwise gradients; see `GaussianMixture.rsample`."""
        return self._sample(temperature, num_groups, generator)

    def expectation(self) -> Tensor:
        """Mean of each dimension given the means of those before it, (..., D).

        It is the mean of the distribution where the weights of the components do not depend on earlier dimensions, and close to
        it where they hardly do.
        """
        parts: list[Tensor] = []
        for d in range(self.dim):
            logits, mean, _ = self._given(d, parts).unbind(dim=-2)
            parts.append((logits.softmax(dim=-1) * mean).sum(dim=-1))
        return self.shift + self.scale * torch.stack(parts, dim=-1)

    def _given(self, d: int, parts: list[Tensor]) -> Tensor:
        """Raw parameters (..., 3, K) of dimension ``d`` given the numbers of those before it, (...) each."""
        raw = self.raw[..., d]  # (..., 3, K)
        if not parts:
            return raw
        with torch.autocast(raw.device.type, enabled=False):
            earlier = within_reach(torch.stack(parts, dim=-1)) @ self.coupling[:, :, d, :d].flatten(0, 1).t()
        return raw + earlier.unflatten(-1, raw.shape[-2:])

    def _sample(self, temperature: float | Tensor, num_groups: int, generator: Source) -> Tensor:
        if num_groups != 1 and not self.batch_shape:
            raise ValueError(f"num_groups: expected 1 for a distribution without batch dimensions, got {num_groups}")
        base = self.raw[..., 0, :, :]
        if isinstance(temperature, Tensor):
            if temperature.shape != self.batch_shape[: temperature.ndim]:
                raise ValueError(
                    f"temperature: expected a shape that is a prefix of the batch shape {tuple(self.batch_shape)}, "
                    f"got {tuple(temperature.shape)}"
                )
            tau = temperature.to(base.dtype).reshape(*temperature.shape, *(1,) * (len(self.batch_shape) - temperature.ndim))
        else:
            check_temperature(temperature)
            tau = base.new_full((), temperature)
        gumbel = -shared_draws(base.detach(), num_groups, lambda noise: fill_exponential(noise, generator)).log_()
        normal = shared_draws(base.detach()[..., 0, :], num_groups, lambda noise: fill_normal(noise, generator))
        tau = tau.unsqueeze(-1).expand(*self.batch_shape, 1)
        parts: list[Tensor] = []
        for d in range(self.dim):
            logits, mean, raw_log_scale = self._given(d, parts).unbind(dim=-2)
            floor = self.min_scale[d] if isinstance(self.min_scale, Tensor) else self.min_scale
            parts.append(_sample_number(logits, mean, raw_log_scale, floor, tau, gumbel[..., d], normal[..., d]))
        return self.shift + self.scale * torch.stack(parts, dim=-1)


def _sample_number(
    logits: Tensor, mean: Tensor, raw_log_scale: Tensor, min_scale: float | Tensor, tau: Tensor, gumbel: Tensor, normal: Tensor
) -> Tensor:
    """Sample (...) from mixtures over one number with parameters (..., K), at temperatures tau (..., 1); differentiable."""
    positive = tau >= torch.finfo(logits.dtype).tiny  # below it, 1 / tau overflows
    safe = torch.where(positive, tau, 1.0)
    cold = logits - logits.detach().amax(dim=-1, keepdim=True)
    log_weights, log_scale = (cold / safe).log_softmax(dim=-1), soft_floor(raw_log_scale, min_scale)
    with torch.no_grad():
        index = torch.where(positive, log_weights + gumbel, cold).max(dim=-1, keepdim=True).indices
        noise = tau.sqrt() * log_scale.gather(-1, index).exp() * normal.unsqueeze(-1)
        sample = mean.gather(-1, index) + noise  # (..., 1)
    if not (torch.is_grad_enabled() and (logits.requires_grad or mean.requires_grad or raw_log_scale.requires_grad)):
        return sample[..., 0]
    log_scale = log_scale + 0.5 * safe.log()
    moving = reparameterize(sample, log_weights.unsqueeze(-1), mean.unsqueeze(-1), log_scale=log_scale.unsqueeze(-1))
    return torch.where(positive, moving, mean.gather(-1, index))[..., 0]


class AutoregressiveHead(MixtureHead):
    """A linear layer from features to the parameters of an `AutoregressiveMixture`.

    Args:
        in_features: F, size of the features.
        dim: D, size of the predicted vector.
        num_components: K, of the mixture of each dimension.
        min_scale: floor of every sigma, in the units of the target.
    """

    mask: Tensor

    def __init__(self, in_features: int, dim: int, num_components: int, *, min_scale: float = 1e-3):
        super().__init__(in_features, dim, num_components, factorization=Factorization.PER_DIMENSION, min_scale=min_scale)
        self.coupling = nn.Parameter(torch.zeros(self.linear.out_features, dim))
        lower = torch.ones(dim, dim).tril(-1)
        self.register_buffer("mask", lower.repeat(3 * num_components, 1), persistent=False)

    @classmethod
    def from_config(cls, in_features: int, dim: int, config: Any) -> AutoregressiveHead:
        """Make a head with fresh weights from the fields of an `MDNRNNConfig`.

        Raises:
            ValueError: if the configuration asks for another factorisation or noise.
        """
        if config.factorization is not Factorization.PER_DIMENSION or config.noise_type is not NoiseType.DIAGONAL:
            raise ValueError(
                "latent_head: expected factorization 'per_dimension' and noise_type 'diagonal' with 'AutoregressiveHead', got "
                f"{config.factorization.value!r} and {config.noise_type.value!r}"
            )
        least = DEFAULT_MIN_SCALE if config.min_scale is None else config.min_scale
        return cls(in_features, dim, config.num_components, min_scale=least)

    @property
    def has_conditionals(self) -> bool:
        """False: integrals over an earlier number are not in closed form."""
        return False

    @property
    def target_weight(self) -> Tensor:
        """Coefficients (O, D) of the target in the raw outputs; zero for the target's own and later dimensions."""
        return self.coupling * self.mask

    def initialise(self, features: Tensor, target: Tensor, ridge: Tensor, *, fit_floors: bool = False) -> None:
        """Start from mixtures of linear regressions on features and earlier dimensions; see ``initialization.py``."""
        used = ridge.isfinite()
        components = fit_components(features[:, used], target, ridge[used], self.num_components, autoregressive=True)
        self.start_from(components, used)
        with torch.no_grad():
            self.coupling[: sum(self._sizes[:2])] = torch.cat(
                [components.gate_coupling.flatten(0, 1), components.coupling.flatten(0, 1)]
            )
        if fit_floors:
            self.fit_floors(components.spread)

    def forward(self, features: Tensor) -> AutoregressiveMixture:  # type: ignore[override]
        """Turn features (..., F) into a batch of distributions with batch shape (...)."""
        raw = at_least_float32(self.linear(features)).unflatten(-1, (3, self.num_components, self.dim))
        return AutoregressiveMixture(raw, self.target_weight.unflatten(0, raw.shape[-3:]), self.floor)

    def sample_raw(self, raw: Tensor, *, temperature: float | Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sample (B, D), one dimension after the other. See `LatentHead.sample_raw`."""
        parameters = raw.unflatten(1, (3, self.num_components, self.dim))
        coupling = self.target_weight.detach().unflatten(0, parameters.shape[1:])  # (3, K, D, D)
        found = raw.new_empty(raw.shape[0], self.dim)
        for d in range(self.dim):
            own = slice(d, d + 1)
            floor = self.floor[own] if isinstance(self.floor, Tensor) else self.floor
            now = parameters[..., d]  # (B, 3, K)
            if d > 0:
                earlier = torch.einsum("bj,pkj->bpk", within_reach(found[:, :d]), coupling[:, :, d, :d].to(found.dtype))
                now = now + earlier
            logits, mean, raw_log_scale = now.unsqueeze(-1).unbind(dim=1)  # (B, K, 1)
            found[:, own] = sample_raw_mixture(
                logits, mean, raw_log_scale, floor,
                temperature=temperature, uniform=uniform[:, own], normal=normal[:, own],
            )  # fmt: skip
        return found
