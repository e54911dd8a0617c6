"""Tests of the rewards of dreams: expected, sampled, and by a user's function."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import WalkEnv, random_world, walk_world

from worldmodel.agents import Controller, PPOConfig, RealPopulation, SearchConfig, evolve, ppo
from worldmodel.data import EnvConfig
from worldmodel.dream import Dreams, LatentReward, RandomActions, Reality, StartBank, imagine, load_reward
from worldmodel.envs import DreamVectorEnv
from worldmodel.evaluation import EvaluationConfig, evaluate
from worldmodel.rng import Streams
from worldmodel.runtime import RunConfig

ATOMS = (0.0, 100.0)
ATOMS_ONLY = {"reward_atoms": ATOMS, "reward_components": 0}
BOX = spaces.Box(-1, 1, (2,), np.float32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ones(features):
    return torch.ones(len(features), dtype=torch.int64)


def rewards_of(world, mode, *, horizon=30, seed=0, **fields):
    return Dreams(world, 256, reward_mode=mode, **fields).rollout(ones, horizon, generator=generator(seed)).rewards


def distance(before, action, after):
    return (after - before).abs().sum(dim=-1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sampled_rewards_are_atoms_and_expected_ones_their_mean(precision):
    world = random_world(termination_head=False, **ATOMS_ONLY)
    sampled = rewards_of(world, "sampled", precision=precision)
    expected = rewards_of(world, "expected", precision=precision)
    assert set(sampled.unique().tolist()) == set(ATOMS)
    assert len(expected.unique()) > 1000
    error = expected.std() / math.sqrt(expected.numel()) + sampled.std() / math.sqrt(sampled.numel())
    assert abs(sampled.mean() - expected.mean()) < 8 * error  # steps of a dream are not independent


@pytest.mark.parametrize("fields", [ATOMS_ONLY, {"reward_atoms": ATOMS, "reward_components": 2}, {"reward_components": 3}, {}])
def test_the_temperature_does_not_change_rewards(fields):
    world = random_world(termination_head=False, **fields)
    state = Dreams(world, 64).start(generator=generator())
    for mode in ("expected", "sampled"):
        found = []
        for temperature in (0.0, 1.0, 3.0):
            dreams = Dreams(world, 64, temperature=temperature, reward_mode=mode)
            found.append(dreams.step(state, ones(state.z), generator=generator(1))[1])
        if mode == "expected":
            assert torch.equal(found[0], found[1])
        assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sampled_rewards_have_the_variance_of_the_distribution(precision):
    world = random_world(termination_head=False, reward_atoms=(5.0,), reward_components=2)
    dreams = Dreams(world, 40_000, reward_mode="sampled", precision=precision)
    state = dreams.start_from(np.zeros((1, 2)), np.zeros(0, dtype=np.int64), generator=generator())
    reward = dreams.step(state, ones(state.z), generator=generator())[1]
    prediction, _ = world.mdnrnn.step(
        state.z[:1], world.action_features.flatten(torch.ones(1, dtype=torch.int64)), state_of(state)
    )
    assert reward.mean().item() == pytest.approx(prediction.reward.expectation().item(), abs=0.05)
    assert reward.var().item() == pytest.approx(prediction.reward.variance().item(), rel=0.05)


def state_of(state):
    return type(state.lstm)(*(part[:, :1] for part in state.lstm))


def test_groups_of_dreams_share_the_noise_of_their_rewards():
    for precision in ("float32", "bfloat16"):
        dreams = Dreams(random_world(**ATOMS_ONLY), 20, num_groups=2, reward_mode="sampled", precision=precision)
        rewards = dreams.rollout(ones, 10, generator=generator()).rewards
        assert torch.equal(rewards[:10], rewards[10:])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_with_sampled_rewards_takes_the_random_numbers_that_it_reserves(precision):
    world = random_world(reward_atoms=ATOMS, reward_components=3)
    dreams = Dreams(world, 4, reward_mode="sampled", precision=precision)
    streams = Streams(torch.arange(4))
    state = dreams.start(generator=generator())
    before = streams.counter.clone()
    dreams.step_features(state, world.action_features.flatten(torch.ones(4, dtype=torch.int64)), generator=streams)
    after = streams.counter
    assert len((after - before).unique()) == 1
    one = Streams(torch.arange(4))
    one.reserve(1)
    assert torch.equal(after, one.counter)  # one call made all numbers


def test_an_unknown_mode_is_rejected():
    with pytest.raises(ValueError, match="reward_mode: expected one of expected, sampled, got 'mean'"):
        Dreams(random_world(), 2, reward_mode="mean")
    with pytest.raises(ValueError, match="reward_mode: expected one of"):
        DreamVectorEnv(random_world(), 2, reward_mode="mean")


def test_environments_sample_rewards_too():
    env = DreamVectorEnv(random_world(**ATOMS_ONLY), 50, reward_mode="sampled")
    env.reset(seed=0)
    assert set(env.step(np.ones(50, dtype=np.int64))[1].tolist()) == set(ATOMS)


# functions


def test_a_reward_function_replaces_the_head_in_dreams_and_environments():
    world = walk_world()
    found = []
    dreams = Dreams(world, 5, temperature=0.0, reward=distance)
    state = dreams.start(generator=generator())
    after, reward, _ = dreams.step(state, ones(state.z), generator=generator())
    torch.testing.assert_close(reward, distance(world.decode(state.z), None, world.decode(after.z)).float())

    def record(before, action, next_observation):
        found.append((before, action, next_observation))
        return distance(before, action, next_observation)

    env = DreamVectorEnv(world, 3, temperature=0.0, reward=record, observation="decoded")
    first, _ = env.reset(seed=0)
    second, rewards, *_ = env.step(np.array([0, 1, 2]))
    np.testing.assert_allclose(rewards, np.abs(second - first).sum(axis=1), rtol=1e-6)
    assert found[0][1].tolist() == [0, 1, 2]


def test_a_function_of_latents_needs_no_decoder():
    seen = []

    def length(z, action, next_z):
        seen.append((z, action, next_z))
        return next_z.norm(dim=-1)

    world = random_world(reward_head=False)
    dreams = Dreams(world, 4, reward=LatentReward(length))
    state = dreams.start(generator=generator())
    after, reward, _ = dreams.step(state, ones(state.z), generator=generator())
    assert torch.equal(reward, after.z.norm(dim=-1))
    assert seen[0][0] is state.z
    assert seen[0][1].shape == (4, 3)


def test_a_dream_that_has_ended_gets_no_reward_from_a_function():
    dreams = Dreams(random_world(), 4, reward=lambda before, action, after: torch.full((4,), torch.nan))
    state = dreams.start(generator=generator())
    ended = type(state)(state.z, state.lstm, torch.zeros(4, dtype=torch.bool))
    assert dreams.step(ended, ones(state.z), generator=generator())[1].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *_: torch.ones(3), r"reward: expected a function that returns shape \(4,\), got \(3,\) from .*lambda"),
        (lambda *_: torch.ones(4, 1), r"shape \(4,\), got \(4, 1\)"),
        (lambda *_: torch.tensor([1, 1, torch.nan, 1]), "reward: expected finite numbers, got nan at index 2 from .*lambda"),
        (lambda *_: torch.tensor([1, torch.inf, 1, 1]), "got inf at index 1"),
    ],
)
def test_a_reward_of_another_shape_or_that_is_not_finite_is_rejected(function, message):
    world = random_world()
    dreams = Dreams(world, 4, reward=function)
    with pytest.raises(ValueError, match=message):
        dreams.rollout(ones, 2, generator=generator())
    env = DreamVectorEnv(world, 4, reward=function)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.ones(4, dtype=np.int64))


def test_a_function_can_be_given_by_name_and_others_are_rejected():
    assert load_reward("math:dist") is math.dist
    for wrong in ("nowhere:function", "math:pi", 3):
        with pytest.raises(ValueError, match="reward: expected"):
            Dreams(random_world(), 2, reward=wrong)


def test_variants_keep_the_rewards():
    dreams = Dreams(random_world(), 4, reward=distance, reward_mode="sampled").variant(num_dreams=2)
    assert dreams.reward.reward is distance
    assert dreams.reward_mode == "sampled"


# searches

SEARCH = SearchConfig(generations=2, population=4, method="openai-es", test_dreams=8)


def test_searches_run_on_a_function_without_a_reward_head():
    world = random_world(BOX, reward_head=False)
    dreams = Dreams(world, 8, reward=distance)
    agent = evolve(dreams, config=SEARCH, horizon=5)
    config = PPOConfig(iterations=1, steps=2, test_every=1, test_dreams=4)
    better = ppo(agent, dreams, StartBank.of(world), config=config, horizon=5)
    for found in (agent, better):
        returns = dreams.expected_return(found, 5, generator=dreams.generator(0))
        assert returns.isfinite().all()
        assert (returns != 0).any()


def test_the_log_of_a_search_holds_what_pays_its_rewards(tmp_path):
    world, log = random_world(BOX), tmp_path / "search.safetensors"
    evolve(Dreams(world, 8, reward=distance), config=SEARCH, horizon=5, log=log)
    with pytest.raises(ValueError, match=r"expected reward .*test_rewards:distance"):
        evolve(Dreams(world, 8), config=SEARCH, horizon=5, log=log)


@pytest.mark.parametrize(
    ("fields", "value", "message"),
    [
        ({"reward_head": False}, None, "without a reward head; fit it with reward_head=True, or give a reward function"),
        ({}, 0.0, "whose data had the reward 0 at every step; collect data with rewards, or give a reward function"),
        ({"termination_head": False}, 1.0, "whose data had the reward 1 at every step"),
    ],
)
def test_a_search_on_absent_or_constant_rewards_is_rejected(fields, value, message):
    world = random_world(BOX, **fields)
    if value is not None:
        world.mdnrnn.reward_low.fill_(value)
        world.mdnrnn.reward_high.fill_(value)
    dreams = Dreams(world, 8)
    agent = evolve(Dreams(random_world(BOX), 8), config=SEARCH, horizon=2)
    for search in (
        lambda: evolve(dreams, config=SEARCH, horizon=2),
        lambda: ppo(agent, dreams, StartBank.of(world), horizon=2),
        lambda: imagine(dreams, lambda features: features[:, :2], 2, generator=generator()),
    ):
        with pytest.raises(ValueError, match=message):
            search()


def test_a_constant_reward_is_enough_where_episodes_terminate():
    world = random_world(BOX)
    world.mdnrnn.reward_low.fill_(1.0)
    world.mdnrnn.reward_high.fill_(1.0)
    seen = []
    evolve(Dreams(world, 8), config=SEARCH, horizon=2, run=RunConfig(on_progress=seen.append))
    assert max(progress.done for progress in seen) == SEARCH.generations


# imagination


def test_imagined_rewards_of_a_function_have_a_gradient_to_the_policy():
    world = random_world(BOX, reward_head=False)
    dreams = Dreams(world, 6, reward=lambda before, action, after: -after.square().sum(dim=-1))
    weight = torch.zeros(7, 2, requires_grad=True)
    imagined = imagine(dreams, lambda features: torch.tanh(features @ weight), 3, generator=generator())
    torch.testing.assert_close(imagined.reward, -world.decode(imagined.z[:, 1:]).square().sum(dim=-1).float())
    imagined.reward.sum().backward()
    assert weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in world.parameters())


def test_a_function_without_a_gradient_is_refused_in_imagination():
    dreams = Dreams(random_world(BOX), 6, reward=lambda before, action, after: (after > 0).sum(dim=-1).float())
    weight = torch.zeros(7, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"reward: expected a differentiable function, got .*lambda"):
        imagine(dreams, lambda features: features @ weight, 1, generator=generator())


# reality and evaluation


def test_a_function_pays_real_steps_too():
    world = walk_world()
    reality = Reality(world, WalkEnv, 3, seed=0, reward=distance)
    state = reality.start(generator=generator())
    before = world.decode(state.z)
    after, reward, _ = reality.step(state, np.array([0, 1, 2]), generator=generator())
    torch.testing.assert_close(reward, distance(before, None, world.decode(after.z)).float())
    latent = Reality(world, WalkEnv, 3, seed=0, reward=LatentReward(lambda z, action, next_z: next_z[:, 0] - z[:, 0]))
    state = latent.start(generator=generator())
    after, reward, _ = latent.step(state, np.array([0, 1, 2]), generator=generator())
    torch.testing.assert_close(reward, after.z[:, 0] - state.z[:, 0])


def test_a_search_in_the_real_environment_takes_a_function():
    world = walk_world()
    worlds = RealPopulation(world, WalkEnv, rollouts=2, reward=distance)
    assert worlds.recipe()["reward"] == "test_rewards:distance"
    scores = [
        RealPopulation(world, WalkEnv, rollouts=2, reward=reward).score(
            Controller.for_world(world, None), episodes=2, horizon=5, seed=0, name="test"
        )
        for reward in (distance, lambda before, action, after: torch.full((2,), 3.0))
    ]
    np.testing.assert_array_equal(scores[1].returns, 3.0 * scores[1].lengths)
    assert not np.array_equal(scores[0].returns, scores[1].returns)


def test_evaluation_shows_the_spread_of_sampled_returns_next_to_the_real_one():
    world = random_world(WalkEnv.action_space, WalkEnv.observation_space, **ATOMS_ONLY)
    env, config = EnvConfig(WalkEnv, max_steps=1000), EvaluationConfig(num_episodes=3, num_dreams=64)
    found = evaluate(RandomActions(world, generator=generator()), world, env=env, config=config)
    assert found.sampled.std > found.dream.std
    names = [line.split("  ")[0] for line in str(found).splitlines()]
    assert names == ["dream (temperature 1)", "the same, sampled rewards", "reality", "random in reality"]
    config = EvaluationConfig(num_episodes=3, num_dreams=8, reward=distance)
    assert evaluate(ones, world, env=env, config=config).sampled is None
