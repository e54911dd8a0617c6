"""`Reality`: seeds, episode ends, encodings, failing environments, and spaces of every kind."""

import functools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_envs import NESTED_ACTION, NESTED_OBSERVATION, CountEnv, DictEnv, SpaceEnv, nested_env
from toy_worlds import WalkEnv, random_world, same_bits, walk_world

from worldmodel.data import EnvConfig, rollouts
from worldmodel.dream import RandomActions, Reality
from worldmodel.rng import episode_seed

COUNT = {"action_space": spaces.Discrete(2), "observation_space": CountEnv.observation_space}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def zeros(features):
    return torch.zeros(len(features), dtype=torch.int64)


def by_sign(features):
    return (features.sum(dim=-1) > 0).long()


def test_episodes_are_those_of_a_collection_with_the_same_seed():
    world = walk_world()
    rollout = Reality(world, WalkEnv, 5, seed=3).rollout(lambda f: 2 + zeros(f), 20, generator=generator())
    for episode in rollouts(WalkEnv, lambda observation: 2, episode_ids=range(5), seed=3):
        k, steps = episode.episode_id, len(episode)
        assert rollout.lengths[k] == steps
        assert torch.equal(rollout.z[k, : steps + 1], world.encode(episode.observations))
        assert rollout.rewards[k, :steps].tolist() == episode.rewards.tolist()
        assert rollout.terminated[k, steps - 1] == episode.terminations[-1]


def test_observation_buffers_that_an_environment_reuses_do_not_leak():
    rollout = Reality(random_world(**COUNT), CountEnv, 4, seed=0).rollout(zeros, 8, generator=generator())
    for z, length in zip(rollout.z, rollout.lengths, strict=True):
        assert z[: length + 1, 0].tolist() == list(range(length + 1))
    assert len(rollout.lengths.unique()) > 1


class Counted(gym.Wrapper):
    """Counts resets and steps, and raises if it is stepped after the end."""

    log: list["Counted"] = []  # noqa: RUF012 (one list for all)

    def __init__(self, env):
        super().__init__(env)
        self.resets = self.steps = 0
        self.over = True
        Counted.log.append(self)

    def reset(self, **kwargs):
        self.resets, self.over, self.seed = self.resets + 1, False, kwargs["seed"]
        return self.env.reset(**kwargs)

    def step(self, action):
        assert not self.over
        self.steps += 1
        result = self.env.step(action)
        self.over = result[2] or result[3]
        return result


def test_each_environment_plays_one_episode_and_is_not_stepped_after_its_end():
    Counted.log.clear()
    reality = Reality(random_world(**COUNT), EnvConfig(CountEnv, wrappers=[Counted]), 4, seed=7)
    _, lengths = reality.score(zeros, 30, generator=generator())
    assert [env.resets for env in Counted.log] == [1] * 4
    assert [env.steps for env in Counted.log] == lengths.tolist()
    assert [env.seed for env in Counted.log] == [episode_seed(7, k) for k in range(4)]


def test_only_running_episodes_are_encoded_and_ended_ones_keep_their_z(monkeypatch):
    world, encoded = walk_world(), []
    encode = world.vision.encode

    def counted(observation):
        encoded.append(len(observation))
        return encode(observation)

    monkeypatch.setattr(world.vision, "encode", counted)
    policy = RandomActions(world, generator=generator(1))
    steps = list(Reality(world, WalkEnv, 6, seed=3).unroll(policy, 200, generator=generator()))
    living = [int(step.state.alive.sum()) for step in steps]
    assert min(living) < max(living)  # they end at different times
    assert encoded == [6, *(count for count in living if count)]
    for step in steps:
        ended = ~step.state.alive
        assert torch.equal(step.next_state.z[ended], step.state.z[ended])


def test_a_second_start_plays_the_same_episodes_with_a_fresh_state():
    reality = Reality(random_world(**COUNT), CountEnv, 4, seed=7)
    first, second = (reality.rollout(by_sign, 30, generator=generator()) for _ in range(2))
    assert same_bits(first, second)
    assert not reality.start(generator=generator()).lstm.h.any()


def test_the_lstm_advances_once_per_step_and_stops_at_the_end():
    world = random_world(**COUNT)
    reality = Reality(world, CountEnv, 4, seed=0)
    lstm = world.mdnrnn.initial_state(4)
    for step in reality.unroll(by_sign, 8, generator=generator()):
        assert torch.equal(step.state.lstm.h[:, step.state.alive], lstm.h[:, step.state.alive])
        after = world.mdnrnn.advance(step.state.z, torch.eye(2)[step.actions], lstm)
        lstm = type(lstm)(*(torch.where(step.state.alive[:, None], new, old) for new, old in zip(after, lstm, strict=True)))
        assert same_bits(step.next_state.lstm, lstm)
    assert not step.next_state.alive.any()


