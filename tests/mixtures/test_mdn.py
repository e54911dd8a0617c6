"""Heads return mixtures of the documented structure, and a small network learns a known conditional density."""

import itertools
import math

import pytest
import torch
from torch import nn

from worldmodel.mixtures import Factorization, MixtureDensityNetwork, MixtureHead, NoiseType, check_noise, soft_floor

COMBINATIONS = list(itertools.product(Factorization, NoiseType))
F, K, D = 5, 4, 3  # K != D


def fixed_level(noise_type, level=0.7):
    return level if noise_type is NoiseType.FIXED else None


def make_head(factorization, noise_type, *, k=K, d=D, min_scale=1e-3, dtype=torch.float64):
    torch.manual_seed(0)
    level = fixed_level(noise_type)
    head = MixtureHead(
        F, d, k, factorization=factorization, noise_type=noise_type, fixed_noise_level=level, min_scale=min_scale
    )
    return head.to(dtype)


def features(*leading, dtype=torch.float64):
    return 3 * torch.randn(*leading, F, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("leading", [(), (1,), (1, 1), (6,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(("factorization", "noise_type"), COMBINATIONS)
def test_the_mixture_has_the_documented_shapes(factorization, noise_type, leading):
    mixture = make_head(factorization, noise_type)(features(*leading))
    assert mixture.per_dimension is (factorization is Factorization.PER_DIMENSION)
    assert (mixture.batch_shape, mixture.num_components, mixture.dim) == (leading, K, D)
    assert mixture.log_scale.shape == mixture.mean.shape == (*leading, K, D)
    dim = -2 if mixture.per_dimension else -1
    total = mixture.log_weights.exp().sum(dim)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=1e-12)
    assert (mixture.scale_tril is not None) is ((factorization, noise_type) == (Factorization.JOINT, NoiseType.FULL))
    assert mixture.log_prob(torch.zeros(*leading, D, dtype=torch.float64)).shape == leading


@pytest.mark.parametrize(("factorization", "noise_type"), COMBINATIONS)
def test_scales_are_shared_as_the_noise_type_says(factorization, noise_type):
    """Trap 1: `repeat` for `repeat_interleave` gives an isotropic sigma that is not; K != D shows it."""
    log_scale = make_head(factorization, noise_type)(features(8)).log_scale
    across_examples = bool((log_scale == log_scale[:1]).all())
    across_components = bool((log_scale == log_scale[:, :1]).all())
    across_dimensions = bool((log_scale == log_scale[..., :1]).all())
    expected = {
        NoiseType.FULL: (False, False, False),
        NoiseType.DIAGONAL: (False, False, False),
        NoiseType.ISOTROPIC: (False, False, factorization is Factorization.JOINT),
        NoiseType.ISOTROPIC_ACROSS_CLUSTERS: (False, True, factorization is Factorization.JOINT),
        NoiseType.FIXED: (True, True, True),
    }[noise_type]
    assert (across_examples, across_components, across_dimensions) == expected


@pytest.mark.parametrize(
    ("factorization", "noise_type", "noise_outputs"),
    [
        (Factorization.JOINT, NoiseType.FULL, K * D * (D + 1) // 2),
        (Factorization.JOINT, NoiseType.DIAGONAL, K * D),
        (Factorization.JOINT, NoiseType.ISOTROPIC, K),
        (Factorization.JOINT, NoiseType.ISOTROPIC_ACROSS_CLUSTERS, 1),
        (Factorization.JOINT, NoiseType.FIXED, 0),
        (Factorization.PER_DIMENSION, NoiseType.FULL, K * D),
        (Factorization.PER_DIMENSION, NoiseType.DIAGONAL, K * D),
        (Factorization.PER_DIMENSION, NoiseType.ISOTROPIC, K * D),
        (Factorization.PER_DIMENSION, NoiseType.ISOTROPIC_ACROSS_CLUSTERS, D),
        (Factorization.PER_DIMENSION, NoiseType.FIXED, 0),
    ],
)
def test_the_head_has_as_many_outputs_as_the_table_says(factorization, noise_type, noise_outputs):
    weights = K * D if factorization is Factorization.PER_DIMENSION else K
    assert make_head(factorization, noise_type).linear.out_features == weights + K * D + noise_outputs


@pytest.mark.parametrize("dim", [64, 128])
def test_full_noise_starts_near_the_diagonals_loss_and_trains_in_many_dimensions(dim):
    x, losses = torch.randn(8, dim, generator=torch.Generator().manual_seed(0)), {}
    for noise_type in (NoiseType.DIAGONAL, NoiseType.FULL):
        torch.manual_seed(1)
        head = MixtureHead(F, dim, 2, noise_type=noise_type, min_scale=0.03)
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        seen = torch.randn(8, F, generator=torch.Generator().manual_seed(2))
        losses[noise_type] = []
        for _ in range(6):
            loss = -head(seen).log_prob(x).mean()
            losses[noise_type].append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    full, diagonal = losses[NoiseType.FULL], losses[NoiseType.DIAGONAL]
    assert full[0] == pytest.approx(diagonal[0], rel=0.1)
    assert full[-1] < full[0]


def test_full_noise_is_a_lower_triangular_factor_with_off_diagonals():
    head = make_head(Factorization.JOINT, NoiseType.FULL)
    start = head(features(6)).scale_tril
    assert torch.equal(start, torch.diag_embed(start.diagonal(dim1=-2, dim2=-1)))  # no correlation yet
    with torch.no_grad():
        head.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    mixture = head(features(6))
    tril = mixture.scale_tril
    assert torch.equal(tril, tril.tril())
    assert (tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    row, column = torch.tril_indices(D, D, offset=-1)
    assert (tril[..., row, column].abs() > 1e-3).all()
    covariance = tril @ tril.mT
    standard = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(mixture.log_scale.exp(), standard, rtol=1e-12, atol=1e-12)
    correlation = covariance / (standard.unsqueeze(-1) * standard.unsqueeze(-2))
    assert (correlation[..., 0, 1].abs() > 0.01).any()


def test_full_noise_of_one_dimension_is_diagonal():
    mixture = make_head(Factorization.JOINT, NoiseType.FULL, d=1)(features(6))
    torch.testing.assert_close(mixture.scale_tril[..., 0, 0], mixture.log_scale[..., 0].exp(), rtol=1e-12, atol=1e-12)


def test_each_raw_output_is_the_documented_parameter():
    """The layout of the linear layer, which saved weights depend on: logits, then means, then noise, each as (K, D)."""
    mixture_of = {}
    for factorization in Factorization:
        head = make_head(factorization, NoiseType.DIAGONAL, min_scale=1e-9)
        nn.init.zeros_(head.linear.weight)
        with torch.no_grad():
            head.linear.bias.copy_(torch.arange(head.linear.out_features))
        mixture_of[factorization] = head(features(2))
    joint, alone = mixture_of[Factorization.JOINT], mixture_of[Factorization.PER_DIMENSION]
    grid = torch.arange(K * D, dtype=torch.float64).reshape(K, D)
    assert torch.equal(joint.mean[0], grid + K)
    assert torch.equal(alone.mean[1], grid + K * D)
    torch.testing.assert_close(joint.log_weights[0], torch.arange(K, dtype=torch.float64).log_softmax(0))
    torch.testing.assert_close(alone.log_weights[0], grid.log_softmax(0))
    torch.testing.assert_close(joint.log_scale[0], grid + K + K * D)
    torch.testing.assert_close(alone.log_scale[0], grid + 2 * K * D)


@pytest.mark.parametrize("factorization", Factorization)
def test_fixed_noise_is_the_level_given_and_has_no_gradient(factorization):
    mixture = make_head(factorization, NoiseType.FIXED)(features(2))
    assert torch.equal(mixture.log_scale, torch.full((2, K, D), math.log(0.7), dtype=torch.float64))
    assert not mixture.log_scale.requires_grad
    assert mixture.mean.requires_grad


def test_the_soft_floor_is_its_formula():
    raw = torch.linspace(-30, 5, 200, dtype=torch.float64)
    expected = (torch.exp(2 * raw) + 0.05**2).sqrt().log()
    torch.testing.assert_close(soft_floor(raw, 0.05), expected, rtol=1e-12, atol=1e-12)


def test_the_soft_floor_holds_anywhere_with_a_finite_gradient():
    """Trap 3: exp(s + eps) is not a floor, and a clamp has a gradient that jumps."""
    raw = torch.tensor([-1e30, -1e4, -200.0, -5.0, 0.0, 10.0], requires_grad=True)
    floored = soft_floor(raw, 1e-3)
    assert (floored.exp() >= 1e-3 * (1 - 1e-6)).all()
    floored.sum().backward()
    assert ((raw.grad >= 0) & (raw.grad <= 1)).all()
    assert raw.grad[-1] == pytest.approx(1.0)
    torch.testing.assert_close(floored[-2:].detach(), raw[-2:].detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("factorization", "noise_type"), [c for c in COMBINATIONS if c[1] is not NoiseType.FIXED])
def test_a_constant_target_cannot_drive_the_density_above_the_floor(factorization, noise_type):
    head = make_head(factorization, noise_type, min_scale=0.1)
    nn.init.zeros_(head.linear.weight)
    with torch.no_grad():
        head.linear.bias.fill_(0.0)
        head.linear.bias[-head._sizes[2] :] = -1e3
        if (factorization, noise_type) == (Factorization.JOINT, NoiseType.FULL):  # log-diagonals only
            noise = head.linear.bias[-head._sizes[2] :].reshape(K, -1)
            noise[:, D:] = 0.0
    mixture = head(features(2))
    torch.testing.assert_close(mixture.log_scale.exp(), torch.full((2, K, D), 0.1, dtype=torch.float64), rtol=1e-9, atol=0)
    highest = -D * (math.log(0.1) + 0.5 * math.log(2 * math.pi))
    assert mixture.log_prob(mixture.mean[:, 0])[0].item() == pytest.approx(highest, abs=1e-9)


@pytest.mark.parametrize("noise_type", NoiseType)
def test_densities_of_a_half_precision_head_are_float32(noise_type):
    half, full = (make_head(Factorization.JOINT, noise_type, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    mixtures = [half(features(9, dtype=torch.bfloat16))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixtures.append(full(features(9, dtype=torch.float32)))
        assert mixtures[1].log_prob(torch.zeros(9, D)).dtype == torch.float32
    for mixture in mixtures:
        assert mixture.log_prob(torch.zeros(9, D)).dtype == torch.float32
        total = mixture.log_weights.exp().sum(dim=-1)  # weights that are rounded after the softmax do not sum to 1
        torch.testing.assert_close(total, torch.ones(9), rtol=1e-6, atol=1e-6)


def test_names_may_be_given_as_strings():
    head = MixtureHead(F, D, K, factorization="per_dimension", noise_type="isotropic")
    assert (head.factorization, head.noise_type) == (Factorization.PER_DIMENSION, NoiseType.ISOTROPIC)


# the network


@pytest.mark.parametrize(("factorization", "noise_type"), COMBINATIONS)
@pytest.mark.parametrize("leading", [(), (1,), (2, 3)], ids=str)
def test_the_network_takes_any_leading_dimensions(factorization, noise_type, leading):
    torch.manual_seed(0)
    network = MixtureDensityNetwork(2, D, K, 8, noise_type, fixed_level(noise_type), factorization=factorization)
    x, y = torch.randn(*leading, 2), torch.randn(*leading, D)
    assert network.loss(x, y).shape == leading
    torch.testing.assert_close(network.loss(x, y), -network(x).log_prob(y), rtol=0, atol=0)
    assert network.sample(x).shape == (*leading, D)
    flat = network.loss(x.reshape(-1, 2), y.reshape(-1, D))
    torch.testing.assert_close(network.loss(x, y).reshape(-1), flat, rtol=1e-5, atol=1e-5)


def test_the_hidden_layer_is_by_default_as_wide_as_the_input():
    assert MixtureDensityNetwork(7, D, K).hidden[0].out_features == 7
    assert MixtureDensityNetwork(7, D, K, hidden_dim=9).hidden[0].out_features == 9
    with pytest.raises(ValueError, match="hidden_dim: expected an integer >= 1, got 0"):
        MixtureDensityNetwork(7, D, K, hidden_dim=0)


def test_network_samples_depend_on_the_generator_only_and_on_the_temperature():
    torch.manual_seed(0)
    network, x = MixtureDensityNetwork(2, D, K, 8), torch.randn(6, 2)

    def draw(temperature=1.0):
        return network.sample(x, temperature, generator=torch.Generator().manual_seed(3))

    one = draw()
    torch.manual_seed(99)
    assert torch.equal(one, draw())
    assert torch.equal(draw(0.0), network(x).mode())
    assert not torch.equal(one, draw(0.5))


@pytest.mark.parametrize("noise_type", NoiseType)
def test_every_weight_gets_a_finite_gradient(noise_type):
    torch.manual_seed(0)
    network = MixtureDensityNetwork(2, D, K, 8, noise_type, fixed_level(noise_type))
    network.loss(torch.randn(32, 2), 100 * torch.randn(32, D)).mean().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


def test_a_small_network_finds_the_conditional_entropy_of_a_known_process():
    """y = +-x + noise of sigma 0.2 in both dimensions at once; x, the sign and the noise are independent."""
    sigma, generator = 0.2, torch.Generator().manual_seed(0)

    def data(n):
        x = torch.rand(n, 1, generator=generator) + 1.0  # the modes are 10 sigma apart and more
        sign = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1.0
        return x, sign * x + sigma * torch.randn(n, 2, generator=generator)

    entropy = math.log(2) + math.log(2 * math.pi * math.e * sigma**2)
    torch.manual_seed(0)
    network = MixtureDensityNetwork(1, 2, 2, 16, NoiseType.ISOTROPIC)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        network.loss(*data(256)).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        nll = network.loss(*data(20_000))
    error = nll.std().item() / math.sqrt(len(nll))
    assert -4 * error < nll.mean().item() - entropy < 0.04 + 4 * error


# rejection


@pytest.mark.parametrize("name", ["in_features", "dim", "num_components"])
def test_a_head_rejects_sizes_below_one(name):
    sizes = {"in_features": F, "dim": D, "num_components": K, name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got 0"):
        MixtureHead(**sizes)


@pytest.mark.parametrize("name", ["dim_in", "dim_out", "n_components"])
def test_a_network_rejects_sizes_below_one(name):
    sizes = {"dim_in": F, "dim_out": D, "n_components": K, "hidden_dim": 8, name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got 0"):
        MixtureDensityNetwork(**sizes)


@pytest.mark.parametrize(
    ("noise_type", "level", "min_scale", "message"),
    [
        (NoiseType.FIXED, None, 1e-3, "fixed_noise_level: expected a positive number with noise type 'fixed', got None"),
        (NoiseType.FIXED, 0.0, 1e-3, "fixed_noise_level: expected a positive number"),
        (NoiseType.FIXED, math.nan, 1e-3, "fixed_noise_level: expected a positive number"),
        (NoiseType.FIXED, math.inf, 1e-3, "fixed_noise_level: expected a positive number"),
        (NoiseType.FULL, 0.5, 1e-3, "fixed_noise_level: expected None with noise type 'full', got 0.5"),
        (NoiseType.DIAGONAL, None, 0.0, "min_scale: expected a positive number, got 0.0"),
        (NoiseType.DIAGONAL, None, math.nan, "min_scale: expected a positive number, got nan"),
    ],
)
def test_noise_settings_that_contradict_each_other_are_rejected(noise_type, level, min_scale, message):
    with pytest.raises(ValueError, match=message):
        check_noise(noise_type, level, min_scale)
    with pytest.raises(ValueError, match=message):
        MixtureHead(F, D, K, noise_type=noise_type, fixed_noise_level=level, min_scale=min_scale)


def test_unknown_names_are_rejected():
    with pytest.raises(ValueError, match="'round' is not a valid NoiseType"):
        MixtureHead(F, D, K, noise_type="round")
    with pytest.raises(ValueError, match="'both' is not a valid Factorization"):
        MixtureHead(F, D, K, factorization="both")


def test_inputs_of_another_shape_are_rejected_and_never_broadcast():
    network = MixtureDensityNetwork(2, D, K)
    for bad in (torch.zeros(()), torch.zeros(4, 3)):
        with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 2\), got"):
            network(bad)
    for bad in (torch.zeros(D), torch.zeros(1, D), torch.zeros(4, 1, D), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r"y: expected shape \(4, 3\), got"):
            network.loss(torch.zeros(4, 2), bad)
