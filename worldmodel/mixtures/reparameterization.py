r"""Gradients through samples from Gaussian mixtures, by implicit reparameterisation.

A sample z from a one-dimensional mixture with CDF F solves :math:`F(z; \theta) = u` for a uniform
u. With u fixed, its derivative is

.. math:: dz / d\theta = -(\partial F / \partial \theta) / p(z)

(Graves 2016; Figurnov et al. 2018). This marginalises over the component from which z was sampled,
so the gradient of an expectation is unbiased in the weights too, without a relaxation. (With a
fixed component the weights would have no gradient; a straight-through estimator would be biased.)
For the mean and sigma of component k with responsibility r_k, the derivatives are :math:`r_k` and
:math:`r_k (z - \mu_k) / \sigma_k`.

In D dimensions, F is replaced by the conditional CDFs :math:`F_d(z_d | z_{<d}) = \sum_k w_{kd}
\Phi(y_{kd}) = u_d`, with :math:`w_{kd} \propto \pi_k \prod_{j<d} N_{kj}` and the standardised
deviation :math:`y_k = L_k^{-1} (z - \mu_k)`. They form a triangular system. In the per-dimension
factorisation the dimensions are independent.

The cost is variance. The gradient of a weight comes from samples between the components. As the
components move apart, these samples become rarer and their gradients larger; the variance grows as
exp(distance^2 / 8 sigma^2).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def reparameterize(
    z: Tensor, log_weights: Tensor, mean: Tensor, *, log_scale: Tensor | None = None, scale_tril: Tensor | None = None
) -> Tensor:
    """Return the samples ``z`` with gradients with respect to the parameters of the mixture.

    Only first derivatives exist; differentiating twice raises a RuntimeError. The gradient with
    respect to ``log_weights`` assumes that the weights stay normalised, so it sums to 0 over K.

    Args:
        z: (..., D) samples from the mixture; an existing gradient is dropped.
        log_weights: (..., K) if joint, (..., K, D) if per dimension; normalised over K.
        mean: (..., K, D).
        log_scale: (..., K, D) log of the standard deviations. Pass either this or ``scale_tril``.
        scale_tril: (..., K, D, D) Cholesky factors; joint only.

    Returns:
        (..., D), equal to ``z``.
    """
    return _Pathwise.apply(z, log_weights, mean, log_scale, scale_tril)


class _Pathwise(torch.autograd.Function):
    """Forward pass: identity in z. Backward pass: chain rule through the conditional CDFs."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, log_weights: Tensor, mean: Tensor, log_scale: Tensor | None, scale_tril: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(z, log_weights, mean, log_scale, scale_tril)
        return z.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradient.device.type, enabled=False):
            return None, *_backward(gradient, *ctx.saved_tensors)


def _backward(
    gradient: Tensor, z: Tensor, log_weights: Tensor, mean: Tensor, log_scale: Tensor | None, scale_tril: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the gradients of log_weights, mean, log_scale and scale_tril from that of z."""
    joint = log_weights.ndim < mean.ndim
    deviation = z.unsqueeze(-2) - mean  # (..., K, D)
    if log_scale is not None:
        inverse, log_diagonal = None, log_scale
        y = deviation * (-log_scale).exp()
    else:
        assert scale_tril is not None
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand_as(scale_tril)
        inverse = torch.linalg.solve_triangular(scale_tril, identity, upper=False)  # (..., K, D, D)
        y = (inverse * deviation.unsqueeze(-2)).sum(dim=-1)
        log_diagonal = scale_tril.diagonal(dim1=-2, dim2=-1).log()
    log_density = -0.5 * y.square() - log_diagonal - 0.5 * math.log(2 * math.pi)  # (..., K, D)
    prior = log_weights.unsqueeze(-1) + _before(log_density) if joint else log_weights
    log_prior = prior.log_softmax(dim=-2)  # log P(k | z_{<d})
    log_p = (log_prior + log_density).logsumexp(dim=-2, keepdim=True)  # log p(z_d | z_{<d})
    weight = (log_prior + log_density - log_p).exp() * log_diagonal.exp()  # (dF_d / dy_kd) / p_d
    transport = _transport(y, log_prior, log_p)  # (dF_d / dlog w_kd) / p_d
    v = _solve(gradient, weight, transport, y, log_diagonal, inverse) if joint else gradient
    weighted = transport * v.unsqueeze(-2)
    later = _after(weighted) if joint else torch.zeros_like(weighted)  # through log w_ke of all e > d
    by_y = weight * v.unsqueeze(-2) - y * later
    by_log_weights = -weighted.sum(dim=-1) if joint else -weighted
    if inverse is None:
        return by_log_weights, by_y * (-log_diagonal).exp(), by_y * y + later, None
    by_mean = (inverse * by_y.unsqueeze(-1)).sum(dim=-2)
    by_tril = (by_mean.unsqueeze(-1) * y.unsqueeze(-2)).tril() + torch.diag_embed(later * (-log_diagonal).exp())
    return by_log_weights, by_mean, None, by_tril


def _transport(y: Tensor, log_prior: Tensor, log_p: Tensor) -> Tensor:
    """Return w_k (Phi(y_k) - F) / p, computed in the tail of z to avoid cancellation."""
    left, right = (log_prior + torch.special.log_ndtr(side) - log_p for side in (y, -y))
    on_left = left.logsumexp(dim=-2, keepdim=True) <= right.logsumexp(dim=-2, keepdim=True)
    largest = 0.5 * math.log(torch.finfo(y.dtype).max)  # keeps the result finite where p underflows
    part = torch.where(on_left, left, right).clamp(max=largest).exp()
    centred = part - log_prior.exp() * part.sum(dim=-2, keepdim=True)
    return torch.where(on_left, centred, -centred)


def _solve(
    gradient: Tensor, weight: Tensor, transport: Tensor, y: Tensor, log_diagonal: Tensor, inverse: Tensor | None
) -> Tensor:
    """Solve J^T v = gradient with J_de = (dF_d / dz_e) / p_d, unit lower triangular: v (..., D)."""
    if inverse is None:
        jacobian = -transport.mT @ (y * (-log_diagonal).exp())  # (..., D, D); only the part below the diagonal is used
    else:
        earlier = _before((y.unsqueeze(-1) * inverse).mT).mT  # (..., K, D, D): -dlog w_kd / dz_e
        jacobian = (weight.unsqueeze(-1) * inverse - transport.unsqueeze(-1) * earlier).sum(dim=-3)
    v = torch.linalg.solve_triangular(jacobian.mT, gradient.unsqueeze(-1), upper=True, unitriangular=True)
    return v[..., 0]


def _before(x: Tensor) -> Tensor:
    """Sum over all earlier entries of the last dimension, excluding the entry itself."""
    return functional.pad(x[..., :-1].cumsum(dim=-1), (1, 0))


def _after(x: Tensor) -> Tensor:
    """Sum over all later entries of the last dimension, excluding the entry itself."""
    return _before(x.flip(-1)).flip(-1)