def test_one_real_episode_has_the_shapes_of_any_batch():
    rollout = Reality(walk_world(), WalkEnv, 1, seed=0).rollout(lambda f: 1 + zeros(f), 3, generator=generator())
    assert rollout.z.shape == (1, 4, 2)
    assert rollout.rewards.shape == rollout.mask.shape == (1, 3)


def test_max_steps_cuts_every_episode():
    _, lengths = Reality(walk_world(), EnvConfig(WalkEnv, max_steps=4), 3, seed=0).score(zeros, 30, generator=generator())
    assert lengths.tolist() == [4, 4, 4]


def test_the_time_limit_of_the_environment_cuts_too():
    limited = functools.partial(gym.wrappers.TimeLimit, max_episode_steps=5)
    _, lengths = Reality(walk_world(), EnvConfig(WalkEnv, wrappers=[limited]), 3, seed=0).score(
        zeros, 30, generator=generator()
    )
    assert lengths.tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("make", "observation_space", "action_space"),
    [
        (nested_env, NESTED_OBSERVATION, NESTED_ACTION),
        (DictEnv, DictEnv().observation_space, DictEnv().action_space),
        (
            functools.partial(SpaceEnv, spaces.MultiBinary(3), spaces.MultiBinary(2)),
            spaces.MultiBinary(3),
            spaces.MultiBinary(2),
        ),
        (
            functools.partial(SpaceEnv, spaces.Discrete(3, start=-1), spaces.Box(-1.0, 1.0, ())),
            spaces.Discrete(3, start=-1),
            spaces.Box(-1.0, 1.0, ()),
        ),
    ],
)
def test_episodes_of_every_kind_of_space_run(make, observation_space, action_space):
    world = random_world(action_space, observation_space)
    reality = Reality(
        world, EnvConfig(make, max_steps=4), 3, seed=0
    )  # the environment itself checks that it is given its actions
    rollout = reality.rollout(RandomActions(world, generator=generator()), 4, generator=generator())
    assert rollout.mask.all()
    assert rollout.z.isfinite().all()


def test_an_environment_that_raises_names_episode_seed_and_step():
    seed = episode_seed(0, 2)
    reality = Reality(random_world(**COUNT), EnvConfig(CountEnv, kwargs={"trouble": "raise", "seeds": [seed]}), 4, seed=0)
    message = rf"episode 2 \(seed {seed}\), but step 2 failed: ArithmeticError\('the toy broke'\)"
    with pytest.raises(RuntimeError, match=message) as caught:
        reality.rollout(zeros, 9, generator=generator())
    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_an_observation_that_is_not_finite_names_episode_and_row():
    broken = functools.partial(
        gym.wrappers.TransformObservation, func=lambda o: o / 0, observation_space=WalkEnv.observation_space
    )
    reality = Reality(walk_world(), EnvConfig(WalkEnv, wrappers=[broken]), 2, seed=0)
    with (
        np.errstate(all="ignore"),
        pytest.raises(RuntimeError, match=r"reset episode 0 .*expected finite numbers, got NaN or infinity in row 0"),
    ):
        reality.start(generator=generator())


def test_a_state_that_is_not_the_latest_is_rejected():
    reality = Reality(walk_world(), WalkEnv, 2, seed=0)
    start = reality.start(generator=generator())
    reality.step(start, torch.ones(2, dtype=torch.int64), generator=generator())
    with pytest.raises(ValueError, match="state: expected the latest one"):
        reality.step(start, torch.ones(2, dtype=torch.int64), generator=generator())


class BrokenReset(WalkEnv):
    """Raises when it is reset."""

    def reset(self, *, seed=None, options=None):
        raise OSError("no such level")


def test_an_environment_that_cannot_reset_names_episode_and_seed():
    with pytest.raises(RuntimeError, match=rf"reset episode 0 \(seed {episode_seed(5, 0)}\).*no such level"):
        Reality(walk_world(), BrokenReset, 2, seed=5).start(generator=generator())


def test_close_closes_every_environment():
    reality = Reality(random_world(**COUNT), CountEnv, 3, seed=0)
    reality.close()
    assert [env.closed for env in reality._envs] == [True] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_episodes": 0}, "num_episodes: expected an integer >= 1, got 0"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
        ({"env": "NoSuchEnv-v0"}, "env: expected a registered Gymnasium id"),
        ({"env": CountEnv}, r"env: expected the world model's action space Discrete\(3\), got Discrete\(2\)"),
        ({"env": "CartPole-v1"}, "env: expected the world model's observation space"),
    ],
)
def test_arguments_out_of_range_and_other_environments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        Reality(walk_world(), **{"env": WalkEnv, "num_episodes": 2, "seed": 0, **arguments})
