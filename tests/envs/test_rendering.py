"""Rendering of observations: images, classic control, and bars for the others."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import random_world

from worldmodel.envs import BAR, CLASSIC, ObservationRenderer


def world_of(env_id):
    with gym.make(env_id) as env:
        world = random_world(env.action_space, env.observation_space)
    world.provenance = {"recipes": [{"env": env_id}]}
    return world


@pytest.mark.parametrize("env_id", [*CLASSIC, "gymnasium:CartPole-v1"])
def test_classic_control_is_drawn_as_the_real_environment_draws_itself(env_id):
    pytest.importorskip("pygame", reason="needs gymnasium[classic-control]")
    env = gym.make(env_id, render_mode="rgb_array")
    env.action_space.seed(0)
    renderer = ObservationRenderer(world_of(env_id))
    observation, _ = env.reset(seed=1)
    first = renderer(observation)
    assert np.array_equal(first, env.render())
    for _ in range(5):
        observation, *_ = env.step(env.action_space.sample())
    env.unwrapped.last_u = None  # Pendulum also draws its last torque, which is not in the observation
    assert np.array_equal(renderer(observation), env.render())
    renderer.close()
    env.close()


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1), (12, 10, 3), (3, 12, 10), (1, 12, 10)])
def test_an_image_is_shown_unchanged(shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    space.seed(0)
    image = space.sample()
    frame = ObservationRenderer(random_world(observation_space=space))(image)
    assert frame.shape == (12, 10, 3)
    assert frame.dtype == np.uint8
    plane = image[..., 0] if shape[-1] in (1, 3) and len(shape) == 3 else image[0] if len(shape) == 3 else image
    assert np.array_equal(frame[..., 0], plane)


def test_the_image_of_a_dict_is_shown():
    space = spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (1,)), "view": spaces.Box(0, 255, (8, 8, 3), np.uint8)})
    space.seed(0)
    observation = space.sample()
    assert np.array_equal(ObservationRenderer(random_world(observation_space=space))(observation), observation["view"])


def test_other_observations_become_one_bar_per_number_that_grows_with_it():
    space = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (2,)), "b": spaces.Discrete(3)})
    renderer = ObservationRenderer(random_world(observation_space=space))

    def lengths(a):
        frame = renderer({"a": np.array(a, dtype=np.float32), "b": np.int64(1)})
        return (frame == BAR).all(axis=-1).sum(axis=1)

    small, large = lengths([1.0, 0.0]), lengths([15.0, 0.0])
    rows = np.flatnonzero(small != large)
    assert len(rows) == 16  # only the first bar
    assert (large[rows] > small[rows]).all()


def test_drawing_leaves_the_global_generators_alone():
    renderer = ObservationRenderer(random_world())
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (this is what must not change)
    renderer(np.zeros(2, dtype=np.float32))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_wrapped_observations_are_not_drawn_as_states():
    with gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 2) as env:
        world = random_world(env.action_space, env.observation_space)
    world.provenance = {"recipes": [{"env": "CartPole-v1", "wrappers": ["FrameStackObservation"]}]}
    frame = ObservationRenderer(world)(np.zeros((2, 4), dtype=np.float32))
    assert (frame == BAR).all(axis=-1).any()
