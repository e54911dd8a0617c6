"""SB3VecEnv against DummyVecEnv and SB3's checks; agents trained in dreams, scored in reality."""

import importlib
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_worlds import WalkEnv, random_world, walk_world

import worldmodel as wm

pytest.importorskip("stable_baselines3", reason="needs worldmodel[sb3]")
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from worldmodel.adapters.sb3 import SB3Policy, SB3VecEnv

SAME_STEP = AutoresetMode.SAME_STEP


def terminating_world(**arguments):
    return random_world(termination_bias=-1.0, **arguments)


def dreams(world=None, num_envs=4, **options):
    return SB3VecEnv(wm.DreamVectorEnv(world or terminating_world(), num_envs, autoreset_mode=SAME_STEP, **options))


def real_walks(make, num_envs=3):
    return SyncVectorEnv([make] * num_envs, autoreset_mode=SAME_STEP)


def assert_same(one, two):
    """Compare observations, rewards, dones and infos up to the rounding of another batch size."""
    for a, b in zip(one[:3], two[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert a.dtype == b.dtype
    assert_same_infos(one[3], two[3])


def assert_same_infos(one, two):
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5)


def play_both(ours, theirs, steps, *, seed=5, choose=lambda k, t: k * t % 3):
    """Compare two VecEnvs under the same actions; return the episode ends of each kind."""
    for env in (ours, theirs):
        env.seed(seed)
    np.testing.assert_allclose(ours.reset(), theirs.reset(), rtol=1e-5, atol=1e-5)
    assert_same_infos(ours.reset_infos, theirs.reset_infos)
    ends = {True: 0, False: 0}
    for t in range(steps):
        actions = np.array([choose(k, t) for k in range(ours.num_envs)])
        one, two = ours.step(actions), theirs.step(actions)
        assert_same(one, two)
        assert_same_infos(ours.reset_infos, theirs.reset_infos)
        for done, info in zip(one[2], one[3], strict=True):
            if done:
                ends[info["TimeLimit.truncated"]] += 1
    return ends


# The contract of a VecEnv: the same results as DummyVecEnv of single environments


@pytest.mark.parametrize("options", [{}, {"temperature": (0.5, 1.5)}, {"observation": "decoded"}])
def test_dreams_step_as_dummy_vec_env_steps_single_dreams(options):
    world, options = terminating_world(), {"horizon": 3, **options}
    ends = play_both(dreams(world, **options), DummyVecEnv([lambda: wm.DreamEnv(world, **options)] * 4), 40)
    assert min(ends.values()) > 3


def test_latent_reality_steps_as_dummy_vec_env_steps_single_ones():
    def make():
        return gym.wrappers.TimeLimit(WalkEnv(), 7)

    world = walk_world()
    ours = SB3VecEnv(wm.LatentVectorEnv(real_walks(make), world))
    ends = play_both(ours, DummyVecEnv([lambda: wm.LatentEnv(make(), world)] * 3), 60, choose=lambda k, t: 2 * (k > 0))
    assert min(ends.values()) > 3


def test_infos_of_wrapped_environments_reach_each_row():
    def make():
        return Monitor(gym.wrappers.TimeLimit(WalkEnv(), 7))

    ours = SB3VecEnv(real_walks(make))
    assert ours.env_is_wrapped(Monitor) == [True] * 3
    assert ours.env_is_wrapped(gym.wrappers.RescaleAction, indices=1) == [False]
    ours.seed(0)
    ours.reset()
    totals, episodes = np.zeros(3), 0
    for _ in range(20):
        _, rewards, dones, infos = ours.step(np.full(3, 2))
        totals += rewards
        for k in np.flatnonzero(dones):
            assert infos[k]["episode"]["r"] == pytest.approx(totals[k])
            episodes += 1
        totals[dones] = 0
    assert episodes > 5


def test_callers_may_keep_observations_and_infos():
    env = dreams(temperature=(0.5, 1.5), horizon=3)
    env.seed(0)
    kept = [env.reset()]
    copies = [kept[0].copy()]
    for t in range(8):
        observations, _, _, infos = env.step(np.full(4, t % 3))
        for info in infos:
            info["mine"] = t
        kept += [observations, *(info["terminal_observation"] for info in infos if "terminal_observation" in info)]
        copies += [value.copy() for value in kept[len(copies) :]]
    assert all(np.array_equal(one, two) for one, two in zip(kept, copies, strict=True))
    assert "mine" not in env.step(np.zeros(4, dtype=int))[3][0]


def test_a_seed_applies_to_one_reset_and_later_resets_continue_it():
    env = dreams()
    assert env.seed(3) == [3, 4, 5, 6]
    first, second = env.reset(), env.reset()
    assert not np.array_equal(first, second)
    env.seed(3)
    assert np.array_equal(env.reset(), first)
    assert np.array_equal(env.reset(), second)


def test_options_reach_the_environment_and_must_be_the_same_for_all():
    env = dreams(random_world(termination_head=False))
    env.reset()
    before = env.step(np.zeros(4, dtype=int))[0]
    env.set_options({"reset_mask": np.array([True, False, False, True])})
    assert ((env.reset() == before).all(axis=1) == [False, True, True, False]).all()
    assert not (env.reset() == before).all(axis=1).any()  # once
    env.set_options([{"a": 1}, {}, {}, {}])
    with pytest.raises(ValueError, match="set_options: expected the same options for all environments"):
        env.reset()


def test_attributes_and_methods_are_those_of_the_vector_environment():
    env = dreams(horizon=9)
    assert [options.horizon for options in env.get_attr("options")] == [9] * 4
    assert len(env.get_attr("options", indices=[0, 2])) == 2
    env.set_attr("note", "seen")
    assert env.env.note == "seen"
    assert env.has_attr("note")
    assert not env.has_attr("nothing")
    assert len(env.env_method("reset", seed=1)) == 4
    assert env.env_is_wrapped(Monitor) == [False] * 4
    for call in (lambda: env.set_attr("note", 1, indices=[0]), lambda: env.env_method("reset", indices=2)):
        with pytest.raises(ValueError, match="indices: expected None, because all 4 rows share one"):
            call()


def test_pictures_are_tiled():
    env = dreams(num_envs=4, render_mode="rgb_array")
    env.reset()
    (height, width, _) = env.get_images()[0].shape
    assert env.render().shape == (2 * height, 2 * width, 3)
    env.close()
    blind = dreams()
    with pytest.warns(UserWarning, match="render_mode"):
        assert blind.get_images() == [None] * 4


@pytest.mark.parametrize("kind", ["z", "zh", "zhc", "decoded"])
def test_stable_baselines_check_env_finds_nothing(kind):
    bounded = spaces.Box(-50.0, 50.0, (2,), np.float32)
    check_env(wm.DreamEnv(terminating_world(observation_space=bounded), observation=kind, horizon=5))


def test_nested_observations_and_continuous_actions_train():
    place = spaces.Dict({"place": spaces.Box(-9.0, 9.0, (2,), np.float32), "mode": spaces.Discrete(2)})
    world = terminating_world(action_space=spaces.Box(-1.0, 1.0, (2,), np.float32), observation_space=place)
    env = dreams(world, observation="decoded")
    A2C("MultiInputPolicy", env, n_steps=3, seed=0, device="cpu").learn(48)
    with pytest.raises(ValueError, match="model: expected an agent on features of this world"):
        SB3Policy(A2C("MultiInputPolicy", env, device="cpu"), world)


# Invalid input


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_another_autoreset_mode_is_rejected(mode):
    with pytest.raises(ValueError, match=r"env: expected the autoreset mode SAME_STEP, got .*autoreset_mode=\"SameStep\""):
        SB3VecEnv(wm.DreamVectorEnv(terminating_world(), 2, autoreset_mode=mode))


def test_tensors_are_rejected():
    with pytest.raises(ValueError, match="env: expected NumPy observations, got tensors"):
        dreams(tensors=True)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    monkeypatch.delitem(sys.modules, "worldmodel.adapters.sb3")
    message = r"stable_baselines3: expected the extra sb3, .* pip install 'worldmodel\[sb3\]'"
    with pytest.raises(ImportError, match=message):
        importlib.import_module("worldmodel.adapters.sb3")


# Agents


@pytest.mark.parametrize("kind", ["z", "zh", "zhc"])
def test_a_policy_has_its_kind_of_features_and_acts_as_the_agent_predicts(kind):
    world = terminating_world()
    model = A2C("MlpPolicy", dreams(world, observation=kind), seed=0, device="cpu")
    policy = SB3Policy(model, world)
    assert policy.features == kind
    features = 9 * torch.randn(50, model.observation_space.shape[0])
    assert policy(features).tolist() == model.predict(features.numpy(), deterministic=True)[0].tolist()


def test_an_agent_for_other_features_or_actions_is_rejected():
    world = random_world(hidden_size=7)
    model = A2C("MlpPolicy", dreams(terminating_world()), device="cpu")  # of 5 + 2 features, where this world has 2, 9 or 16
    with pytest.raises(
        ValueError, match=r"model: .* \(2,\) for 'z', \(9,\) for 'zh', \(16,\) for 'zhc', got one on shape \(7,\)"
    ):
        SB3Policy(model, world)
    with pytest.raises(ValueError, match=r"model: expected the action space Discrete\(2\), got Discrete\(3\)"):
        SB3Policy(model, random_world(action_space=spaces.Discrete(2)))
    with pytest.raises(ValueError, match=r"features: expected \(B, 7\) of kind 'zh', got \(3, 12\)"):
        SB3Policy(model, terminating_world())(torch.zeros(3, 12))


def test_a_policy_is_scored_in_dream_and_reality():
    """With an exact world model, `evaluate` and Stable-Baselines3's evaluation give the same score."""
    world = walk_world()
    model = A2C("MlpPolicy", dreams(world, temperature=0.0), seed=1, device="cpu")

    def make():
        return Monitor(wm.LatentEnv(gym.wrappers.TimeLimit(WalkEnv(), 12), world))

    theirs, _ = evaluate_policy(model, DummyVecEnv([make] * 1), n_eval_episodes=20)
    ours = wm.evaluate(
        SB3Policy(model, world),
        world,
        env=wm.EnvConfig(WalkEnv, max_steps=12),
        config=wm.EvaluationConfig(num_episodes=200, temperature=0.0, num_dreams=500),
    )
    assert ours.real.mean == pytest.approx(ours.dream.mean, abs=4 * (ours.real.standard_error + ours.dream.standard_error))
    assert ours.real.mean == pytest.approx(theirs, abs=8 * ours.real.std / 20**0.5)


def test_an_agent_continues_learning_in_reality():
    world = walk_world()
    model = A2C("MlpPolicy", dreams(world, 3), n_steps=4, seed=0, device="cpu").learn(24)
    before = model.policy.state_dict()["action_net.weight"].clone()
    model.set_env(SB3VecEnv(wm.LatentVectorEnv(real_walks(lambda: gym.wrappers.TimeLimit(WalkEnv(), 9)), world)))
    model.learn(24)
    assert not torch.equal(model.policy.state_dict()["action_net.weight"], before)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(dreams(world, 3, observation="zhc"))


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")]),
]


