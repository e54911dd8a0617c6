"""The `Episode` record and its validation."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces
from toy_envs import NESTED_ACTION, NESTED_OBSERVATION, nested_env

from worldmodel.data import EnvConfig, Episode, as_reward, check_episode, rollouts
from worldmodel.spaces import stack_values

OBSERVATION = spaces.Dict({"x": spaces.Box(-1, 1, (2,), np.float32), "m": spaces.Discrete(3)})
ACTION = spaces.MultiDiscrete([3, 2])


def make(steps=3, **changes):
    last = np.arange(steps) == steps - 1
    values = {
        "observations": {"x": np.zeros((steps + 1, 2), np.float32), "m": np.zeros(steps + 1, np.int64)},
        "actions": np.zeros((steps, 2), np.int64),
        "rewards": np.zeros(steps),
        "terminations": last,
        "truncations": np.zeros(steps, bool),
        "episode_id": 9,
    }
    return Episode(**(values | changes))


def test_the_length_is_the_number_of_steps():
    assert len(make(3)) == 3
    assert len(make(1)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(0)}, "episode 9 rewards: expected at least one step"),
        ({"actions": np.zeros((4, 2), int)}, "episode 9 actions: expected 3 rows for 3 rewards, got 4"),
        ({"terminations": np.zeros(2, bool)}, "episode 9 terminations: expected 3 rows"),
        ({"observations": {"x": np.zeros((4, 2)), "m": np.zeros(3, int)}}, "episode 9 observations m: expected 4 rows"),
    ],
)
def test_lengths_that_do_not_match_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def bad(value, step, rows=4, width=2):
    array = np.zeros((rows, width), np.float32)
    array[step] = value
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observations": {"x": bad(np.nan, 2), "m": np.zeros(4, int)}},
            "episode 9 observations x: .*NaN or infinity at step 2",
        ),
        (
            {"observations": {"x": bad(-np.inf, 3), "m": np.zeros(4, int)}},
            "episode 9 observations x: .*NaN or infinity at step 3",
        ),
        ({"rewards": np.array([0, np.inf, 0])}, "episode 9 rewards: .*at step 1"),
        ({"observations": {"x": np.zeros((4, 2))}}, r"expected leaves \['m', 'x'\], got \['x'\]"),
        (
            {"observations": {"x": np.zeros((4, 3)), "m": np.zeros(4, int)}},
            r"observations x: expected shape \(2,\) at each step, got \(3,\)",
        ),
        (
            {"observations": {"x": np.zeros((4, 2), complex), "m": np.zeros(4, int)}},
            "observations x: expected float32 .*got complex",
        ),
        ({"observations": {"x": np.zeros((4, 2)), "m": np.zeros(4)}}, "observations m: expected integers"),
        ({"observations": {"x": np.zeros((4, 2)), "m": np.array([0, 1, 2, 3])}}, "observations m: .*got 3 at step 3"),
        ({"actions": np.array([[0, 0], [0, 2], [0, 0]])}, r"actions: .*got \[0 2\] at step 1"),
        ({"actions": np.array([[0, 0], [-1, 0], [0, 0]])}, r"actions: .*at step 1"),
        (
            {"terminations": np.array([True, False, False])},
            "terminations: expected none before the last step 2, got one at step 0",
        ),
        ({"truncations": np.array([False, True, False])}, "truncations: .*got one at step 1"),
        ({"rewards": np.zeros((3, 2))}, r"rewards: expected shape \(3,\), got \(3, 2\)"),
    ],
)
def test_check_episode_names_episode_leaf_and_step(changes, message):
    with pytest.raises(ValueError, match=message):
        check_episode(make(**changes), OBSERVATION, ACTION)


def test_check_episode_accepts_the_values_of_an_environment():
    check_episode(make(), OBSERVATION, ACTION)
    for episode in rollouts(EnvConfig(nested_env, max_steps=5), episode_ids=range(3), seed=0):
        check_episode(episode, NESTED_OBSERVATION, NESTED_ACTION)


def test_integers_are_accepted_only_if_the_dtype_of_the_box_holds_them():
    image = spaces.Box(0, 255, (2,), np.uint8)
    check_episode(dataclasses.replace(make(), observations=np.full((4, 2), 255)), image, ACTION)
    with pytest.raises(ValueError, match="expected uint8"):
        check_episode(dataclasses.replace(make(), observations=np.full((4, 2), 256)), image, ACTION)


def test_stack_values_copies():
    rows = [{"a": np.zeros(2), "b": (np.int64(1),)} for _ in range(3)]
    stacked = stack_values(rows)
    rows[0]["a"][0] = 5
    assert stacked["a"].shape == (3, 2)
    assert stacked["a"].sum() == 0
    np.testing.assert_array_equal(stacked["b"][0], [1, 1, 1])


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int8, np.array([300, 301], np.int64)),
        (np.float32, np.array([1e300, 0.0])),
        (np.float16, np.array([1e20, 0.0], np.float32)),
    ],
)
def test_values_that_the_space_cannot_hold_raise(dtype, values):
    low, high = (-128, 127) if dtype is np.int8 else (-np.inf, np.inf)
    observations = np.broadcast_to(values, (4, 2))
    with pytest.raises(ValueError, match="episode 9 observations"):
        check_episode(make(observations=observations), spaces.Box(low, high, (2,), dtype), ACTION)


def test_rewards_of_one_number_per_step_in_arrays_are_flattened():
    rewards = np.array([[1.0], [2.0], [3.0]])
    episode = make(3, rewards=rewards)
    assert episode.rewards.tolist() == [1.0, 2.0, 3.0]
    check_episode(episode, OBSERVATION, ACTION)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), np.array([2.0]), np.array([[2]])])
def test_a_reward_may_be_an_array_of_one_number(value):
    reward = as_reward(value)
    assert type(reward) is float
    assert reward == 2.0


@pytest.mark.parametrize("value", [np.array([1.0, 2.0]), np.array([]), None, "2", 1j])
def test_a_reward_that_is_not_one_number_is_refused(value):
    with pytest.raises(ValueError, match=r"reward: expected one number per step, got .*; combine several in a wrapper"):
        as_reward(value)
