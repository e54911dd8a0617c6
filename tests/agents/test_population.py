"""Fitness of populations: many controllers as one batch of dreams, or in real episodes over worker processes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_controllers import DICT, generator, random_controller, search_in, weights
from toy_envs import CountEnv
from toy_worlds import WalkEnv, random_world, walk_world

from worldmodel.agents import Controller, ControllerBatch, RealPopulation
from worldmodel.data import EnvConfig
from worldmodel.dream import Dreams, Reality, score
from worldmodel.evaluation import EvaluationConfig, evaluate
from worldmodel.models import feature_size
from worldmodel.rng import SEARCH_STREAM, derive_seed, episode_seed


@pytest.mark.parametrize(("bias", "hidden_size"), [(True, None), (False, None), (True, 6), (False, 6)])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), DICT])
def test_a_population_as_one_batch_equals_each_candidate_alone(action_space, bias, hidden_size):
    world = random_world(action_space, termination_bias=-1.0)
    template = random_controller(world, bias=bias, hidden_size=hidden_size)
    candidates = torch.randn(4, template.num_parameters, generator=generator(3))
    together = Dreams(world, 20, num_groups=4, termination="sample")
    returns, lengths = together.score(ControllerBatch(template, candidates), 12, generator=generator(1))
    assert len(returns.unique()) > 15
    for p in range(4):
        torch.nn.utils.vector_to_parameters(candidates[p], template.parameters())
        alone, steps = Dreams(world, 5, termination="sample").score(template, 12, generator=generator(1))
        torch.testing.assert_close(returns[5 * p : 5 * p + 5], alone, rtol=1e-3, atol=1e-3)
        assert torch.equal(lengths[5 * p : 5 * p + 5], steps)


def test_the_same_candidate_gets_the_same_fitness_in_every_group():
    world = random_world()
    template = random_controller(world)
    one = torch.nn.utils.parameters_to_vector(template.parameters()).detach()
    returns, _ = Dreams(world, 15, num_groups=3).score(ControllerBatch(template, one.repeat(3, 1)), 20, generator=generator())
    torch.testing.assert_close(returns.reshape(3, 5), returns[:5].expand(3, 5), rtol=1e-4, atol=1e-4)


def real_search(world, env, *, num_workers=0, **arguments):
    real = RealPopulation(world, EnvConfig(env, max_steps=12), rollouts=2, workers=num_workers)
    return search_in(real, **{"generations": 4, "population": 4, "test_dreams": 20, "sigma": 0.5, "seed": 3, **arguments})


def test_a_search_in_the_real_environment_does_not_depend_on_the_number_of_workers():
    seen = []
    found = [
        real_search(walk_world(), WalkEnv, num_workers=workers, on_generation=lambda g: seen.append(g.metrics))
        for workers in (0, 2)
    ]
    assert weights(found[0]).any()
    assert torch.equal(weights(found[0]), weights(found[1]))
    assert seen[:4] == seen[4:]


def test_real_fitness_is_the_mean_return_of_the_same_episodes_for_every_candidate():
    world = walk_world()
    controller = random_controller(world)
    candidates = torch.stack([weights(random_controller(world, seed=seed)) for seed in (0, 4, 0)])
    real = RealPopulation(world, EnvConfig(WalkEnv, max_steps=12), rollouts=3)
    fitness = real.fitness(controller, candidates, horizon=100, seed=8, name="generation 1")
    assert fitness[0] == fitness[2]
    assert fitness[0] != fitness[1]
    reality = Reality(world, EnvConfig(WalkEnv, max_steps=12), 3, seed=8)
    assert fitness[0] == score(reality, random_controller(world, seed=0), horizon=12, seed=8).mean


def test_a_real_test_plays_the_given_number_of_different_episodes():
    world = walk_world()
    controller = random_controller(world)
    real = RealPopulation(world, EnvConfig(WalkEnv, max_steps=12))
    test = real.test(controller, episodes=20, horizon=12, seed=5, name="generation 1")
    played: list[int] = []
    scores = real.score(controller, episodes=20, horizon=12, seed=5, name="test", on_progress=lambda p: played.append(p.done))
    parts = [
        score(
            Reality(world, EnvConfig(WalkEnv, max_steps=12), size, seed=derive_seed(5, part)), controller, horizon=12, seed=0
        ).returns
        for part, size in enumerate((16, 4))
    ]
    assert test == pytest.approx(np.concatenate(parts).mean(), abs=1e-12)
    np.testing.assert_array_equal(scores.returns, np.concatenate(parts))
    assert played == [16, 20]


def count_world():
    return random_world(CountEnv.action_space, CountEnv.observation_space, reward_head=False)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_environment_that_raises_names_generation_candidate_and_seeds(num_workers):
    seeds = [episode_seed(derive_seed(3, SEARCH_STREAM, 2), k) for k in range(2)]

    def make():
        return CountEnv(trouble="raise", seeds=seeds[1:])

    message = (
        rf"generation 2, candidate [0-3]: .*\(seeds {seeds[0]}, {seeds[1]}\).*got 2 times: .*episode 1 \(seed {seeds[1]}\)"
    )
    with pytest.raises(RuntimeError, match=message):
        real_search(count_world(), make, num_workers=num_workers)


def test_a_search_in_reality_and_an_evaluation_play_other_episodes():
    played = []

    class Recorded(CountEnv):
        def reset(self, **options):
            played.append(options["seed"])
            return super().reset(**options)

    world = count_world()
    found = real_search(world, Recorded)
    searched = set(played)
    played.clear()
    evaluate(found, world, env=EnvConfig(Recorded, max_steps=1000), seed=3, config=EvaluationConfig(num_episodes=8))
    assert not searched & set(played)


def test_a_killed_worker_names_generation_candidate_and_seeds():
    seeds = [episode_seed(derive_seed(3, SEARCH_STREAM, 2), k) for k in range(2)]

    def make():
        return CountEnv(trouble="die", seeds=seeds[:1])

    message = rf"generation 2, candidate [0-3]: .*\(seeds {seeds[0]}, {seeds[1]}\).*the worker process crashed \(exit code 7\)"
    with pytest.raises(RuntimeError, match=message):
        real_search(count_world(), make, num_workers=2)


def test_a_failure_that_occurs_once_is_retried(tmp_path):
    def make():
        return CountEnv(trouble="raise", seeds=[episode_seed(derive_seed(3, SEARCH_STREAM, 2), 0)], once=tmp_path / "once")

    found = real_search(count_world(), make)
    assert (tmp_path / "once").exists()
    assert torch.equal(weights(found), weights(real_search(count_world(), CountEnv)))


def test_a_real_search_resumes_to_the_same_bits(tmp_path):
    def stop(generation):
        if generation.done == 2:
            raise KeyboardInterrupt

    whole = real_search(walk_world(), WalkEnv)
    with pytest.raises(KeyboardInterrupt):
        real_search(walk_world(), WalkEnv, log=tmp_path / "log", on_generation=stop)
    assert torch.equal(weights(real_search(walk_world(), WalkEnv, log=tmp_path / "log")), weights(whole))


def test_a_real_population_rejects_unsuitable_arguments():
    with pytest.raises(ValueError, match="rollouts: expected an integer >= 1, got 0"):
        RealPopulation(walk_world(), WalkEnv, rollouts=0)
    with pytest.raises(ValueError, match="num_workers: expected an integer >= 0, got -1"):
        RealPopulation(walk_world(), WalkEnv, workers=-1)
    with pytest.raises(ValueError, match="observation space"):
        RealPopulation(walk_world(), "CartPole-v1")
    with pytest.raises(ValueError, match="expected a registered Gymnasium id"):
        RealPopulation(walk_world(), "CartPoole-v1")


def test_a_controller_on_z_learns_cartpole_in_the_real_environment():
    env = gym.make("CartPole-v1")
    world = random_world(env.action_space, env.observation_space)  # M is untrained: the controller uses only V's z
    real = RealPopulation(world, "CartPole-v1", rollouts=2)
    zero = Controller(feature_size(world, "z"), world.action_space, features="z")
    found = search_in(real, generations=12, population=16, sigma=0.5, features="z", test_dreams=10, horizon=200, seed=0)
    before, after = (
        score(Reality(world, "CartPole-v1", 10, seed=99), controller, horizon=200, seed=0).mean for controller in (zero, found)
    )
    assert before < 12  # always pushes to one side
    assert after > 100
