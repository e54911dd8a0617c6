"""M's heads and losses in one function: the numbers and gradients of the mixtures, whatever the chunks."""

import dataclasses
import itertools

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from worldmodel.mixtures import Factorization, MixtureHead, NoiseType, RewardHead, TerminationHead, fused
from worldmodel.mixtures.heads import raw_mixture_nll
from worldmodel.models import MDNRNN, DataStatistics, MDNRNNConfig, SequenceBatch

B, T, D, A, H, K = 4, 9, 3, 2, 6, 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(dtype=torch.float64, **fields):
    torch.manual_seed(0)
    model = MDNRNN(D, A, MDNRNNConfig(**{"hidden_size": H, "num_components": K, **fields})).to(dtype)
    neutral = DataStatistics.neutral(D)
    units = {"change_scale": 0.5 + torch.arange(D), "reward_mean": torch.tensor([2.0]), "reward_scale": torch.tensor([3.0])}
    model.set_statistics(dataclasses.replace(neutral, **units))
    return model


def make_batch(dtype=torch.float64):
    g = seeded(1)
    z, action, reward = (torch.randn(*shape, generator=g) for shape in ((B, T + 1, D), (B, T, A), (B, T)))
    mask = torch.rand(B, T, generator=g) < 0.6
    reward[:, ::2] = 0.5  # an atom of some models
    return SequenceBatch(z.to(dtype), action.to(dtype), reward.to(dtype), torch.rand(B, T, generator=g) < 0.3, mask)


def old_way(model, batch):
    """The loss by `GaussianMixture.log_prob` and autograd."""
    losses = model.step_losses(batch)
    latent, reward, termination = (term[batch.mask].mean() for term in vars(losses).values())
    return latent / D + reward + termination


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


OPTIONS = [
    {},
    {"predict_change": False},
    {"skip": False},
    {"reward_head": False},
    {"termination_head": False},
    {"reward_head": False, "termination_head": False},
    {"termination_weight": 10.0},
    {"termination_weight": 3.0, "termination_gradient": 0.3},
    {"termination_gradient": 0.0},
    {"outcome_size": 4},
    {"outcome_size": 4, "skip": False, "termination_gradient": 0.3},
    {"outcome_size": 4, "reward_head": False},
    {"outcome_size": 4, "reward_atoms": (0.5,), "reward_components": 2, "termination_head": False},
    {"num_components": 1},
    {"noise_type": NoiseType.FULL},
    {"noise_type": NoiseType.ISOTROPIC},
    {"factorization": Factorization.JOINT},
    {"factorization": Factorization.JOINT, "num_components": 1, "reward_head": False},
    {"num_layers": 2},
    {"layer_norm": True},
    {"min_scale": 1.0},
    {"reward_components": 3},
    {"reward_atoms": (0.5, 1.5), "reward_components": 2},
    {"reward_atoms": (0.5, 1.5), "reward_components": 2, "termination_head": False, "layer_norm": True},
]


