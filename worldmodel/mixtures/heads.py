r"""Heads that turn features into mixtures, and `MixtureDensityNetwork` (Bishop 1994), a network that ends in one.

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

In the per-dimension factorisation each of the D mixtures is over one number, where 1, 2 and 3 are the same thing (one sigma per
component and dimension, K D outputs), 4 is one sigma per dimension (D outputs) and 5 is as above.

Every learned scale has a floor, approached softly: :math:`\sigma = \sqrt{e^{2s} + \sigma_{min}^2}` for the network's output s.
So a constant target cannot drive the loss to minus infinity, and the gradient with respect to s never jumps.
"""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor, nn

from worldmodel.mixtures.gaussian import GaussianMixture, at_least_float32


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
    """Refuse noise settings that contradict each other.

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


def soft_floor(raw_log_scale: Tensor, min_scale: float) -> Tensor:
    """Log of sqrt(exp(2 s) + min_scale^2): the log-scale s with a floor that it approaches softly, in the shape of s."""
    return 0.5 * torch.logaddexp(2 * raw_log_scale, torch.full_like(raw_log_scale, 2 * math.log(min_scale)))


class MixtureHead(nn.Module):
    """A linear layer from features to the parameters of a `GaussianMixture`.

    Args:
        in_features: F, size of the features.
        dim: D, size of the vector that is predicted.
        num_components: K.
        factorization: joint or per dimension.
        noise_type: covariance of the components.
        fixed_noise_level: the sigma of ``NoiseType.FIXED``, in the units of the target; None otherwise.
        min_scale: floor of every learned sigma, in the units of the target.

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
    ):
        super().__init__()
        for name, value in {"in_features": in_features, "dim": dim, "num_components": num_components}.items():
            if value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")
        self.dim = dim
        self.num_components = num_components
        self.factorization = Factorization(factorization)
        self.noise_type = NoiseType(noise_type)
        self.fixed_noise_level = fixed_noise_level
        self.min_scale = min_scale
        check_noise(self.noise_type, fixed_noise_level, min_scale)
        per_dimension = self.factorization is Factorization.PER_DIMENSION
        self._sizes = (
            num_components * (dim if per_dimension else 1),  # logits of the weights
            num_components * dim,  # means
            math.prod(self._noise_shape()),
        )
        self.linear = nn.Linear(in_features, sum(self._sizes))

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
        return GaussianMixture(log_weights, mean, soft_floor(noise, self.min_scale))

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
        """Build Cholesky factors (..., K, D, D) from (..., K, D (D + 1) / 2): first the D log-diagonals, then what is below."""
        log_diagonal, below = noise.split([self.dim, noise.shape[-1] - self.dim], dim=-1)
        tril = torch.diag_embed(soft_floor(log_diagonal, self.min_scale).exp())
        row, column = torch.tril_indices(self.dim, self.dim, offset=-1, device=noise.device)
        tril[..., row, column] = below
        return tril


class MixtureDensityNetwork(nn.Module):
    """A two-layer perceptron that predicts a mixture over y given x (Bishop 1994), with the classic joint factorisation.

    The interface is that of the mixture-density-network project, except that ``forward`` gives a `GaussianMixture` m where that
    project gives log_pi, mu and sigma: they are ``m.log_weights``, ``m.mean`` and ``m.log_scale.exp()``. ``NoiseType.FULL``,
    which that project leaves out, is there.

    Args:
        dim_in: size of x.
        dim_out: D, size of y.
        n_components: K.
        hidden_dim: size of the hidden layer; None means ``dim_in``, as in that project.
        noise_type: covariance of the components.
        fixed_noise_level: the sigma of ``NoiseType.FIXED``, in the units of y; None otherwise.
        factorization: joint, or one mixture per dimension of y.
        min_scale: floor of every learned sigma, in the units of y.

    Raises:
        ValueError: if a size is below 1 or the noise settings contradict each other.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        n_components: int,
        hidden_dim: int | None = None,
        noise_type: NoiseType = NoiseType.DIAGONAL,
        fixed_noise_level: float | None = None,
        *,
        factorization: Factorization = Factorization.JOINT,
        min_scale: float = 1e-3,
    ):
        super().__init__()
        hidden_dim = dim_in if hidden_dim is None else hidden_dim
        for name, value in {
            "dim_in": dim_in,
            "dim_out": dim_out,
            "n_components": n_components,
            "hidden_dim": hidden_dim,
        }.items():
            if value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")
        self.dim_in = dim_in
        self.hidden = nn.Sequential(nn.Linear(dim_in, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, hidden_dim), nn.Tanh())
        self.head = MixtureHead(
            hidden_dim,
            dim_out,
            n_components,
            factorization=factorization,
            noise_type=noise_type,
            fixed_noise_level=fixed_noise_level,
            min_scale=min_scale,
        )

    def forward(self, x: Tensor) -> GaussianMixture:
        """Predict the distribution of y: a mixture with batch shape (...) from ``x`` (..., dim_in).

        Raises:
            ValueError: if the last dimension of ``x`` is not ``dim_in``.
        """
        if x.ndim == 0 or x.shape[-1] != self.dim_in:
            raise ValueError(f"x: expected shape (..., {self.dim_in}), got {tuple(x.shape)}")
        return self.head(self.hidden(x))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Negative log-likelihood -log p(y | x) in nats, summed over D, constants included, one value per example.

        Args:
            x: (..., dim_in).
            y: (..., dim_out), with the same leading dimensions.

        Returns:
            (...).

        Raises:
            ValueError: if a shape does not fit; nothing is broadcast silently.
        """
        if y.shape != (*x.shape[:-1], self.head.dim):
            raise ValueError(f"y: expected shape {(*x.shape[:-1], self.head.dim)}, got {tuple(y.shape)}")
        return -self(x).log_prob(y)

    def sample(self, x: Tensor, temperature: float | Tensor = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one y (..., dim_out) for each ``x`` (..., dim_in), at a temperature as in `GaussianMixture.sample`."""
        return self(x).sample(temperature, generator=generator)
