"""A latent head is one file: two heads written here are trained, saved, opened and dreamed by the unchanged package."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from toy_data import walking_episode, write_store
from toy_worlds import random_world

from worldmodel.dream import Dreams, imagine
from worldmodel.mixtures import LatentHead, at_least_float32, latent_head_class, shared_draws
from worldmodel.models import MDNRNN, DataStatistics, MDNRNNConfig, SequenceBatch, WorldModel
from worldmodel.rng import Streams, fill_normal, fill_uniform
from worldmodel.runtime import UnknownClassError
from worldmodel.training import DataConfig, TrainingConfig, fit, read_metrics

B, T, D, A = 4, 9, 3, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Laplace:
    """Independent Laplace distributions; a temperature multiplies the scale."""

    def __init__(self, location, log_scale):
        self.location, self.log_scale = location, log_scale

    def log_prob(self, x):
        distance = (x - self.location).abs() * (-self.log_scale).exp()
        return (-distance - self.log_scale - math.log(2)).sum(dim=-1)

    @torch.no_grad()
    def sample(self, temperature=1.0, *, num_groups=1, generator=None):
        return self.rsample(temperature, num_groups=num_groups, generator=generator)

    def rsample(self, temperature=1.0, *, num_groups=1, generator=None):
        tau = torch.as_tensor(temperature, dtype=self.location.dtype)
        tau = tau.reshape(*tau.shape, *(1,) * (self.location.ndim - tau.ndim))
        uniform = shared_draws(self.location, num_groups, lambda noise: fill_uniform(noise, generator)) - 0.5
        noise = -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.4999))
        return self.location + tau * self.log_scale.exp() * noise

    def affine(self, shift, scale):
        return Laplace(shift + scale * self.location, self.log_scale + scale.log())


class LaplaceHead(LatentHead):
    """A head with the required members only."""

    def __init__(self, in_features, dim):
        super().__init__()
        self.dim, self.linear = dim, nn.Linear(in_features, 2 * dim)

    @classmethod
    def from_config(cls, in_features, dim, config):
        return cls(in_features, dim)

    def forward(self, features):
        return Laplace(*at_least_float32(self.linear(features)).chunk(2, dim=-1))

    @property
    def numbers_per_sample(self):
        return self.dim


class GaussianHead(LaplaceHead):
    """A Gaussian per dimension, of a given sigma, with its loss and samples on raw outputs."""

    def __init__(self, in_features, dim, sigma):
        super().__init__(in_features, dim)
        self.linear, self.sigma = nn.Linear(in_features, dim), sigma

    @classmethod
    def from_config(cls, in_features, dim, config):
        return cls(in_features, dim, config.min_scale)

    def forward(self, features):
        return Gaussian(at_least_float32(self.linear(features)), torch.tensor(self.sigma))

    supports_raw = True
    num_normals = property(lambda self: self.dim)
    numbers_per_sample = property(lambda self: self.dim + self.dim % 2)

    def raw_nll(self, raw, target, *, gradient):
        error = (raw - target) / self.sigma
        nll = 0.5 * error.square().sum() + target.numel() * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))
        if gradient:
            raw.copy_(error / self.sigma)
        return nll

    def sample_raw(self, raw, *, temperature, uniform, normal):
        assert uniform.shape == (len(raw), 0)
        return raw + self.sigma * torch.as_tensor(temperature).reshape(-1, 1).sqrt() * normal


class Gaussian:
    """Independent Gaussians; a temperature multiplies the variance."""

    def __init__(self, mean, scale):
        self.mean, self.scale = mean, scale

    def log_prob(self, x):
        return torch.distributions.Normal(self.mean, self.scale).log_prob(x).sum(dim=-1)

    def sample(self, temperature=1.0, *, num_groups=1, generator=None):
        tau = torch.as_tensor(temperature, dtype=self.mean.dtype)
        noise = shared_draws(self.mean, num_groups, lambda noise: fill_normal(noise, generator))
        return self.mean + self.scale * tau.reshape(*tau.shape, *(1,) * (self.mean.ndim - tau.ndim)).sqrt() * noise

    def affine(self, shift, scale):
        return Gaussian(shift + scale * self.mean, scale * self.scale)


HEADS = ["LaplaceHead", "GaussianHead"]


def make_batch():
    g = generator(1)
    z, action, reward = (torch.randn(*shape, generator=g).double() for shape in ((B, T + 1, D), (B, T, A), (B, T)))
    return SequenceBatch(z, action, reward, torch.rand(B, T, generator=g) < 0.3, torch.rand(B, T, generator=g) < 0.6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "fields", [{}, {"predict_change": False}, {"reward_head": False}, {"termination_head": False}], ids=str
)
def test_loss_and_gradients_are_those_of_log_prob(head, fields):
    torch.manual_seed(0)
    model = MDNRNN(D, A, MDNRNNConfig(hidden_size=6, latent_head=head, min_scale=0.7, **fields)).double()
    model.set_statistics(dataclasses.replace(DataStatistics.neutral(D), change_scale=0.5 + torch.arange(D)))
    batch = make_batch()
    losses = model.step_losses(batch)
    latent, reward, termination = (term[batch.mask].mean() for term in vars(losses).values())
    loss, expected = model.loss(batch)[0], latent / D + reward + termination
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-7)
    for one, other in zip(*(torch.autograd.grad(x, list(model.parameters())) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("head", HEADS)
def test_a_world_with_another_head_is_fitted_saved_opened_and_dreamed(head, tmp_path):
    store = write_store(tmp_path / "data", [walking_episode(i, 5 + 3 * i) for i in range(12)])
    world = fit(
        store.path,
        out=tmp_path / "world",
        config=MDNRNNConfig(hidden_size=8, latent_head=head, min_scale=0.5),
        data_config=DataConfig(window=6, batch_size=4, test_fraction=0.25),
        training_config=TrainingConfig(num_updates=40, evaluate_every=10, learning_rate=1e-2),
    )
    found = [row["test/nll_per_dim"] for row in read_metrics(tmp_path / "world" / "training") if "test/nll_per_dim" in row]
    assert found[-1] < found[0]
    content = json.loads((tmp_path / "world" / "world.json").read_text())
    assert content["mdnrnn"]["latent_head"] == head
    opened = WorldModel.from_pretrained(tmp_path / "world")
    assert type(opened.mdnrnn.latent_head).__name__ == head
    assert opened.fingerprint == world.fingerprint
    dreams = Dreams(opened, 8)
    actions = opened.action_features.sample(8, generator=generator())
    state, _, _ = dreams.step(dreams.start(generator=generator()), actions, generator=generator(1))
    assert state.z.shape == (8, 2)
    assert state.z.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_dreams_have_the_temperatures_of_the_head(head):
    world, actions = random_world(latent_head=head), torch.arange(6) % 3
    start = Dreams(world, 6).start(generator=generator())
    features = world.action_features.flatten(actions)
    prediction, _ = world.mdnrnn.step(start.z, features, start.lstm)
    mean = prediction.latent.location if head == "LaplaceHead" else prediction.latent.mean

    def after(tau, seed):
        return Dreams(world, 6, temperature=tau).step(start, actions, generator=generator(seed))[0].z

    assert torch.equal(after(0.0, 1), mean.clamp(-20, 20))
    assert not torch.equal(after(1.0, 1), after(1.0, 2))
    each = after(torch.tensor([0.0, 1.0, 0.0, 0.5, 0.0, 2.0]), 1)
    assert torch.equal(each[::2], mean.clamp(-20, 20)[::2])
    assert torch.equal(each[1], after(1.0, 1)[1])
    assert torch.equal(each[5], after(2.0, 1)[5])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@torch.no_grad()
def test_a_dream_with_streams_is_the_same_alone_and_among_others(precision):
    world = random_world(latent_head="GaussianHead")
    many, alone = (Dreams(world, n, precision=precision) for n in (5, 1))
    start = many.start(generator=generator())
    one = type(start)(start.z[3:4], type(start.lstm)(*(part[:, 3:4] for part in start.lstm)), start.alive[3:4])
    streams, single = Streams(torch.arange(5)), Streams(torch.tensor([3]))
    for _ in range(3):
        start, _, _ = many.step(start, torch.zeros(5, dtype=torch.int64), generator=streams)
        one, _, _ = alone.step(one, torch.zeros(1, dtype=torch.int64), generator=single)
        torch.testing.assert_close(one.z[0], start.z[3], rtol=1e-5, atol=1e-5)
        assert torch.equal(one.alive[0], start.alive[3])


def test_dreams_in_groups_share_random_numbers():
    world = random_world(latent_head="LaplaceHead", termination_head=False)
    dreams = Dreams(world, 6, num_groups=2)
    state, _, _ = dreams.step(dreams.start(generator=generator()), torch.zeros(6, dtype=torch.int64), generator=generator(1))
    torch.testing.assert_close(state.z[:3], state.z[3:])


def test_half_precision_is_for_heads_that_support_raw_outputs(monkeypatch):
    monkeypatch.setattr("worldmodel.runtime.device.fast_precision", lambda device: "bfloat16")
    assert Dreams(random_world(latent_head="LaplaceHead"), 4, precision="auto").precision == "float32"
    assert Dreams(random_world(latent_head="GaussianHead"), 4, precision="auto").precision == "bfloat16"
    with pytest.raises(ValueError, match="a latent head that supports raw outputs"):
        Dreams(random_world(latent_head="LaplaceHead"), 4, precision="bfloat16")
    head = random_world(latent_head="LaplaceHead").mdnrnn.latent_head
    with pytest.raises(NotImplementedError, match="LaplaceHead does not implement raw_nll"):
        head.raw_nll(torch.zeros(1, 4), torch.zeros(1, 2), gradient=False)
    with pytest.raises(NotImplementedError, match="LaplaceHead does not implement sample_raw"):
        head.sample_raw(torch.zeros(1, 4), temperature=1.0, uniform=torch.zeros(1, 0), normal=torch.zeros(1, 0))


def test_gradients_reach_a_policy_through_the_samples():
    space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    dreams = Dreams(random_world(space, latent_head="LaplaceHead"), 4)
    weight = torch.full((1,), 0.1, requires_grad=True)
    dream = imagine(dreams, lambda features: (features[:, :1] * weight).tanh(), 3, generator=generator())
    dream.reward.sum().backward()
    assert weight.grad.isfinite().all()
    assert (weight.grad != 0).all()


def test_an_unknown_head_is_rejected_by_name():
    assert latent_head_class("LaplaceHead") is LaplaceHead
    message = r"latent_head: expected one of .*'MixtureHead'.*, got 'Nothing'; import the module that defines it"
    with pytest.raises(UnknownClassError, match=message):
        MDNRNN(D, A, MDNRNNConfig(latent_head="Nothing"))
    with pytest.raises(UnknownClassError, match="got 'RewardHead'"):  # a head, but not of the latent
        latent_head_class("RewardHead")
