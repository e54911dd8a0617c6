"""Replayed rewards: exact in an exact world, and errors."""

import numpy as np
import pytest
import torch
from toy_worlds import WalkEnv, random_world, walk_world

from worldmodel.data import EnvConfig, collect, rollouts
from worldmodel.dream import StartBank
from worldmodel.evaluation import replay_rewards
from worldmodel.models import encode_episodes


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    path = tmp_path_factory.mktemp("walks") / "data"
    return collect(EnvConfig(WalkEnv, max_steps=8), out=path, num_episodes=60, seed=2).path


def test_an_exact_world_pays_the_real_rewards_at_every_horizon(walks):
    found = replay_rewards(walk_world(), walks, horizons=(1, 3, 6), num_windows=80, temperature=0.0)
    assert found.dreamed == pytest.approx(found.real, abs=1e-4)
    assert min(found.correlation) > 0.9999
    assert found.num_windows == 80
    assert "0.0" not in str(found).split("\n")[0]
    assert found.to_json()["horizons"] == (1, 3, 6)


def test_the_real_sums_are_those_of_the_windows(walks):
    found = replay_rewards(walk_world(), walks, horizons=(8,), num_windows=500, temperature=0.0)
    complete = [
        one.rewards.sum() for one in rollouts(EnvConfig(WalkEnv, max_steps=8), episode_ids=range(60), seed=2) if len(one) == 8
    ]
    assert min(complete) <= found.real[0] <= max(complete)
    assert found.real[0] == pytest.approx(np.mean(complete), abs=4 * np.std(complete) / np.sqrt(500) + 0.1)


def test_a_random_world_does_not_follow_the_rewards(walks):
    found = replay_rewards(random_world(seed=1), walks, horizons=(1, 6), num_windows=80)
    assert abs(found.correlation[1]) < 0.9


def test_start_states_are_those_of_the_given_steps_in_order(walks):
    world = walk_world()
    (episode,) = list(rollouts(EnvConfig(WalkEnv, max_steps=8), episode_ids=[1], seed=2))
    steps = encode_episodes([episode], world.vision, world.action_features)
    generator = torch.Generator().manual_seed(0)
    bank = StartBank.within(world, [steps, steps], np.array([1, 0, 1]), np.array([0, 2, 3]), generator)
    torch.testing.assert_close(bank.mean, steps.mean[[0, 2, 3]])
    assert torch.equal(bank.in_order(generator).z, bank.mean)  # without noise
    state = world.mdnrnn.initial_state(1)
    for t in range(3):
        state = world.mdnrnn.advance(steps.mean[t : t + 1], steps.action[t : t + 1], state)
    torch.testing.assert_close(bank.lstm.h[:, 2], state.h[:, 0])


def test_what_cannot_be_replayed_is_rejected(walks):
    with pytest.raises(ValueError, match="horizons: expected at most the longest episode, 8 steps, got 9"):
        replay_rewards(walk_world(), walks, horizons=(1, 9))
    with pytest.raises(ValueError, match="world: expected a world model that predicts rewards"):
        replay_rewards(random_world(reward_head=False), walks)