@pytest.mark.parametrize("fields", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 250, 2**20])
def test_loss_and_gradients_are_those_of_log_prob_and_autograd(fields, chunk, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK", {"cpu": chunk})
    model, batch = make(**fields), make_batch()
    assert model.latent_head.supports_raw
    loss, expected = model.loss(batch)[0], old_way(model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(model, 3 * loss), gradients(model, 3 * expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_equals_the_loss_by_autograd_up_to_rounding(dtype):
    model, batch = make(dtype), make_batch(dtype)
    loss, expected = model.loss(batch)[0], old_way(model, batch)
    assert loss.dtype == dtype
    for one, other in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("factorization", "noise_type"),
    [
        *itertools.product([Factorization.JOINT], [kind for kind in NoiseType if kind is not NoiseType.DIAGONAL]),
        (Factorization.PER_DIMENSION, NoiseType.FIXED),
        (Factorization.PER_DIMENSION, NoiseType.ISOTROPIC_ACROSS_CLUSTERS),
    ],
)
def test_other_mixtures_are_trained_by_autograd(factorization, noise_type):
    level = 0.5 if noise_type is NoiseType.FIXED else None
    model, batch = make(factorization=factorization, noise_type=noise_type, fixed_noise_level=level), make_batch()
    assert not model.latent_head.supports_raw
    torch.testing.assert_close(model.loss(batch)[0], old_way(model, batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("joint", [False, True])
def test_the_gradient_is_the_derivative(joint):
    g = seeded(2)
    x, reward = torch.randn(5, D, generator=g).double(), torch.randn(5, 1, generator=g).double()
    factorization = Factorization.JOINT if joint else Factorization.PER_DIMENSION
    latent = MixtureHead(4, D, 2, factorization=factorization, min_scale=0.1).double()
    heads = [latent, RewardHead(4, 0.1).double(), TerminationHead(4, 3.0).double()]
    targets, divisors = (x, reward, torch.tensor([0.0, 1, 0, 0, 1]).double()), (D, 1, 1)
    terms = [fused.LossTerm(*term) for term in zip(heads, targets, divisors, strict=True)]
    features, rows = torch.randn(7, 4, generator=g).double().requires_grad_(), torch.tensor([6, 0, 3, 2, 5])
    weights = [parameter for head in heads for parameter in head.parameters()]  # perturbed in place by gradcheck
    for parameter in weights:
        parameter.data.normal_(generator=g)
    torch.autograd.gradcheck(lambda f, *_: fused.heads_loss(f, rows, terms)[0], [features, *weights])


def test_the_density_is_that_of_torch_distributions():
    g = seeded(3)
    logits, mean, raw_scale = (torch.randn(8, K, D, generator=g).double() for _ in range(3))
    x = torch.randn(8, D, generator=g).double()
    scale = ((2 * raw_scale).exp() + 0.2**2).sqrt()
    expected = -MixtureSameFamily(Categorical(logits=logits.mT), Normal(mean.mT, scale.mT)).log_prob(x).sum()
    nll = raw_mixture_nll(logits, mean, raw_scale, x, 0.2, gradient=False)
    torch.testing.assert_close(nll, expected, rtol=1e-12, atol=0)
    joint = MixtureSameFamily(Categorical(logits=logits[:, :, 0]), Independent(Normal(mean, scale), 1))
    nll = raw_mixture_nll(logits[:, :, :1], mean, raw_scale, x, 0.2, gradient=False)
    torch.testing.assert_close(nll, -joint.log_prob(x).sum(), rtol=1e-12, atol=0)


def test_outputs_far_out_give_finite_numbers():
    raw = [torch.tensor(numbers).reshape(2, 2, 1) for numbers in ([90.0, 90, -90, -90], [1e4] * 4, [60.0, 60, -60, -60])]
    nll = raw_mixture_nll(*raw, torch.zeros(2, 1), 1e-3, gradient=True)
    assert torch.isfinite(nll)
    assert all(torch.isfinite(part).all() for part in raw)


def test_the_terms_are_measured_and_not_differentiated():
    _, metrics = make().loss(make_batch())
    assert not any(term.requires_grad for term in metrics.values())


def test_without_gradients_the_loss_is_the_same():
    model, batch = make(), make_batch()
    with torch.no_grad():
        loss, metrics = model.loss(batch)
    assert not loss.requires_grad
    assert loss == model.loss(batch)[0]
    assert metrics == model.loss(batch)[1]


def test_steps_that_do_not_count_may_hold_anything():
    model, batch = make(), make_batch()
    mask = batch.mask.clone()
    mask[:, -2:] = False
    batch = dataclasses.replace(batch, mask=mask)
    broken = dataclasses.replace(batch, reward=torch.where(mask, batch.reward, torch.nan))
    one, other = model.loss(batch)[0], model.loss(broken)[0]
    assert torch.equal(one, other)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, one), gradients(model, other), strict=True))


@pytest.mark.parametrize("short", [False, True])
def test_half_precision_is_for_products_only(short):
    model, batch = make(torch.float32), make_batch(torch.float32)
    if short:  # rows with masked steps at the end, as short episodes are padded
        counted = torch.arange(T) < torch.tensor([[4], [T], [0], [2]])
        batch = dataclasses.replace(batch, mask=counted)
    expected = old_way(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = model.loss(batch)
    assert loss.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in metrics.values())
    assert loss != expected
    torch.testing.assert_close(loss, expected, rtol=0, atol=0.05)
    for one, other in zip(gradients(model, loss), gradients(model, expected), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.05 * other.norm()


def test_longest_first_keeps_the_windows_and_counts_up_to_the_last_step_of_each():
    batch = make_batch()
    batch = dataclasses.replace(batch, mask=torch.arange(T) == torch.tensor([[4], [T - 1], [T], [2]]))
    found, lengths = batch.longest_first()
    assert lengths.tolist() == [T, 5, 3, 0]
    for name, value in vars(batch).items():
        assert torch.equal(getattr(found, name), value[[1, 0, 3, 2]])


def test_gradients_are_stored_as_their_parameters_are():
    model, batch = make(outcome_size=4), make_batch()
    assert all(gradient.is_contiguous() for gradient in gradients(model, model.loss(batch)[0]))


def test_a_factor_of_the_loss_is_one_of_its_gradient_and_no_rows_are_all_rows():
    head, g = TerminationHead(4).double(), seeded(4)
    features, target = torch.randn(7, 4, generator=g).double().requires_grad_(), torch.ones(7).double()
    plain, sums = fused.heads_loss(features, torch.arange(7), [fused.LossTerm(head, target)])
    (slope,) = torch.autograd.grad(plain, features)
    scaled, same = fused.heads_loss(features, None, [fused.LossTerm(head, target)], scale=torch.tensor(0.25))
    torch.testing.assert_close(scaled, 0.25 * plain)
    assert torch.equal(sums, same)  # without the factor
    torch.testing.assert_close(torch.autograd.grad(scaled, features)[0], 0.25 * slope)


def test_tanh_in_place_is_tanh():
    x = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-torch.inf, 0.0, torch.inf])])
    torch.testing.assert_close(fused.tanh_(x.clone()), x.tanh(), rtol=0, atol=2e-7)
