"""Tests of the atoms of the reward that `fit` finds, and of what M learns from them."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import walking_episode, write_store

from worldmodel.data import Episode, EpisodeStore
from worldmodel.dream import Dreams
from worldmodel.models import DataStatistics, MDNRNNConfig, SequenceBatch, WorldModel
from worldmodel.training import DataConfig, TrainingConfig, find_atoms, fit

DATA = DataConfig(window=20, batch_size=16, test_fraction=0.2)
SMALL = MDNRNNConfig(hidden_size=8, num_components=1)


def mix(*parts):
    """Rewards from (value, count) pairs; None stands for different numbers."""
    rng = np.random.default_rng(0)
    return rng.permutation(np.concatenate([rng.standard_normal(n) if v is None else np.full(n, v) for v, n in parts]))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        (mix((0.0, 900), (None, 100)), (0.0,)),
        (mix((0.0, 4900), (7.0, 50), (None, 50)), (0.0, 7.0)),  # 1 %, 50 times
        (mix((0.0, 4901), (7.0, 49), (None, 50)), (0.0,)),  # 49 times
        (mix((0.0, 9850), (7.0, 99), (None, 51)), (0.0,)),  # 0.99 %
        (mix(*((float(v), 100 if v else 100_000) for v in range(16))), tuple(map(float, range(16)))),  # 16 make up all
        (mix(*((float(v), 100 if v else 100_000) for v in range(17))), (0.0,)),
        (mix((100.0, 1), (0.0, 999)), (0.0, 100.0)),  # once, but they make up all
        (mix((None, 1000)), ()),
        (mix((None, 10)), ()),  # ten different numbers in ten steps
        (mix((1.0, 100)), (1.0,)),
        (mix((0.0, 100), (-0.0, 100)), (0.0,)),
    ],
    ids=range(11),
)
def test_atoms_are_the_values_that_recur(rewards, expected):
    assert find_atoms(rewards) == expected


def test_atoms_are_float32_numbers():
    assert find_atoms(np.array([0.1, 0.1 + 1e-12] * 10)) == (float(np.float32(0.1)),)


def batch_of(rewards):
    z = torch.zeros(1, len(rewards) + 1, 1)
    counted = torch.ones(1, len(rewards), dtype=torch.bool)
    return SequenceBatch(z, torch.zeros(1, len(rewards), 1), torch.tensor([rewards]), ~counted, counted)


def test_units_are_those_of_the_rewards_that_are_no_atoms():
    statistics = DataStatistics.of([batch_of([100.0, 1.0, 3.0]), batch_of([100.0, 5.0])], atoms=(100.0, -7.0))
    assert statistics.reward_mean.item() == pytest.approx(3)
    assert statistics.reward_scale.item() == pytest.approx(np.std([1, 3, 5]))
    assert statistics.reward_low.item() <= -7  # an atom that these batches lack is within the bounds
    only = DataStatistics.of([batch_of([1.0, 2.0])], atoms=(1.0, 2.0))
    assert (only.reward_mean.item(), only.reward_scale.item()) == (0, 1)


def coins(count, steps=100, *, seed=0, noisy=False, value=10.0):
    """Episodes of x ~ N(0, 1), independent over time, whose reward is `value` with probability sigmoid(2 x - 2), else 0."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        x = rng.standard_normal((steps + 1, 1)).astype(np.float32)
        reward = value * (rng.random(steps) < 1 / (1 + np.exp(2 - 2 * x[:-1, 0])))
        reward = np.where(reward > 0, reward + rng.standard_normal(steps), reward) if noisy else reward
        ends = np.zeros(steps, dtype=bool)
        action = rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
        yield Episode(observations=x, actions=action, rewards=reward, terminations=ends, truncations=ends, episode_id=k)


def coin_world(path, *, noisy=False, **fields):
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    store = EpisodeStore.create(path / "data", observation_space=box, action_space=spaces.Box(-1, 1, (1,), np.float32))
    store.append(list(coins(100, noisy=noisy)))
    config = MDNRNNConfig(hidden_size=8, num_components=1, **fields)
    training = TrainingConfig(num_updates=200, learning_rate=1e-2, evaluate_every=50)
    return fit(path / "data", out=path / "world", config=config, training_config=training, seed=0)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_expected_reward_is_learned(tmp_path, noisy):
    world = coin_world(tmp_path, noisy=noisy)
    assert world.mdnrnn.config.reward_atoms == ((0.0,) if noisy else (0.0, 10.0))
    assert world.mdnrnn.config.reward_components == (5 if noisy else 0)
    x = torch.linspace(-2, 2, 41).unsqueeze(-1)
    z = world.encode(x)
    prediction, _ = world.mdnrnn.step(z, torch.zeros(41, 1), world.mdnrnn.initial_state(41))
    truth = 10 * torch.sigmoid(2 * x - 2)
    after = prediction.latent.sample(generator=torch.Generator().manual_seed(0))
    error = (prediction.outcome(after).reward.expectation() - truth).square().mean() / truth.var()
    assert error < 0.02  # R2 of 0.98
    again = WorldModel.from_pretrained(tmp_path / "world")
    assert again.fingerprint == world.fingerprint
    assert torch.equal(again.mdnrnn.reward_head.atoms, world.mdnrnn.reward_head.atoms)


def test_dreams_of_rare_rewards_spread_as_real_returns_do(tmp_path):
    world = coin_world(tmp_path)
    dreams = Dreams(world, 2000, reward_mode="sampled")
    returns = dreams.rollout(lambda features: torch.zeros(2000, 1), 50, generator=dreams.generator(0)).returns
    real = np.array([episode.rewards.sum() for episode in coins(2000, 50, seed=1)])
    assert returns.std().item() == pytest.approx(real.std(), rel=0.1)
    assert returns.mean().item() == pytest.approx(real.mean(), rel=0.05)


@pytest.mark.filterwarnings("ignore:the held-out loss is lowest")  # of few episodes
def test_the_reward_head_costs_the_latent_head_nothing(tmp_path):
    losses = []
    for head in (True, False):
        (tmp_path / str(head)).mkdir()
        world = coin_world(tmp_path / str(head), noisy=True, reward_head=head)
        losses.append(world.provenance["training"]["best_metrics"]["nll_per_dim"])
    assert losses[0] < losses[1] + 0.005


def test_fields_that_are_given_are_kept(tmp_path):
    world = coin_world(tmp_path, reward_atoms=(), reward_components=2)
    assert (world.mdnrnn.config.reward_atoms, world.mdnrnn.config.reward_components) == ((), 2)


def test_a_reward_that_the_model_cannot_predict_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"rewards: expected values of reward_atoms \(0.0,\), .*got 10.0; fit a new model"):
        coin_world(tmp_path, reward_atoms=(0.0,), reward_components=0)
    store = write_store(tmp_path / "walks", [walking_episode(i, 20) for i in range(8)]).path
    training = TrainingConfig(num_updates=2, evaluate_every=2)
    world = fit(store, out=tmp_path / "walk", config=SMALL, data_config=DATA, training_config=training)
    assert world.mdnrnn.config.reward_atoms == (-0.5, 0.0, 0.5)
    changed = [walking_episode(i, 20) for i in range(8)]
    changed[3].rewards[2] = 9.0
    other = write_store(tmp_path / "others", changed).path
    with pytest.raises(ValueError, match=r"got 9.0; fit a new model on all data"):
        fit(other, out=tmp_path / "again", initial=world, data_config=DATA, training_config=training)
