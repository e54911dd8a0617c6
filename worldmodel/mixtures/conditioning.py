r"""Distributions of a part of a vector: the marginal of the numbers that were observed, and the rest given these.

For a mixture of Gaussians with weights :math:`\pi_k`, means :math:`\mu_k` and covariances :math:`\Sigma_k`, and a vector whose
numbers o are observed and m are missing (Bishop 2006, section 2.3),

.. math:: p(x_o) = \sum_k \pi_k N(x_o; \mu_{k,o}, \Sigma_{k,oo}), \qquad
    p(x_m \mid x_o) = \sum_k \gamma_k N\bigl(x_m; \mu_{k,m} + \Sigma_{k,mo} \Sigma_{k,oo}^{-1} (x_o - \mu_{k,o}),\,
    \Sigma_{k,mm} - \Sigma_{k,mo} \Sigma_{k,oo}^{-1} \Sigma_{k,om}\bigr),

where :math:`\gamma_k \propto \pi_k N(x_o; \mu_{k,o}, \Sigma_{k,oo})`: a component gains weight by its likelihood of what was
observed. In a mixture per dimension, and in the discrete kinds of `worldmodel.mixtures.discrete_heads`, all variables are
independent, so their marginals are factors of the likelihood and their conditionals are their marginals.

Each row of a batch may have another mask. Values of ``x`` that are not observed are never used; they may be NaN.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from worldmodel.mixtures.autoregressive import AutoregressiveMixture
from worldmodel.mixtures.composite_head import CompositeDistribution
from worldmodel.mixtures.discrete_heads import Bits, OneHot
from worldmodel.mixtures.gaussian import HALF_LOG_TWO_PI, GaussianMixture
from worldmodel.mixtures.member_mixture import MemberMixture
from worldmodel.mixtures.unchanged_head import UnchangedOrDensity
from worldmodel.rng import Source

ONE_KIND = "nll_per_dim"  # name of the likelihood of a z that is one density


@singledispatch
def marginal_log_prob(distribution: Any, x: Tensor, observed: Tensor) -> Tensor:
    """Log-density of the observed numbers of ``x``, in nats; 0 where nothing was observed.

    Args:
        distribution: batch shape (...).
        x: (..., D).
        observed: (..., D) bool; all numbers of a one-hot choice are observed or none.

    Returns:
        (...).

    Raises:
        TypeError: if the distribution has no marginals in closed form.
    """
    raise TypeError(f"distribution: expected marginals in closed form, as mixtures have them, got {_name(distribution)}")


@singledispatch
def condition(distribution: Any, x: Tensor, observed: Tensor) -> Any:
    """Return the distribution given the observed numbers of ``x``.

    Only its missing numbers are meant; see `sample_given` and `mean_given`. Their log-density is ``distribution.log_prob(x)``
    minus `marginal_log_prob`. In a `GaussianMixture` the observed numbers become ``x`` without variance.

    Args:
        distribution: batch shape (...).
        x: (..., D).
        observed: (..., D) bool.

    Raises:
        TypeError: if the distribution has no conditionals in closed form.
    """
    raise TypeError(f"distribution: expected conditionals in closed form, as mixtures have them, got {_name(distribution)}")


@torch.no_grad()
def sample_given(distribution: Any, x: Tensor, observed: Tensor, *, generator: Source = None) -> Tensor:
    """Return ``x`` (..., D) with samples of the missing numbers given the observed ones, which stay as they are bit for bit."""
    return torch.where(observed, x, condition(distribution, x, observed).sample(generator=generator).to(x.dtype))


@torch.no_grad()
def mean_given(distribution: Any, x: Tensor, observed: Tensor) -> Tensor:
    """Return ``x`` (..., D) with the means of the missing numbers given the observed ones; probabilities, of choices."""
    return torch.where(observed, x, condition(distribution, x, observed).expectation().to(x.dtype))


@condition.register
def _(distribution: GaussianMixture, x: Tensor, observed: Tensor) -> GaussianMixture:
    if distribution.per_dimension:
        log_weights = distribution.log_weights
    else:
        log_weights = _evidence(distribution, x, observed).log_softmax(dim=-1)
    seen = observed.unsqueeze(-2)  # (..., 1, D)
    given = x.unsqueeze(-2).to(distribution.mean.dtype)
    if distribution.scale_tril is None:
        log_scale = torch.where(seen, -torch.inf, distribution.log_scale)
        return GaussianMixture(log_weights, torch.where(seen, given, distribution.mean), log_scale)
    covariance, factor, residual = _observed_part(distribution, x, observed)
    both = (~seen).unsqueeze(-1) & seen.unsqueeze(-2)  # (..., 1, D, D): missing row, observed column
    cross = torch.where(both, covariance, 0.0)
    shift = (cross @ torch.cholesky_solve(residual.unsqueeze(-1), factor))[..., 0]
    explained = cross @ torch.cholesky_solve(cross.mT, factor)
    missing = (~seen).unsqueeze(-1) & (~seen).unsqueeze(-2)
    identity = torch.eye(distribution.dim, dtype=covariance.dtype, device=covariance.device)
    rest = torch.linalg.cholesky(torch.where(missing, covariance - explained, identity))
    mean = torch.where(seen, given, distribution.mean + shift.to(distribution.mean.dtype))
    scale_tril = torch.where(missing, rest, 0.0).to(distribution.mean.dtype)
    return GaussianMixture(log_weights, mean, scale_tril=scale_tril)


@condition.register(OneHot)
@condition.register(Bits)
@condition.register(UnchangedOrDensity)
def _(distribution: Any, x: Tensor, observed: Tensor) -> Any:
    return distribution


@condition.register
def _(distribution: MemberMixture, x: Tensor, observed: Tensor) -> MemberMixture:
    return MemberMixture(
        [condition(member, x, observed) for member in distribution.members],
        _member_evidence(distribution, x, observed).log_softmax(dim=-1),
    )


@condition.register
def _(distribution: CompositeDistribution, x: Tensor, observed: Tensor) -> CompositeDistribution:
    return distribution.replaced([condition(part, x[..., own], observed[..., own]) for _, part, own in distribution.parts])


def marginal_log_probs(distribution: Any, x: Tensor, observed: Tensor) -> dict[str, Tensor]:
    """Return `marginal_log_prob` by kind, as `log_probs_by_kind` does: (...) each.

    Args:
        distribution: of all of z.
        x: (..., D).
        observed: (..., D) bool.
    """
    if isinstance(distribution, MemberMixture):
        each = [marginal_log_probs(member, x, observed) for member in distribution.members]
        return distribution.chained(each)
    if isinstance(distribution, CompositeDistribution):
        parts = distribution.parts
        return {name: marginal_log_prob(part, x[..., own], observed[..., own]) for name, part, own in parts}
    return {ONE_KIND: marginal_log_prob(distribution, x, observed)}


def count_observed(distribution: Any, observed: Tensor) -> dict[str, Tensor]:
    """Return the number of observed random variables by kind, (...) int64 each; a choice counts as one.

    Args:
        distribution: of all of z.
        observed: (..., D) bool.
    """
    if isinstance(distribution, MemberMixture):
        return count_observed(distribution.members[0], observed)
    if isinstance(distribution, CompositeDistribution):
        return {name: _variables(part, observed[..., own]).sum(dim=-1) for name, part, own in distribution.parts}
    return {ONE_KIND: observed.sum(dim=-1)}


@singledispatch
def log_prob_of_numbers(distribution: Any, x: Tensor, observed: Tensor) -> Tensor:
    """Log-density of each observed number alone, in nats: its marginal, whatever the other numbers are.

    Of an `AutoregressiveMixture` it is the density of each number given those before it, and a number after a missing one
    counts as missing.

    Args:
        distribution: batch shape (...).
        x: (..., D).
        observed: (..., D) bool.

    Returns:
        (..., D), NaN where nothing was observed. A choice is at its first number, and the others of it are 0; a number that is
        copied has 0 if it stayed, else -inf.

    Raises:
        TypeError: if the distribution has no marginals in closed form.
    """
    raise TypeError(f"distribution: expected marginals in closed form, as mixtures have them, got {_name(distribution)}")


@log_prob_of_numbers.register
def _(distribution: GaussianMixture, x: Tensor, observed: Tensor) -> Tensor:
    log_weights = distribution.log_weights
    if not distribution.per_dimension:
        log_weights = log_weights.unsqueeze(-1).expand_as(distribution.mean)
    each = _each_number(GaussianMixture(log_weights, distribution.mean, distribution.log_scale))
    return torch.where(observed, each.log_prob(_known(x, observed).unsqueeze(-1)), torch.nan)


@log_prob_of_numbers.register
def _(distribution: AutoregressiveMixture, x: Tensor, observed: Tensor) -> Tensor:
    return log_prob_of_numbers(distribution.conditionals(_known(x, observed)), x, observed.cumprod(dim=-1).bool())


@log_prob_of_numbers.register(Bits)
@log_prob_of_numbers.register(UnchangedOrDensity)
def _(distribution: Bits | UnchangedOrDensity, x: Tensor, observed: Tensor) -> Tensor:
    return torch.where(observed, distribution.log_probs(_known(x, observed)), torch.nan)


@log_prob_of_numbers.register
def _(distribution: OneHot, x: Tensor, observed: Tensor) -> Tensor:
    found = torch.where(observed, torch.zeros_like(x), torch.nan)
    found[..., distribution.first_numbers] += distribution.log_probs(_known(x, observed))
    return found


@log_prob_of_numbers.register
def _(distribution: MemberMixture, x: Tensor, observed: Tensor) -> Tensor:
    each = torch.stack([log_prob_of_numbers(member, x, observed) for member in distribution.members], dim=-1)  # (..., D, K)
    return (distribution.log_weights.unsqueeze(-2) + each).logsumexp(dim=-1)


@log_prob_of_numbers.register
def _(distribution: CompositeDistribution, x: Tensor, observed: Tensor) -> Tensor:
    found = torch.where(observed, torch.where(x == distribution.origin, 0.0, -torch.inf), torch.nan).to(x.dtype)
    for _, part, own in distribution.parts:
        found[..., own] = log_prob_of_numbers(part, x[..., own], observed[..., own])
    return found


@marginal_log_prob.register
def _(distribution: GaussianMixture, x: Tensor, observed: Tensor) -> Tensor:
    if distribution.per_dimension:
        return torch.where(observed, _each_number(distribution).log_prob(_known(x, observed).unsqueeze(-1)), 0.0).sum(dim=-1)
    return torch.logsumexp(_evidence(distribution, x, observed), dim=-1)


@marginal_log_prob.register(OneHot)
@marginal_log_prob.register(Bits)
@marginal_log_prob.register(UnchangedOrDensity)
def _(distribution: OneHot | Bits | UnchangedOrDensity, x: Tensor, observed: Tensor) -> Tensor:
    return torch.where(_variables(distribution, observed), distribution.log_probs(_known(x, observed)), 0.0).sum(dim=-1)


@marginal_log_prob.register
def _(distribution: CompositeDistribution, x: Tensor, observed: Tensor) -> Tensor:
    nothing = torch.zeros_like(x[..., 0])
    return torch.stack([nothing, *marginal_log_probs(distribution, x, observed).values()]).sum(dim=0)


@marginal_log_prob.register
def _(distribution: MemberMixture, x: Tensor, observed: Tensor) -> Tensor:
    return _member_evidence(distribution, x, observed).logsumexp(dim=-1)


def _member_evidence(mixture: MemberMixture, x: Tensor, observed: Tensor) -> Tensor:
    """Return log(w_k p_k(x_o)) of the members of an ensemble, (..., K)."""
    each = [marginal_log_prob(member, x, observed) for member in mixture.members]
    return mixture.log_weights + torch.stack(each, dim=-1)


def _variables(distribution: Any, observed: Tensor) -> Tensor:
    """Return which random variables were observed, (..., N); a choice is one."""
    return distribution.chosen(observed) if isinstance(distribution, OneHot) else observed


def _known(x: Tensor, observed: Tensor) -> Tensor:
    return torch.where(observed, x, 0.0)  # a finite number, as a gradient of 0 times NaN is NaN


def _each_number(mixture: GaussianMixture) -> GaussianMixture:
    """Return the mixtures of each number as a batch (..., D) of mixtures over one number."""
    return GaussianMixture(mixture.log_weights.mT, mixture.mean.mT.unsqueeze(-1), mixture.log_scale.mT.unsqueeze(-1))


def _evidence(mixture: GaussianMixture, x: Tensor, observed: Tensor) -> Tensor:
    """Return log(pi_k p_k(x_o)) of a joint mixture, (..., K)."""
    if mixture.scale_tril is None:
        deviation = (_known(x, observed).unsqueeze(-2) - mixture.mean) * (-mixture.log_scale).exp()
        each = -0.5 * deviation.square() - mixture.log_scale - HALF_LOG_TWO_PI  # (..., K, D)
        return mixture.log_weights + torch.where(observed.unsqueeze(-2), each, 0.0).sum(dim=-1)
    _, factor, residual = _observed_part(mixture, x, observed)
    standardised = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False)[..., 0]
    volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    count = observed.double().sum(dim=-1, keepdim=True)
    found = -0.5 * standardised.square().sum(dim=-1) - volume - HALF_LOG_TWO_PI * count
    return mixture.log_weights + found.to(mixture.log_weights.dtype)


def _observed_part(mixture: GaussianMixture, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what conditioning on the observed numbers needs, in float64.

    Returns:
        (..., K, D, D) the covariances; the Cholesky factors of their observed part, with a unit diagonal for the missing
        numbers; and (..., K, D) the residuals, 0 for the missing numbers.
    """
    assert mixture.scale_tril is not None
    tril = mixture.scale_tril.double()
    covariance = tril @ tril.mT
    seen = observed.unsqueeze(-2)
    identity = torch.eye(mixture.dim, dtype=torch.float64, device=covariance.device)
    block = torch.where(seen.unsqueeze(-1) & seen.unsqueeze(-2), covariance, identity)
    residual = torch.where(seen, _known(x, observed).unsqueeze(-2).double() - mixture.mean.double(), 0.0)
    return covariance, torch.linalg.cholesky(block), residual


def _name(distribution: Any) -> str:
    return f"{type(distribution).__name__}; take the latent head 'MixtureHead'"
