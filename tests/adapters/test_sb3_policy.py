"""SB3Policy knows what its agent was trained on."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import WalkEnv, random_world

import worldmodel as wm

pytest.importorskip("stable_baselines3", reason="needs worldmodel[sb3]")
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from worldmodel.adapters.sb3 import SB3Policy, SB3VecEnv
from worldmodel.models import FeatureSpace, feature_space

SHORT = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "device": "cpu", "seed": 0}


def dreams(world, **options):
    return SB3VecEnv(wm.DreamVectorEnv(world, 2, autoreset_mode="SameStep", **options))


def trained(env):
    return PPO("MlpPolicy", env, **SHORT).learn(16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_agent_on_decoded_observations_is_refused_as_one_on_z(dtype):
    world = random_world(observation_space=spaces.Box(-np.inf, np.inf, (2,), dtype))  # as many observations as latents
    with pytest.raises(ValueError, match=r"decoded or real ones.*observation="):
        SB3Policy(trained(dreams(world, observation="decoded")), world)
    assert SB3Policy(trained(dreams(world, observation="z")), world).features == "z"


def test_an_agent_on_real_observations_is_refused_as_one_on_z():
    with pytest.raises(ValueError, match="decoded or real ones"):
        SB3Policy(trained(DummyVecEnv([lambda: gym.wrappers.TimeLimit(WalkEnv(), 5)])), random_world())


@pytest.mark.parametrize("kind", ["z", "zh", "zhc"])
def test_the_kind_of_features_is_saved_with_the_agent(kind, tmp_path):
    world = random_world()
    trained(dreams(world, observation=kind)).save(tmp_path / "agent")
    model = PPO.load(tmp_path / "agent", device="cpu")
    assert SB3Policy(model, world).features == kind
    with pytest.raises(ValueError, match="another V"):
        SB3Policy(model, random_world(vision_scale=2.0))
    with pytest.raises(ValueError, match="features: expected the kind"):
        SB3Policy(model, world, features="z" if kind == "zh" else "zh")


def test_a_policy_is_also_refused_by_evaluate_in_another_world():
    world = random_world()
    policy = SB3Policy(trained(dreams(world)), world)
    with pytest.raises(ValueError, match="another V"):
        wm.evaluate(policy, random_world(vision_scale=2.0), env=wm.EnvConfig(WalkEnv, max_steps=3))


def test_an_agent_of_an_earlier_version_is_known_by_the_bounds_of_its_space():
    world = random_world()
    model = trained(dreams(world, observation="zh"))
    known = feature_space(world, "zh")
    model.observation_space = spaces.Box(known.low, known.high, dtype=np.float32)
    assert SB3Policy(model, world).features == "zh"
    model.observation_space = spaces.Box(-1, 1, known.shape, np.float32)
    with pytest.raises(ValueError, match='pass features="zh"'):
        SB3Policy(model, world)
    assert SB3Policy(model, world, features="zh").features == "zh"


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_the_normaliser_of_the_training_is_applied(explicit, algorithm, tmp_path):
    world = random_world()
    env = VecNormalize(dreams(world))
    options = SHORT if algorithm is PPO else {"learning_starts": 4, "train_freq": 4, "device": "cpu", "seed": 0}
    model = algorithm("MlpPolicy", env, **options).learn(32)
    features = 3 * torch.randn(50, env.observation_space.shape[0], generator=torch.Generator().manual_seed(0))
    expected = model.predict(env.normalize_obs(features.numpy()), deterministic=True)[0]
    if explicit:
        model.save(tmp_path / "agent")
        env.save(tmp_path / "normalizer")
        model = algorithm.load(tmp_path / "agent", device="cpu")
        with pytest.raises(ValueError, match=r"normalizer: expected the VecNormalize.*VecNormalize.load"):
            SB3Policy(model, world)
        policy = SB3Policy(model, world, normalizer=VecNormalize.load(tmp_path / "normalizer", dreams(world)))
    else:
        policy = SB3Policy(model, world)
    np.testing.assert_array_equal(policy(features).numpy(), expected)


def test_a_normaliser_of_rewards_alone_changes_no_action():
    world = random_world()
    env = VecNormalize(dreams(world), norm_obs=False)
    model = trained(env)
    features = torch.randn(20, env.observation_space.shape[0], generator=torch.Generator().manual_seed(0))
    expected = model.predict(features.numpy(), deterministic=True)[0]
    np.testing.assert_array_equal(SB3Policy(model, world)(features).numpy(), expected)


def test_other_wrappers_of_observations_are_refused():
    world = random_world()
    single = DummyVecEnv([lambda: gym.wrappers.TransformObservation(wm.DreamEnv(world), lambda seen: 2 * seen, None)])
    with pytest.raises(ValueError, match="expected observations that only VecNormalize changes, got TransformObservation"):
        SB3Policy(trained(single), world)
    with pytest.raises(ValueError, match="model: expected an agent on features"):
        SB3Policy(trained(VecFrameStack(dreams(world), 2)), world)


def test_wrappers_below_the_features_are_none_of_the_agents():
    def make():
        env = gym.wrappers.TransformObservation(
            gym.wrappers.TimeLimit(WalkEnv(), 5), lambda seen: seen, WalkEnv.observation_space
        )
        return wm.LatentEnv(env, world)

    world = random_world()
    assert SB3Policy(trained(DummyVecEnv([make])), world).features == "zh"


def test_a_space_of_features_is_a_box_that_survives_pickling():
    world = random_world()
    space = pickle.loads(pickle.dumps(feature_space(world, "zh")))
    assert isinstance(space, FeatureSpace)
    assert (space.kind, space.origin) == ("zh", feature_space(world, "zh").origin)
    assert space == spaces.Box(space.low, space.high, dtype=np.float32)
