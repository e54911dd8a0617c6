"""Heads for choices, bits, mostly unchanged numbers and constants, against torch.distributions, autograd and Monte Carlo."""

import dataclasses

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal

from worldmodel.mixtures import (
    Bits,
    BitsHead,
    ChoiceHead,
    CompositeHead,
    LatentLayout,
    LatentPart,
    OneHot,
    PartKind,
    Segments,
    UnchangedHead,
    fused,
)
from worldmodel.models import MDNRNN, DataStatistics, MDNRNNConfig, SequenceBatch
from worldmodel.rng import Streams

F, N = 7, 11
SIZES = [3, 5, 2]
KINDS = [
    ("constant", PartKind.CONSTANT, 1),
    ("x", PartKind.CONTINUOUS, 2),
    ("gear", PartKind.CHOICE, 3),
    ("box", PartKind.MOSTLY_UNCHANGED, 2),
    ("flags", PartKind.BITS, 2),
    ("state", PartKind.CHOICE, 5),
    ("y", PartKind.CONTINUOUS, 1),
    ("goal", PartKind.EPISODE_CONSTANT, 2),
]


def make_layout(kinds=KINDS):
    parts, start = [], 0
    for name, kind, size in kinds:
        parts.append(LatentPart(name=name, path=name, kind=kind, start=start, size=size))
        start += size
    return LatentLayout(tuple(parts))


