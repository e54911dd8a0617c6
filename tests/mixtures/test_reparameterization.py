"""Gradients of samples against the inverted CDF, exact moments and float64, also in the tails."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from test_mixture import KINDS, D, K, assert_same_mean, make, seeded

from worldmodel.mixtures import GaussianMixture, reparameterize


def parameters(mixture):
    """Return log-weights, means and scales that require gradients, and their mixture."""
    scale = mixture.log_scale if mixture.scale_tril is None else mixture.scale_tril
    leaves = [part.detach().clone().requires_grad_() for part in (mixture.log_weights, mixture.mean, scale)]
    return leaves, rebuild(mixture.scale_tril is not None, *leaves)


def rebuild(full, log_weights, mean, scale):
    """Return the mixture of raw parameters; the log-weights are normalised here."""
    log_weights = log_weights.log_softmax(-2 if log_weights.ndim == mean.ndim else -1)
    return GaussianMixture(log_weights, mean, **({"scale_tril": scale} if full else {"log_scale": scale}))


def conditional(d, before, log_weights, mean, covariance):
    """Return weights, means and sigmas of the mixture of z_d given z_{<d}, by Schur complements."""
    log_w, deviation = log_weights - log_weights.max(), before - mean[:, :d]
    mu, variance = mean[:, d].copy(), covariance[:, d, d].copy()
    if d > 0:
        inner = covariance[:, :d, :d]
        solved = np.linalg.solve(inner, np.stack([deviation, covariance[:, :d, d]], axis=-1))  # (K, d, 2)
        log_w = log_w - 0.5 * (deviation * solved[..., 0]).sum(-1) - 0.5 * np.linalg.slogdet(inner)[1]
        mu += (covariance[:, :d, d] * solved[..., 0]).sum(-1)
        variance -= (covariance[:, :d, d] * solved[..., 1]).sum(-1)
    w = np.exp(log_w - log_w.max())
    return w / w.sum(), mu, np.sqrt(variance)


def as_marginals(mixture):
    """Return the mixture as arrays of independent joint mixtures: one, or one per dimension."""
    log_weights, mean = mixture.log_weights.detach().numpy(), mixture.mean.detach().numpy()
    tril = mixture.log_scale.detach().exp().diag_embed() if mixture.scale_tril is None else mixture.scale_tril.detach()
    covariance = (tril @ tril.mT).numpy()
    if not mixture.per_dimension:
        return [(log_weights, mean, covariance)]
    return [(log_weights[:, d], mean[:, d : d + 1], covariance[:, d : d + 1, d : d + 1]) for d in range(mixture.dim)]


def uniforms(mixture, z):
    """Return the conditional CDFs at z: (D,) in (0, 1)."""
    z, u, at = z.detach().numpy(), [], 0
    for marginal in as_marginals(mixture):
        for d in range(marginal[1].shape[1]):
            w, mu, sigma = conditional(d, z[at : at + d], *marginal)
            u.append((w * ndtr((z[at + d] - mu) / sigma)).sum())
        at += marginal[1].shape[1]
    return np.array(u)


def invert(mixture, u):
    """Return the z whose `uniforms` are u, by bisection."""
    result, at = [], 0
    for marginal in as_marginals(mixture):
        z = np.zeros(0)
        for d in range(marginal[1].shape[1]):
            w, mu, sigma = conditional(d, z, *marginal)
            low, high = (mu - 12 * sigma).min(), (mu + 12 * sigma).max()
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if (w * ndtr((middle - mu) / sigma)).sum() < u[at + d] else (low, middle)
            z = np.append(z, (low + high) / 2)
        at += len(z)
        result.append(z)
    return torch.from_numpy(np.concatenate(result))


def tempered(full, tau, log_weights, mean, scale):
    scale = math.sqrt(tau) * scale if full else scale + 0.5 * math.log(tau)
    return rebuild(full, log_weights / tau, mean, scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, torch.tensor([0.0, 1.0, 2.0, 0.3])], ids=str)
def test_rsample_returns_the_numbers_of_sample(kind, temperature):
    mixture = make(kind, (4,), dtype=torch.float32)
    for num_groups in (1, 2):
        draws = mixture.rsample(temperature, num_groups=num_groups, generator=seeded(3))
        assert torch.equal(draws, mixture.sample(temperature, num_groups=num_groups, generator=seeded(3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tau", "seed"), [(1.0, 0), (1.0, 1), (0.4, 2), (2.0, 3)])
def test_a_sample_has_the_derivative_of_the_inverted_cdf(kind, tau, seed):
    leaves, mixture = parameters(make(kind, seed=seed))
    full = kind == "full"
    z = mixture.rsample(tau, generator=seeded(seed))
    direction = torch.randn(D, generator=seeded(9), dtype=torch.float64)
    gradients = torch.autograd.grad(z @ direction, leaves)
    u = uniforms(tempered(full, tau, *leaves), z)
    assert u.min() > 0.001
    assert u.max() < 0.999
    torch.testing.assert_close(invert(tempered(full, tau, *leaves), u), z.detach(), rtol=0, atol=1e-9)
    step = 1e-5
    for which, gradient in enumerate(gradients):
        expected = torch.zeros_like(gradient)
        for index in np.ndindex(*gradient.shape):
            if full and which == 2 and index[1] < index[2]:
                continue  # above the diagonal of a factor
            moved = []
            for sign in (1, -1):
                shifted = [leaf.detach().clone() for leaf in leaves]
                shifted[which][index] += sign * step
                moved.append(invert(tempered(full, tau, *shifted), u) @ direction)
            expected[index] = (moved[0] - moved[1]) / (2 * step)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_one_component_has_the_derivative_of_mean_plus_scale_times_noise(kind):
    leaves, mixture = parameters(make(kind, (5,), k=1))
    z = mixture.rsample(generator=seeded())
    log_weights, mean, scale = leaves
    direction = torch.randn(5, D, generator=seeded(9), dtype=torch.float64)
    gradients = torch.autograd.grad((z * direction).sum(), leaves)
    deviation = (z - mean[:, 0]).detach()
    if kind == "full":
        noise = torch.linalg.solve_triangular(scale[:, 0], deviation.unsqueeze(-1), upper=False)[..., 0]
        by_scale = (direction.unsqueeze(-1) * noise.unsqueeze(-2)).tril().unsqueeze(1)
    else:
        by_scale = (direction * deviation).unsqueeze(1)  # by the log of sigma
    torch.testing.assert_close(gradients[0], torch.zeros_like(log_weights), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[1], direction.unsqueeze(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[2], by_scale.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [(), (1,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_each_element_of_a_batch_has_the_gradient_that_it_has_alone(kind, batch):
    leaves, mixture = parameters(make(kind, batch))
    z = mixture.rsample(generator=seeded())
    assert z.shape == (*batch, D)
    gradients = torch.autograd.grad(z.square().sum(), leaves)
    for index in np.ndindex(*batch):
        alone = [leaf[index].detach().requires_grad_() for leaf in leaves]
        single = rebuild(kind == "full", *alone)
        scale = {"scale_tril": single.scale_tril} if kind == "full" else {"log_scale": single.log_scale}
        again = reparameterize(z[index].detach(), single.log_weights, single.mean, **scale)
        for mine, whole in zip(torch.autograd.grad(again.square().sum(), alone), gradients, strict=True):
            torch.testing.assert_close(mine, whole[index], rtol=1e-9, atol=1e-12)


def test_factorisations_agree_for_one_dimension():
    joint = make("diagonal", (6,), d=1)
    (log_weights, mean, log_scale), joint = parameters(joint)
    z = joint.sample(generator=seeded())
    gradients = []
    for weights in (joint.log_weights, joint.log_weights.unsqueeze(-1)):
        moved = reparameterize(z, weights, joint.mean, log_scale=joint.log_scale)
        gradients.append(torch.autograd.grad(moved.sum(), (log_weights, mean, log_scale), retain_graph=True))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def per_draw(mixture, function, draw, num_samples):
    """Return the gradients of function(z), summed over D, for N samples: (N, ...) per parameter."""
    leaves, _ = parameters(mixture)
    many = [leaf.detach().expand(num_samples, *leaf.shape).clone().requires_grad_() for leaf in leaves]
    z = draw(rebuild(mixture.scale_tril is not None, *many))
    return torch.autograd.grad(function(z).sum(), many, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_an_expectation_is_unbiased(kind):
    mixture = make(kind, seed=5)
    leaves, exact = parameters(mixture)
    second_moment = exact.variance() + exact.expectation().square()
    for function, moment in ((lambda z: z, exact.expectation()), (torch.square, second_moment)):
        expected = torch.autograd.grad(moment.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        found = per_draw(mixture, function, lambda many: many.rsample(generator=seeded(1)), 60_000)
        for draws, truth in zip(found, expected, strict=True):
            assert_same_mean(draws, truth)


def test_products_of_a_joint_sample_have_an_unbiased_gradient():
    mixture = make("full", seed=5)
    leaves, exact = parameters(mixture)
    second = exact.scale_tril @ exact.scale_tril.mT + exact.mean.unsqueeze(-1) * exact.mean.unsqueeze(-2)  # (K, D, D)
    expected = list(torch.autograd.grad((exact.log_weights.exp() * second[:, 0, 1]).sum(), leaves))
    expected[2] = expected[2].tril()
    found = per_draw(mixture, lambda z: z[:, 0] * z[:, 1], lambda many: many.rsample(generator=seeded(1)), 60_000)
    for draws, truth in zip(found, expected, strict=True):
        assert_same_mean(draws, truth)


@pytest.mark.parametrize("estimator", ["hard", "straight-through"])
def test_choosing_a_component_would_bias_the_gradient_of_the_weights(estimator):
    """The alternatives to implicit reparameterisation fail the check above."""

    def draw(many):
        with torch.no_grad():
            index = torch.distributions.Categorical(logits=many.log_weights).sample()
        choice = torch.nn.functional.one_hot(index, K).to(many.mean.dtype)
        if estimator == "straight-through":
            weights = many.log_weights.exp()
            choice = choice + weights - weights.detach()
        noise = torch.randn(many.mean.shape[0], 1, D, generator=seeded(2), dtype=torch.float64)
        return (choice.unsqueeze(-1) * (many.mean + many.log_scale.exp() * noise)).sum(-2)

    mixture = make("diagonal", seed=5)
    leaves, exact = parameters(mixture)
    expected = torch.autograd.grad((exact.variance() + exact.expectation().square()).sum(), leaves)
    torch.manual_seed(0)
    by_weights, by_mean, _ = per_draw(mixture, torch.square, draw, 60_000)
    if estimator == "hard":
        assert_same_mean(by_mean, expected[1])
    with pytest.raises(AssertionError):
        assert_same_mean(by_weights, expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_with_float64_far_in_the_tails(kind):
    exact = make(kind, (8,))
    distance = torch.tensor([-30.0, -8.0, -3.0, 0.0, 2.0, 5.0, 12.0, 40.0], dtype=torch.float64).unsqueeze(-1)
    if kind == "full":  # far along a component's own axes: across them the gradient itself is beyond float32
        z = exact.mean[:, 0] + distance * exact.scale_tril[:, 0].sum(-1)
    else:
        z = exact.expectation() + distance * exact.variance().sqrt()
    gradients = []
    for dtype in (torch.float64, torch.float32):
        scale = exact.log_scale if exact.scale_tril is None else exact.scale_tril
        leaves = [part.to(dtype).requires_grad_() for part in (exact.log_weights, exact.mean, scale)]
        kwargs = {"log_scale": leaves[2]} if exact.scale_tril is None else {"scale_tril": leaves[2]}
        moved = reparameterize(z.to(dtype), leaves[0], leaves[1], **kwargs)
        gradients.append(torch.autograd.grad(moved.sum(), leaves))
    for double, single in zip(*gradients, strict=True):
        size = double.flatten(1).abs().amax(1)
        error = (double - single.double()).flatten(1).abs().amax(1)
        assert (error < 2e-3 * size + 1e-5).all(), error / size  # y^2 / 2 of 40 sigma loses three digits


def test_the_gradient_is_finite_where_the_density_underflows():
    mean = torch.tensor([[-1000.0], [1000.0]], requires_grad=True)
    log_weights, log_scale = torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1)
    for place in (-1e6, -1000.0, 0.0, 1.0, 1e6):
        z = reparameterize(torch.tensor([place]), log_weights.log_softmax(0), mean, log_scale=log_scale)
        assert all(torch.isfinite(part).all() for part in torch.autograd.grad(z.sum(), (log_weights, mean)))


@pytest.mark.parametrize("kind", ["per_dimension", "diagonal", "full"])
def test_an_impossible_component_has_no_gradient_and_does_not_affect_others(kind):
    (log_weights, mean, scale), mixture = parameters(make(kind, (50,)))
    impossible = torch.full_like(mixture.log_weights[:, :1], -torch.inf)
    possible = mixture.log_weights[:, 1:]
    scales = (mixture.log_scale, None) if kind != "full" else (None, mixture.scale_tril)
    gradients = []
    for weights, first in ((torch.cat([impossible, possible.log_softmax(1)], 1), 0), (possible.log_softmax(1), 1)):
        some = GaussianMixture(
            weights,
            mixture.mean[:, first:],
            *(None if part is None else part[:, first:] for part in scales[:1]),
            scale_tril=None if scales[1] is None else scales[1][:, first:],
        )
        z = reparameterize(
            torch.randn(50, D, generator=seeded(), dtype=torch.float64),
            some.log_weights,
            some.mean,
            **({"log_scale": some.log_scale} if kind != "full" else {"scale_tril": some.scale_tril}),
        )
        gradients.append(torch.autograd.grad(z.sum(), (log_weights, mean, scale), retain_graph=True))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_zero_has_the_gradient_of_the_mode(kind):
    leaves, mixture = parameters(make(kind, (3,)))
    gradients = torch.autograd.grad(mixture.rsample(0.0).sum(), leaves)
    heaviest = mixture._stacked_log_weights().argmax(-2, keepdim=True).expand(3, 1, D)
    assert torch.equal(gradients[1], torch.zeros_like(gradients[1]).scatter(-2, heaviest, 1.0))
    assert not gradients[0].any()
    assert not gradients[2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_each_dream_has_the_gradient_of_its_own_temperature(kind):
    leaves, mixture = parameters(make(kind, (4,)))
    temperature = torch.tensor([0.0, 0.5, 1.0, 3.0])
    z = mixture.rsample(temperature, generator=seeded())
    gradients = torch.autograd.grad(z.square().sum(), leaves, retain_graph=True)
    for row, tau in enumerate(temperature.tolist()):
        if tau == 0:
            expected = torch.autograd.grad(mixture.mode()[0].square().sum(), leaves, retain_graph=True, materialize_grads=True)
        else:
            warm = tempered(kind == "full", tau, *leaves)
            scale = {"scale_tril": warm.scale_tril} if kind == "full" else {"log_scale": warm.log_scale}
            moved = reparameterize(z.detach(), warm.log_weights, warm.mean, **scale)
            expected = torch.autograd.grad(moved[row].square().sum(), leaves, retain_graph=True)
        for mine, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(mine[row], other[row], rtol=1e-6, atol=1e-7)


def test_a_second_derivative_raises():
    leaves, mixture = parameters(make("diagonal"))
    (first,) = torch.autograd.grad(mixture.rsample(generator=seeded()).square().sum(), leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
