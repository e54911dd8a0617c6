"""The autoregressive head: its density, samples, gradients and fast paths, and what it can represent."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from worldmodel.mixtures import AutoregressiveHead, Factorization, GaussianMixture, MixtureHead, NoiseType, initialization
from worldmodel.mixtures.autoregressive import AutoregressiveMixture
from worldmodel.models import MDNRNNConfig

F, D, K = 5, 3, 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def head(dim=D, seed=0, min_scale=0.05, coupling=0.5):
    torch.manual_seed(seed)
    made = AutoregressiveHead(F, dim, K, min_scale=min_scale).double()
    with torch.no_grad():
        made.coupling.normal_(std=coupling, generator=seeded(seed))
    return made


def distribution(dim=D, batch=(), seed=0):
    return head(dim, seed)(torch.randn(*batch, F, generator=seeded(seed + 1)).double())


def repeated(one, count):
    return AutoregressiveMixture(one.raw.expand(count, *one.raw.shape), one.coupling, one.min_scale)


def test_the_density_in_two_dimensions_integrates_to_one():
    one = distribution(dim=2)
    first, second = torch.linspace(-12, 12, 301).double(), torch.linspace(-60, 60, 4001).double()
    total = 0.0
    for value in first:
        x = torch.stack([value.expand(len(second)), second], dim=1)
        total += repeated(one, len(second)).log_prob(x).exp().sum().item()
    assert total * (first[1] - first[0]).item() * (second[1] - second[0]).item() == pytest.approx(1, abs=1e-3)


def test_without_coupling_it_is_the_mixture_per_dimension():
    made = head(coupling=0.0)
    plain = MixtureHead(F, D, K, factorization=Factorization.PER_DIMENSION, min_scale=0.05).double()
    plain.linear.load_state_dict(made.linear.state_dict())
    features, x = torch.randn(6, F).double(), torch.randn(6, D).double()
    torch.testing.assert_close(made(features).log_prob(x), plain(features).log_prob(x), rtol=1e-12, atol=1e-12)
    for tau in (0.0, 0.7):
        drawn = (each(features).sample(tau, generator=seeded()) for each in (made, plain))
        torch.testing.assert_close(*drawn, rtol=1e-12, atol=1e-12)


def test_with_one_component_and_coupled_means_it_is_a_gaussian_with_any_covariance():
    covariance = torch.tensor([[1.0, 0.6, -0.3], [0.6, 2.0, 0.5], [-0.3, 0.5, 0.7]]).double()
    exact = MultivariateNormal(torch.tensor([0.5, -1.0, 2.0]).double(), covariance)
    raw, coupling = torch.zeros(3, 1, D).double(), torch.zeros(3, 1, D, D).double()
    for d in range(D):
        slope = torch.linalg.solve(covariance[:d, :d], covariance[:d, d])
        coupling[1, 0, d, :d] = slope
        raw[1, 0, d] = exact.mean[d] - slope @ exact.mean[:d]
        raw[2, 0, d] = 0.5 * (covariance[d, d] - slope @ covariance[:d, d]).log()
    one = AutoregressiveMixture(raw, coupling, 1e-9)
    x = torch.randn(20, D, generator=seeded()).double()
    torch.testing.assert_close(repeated(one, 20).log_prob(x), exact.log_prob(x))


def test_no_parameter_of_a_dimension_depends_on_it_or_on_later_ones():
    one, x = distribution(), torch.randn(D, generator=seeded()).double().requires_grad_()
    for part in (one.conditionals(x).log_weights, one.conditionals(x).mean, one.conditionals(x).log_scale):
        for d in range(D):
            (gradient,) = torch.autograd.grad(part[:, d].square().sum(), x, retain_graph=True, allow_unused=True)
            assert torch.equal(gradient[d:], torch.zeros(D - d).double())
            assert d == 0 or gradient[:d].abs().min() > 0


def test_affine_changes_densities_by_the_volume_and_samples_by_the_map():
    one, shift, scale = distribution(batch=(4,)), torch.randn(4, D).double(), torch.tensor([0.5, 2.0, 3.0]).double()
    x = torch.randn(4, D).double()
    moved = one.affine(shift, scale)
    torch.testing.assert_close(moved.log_prob(shift + scale * x), one.log_prob(x) - scale.log().sum())
    torch.testing.assert_close(moved.sample(generator=seeded()), shift + scale * one.sample(generator=seeded()))
    twice = moved.affine(shift, scale)
    torch.testing.assert_close(twice.log_prob(shift + scale * (shift + scale * x)), one.log_prob(x) - 2 * scale.log().sum())


@pytest.mark.parametrize("tau", [1.0, 0.4, 2.0])
def test_samples_at_a_temperature_have_the_moments_of_the_tempered_conditionals(tau):
    """The second dimension is compared given the first: bins of it would be coarse, so its PIT is."""
    one = distribution(dim=2, seed=3)
    many = repeated(one, 100_000)
    x = many.sample(tau, generator=seeded())
    plain = many.conditionals(x)
    tempered = GaussianMixture((plain.log_weights / tau).log_softmax(-2), plain.mean, plain.log_scale + 0.5 * math.log(tau))
    pit = tempered.cdf(x)
    for d in range(2):
        sorted_pit = pit[:, d].sort().values
        expected = (torch.arange(len(pit)) + 0.5) / len(pit)
        assert (sorted_pit - expected).abs().max() < 1.9 / math.sqrt(len(pit))
    assert torch.corrcoef(pit.T)[0, 1].abs() < 4.5 / math.sqrt(len(pit))


def test_at_temperature_zero_each_dimension_is_the_mean_of_its_heaviest_component_given_the_earlier_ones():
    one = distribution(batch=(50,))
    x = one.sample(0.0)
    mixtures = one.conditionals(x)
    torch.testing.assert_close(x, mixtures.mode())
    torch.testing.assert_close(one.mode(), x)
    torch.testing.assert_close(one.sample(torch.zeros(50)), x)
    mixed = one.sample(torch.tensor([0.0, 1.0]).repeat(25), generator=seeded())
    torch.testing.assert_close(mixed[::2], x[::2])


def test_groups_share_their_random_numbers():
    one = repeated(distribution(), 6)
    x = one.sample(num_groups=3, generator=seeded())
    torch.testing.assert_close(x[:2], x[2:4], rtol=1e-12, atol=1e-12)  # products round by their place in the batch
    torch.testing.assert_close(x[:2], x[4:], rtol=1e-12, atol=1e-12)
    assert not torch.equal(x[0], x[1])
    with pytest.raises(ValueError, match="num_groups: expected 1"):
        distribution().sample(num_groups=2)


def test_pathwise_gradients_are_those_of_the_conditional_cdfs():
    """With F_d(x_d | x_<d; theta) fixed, dx / dtheta solves a triangular system; here by automatic differentiation."""
    made, features = head(seed=2), torch.randn(1, F, generator=seeded()).double()
    parameters = [made.linear.weight, made.linear.bias, made.coupling]
    x = made(features).rsample(0.8, generator=seeded(5))
    found = torch.autograd.grad((x * torch.tensor([1.0, -2.0, 0.5])).sum(), parameters)

    def uniforms(x):
        plain = made(features).conditionals(x)
        weights = (plain.log_weights / 0.8).log_softmax(dim=-2)
        return GaussianMixture(weights, plain.mean, plain.log_scale + 0.5 * math.log(0.8)).cdf(x)

    fixed = x.detach()
    jacobian = torch.autograd.functional.jacobian(lambda y: uniforms(y)[0], fixed)[:, 0]  # (D, D)
    v = torch.linalg.solve(jacobian.T, torch.tensor([1.0, -2.0, 0.5]).double())
    expected = torch.autograd.grad(-(uniforms(fixed)[0] * v).sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other * (other != 0), rtol=1e-6, atol=1e-9)


def test_rsample_returns_the_numbers_of_sample():
    one = distribution(batch=(7,))
    for tau in (0.0, 1.0, torch.linspace(0, 2, 7)):
        assert torch.equal(one.rsample(tau, generator=seeded()).detach(), one.sample(tau, generator=seeded()))


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_samples_of_raw_outputs_have_the_same_distribution(tau):
    made, n = head(dim=2, seed=4), 60_000
    features = torch.randn(1, F, generator=seeded()).double()
    raw = made.linear(features).detach().expand(n, -1)
    uniform, normal = torch.rand(n, 2, generator=seeded(1)).double(), torch.randn(n, 2, generator=seeded(2)).double()
    fast = made.sample_raw(raw, temperature=tau, uniform=uniform, normal=normal)
    one = made(features.expand(n, -1))
    slow = one.sample(tau, generator=seeded(3))
    if tau == 0:
        torch.testing.assert_close(fast, slow)
        return
    grid = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double()
    for weights in ([1.0, 0.0], [0.0, 1.0], [1.0, -1.0]):
        a, b = fast @ torch.tensor(weights).double(), slow @ torch.tensor(weights).double()
        levels = torch.quantile(b, grid)
        difference = (a.unsqueeze(1) < levels).double().mean(dim=0) - grid
        assert difference.abs().max() < 5 * math.sqrt(0.5 / n)


def test_a_start_from_data_finds_modes_their_weights_and_the_slope_of_the_noise():
    n = 6_000
    features = torch.randn(n, F, generator=seeded())
    mode = torch.rand(n, 1, generator=seeded(1)) < torch.sigmoid(2 * features[:, 1:2])
    noise = torch.randn(n, 1, generator=seeded(2)) * 0.3
    first = 6.0 * mode + features[:, :1] + noise
    x = torch.cat([first, 2 * first + 0.2 * torch.randn(n, 1, generator=seeded(3))], dim=1)
    made = AutoregressiveHead(F, 2, K, min_scale=0.01)
    before = -made(features).log_prob(x).mean()
    made.initialise(features, x, torch.full((F,), 1e-6))
    p = torch.sigmoid(2 * features[:, 1])
    choice = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    exact = choice + math.log(0.3) + math.log(0.2) + math.log(2 * math.pi * math.e)
    assert before > exact + 2
    assert abs(-made(features).log_prob(x).mean() - exact) < 0.3
    assert made(features).responsibilities(x).mean(dim=0).min() > 0.01


def test_other_factorisations_are_refused():
    config = MDNRNNConfig(noise_type=NoiseType.FULL, factorization=Factorization.JOINT)
    with pytest.raises(ValueError, match="latent_head: expected factorization 'per_dimension'"):
        AutoregressiveHead.from_config(F, D, config)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_a_start_without_em_is_the_regression_on_features_and_earlier_dimensions(autoregressive, monkeypatch):
    monkeypatch.setattr(initialization, "EM_OPERATIONS", 0)
    features = torch.randn(4_000, F, generator=seeded()).double() + 3
    features[:, 0] = 2.0  # constant
    noise = torch.randn(4_000, 2, generator=seeded(1)).double()
    x = features[:, 1:3] + noise @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]).double()
    found = initialization.fit_components(features, x, torch.full((F,), 1e-9), 1, autoregressive=autoregressive)
    seen = torch.cat([features[:, 1:], torch.ones(4_000, 1).double(), x[:, :1]], dim=1)
    expected = torch.linalg.lstsq(seen if autoregressive else seen[:, :-1], x[:, 1]).solution
    torch.testing.assert_close(found.weight[0, 1, 1:], expected[: F - 1], rtol=1e-4, atol=1e-4)
    assert found.weight[0, :, 0].abs().max() == 0
    assert found.coupling[0, 1, 0].item() == pytest.approx(expected[-1].item() if autoregressive else 0.0, abs=1e-4)
    assert found.log_scale[0, 1].exp().item() == pytest.approx(0.6 if autoregressive else 1.0, rel=0.05)


def narrow_lines(n=8_000, sd=0.01, rare=0.03):
    """Two exact lines with little noise, and a few far outliers, as (N, F) features and (N, 1) targets."""
    features = torch.randn(n, F, generator=seeded())
    sign = torch.where(torch.rand(n, 1, generator=seeded(1)) < torch.sigmoid(features[:, 1:2]), 1.0, -1.0)
    outlier = (torch.rand(n, 1, generator=seeded(2)) < rare) * 5 * sign
    noise = torch.randn(n, 1, generator=seeded(3)) * torch.where(outlier == 0, sd, 0.5)
    return features, sign - 0.2 * features[:, :1] + outlier + noise


def test_a_start_finds_narrow_lines_next_to_rare_outliers_and_lowers_the_floor_to_their_noise():
    features, x = narrow_lines()
    made = MixtureHead(F, 1, K, factorization=Factorization.PER_DIMENSION, min_scale=0.03)
    made.initialise(features, x, torch.full((F,), 1e-6), fit_floors=True)
    p = torch.sigmoid(features[:, 1])
    choice = -(p * p.log() + (1 - p) * (1 - p).log()).mean().item()
    entropy = choice + 0.97 * math.log(0.01) + 0.03 * math.log(0.5) + 0.5 * math.log(2 * math.pi * math.e)
    entropy -= 0.03 * math.log(0.03) + 0.97 * math.log(0.97)
    assert -made(features).log_prob(x).mean().item() < entropy + 0.4
    assert made(features).responsibilities(x).mean(dim=0).min() > 0.01
    assert made.floors.item() == pytest.approx(0.003, rel=0.2)


def test_floors_are_lowered_only_if_asked_for_and_only_where_the_noise_is_small():
    features, x = narrow_lines(sd=0.2)
    for sd, asked, expected in ((0.2, True, None), (0.01, False, None), (1e-5, True, 0.003)):
        features, x = narrow_lines(sd=sd)
        made = MixtureHead(F, 1, K, factorization=Factorization.PER_DIMENSION, min_scale=0.03)
        made.initialise(features, x, torch.full((F,), 1e-6), fit_floors=asked)
        assert made.floors is None if expected is None else made.floors.item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", [AutoregressiveHead, MixtureHead])
def test_the_fitted_floors_hold_in_densities_samples_and_losses(kind):
    floors = torch.tensor([0.5, 0.1, 0.02]).double()
    torch.manual_seed(0)
    options = {} if kind is AutoregressiveHead else {"factorization": Factorization.PER_DIMENSION}
    made = kind(F, D, K, min_scale=0.5, **options).double()
    made.floors = floors
    with torch.no_grad():
        made.linear.weight.zero_()
        made.linear.bias.zero_()
        made.linear.bias[-K * D :] = -40.0
    features, x = torch.zeros(2_000, F).double(), 0.1 * torch.randn(2_000, D, generator=seeded()).double()
    exact = torch.distributions.Normal(torch.zeros(D).double(), floors)
    torch.testing.assert_close(made(features).log_prob(x), exact.log_prob(x).sum(dim=1))
    raw = made.linear(features).detach()
    torch.testing.assert_close(made.raw_nll(raw.clone(), x, gradient=False), -exact.log_prob(x).sum())
    noise = {"uniform": torch.rand(2_000, D).double(), "normal": torch.randn(2_000, D, generator=seeded(1)).double()}
    torch.testing.assert_close(made.sample_raw(raw, temperature=1.0, **noise), floors * noise["normal"])
    assert torch.allclose(made(features).sample(generator=seeded()).std(dim=0) / floors, torch.ones(D).double(), atol=0.06)
    again = kind(F, D, K, min_scale=0.5, **options)
    again.set_constants(made.constants())
    torch.testing.assert_close(again.floors, floors.float())
    again.set_constants({})
    assert again.floors is None
    for wrong in ([0.1], [0.1, 0.1, -1.0], "0.1", [0.1, 0.1, math.inf]):
        with pytest.raises(ValueError, match="floors: expected"):
            again.set_constants({"floors": wrong})


def test_a_dimension_far_from_the_data_does_not_make_the_next_one_overflow():
    raw = torch.zeros(1000, 3, 2, 3)
    raw[:, 2, :, 0] = 80.0  # log-scale of the first dimension
    coupling = torch.zeros(3, 2, 3, 3)
    coupling[2, :, 1:, 0] = 0.5
    coupling[0, 0, 1:, 0] = 0.5
    latent = AutoregressiveMixture(raw, coupling, 1e-3)
    x = latent.sample(generator=torch.Generator().manual_seed(0))
    assert not x.isnan().any()
    assert not latent.log_prob(x.clamp(-1e30, 1e30)).isnan().any()


def test_modes_and_densities_under_autocast_keep_the_precision_of_float32():
    features = torch.randn(50, F, generator=seeded())
    exact, single = head()(features.double()), head().float()(features)
    mode = exact.sample(0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(single.sample(0.0), mode.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(single.log_prob(mode.float()), exact.log_prob(mode).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [(6,), (2, 3), (1, 3, 2)])
def test_samples_do_not_depend_on_the_number_of_batch_dimensions(batch):
    one = distribution(batch=(6,))
    other = AutoregressiveMixture(one.raw.reshape(*batch, *one.raw.shape[1:]), one.coupling, one.min_scale)
    for tau in (0.0, 0.7):
        expected, found = (each.sample(tau, generator=seeded(1)) for each in (one, other))
        torch.testing.assert_close(found, expected.reshape(*batch, D))
