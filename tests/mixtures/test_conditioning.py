"""Marginals and conditionals of mixtures against the textbook formula, SciPy and `torch.distributions`."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from worldmodel.mixtures import (
    AutoregressiveMixture,
    Bits,
    CompositeDistribution,
    GaussianMixture,
    MemberMixture,
    OneHot,
    Segments,
    UnchangedOrDensity,
    condition,
    count_observed,
    log_prob_of_numbers,
    marginal_log_prob,
    marginal_log_probs,
    mean_given,
    sample_given,
)

EXACT = {"rtol": 0, "atol": 1e-10}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def full_mixture(seed, components, dim):
    rng = np.random.default_rng(seed)
    tril = np.tril(rng.normal(size=(components, dim, dim)), -1) + np.stack(
        [np.diag(rng.uniform(0.2, 2, size=dim)) for _ in range(components)]
    )
    log_weights = torch.tensor(rng.normal(size=components)).log_softmax(dim=-1)
    return GaussianMixture(log_weights, torch.tensor(rng.normal(size=(components, dim))), scale_tril=torch.tensor(tril))


def repeated(mixture, count):
    parameters = (part.expand(count, *part.shape) for part in (mixture.log_weights, mixture.mean, mixture.scale_tril))
    log_weights, mean, scale_tril = parameters
    return GaussianMixture(log_weights, mean, scale_tril=scale_tril)


def formula(mixture, x, seen):
    """log p(x_o), and weights, means and covariances of p(x_m | x_o), by the textbook."""
    mean, cov = mixture.mean.numpy(), (mixture.scale_tril @ mixture.scale_tril.mT).numpy()
    o, m = np.flatnonzero(seen), np.flatnonzero(~seen)
    evidence, means, covariances = mixture.log_weights.numpy().copy(), [], []
    for k in range(len(mean)):
        inverse = np.linalg.inv(cov[k][np.ix_(o, o)])
        gain = cov[k][np.ix_(m, o)] @ inverse
        if len(o):
            evidence[k] += multivariate_normal(mean[k][o], cov[k][np.ix_(o, o)]).logpdf(x[o])
        means.append(mean[k][m] + gain @ (x[o] - mean[k][o]))
        covariances.append(cov[k][np.ix_(m, m)] - gain @ cov[k][np.ix_(o, m)])
    total = logsumexp(evidence)
    return total, np.exp(evidence - total), np.array(means), np.array(covariances)


@pytest.mark.parametrize("seed", range(60))
def test_full_covariances_are_marginalised_and_conditioned_as_the_formula_says(seed):
    rng = np.random.default_rng(seed)
    components, dim = rng.integers(1, 5), rng.integers(1, 6)
    mixture = full_mixture(seed, components, dim)
    seen, x = rng.random(dim) < 0.5, rng.normal(size=dim)
    total, weights, means, covariances = formula(mixture, x, seen)
    given_x, observed = torch.tensor(np.where(seen, x, np.nan)), torch.tensor(seen)
    np.testing.assert_allclose(marginal_log_prob(mixture, given_x, observed).item(), total, **EXACT)
    found = condition(mixture, given_x, observed)
    m = np.flatnonzero(~seen)
    np.testing.assert_allclose(found.log_weights.exp().numpy(), weights, **EXACT)
    np.testing.assert_allclose(found.mean.numpy()[:, m], means, **EXACT)
    spread = (found.scale_tril @ found.scale_tril.mT).numpy()[:, m][:, :, m]
    np.testing.assert_allclose(spread, covariances, **EXACT)
    assert (found.sample(generator=generator()).numpy()[seen] == x[seen]).all()
    np.testing.assert_allclose(found.variance().numpy()[seen], 0.0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_diagonal_joint_mixture_is_a_full_one_without_correlation(seed):
    full = full_mixture(seed, 3, 4)
    log_scale = full.scale_tril.diagonal(dim1=-2, dim2=-1).log()
    diagonal = GaussianMixture(full.log_weights, full.mean, log_scale)
    full = GaussianMixture(full.log_weights, full.mean, scale_tril=torch.diag_embed(log_scale.exp()))
    x, observed = torch.randn(4, dtype=torch.float64, generator=generator(seed)), torch.tensor([True, False, True, False])
    torch.testing.assert_close(marginal_log_prob(diagonal, x, observed), marginal_log_prob(full, x, observed), **EXACT)
    one, other = (condition(mixture, x, observed) for mixture in (diagonal, full))
    torch.testing.assert_close(one.expectation(), other.expectation(), **EXACT)
    torch.testing.assert_close(one.variance(), other.variance(), **EXACT)


def test_the_marginal_of_a_mixture_per_dimension_is_that_of_torch():
    g = generator(1)
    logits, mean, log_scale = (torch.randn(7, 3, 4, dtype=torch.float64, generator=g) for _ in range(3))
    mixture = GaussianMixture(logits.log_softmax(dim=-2), mean, log_scale)
    x, observed = torch.randn(7, 4, dtype=torch.float64, generator=g), torch.rand(7, 4, generator=g) < 0.5
    each = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits.mT), torch.distributions.Normal(mean.mT, log_scale.mT.exp())
    ).log_prob(x)
    expected = (each * observed).sum(dim=-1)
    torch.testing.assert_close(marginal_log_prob(mixture, torch.where(observed, x, torch.nan), observed), expected, **EXACT)


def test_observed_and_missing_parts_multiply_to_the_whole():
    mixture = full_mixture(3, 3, 3)
    x, every = torch.randn(3, dtype=torch.float64, generator=generator(2)), torch.ones(3, dtype=torch.bool)
    some = torch.tensor([True, False, True])
    torch.testing.assert_close(marginal_log_prob(mixture, x, every), mixture.log_prob(x), **EXACT)
    assert marginal_log_prob(mixture, x, ~every) == pytest.approx(0, abs=1e-12)
    found = condition(mixture, x, some)
    rest = torch.logsumexp(
        found.log_weights
        - 0.5 * ((x[1] - found.mean[:, 1]) / found.scale_tril[:, 1, 1]) ** 2
        - found.scale_tril[:, 1, 1].log()
        - 0.5 * math.log(2 * math.pi),
        dim=0,
    )
    torch.testing.assert_close(rest, mixture.log_prob(x) - marginal_log_prob(mixture, x, some), **EXACT)


def test_samples_have_the_conditional_mean_and_covariance():
    mixture, x = full_mixture(5, 2, 3), torch.tensor([0.3, torch.nan, torch.nan], dtype=torch.float64)
    observed = ~x.isnan()
    found, many = condition(mixture, x, observed), 40_000
    batch = GaussianMixture(
        mixture.log_weights.expand(many, -1),
        mixture.mean.expand(many, -1, -1),
        scale_tril=mixture.scale_tril.expand(many, -1, -1, -1),
    )
    samples = sample_given(batch, x.expand(many, -1), observed.expand(many, -1), generator=generator(3))
    assert bool((samples[:, 0] == 0.3).all())
    error = 4 * found.variance().sqrt() / math.sqrt(many)
    assert bool(((samples.mean(dim=0) - found.expectation()).abs() <= error + 1e-12).all())
    torch.testing.assert_close(samples.var(dim=0)[1:], found.variance()[1:], rtol=0.05, atol=0)


def test_each_row_of_a_batch_has_its_own_mask():
    mixture = full_mixture(7, 3, 3)
    g = generator(4)
    x, observed = torch.randn(8, 3, dtype=torch.float64, generator=g), torch.rand(8, 3, generator=g) < 0.5
    batch = repeated(mixture, 8)
    rows = torch.stack([marginal_log_prob(mixture, one, mask) for one, mask in zip(x, observed, strict=True)])
    torch.testing.assert_close(marginal_log_prob(batch, x, observed), rows, **EXACT)
    means = torch.stack([condition(mixture, one, mask).expectation() for one, mask in zip(x, observed, strict=True)])
    torch.testing.assert_close(condition(batch, x, observed).expectation(), means, **EXACT)


def composite():
    g = generator(6)
    density = GaussianMixture(torch.zeros(5, 1), torch.randn(5, 1, 2, generator=g), torch.zeros(5, 1, 2))
    choices = OneHot(torch.randn(5, 5, generator=g), Segments([2, 3]))
    bits = Bits(torch.randn(5, 1, generator=g))
    zeros = torch.zeros(5, 1, 1)
    unchanged = UnchangedOrDensity(torch.randn(5, 1, generator=g), GaussianMixture(zeros, zeros, zeros), zeros[..., 0])
    parts = [("d", density, slice(0, 2)), ("c", choices, slice(2, 7)), ("b", bits, slice(7, 8)), ("u", unchanged, slice(8, 9))]
    return CompositeDistribution(parts, slice(9, 10), torch.full((5, 10), 0.5))


def test_kinds_are_independent_and_choices_count_as_one_variable():
    distribution = composite()
    x = distribution.sample(generator=generator(8))
    every = torch.ones(5, 10, dtype=torch.bool)
    for name, value in distribution.log_probs(x).items():
        torch.testing.assert_close(marginal_log_probs(distribution, x, every)[name], value)
    some = every.clone()
    some[:, 1] = some[:, 4:7] = some[:, 8] = False  # a number, the second choice, and the mostly unchanged number
    found = count_observed(distribution, some)
    assert {name: count.tolist() for name, count in found.items()} == {"d": [1] * 5, "c": [1] * 5, "b": [1] * 5, "u": [0] * 5}
    missing = torch.where(some, x, torch.nan)
    log_probs = marginal_log_probs(distribution, missing, some)
    first_choice = distribution.parts[1][1].log_probs(x[:, 2:7])[:, 0]
    torch.testing.assert_close(log_probs["c"], first_choice)
    assert bool((log_probs["u"] == 0).all())
    torch.testing.assert_close(marginal_log_prob(distribution, missing, some), sum(log_probs.values()))
    filled = sample_given(distribution, missing, some, generator=generator(9))
    assert bool((filled[some] == x[some]).all())
    assert not bool(filled.isnan().any())
    assert filled[:, 4:7].sum(dim=-1).tolist() == [1] * 5
    mean = mean_given(distribution, missing, some)
    assert bool((mean[some] == x[some]).all())
    torch.testing.assert_close(mean[:, 4:7], distribution.expectation()[:, 4:7])


def test_a_constant_that_is_missing_is_copied():
    distribution = composite()
    observed = torch.zeros(5, 10, dtype=torch.bool)
    filled = sample_given(distribution, torch.full((5, 10), torch.nan), observed, generator=generator(1))
    assert filled[:, 9].tolist() == [0.5] * 5


def members():
    rows = [repeated(full_mixture(seed, 2, 3), 6) for seed in (1, 2)]
    return MemberMixture(rows, torch.tensor([0.3, 0.7], dtype=torch.float64).log())


def test_an_ensemble_is_a_mixture_of_the_mixtures_of_its_members():
    ensemble, g = members(), generator(5)
    joined = [torch.cat(parts, dim=1) for parts in zip(*((m.mean, m.scale_tril) for m in ensemble.members), strict=True)]
    weights = [ensemble.log_weights[k] + member.log_weights for k, member in enumerate(ensemble.members)]
    whole = GaussianMixture(torch.cat(weights, dim=1), joined[0], scale_tril=joined[1])
    x, observed = torch.randn(6, 3, dtype=torch.float64, generator=g), torch.rand(6, 3, generator=g) < 0.5
    missing = torch.where(observed, x, torch.nan)
    torch.testing.assert_close(marginal_log_prob(ensemble, missing, observed), marginal_log_prob(whole, x, observed), **EXACT)
    torch.testing.assert_close(mean_given(ensemble, missing, observed), mean_given(whole, x, observed), **EXACT)
    each = log_prob_of_numbers(ensemble, missing, observed)
    torch.testing.assert_close(each, log_prob_of_numbers(whole, x, observed), equal_nan=True, **EXACT)
    kinds = MemberMixture([composite(), composite()], torch.tensor([0.5, 0.5]).log())
    value = composite().sample(generator=generator(8))
    some = torch.ones(5, 10, dtype=torch.bool)
    some[:, 1] = some[:, 4:7] = False
    total = marginal_log_prob(kinds, value, some)
    torch.testing.assert_close(sum(marginal_log_probs(kinds, value, some).values()), total)
    assert count_observed(kinds, some)["d"].tolist() == [1] * 5


def test_the_log_densities_of_numbers_are_their_marginals():
    mixture = repeated(full_mixture(2, 3, 3), 4)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator(3))
    observed = torch.tensor([True, False, True]).expand(4, 3)
    found = log_prob_of_numbers(mixture, x, observed)
    assert found.isnan().tolist() == [[False, True, False]] * 4
    alone = torch.tensor([True, False, False]).expand(4, 3)
    torch.testing.assert_close(found[:, 0], marginal_log_prob(mixture, x, alone), **EXACT)
    kinds = composite()
    value = kinds.sample(generator=generator(8))
    value[0, 9] = 2.0  # a constant that changed
    numbers = log_prob_of_numbers(kinds, value, torch.ones(5, 10, dtype=torch.bool))
    torch.testing.assert_close(numbers[1:].sum(dim=-1), kinds.log_prob(value)[1:])
    assert numbers[:, 9].tolist() == [-math.inf, 0, 0, 0, 0]
    chain = AutoregressiveMixture(torch.randn(2, 3, 1, 2, generator=generator(1)), 0.1 * torch.ones(3, 1, 2, 2).tril(-1), 0.1)
    two = torch.randn(2, 2, generator=generator(2))
    every = log_prob_of_numbers(chain, two, torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(every.sum(dim=-1), chain.log_prob(two))


def test_missing_numbers_have_no_gradient_and_leave_none_that_is_not_finite():
    mean = torch.zeros(2, 3, requires_grad=True)
    tril = torch.eye(3).expand(2, 3, 3).clone().requires_grad_()
    mixture = GaussianMixture(torch.tensor([0.5, 0.5]).log(), mean, scale_tril=tril)
    x, observed = torch.tensor([1.0, torch.nan, 2.0]), torch.tensor([True, False, True])
    marginal_log_prob(mixture, x, observed).backward()
    assert bool(mean.grad.isfinite().all())
    assert bool(tril.grad.isfinite().all())
    assert mean.grad[:, 1].tolist() == [0.0, 0.0]


def test_heads_without_closed_forms_are_refused():
    mixture = AutoregressiveMixture(torch.zeros(3, 1, 2), torch.zeros(3, 1, 2, 2), 0.1)
    for function in (marginal_log_prob, sample_given, mean_given):
        with pytest.raises(TypeError, match=r"closed form.*AutoregressiveMixture; take the latent head 'MixtureHead'"):
            function(mixture, torch.zeros(2), torch.ones(2, dtype=torch.bool))
