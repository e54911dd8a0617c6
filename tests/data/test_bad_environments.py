"""Environments that end the program, or return what Python or NumPy would silently convert."""

import os
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from toy_worlds import random_world

from worldmodel.data import EnvConfig, Episode, EpisodeStore, collect, verify
from worldmodel.dream import RandomActions, Reality
from worldmodel.rng import episode_seed
from worldmodel.runtime import WorkerConfig


class Untold(Exception):
    def __str__(self):
        raise RuntimeError("this error has no text")


class FaultyEnv(gym.Env):
    """Environment of four steps that raises ``error`` or returns ``changed`` at the second step of episode 1 of seed 0."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, error=None, changed=None):
        self.error, self.changed = error, changed or {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad, self.steps = seed == episode_seed(0, 1), 0
        return np.zeros(2), {}

    def step(self, action):
        self.steps += 1
        result = {"observation": np.zeros(2), "reward": 1.0, "terminated": self.steps == 4, "truncated": False}
        if self.bad and self.steps == 2:
            if self.error is not None:
                raise self.error
            result |= self.changed
        return *result.values(), {}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error", [SystemExit(0), SystemExit("over"), GeneratorExit(), BaseException("odd"), Untold()], ids=repr
)
def test_an_error_of_any_class_fails_its_episode_only(tmp_path, error, workers):
    store = collect(
        EnvConfig(FaultyEnv, kwargs={"error": error}),
        out=tmp_path / "s",
        num_episodes=3,
        workers=WorkerConfig(num_workers=workers, attempts=1),
    )
    assert sorted(store.episode_ids.tolist()) == [0, 2]
    (failure,) = store.failures
    assert type(error).__name__ in failure["error"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_handler_of_a_signal_that_exits_still_ends_the_program(tmp_path):
    class Terminated(FaultyEnv):
        def step(self, action):
            if self.bad:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(action)

    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
    try:
        with pytest.raises(SystemExit) as ended:
            collect(Terminated, out=tmp_path / "s", num_episodes=3)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 7
    assert verify(tmp_path / "s") == []
    assert collect(FaultyEnv, out=tmp_path / "other", num_episodes=3).failures == []


FAULTS = {
    "terminated": [None, "no", 2, float("nan"), np.array([True, False]), np.ma.masked],
    "truncated": [None, "", -1],
    "reward": [None, "1", 1j, np.ma.masked, np.ones(2)],
    "observation": [np.ma.array([1.0, 2.0], mask=[True, False])],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FAULTS.items() for value in values], ids=str)
def test_what_would_be_converted_silently_fails_the_episode(tmp_path, name, value):
    env = EnvConfig(FaultyEnv, kwargs={"changed": {name: value}})
    store = collect(env, out=tmp_path / "s", num_episodes=3, workers=WorkerConfig(attempts=1))
    assert sorted(store.episode_ids.tolist()) == [0, 2]
    assert "expected" in store.failures[0]["error"]


@pytest.mark.parametrize("value", [1, 0, np.bool_(True), np.array([False]), np.int8(1)], ids=repr)
def test_flags_of_one_bit_are_accepted(tmp_path, value):
    env = EnvConfig(FaultyEnv, kwargs={"changed": {"terminated": value}})
    store = collect(env, out=tmp_path / "s", num_episodes=3)
    assert [len(store.read(number)) for number in range(3)] == [4, 2 if np.asarray(value).any() else 4, 4]


@pytest.mark.parametrize("changes", [{"error": SystemExit(0)}, {"changed": {"terminated": "no"}}], ids=str)
def test_a_real_evaluation_names_the_step_that_failed(changes):
    world = random_world(FaultyEnv.action_space, FaultyEnv.observation_space)
    reality = Reality(world, EnvConfig(FaultyEnv, kwargs=changes), 3, seed=0)
    generator = reality.generator(0)
    with pytest.raises(RuntimeError, match=r"expected to step episode 1 \(seed \d+\), but step 2 failed"):
        reality.score(RandomActions(world, generator=generator), 5, generator=generator)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminations"])
def test_masked_values_are_refused_before_anything_is_written(tmp_path, name):
    fields = {
        "observations": np.ones((4, 2)),
        "actions": np.array([0, 1, 0]),
        "rewards": np.ones(3),
        "terminations": np.array([False, False, True]),
        "truncations": np.zeros(3, bool),
    }
    mask = np.zeros(fields[name].shape, bool)
    mask[1] = True
    observation, action = FaultyEnv.observation_space, FaultyEnv.action_space
    store = EpisodeStore.create(tmp_path / "s", observation_space=observation, action_space=action)
    episode = Episode(**{**fields, name: np.ma.array(fields[name], mask=mask)}, episode_id=0)
    with pytest.raises(ValueError, match=f"episode 0 {name}: expected numbers, got masked ones"):
        store.append([episode])
    assert len(EpisodeStore.open(tmp_path / "s")) == 0
