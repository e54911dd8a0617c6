"""The behaviour policies."""

import numpy as np
import pytest
from gymnasium import spaces
from toy_envs import NESTED_ACTION

from worldmodel.data import BrownianPolicy, RandomPolicy, RepeatPolicy, SweepPolicy, make_policy
from worldmodel.spaces import leaf_values

BOX = spaces.Box(np.float32([-1.0, 0.0]), np.float32([1.0, 5.0]))


def actions(policy, count, seed=0):
    policy.reset(np.random.default_rng(seed))
    return [policy(None) for _ in range(count)]


def flat(values):
    return [np.concatenate([np.ravel(leaf) for leaf in leaf_values(value).values()]) for value in values]


@pytest.mark.parametrize("name", ["random", "repeat", "repeat-long", "sweep", "brownian", "slow-driver"])
def test_actions_are_in_the_space_and_depend_only_on_the_generator(name):
    car = spaces.Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]))
    space = {"brownian": BOX, "sweep": spaces.Discrete(5, start=2), "slow-driver": car}.get(name, NESTED_ACTION)
    space.seed(1)
    one, other = make_policy(name, space), make_policy(name, space)
    first = actions(one, 50)
    space.seed(2)
    np.random.seed(3)  # noqa: NPY002 (the global seed must not matter)
    actions(other, 7, seed=5)  # a policy that was used before
    np.testing.assert_array_equal(flat(first), flat(actions(other, 50)))
    assert not np.array_equal(flat(first), flat(actions(one, 50, seed=1)))
    assert all(space.contains(action) for action in first)


def test_random_actions_are_uniform():
    drawn = actions(RandomPolicy(spaces.Discrete(4)), 4000)
    counts = np.bincount(drawn, minlength=4)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_a_repeated_action_is_held_for_one_to_max_repeat_steps_uniformly():
    drawn = np.array(actions(RepeatPolicy(spaces.Box(0, 1, (), np.float64), max_repeat=10), 20_000), dtype=np.float64)
    runs = np.diff(np.flatnonzero(np.diff(drawn)))
    counts = np.bincount(runs, minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    expected = len(runs) / 10
    assert np.abs(counts[1:] - expected).max() < 5 * np.sqrt(expected)


def test_log_uniform_holds_have_the_documented_probabilities():
    policy = RepeatPolicy(spaces.Box(0, 1, (), np.float64), max_repeat=100, log_uniform=True)
    runs = np.diff(np.flatnonzero(np.diff(np.array(actions(policy, 200_000), dtype=np.float64))))
    counts = np.bincount(runs, minlength=101)
    assert counts[0] == 0
    assert len(counts) == 101
    expected = len(runs) * np.log1p(1 / np.arange(1, 101)) / np.log(101)
    assert (np.abs(counts[1:] - expected) < 5 * np.sqrt(expected)).all()


def test_sweeps_go_from_end_to_end_with_the_typical_length_of_the_episode():
    policy = SweepPolicy(spaces.Discrete(4, start=3), (20, 160), random_changes=0.0, random_episodes=0.0)
    means = []
    for seed in range(300):
        drawn = np.array(actions(policy, 3000, seed=seed))
        assert set(drawn) == {3, 6}
        runs = np.diff(np.flatnonzero(np.diff(drawn)))
        assert runs.max() <= 3 * runs.min() + 2  # 0.5 to 1.5 times one length, rounded
        means.append(runs.mean())
    logs = np.log(means)
    assert (logs.min(), logs.max()) == pytest.approx(np.log([20, 160]), abs=0.15)
    assert np.mean(logs) == pytest.approx(np.log(20 * 160) / 2, abs=5 * np.std(logs) / 300**0.5)


def test_sweeps_are_mixed_with_random_actions():
    space = spaces.Discrete(3)
    only_random = np.array(actions(SweepPolicy(space, random_episodes=1.0), 20_000))
    assert set(only_random) == {0, 1, 2}
    assert np.diff(np.flatnonzero(np.diff(only_random))).min() == 1
    some = [np.array(actions(SweepPolicy(space, random_changes=0.0), 400, seed=seed)) for seed in range(400)]
    share = np.mean([1 in drawn for drawn in some])  # only a random episode stays in the middle
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 400) ** 0.5)


def test_sweeps_need_a_discrete_space():
    with pytest.raises(TypeError, match="action_space: expected Discrete for policy 'sweep', got Box"):
        make_policy("sweep", BOX)
    with pytest.raises(ValueError, match=r"lengths: expected 1 <= minimum <= maximum, got \(9, 8\)"):
        SweepPolicy(spaces.Discrete(3), (9, 8))
    with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\], got 0\.1 and 1\.5"):
        SweepPolicy(spaces.Discrete(3), random_episodes=1.5)


def test_brownian_increments_have_the_documented_deviation_per_dimension():
    wide = spaces.Box(np.array([-1e3, -np.inf]), np.array([1e3, np.inf]), dtype=np.float64)
    steps = np.diff(actions(BrownianPolicy(wide, scale=0.01), 4001), axis=0)
    inside = steps[np.abs(steps[:, 0]) > 0]
    assert inside[:, 0].std() == pytest.approx(10.0, rel=0.1)
    assert steps[:, 1].std() == pytest.approx(0.01, rel=0.1)


def test_brownian_actions_stay_within_bounds_and_touch_them():
    drawn = np.array(actions(BrownianPolicy(BOX), 2000))
    np.testing.assert_allclose(drawn.min(axis=0), [-1, 0])
    np.testing.assert_allclose(drawn.max(axis=0), [1, 5])
    assert drawn.dtype == np.float32


def test_brownian_starts_uniformly():
    policy = BrownianPolicy(spaces.Box(0.0, 1.0, (), np.float64))
    starts = [float(actions(policy, 1, seed=seed)[0]) for seed in range(400)]
    assert np.mean(starts) == pytest.approx(0.5, abs=5 * 0.29 / 20)
    assert np.std(starts) == pytest.approx(12**-0.5, rel=0.15)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(0, 5, (2,), np.int64), NESTED_ACTION])
def test_brownian_raises_unless_the_space_is_a_box_of_floats(space):
    with pytest.raises(TypeError, match="action_space: expected a Box of floats"):
        make_policy("brownian", space)


def test_unknown_policies_raise_with_the_known_names():
    with pytest.raises(
        ValueError,
        match=r"expected one of \['random', .*, 'slow-driver'\] or a callable, got 'greedy'",
    ):
        make_policy("greedy", BOX)
    with pytest.raises(TypeError, match="got int"):
        make_policy(3, BOX)


def test_a_callable_is_returned_unchanged():
    assert make_policy(len, BOX) is len


@pytest.mark.parametrize(
    "policy",
    [
        RandomPolicy(BOX),
        RepeatPolicy(BOX),
        RepeatPolicy(BOX, log_uniform=True),
        SweepPolicy(spaces.Discrete(3)),
        BrownianPolicy(BOX),
    ],
)
def test_a_policy_without_a_generator_raises(policy):
    with pytest.raises(RuntimeError, match="expected reset"):
        policy(None)


def test_arguments_out_of_range_raise():
    with pytest.raises(ValueError, match="max_repeat: expected an integer >= 1, got 0"):
        RepeatPolicy(BOX, max_repeat=0)
    with pytest.raises(ValueError, match="scale: expected a number > 0"):
        BrownianPolicy(BOX, scale=0.0)
