"""Gaussian mixtures against `torch.distributions`, SciPy and Monte Carlo."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from worldmodel.mixtures import GaussianMixture, categorical, check_temperature, shared_draws

KINDS = ["per_dimension", "full", "diagonal", "isotropic", "isotropic_across_clusters"]
BATCHES = [(), (1,), (1, 1), (4,), (2, 1, 3)]
K, D = 4, 3  # K != D: a repeat in the wrong order cannot hide


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind, batch=(), *, k=K, d=D, dtype=torch.float64, seed=0):
    g = seeded(seed)

    def randn(*shape):
        return torch.randn(*batch, *shape, generator=g, dtype=torch.float64).to(dtype)

    mean = 2 * randn(k, d)
    if kind == "per_dimension":
        return GaussianMixture(randn(k, d).log_softmax(-2), mean, 0.5 * randn(k, d))
    log_weights = randn(k).log_softmax(-1)
    if kind == "full":
        tril = torch.tril(randn(k, d, d), diagonal=-1) + torch.diag_embed((0.4 * randn(k, d)).exp())
        return GaussianMixture(log_weights, mean, scale_tril=tril)
    shape = {"diagonal": (k, d), "isotropic": (k, 1), "isotropic_across_clusters": (1, 1)}[kind]
    return GaussianMixture(log_weights, mean, 0.5 * randn(*shape))


def oracle(mixture):
    """Return the `torch.distributions` equivalent; the marginals if it is per dimension."""
    if mixture.per_dimension:
        components = Normal(mixture.mean.mT, mixture.log_scale.mT.exp())
        return MixtureSameFamily(Categorical(logits=mixture.log_weights.mT), components)
    if mixture.scale_tril is not None:
        components = MultivariateNormal(mixture.mean, scale_tril=mixture.scale_tril)
    else:
        components = Independent(Normal(mixture.mean, mixture.log_scale.exp()), 1)
    return MixtureSameFamily(Categorical(logits=mixture.log_weights), components)


def oracle_log_prob(mixture, x):
    value = oracle(mixture).log_prob(x)
    return value.sum(-1) if mixture.per_dimension else value


def draw(mixture, num_samples, temperature=1.0, seed=0):
    """Sample independently (N, ..., D), from a mixture with an additional batch dimension."""
    parts = (mixture.log_weights, mixture.mean)
    log_weights, mean = (part.expand(num_samples, *part.shape) for part in parts)
    if mixture.scale_tril is None:
        many = GaussianMixture(log_weights, mean, mixture.log_scale)
    else:
        many = GaussianMixture(log_weights, mean, scale_tril=mixture.scale_tril.expand(num_samples, *mixture.scale_tril.shape))
    return many.sample(temperature, generator=seeded(seed))


def tempered(mixture, tau):
    """Return the mixture at temperature tau: weights^(1/tau) normalised, covariance times tau."""
    dim = -2 if mixture.per_dimension else -1
    weights = mixture.log_weights.exp() ** (1 / tau)
    log_weights = (weights / weights.sum(dim, keepdim=True)).log()
    if mixture.scale_tril is not None:
        return GaussianMixture(log_weights, mixture.mean, scale_tril=math.sqrt(tau) * mixture.scale_tril)
    return GaussianMixture(log_weights, mixture.mean, (math.sqrt(tau) * mixture.log_scale.exp()).log())


def assert_same_mean(draws, expected, sigmas=5.0):
    """Check that the mean of N independent samples lies within a number of its standard errors."""
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert ((draws.mean(dim=0) - expected).abs() <= sigmas * error + 1e-12).all()


# reference


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_matches_torch_distributions(kind, batch):
    mixture = make(kind, batch)
    x = 2 * torch.randn(*batch, D, generator=seeded(1), dtype=torch.float64)
    assert mixture.log_prob(x).shape == batch
    torch.testing.assert_close(mixture.log_prob(x), oracle_log_prob(mixture, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_takes_further_dimensions_before_the_batch(kind):
    mixture = make(kind, (2, 3))
    x = torch.randn(5, 2, 3, D, generator=seeded(1), dtype=torch.float64)
    expected = torch.stack([mixture.log_prob(one) for one in x])
    torch.testing.assert_close(mixture.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    assert mixture.responsibilities(x).shape == ((5, 2, 3, K, D) if kind == "per_dimension" else (5, 2, 3, K))
    assert mixture.cdf(x).shape == (5, 2, 3, D)


def test_density_of_one_dimension_integrates_to_one():
    mixture = make("diagonal", d=1)
    grid = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    assert torch.trapezoid(mixture.log_prob(grid[:, None]).exp(), grid).item() == pytest.approx(1.0, abs=1e-9)


def test_factorisations_agree_for_one_dimension_and_differ_for_more():
    joint = make("diagonal", (5,), d=1)
    alone = GaussianMixture(joint.log_weights.unsqueeze(-1), joint.mean, joint.log_scale)
    x = torch.randn(5, 1, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(alone.log_prob(x), joint.log_prob(x), rtol=1e-12, atol=1e-12)
    joint = make("diagonal", (5,))
    alone = GaussianMixture(joint.log_weights.unsqueeze(-1).expand(5, K, D), joint.mean, joint.log_scale)
    x = torch.randn(5, D, generator=seeded(1), dtype=torch.float64)
    assert (alone.log_prob(x) - joint.log_prob(x)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["diagonal", "full", "isotropic"])
def test_responsibilities_are_bayes_rule_joint(kind):
    mixture = make(kind, (3, 2))
    x = torch.randn(3, 2, D, generator=seeded(1), dtype=torch.float64)
    joint = oracle(mixture).component_distribution.log_prob(x.unsqueeze(-2)) + mixture.log_weights
    expected = joint.exp() / joint.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(mixture.responsibilities(x), expected, rtol=1e-10, atol=1e-12)


def test_responsibilities_are_bayes_rule_per_dimension():
    mixture = make("per_dimension", (3, 2))
    x = torch.randn(3, 2, D, generator=seeded(1), dtype=torch.float64)
    density = mixture.log_weights.exp() * Normal(mixture.mean, mixture.log_scale.exp()).log_prob(x.unsqueeze(-2)).exp()
    expected = density / density.sum(-2, keepdim=True)
    torch.testing.assert_close(mixture.responsibilities(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_expectation_and_variance_match_torch_distributions_and_samples(kind):
    mixture = make(kind)
    reference = oracle(mixture)
    torch.testing.assert_close(mixture.expectation(), reference.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixture.variance(), reference.variance, rtol=1e-12, atol=1e-12)
    draws = draw(mixture, 40_000)
    assert_same_mean(draws, mixture.expectation())
    assert_same_mean((draws - mixture.expectation()).square(), mixture.variance())


@pytest.mark.parametrize("kind", KINDS)
def test_cdf_matches_scipy_and_samples(kind):
    mixture = make(kind)
    x = torch.randn(D, generator=seeded(1), dtype=torch.float64)
    weights = mixture.log_weights.exp() if mixture.per_dimension else mixture.log_weights.exp().unsqueeze(-1).expand(K, D)
    scale = mixture.log_scale.exp()
    if mixture.scale_tril is not None:
        scale = (mixture.scale_tril @ mixture.scale_tril.mT).diagonal(dim1=-2, dim2=-1).sqrt()
    expected = (weights * torch.from_numpy(stats.norm.cdf(x.numpy(), mixture.mean.numpy(), scale.numpy()))).sum(dim=0)
    torch.testing.assert_close(mixture.cdf(x), expected, rtol=1e-10, atol=1e-12)
    assert_same_mean((draw(mixture, 40_000) <= x).double(), mixture.cdf(x))


@pytest.mark.parametrize("kind", KINDS)
def test_affine_is_the_exact_change_of_variables(kind):
    mixture = make(kind, (2, 3))
    g = seeded(1)
    x, shift = (torch.randn(2, 3, D, generator=g, dtype=torch.float64) for _ in range(2))
    scale = torch.rand(D, generator=g, dtype=torch.float64) + 0.5
    moved = mixture.affine(shift, scale)
    expected = mixture.log_prob(x) - scale.log().sum()
    torch.testing.assert_close(moved.log_prob(shift + scale * x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved.cdf(shift + scale * x), mixture.cdf(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved.variance(), scale**2 * mixture.variance(), rtol=1e-12, atol=1e-12)
    one, other = (m.sample(generator=seeded(2)) for m in (mixture, moved))
    torch.testing.assert_close(other, shift + scale * one, rtol=1e-12, atol=1e-12)


# precision


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_exact_and_finite_far_away(kind):
    base = make(kind, (2,))
    parts = [base.log_weights, base.mean, base.log_scale.clone() if base.scale_tril is None else base.scale_tril]

    def nll(log_weights, mean, noise, x):
        if base.scale_tril is None:
            return -GaussianMixture(log_weights, mean, noise).log_prob(x)
        return -GaussianMixture(log_weights, mean, scale_tril=noise).log_prob(x)

    x = torch.randn(2, D, generator=seeded(1), dtype=torch.float64)
    leaves = [part.clone().requires_grad_() for part in (*parts, x)]
    assert torch.autograd.gradcheck(nll, leaves)
    leaves = [part.float().requires_grad_() for part in (*parts, 1e4 * x)]
    nll(*leaves).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_an_impossible_component_changes_neither_density_nor_gradients(kind):
    mixture = make(kind)
    kept = [0, 1, 3]
    log_weights = mixture.log_weights.clone()
    log_weights[2] = -torch.inf
    noise = {"log_scale": mixture.log_scale} if mixture.scale_tril is None else {"scale_tril": mixture.scale_tril}
    mean = mixture.mean.clone().requires_grad_()
    all_four = GaussianMixture(log_weights, mean, **noise)
    three = GaussianMixture(log_weights[kept], mixture.mean[kept], **{name: part[kept] for name, part in noise.items()})
    x = torch.randn(D, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(all_four.log_prob(x).detach(), three.log_prob(x), rtol=1e-12, atol=1e-12)
    all_four.log_prob(x).backward()
    assert torch.isfinite(mean.grad).all()
    assert (mean.grad[2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_parameters_give_float32_results(kind, dtype):
    half = make(kind, (3,), dtype=dtype)
    x = torch.randn(3, D, generator=seeded(1)).to(dtype)
    results = [half.log_prob(x), half.cdf(x), half.expectation(), half.variance(), half.sample(generator=seeded())]
    assert all(result.dtype == torch.float32 for result in results)
    noise = {"scale_tril": half.scale_tril.double()} if kind == "full" else {"log_scale": half.log_scale.double()}
    exact = GaussianMixture(half.log_weights.double(), half.mean.double(), **noise).log_prob(x.double())
    torch.testing.assert_close(half.log_prob(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_sampling_under_autocast_keeps_the_precision_of_float32():
    mixture = make("full", (50,), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mixture.sample(generator=seeded(1))
    torch.testing.assert_close(inside, mixture.sample(generator=seeded(1)), rtol=1e-6, atol=1e-6)


# sampling


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_analytic_tempered_mixture(kind, temperature):
    mixture = make(kind)
    expected, draws = tempered(mixture, temperature), draw(mixture, 40_000, temperature)
    assert_same_mean(draws, expected.expectation())
    assert_same_mean((draws - expected.expectation()).square(), expected.variance())
    for shift in (-1.0, 0.0, 1.0):
        assert_same_mean((draws <= expected.expectation() + shift).double(), expected.cdf(expected.expectation() + shift))
    surprise = -expected.log_prob(draws)  # of the joint density, so of the correlations too
    entropy = -oracle_log_prob(expected, draw(expected, 40_000, seed=5))
    error = math.hypot(surprise.std().item(), entropy.std().item()) / math.sqrt(40_000)
    assert abs(surprise.mean() - entropy.mean()) < 5 * error


def test_samples_of_full_noise_have_the_covariance_of_their_component():
    mixture = make("full", k=1)
    draws = draw(mixture, 40_000) - mixture.mean[0]
    products = draws.unsqueeze(-1) * draws.unsqueeze(-2)  # (N, D, D)
    assert_same_mean(products, mixture.scale_tril[0] @ mixture.scale_tril[0].mT)


def test_dimensions_choose_together_if_joint_and_alone_if_per_dimension():
    mean = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    half = torch.full((2,), math.log(0.5))
    joint = draw(GaussianMixture(half, mean, torch.full((2, 2), -9.0)), 20_000).sign()
    alone = draw(GaussianMixture(half[:, None].expand(2, 2), mean, torch.full((2, 2), -9.0)), 20_000).sign()
    assert (joint[:, 0] == joint[:, 1]).all()
    assert_same_mean(alone[:, 0] * alone[:, 1], 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_zero_is_the_mode_exactly(kind):
    mixture = make(kind, (6,))
    mode = mixture.mode()
    for b in range(6):
        for d in range(D):
            weights = mixture.log_weights[b, :, d] if mixture.per_dimension else mixture.log_weights[b]
            assert mode[b, d] == mixture.mean[b, int(weights.argmax()), d]
    assert torch.equal(mixture.sample(0.0), mode)
    assert torch.equal(mixture.sample(0), mode)
    assert torch.equal(mixture.sample(torch.zeros(6), generator=seeded()), mode)


@pytest.mark.parametrize("kind", KINDS)
def test_a_temperature_per_dream_equals_the_numbers_row_by_row(kind):
    mixture = make(kind, (4, 2), dtype=torch.float32)
    temperatures = [0.0, 0.5, 1.0, 1.5]
    rows = mixture.sample(torch.tensor(temperatures), generator=seeded(3))
    for row, temperature in enumerate(temperatures):
        alone = mixture.sample(temperature, generator=seeded(3))
        torch.testing.assert_close(rows[row], alone[row], rtol=1e-6, atol=1e-6)
    one_for_all = mixture.sample(torch.tensor(0.5), generator=seeded(3))
    torch.testing.assert_close(one_for_all, mixture.sample(0.5, generator=seeded(3)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-42, 1e-60])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_tiny_temperature_picks_the_heaviest_of_each_row(temperature, as_tensor):
    """Trap 4: one maximum for all rows, or none, underflows for rows with small weights."""
    logits = torch.tensor([[-0.01, -5.0, -9.0], [-2.0, -1.2, -0.6], [-60.0, 0.0, -80.0], [-1.2, -1.0, -1.1]])
    log_weights = logits.log_softmax(-1)
    mixture = GaussianMixture(log_weights, torch.arange(12.0).reshape(4, 3, 1), torch.zeros(4, 1, 1))
    tau = torch.full((4,), temperature, dtype=torch.float64) if as_tensor else temperature
    draws = mixture.sample(tau, generator=seeded())
    assert ((draws - mixture.mode()).abs() < 6 * math.sqrt(temperature) + 1e-6).all()


def test_equal_weights_stay_equal_at_a_tiny_temperature():
    """The quotient log pi / tau is huge; in float32 the noise would vanish next to it.

    Trap 4: nor does it help to subtract a maximum that belongs to another row, as that of the last
    row here.
    """
    n = 20_000
    logits = torch.cat([torch.zeros(n, 3), torch.tensor([[50.0, 0.0, 0.0]])])
    mean = torch.tensor([[0.0], [1.0], [2.0]]).expand(n + 1, 3, 1)
    mixture = GaussianMixture(logits.log_softmax(-1), mean, torch.zeros(1, 1))
    draws = mixture.sample(1e-9, generator=seeded()).round()[:n]
    for value in range(3):
        assert_same_mean((draws == value).double(), torch.tensor([1 / 3]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_groups_have_common_random_numbers(kind, temperature):
    one = make(kind, (3,))
    rows = one.sample(temperature, generator=seeded(4))

    def stacked(tensor):
        return tensor.repeat(2, *(1,) * (tensor.ndim - 1))

    noise = {"log_scale": stacked(one.log_scale)} if one.scale_tril is None else {"scale_tril": stacked(one.scale_tril)}
    two = GaussianMixture(stacked(one.log_weights), stacked(one.mean), **noise)
    shared = two.sample(temperature, num_groups=2, generator=seeded(4))
    assert torch.equal(shared[:3], shared[3:])
    assert torch.equal(shared[:3], rows)
    unshared = two.sample(temperature, generator=seeded(4))
    assert not torch.equal(unshared[:3], unshared[3:])


def test_shared_draws_follow_the_rows_and_the_dtype():
    noise = shared_draws(torch.zeros(6, 2, dtype=torch.float64), 3, lambda t: t.normal_(generator=seeded()))
    assert noise.dtype == torch.float64
    assert torch.equal(noise, torch.empty(2, 2, dtype=torch.float64).normal_(generator=seeded()).repeat(3, 1))


def test_categorical_samples_each_component_with_its_probability():
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    for offset in (0.0, 50.0):  # any normalisation
        index = categorical((probability.log() + offset).expand(40_000, 4), generator=seeded(1))
        for k in range(4):
            assert_same_mean((index == k).double(), probability[k].double())


def test_categorical_finds_its_components_in_any_dimension():
    logits = torch.randn(5, 4, 3, generator=seeded(), dtype=torch.float64)
    logits[:, 1] = 500.0
    assert torch.equal(categorical(logits, dim=1, generator=seeded()), torch.ones(5, 3, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_impossible_components_are_never_sampled(dtype):
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, -1.0], dtype=dtype).expand(200_000, 4)
    assert set(categorical(logits, generator=seeded()).unique().tolist()) == {1, 3}


def test_equal_weights_are_sampled_equally_often_in_half_precision():
    """With eight bits near 50, every tenth sample of equals ties, and the first wins."""
    index = categorical(torch.full((20_000, 2), 50.0, dtype=torch.bfloat16), generator=seeded())
    assert_same_mean(index.double(), torch.tensor(0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bits_and_the_global_seed_is_irrelevant(kind):
    mixture = make(kind, (5,))
    torch.manual_seed(0)
    one = mixture.sample(generator=seeded(7))
    entropy = mixture.entropy(3, generator=seeded(7))[0]
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert torch.equal(one, mixture.sample(generator=seeded(7)))
    assert torch.equal(entropy, mixture.entropy(3, generator=seeded(7))[0])
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(one, mixture.sample(generator=seeded(8)))


def test_without_a_generator_samples_follow_the_global_seed_and_never_repeat():
    """Trap 8: a fresh `torch.Generator()` inside would start from the same number each time."""
    mixture = make("diagonal", (5,))
    for draw_once in (mixture.sample, lambda: categorical(torch.zeros(50, 8))):
        torch.manual_seed(0)
        one, two = draw_once(), draw_once()
        torch.manual_seed(0)
        assert torch.equal(one, draw_once())
        assert not torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_of_one_gaussian_is_the_closed_form_within_its_standard_error(kind):
    mixture = make(kind, (4,), k=1)
    estimate, error = mixture.entropy(2000, generator=seeded(1))
    if kind == "full":
        log_determinant = mixture.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
    else:
        log_determinant = mixture.log_scale.sum((-2, -1))
    expected = D * 0.5 * math.log(2 * math.pi * math.e) + log_determinant
    assert estimate.shape == error.shape == (4,)
    assert ((estimate - expected).abs() < 4 * error).all()
    torch.testing.assert_close(error, torch.full((4,), math.sqrt(D / 2 / 2000), dtype=torch.float64), rtol=0.15, atol=0)


def test_the_parameters_of_the_caller_do_not_change():
    parts = [torch.zeros(2, 3), torch.ones(2, 3, 4), torch.zeros(2, 3, 4)]
    copies = [part.clone() for part in parts]
    mixture = GaussianMixture(*parts)
    mixture.sample(0.5, generator=seeded())
    mixture.affine(torch.ones(4), 2 * torch.ones(4)).log_prob(torch.zeros(2, 4))
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))
    assert (mixture.batch_shape, mixture.num_components, mixture.dim) == ((2,), 3, 4)


# rejection


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (4,), (4,)), r"mean: expected shape \(\.\.\., K, D\) with K >= 1, got \(4,\)"),
        (((0,), (0, 2), (0, 2)), r"mean: expected shape \(\.\.\., K, D\) with K >= 1, got \(0, 2\)"),
        (((2, 3), (5, 3, 4), (3, 4)), r"log_weights: expected shape \(5, 3\) or \(5, 3, 4\), got \(2, 3\)"),
        (((5, 3, 1), (5, 3, 4), (3, 4)), r"log_weights: expected shape \(5, 3\) or \(5, 3, 4\), got \(5, 3, 1\)"),
        (((5, 3), (5, 3, 4), (5, 2, 4)), r"log_scale: expected a shape that broadcasts to \(5, 3, 4\), got \(5, 2, 4\)"),
        (((3,), (3, 4), (7, 3, 4)), r"log_scale: expected a shape that broadcasts to \(3, 4\), got \(7, 3, 4\)"),
    ],
)
def test_inconsistent_shapes_are_rejected(shapes, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("shape", [(), (3, 3, 3), (2, 3), (3, 2)])
def test_affine_rejects_shapes_that_would_change_the_batch_shape(shape):
    """With B = K = D, per-dimension weights would be taken for joint ones."""
    mixture = make("per_dimension", (3,), k=3, d=3)
    with pytest.raises(ValueError, match=r"shift: expected a shape that broadcasts to \(3, 3\), got"):
        mixture.affine(torch.zeros(shape), torch.ones(3))
    with pytest.raises(ValueError, match=r"scale: expected a shape that broadcasts to \(3, 3\), got"):
        mixture.affine(torch.zeros(3), torch.ones(shape))


def test_exactly_one_kind_of_scale_is_required():
    for noise in ({}, {"log_scale": torch.zeros(3, 2), "scale_tril": torch.eye(2).expand(3, 2, 2)}):
        with pytest.raises(ValueError, match="log_scale, scale_tril: expected exactly one"):
            GaussianMixture(torch.zeros(3), torch.zeros(3, 2), **noise)


@pytest.mark.parametrize(("weights", "tril"), [((3,), (3, 2, 3)), ((3,), (2, 2)), ((3, 2), (3, 2, 2))])
def test_scale_tril_of_another_shape_or_per_dimension_is_rejected(weights, tril):
    with pytest.raises(ValueError, match=r"scale_tril: expected shape \(3, 2, 2\)"):
        GaussianMixture(torch.zeros(weights), torch.zeros(3, 2), scale_tril=torch.ones(tril))


@pytest.mark.parametrize("shape", [(), (3,), (5, 1), (1, 3), (3, 5)])
def test_x_of_another_shape_is_rejected_and_never_broadcast(shape):
    mixture = make("diagonal", (5,))
    for method in (mixture.log_prob, mixture.responsibilities, mixture.cdf):
        with pytest.raises(ValueError, match=r"x: expected shape \(5, 3\), got"):
            method(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [-0.1, math.inf, math.nan])
def test_a_temperature_that_is_negative_or_not_finite_is_rejected(temperature):
    with pytest.raises(ValueError, match="temperature: expected finite values >= 0"):
        make("diagonal").sample(temperature)
    with pytest.raises(ValueError, match="temperature: expected finite values >= 0"):
        check_temperature(torch.tensor([1.0, temperature]))
    check_temperature(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("shape", [(2,), (4, 3), (4, 2, 1)])
def test_a_temperature_of_another_shape_is_rejected(shape):
    with pytest.raises(ValueError, match=r"temperature: expected a shape that is a prefix of the batch shape \(4, 2\)"):
        make("diagonal", (4, 2)).sample(torch.ones(shape))


@pytest.mark.parametrize("num_groups", [0, -1, 4])
def test_groups_that_do_not_divide_the_batch_are_rejected(num_groups):
    with pytest.raises(ValueError, match="num_groups: expected a divisor of the first dimension"):
        make("diagonal", (6,)).sample(num_groups=num_groups)


@pytest.mark.parametrize("kind", ["diagonal", "per_dimension"])
def test_groups_of_a_single_mixture_are_rejected(kind):
    """K and D are not batch dimensions: components need independent noise."""
    with pytest.raises(ValueError, match="num_groups: expected 1 for a mixture without batch dimensions, got 2"):
        make(kind, k=4, d=2).sample(num_groups=2)


def test_categorical_rejects_log_weights_without_components():
    for bad in (torch.tensor(0.0), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match="log_weights: expected shape"):
            categorical(bad)


def test_entropy_needs_two_samples():
    with pytest.raises(ValueError, match="num_samples: expected an integer >= 2, got 1"):
        make("diagonal").entropy(1)