@pytest.mark.parametrize("device", DEVICES)
def test_agents_learn_and_are_scored_in_worlds_on_the_device(device):
    world = walk_world().to(device)
    model = A2C("MlpPolicy", dreams(world), n_steps=4, seed=0, device=device).learn(64)
    policy = SB3Policy(model, world)
    assert policy(torch.zeros(3, 7, device=device)).device.type == device
    wm.evaluate(policy, world, env=wm.EnvConfig(WalkEnv, max_steps=5), config=wm.EvaluationConfig(num_episodes=3, num_dreams=4))


@pytest.mark.slow
def test_ppo_trained_only_in_dreams_beats_random_play_in_reality(tmp_path):
    store = wm.collect("CartPole-v1", out=tmp_path / "data", num_episodes=500, policy="random", seed=0)
    config = wm.TrainingConfig(num_updates=600, learning_rate=1e-2, clip_norm=10.0)
    world = wm.fit(store.path, out=tmp_path / "world", config=wm.MDNRNNConfig(hidden_size=64), training_config=config, seed=0)
    env, steps = VecMonitor(dreams(world, 64)), {"n_steps": 32, "batch_size": 256}
    model = PPO("MlpPolicy", env, **steps, learning_rate=1e-3, gamma=0.98, gae_lambda=0.8, seed=0, device="cpu")
    model.learn(25_000)
    assert model.num_timesteps < 30_000
    real = DummyVecEnv([lambda: Monitor(wm.LatentEnv(gym.make("CartPole-v1"), world))])
    real.seed(0)
    mean, _ = evaluate_policy(model, real, n_eval_episodes=10)
    assert mean > 200  # random play: 22
    scores = wm.evaluate(
        SB3Policy(model, world), world, env="CartPole-v1", config=wm.EvaluationConfig(num_episodes=20, num_dreams=64)
    )
    assert scores.real.mean > 200 > 5 * scores.random.mean


