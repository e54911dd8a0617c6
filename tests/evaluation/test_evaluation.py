"""Scores in dreams and in reality, their printed form, and the replay of a real episode in a dream."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_envs import CountEnv, DictEnv, nested_env
from toy_worlds import WalkEnv, random_world, same_bits, walk_world

from worldmodel.agents import Controller
from worldmodel.data import EnvConfig, rollouts
from worldmodel.dream import DEFAULT_HORIZON, Dreams, Reality, Scores, score, time_limit, usual_horizon
from worldmodel.evaluation import Evaluation, EvaluationConfig, evaluate, replay
from worldmodel.models import feature_size
from worldmodel.rng import EVALUATION_STREAM, derive_seed, episode_seed
from worldmodel.runtime import RunConfig, WorkerConfig


def controller_of(world, push=2):
    """A controller that always makes the same choice."""
    controller = Controller(feature_size(world, "zh"), world.action_space)
    with torch.no_grad():
        controller.layers[0].bias[push] = 1.0
    return controller


def walk_episode(seed=0, pushes=(2, 1, 0, 2, 2, 1, 0, 0, 1, 2)):
    actions = iter(pushes)
    return next(
        iter(rollouts(EnvConfig(WalkEnv, max_steps=len(pushes)), lambda observation: next(actions), episode_ids=[0], seed=seed))
    )


def test_scores_have_mean_deviation_and_standard_error():
    scores = Scores(np.array([1.0, 2.0, 6.0]), np.array([3, 4, 5]))
    assert (scores.mean, scores.std) == (3.0, np.std([1, 2, 6]))
    assert scores.standard_error == pytest.approx(np.std([1, 2, 6], ddof=1) / 3**0.5)
    assert str(scores) == "3.0 +- 2.2 (3 episodes, standard error 1.5)"
    assert Scores(np.array([4.0]), np.array([1])).standard_error == 0


def test_scores_survive_a_round_trip_through_json():
    scores = Scores(np.array([1.25, -2.0]), np.array([3, 4]))
    data = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert same_bits(Scores.from_json(data), scores)
    assert data["mean"] == scores.mean
    assert data["standard_error"] == scores.standard_error


def test_an_evaluation_prints_one_aligned_row_per_score():
    rows = str(Evaluation(*(Scores(np.full(2, float(k)), np.full(2, k)) for k in (1, 2, 3)), temperature=1.15)).split("\n")
    assert [row.split("  ")[0] for row in rows] == ["dream (temperature 1.15)", "reality", "random in reality"]
    assert len({row.index(" +- ") for row in rows}) == 1
    assert [float(row[: row.index(" +- ")].split()[-1]) for row in rows] == [2.0, 1.0, 3.0]


def test_an_exact_world_scores_in_dreams_as_in_reality():
    world = walk_world()
    result = evaluate(
        controller_of(world),
        world,
        env=EnvConfig(WalkEnv, max_steps=30),
        config=EvaluationConfig(num_episodes=40, num_dreams=400, temperature=0.0),
    )
    assert set(np.unique(result.dream.lengths)) == set(np.unique(result.real.lengths))
    for length in np.unique(result.real.lengths):
        real, dream = (np.unique(part.returns[part.lengths == length]) for part in (result.real, result.dream))
        np.testing.assert_allclose(real, dream)
    assert result.random.lengths.mean() > result.real.lengths.mean()  # always right terminates soonest
    assert len(result.real.returns) == len(result.random.returns) == 40
    assert len(result.dream.returns) == 400


def test_an_evaluation_is_a_function_of_its_seed():
    world = random_world(DictEnv().action_space, DictEnv().observation_space)
    controller = Controller(feature_size(world, "zh"), world.action_space)

    def run(global_seed, seed):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002 (this is what must not matter)
        return evaluate(
            controller,
            world,
            env=EnvConfig(DictEnv, max_steps=20),
            seed=seed,
            config=EvaluationConfig(num_episodes=5, num_dreams=8),
        )

    one, again, other = run(0, 3), run(1, 3), run(0, 4)
    for name in ("real", "dream", "random"):
        assert same_bits(getattr(one, name), getattr(again, name))
        assert not np.array_equal(getattr(one, name).returns, getattr(other, name).returns)


def test_an_evaluation_of_nested_spaces_runs():
    env = nested_env()
    world = random_world(env.action_space, env.observation_space, termination_head=False)
    controller = Controller(feature_size(world, "zh"), world.action_space)
    result = evaluate(
        controller, world, env=EnvConfig(nested_env, max_steps=5), config=EvaluationConfig(num_episodes=3, num_dreams=4)
    )
    assert {tuple(scores.lengths) for scores in (result.real, result.random)} == {(5, 5, 5)}
    assert tuple(result.dream.lengths) == (5, 5, 5, 5)


def test_progress_counts_the_steps_and_the_running_episodes():
    world, seen = walk_world(), []
    result = evaluate(
        controller_of(world),
        world,
        env=EnvConfig(WalkEnv, max_steps=DEFAULT_HORIZON),
        config=EvaluationConfig(num_episodes=6, num_dreams=2),
        run=RunConfig(on_progress=seen.append),
    )
    assert {(p.stage, p.unit, p.total) for p in seen} == {("evaluate", "step", DEFAULT_HORIZON)}
    counts = [(p.done, p.metrics["running"]) for p in seen]
    assert counts == [(t + 1, int((result.real.lengths > t + 1).sum())) for t in range(len(seen))]


def test_a_world_without_a_reward_head_dreams_returns_of_zero():
    world = random_world(reward_head=False)
    result = evaluate(
        controller_of(world), world, env=EnvConfig(WalkEnv, max_steps=5), config=EvaluationConfig(num_episodes=2, num_dreams=4)
    )
    assert not result.dream.returns.any()
    assert result.real.returns.any()


def test_an_environment_that_raises_is_named_and_closed():
    world = random_world(CountEnv.action_space, CountEnv.observation_space)
    envs, seed = [], episode_seed(derive_seed(1, EVALUATION_STREAM), 3)

    def make():
        envs.append(CountEnv(trouble="raise", seeds=[seed]))
        return envs[-1]

    env, config = EnvConfig(make, max_steps=1000), EvaluationConfig(num_episodes=5, num_dreams=2)
    with pytest.raises(RuntimeError, match=rf"episode 3 \(seed {seed}\), but step 2"):
        evaluate(Controller(7, world.action_space), world, env=env, seed=1, config=config)
    assert all(env.closed for env in envs)


def test_a_controller_of_another_world_is_rejected():
    world = random_world()
    for controller in (Controller(4, world.action_space), Controller(7, spaces.Discrete(5))):
        with pytest.raises(ValueError, match="controller: expected"):
            evaluate(controller, world, env=WalkEnv)


def test_score_is_the_score_of_the_worlds():
    reality = Reality(walk_world(), WalkEnv, 4, seed=2)
    scores = score(reality, controller_of(reality.world), horizon=20, seed=0)
    returns, lengths = reality.score(controller_of(reality.world), 20, generator=reality.generator(0))
    assert scores.returns.tolist() == returns.tolist()
    assert scores.lengths.tolist() == lengths.tolist()


def test_the_time_limit_is_that_of_the_environment_or_less():
    assert time_limit("CartPole-v1") == 500
    assert time_limit("gymnasium:CartPole-v1") == 500
    assert time_limit(EnvConfig("CartPole-v1", max_steps=20)) == 20
    assert time_limit(EnvConfig("CartPole-v1", max_steps=900)) == 500
    assert time_limit(EnvConfig("CartPole-v1", kwargs={"max_episode_steps": 30})) == 30
    assert time_limit(lambda: gym.make("CartPole-v1", max_episode_steps=40)) == 40
    with pytest.warns(UserWarning, match="1000 steps"):
        assert time_limit(WalkEnv) == DEFAULT_HORIZON
    assert time_limit(EnvConfig(WalkEnv, max_steps=7)) == 7
    assert time_limit(EnvConfig("CartPole-v1", wrappers=[lambda env: gym.wrappers.TimeLimit(env, 9)])) == 9
    assert time_limit(EnvConfig(WalkEnv, wrappers=[lambda env: gym.wrappers.TimeLimit(env, 9)])) == 9
    assert time_limit(EnvConfig(lambda: gym.wrappers.TimeLimit(WalkEnv(), 77), max_steps=100)) == 77
    with pytest.raises(ValueError, match=r"expected a registered Gymnasium id, got 'toy_worlds\.WalkEnv'"):
        time_limit("toy_worlds.WalkEnv")


@pytest.mark.parametrize("prefix", [0, 1, 4])
def test_a_replay_in_an_exact_world_is_the_episode(prefix):
    world, episode = walk_world(), walk_episode()
    rollout = replay(Dreams(world, 3, temperature=0.0), episode, prefix=prefix)
    truth = world.encode(episode.observations)[prefix:]
    assert torch.equal(rollout.z, truth.expand(3, *truth.shape))
    assert rollout.actions.tolist() == [episode.actions[prefix:].tolist()] * 3
    assert rollout.rewards[0].tolist() == episode.rewards[prefix:].tolist()


def test_a_replay_has_the_requested_length():
    dreams, episode = Dreams(walk_world(), 2, temperature=0.0), walk_episode()
    assert replay(dreams, episode, prefix=2, horizon=3).mask.shape == (2, 3)
    assert replay(dreams, episode, prefix=2, horizon=300).mask.shape == (2, len(episode) - 2)


def test_a_replay_primes_the_lstm_with_the_prefix():
    world, episode = random_world(termination_bias=-50.0), walk_episode()
    primed = replay(Dreams(world, 1, temperature=0.0), episode, prefix=4, horizon=1).z
    cut = dataclasses.replace(episode, **{
        name: getattr(episode, name)[4:] for name in ("observations", "actions", "rewards", "terminations", "truncations")
    })  # fmt: skip
    fresh = replay(Dreams(world, 1, temperature=0.0), cut, horizon=1).z
    assert torch.equal(primed[:, 0], fresh[:, 0])
    assert not torch.allclose(primed[:, 1], fresh[:, 1])


def test_a_replay_of_dict_observations_and_several_choices_runs():
    episode = next(iter(rollouts(EnvConfig(DictEnv, max_steps=8), episode_ids=[0], seed=0)))
    world = random_world(DictEnv().action_space, DictEnv().observation_space, termination_bias=-50.0)
    rollout = replay(Dreams(world, 2), episode, prefix=3)
    assert torch.equal(rollout.actions[0], torch.as_tensor(episode.actions[3:]))
    assert torch.equal(rollout.z[1, 0], world.encode(episode.observations)[3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefix": -1}, "prefix: expected an integer >= 0, got -1"),
        ({"prefix": 10}, "prefix: expected from 0 to below"),
        ({"horizon": 0}, "horizon: expected an integer >= 1, got 0"),
        ({"horizon": -2}, "horizon: expected an integer >= 1, got -2"),
    ],
)
def test_replays_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        replay(Dreams(walk_world(), 2), walk_episode(), **arguments)


def test_a_replay_of_another_environment_is_rejected():
    with pytest.raises(ValueError, match="value"):
        replay(Dreams(random_world(observation_space=DictEnv().observation_space), 2), walk_episode())


def test_any_callable_on_features_can_be_evaluated():
    world = walk_world()
    result = evaluate(
        lambda features: torch.full((len(features),), 2),
        world,
        env=EnvConfig(WalkEnv, max_steps=6),
        config=EvaluationConfig(num_episodes=3, num_dreams=4),
    )
    assert len(result.real.returns) == 3


def test_an_evaluation_plays_no_episode_of_a_collection_with_the_same_seed(monkeypatch):
    seeds = []
    reset = WalkEnv.reset

    def spy(self, *, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(WalkEnv, "reset", spy)
    evaluate(
        controller_of(walk_world()),
        walk_world(),
        env=EnvConfig(WalkEnv, max_steps=6),
        seed=7,
        config=EvaluationConfig(num_episodes=5, num_dreams=4),
    )
    assert len(set(seeds)) == 5
    assert not set(seeds) & {episode_seed(7, k) for k in range(1000)}


def test_the_usual_horizon_is_looked_up_and_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "payload.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    world = random_world()
    for recipe, horizon in (
        ({"env": "payload:X-v0", "max_steps": 999}, 999),
        ({"env": "CartPole-v1"}, 500),
        ({"env": "gymnasium:CartPole-v1"}, 500),
        ({"env": "CartPole-v1", "max_steps": 30}, 30),
        ({"env": "CartPole-v1", "env_kwargs": {"max_episode_steps": 40}}, 40),
    ):
        world.provenance = {"recipes": [recipe]}
        assert usual_horizon(world) == horizon
    for recipe in ({"env": "payload:X-v0"}, {}):
        world.provenance = {"recipes": [recipe]}
        with pytest.warns(UserWarning, match="1000 steps"):
            assert usual_horizon(world) == DEFAULT_HORIZON


@pytest.mark.parametrize("trouble", ["observation", "reward", "shape"])
def test_an_environment_that_returns_invalid_values_is_named(trouble):
    class Nonsense(WalkEnv):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            if trouble == "observation":
                observation = np.full_like(observation, np.nan)
            elif trouble == "shape":
                observation = np.zeros(7, np.float32)
            return observation, np.nan if trouble == "reward" else reward, *rest

    world = walk_world()
    with pytest.raises(RuntimeError, match=r"episode 0 \(seed \d+\), but step 1 failed.*(finite|expected shape)"):
        evaluate(
            controller_of(world),
            world,
            env=EnvConfig(Nonsense, max_steps=6),
            config=EvaluationConfig(num_episodes=2, num_dreams=4),
        )


def test_workers_and_executors_play_the_episodes_of_this_process():
    world, episodes = random_world(WalkEnv.action_space, WalkEnv.observation_space), []
    env = EnvConfig(WalkEnv, max_steps=12)
    controller = controller_of(world)

    def count(progress):
        episodes.append(progress.done)

    def found(workers):
        config, run = EvaluationConfig(num_episodes=37, num_dreams=2), RunConfig(on_progress=count)
        return evaluate(controller, world, env=env, config=config, workers=workers, run=run)

    here = found(0)
    episodes.clear()
    with ThreadPoolExecutor(2) as executor:
        threads = found(WorkerConfig(executor=executor))
    assert sorted(episodes)[-1] == 37
    one, two = found(1), found(2)
    for other in (threads, one, two):
        np.testing.assert_allclose(other.real.returns, here.real.returns)
        np.testing.assert_array_equal(other.real.lengths, here.real.lengths)
        np.testing.assert_array_equal(other.random.returns, one.random.returns)
        np.testing.assert_array_equal(other.dream.returns, here.dream.returns)


@pytest.mark.parametrize("trouble", ["raise", "die"])
def test_a_worker_names_the_episodes_that_failed(trouble):
    world = random_world(CountEnv.action_space, CountEnv.observation_space)
    seed = episode_seed(derive_seed(1, EVALUATION_STREAM), 17)
    env = EnvConfig(CountEnv, kwargs={"trouble": trouble, "seeds": [seed]}, max_steps=9)
    numbers = {"config": EvaluationConfig(num_episodes=19, num_dreams=2), "workers": 1, "seed": 1}
    name = "(crashed|episode 17 .*the toy broke)"
    with pytest.raises(RuntimeError, match=rf"env: expected to play episodes 16 to 18, got 2 times: .*{name}"):
        evaluate(Controller(7, world.action_space), world, env=env, **numbers)
