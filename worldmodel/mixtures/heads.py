r"""The latent head of the paper: a linear layer whose outputs are the parameters of a Gaussian mixture.

Noise models of the joint mixture over D dimensions, numbered as in the mixture-density-network README (T. Duan):

====  ==============================  ====================================================  =====================
 no.  `NoiseType`                     covariance of component k                             outputs for the noise
====  ==============================  ====================================================  =====================
 1    ``FULL``                        :math:`L_k L_k^T`, L lower triangular                 K D (D + 1) / 2
 2    ``DIAGONAL``                    :math:`diag(\sigma_{k1}^2, ..., \sigma_{kD}^2)`       K D
 3    ``ISOTROPIC``                   :math:`\sigma_k^2 I`                                  K
 4    ``ISOTROPIC_ACROSS_CLUSTERS``   :math:`\sigma^2 I`, the same for all components       1
 5    ``FIXED``                       :math:`\sigma_0^2 I`, given and not learned           0
====  ==============================  ====================================================  =====================

In the per-dimension factorisation each of the D mixtures is over one number, where 1, 2 and 3 are the same (one sigma per
component and dimension, K D outputs), 4 is one sigma per dimension (D outputs) and 5 is as above.

Every learned scale has a soft floor: :math:`\sigma = \sqrt{e^{2s} + \sigma_{min}^2}` for the network's output s. So a constant
target cannot drive the loss to minus infinity, and the gradient with respect to s never jumps.

Mixtures with a sigma for each component and dimension are trained and sampled on the raw outputs (`LatentHead.supports_raw`).
For one number x with weights :math:`\pi = softmax(l)`, means m and variances :math:`v = e^{2s} + \sigma_{min}^2`, let
:math:`a_k = l_k - \frac12 (x - m_k)^2 / v_k - \frac12 \log v_k` and :math:`\gamma = softmax(a)`, the responsibilities; if
D numbers share their components (joint mixtures), a sums the terms of all. Then

.. math:: -\log p(x) = \mathrm{lse}(l) - \mathrm{lse}(a) + \tfrac12 \log 2 \pi, \qquad
    \partial l_k = \pi_k - \gamma_k, \quad \partial m_k = -\gamma_k \frac{x - m_k}{v_k}, \quad
    \partial s_k = \gamma_k \frac{e^{2 s_k}}{v_k} \left(1 - \frac{(x - m_k)^2}{v_k}\right),

with :math:`\tfrac12 \log 2 \pi` for each number.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.mixtures.gaussian import HALF_LOG_TWO_PI, GaussianMixture, at_least_float32
from worldmodel.mixtures.initialization import Components, fit_components, fit_joint_components
from worldmodel.mixtures.latent_head import LatentHead
from worldmodel.runtime import check_integer, check_number

LARGEST_LOG_VARIANCE = 80.0  # of the network's raw output: e^80 is still finite in float32
BELOW_ONE = 1 - 2.0**-22  # a uniform number times this times a sum is less than the sum, in float32 too


DEFAULT_MIN_SCALE = 0.03  # of a configuration that leaves ``min_scale`` open
FLOOR_OF_SPREAD, LOWEST_FLOOR = 0.3, 0.1  # fitted floors: a part of the spread, and at least this part of ``min_scale``


class NoiseType(str, enum.Enum):
    """The covariance of the mixture's components; see the module's table."""

    FULL = "full"
    DIAGONAL = "diagonal"
    ISOTROPIC = "isotropic"
    ISOTROPIC_ACROSS_CLUSTERS = "isotropic_across_clusters"
    FIXED = "fixed"


class Factorization(str, enum.Enum):
    """One mixture over the vector (``JOINT``) or one mixture per dimension (``PER_DIMENSION``)."""

    JOINT = "joint"
    PER_DIMENSION = "per_dimension"


def check_noise(noise_type: NoiseType, fixed_noise_level: float | None, min_scale: float) -> None:
    """Raise if the noise settings contradict each other.

    Raises:
        ValueError: if ``fixed_noise_level`` is missing for FIXED, given for another type, or not positive, or if ``min_scale``
            is not positive.
    """
    if noise_type is NoiseType.FIXED and (fixed_noise_level is None or not 0 < fixed_noise_level < math.inf):
        raise ValueError(f"fixed_noise_level: expected a positive number with noise type 'fixed', got {fixed_noise_level}")
    if noise_type is not NoiseType.FIXED and fixed_noise_level is not None:
        raise ValueError(f"fixed_noise_level: expected None with noise type {noise_type.value!r}, got {fixed_noise_level}")
    if not 0 < min_scale < math.inf:
        raise ValueError(f"min_scale: expected a positive number, got {min_scale}")


def soft_floor(raw_log_scale: Tensor, min_scale: float | Tensor) -> Tensor:
    """Log of sqrt(exp(2 s) + min_scale^2): log-scales s (..., K, D) with a soft floor, a number or (D,), in the shape of s."""
    if isinstance(min_scale, Tensor):
        return 0.5 * torch.logaddexp(2 * raw_log_scale, 2 * min_scale.to(raw_log_scale.dtype).log())
    return 0.5 * torch.logaddexp(2 * raw_log_scale, torch.full_like(raw_log_scale, 2 * math.log(min_scale)))


class MixtureHead(LatentHead):
    """A linear layer from features to the parameters of a `GaussianMixture`.

    Args:
        in_features: F, size of the features.
        dim: D, size of the predicted vector.
        num_components: K.
        factorization: joint or per dimension.
        noise_type: covariance of the components.
        fixed_noise_level: the sigma of ``NoiseType.FIXED``, in the units of the target; None otherwise.
        min_scale: floor of every learned sigma, in the units of the target.
        below_scale: factor of the outputs below the diagonal of ``FULL``; 1 / D keeps the steps of training stable for any D.

    Raises:
        ValueError: if a size is below 1 or the noise settings contradict each other.
    """

    def __init__(
        self,
        in_features: int,
        dim: int,
        num_components: int,
        *,
        factorization: Factorization = Factorization.JOINT,
        noise_type: NoiseType = NoiseType.DIAGONAL,
        fixed_noise_level: float | None = None,
        min_scale: float = 1e-3,
        below_scale: float = 1.0,
    ):
        super().__init__()
        for name, value in {"in_features": in_features, "dim": dim, "num_components": num_components}.items():
            check_integer(value, name, least=1)
        self.dim = dim
        self.num_components = num_components
        self.factorization = Factorization(factorization)
        self.noise_type = NoiseType(noise_type)
        self.fixed_noise_level = fixed_noise_level
        self.min_scale = min_scale
        self.below_scale = below_scale
        check_noise(self.noise_type, fixed_noise_level, min_scale)
        per_dimension = self.factorization is Factorization.PER_DIMENSION
        self._sizes = (
            num_components * (dim if per_dimension else 1),  # logits of the weights
            num_components * dim,  # means
            math.prod(self._noise_shape()),
        )
        self.linear = nn.Linear(in_features, sum(self._sizes))
        self.register_buffer("floors", None, persistent=False)
        if self.noise_type is NoiseType.FULL and not per_dimension:
            self._start_without_correlation()

    @classmethod
    def from_config(cls, in_features: int, dim: int, config: Any) -> MixtureHead:
        """Make a head with fresh weights from the fields of an `MDNRNNConfig`."""
        return cls(
            in_features,
            dim,
            config.num_components,
            factorization=config.factorization,
            noise_type=config.noise_type,
            fixed_noise_level=config.fixed_noise_level,
            min_scale=DEFAULT_MIN_SCALE if config.min_scale is None else config.min_scale,
            below_scale=1 / dim if config.noise_type is NoiseType.FULL else 1.0,
        )

    def forward(self, features: Tensor) -> GaussianMixture:
        """Turn features (..., F) into a batch of mixtures with batch shape (...)."""
        raw = at_least_float32(self.linear(features))
        logits, mean, noise = raw.split(self._sizes, dim=-1)
        leading, k, d = raw.shape[:-1], self.num_components, self.dim
        mean = mean.reshape(*leading, k, d)
        if self.factorization is Factorization.PER_DIMENSION:
            logits = logits.reshape(*leading, k, d)
            log_weights = logits.log_softmax(dim=-2)
        else:
            log_weights = logits.log_softmax(dim=-1)
        if self.noise_type is NoiseType.FIXED:
            assert self.fixed_noise_level is not None
            return GaussianMixture(log_weights, mean, torch.full_like(mean, math.log(self.fixed_noise_level)))
        noise = noise.reshape(*leading, *self._noise_shape())
        if self.noise_type is NoiseType.FULL and self.factorization is Factorization.JOINT:
            return GaussianMixture(log_weights, mean, scale_tril=self._scale_tril(noise))
        return GaussianMixture(log_weights, mean, soft_floor(noise, self.floor))

    def initialise(self, features: Tensor, target: Tensor, ridge: Tensor, *, fit_floors: bool = False) -> None:
        """Start from mixtures of linear regressions, so that no component dies; see ``initialization.py``."""
        fit = fit_components if self.factorization is Factorization.PER_DIMENSION else fit_joint_components
        used = ridge.isfinite()
        components = fit(features[:, used], target, ridge[used], self.num_components)
        self.start_from(components, used)
        if fit_floors:
            self.fit_floors(components.spread)

    @torch.no_grad()
    def start_from(self, components: Components, used: Tensor) -> None:
        """Set the biases, and the weights of the logits and means on the features that were ``used`` (F,), to the components.

        The weights of the other features stay random; those of the means are scaled to the components' standard deviations.
        """
        log_weights, log_scale = components.log_weights, components.log_scale
        if self.factorization is Factorization.JOINT:
            log_weights = log_weights[:, 0]
        if self.noise_type is NoiseType.FULL and self.factorization is Factorization.JOINT:
            noise = log_scale.new_zeros(self._noise_shape())
            noise[:, : self.dim] = log_scale
        elif self.noise_type is NoiseType.FIXED:
            noise = log_scale.new_zeros(0)
        else:
            for axis, size in enumerate(self._noise_shape()):
                log_scale = log_scale.mean(dim=axis, keepdim=True) if size == 1 else log_scale
            noise = log_scale
        self.linear.bias.copy_(torch.cat([part.flatten() for part in (log_weights, components.bias, noise)]))
        means = slice(self._sizes[0], sum(self._sizes[:2]))
        self.linear.weight[means] *= components.log_scale.exp().flatten().unsqueeze(1)
        self.linear.weight[means, used] = components.weight.flatten(0, 1)
        gate = components.gate if self.factorization is Factorization.PER_DIMENSION else components.gate[:, 0]
        self.linear.weight[: self._sizes[0], used] = gate.reshape(self._sizes[0], -1)

    @torch.no_grad()
    def _start_without_correlation(self) -> None:
        """Set the outputs below the diagonal to 0; the inverse of a random factor grows exponentially with D."""
        for parameter in (self.linear.weight, self.linear.bias):
            noise = parameter[sum(self._sizes[:2]) :].unflatten(0, (self.num_components, -1))
            noise[:, self.dim :] = 0

    @torch.no_grad()
    def fit_floors(self, spread: Tensor) -> None:
        """Lower the floors of the sigmas where the data show less noise than ``min_scale``.

        Args:
            spread: (D,) smallest standard deviations of components, in the units of the target.
        """
        if self._noise_shape() == (self.num_components, self.dim):
            floors = (FLOOR_OF_SPREAD * spread.float()).clamp(LOWEST_FLOOR * self.min_scale, self.min_scale)
            self.floors = floors if bool((floors < self.min_scale).any()) else None

    @property
    def floor(self) -> float | Tensor:
        """Floor of the sigmas: ``min_scale``, or (D,) those that `initialise` found."""
        return self.min_scale if self.floors is None else self.floors

    def constants(self) -> dict[str, Any]:
        """Return ``below_scale`` if it is not 1, and the floors of the dimensions if they differ from ``min_scale``."""
        found: dict[str, Any] = {} if self.below_scale == 1 else {"below_scale": self.below_scale}
        return found if self.floors is None else found | {"floors": self.floors.tolist()}

    def set_constants(self, values: Mapping[str, Any]) -> None:
        """See `LatentHead.set_constants`."""
        self.below_scale = float(check_number(values.get("below_scale", 1.0), "below_scale", "(0, inf)"))
        floors = values.get("floors")
        if floors is not None:
            allowed = self.dim if self._noise_shape() == (self.num_components, self.dim) else 0
            if not isinstance(floors, list) or len(floors) != allowed:
                raise ValueError(f"floors: expected a list of {allowed} numbers, got {floors!r:.80}")
            floors = torch.tensor([check_number(floor, "floors", "(0, inf)") for floor in floors], dtype=torch.float32)
        self.floors = floors

    @property
    def numbers_per_sample(self) -> int:
        """Exponential numbers that choose the components, and normal ones for the noise, which are made in pairs."""
        return self.num_components * self.num_uniforms + self.dim + self.dim % 2

    @property
    def has_conditionals(self) -> bool:
        """Always."""
        return True

    @property
    def supports_raw(self) -> bool:
        """Whether each component has a sigma for each dimension, which the members on raw outputs require."""
        if self.factorization is Factorization.JOINT:
            return self.noise_type is NoiseType.DIAGONAL
        return self.noise_type not in (NoiseType.ISOTROPIC_ACROSS_CLUSTERS, NoiseType.FIXED)

    @property
    def num_uniforms(self) -> int:
        """Choices of a component in a sample: one per dimension, or one if the dimensions share their components."""
        return self.dim if self.factorization is Factorization.PER_DIMENSION else 1

    @property
    def num_normals(self) -> int:
        """One per dimension."""
        return self.dim

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum -log p(target) over everything, in nats; see `LatentHead.raw_nll`."""
        return raw_mixture_nll(*self._raw_parameters(raw), target, self.floor, gradient=gradient)

    def sample_raw(self, raw: Tensor, *, temperature: float | Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sample (B, D); computes the scale of the sampled components only. See `LatentHead.sample_raw`."""
        parameters = self._raw_parameters(raw)
        return sample_raw_mixture(*parameters, self.floor, temperature=temperature, uniform=uniform, normal=normal)

    def _raw_parameters(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of raw outputs (N, O): logits (N, K, D), or (N, K, 1) if joint, means and raw log-scales (N, K, D)."""
        shape = (self.num_components, -1)
        logits, mean, raw_log_scale = raw.split(self._sizes, dim=1)
        return logits.unflatten(1, shape), mean.unflatten(1, shape), raw_log_scale.unflatten(1, shape)

    def _noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise outputs of one mixture; it broadcasts to (K, D) except for FULL: (K, D (D + 1) / 2)."""
        k, d = self.num_components, self.dim
        if self.noise_type is NoiseType.FIXED:
            return (0,)
        if self.factorization is Factorization.PER_DIMENSION:
            return (1, d) if self.noise_type is NoiseType.ISOTROPIC_ACROSS_CLUSTERS else (k, d)
        return {
            NoiseType.FULL: (k, d * (d + 1) // 2),
            NoiseType.DIAGONAL: (k, d),
            NoiseType.ISOTROPIC: (k, 1),
            NoiseType.ISOTROPIC_ACROSS_CLUSTERS: (1, 1),
        }[self.noise_type]

    def _scale_tril(self, noise: Tensor) -> Tensor:
        """Build Cholesky factors (..., K, D, D) from (..., K, D (D + 1) / 2): first the D log-diagonals, then the rest."""
        log_diagonal, below = noise.split([self.dim, noise.shape[-1] - self.dim], dim=-1)
        tril = torch.diag_embed(soft_floor(log_diagonal, self.floor).exp())
        row, column = torch.tril_indices(self.dim, self.dim, offset=-1, device=noise.device)
        tril[..., row, column] = self.below_scale * below
        return tril


def raw_mixture_nll(
    logits: Tensor, mean: Tensor, raw_log_scale: Tensor, x: Tensor, min_scale: float | Tensor, *, gradient: bool
) -> Tensor:
    """Sum -log p(x) over everything, in nats, and overwrite the first three arguments with its gradient if requested.

    Args:
        logits: (N, K, D) of mixtures per dimension, or (N, K, 1) of joint ones.
        mean: (N, K, D).
        raw_log_scale: (N, K, D).
        x: (N, D).
        min_scale: floor of the sigmas.
        gradient: whether to overwrite the outputs with the gradient.
    """
    logits, mean, raw_log_scale = (part.permute(1, 2, 0) for part in (logits, mean, raw_log_scale))  # (K, D, N)
    floor = min_scale.unsqueeze(1) if isinstance(min_scale, Tensor) and min_scale.ndim else min_scale
    free = (2 * raw_log_scale).clamp_(max=LARGEST_LOG_VARIANCE).exp_()  # the variance without its floor
    variance = free + floor**2
    deviation = mean - x.t()
    pull = deviation / variance
    square = deviation.mul_(pull)
    misfit = variance.log().add_(square)
    if len(logits) == 1:  # one Gaussian, which needs no weights
        if gradient:
            logits.zero_()
            mean.copy_(pull)
            torch.addcmul(free.div_(variance), free, square, value=-1, out=raw_log_scale)
        return 0.5 * misfit.sum() + x.numel() * HALF_LOG_TWO_PI
    log_prior, prior = _normalise(logits)
    if logits.shape[1] < misfit.shape[1]:
        misfit = misfit.sum(dim=1, keepdim=True)
    log_evidence, posterior = _normalise(torch.add(logits, misfit, alpha=-0.5))
    if gradient:
        torch.sub(prior, posterior, out=logits)
        torch.mul(posterior, pull, out=mean)
        by_scale = free.div_(variance).mul_(posterior)
        torch.addcmul(by_scale, by_scale, square, value=-1, out=raw_log_scale)
    return (log_prior - log_evidence).sum() + x.numel() * HALF_LOG_TWO_PI


def _normalise(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logsumexp (1, D, N) and softmax (K, D, N) over K of (K, D, N), or of (K, 1, N)."""
    largest = logits.amax(dim=0, keepdim=True)
    weights = (logits - largest).exp_()
    total = weights.sum(dim=0, keepdim=True)
    return total.log().add_(largest), weights.div_(total)


def sample_raw_mixture(
    logits: Tensor,
    means: Tensor,
    raw_log_scales: Tensor,
    min_scale: float | Tensor,
    *,
    temperature: float | Tensor,
    uniform: Tensor,
    normal: Tensor,
) -> Tensor:
    """Sample from mixtures at a temperature, as `GaussianMixture.sample` does; one uniform number chooses each component.

    Args:
        logits: (B, K, D) of mixtures per dimension, or (B, K, 1) of joint ones.
        means: (B, K, D).
        raw_log_scales: (B, K, D).
        min_scale: floor of the sigmas.
        temperature: tau >= 0, a number or (B,); at 0 the mean of the heaviest component, the first of equally heavy ones.
        uniform: (B, D) or (B, 1) in [0, 1), one for each choice of a component.
        normal: (B, D).

    Returns:
        (B, D).
    """
    tau = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device).reshape(-1, 1)  # (1, 1) or (B, 1)
    coldest = torch.finfo(logits.dtype).tiny  # below it 1 / tau overflows
    weights = ((logits - logits.amax(dim=1, keepdim=True)) / tau.clamp(min=coldest).unsqueeze(1)).exp_()
    aim = weights.sum(dim=1).mul_(uniform * BELOW_ONE * (tau >= coldest))  # 0 finds the first component with any weight
    passed = weights.cumsum(dim=1)[:, :-1]  # of the last component it could be below the aim, by rounding
    index = (aim.unsqueeze(1) >= passed).sum(dim=1, keepdim=True).expand(-1, 1, means.shape[2])
    mean, log_scale = (part.gather(1, index)[:, 0] for part in (means, raw_log_scales))
    sigma = (2 * log_scale).clamp_(max=LARGEST_LOG_VARIANCE).exp_().add_(min_scale**2).sqrt_()
    return torch.addcmul(mean, sigma, normal * tau.sqrt())
