"""LatentEnv and LatentVectorEnv: features of the real environment equal those of dreams, step by step."""

import functools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from toy_envs import DictEnv
from toy_worlds import WalkEnv, random_world, walk_world

from worldmodel.agents import LatentPolicy
from worldmodel.dream import Reality
from worldmodel.envs import DreamEnv, DreamVectorEnv, LatentEnv, LatentVectorEnv
from worldmodel.models import latent_features
from worldmodel.testing import check_vector_env

KINDS = ["z", "zh", "zhc"]
limited_walk = functools.partial(gym.wrappers.TimeLimit, max_episode_steps=9)


def make_walk():
    return limited_walk(WalkEnv())


def starting_where(world, observation):
    """Return the world with one start state, that of the real environment."""
    world.start_mean, world.start_log_variance = (part.unsqueeze(0) for part in world.vision.encode(np.asarray(observation)))
    return world


def noisy_world(**arguments):
    """A world whose V has noise."""
    world = random_world(**arguments)
    encode = world.vision.encode
    world.vision.encode = lambda observation: (encode(observation)[0], torch.full_like(encode(observation)[0], -2.0))
    return world


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_dream_and_reality_give_the_same_features_step_by_step(kind, seed):
    world, real = walk_world(), make_walk()
    starting_where(world, real.reset(seed=seed)[0])
    awake = LatentEnv(make_walk(), world, features=kind)
    asleep = DreamEnv(world, observation=kind, temperature=0.0, horizon=9)
    assert awake.observation_space == asleep.observation_space
    rng = np.random.default_rng(seed)
    one, two = awake.reset(seed=seed)[0], asleep.reset(seed=seed)[0]
    over = False
    while not over:
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
        action = int(rng.integers(3))
        one, reward, *flags, _ = awake.step(action)
        two, dreamed_reward, *dreamed_flags, _ = asleep.step(action)
        assert reward == pytest.approx(dreamed_reward, abs=1e-6)
        assert flags == dreamed_flags
        over = any(flags)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
def test_the_vector_form_gives_the_features_of_single_environments(mode, vector):
    """Several episodes; M's state is reset at the start of each."""
    world = noisy_world()
    together = LatentVectorEnv(vector([make_walk] * 3, autoreset_mode=mode), world, features="zhc")
    alone = [LatentEnv(make_walk(), world, features="zhc") for _ in range(3)]
    features, _ = together.reset(seed=20)
    expected = [env.reset(seed=20 + k)[0] for k, env in enumerate(alone)]
    over, ends = [False] * 3, 0
    rng = np.random.default_rng(0)
    for _ in range(40):
        np.testing.assert_allclose(features, expected, atol=1e-5)
        actions = rng.integers(0, 3, 3)
        features, rewards, terminations, truncations, infos = together.step(actions)
        for k, env in enumerate(alone):
            if over[k] and mode is AutoresetMode.NEXT_STEP:
                expected[k], over[k] = env.reset()[0], False
                continue
            expected[k], reward, terminated, truncated, _ = env.step(actions[k])
            assert (rewards[k], terminations[k], truncations[k]) == (reward, terminated, truncated)
            over[k] = terminated or truncated
            ends += over[k]
            if over[k] and mode is AutoresetMode.SAME_STEP:
                np.testing.assert_allclose(infos["final_obs"][k], expected[k], atol=1e-5)
                expected[k] = env.reset()[0]
        if mode is AutoresetMode.SAME_STEP:
            assert all(
                (final is not None) == ended for final, ended in zip(infos.get("final_obs", [None] * 3), over, strict=True)
            )
    assert ends > 6
    together.close()


def test_every_contract_of_vector_environments_is_kept_in_all_modes():
    """A random model amplifies rounding, which may depend on a row's place."""
    world = noisy_world()
    check_vector_env(
        lambda mode: LatentVectorEnv(SyncVectorEnv([make_walk] * 3, autoreset_mode=mode), world), num_steps=40, tolerance=1e-4
    )


def test_disabled_resets_only_the_rows_of_the_mask_and_leaves_the_options_alone():
    world = random_world()
    env = LatentVectorEnv(SyncVectorEnv([make_walk] * 2, autoreset_mode=AutoresetMode.DISABLED), world)
    env.reset(seed=0)
    for t in range(9):
        before, *_, truncations, _ = env.step(np.array([t % 2, 1 - t % 2]))
    assert truncations.all()
    options = {"reset_mask": np.array([True, False])}
    after, _ = env.reset(options=options)
    assert options == {"reset_mask": options["reset_mask"]}
    assert not after[0, 2:].any()
    assert np.array_equal(after[1], before[1])


def test_the_state_is_advanced_exactly_once_per_step():
    world = random_world()
    env = LatentEnv(WalkEnv(), world, features="zhc")
    features, _ = env.reset(seed=3)
    state, z = world.mdnrnn.initial_state(1), torch.as_tensor(features[:2]).unsqueeze(0)
    for action in (0, 1, 2, 1):
        state = world.mdnrnn.advance(z, torch.eye(3)[[action]], state)
        features, *_ = env.step(action)
        z = torch.as_tensor(features[:2]).unsqueeze(0)
        np.testing.assert_allclose(features, latent_features(z, state, "zhc")[0].detach().numpy(), atol=1e-6)


