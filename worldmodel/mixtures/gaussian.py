r"""Gaussian mixtures over vectors: density, tempered sampling, moments, CDF and entropy.

Two factorisations with different likelihoods:

- **joint** (Bishop 1994): one K-component mixture over the vector,
  :math:`p(x) = \sum_k \pi_k \, N(x; \mu_k, \Sigma_k)`;
- **per dimension** (Ha & Schmidhuber 2018): one K-component mixture for each dimension,
  :math:`p(x) = \prod_d \sum_k \pi_{kd} \, N(x_d; \mu_{kd}, \sigma_{kd}^2)`.

Shapes are batch dimensions, then K, then D. Densities are exact, in nats, with constants included,
and computed in float32 or better for any input dtype. The tests compare with `torch.distributions`,
which is not used here because its ``sample`` takes no generator and its mixtures have no
temperature.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.mixtures.reparameterization import reparameterize
from worldmodel.rng import Source, fill_exponential, fill_normal
from worldmodel.runtime import check_integer

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def categorical(log_weights: Tensor, *, dim: int = -1, num_groups: int = 1, generator: Source = None) -> Tensor:
    """Sample one component index per mixture by the Gumbel-max trick.

    argmax_k (log pi_k + g_k) with g_k standard Gumbel is exactly k with probability pi_k, for any
    normalisation of ``log_weights``; unlike a search in the cumulative sum it cannot return K when
    rounding leaves the sum below 1.

    Args:
        log_weights: (..., K, ...) log-weights with K at ``dim``, normalised or not; -inf marks an
            impossible component.
        dim: the component dimension.
        num_groups: number of groups of the first dimension with common random numbers; see
            `shared_draws`.
        generator: source of randomness, on the device of ``log_weights``.

    Returns:
        int64 indices in [0, K), in the shape of ``log_weights`` without ``dim``.

    Raises:
        ValueError: if ``log_weights`` has no component dimension.
    """
    if log_weights.ndim == 0 or log_weights.shape[dim] == 0:
        raise ValueError(f"log_weights: expected shape (..., K) with K >= 1, got {tuple(log_weights.shape)}")
    log_weights = at_least_float32(log_weights)  # in half precision, Gumbel numbers tie too often
    exponential = shared_draws(log_weights, num_groups, lambda noise: fill_exponential(noise, generator))
    return (log_weights - exponential.log_()).max(dim=dim).indices  # seven times as fast on a CPU as argmax (dev/LOG.md)


def shared_draws(like: Tensor, num_groups: int, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """Sample noise with common random numbers: the same for each group of the first dimension.

    Comparing candidates under common random numbers removes most of the variance of the comparison.

    Args:
        like: (num_groups * R, ...), determines shape, dtype and device.
        num_groups: number of groups; 1 gives every row its own noise.
        fill: fills a tensor with noise in place and returns it.

    Returns:
        (num_groups * R, ...) noise; row g * R + r is the same for all g.

    Raises:
        ValueError: if the first dimension is not a multiple of ``num_groups``.
    """
    if num_groups == 1:
        return fill(torch.empty_like(like, memory_format=torch.contiguous_format))
    if like.ndim == 0 or num_groups < 1 or like.shape[0] % num_groups:
        raise ValueError(f"num_groups: expected a divisor of the first dimension of {tuple(like.shape)}, got {num_groups}")
    once = fill(like.new_empty(like.shape[0] // num_groups, *like.shape[1:]))
    return once.repeat(num_groups, *(1,) * (like.ndim - 1))


def check_temperature(temperature: float | Tensor) -> None:
    """Validate a temperature. Reads a tensor's values, which synchronises the GPU.

    Raises:
        ValueError: if a value is negative or not finite.
        TypeError: if the temperature is neither a number nor a tensor.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, (Tensor, numbers.Real)):
        raise TypeError(f"temperature: expected a number or a tensor, got {temperature!r}")
    values = torch.as_tensor(temperature)
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise ValueError(f"temperature: expected finite values >= 0, got {temperature}")