def test_an_agent_with_multi_binary_actions_learns_in_dreams_and_acts_as_a_policy():
    world = terminating_world(action_space=spaces.MultiBinary(3))
    model = PPO("MlpPolicy", dreams(world), n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(32)
    core = wm.Dreams(world, 4)
    actions = core.rollout(SB3Policy(model, world), 3, generator=core.generator(0)).actions
    assert actions.dtype == torch.int8
    assert actions.shape == (4, 3, 3)


class GoalReward:
    """A reward of the user with the method that Hindsight Experience Replay needs."""

    def __call__(self, observation, action, next_observation):
        return next_observation[:, 0]

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -np.abs(achieved_goal - desired_goal).sum(axis=-1)


def test_rewards_of_exchanged_goals_are_computed_as_the_her_buffer_asks_for_them():
    env = dreams(walk_world(), num_envs=3, reward=GoalReward())
    achieved, desired = np.ones((7, 2), np.float32), np.zeros((7, 2), np.float32)
    rewards = env.env_method("compute_reward", achieved, desired, [{}] * 7, indices=[0])
    assert len(rewards) == 1
    assert rewards[0].astype(np.float32).tolist() == [-2.0] * 7
    assert len(env.env_method("compute_reward", achieved, desired, [{}] * 7)) == 3
    for other in (dreams(walk_world()), dreams(walk_world(), reward=GoalReward().__call__)):
        with pytest.raises(AttributeError, match="expected a reward function with a method compute_reward"):
            other.env_method("compute_reward", achieved, desired, [{}] * 7, indices=[0])
