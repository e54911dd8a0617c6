"""Gradients through dreams against finite differences, imagined against dreamed trajectories, and lambda returns."""

import copy
import itertools

import pytest
import torch
from gymnasium import spaces
from test_reparameterization import invert, uniforms
from torch import nn
from toy_worlds import random_world, same_bits

from worldmodel.dream import Dreams, imagine, lambda_returns
from worldmodel.mixtures import GaussianMixture

ACTIONS = spaces.Box(-2.0, 2.0, (2,))
KINDS = [
    {"factorization": "per_dimension"},
    *(
        {"factorization": "joint", "noise_type": noise}
        for noise in ("full", "diagonal", "isotropic", "isotropic_across_clusters")
    ),
    {"factorization": "joint", "noise_type": "fixed", "fixed_noise_level": 0.3},
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_world(dtype=torch.float64, **mdnrnn):
    return random_world(ACTIONS, **{"hidden_size": 3, **mdnrnn}).to(dtype)


class Policy(nn.Module):
    """Action features from features, smooth in its few weights."""

    def __init__(self, world, features="zh"):
        super().__init__()
        model = world.mdnrnn
        self.features = features
        self.linear = nn.Linear(model.latent_size + model.config.hidden_size * (len(features) - 1), model.action_size)
        with torch.no_grad():
            for parameter in self.linear.parameters():
                parameter.normal_(std=0.5, generator=generator(8))
        self.to(world.start_mean.dtype)
        self.squash = world.action_features.squash

    def forward(self, features):
        return self.squash(self.linear(features))


class Uniforms:
    """Replaces `GaussianMixture.rsample`: first records the uniform numbers of each sample, then samples with them again."""

    def __init__(self):
        self.noted, self.replay, self.rsample = [], None, GaussianMixture.rsample

    def __call__(self, mixture, *args, **kwargs):
        rows = range(mixture.mean.shape[0])
        if self.replay is None:
            z = self.rsample(mixture, *args, **kwargs)
            self.noted.append([uniforms(row_of(mixture, b), z[b]) for b in rows])
            return z
        u = next(self.replay)
        return torch.stack([invert(row_of(mixture, b), u[b]) for b in rows])


def row_of(mixture, b):
    scale = {"log_scale": mixture.log_scale[b]} if mixture.scale_tril is None else {"scale_tril": mixture.scale_tril[b]}
    return GaussianMixture(mixture.log_weights[b], mixture.mean[b], **scale)


def objective(dream):
    """Return a scalar that depends on every part of a trajectory."""
    return (dream.survival * dream.reward).sum() + 0.1 * dream.z[:, -1].square().sum() + dream.features[:, -1].sum()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(str(value) for value in kind.values()))
def test_the_gradient_through_a_dream_is_that_of_finite_differences(kind, monkeypatch):
    world = tiny_world(**kind)
    dreams, policy, draws = Dreams(world, 2), Policy(world), Uniforms()
    monkeypatch.setattr(GaussianMixture, "rsample", lambda *args, **kwargs: draws(*args, **kwargs))
    start = dreams.start(generator=generator())

    def value():
        return objective(imagine(dreams, policy, 4, generator=generator(1), start=start))

    first = value()
    gradients = torch.autograd.grad(first, list(policy.parameters()))
    step = 1e-5
    with torch.no_grad():
        for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
            for index in itertools.product(*(range(n) for n in parameter.shape)):
                moved = []
                for sign in (1, -2):
                    parameter[index] += sign * step
                    draws.replay = iter(draws.noted)
                    moved.append(value())
                parameter[index] += step
                expected = (moved[0] - moved[1]) / (2 * step)
                assert gradient[index].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert min(gradient.abs().max() for gradient in gradients) > 0.01


@pytest.mark.parametrize("layers", [{"num_layers": 2}, {"layer_norm": True}, {"predict_change": False, "skip": False}], ids=str)
def test_at_temperature_zero_the_gradient_is_that_of_finite_differences(layers):
    world = tiny_world(**layers)
    dreams, policy = Dreams(world, 3, temperature=0.0), Policy(world)

    def value():
        return objective(imagine(dreams, policy, 6, generator=generator(1)))

    (gradient,) = torch.autograd.grad(value(), policy.linear.bias)
    with torch.no_grad():
        for index in range(2):
            policy.linear.bias[index] += 1e-6
            above = value()
            policy.linear.bias[index] -= 2e-6
            below = value()
            policy.linear.bias[index] += 1e-6
            assert gradient[index].item() == pytest.approx(((above - below) / 2e-6).item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("features", ["z", "zh", "zhc"])
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, torch.tensor([0.0, 1.0, 2.0, 1.0, 0.5, 0.0])], ids=["one", "many"])
@pytest.mark.parametrize("head", [False, True])
def test_imagined_trajectories_are_the_dreamed_ones(features, num_groups, temperature, head):
    world = tiny_world(torch.float32, termination_head=head, termination_bias=-50.0)
    dreams = Dreams(world, 6, temperature=temperature, num_groups=num_groups, termination="threshold")
    policy = Policy(world, features)
    dream = imagine(dreams, policy, 7, generator=generator(2))

    def acting(features):
        return world.action_features.unflatten(policy(features))

    acting.features = features
    steps = list(dreams.unroll(acting, 7, generator=generator(2)))
    for t, step in enumerate(steps):
        torch.testing.assert_close(dream.z[:, t], step.state.z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dream.features[:, t], step.state.features(features), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dream.action[:, t], world.action_features.flatten(step.actions), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dream.reward[:, t], step.reward, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dream.z[:, 7], steps[-1].next_state.z, rtol=1e-5, atol=1e-5)
    assert torch.equal(dream.continuation, torch.ones(6, 7))
    sizes = {"z": 2, "zh": 5, "zhc": 8}
    assert dream.features.shape == (6, 8, sizes[features])
    assert dream.action.shape == (6, 7, 2)