def test_a_policy_sees_what_reality_and_a_latent_policy_show_it():
    world, seen = random_world(), {"wrapper": [], "lockstep": [], "policy": []}
    reality = Reality(world, WalkEnv, 1, seed=5)
    state = reality.start(generator=reality.generator(0))

    class Recorder:
        features = "zh"

        def check_world(self, world):
            pass

        def state_dict(self):
            return {}

        def __call__(self, features):
            seen["policy"].append(features[0].tolist())
            return torch.tensor([len(seen["policy"]) % 3])

    policy, env = LatentPolicy(world, Recorder()), WalkEnv()
    policy.reset(np.random.default_rng(0))
    wrapper = LatentEnv(WalkEnv(), world)
    seed = reality_seed(reality)
    observation, _ = env.reset(seed=seed)
    features, _ = wrapper.reset(seed=seed)
    for _ in range(4):
        seen["wrapper"].append(features.tolist())
        seen["lockstep"].append(state.features("zh")[0].tolist())
        action = policy(observation)
        observation, *_ = env.step(action)
        features, *_ = wrapper.step(action)
        state, *_ = reality.step(state, torch.tensor([int(action)]), generator=reality.generator(0))
    np.testing.assert_allclose(seen["wrapper"], seen["policy"], atol=1e-6)
    np.testing.assert_allclose(seen["wrapper"], seen["lockstep"], atol=1e-6)


def reality_seed(reality):
    from worldmodel.rng import episode_seed

    return episode_seed(reality._seed, 0)


def test_samples_of_z_depend_on_the_seed_and_do_not_change_those_of_the_environment():
    world = noisy_world()
    one, two = LatentEnv(WalkEnv(), world, features="z"), LatentEnv(WalkEnv(), world, features="z")
    first = one.reset(seed=1)[0], one.step(1)[0], one.reset()[0]
    again = two.reset(seed=1)[0], two.step(1)[0], two.reset()[0]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = two.reset(seed=6)[0]
    assert not np.array_equal(other, first[0])
    plain = WalkEnv()
    plain.reset(seed=1)
    plain.step(1)
    assert np.array_equal(plain.reset()[0], [one.unwrapped.x, one.unwrapped.y])


def test_nested_observations_and_actions_are_encoded():
    env = DictEnv()
    world = random_world(env.action_space, env.observation_space)
    awake = LatentEnv(env, world)
    checked = gym.wrappers.PassiveEnvChecker(awake)  # Gymnasium only warns; warnings are errors in these tests
    checked.reset(seed=0)
    checked.step(checked.action_space.sample())
    many = LatentVectorEnv(SyncVectorEnv([DictEnv] * 2), world)
    features, _ = many.reset(seed=0)
    np.testing.assert_allclose(features[1], awake.reset(seed=1)[0], atol=1e-6)
    np.testing.assert_allclose(many.step(np.array([[0, 1], [2, 1]]))[0][1], awake.step(np.array([2, 1]))[0], atol=1e-6)


def test_callers_may_modify_returned_values():
    world = random_world()
    calm, stirred = (LatentEnv(WalkEnv(), world, features="z") for _ in range(2))
    one, two = calm.reset(seed=0)[0], stirred.reset(seed=0)[0]
    for t in range(5):
        assert np.array_equal(one, two)
        two[:] = 7
        one, two = calm.step(t % 3)[0], stirred.step(t % 3)[0]


def test_a_world_may_be_given_by_its_path(tmp_path):
    random_world().save_pretrained(tmp_path / "world")
    one, two = LatentEnv(WalkEnv(), tmp_path / "world"), LatentEnv(WalkEnv(), random_world())
    assert np.array_equal(one.reset(seed=0)[0], two.reset(seed=0)[0])
    assert LatentVectorEnv(SyncVectorEnv([WalkEnv]), str(tmp_path / "world")).num_envs == 1


def test_an_environment_that_raises_is_named():
    broken = gym.wrappers.TransformObservation(WalkEnv(), lambda observation: observation * np.nan, WalkEnv.observation_space)
    with pytest.raises(ValueError, match="observation: expected finite numbers, got NaN or infinity in row 0"):
        LatentEnv(broken, random_world()).reset(seed=0)


def test_another_environment_and_unknown_features_are_rejected():
    world = random_world()
    with pytest.raises(ValueError, match="env: expected the world model's observation space"):
        LatentEnv(gym.make("CartPole-v1"), world)
    with pytest.raises(ValueError, match="env: expected the world model's observation space"):
        LatentVectorEnv(gym.make_vec("CartPole-v1", num_envs=2), world)
    with pytest.raises(ValueError, match="features: expected 'z', 'zh' or 'zhc', got 'hz'"):
        LatentEnv(WalkEnv(), world, features="hz")


def test_a_vector_environment_that_hides_its_mode_is_rejected():
    env = SyncVectorEnv([WalkEnv])
    del env.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match="metadata"):
        LatentVectorEnv(env, random_world())


def test_an_agent_moves_between_dream_and_reality_by_one_line():
    world = random_world(observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float64))
    awake = LatentVectorEnv(SyncVectorEnv([WalkEnv] * 2), world)
    asleep = DreamVectorEnv(world, 2)
    for name in ("single_observation_space", "observation_space", "single_action_space", "action_space"):
        assert getattr(awake, name) == getattr(asleep, name)
    assert awake.autoreset_mode == asleep.autoreset_mode


def test_a_latent_env_is_made_again_from_its_spec(tmp_path):
    world = walk_world()
    world.save_pretrained(tmp_path / "world")
    gym.register("toy-walk-v0", entry_point=WalkEnv)
    try:
        for given in (world, str(tmp_path / "world")):
            env = LatentEnv(gym.make("toy-walk-v0", disable_env_checker=True), given, features="z")
            again = gym.make(env.spec)
            assert isinstance(again, LatentEnv)
            assert again.observation_space == env.observation_space
            np.testing.assert_array_equal(again.reset(seed=3)[0], env.reset(seed=3)[0])
    finally:
        del gym.registry["toy-walk-v0"]