class GaussianMixture:
    r"""A batch of K-component Gaussian mixtures over vectors of D numbers.

    The shape of ``log_weights`` determines the factorisation: (..., K) is joint, (..., K, D) is per
    dimension.

    Args:
        log_weights: (..., K) or (..., K, D) log of the component weights, normalised over K.
        mean: (..., K, D) component means.
        log_scale: log of the standard deviations, broadcast to (..., K, D): (..., K, D) is
            diagonal, (..., K, 1) is isotropic, (..., 1, 1) is isotropic and equal for all
            components. Pass either this or ``scale_tril``.
        scale_tril: (..., K, D, D) lower-triangular Cholesky factors L of full covariances
            :math:`\Sigma_k = L_k L_k^T`, with a positive diagonal. Joint only.

    Raises:
        ValueError: if the shapes are inconsistent, or unless exactly one of ``log_scale`` and
            ``scale_tril`` is given.
    """

    def __init__(self, log_weights: Tensor, mean: Tensor, log_scale: Tensor | None = None, *, scale_tril: Tensor | None = None):
        if mean.ndim < 2 or mean.shape[-2] == 0:
            raise ValueError(f"mean: expected shape (..., K, D) with K >= 1, got {tuple(mean.shape)}")
        self.per_dimension = log_weights.ndim == mean.ndim
        expected = mean.shape if self.per_dimension else mean.shape[:-1]
        if log_weights.shape != expected:
            raise ValueError(
                f"log_weights: expected shape {tuple(mean.shape[:-1])} or {tuple(mean.shape)}, got {tuple(log_weights.shape)}"
            )
        if (log_scale is None) == (scale_tril is None):
            raise ValueError("log_scale, scale_tril: expected exactly one of them, got both or neither")
        if scale_tril is not None and (self.per_dimension or scale_tril.shape != (*mean.shape, mean.shape[-1])):
            raise ValueError(
                f"scale_tril: expected shape {(*mean.shape, mean.shape[-1])} with joint log_weights {tuple(mean.shape[:-1])}, "
                f"got {tuple(scale_tril.shape)} with log_weights {tuple(log_weights.shape)}"
            )
        self.log_weights = at_least_float32(log_weights)
        self.mean = at_least_float32(mean)
        self.scale_tril = None if scale_tril is None else at_least_float32(scale_tril)
        if log_scale is None:  # marginal standard deviation of each dimension: the norm of a row of L
            assert self.scale_tril is not None
            self.log_scale = 0.5 * self.scale_tril.square().sum(dim=-1).log()  # (..., K, D)
        else:
            self.log_scale = _expand(at_least_float32(log_scale), self.mean.shape)  # (..., K, D)

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions (...)."""
        return self.mean.shape[:-2]

    @property
    def num_components(self) -> int:
        """Number K of components."""
        return self.mean.shape[-2]

    @property
    def dim(self) -> int:
        """Length D of one vector."""
        return self.mean.shape[-1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density in nats, summed over D, constants included.

        Args:
            x: (..., D), where (...) is the batch shape, optionally preceded by further dimensions.

        Returns:
            (...).

        Raises:
            ValueError: if ``x`` has another shape. Nothing is broadcast silently.
        """
        weighted = self._weighted_log_prob(x)
        if self.per_dimension:
            return torch.logsumexp(weighted, dim=-2).sum(dim=-1)
        return torch.logsumexp(weighted[..., 0], dim=-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return the posterior probability of each component given ``x``.

        Args:
            x: (..., D).

        Returns:
            (..., K) if joint, (..., K, D) if per dimension; sums to 1 over K.

        Raises:
            ValueError: if ``x`` has another shape.
        """
        posterior = self._weighted_log_prob(x).softmax(dim=-2)
        return posterior if self.per_dimension else posterior[..., 0]

    def affine(self, shift: Tensor, scale: Tensor) -> GaussianMixture:
        """Return the mixture of ``shift`` + ``scale`` * x; log-densities change by -sum log scale.

        Args:
            shift: (..., D), broadcast over the batch shape.
            scale: (..., D), positive, broadcast over the batch shape.

        Raises:
            ValueError: if a shape does not broadcast to (..., D), where (...) is the batch shape.
        """
        expected = (*self.batch_shape, self.dim)
        for name, value in {"shift": shift, "scale": scale}.items():
            sizes = zip(reversed(value.shape), reversed(expected), strict=False)
            if value.ndim == 0 or value.ndim > len(expected) or any(have not in (1, size) for have, size in sizes):
                raise ValueError(f"{name}: expected a shape that broadcasts to {expected}, got {tuple(value.shape)}")
        shift, scale = shift.unsqueeze(-2), scale.unsqueeze(-2)  # (..., 1, D)
        mean = shift + scale * self.mean
        if self.scale_tril is None:
            return GaussianMixture(self.log_weights, mean, self.log_scale + scale.log())
        return GaussianMixture(self.log_weights, mean, scale_tril=scale.unsqueeze(-1) * self.scale_tril)

    def expectation(self) -> Tensor:
        """Return the mean of the mixture: (..., D)."""
        return (self._stacked_log_weights().exp() * self.mean).sum(dim=-2)

    def variance(self) -> Tensor:
        """Return the variance of each dimension under the mixture: (..., D)."""
        deviation = self.mean - self.expectation().unsqueeze(-2)  # (..., K, D)
        return (self._stacked_log_weights().exp() * ((2 * self.log_scale).exp() + deviation.square())).sum(dim=-2)

    def cdf(self, x: Tensor) -> Tensor:
        """Return the marginal P(X_d <= x_d) of each dimension, for calibration.

        Args:
            x: (..., D).

        Returns:
            (..., D), in [0, 1].

        Raises:
            ValueError: if ``x`` has another shape.
        """
        self._check_event(x)
        standardised = (x.unsqueeze(-2) - self.mean) * (-self.log_scale).exp()  # (..., K, D)
        return (self._stacked_log_weights().exp() * torch.special.ndtr(standardised)).sum(dim=-2)

    def mode(self) -> Tensor:
        """Return the mean of the component with the largest weight (the first of equals): (..., D).

        It is the sample at temperature 0.
        """
        return self._select(self.mean, self._stacked_log_weights().max(dim=-2).indices)

    def sample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample one x per mixture at a temperature.

        Source: Ha & Schmidhuber 2018, appendix; after Ha & Eck 2017. Log-weights are divided by tau
        and renormalised per mixture; the noise is multiplied by sqrt(tau). At tau = 0 the result is
        `mode`.

        Args:
            temperature: tau >= 0, a number, or a tensor whose shape is a prefix of the batch shape
                (one value per dream). The values of a tensor are not validated, which would
                synchronise the GPU; see `check_temperature`.
            num_groups: number of groups of the first batch dimension with common random numbers;
                see `shared_draws`.
            generator: source of randomness, on the device of the parameters.

        Returns:
            (..., D).

        Raises:
            ValueError: if a number is negative or not finite, if the shape of a tensor is not a
                prefix of the batch shape, or if ``num_groups`` does not divide the first batch
                dimension.
        """
        if num_groups != 1 and not self.batch_shape:
            raise ValueError(f"num_groups: expected 1 for a mixture without batch dimensions, got {num_groups}")
        log_weights = self._stacked_log_weights()  # (..., K, 1 or D)
        log_weights = log_weights - log_weights.amax(dim=-2, keepdim=True)  # so that the largest quotient is 0, not -inf
        smallest = torch.finfo(log_weights.dtype).tiny  # below it, 1 / tau overflows
        if not isinstance(temperature, Tensor):
            check_temperature(temperature)
            if temperature < smallest:
                return self.mode()
            index = categorical(log_weights / temperature, dim=-2, num_groups=num_groups, generator=generator)
            return self._select(self.mean, index) + math.sqrt(temperature) * self._noise(index, num_groups, generator)
        tau = self._align(temperature)  # (..., 1)
        positive = tau >= smallest
        tempered = log_weights / torch.where(positive, tau, 1.0).unsqueeze(-1)
        index = categorical(tempered, dim=-2, num_groups=num_groups, generator=generator)  # (..., 1 or D)
        index = torch.where(positive, index, log_weights.max(dim=-2).indices)
        return self._select(self.mean, index) + tau.sqrt() * self._noise(index, num_groups, generator)

    def rsample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample as `sample`, with gradients with respect to weights, means and scales.

        The gradient marginalises over the component, so it is unbiased in the weights too; see
        `worldmodel.mixtures.reparameterization`. At tau = 0 it is the gradient of `mode`. Only
        first derivatives exist.

        Args:
            temperature: as in `sample`.
            num_groups: as in `sample`.
            generator: as in `sample`.

        Returns:
            (..., D).

        Raises:
            ValueError: as in `sample`.
        """
        with torch.no_grad():
            z = self.sample(temperature, num_groups=num_groups, generator=generator)
        tau = self._align(temperature if isinstance(temperature, Tensor) else z.new_full((), temperature))  # (..., 1)
        positive = tau >= torch.finfo(z.dtype).tiny
        safe_tau = torch.where(positive, tau, 1.0).unsqueeze(-1)  # (..., 1, 1)
        log_weights = self._stacked_log_weights()  # (..., K, 1 or D)
        log_weights = ((log_weights - log_weights.detach().amax(dim=-2, keepdim=True)) / safe_tau).log_softmax(dim=-2)
        log_weights = log_weights if self.per_dimension else log_weights[..., 0]
        if self.scale_tril is None:
            sample = reparameterize(z, log_weights, self.mean, log_scale=self.log_scale + 0.5 * safe_tau.log())
        else:
            sample = reparameterize(z, log_weights, self.mean, scale_tril=self.scale_tril * safe_tau.sqrt().unsqueeze(-1))
        return torch.where(positive, sample, self.mode())

    def entropy(self, num_samples: int = 1000, *, generator: Source = None) -> tuple[Tensor, Tensor]:
        """Estimate the differential entropy -E[log p(x)] by Monte Carlo.

        Args:
            num_samples: number N of samples per mixture, at least 2.
            generator: source of randomness, on the device of the parameters.

        Returns:
            The estimate in nats and its standard error, each (...).

        Raises:
            ValueError: if ``num_samples`` is below 2.
        """
        num_samples = check_integer(num_samples, "num_samples", least=2)
        surprise = torch.stack([-self.log_prob(self.sample(generator=generator)) for _ in range(num_samples)])
        return surprise.mean(dim=0), surprise.std(dim=0) / math.sqrt(num_samples)

    def _stacked_log_weights(self) -> Tensor:
        """Return the log-weights as (..., K, 1) if joint, (..., K, D) if per dimension."""
        return self.log_weights if self.per_dimension else self.log_weights.unsqueeze(-1)

    def _weighted_log_prob(self, x: Tensor) -> Tensor:
        """Return log(pi_k p_k(x)): (..., K, 1) if joint, (..., K, D) if per dimension."""
        self._check_event(x)
        deviation = x.unsqueeze(-2) - self.mean  # (..., K, D)
        if self.scale_tril is None:
            standardised, log_diagonal = deviation * (-self.log_scale).exp(), self.log_scale
        else:
            tril = self.scale_tril.expand(*deviation.shape, self.dim)
            standardised = torch.linalg.solve_triangular(tril, deviation.unsqueeze(-1), upper=False)[..., 0]
            log_diagonal = self.scale_tril.diagonal(dim1=-2, dim2=-1).log()
        if self.per_dimension:
            misfit = torch.addcmul(log_diagonal, standardised, standardised, value=0.5)  # (..., K, D)
            return self.log_weights - HALF_LOG_TWO_PI - misfit
        # Summed before they are added, so that autograd keeps few tensors of the large shape (..., K, D).
        square, volume = torch.linalg.vecdot(standardised, standardised), log_diagonal.sum(dim=-1)  # (..., K)
        return (self.log_weights - volume - self.dim * HALF_LOG_TWO_PI - 0.5 * square).unsqueeze(-1)

    def _select(self, parameter: Tensor, index: Tensor) -> Tensor:
        """Select component ``index`` (..., 1 or D) of ``parameter`` (..., K, D): (..., D)."""
        return parameter.gather(-2, index.expand(*self.batch_shape, self.dim).unsqueeze(-2))[..., 0, :]

    def _noise(self, index: Tensor, num_groups: int, generator: Source) -> Tensor:
        """Sample zero-mean noise from the components ``index`` (..., 1 or D): (..., D)."""
        epsilon = shared_draws(self.mean[..., 0, :], num_groups, lambda noise: fill_normal(noise, generator))
        if self.scale_tril is None:
            return self._select(self.log_scale, index).exp() * epsilon
        chosen = index.reshape(*self.batch_shape, 1, 1, 1).expand(*self.batch_shape, 1, self.dim, self.dim)
        factor = self.scale_tril.gather(-3, chosen)[..., 0, :, :]  # (..., D, D)
        return (factor * epsilon.unsqueeze(-2)).sum(dim=-1)  # not @: autocast would use half precision

    def _check_event(self, x: Tensor) -> None:
        expected = (*self.batch_shape, self.dim)
        if x.shape[max(0, x.ndim - len(expected)) :] != expected:
            raise ValueError(f"x: expected shape {expected}, got {tuple(x.shape)}")

    def _align(self, temperature: Tensor) -> Tensor:
        """Reshape a temperature, whose shape is a prefix of the batch shape, to (..., 1)."""
        if temperature.shape != self.batch_shape[: temperature.ndim]:
            raise ValueError(
                f"temperature: expected a shape that is a prefix of the batch shape {tuple(self.batch_shape)}, "
                f"got {tuple(temperature.shape)}"
            )
        missing = len(self.batch_shape) - temperature.ndim + 1
        return temperature.to(self.mean.dtype).reshape(*temperature.shape, *(1,) * missing)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert tensors in half precision to float32; return others unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _expand(log_scale: Tensor, shape: torch.Size) -> Tensor:
    try:
        return log_scale.expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"log_scale: expected a shape that broadcasts to {tuple(shape)}, got {tuple(log_scale.shape)}"
        ) from error