def test_discrete_choices_dream_the_same_bits_as_one_hot_vectors():
    world = random_world(termination_head=False)
    choose = torch.tensor([0, 2, 1, 1])
    dream = imagine(Dreams(world, 4), lambda features: torch.eye(3)[choose], 5, generator=generator())
    rollout = Dreams(world, 4).rollout(lambda features: choose, 5, generator=generator())
    assert torch.equal(dream.z, rollout.z)
    assert torch.equal(dream.reward, rollout.rewards)


def test_a_straight_through_choice_is_trained_through_the_dream():
    world = random_world(termination_bias=-50.0)
    logits = torch.zeros(4, 3, requires_grad=True)

    def policy(features):
        weights = logits.softmax(-1)
        return torch.eye(3)[weights.argmax(-1)] + weights - weights.detach()

    imagine(Dreams(world, 4), policy, 3, generator=generator()).reward.sum().backward()
    assert (logits.grad.abs().amax(1) > 1e-4).all()


def test_survival_is_the_product_of_continuation_probabilities():
    world = random_world(ACTIONS, termination_bias=-1.0)
    dreams, policy = Dreams(world, 2), Policy(world)
    dream = imagine(dreams, policy, 3, generator=generator())
    state, survival = dreams.start(generator=generator()), torch.ones(2)
    lstm = state.lstm
    for t in range(3):
        prediction, lstm = world.mdnrnn.step(dream.z[:, t], dream.action[:, t], lstm)
        torch.testing.assert_close(dream.continuation[:, t], 1 - prediction.termination_logit.sigmoid())
        torch.testing.assert_close(dream.survival[:, t], survival)
        survival = survival * dream.continuation[:, t]
    assert (survival < 0.95).all()
    assert torch.autograd.grad(dream.survival[:, -1].sum(), policy.linear.weight)[0].abs().max() > 1e-3


def test_latents_outside_the_bounds_are_clamped_and_have_no_gradient():
    world = tiny_world(torch.float32)
    world.mdnrnn.latent_low.fill_(-0.1)
    world.mdnrnn.latent_high.fill_(0.1)
    world.mdnrnn.reward_low.fill_(5.0)
    dream = imagine(Dreams(world, 50), Policy(world), 2, generator=generator())
    assert dream.z[:, 1:].abs().max() <= 0.1
    assert (dream.reward == 5.0).all()
    clipped = dream.z[:, 1].detach().abs() == torch.tensor(0.1)
    assert clipped.any()
    assert not clipped.all()
    action = torch.zeros(50, 2, requires_grad=True)
    z = imagine(Dreams(world, 50), lambda features: action, 1, generator=generator()).z[:, 1]
    moves = torch.autograd.grad(z[:, 0].sum(), action)[0].abs().amax(1) > 0
    assert torch.equal(moves, z[:, 0].detach().abs() < 0.1)


def test_the_world_gets_no_gradient_and_stays_as_it_was():
    world = tiny_world(torch.float32)
    frozen = world.mdnrnn.reward_head.linear.bias.requires_grad_(False)
    before = copy.deepcopy(world.state_dict())
    policy = Policy(world)
    objective(imagine(Dreams(world, 4), policy, 3, generator=generator())).backward()
    assert all(parameter.grad is None for parameter in world.parameters())
    assert all(parameter.requires_grad == (parameter is not frozen) for parameter in world.parameters())
    assert all(torch.equal(value, before[name]) for name, value in world.state_dict().items())
    assert policy.linear.weight.grad.abs().max() > 0


def test_the_start_gets_a_gradient_too():
    world = tiny_world(torch.float32)
    dreams = Dreams(world, 4)
    start = dreams.start(generator=generator())
    start.z.requires_grad_()
    imagine(dreams, Policy(world), 3, generator=generator(), start=start).reward[:, -1].sum().backward()
    assert (start.z.grad.abs().amax(1) > 0).all()


