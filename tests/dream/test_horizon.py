"""The longest episode where none is given."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from toy_worlds import WalkEnv, random_world

import worldmodel as wm
from worldmodel.data import Episode, EpisodeCollection, EpisodeStore, common_truncation, find_time_limit
from worldmodel.dream import DEFAULT_HORIZON, time_limit, usual_horizon

TINY = {
    "config": wm.MDNRNNConfig(hidden_size=4, num_components=1),
    "data_config": wm.DataConfig(window=8, batch_size=4),
    "training_config": wm.TrainingConfig(num_updates=2),
}


class EndlessEnv(gym.Env):
    """A counter that never ends."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        return self.np_random.normal(size=2).astype(np.float32), 1.0, False, False, {}


class LimitOfMyOwn(gym.Wrapper):
    """A time limit that is not Gymnasium's."""

    def __init__(self, env, steps):
        super().__init__(env)
        self._max_episode_steps, self._steps = steps, 0

    def reset(self, **kwargs):
        self._steps = 0
        return self.env.reset(**kwargs)

    def step(self, action):
        self._steps += 1
        *rest, info = self.env.step(action)
        rest[3] = self._steps >= self._max_episode_steps
        return (*rest, info)


def limited_to_20(env):
    return TimeLimit(env, 20)


ENVIRONMENTS = [
    (wm.EnvConfig("Pendulum-v1", wrappers=[limited_to_20]), 20),
    (wm.EnvConfig(lambda: TimeLimit(EndlessEnv(), 20)), 20),
    (wm.EnvConfig(lambda: gym.wrappers.RecordEpisodeStatistics(TimeLimit(TimeLimit(EndlessEnv(), 30), 20))), 20),
    (wm.EnvConfig(lambda: TimeLimit(EndlessEnv(), 30), wrappers=[limited_to_20]), 20),
    (wm.EnvConfig(lambda: TimeLimit(EndlessEnv(), 30), max_steps=20), 20),
    (wm.EnvConfig(lambda: LimitOfMyOwn(EndlessEnv(), 20)), 20),
    (wm.EnvConfig("Pendulum-v1", max_steps=20), 20),
    (wm.EnvConfig("Pendulum-v1", kwargs={"max_episode_steps": 20}), 20),
]


@pytest.mark.parametrize(("env", "steps"), ENVIRONMENTS)
def test_dreams_are_as_long_as_the_episodes_of_the_environment(env, steps, tmp_path):
    store = wm.collect(env, out=tmp_path / "data", num_episodes=2, seed=0)
    world = wm.fit(tmp_path / "data", out=tmp_path / "world", **TINY)
    assert set(store.lengths.tolist()) == {steps}
    assert usual_horizon(world) == time_limit(env) == steps
    dream = wm.DreamEnv(tmp_path / "world")
    dream.reset(seed=0)
    action = world.action_space.sample()
    ends = [dream.step(action)[3] for _ in range(steps)]
    assert ends == [False] * (steps - 1) + [True]


@pytest.mark.parametrize(("env", "steps"), ENVIRONMENTS[:2])
def test_encoded_episodes_keep_the_limit_of_their_environment(env, steps, tmp_path):
    store = wm.collect(env, out=tmp_path / "data", num_episodes=2, seed=0)
    vision = wm.fit(tmp_path / "data", out=tmp_path / "world", **TINY).vision
    encoded = wm.encode_store(tmp_path / "data", vision=vision, out=tmp_path / "encoded")
    assert encoded.recipe["time_limit"] == store.recipe["time_limit"] == steps


def write(path, lengths, *, truncated, recipe=None):
    """Write episodes of these lengths; the end of each is a truncation or a termination."""
    store = EpisodeStore.create(
        path, observation_space=EndlessEnv.observation_space, action_space=EndlessEnv.action_space, recipe=recipe
    )
    episodes = []
    for k, (length, cut) in enumerate(zip(lengths, truncated, strict=True)):
        last = np.arange(length) == length - 1
        noise = np.random.default_rng(k)
        episodes.append(
            Episode(
                observations=noise.normal(size=(length + 1, 2)).astype(np.float32),
                actions=noise.integers(0, 2, length),
                rewards=np.ones(length),
                terminations=last & (not cut),
                truncations=last & cut,
                episode_id=k,
            )
        )
    store.append(episodes)
    return store


