r"""M's heads and losses in one function with a hand-written backward, a chunk of steps at a time.

The head of M gives 3 K D numbers per step, and autograd would keep a dozen tensors of that size for all B T steps: gigabytes at
the paper's Doom size, most of whose time is spent on page faults and memory. Here loss and gradient of a chunk are computed
together while its numbers are in the cache, and only the gradient with respect to the features and the weights is kept. The
loss is computed in float32 or better; the matrix products are in half precision under autocast.

For one number x with weights :math:`\pi = softmax(l)`, means m and variances :math:`v = e^{2s} + \sigma_{min}^2`, let
:math:`a_k = l_k - \frac12 (x - m_k)^2 / v_k - \frac12 \log v_k` and :math:`\gamma = softmax(a)`, the responsibilities; where
D numbers share their components (joint mixtures), a sums the terms of all. Then

.. math:: -\log p(x) = \mathrm{lse}(l) - \mathrm{lse}(a) + \tfrac12 \log 2 \pi, \qquad
    \partial l_k = \pi_k - \gamma_k, \quad \partial m_k = -\gamma_k \frac{x - m_k}{v_k}, \quad
    \partial s_k = \gamma_k \frac{e^{2 s_k}}{v_k} \left(1 - \frac{(x - m_k)^2}{v_k}\right),

with :math:`\tfrac12 \log 2 \pi` for each number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from worldmodel.mixtures.gaussian import HALF_LOG_TWO_PI
from worldmodel.mixtures.heads import Factorization, MixtureHead, NoiseType

CHUNK = {"cpu": 2**19}  # outputs of the heads in a chunk: what fits in a core's cache
LARGE_CHUNK = 2**25  # on a GPU, where each small operation costs a launch
LARGEST_LOG_VARIANCE = 80.0  # of the network's raw output: e^80 is still finite in float32


@dataclass(frozen=True)
class Targets:
    """What the outputs of the stacked linear heads are compared with, in their units, and how the outputs are to be read.

    Args:
        latent: (N, D): the outputs are logits, (K, D) or of joint mixtures K, means (K, D) and raw log-scales (K, D).
        reward: (N, 1): 3 outputs, of which the first, the logit of the only component, means nothing; None without this head.
        terminated: (N,) 0 or 1: one output, the log-odds; None without this head.
        num_components: K.
        min_scale: floor of the sigmas of latent and reward.
        termination_weight: weight of the steps that terminate.
        joint: whether the latent's D numbers share their components.
        termination_gradient: how much of the termination's gradient goes on into the features.
    """

    latent: Tensor
    reward: Tensor | None
    terminated: Tensor | None
    num_components: int
    min_scale: float
    termination_weight: float
    joint: bool = False
    termination_gradient: float = 1.0


def applies(head: MixtureHead) -> bool:
    """Whether each component of a head's mixtures has a sigma for each dimension, which is what is computed here."""
    if head.factorization is Factorization.JOINT:
        return head.noise_type is NoiseType.DIAGONAL
    return head.noise_type not in (NoiseType.ISOTROPIC_ACROSS_CLUSTERS, NoiseType.FIXED)