LAYOUT = make_layout()
D = LAYOUT.latent_size
CHANGES = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)).double() * (torch.arange(N) % 3 == 0).unsqueeze(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_hot(sizes, n, seed=0):
    g = generator(seed)
    return torch.cat([torch.eye(size)[torch.randint(size, (n,), generator=g)] for size in sizes], dim=1).double()


def latents(*leading, seed=0):
    """Return latents whose parts are of the kinds of `LAYOUT`, with half of the "box" numbers unchanged over time."""
    g = generator(seed)
    z = torch.randn(*leading, D, generator=g, dtype=torch.float64)
    z[..., 3:6] = torch.eye(3, dtype=torch.float64)[torch.randint(3, leading, generator=g)]
    z[..., 6:8] = (torch.randint(2, (*leading, 2), generator=g)).double()
    z[..., 8:10] = torch.randint(2, (*leading, 2), generator=g).double()
    z[..., 10:15] = torch.eye(5, dtype=torch.float64)[torch.randint(5, leading, generator=g)]
    z[..., [0, 16, 17]] = z[:, :1, [0, 16, 17]] if len(leading) > 1 else z[:1, [0, 16, 17]]
    return z


def make_batch():
    g = generator(1)
    z = latents(4, 10)
    action, reward = torch.randn(4, 9, 2, generator=g).double(), torch.randn(4, 9, generator=g).double()
    return SequenceBatch(z, action, reward, torch.rand(4, 9, generator=g) < 0.3, torch.rand(4, 9, generator=g) < 0.6)


def make_model(**fields):
    torch.manual_seed(0)
    model = MDNRNN(D, 2, MDNRNNConfig(**{"hidden_size": 6, "num_components": 3, **fields}), layout=LAYOUT).double()
    model.set_statistics(dataclasses.replace(DataStatistics.neutral(D), change_scale=0.5 + torch.arange(D).double() / 7))
    return model


@pytest.mark.parametrize("sizes", [SIZES, [4, 4, 4], [6]], ids=str)
def test_log_probabilities_of_choices_match_categorical(sizes):
    logits = torch.randn(N, sum(sizes), generator=generator()).double() * 3
    x, found = one_hot(sizes, N), OneHot(logits, Segments(sizes))
    parts = zip(logits.split(sizes, dim=1), x.split(sizes, dim=1), strict=True)
    expected = torch.stack([Categorical(logits=own).log_prob(value.argmax(dim=1)) for own, value in parts], dim=1)
    torch.testing.assert_close(found.log_probs(x), expected, rtol=1e-12, atol=1e-12)
    entropy = torch.stack([Categorical(logits=own).entropy() for own in logits.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(found.entropy(), entropy, rtol=1e-12, atol=1e-12)
    assert (found.log_prob(x * 0.5) == -torch.inf).all()  # not one-hot
    assert (found.log_prob(x * 0) == -torch.inf).all()


def test_log_probabilities_of_bits_match_bernoulli():
    logits = torch.randn(N, 4, generator=generator()).double() * 3
    x = torch.randint(2, (N, 4), generator=generator(1)).double()
    torch.testing.assert_close(Bits(logits).log_probs(x), Bernoulli(logits=logits).log_prob(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(Bits(logits).entropy(), Bernoulli(logits=logits).entropy(), rtol=1e-12, atol=1e-12)
    assert (Bits(logits).log_prob(x + 0.5) == -torch.inf).all()


def test_the_likelihood_of_an_unchanged_number_is_a_probability_and_that_of_a_changed_one_a_density():
    head = UnchangedHead(F, 2, 3, min_scale=0.1).double()
    shift, scale = torch.randn(N, 2, generator=generator()).double(), torch.tensor([0.5, 3.0]).double()
    found = head(torch.randn(N, F, generator=generator(1)).double()).affine(shift, scale)
    x = shift + torch.randn(N, 2, generator=generator(2)).double() * (torch.arange(N) % 2).unsqueeze(1)
    q = found.density
    density = MixtureSameFamily(Categorical(logits=q.log_weights.mT), Normal(q.mean.mT, q.log_scale.exp().mT))
    p = found.logits.sigmoid()
    expected = torch.where(x == shift, p.log(), (1 - p).log() + density.log_prob(x))
    assert (x == shift).any()
    assert (x != shift).any()
    torch.testing.assert_close(found.log_probs(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.expectation(), p * shift + (1 - p) * q.expectation())


@pytest.mark.parametrize(
    ("head", "target"),
    [
        (ChoiceHead(F, SIZES), one_hot(SIZES, N)),
        (ChoiceHead(F, [4, 4]), one_hot([4, 4], N)),
        (BitsHead(F, 3), torch.randint(2, (N, 3), generator=generator()).double()),
        (UnchangedHead(F, 2, 3, 0.2), CHANGES),
        (UnchangedHead(F, 2, 3, 0.2), torch.zeros(N, 2).double()),
    ],
    ids=["ragged choices", "equal choices", "bits", "some unchanged", "all unchanged"],
)  # fmt: skip
def test_the_fused_loss_and_its_gradient_are_those_of_log_prob(head, target):
    head = head.double()
    features = torch.randn(N, F, generator=generator(3)).double().requires_grad_()
    total, _ = fused.heads_loss(features, torch.arange(N), [fused.LossTerm(head, target)])
    expected = -head(features).log_prob(target).sum()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    inputs = [features, *head.parameters()]
    for one, other in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("raw", [False, True], ids=["sample", "sample_raw"])
def test_samples_have_the_tempered_probabilities(tau, raw):
    n = 200_000
    logits = torch.tensor([0.3, -1.0, 0.8, 2.0, 0.0, 0.5, -0.5, -2.0, 0.2, 1.0])
    rows, head = logits.expand(n, 10), ChoiceHead(F, SIZES)
    uniform = torch.rand(n, 3, generator=generator(1))
    drawn = (
        head.sample_raw(rows, temperature=tau, uniform=uniform, normal=rows[:, :0])
        if raw
        else OneHot(rows, head.segments).sample(tau, generator=generator())
    )
    expected = torch.cat([(own / tau).softmax(dim=0) for own in logits.split(SIZES)])
    torch.testing.assert_close(drawn.mean(dim=0), expected, rtol=0, atol=5 * 0.5 / n**0.5)
    assert ((drawn == 0) | (drawn == 1)).all()
    bits = BitsHead(F, 10)
    uniform = torch.rand(n, 10, generator=generator(1))
    drawn = (
        bits.sample_raw(rows, temperature=tau, uniform=uniform, normal=rows[:, :0])
        if raw
        else Bits(rows).sample(tau, generator=generator())
    )
    torch.testing.assert_close(drawn.mean(dim=0), (logits / tau).sigmoid(), rtol=0, atol=5 * 0.5 / n**0.5)


@pytest.mark.parametrize("raw", [False, True], ids=["sample", "sample_raw"])
@torch.no_grad()
def test_mostly_unchanged_numbers_stay_with_their_probability_and_else_follow_the_density(raw):
    n, head = 100_000, UnchangedHead(F, 2, 3, 0.2)
    features = torch.randn(1, F, generator=generator()).expand(n, F)
    found = head(features)
    if raw:
        uniform, normal = torch.rand(n, 4, generator=generator(1)), torch.randn(n, 2, generator=generator(2))
        drawn = head.sample_raw(head.linear(features), temperature=1.0, uniform=uniform, normal=normal)
    else:
        drawn = found.sample(generator=generator(1))
    stayed = drawn == 0
    torch.testing.assert_close(stayed.float().mean(dim=0), found.logits[0].sigmoid(), rtol=0, atol=5 * 0.5 / n**0.5)
    for d in range(2):
        moved = drawn[~stayed[:, d], d]
        error = 5 * moved.std() / len(moved) ** 0.5
        assert (moved.mean() - found.density.expectation()[0, d]).abs() < error
        torch.testing.assert_close(moved.var(), found.density.variance()[0, d], rtol=0.05, atol=0)


@pytest.mark.parametrize("raw", [False, True], ids=["sample", "sample_raw"])
@torch.no_grad()
def test_temperature_0_gives_the_mode_and_a_temperature_per_row_is_that_of_the_row(raw):
    torch.manual_seed(0)
    head = CompositeHead(F, LAYOUT, MDNRNNConfig(num_components=3), make_model().latent_head.heads["densities"].from_config)
    features, z = torch.randn(6, F, generator=generator()), latents(6).float()
    distribution = head(features)

    def draw(tau, seed):
        if not raw:
            return distribution.sample(tau, generator=generator(seed))
        g = generator(seed)
        uniform, normal = torch.rand(6, head.num_uniforms, generator=g), torch.randn(6, head.num_normals, generator=g)
        return head.sample_raw(
            features @ head.linear.weight.T + head.linear.bias, temperature=tau, uniform=uniform, normal=normal
        )

    cold = draw(0.0, 0)
    torch.testing.assert_close(cold, distribution.mode(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cold, draw(0.0, 1), rtol=0, atol=0)
    each = draw(torch.tensor([0.0, 1.0, 0.0, 2.0, 0.5, 0.0]), 3)
    assert torch.equal(each[::2][:2], cold[::2][:2])
    torch.testing.assert_close(each[1], draw(1.0, 3)[1])
    torch.testing.assert_close(each[3], draw(2.0, 3)[3])
    assert z.shape == cold.shape


@pytest.mark.parametrize(
    "fields",
    [{}, {"predict_change": False}, {"reward_head": False}, {"noise_type": "full", "factorization": "joint"}],
    ids=str,
)
def test_the_loss_of_a_layout_is_a_sum_of_likelihoods_by_kind(fields):
    model, batch = make_model(**fields), make_batch()
    assert model.latent_head.supports_raw is (fields.get("noise_type") != "full")
    loss, metrics = model.loss(batch)
    losses = model.step_losses(batch)
    mask, count = batch.mask, batch.mask.sum()
    latent, reward, termination = (term[mask].sum() / count for term in vars(losses).values())
    expected = latent / LAYOUT.num_variables + reward + termination
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(*(torch.autograd.grad(x, list(model.parameters())) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)
    sizes = {"nll_per_dim": 3, "mixed_nats_per_dim": 2, "nats_per_choice": 2, "nats_per_bit": 2}
    assert list(metrics)[:4] == list(sizes)
    assert LAYOUT.num_variables == sum(sizes.values())
    torch.testing.assert_close(sum(metrics[name] * size for name, size in sizes.items()), latent.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predict_change", [True, False])
@torch.no_grad()
def test_constants_are_copied_bit_for_bit_at_any_temperature(predict_change):
    model, z = make_model(predict_change=predict_change).float(), latents(5).float()
    copied = LAYOUT.columns(PartKind.CONSTANT, PartKind.EPISODE_CONSTANT)
    assert not [name for name, _ in model.named_parameters() if "copied" in name]
    for tau in (0.0, 1.0, 10.0):
        prediction, _ = model.step(z, torch.zeros(5, 2), model.initial_state(5))
        sample = prediction.latent.sample(tau, generator=generator())
        assert torch.equal(sample[:, copied], z[:, copied])
        assert (prediction.latent.log_prob(sample) > -torch.inf).all()
        moved = sample.clone()
        moved[:, copied[0]] += 1
        assert (prediction.latent.log_prob(moved) == -torch.inf).all()
        assert torch.equal(prediction.latent.mode()[:, copied], z[:, copied])
        torch.testing.assert_close(prediction.latent.expectation()[:, copied], z[:, copied], rtol=0, atol=0)


@torch.no_grad()
def test_groups_and_streams_share_random_numbers():
    model, z = make_model().float(), latents(3).float()
    prediction, _ = model.step(z.repeat(2, 1), torch.zeros(6, 2), model.initial_state(6))
    sample = prediction.latent.sample(num_groups=2, generator=generator())
    torch.testing.assert_close(sample[:3], sample[3:])
    streams, single = Streams(torch.arange(6)), Streams(torch.tensor([4]))
    alone, _ = model.step(z[1:2], torch.zeros(1, 2), model.initial_state(1))
    for source in (streams, single):
        source.reserve(model.latent_head.numbers_per_sample)
    torch.testing.assert_close(prediction.latent.sample(generator=streams)[4], alone.latent.sample(generator=single)[0])
    assert streams._reserved.shape[1] == 0  # exactly as many as announced


def test_gradients_through_samples_are_pathwise_for_densities_and_straight_through_for_choices():
    logits = torch.randn(4, 3, generator=generator()).double().requires_grad_()
    value = torch.tensor([1.0, 5.0, -2.0]).double()
    sample = OneHot(logits, Segments([3])).rsample(2.0, generator=generator(1))
    assert ((sample == 0) | (sample == 1)).all()
    (found,) = torch.autograd.grad((sample * value).sum(), logits)
    (expected,) = torch.autograd.grad(((logits / 2).softmax(dim=-1) * value).sum(), logits)
    torch.testing.assert_close(found, expected)
    sample = Bits(logits).rsample(generator=generator(1))
    (found,) = torch.autograd.grad((sample * value).sum(), logits)
    torch.testing.assert_close(found, torch.autograd.grad((logits.sigmoid() * value).sum(), logits)[0])
    model = make_model()
    z = latents(5).requires_grad_()
    prediction, _ = model.step(z, torch.zeros(5, 2).double(), model.initial_state(5))
    sample = prediction.latent.rsample(generator=generator())
    plain = prediction.latent.sample(generator=generator())
    torch.testing.assert_close(sample, plain, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(sample.sum(), z)
    assert gradient.isfinite().all()
    copied = LAYOUT.columns(PartKind.CONSTANT, PartKind.EPISODE_CONSTANT)
    assert (gradient[:, copied] != 0).all()


def test_a_layout_of_densities_is_predicted_by_the_plain_head():
    layout = make_layout([("x", PartKind.CONTINUOUS, 2), ("n", PartKind.INTEGER, 1), ("screen", PartKind.IMAGE, 3)])
    config = MDNRNNConfig(hidden_size=4)
    torch.manual_seed(0)
    plain = MDNRNN(6, 2, config)
    torch.manual_seed(0)
    model = MDNRNN(6, 2, config, layout=layout)
    assert model.layout is None
    assert model.config_to_json() == plain.config_to_json()
    for one, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_layout_survives_json_and_refuses_gaps():
    parts = (*LAYOUT.parts, LatentPart(name="w", kind=PartKind.CHOICE, start=D, size=2, values=(0.1, 2.0)))
    layout = LatentLayout(parts)
    assert LatentLayout.from_json(layout.to_json()) == layout
    assert "w: choice of 2 (0.1, 2)" in str(layout)
    with pytest.raises(ValueError, match="layout: expected 'x' to start at 0, got 1"):
        LatentLayout(LAYOUT.parts[1:])
    with pytest.raises(ValueError, match="values of 'w': expected 2 ascending numbers"):
        LatentPart(name="w", kind=PartKind.CHOICE, start=0, size=2, values=(2.0, 0.1))
    with pytest.raises(ValueError, match="layout: expected one of 3 numbers, got one of 18"):
        MDNRNN(3, 1, layout=LAYOUT)


def test_a_layout_of_constants_only_trains_the_other_heads():
    layout = make_layout([("goal", PartKind.CONSTANT, 2)])
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=4), layout=layout)
    batch = SequenceBatch(
        torch.ones(2, 4, 2), torch.zeros(2, 3, 1), torch.zeros(2, 3), torch.zeros(2, 3) > 0, torch.ones(2, 3) > 0
    )
    loss, metrics = model.loss(batch)
    loss.backward()
    assert list(metrics) == ["reward_nll", "termination_loss"]
    prediction, _ = model.step(batch.z[:, 0], batch.action[:, 0], model.initial_state(2))
    assert torch.equal(prediction.latent.sample(), batch.z[:, 0])
