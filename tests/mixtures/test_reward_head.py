"""Tests of the reward head: atoms, mixture, mixed measure, fused loss, sampling."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from worldmodel.mixtures import Factorization, GaussianMixture, MixedDistribution, MixtureHead, RewardHead, check_atoms
from worldmodel.mixtures.initialization import fit_choice

ATOMS = (-0.5, 0.25, 100.0)
MEAN, SCALE = torch.tensor([2.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
KINDS = {
    "atoms and mixture": {"atoms": ATOMS, "num_components": 3},
    "atoms and Gaussian": {"atoms": ATOMS, "num_components": 1},
    "atoms only": {"atoms": ATOMS, "num_components": 0},
    "one atom": {"atoms": (1.0,), "num_components": 0},
    "mixture": {"num_components": 3},
    "Gaussian": {},
}
kinds = pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)


def make(fields, seed=0):
    torch.manual_seed(seed)
    head = RewardHead(4, 0.05, **fields).double()
    nn.init.normal_(head.linear.weight)
    return head


def rewards_for(head, n=12):
    """Rewards that the head can explain: atoms and, with a density, others."""
    torch.manual_seed(1)
    values = torch.randn(n, dtype=torch.float64) * 3 + 2
    if len(head.atoms):
        some = head.atoms[torch.randint(len(head.atoms), (n,))]
        values = torch.where(torch.rand(n) < 0.6, some, values) if head.num_components else some
    return values


def mixed():
    log_weights = torch.tensor([0.2, 0.1, 0.7], dtype=torch.float64).log()
    density = GaussianMixture(
        torch.tensor([0.4, 0.6], dtype=torch.float64).log(),
        torch.tensor([[-1.0], [2.0]], dtype=torch.float64),
        torch.tensor([[0.5], [1.5]], dtype=torch.float64).log(),
    )
    return MixedDistribution(log_weights, torch.tensor([-0.5, 1.0]), density)


def test_the_mixed_measure_is_that_of_its_parts():
    distribution = mixed()
    density = MixtureSameFamily(
        Categorical(torch.tensor([0.4, 0.6], dtype=torch.float64)),
        Normal(torch.tensor([-1.0, 2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)),
    )
    for value, expected in ((-0.5, math.log(0.2)), (1.0, math.log(0.1))):
        assert distribution.log_prob(torch.tensor([value], dtype=torch.float64)).item() == pytest.approx(expected)
    x = torch.tensor([[-0.7], [1.1]], dtype=torch.float64)
    torch.testing.assert_close(distribution.log_prob(x), math.log(0.7) + density.log_prob(x[:, 0]))
    assert distribution.log_prob(x).exp().max() < 1


def test_atoms_and_density_have_a_total_probability_of_one():
    distribution = mixed()
    grid = torch.linspace(-15, 15, 200_001, dtype=torch.float64).unsqueeze(-1) + 1e-7  # misses the atoms
    area = torch.trapezoid(distribution.log_prob(grid).exp(), grid[:, 0]).item()
    mass = sum(distribution.mass(torch.tensor([a], dtype=torch.float64)).item() for a in (-0.5, 1.0))
    assert area + mass == pytest.approx(1, abs=1e-9)
    assert distribution.cdf(torch.tensor([20.0], dtype=torch.float64)).item() == pytest.approx(1)


def test_moments_and_distribution_are_those_of_samples():
    distribution, n = mixed(), 400_000
    many = MixedDistribution(
        distribution.log_weights.expand(n, 3),
        distribution.atoms,
        GaussianMixture(*(getattr(distribution.density, f).expand(n, *s) for f, s in PARTS.items())),
    )
    x = many.sample(generator=torch.Generator().manual_seed(0))[:, 0]
    sd = distribution.variance().sqrt().item()
    assert x.mean().item() == pytest.approx(distribution.expectation().item(), abs=4 * sd / math.sqrt(n))
    assert x.std().item() == pytest.approx(sd, rel=0.01)
    assert (x == 1.0).double().mean().item() == pytest.approx(0.1, abs=0.002)
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pit = many.cdf(x.unsqueeze(-1))[:, 0] - uniform * many.mass(x.unsqueeze(-1))
    grid = torch.linspace(0, 1, n, dtype=torch.float64)
    assert (pit.sort().values - grid).abs().max() < 0.005  # 3 standard errors of the Kolmogorov-Smirnov distance


PARTS = {"log_weights": (2,), "mean": (2, 1), "log_scale": (2, 1)}


def test_a_value_without_density_is_impossible_unless_it_is_an_atom():
    distribution = MixedDistribution(torch.zeros(1), torch.tensor([0.1]))
    assert distribution.log_prob(torch.tensor([0.1])).item() == 0
    assert distribution.log_prob(torch.tensor([0.1], dtype=torch.float64)).item() == 0  # compared as float32
    assert distribution.log_prob(torch.tensor([0.2])).item() == -math.inf


@kinds
def test_the_fused_loss_is_the_log_density_and_its_gradient_that_of_autograd(fields):
    head, x = make(fields), torch.randn(12, 4, dtype=torch.float64)
    reward = rewards_for(head)
    raw = head.linear(x).detach()
    copy = raw.clone().requires_grad_()
    expected = -head.distribution(copy, MEAN, SCALE).log_prob(reward.unsqueeze(-1)).sum()
    expected.backward()
    target = head.targets(reward, MEAN, SCALE)
    volume = len(reward) * head.density_share(target) * SCALE.log().item()
    found = head.raw_nll(raw, target, gradient=True)
    torch.testing.assert_close(found + volume, expected.detach())
    torch.testing.assert_close(raw, copy.grad)


@kinds
def test_raw_expectation_and_raw_samples_are_those_of_the_distribution(fields):
    head, n = make(fields), 200_000
    raw = head.linear(torch.randn(2, 4, dtype=torch.float64)).detach()
    distribution = head.distribution(raw, MEAN, SCALE)
    torch.testing.assert_close(head.raw_expectation(raw, MEAN, SCALE), distribution.expectation()[:, 0])
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    normal = torch.randn(n, generator=generator, dtype=torch.float64)
    for row, expected, variance in zip(raw, distribution.expectation(), distribution.variance(), strict=True):
        x = head.sample_raw(row.expand(n, -1), MEAN, SCALE, uniform=uniform, normal=normal)
        assert x.mean().item() == pytest.approx(expected.item(), abs=4 * variance.item() ** 0.5 / math.sqrt(n) + 1e-9)
        assert x.std().item() == pytest.approx(variance.item() ** 0.5, rel=0.02, abs=1e-9)
        if head.num_components == 0:
            assert set(x.tolist()) <= set(head.atoms.tolist())


def test_the_largest_uniform_number_chooses_a_possible_atom():
    head = RewardHead(4, 0.05, atoms=(0.0, 1.0), num_components=0)
    raw = torch.tensor([[0.0, -200.0]])
    one = torch.tensor([1 - 2.0**-24])
    for units in (torch.zeros(1), torch.ones(1)):
        assert head.sample_raw(raw, units, torch.ones(1), uniform=one, normal=torch.zeros(1)).item() == 0.0


def test_a_gaussian_head_is_the_mixture_head_of_earlier_versions():
    torch.manual_seed(0)
    old = MixtureHead(4, 1, 1, min_scale=0.03, factorization=Factorization.JOINT)
    torch.manual_seed(0)
    new = RewardHead(4, 0.03)
    assert new.state_dict().keys() == old.state_dict().keys()
    x, units = torch.randn(5, 4), (torch.tensor([0.7]), torch.tensor([3.0]))
    before, after = old(x).affine(*units), new(x, *units)
    for name in PARTS:
        assert torch.equal(getattr(before, name), getattr(after, name))
    raw = new.linear(x)
    assert torch.equal(new.raw_expectation(raw, *units), raw[:, 1] * units[1] + units[0])


def test_the_initial_probabilities_are_the_frequencies_of_the_data():
    head = make({"atoms": ATOMS, "num_components": 2})
    nn.init.zeros_(head.linear.weight)
    head.set_base_rates(torch.tensor([900.0, 90.0, 0.0, 10.0]))
    weights = head(torch.zeros(4, dtype=torch.float64)).log_weights.exp()
    torch.testing.assert_close(weights, torch.tensor([900.5, 90.5, 0.5, 10.5], dtype=torch.float64) / 1002)
    mean = (900 * ATOMS[0] + 90 * ATOMS[1] + 10 * 7.0) / 1000
    assert head.mean_reward(torch.tensor([7.0], dtype=torch.float64)).item() == pytest.approx(mean)


def test_atoms_are_stored_as_float32_numbers_in_ascending_order():
    assert check_atoms((3, 0.1)) == (torch.tensor(0.1).item(), 3.0)
    with pytest.raises(ValueError, match="reward_atoms: expected different finite float32 numbers"):
        check_atoms((0.1, 0.1 + 1e-12))
    with pytest.raises(ValueError, match="reward_atoms: expected different finite float32 numbers"):
        check_atoms((math.inf,))


def test_a_head_without_atoms_and_components_is_rejected():
    with pytest.raises(ValueError, match="num_components: expected an integer >= 1, got 0"):
        RewardHead(4, 0.05, num_components=0)


def test_shapes_that_do_not_fit_are_rejected():
    with pytest.raises(ValueError, match=r"log_weights, atoms: expected shapes \(\.\.\., 2\)"):
        MixedDistribution(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"x: expected shape \(1,\), got \(2,\)"):
        MixedDistribution(torch.zeros(2), torch.tensor([0.0, 1.0])).log_prob(torch.zeros(2))


def test_rare_large_rewards_do_not_raise_the_floor_of_the_others():
    torch.manual_seed(0)
    noise = torch.cat([0.1 * torch.randn(100_000), torch.full((200,), 100.0)])
    head = RewardHead(4, 0.03, num_components=3)
    assert "log_floor" in head.state_dict()
    head.set_floor(noise, noise.std().reshape(1))
    nn.init.zeros_(head.linear.weight)
    nn.init.constant_(head.linear.bias, -50.0)
    sigma = head(torch.zeros(4), 0.0, noise.std()).log_scale.exp()
    torch.testing.assert_close(sigma, torch.full_like(sigma, 0.03 * 0.1), rtol=0.02, atol=0)
    one = RewardHead(4, 0.03, num_components=3)
    for others in ([-1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 5.0], []):  # never above min_scale, nor 0
        one.set_floor(torch.tensor(others), torch.tensor([0.5]))
        assert one.log_floor.exp().item() == pytest.approx(0.03)
    assert "log_floor" not in RewardHead(4, 0.03).state_dict()


def rare_rewards(n=20_000):
    """Inputs (N, 2), and a reward of 100 with a probability that is logistic in them, else 0."""
    torch.manual_seed(0)
    inputs = torch.randn(n, 2)
    probability = torch.sigmoid(-4 + inputs @ torch.tensor([1.5, -1.0]))
    return inputs, torch.where(torch.rand(n) < probability, 100.0, 0.0), 100 * probability


def test_the_fit_of_a_choice_is_the_maximum_of_its_likelihood():
    inputs, reward, _ = rare_rewards()
    index = (reward > 0).long()
    bias, weight = fit_choice(inputs.double(), index, torch.tensor([0.95, 0.05]))
    error = torch.nn.functional.one_hot(index, 2) - (inputs.double() @ weight.T + bias).softmax(dim=1)
    slope = error.T @ torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double() / len(inputs)
    assert slope.abs().max() < 1e-4  # a small penalty bounds the coefficients
    assert (weight[1] - weight[0]).tolist() == pytest.approx([1.5, -1.0], abs=0.1)


@pytest.mark.parametrize("rates", [(0.2, 0.3, 0.5), (0.998, 0.001, 0.001)])
def test_a_choice_with_few_events_for_its_coefficients_keeps_its_base_rates(rates):
    rates, n = torch.tensor(rates), 60 if rates[0] < 0.5 else 6000
    generator = torch.Generator().manual_seed(0)
    index = torch.multinomial(rates, n, replacement=True, generator=generator)
    bias, weight = fit_choice(torch.randn(n, 4, generator=generator), index, rates)
    assert not weight.any()
    torch.testing.assert_close(bias.exp(), rates)


def test_atoms_start_with_the_probabilities_of_a_logistic_regression():
    inputs, reward, expected = rare_rewards()
    head = RewardHead(5, 0.03, num_components=0, atoms=(0.0, 100.0))
    one = torch.ones(1)
    head.set_base_rates(torch.stack([(reward == 0).sum(), (reward > 0).sum(), torch.tensor(0)]))
    head.initialise(inputs, head.targets(reward, 0 * one, one), slice(2, 4))
    features = torch.cat([torch.zeros(len(inputs), 2), inputs, torch.zeros(len(inputs), 1)], dim=1)
    found = head(features).expectation()[:, 0]
    assert (found - expected).square().mean() < 0.002 * expected.var()


def test_other_rewards_start_from_regressions_on_the_inputs():
    torch.manual_seed(0)
    inputs, side = torch.randn(4000, 2), torch.where(torch.rand(4000) < 0.5, 1.0, -1.0)
    mean, scale = torch.tensor([1.0]), torch.tensor([2.0])
    values = inputs @ torch.tensor([1.0, 2.0]) + side + 0.1 * torch.randn(4000)
    reward = torch.where(torch.rand(4000) < 0.3, 0.0, values)
    head = RewardHead(2, 0.01, num_components=2, atoms=(0.0,))
    head.set_base_rates(torch.stack([(reward == 0).sum(), (reward != 0).sum()]))
    head.initialise(inputs, head.targets(reward, mean, scale), slice(0, 2))
    density = math.log(2 * 0.1) + 0.5 * math.log(2 * math.pi * math.e)  # with a fair choice of the side
    entropy = 0.7 * density - 0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    with torch.no_grad():
        assert -head(inputs, mean, scale).log_prob(reward.unsqueeze(-1)).mean().item() == pytest.approx(entropy, abs=0.03)
