"""Repeated actions: summed rewards, ends within a repetition, frames that are skipped, and limits in decisions."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

import worldmodel as wm
from worldmodel.data import ActionRepeat, EnvConfig, rollouts
from worldmodel.dream import Reality, score, time_limit, usual_horizon


class Film(gym.Env):
    """Counts its steps up to ``length``; the reward is the count, and it draws only if ``drawing`` is True."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, length=100):
        self.length, self.drawing, self.drawn = length, True, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.frame = 0, np.zeros(2)
        return self.frame, {}

    def step(self, action):
        self.count += 1
        terminated = self.count == self.length
        if self.drawing or terminated:
            self.drawn.append(self.count)
            self.frame = np.array([self.count, action], dtype=np.float64)
        return self.frame, float(self.count), terminated, False, {"count": self.count}


def play(env, decisions):
    env.reset(seed=0)
    return [env.step(1) for _ in range(decisions)]


def test_rewards_are_summed_and_the_last_observation_and_information_are_returned():
    steps = play(ActionRepeat(Film(), 4), 3)
    assert [step[1] for step in steps] == [10.0, 26.0, 42.0]
    assert [step[0].tolist() for step in steps] == [[4.0, 1.0], [8.0, 1.0], [12.0, 1.0]]
    assert [step[4]["count"] for step in steps] == [4, 8, 12]


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TimeLimit(env, 10)])
def test_an_episode_ends_within_a_repetition_with_its_last_frame(wrap):
    limited = wrap(Film())
    env = ActionRepeat(limited if isinstance(limited, TimeLimit) else Film(length=10), 4)
    steps = play(env, 3)
    ended = (False, True) if isinstance(limited, TimeLimit) else (True, False)
    assert [step[2:4] for step in steps] == [(False, False), (False, False), ended]
    assert steps[-1][1] == 9 + 10
    assert steps[-1][0].tolist() == [10.0, 1.0]
    assert env.unwrapped.drawn == [4, 8, 10]  # each frame that somebody sees, and no other


def test_a_wrapper_that_may_look_at_frames_gets_them_all():
    env = ActionRepeat(gym.wrappers.TransformReward(Film(), lambda reward: 2 * reward), 4)
    assert [step[1] for step in play(env, 2)] == [20.0, 52.0]
    assert env.unwrapped.drawn == list(range(1, 9))


def test_each_episode_starts_with_a_drawn_frame_also_after_an_episode_that_was_left():
    env = ActionRepeat(Film(), 4)
    play(env, 1)
    env.unwrapped.drawing = False
    env.reset(seed=1)
    assert env.unwrapped.drawing


@pytest.mark.parametrize("number", [0, 1.5])
def test_other_numbers_of_repeats_are_rejected(number):
    with pytest.raises((TypeError, ValueError), match="action_repeat: expected"):
        EnvConfig(Film, action_repeat=number)
    with pytest.raises((TypeError, ValueError), match="action_repeat: expected"):
        ActionRepeat(Film(), number)


def test_one_repeat_is_the_environment_itself_and_the_recipe_of_earlier_versions():
    assert isinstance(EnvConfig(Film).make(), Film)
    assert "action_repeat" not in EnvConfig(Film).recipe()
    assert EnvConfig(Film, action_repeat=3).recipe()["action_repeat"] == 3


def test_limits_count_decisions():
    def limited():
        return TimeLimit(Film(), 10)

    assert time_limit(EnvConfig(limited, action_repeat=4)) == 3
    assert time_limit(EnvConfig(limited, action_repeat=4, max_steps=2)) == 2
    assert time_limit(EnvConfig("CartPole-v1", action_repeat=4)) == 125
    (episode,) = rollouts(EnvConfig(limited, action_repeat=4, max_steps=2), episode_ids=[0], seed=0)
    assert (episode.rewards.tolist(), episode.truncations.tolist()) == ([10.0, 26.0], [False, True])


def test_reality_and_collection_play_the_same_episodes_and_dreams_are_as_long(tmp_path):
    env = EnvConfig("CartPole-v1", kwargs={"max_episode_steps": 30}, action_repeat=3)
    store = wm.collect(env, out=tmp_path / "data", num_episodes=8, seed=1)
    assert store.recipe["action_repeat"] == 3
    assert store.lengths.max() <= 10
    tiny = wm.TrainingConfig(num_updates=2)
    world = wm.fit(tmp_path / "data", out=tmp_path / "world", config=wm.MDNRNNConfig(hidden_size=4), training_config=tiny)
    assert usual_horizon(world) == time_limit(env) == 10
    for other in (EnvConfig("CartPole-v1", action_repeat=2), EnvConfig("CartPole-v1")):
        with pytest.raises(ValueError, match=r"action_repeat: expected 3, as in the data of the world model, got"):
            Reality(world, other, 1, seed=1)
    reality = Reality(world, env, 8, seed=1)
    scores = score(reality, lambda features: np.zeros(len(features), dtype=np.int64), horizon=time_limit(env), seed=0)
    reality.close()
    left = list(rollouts(env, lambda observation: 0, episode_ids=range(8), seed=1))
    assert scores.returns.tolist() == [one.rewards.sum() for one in left]
    assert scores.lengths.tolist() == [len(one) for one in left]