def test_the_same_seed_imagines_the_same_bits_whatever_the_global_seed():
    world = tiny_world(torch.float32)
    dreams, policy = Dreams(world, 4), Policy(world)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(imagine(dreams, policy, 5, generator=generator(7)))
    assert same_bits(*results)
    assert not torch.equal(results[0].z, imagine(dreams, policy, 5, generator=generator(8)).z)


def by_the_definition(reward, continuation, value, discount, lambda_):
    """The lambda-weighted mean of the n-step returns, n = 1 .. T - t, of one trajectory; no recursion."""
    steps, result = len(reward), []
    for t in range(steps):
        returns = []
        for n in range(1, steps - t + 1):
            weights = [discount**k * continuation[t : t + k].prod() for k in range(n + 1)]
            returns.append(sum(weights[k] * reward[t + k] for k in range(n)) + weights[n] * value[t + n])
        mixed = sum((1 - lambda_) * lambda_ ** (n - 1) * part for n, part in enumerate(returns[:-1], start=1))
        result.append(mixed + lambda_ ** (len(returns) - 1) * returns[-1])
    return torch.stack(result)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_lambda_returns_are_the_weighted_mean_of_all_n_step_returns(lambda_):
    shape = (3, 6)
    reward = torch.randn(shape, generator=generator(), dtype=torch.float64)
    continuation = torch.rand(shape, generator=generator(1), dtype=torch.float64)
    value = torch.randn(3, 7, generator=generator(2), dtype=torch.float64)
    found = lambda_returns(reward, continuation, value, discount=0.9, lambda_=lambda_)
    for b in range(3):
        expected = by_the_definition(reward[b], continuation[b], value[b], 0.9, lambda_)
        torch.testing.assert_close(found[b], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(lambda_returns(reward[0], continuation[0], value[0], discount=0.9, lambda_=lambda_), found[0])


def test_steps_after_a_certain_termination_do_not_count():
    reward, continuation = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 1.0])
    returns = lambda_returns(reward, continuation, torch.full((4,), 100.0), discount=0.5, lambda_=1.0)
    assert returns.tolist() == [2.0, 2.0, 54.0]


def test_invalid_arguments_raise_with_their_names():
    world = tiny_world(torch.float32)
    dreams, policy = Dreams(world, 4), Policy(world)
    with pytest.raises(ValueError, match="horizon: expected an integer >= 1, got 0"):
        imagine(dreams, policy, 0, generator=generator())
    with pytest.raises(ValueError, match="start: expected the states of 4 dreams, got 3"):
        imagine(dreams, policy, 1, generator=generator(), start=Dreams(world, 3).start(generator=generator()))
    start = dreams.start(generator=generator())
    start.alive[2] = False
    with pytest.raises(ValueError, match="start: expected running dreams, got a terminated one at index 2"):
        imagine(dreams, policy, 1, generator=generator(), start=start)
    with pytest.raises(ValueError, match=r"policy: expected action features of shape \(4, 2\), got \(4, 5\)"):
        imagine(dreams, lambda features: features, 1, generator=generator())
    with pytest.raises(ValueError, match="expected a world model that predicts rewards"):
        imagine(Dreams(tiny_world(torch.float32, reward_head=False), 4), policy, 1, generator=generator())
    with pytest.raises(ValueError, match=r"expected shapes .* got \(3,\), \(3,\), \(3,\)"):
        lambda_returns(torch.zeros(3), torch.ones(3), torch.zeros(3), discount=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match=r"with T >= 1, got \(3, 0\), \(3, 0\), \(3, 1\)"):
        lambda_returns(torch.zeros(3, 0), torch.ones(3, 0), torch.zeros(3, 1), discount=1.0, lambda_=1.0)
    with pytest.raises(TypeError, match="policy: expected a tensor of action features, got ndarray"):
        imagine(dreams, lambda features: features.numpy(), 1, generator=generator())
    with pytest.raises(ValueError, match=r"lambda_: expected a number in \[0, 1\], got 1.5"):
        lambda_returns(torch.zeros(3), torch.ones(3), torch.zeros(4), discount=1.0, lambda_=1.5)


def test_ascent_along_the_gradient_raises_the_score_of_ordinary_dreams():
    world = tiny_world(torch.float32, termination_head=False)
    policy, dreams = Policy(world), Dreams(world, 64)

    def acting(features):
        return world.action_features.unflatten(policy(features))

    def score():
        returns, _ = Dreams(world, 2000).score(acting, 5, generator=generator(3))
        return returns.mean(), returns.std() / 2000**0.5

    before, _ = score()
    optimizer = torch.optim.Adam(policy.parameters(), 0.1)
    for seed in range(30):
        optimizer.zero_grad()
        (-imagine(dreams, policy, 5, generator=generator(seed)).reward.sum(1).mean()).backward()
        optimizer.step()
    after, error = score()
    assert after > before + 10 * error
