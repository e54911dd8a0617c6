"""`MixtureDensityNetwork` (Bishop 1994): a perceptron that ends in a `MixtureHead`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.mixtures.gaussian import GaussianMixture
from worldmodel.mixtures.heads import Factorization, MixtureHead, NoiseType
from worldmodel.runtime import check_integer


class MixtureDensityNetwork(nn.Module):
    """A two-layer perceptron that predicts a mixture over y given x (Bishop 1994), with the classic joint factorisation.

    The interface is that of the mixture-density-network project, except that ``forward`` returns a `GaussianMixture` m where
    that project returns log_pi, mu and sigma: they are ``m.log_weights``, ``m.mean`` and ``m.log_scale.exp()``. It also has
    ``NoiseType.FULL``, which that project leaves out.

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
            check_integer(value, name, least=1)
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
            below_scale=1 / dim_out,
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
        """Sample one y (..., dim_out) for each ``x`` (..., dim_in), at a temperature as in `GaussianMixture.sample`."""
        return self(x).sample(temperature, generator=generator)