def mixture_outputs(raw: Tensor, num_components: int, dim: int, *, joint: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the outputs (N, O) of a head: logits (N, K, D), or (N, K, 1) if joint, means and raw log-scales (N, K, D)."""
    sizes, shape = _output_sizes(num_components, dim, joint), (num_components, -1)
    logits, mean, raw_log_scale = raw.split(sizes, dim=1)
    return logits.unflatten(1, shape), mean.unflatten(1, shape), raw_log_scale.unflatten(1, shape)


def _output_sizes(num_components: int, dim: int, joint: bool) -> list[int]:
    """How many logits, means and raw log-scales a head puts out."""
    return [num_components * (1 if joint else dim), num_components * dim, num_components * dim]


def heads_loss(features: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Sum the losses of the heads over the steps that count.

    Args:
        features: (M, F) what the heads see.
        rows: (N,) indices of the features that count, each once at most.
        weight: (O, F) weights of all heads, stacked.
        bias: (O,).
        targets: of those N steps.

    Returns:
        The sum over steps of latent / D + reward + termination, in nats, which can be differentiated once; and the three sums
        (3,) without gradient, the latent's over D, zero for a missing head.
    """
    total, terms = _HeadsLoss.apply(features, rows, weight, bias, targets, torch.is_grad_enabled())
    return total, terms


def mixture_nll(logits: Tensor, mean: Tensor, raw_log_scale: Tensor, x: Tensor, min_scale: float, *, gradient: bool) -> Tensor:
    """Sum -log p(x) over everything, in nats, and put its gradient with respect to the first three into them where asked.

    Args:
        logits: (N, K, D) of mixtures per dimension, or (N, K, 1) of joint ones.
        mean: (N, K, D).
        raw_log_scale: (N, K, D).
        x: (N, D).
        min_scale: floor of the sigmas.
        gradient: whether to overwrite the outputs with the gradient.
    """
    free = (2 * raw_log_scale).clamp_(max=LARGEST_LOG_VARIANCE).exp_()  # the variance without its floor
    variance = free + min_scale**2
    deviation = mean - x.unsqueeze(1)
    pull = deviation / variance
    square = deviation.mul_(pull)
    log_prior, prior = _normalise(logits)
    misfit = variance.log().add_(square)
    if logits.shape[2] < misfit.shape[2]:
        misfit = misfit.sum(dim=2, keepdim=True)
    log_evidence, posterior = _normalise(torch.add(logits, misfit, alpha=-0.5))
    if gradient:
        torch.sub(prior, posterior, out=logits)
        torch.mul(posterior, pull, out=mean)
        by_scale = free.div_(variance).mul_(posterior)
        torch.addcmul(by_scale, by_scale, square, value=-1, out=raw_log_scale)
    return (log_prior - log_evidence).sum() + x.numel() * HALF_LOG_TWO_PI


def _normalise(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logsumexp (N, 1, D) and softmax (N, K, D) over K of (N, K, D), or of (N, K, 1)."""
    largest = logits.amax(dim=1, keepdim=True)
    weights = (logits - largest).exp_()
    total = weights.sum(dim=1, keepdim=True)
    return total.log().add_(largest), weights.div_(total)


def _termination(logit: Tensor, terminated: Tensor, weight: float, *, gradient: bool) -> Tensor:
    """Sum of the weighted cross-entropy over steps (N,), and its gradient put into ``logit`` (N,) where asked."""
    pos_weight = logit.new_tensor(weight)
    loss = functional.binary_cross_entropy_with_logits(logit, terminated, pos_weight=pos_weight, reduction="sum")
    if gradient:
        logit.sigmoid_().mul_(1 + (weight - 1) * terminated).sub_(weight * terminated)
    return loss


def _losses(raw: Tensor, targets: Targets, part: slice, gradient: bool) -> Tensor:
    """The three sums (3,) over the steps ``part``; the gradient of their weighed sum replaces the outputs ``raw`` (n, O)."""
    terms, outputs = raw.new_zeros(3), raw
    kinds = (targets.latent, targets.num_components, targets.joint), (targets.reward, 1, False)
    for number, (target, k, joint) in enumerate(kinds):
        if target is not None:
            dim = target.shape[-1]
            size = sum(_output_sizes(k, dim, joint))
            own, outputs = outputs[:, :size], outputs[:, size:]
            parameters = mixture_outputs(own, k, dim, joint=joint)
            terms[number] = mixture_nll(*parameters, target[part], targets.min_scale, gradient=gradient)
            if gradient:
                own /= dim  # the latent's loss is weighed per dimension
    if targets.terminated is not None:
        terms[2] = _termination(outputs[:, 0], targets.terminated[part], targets.termination_weight, gradient=gradient)
    return terms


class _HeadsLoss(torch.autograd.Function):
    """`heads_loss`; the gradient is computed with the loss, as its factor from above is one number."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, targets: Targets, gradient: bool
    ) -> tuple[Tensor, Tensor]:
        kind = features.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        cast = weight.to(dtype)
        transposed = cast.t().contiguous()  # products with a transposed view are slower in half precision
        by_features, by_weight, by_bias = (torch.zeros_like(x) if gradient else x for x in (features, weight, bias))
        terms = bias.new_zeros(3)
        size = max(1, CHUNK.get(kind, LARGE_CHUNK) // len(weight))
        for begin in range(0, len(rows), size):
            part = slice(begin, begin + size)
            seen = features.index_select(0, rows[part]).to(dtype)  # (n, F)
            raw = (seen @ transposed).to(bias.dtype).add_(bias)  # (n, O)
            terms += _losses(raw, targets, part, gradient)
            if gradient:
                by_bias += raw.sum(dim=0)
                slope = raw.to(dtype)
                by_weight += slope.t() @ seen
                if targets.terminated is not None:
                    slope[:, -1] *= targets.termination_gradient  # after what the head itself learns from
                by_features.index_copy_(0, rows[part], (slope @ cast).to(features.dtype))
        if gradient:
            ctx.save_for_backward(by_features, by_weight, by_bias)
        ctx.mark_non_differentiable(terms)
        return terms[0] / targets.latent.shape[-1] + terms[1] + terms[2], terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_features, by_weight, by_bias = ctx.saved_tensors
        return by_features * factor.to(by_features.dtype), None, by_weight * factor, by_bias * factor, None, None