@pytest.mark.parametrize(
    ("lengths", "truncated", "expected"),
    [
        ([200, 200, 200], [True, True, True], 200),
        ([200, 50, 200], [True, False, True], 200),
        ([200, 13, 200], [True, True, True], 200),
        ([50, 60, 70], [False, False, False], None),
        ([50, 60, 70], [True, True, True], None),
        ([20, 20, 70], [True, True, False], None),
    ],
)
def test_data_without_a_recipe_dream_for_the_length_at_which_they_are_truncated(lengths, truncated, expected, tmp_path):
    store = write(tmp_path / "data", lengths, truncated=truncated, recipe={"minari": "foreign/data-v0"})
    assert common_truncation(EpisodeCollection([store])) == expected
    world = wm.fit(tmp_path / "data", out=tmp_path / "world", **TINY)
    if expected is None:
        with pytest.warns(UserWarning, match="horizon: expected a limit"):
            assert usual_horizon(world) == DEFAULT_HORIZON
    else:
        assert usual_horizon(world) == usual_horizon(wm.WorldModel.from_pretrained(tmp_path / "world")) == expected


def test_stores_with_several_limits_dream_for_the_longest(tmp_path):
    for steps in (20, 40):
        wm.collect(wm.EnvConfig(EndlessEnv, max_steps=steps), out=tmp_path / str(steps), num_episodes=2, seed=steps)
    for order in (("20", "40"), ("40", "20")):
        world = wm.fit([tmp_path / name for name in order], out=tmp_path / f"world{order[0]}", **TINY)
        assert usual_horizon(world) == 40


def test_a_collection_of_an_earlier_version_still_matches_its_command(tmp_path):
    env = wm.EnvConfig("Pendulum-v1", wrappers=[limited_to_20])
    recipe = {"env": "Pendulum-v1", "env_kwargs": {}, "wrappers": ["test_horizon.limited_to_20"]}
    recipe |= {"policy": "random", "seed": 0, "max_steps": None}  # without a time limit
    EpisodeStore.create(
        tmp_path,
        observation_space=gym.make("Pendulum-v1").observation_space,
        action_space=gym.make("Pendulum-v1").action_space,
        recipe=recipe,
    )
    store = wm.collect(env, out=tmp_path, num_episodes=1, seed=0)
    assert len(store) == 1
    assert store.recipe == recipe
    assert len(wm.collect(env, out=tmp_path, num_episodes=2, seed=0)) == 2


def test_a_collection_is_not_continued_with_another_limit(tmp_path):
    def limited(env):
        return TimeLimit(env, limit)

    limit = 20
    env = wm.EnvConfig("Pendulum-v1", wrappers=[limited])
    wm.collect(env, out=tmp_path, num_episodes=1, seed=0)
    limit = 30
    with pytest.raises(FileExistsError, match="time limit of its episodes, 20 steps, got 30"):
        wm.collect(env, out=tmp_path, num_episodes=2, seed=0)


def test_a_world_without_any_record_dreams_for_1000_steps_and_says_so():
    world = random_world()
    world.provenance = {}
    with pytest.warns(UserWarning, match="1000 steps. Give horizon"):
        assert usual_horizon(world) == DEFAULT_HORIZON
    with pytest.warns(UserWarning, match="max_steps"):
        assert time_limit(WalkEnv) == DEFAULT_HORIZON


@pytest.mark.parametrize("value", [True, "200", -1, 0, None, 2.5])
def test_a_limit_that_is_none_is_ignored(value):
    world = random_world()
    world.provenance = {"recipes": [{"max_steps": value, "time_limit": 30, "env": 7, "env_kwargs": None}]}
    assert usual_horizon(world) == 30


def test_a_search_without_a_horizon_takes_the_one_of_the_data():
    world = random_world()
    world.provenance = {"recipes": [{"max_steps": 7}]}
    search = wm.SearchConfig(population=4, generations=1, test_dreams=4)
    dreams = wm.Dreams(world, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = [wm.evolve(dreams, config=search, horizon=horizon).layers[-1].weight.tolist() for horizon in (None, 7)]
    assert same[0] == same[1]


def test_the_limit_of_wrappers_of_vectors_and_of_bare_environments_is_found():
    assert find_time_limit(EndlessEnv()) is None
    assert find_time_limit(gym.make("CartPole-v1", max_episode_steps=-1)) is None
    assert find_time_limit(gym.make("CartPole-v1")) == 500
