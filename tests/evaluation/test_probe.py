"""Probe: scores of fixed policies in dreams and in reality, and the correlation of their ranks."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import labelled_episode
from toy_worlds import WalkEnv, random_world, walk_world

import worldmodel as wm
from worldmodel.data import CyclicPolicy
from worldmodel.dream import Dreams, RepeatedActions, Scores
from worldmodel.evaluation import Probe, fixed_policies, probe
from worldmodel.evaluation.faithfulness import _real_scores

SWEEPS = ["sweeps of 20", "sweeps of 60", "sweeps of 100"]


def scores(*means):
    return {f"policy {i}": Scores(np.array([mean, mean + 2.0]), np.array([3, 3])) for i, mean in enumerate(means)}


def test_an_exact_world_ranks_as_reality_does_and_reports_it():
    config = wm.EvaluationConfig(num_episodes=20, num_dreams=200, termination="threshold")
    result = probe(walk_world(), env=wm.EnvConfig(WalkEnv, max_steps=12), temperatures=(0.0,), config=config)
    assert list(result.real) == ["always 0", "always 1", "always 2", "uniform", "repeated", "long holds", *SWEEPS]
    assert result.rank_correlation(0.0) == pytest.approx(1.0)
    for name in ("always 0", "always 1", "always 2"):
        real, dreamed = result.real[name], result.dreams[0.0][name]
        assert abs(real.mean - dreamed.mean) < 4 * (real.standard_error + dreamed.standard_error) + 1e-3
    text = str(result)
    assert "dream, tau 0" in text
    assert "rank correlation" in text
    assert result.to_json()["dreams"][0]["policies"]["uniform"]["returns"]


def test_dreams_with_equal_scores_have_rank_correlation_zero():
    same = Probe(scores(1.0, 2.0, 3.0), {1.0: scores(5.0, 5.0, 5.0)})
    assert same.rank_correlation(1.0) == 0.0


@pytest.mark.parametrize(("dreamed", "expected"), [((10, 20, 30), 1.0), ((3, 2, 1), -1.0), ((1, 3, 2), 0.5)])
def test_the_rank_correlation_is_spearmans(dreamed, expected):
    assert Probe(scores(1.0, 2.0, 3.0), {1.15: scores(*dreamed)}).rank_correlation(1.15) == pytest.approx(expected)


def test_dreams_that_do_not_rank_are_named():
    found = Probe(scores(1.0, 2.0, 3.0), {0.1: scores(3, 2, 1), 1.0: scores(4, 5, 6), 1.15: scores(1, 1, 1)})
    assert found.unready() == [0.1, 1.15]
    assert str(found).splitlines()[-1].startswith("not ready at tau 0.1, 1.15: below 0.5")
    assert "not ready" not in str(Probe(found.real, {1.0: found.dreams[1.0]}))


def test_equal_means_get_their_mean_rank():
    from scipy.stats import spearmanr

    real, dreamed = (1.0, 5.0, 5.0, 2.0, 7.0), (3.0, 3.0, 9.0, 1.0, 2.0)
    expected = spearmanr(real, dreamed).statistic
    assert Probe(scores(*real), {1.0: scores(*dreamed)}).rank_correlation(1.0) == pytest.approx(expected)


def test_a_probe_is_a_function_of_its_seed():
    def run(seed):
        env, config = wm.EnvConfig(WalkEnv, max_steps=6), wm.EvaluationConfig(num_episodes=3, num_dreams=8)
        return probe(random_world(), env=env, temperatures=(0.5, 1.0), config=config, seed=seed).to_json()

    torch.manual_seed(0)
    one = run(0)
    torch.manual_seed(1)
    assert one == run(0)
    assert one != run(1)


def test_real_scores_are_in_the_order_of_the_episodes_whichever_was_done_first():
    scores = _real_scores([labelled_episode(1, 3), labelled_episode(0, 2)])
    assert scores.lengths.tolist() == [2, 3]
    assert scores.returns.tolist() == [1.0, 303.0]


def test_progress_is_reported():
    calls = []
    probe(
        random_world(),
        env=wm.EnvConfig(WalkEnv, max_steps=3),
        config=wm.EvaluationConfig(num_episodes=2, num_dreams=4),
        run=wm.RunConfig(on_progress=lambda p: calls.append((p.done, p.total))),
    )
    assert calls == [(2 * n, 18) for n in range(1, 10)]


def test_repeated_actions_are_held_from_1_to_10_steps_each_row_for_itself():
    world = random_world(spaces.Box(-1, 1, (), np.float32))  # no two sampled actions are the same
    policy = RepeatedActions(world, generator=torch.Generator().manual_seed(0))
    state = Dreams(world, 200).start(generator=torch.Generator().manual_seed(1))
    actions = torch.stack([policy.act(state) for _ in range(100)], dim=1)  # (200, 100)
    changed = (actions[:, 1:] != actions[:, :-1]).nonzero()
    lengths = np.concatenate([np.diff(changed[changed[:, 0] == row, 1].numpy()) for row in range(200)])
    assert (lengths.min(), lengths.max()) == (1, 10)
    assert abs(lengths.mean() - 5.5) < 0.2
    assert len(changed[:, 1].unique()) > 90


def test_long_holds_are_as_long_in_dreams_as_in_reality():
    world = random_world(spaces.Box(-1, 1, (), np.float32))
    policy = fixed_policies(world.action_space)["long holds"]
    dreamed = policy.dreamed(world, torch.Generator().manual_seed(0))
    state = Dreams(world, 50).start(generator=torch.Generator().manual_seed(1))
    actions = torch.stack([dreamed.act(state) for _ in range(1000)], dim=1)
    lengths = torch.cat([torch.unique_consecutive(row, return_counts=True)[1][:-1] for row in actions])
    assert lengths.max() == policy.real.max_repeat == 100
    assert abs(lengths.float().mean() - 50) < 5  # 50.5, less the truncated part of the last hold


def test_boxes_have_a_centre_and_corners():
    policies = fixed_policies(spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32)))
    assert list(policies) == [
        "centre",
        "axis 0 low",
        "axis 0 high",
        "axis 1 low",
        "axis 1 high",
        "uniform",
        "repeated",
        "long holds",
    ]
    assert policies["axis 1 high"].real(None).tolist() == [0.0, 1.0]
    world = random_world(spaces.Box(-1, 1, (2,), np.float32))
    dreamed = policies["axis 1 high"].dreamed(world, torch.Generator())
    assert dreamed.act(Dreams(world, 4).start(generator=torch.Generator())).tolist() == [[0.0, 1.0]] * 4


def test_actions_have_the_names_that_are_given():
    assert list(fixed_policies(spaces.Discrete(2, start=3), ("left", "right"))) == [
        "always left",
        "always right",
        "uniform",
        "repeated",
        "long holds",
        *SWEEPS,
    ]
    assert list(fixed_policies(spaces.MultiBinary(2))) == ["uniform", "repeated", "long holds"]
    assert not any(name.startswith("sweeps") for name in fixed_policies(spaces.Discrete(1)))
    assert [name for name in fixed_policies(spaces.Discrete(11)) if name not in SWEEPS] == ["uniform", "repeated", "long holds"]


def test_sweeps_go_from_end_to_end_in_dreams_as_in_reality_and_restart_with_each_episode():
    world = random_world(spaces.Discrete(3, start=1))
    sweeps = fixed_policies(world.action_space)["sweeps of 20"]
    expected, state = ([1] * 20 + [3] * 20) * 3, Dreams(world, 4).start(generator=torch.Generator())
    for steps in (120, 50):
        sweeps.real.reset(np.random.default_rng(0))
        assert [sweeps.real(None) for _ in range(steps)] == expected[:steps]
        actions = sweeps.dreamed(world, torch.Generator())
        assert torch.stack([actions.act(state) for _ in range(steps)]).tolist() == [[a] * 4 for a in expected[:steps]]
    assert CyclicPolicy([3])(None) == 3


@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1"])  # Acrobot has three actions, too
def test_an_environment_of_another_world_is_rejected(env):
    with pytest.raises(ValueError, match="env: expected the world model's observation space"):
        probe(random_world(), env=wm.EnvConfig(env, max_steps=6), config=wm.EvaluationConfig(num_episodes=2, num_dreams=4))


def test_episodes_are_cut_off_in_reality_as_in_dreams(monkeypatch):
    class Endless(WalkEnv):
        def step(self, action):
            observation, reward, _, _, info = super().step(action)
            return observation, reward, False, False, info

    monkeypatch.setattr("worldmodel.dream.horizon.DEFAULT_HORIZON", 15)
    world, config = random_world(termination_head=False), wm.EvaluationConfig(num_episodes=2, num_dreams=4)
    with pytest.warns(UserWarning, match="15 steps"):
        found = probe(world, env=Endless, config=config)
    for scores in (*found.real.values(), *found.dreams[1.0].values()):
        assert set(scores.lengths) == {15}


def test_arguments_that_cannot_be_scored_raise():
    with pytest.raises(ValueError, match="world: expected a world model that predicts rewards"):
        probe(random_world(reward_head=False), env=WalkEnv)
    with pytest.raises(ValueError, match="num_episodes: expected an integer >= 1, got 0"):
        probe(random_world(), env=WalkEnv, config=wm.EvaluationConfig(num_episodes=0))
    with pytest.raises(ValueError, match="names: expected one for each of 3 actions"):
        probe(random_world(), env=WalkEnv, names=("left", "right"))


def test_an_environment_that_raises_is_named():
    class Broken(WalkEnv):
        def step(self, action):
            raise ArithmeticError("broken")

    with pytest.raises(RuntimeError, match=r"expected to play episode 0 \(seed \d+\), but that failed: .*broken"):
        probe(random_world(), env=wm.EnvConfig(Broken, max_steps=3), config=wm.EvaluationConfig(num_episodes=2, num_dreams=4))
    assert wm.probe is probe
