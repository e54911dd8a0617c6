"""TorchRL's planner on our dreams, which then have no state of their own."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import random_world, walk_world

pytest.importorskip("torchrl", reason="needs worldmodel[torchrl]")
from tensordict import TensorDict
from torchrl.envs.utils import check_env_specs
from torchrl.modules import CEMPlanner

from worldmodel.adapters.torchrl import StatelessTorchRLEnv
from worldmodel.dream import Dreams, LatentTracker

BOX = spaces.Box(-2.0, 2.0, (1,), np.float32)


def near_one(observation, action, next_observation):
    """Reward of an action near 1."""
    return -(action[:, 0] - 1).square()


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 3])], ids=str)
def test_torchrl_finds_nothing_wrong(space):
    check_env_specs(StatelessTorchRLEnv(random_world(space, termination_bias=-1.0)))


def test_a_step_of_any_batch_is_that_of_dreams():
    world = walk_world()
    env, dreams = StatelessTorchRLEnv(world, temperature=0.0), Dreams(world, 6, temperature=0.0)
    state, actions = dreams.start(generator=dreams.generator(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    expected, reward, ended = dreams.step(state, actions, generator=dreams.generator(0))
    given = env.state(state).update({"action": actions}).reshape(2, 3)
    after = env.step(given)["next"].reshape(-1)
    torch.testing.assert_close(after["z"], expected.z)
    torch.testing.assert_close(after["h"].transpose(0, 1), expected.lstm.h)
    torch.testing.assert_close(after["reward"][:, 0], reward)
    assert torch.equal(after["terminated"][:, 0], ended)


def test_the_planner_of_torchrl_plans_from_the_state_of_a_real_episode():
    world = random_world(BOX)
    env, tracker = StatelessTorchRLEnv(world, reward=near_one), LatentTracker(world, 2)
    tracker.reset(seed=0)
    state = env.state(tracker.observe(np.zeros((2, 2))))
    torch.manual_seed(0)
    planned = CEMPlanner(env, planning_horizon=2, optim_steps=8, num_candidates=200, top_k=20)(state)
    np.testing.assert_allclose(planned["action"].numpy(), 1.0, atol=0.1)


def test_a_seed_gives_the_same_starts():
    env = StatelessTorchRLEnv(random_world(BOX))
    starts = []
    for _ in range(2):
        env.set_seed(3)
        starts.append(env.reset(TensorDict(batch_size=[4]))["z"])
    assert torch.equal(*starts)


def test_a_world_without_rewards_is_refused():
    with pytest.raises(ValueError, match="expected a world model that predicts rewards"):
        StatelessTorchRLEnv(random_world(BOX, reward_head=False))
