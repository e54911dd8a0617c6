"""CarRacing drawn faster: equal frames, skipped frames, and the numbers of the status bar."""

import gymnasium as gym
import numpy as np
import pytest

import worldmodel as wm
from worldmodel.data import rollouts

pytest.importorskip("Box2D")

from gymnasium.envs.box2d.car_racing import PLAYFIELD, CarRacing

from worldmodel.envs.car_racing import FastCarRacing, read_indicators

CAR = "worldmodel.environments:CarRacing64-v0"
DRIVES = [(0.0, 0.3, 0.0), (0.6, 0.2, 0.0), (-0.9, 0.0, 0.0), (0.0, 0.0, 0.6), (-0.3, 1.0, 0.0)]


def actions(count):
    """Return actions that are held for 7 steps each, as arrays of CarRacing's space."""
    return [np.array(DRIVES[t // 7 % len(DRIVES)], dtype=np.float32) for t in range(count)]


def both(seed, **kwargs):
    """Return the original and the fast environment after a reset, and their first frames."""
    envs = CarRacing(**kwargs), FastCarRacing(**kwargs)
    return *envs, *(env.reset(seed=seed)[0] for env in envs)


def move(env, x):
    """Move the car to the column ``x`` of the field."""
    offset = x - env.car.hull.position[0]
    for body in (env.car.hull, *env.car.wheels):
        body.position = (body.position[0] + offset, body.position[1])


@pytest.mark.parametrize("domain_randomize", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frames_rewards_and_ends_are_gymnasiums(seed, domain_randomize):
    original, fast, first, same = both(seed, domain_randomize=domain_randomize)
    assert (first == same).all()
    for action in actions(60):  # 50 steps of which zoom in at the start
        expected, found = original.step(action), fast.step(action)
        assert (expected[0] == found[0]).all()
        assert expected[1:] == found[1:]


@pytest.mark.parametrize("x", [0.9, 0.99, 0.999])
def test_frames_at_the_edge_of_the_field_are_gymnasiums(x):
    original, fast, *_ = both(0)
    for env in (original, fast):
        env.t = 1.0  # after the zoom
        move(env, x * PLAYFIELD)
    expected, found = (env.step(actions(1)[0]) for env in (original, fast))
    assert (expected[0] == found[0]).all()


def test_frames_are_skipped_until_the_episode_ends_whose_last_frame_is_drawn():
    original, fast, _, first = both(0)
    fast.drawing = False
    for action in actions(20):
        original.step(action)
        assert fast.step(action)[0] is first
    for env in (original, fast):
        move(env, PLAYFIELD + 1)
        env.reward = env.prev_reward = 5.55  # the picture shows 6; after the step it would be 5
    expected, found = (env.step(actions(1)[0]) for env in (original, fast))
    assert expected[1:] == found[1:]
    assert found[1:3] == (-100, True)
    assert (expected[0] == found[0]).all()


def test_another_frame_can_be_drawn_after_a_font_was_closed():
    import pygame

    original, fast, *_ = both(3)
    pygame.font.quit()
    expected, found = (env.step(actions(1)[0]) for env in (original, fast))
    assert (expected[0] == found[0]).all()


def test_the_indicators_are_those_of_the_car():
    env = FastCarRacing()
    env.reset(seed=1)
    rng, seen, true = np.random.default_rng(0), [], []
    for t in range(300):
        if t % 10 == 0:
            action = np.array([rng.uniform(-1, 1), rng.uniform(0, 0.4), 0.0], dtype=np.float32)
        frame = env.step(action)[0]
        car = env.car
        seen.append(read_indicators(frame))
        speed = np.linalg.norm(car.hull.linearVelocity)
        wheels = sum(wheel.omega for wheel in car.wheels)
        true.append([speed, wheels, -car.wheels[0].joint.angle, -car.hull.angularVelocity])
    correlations = [
        np.corrcoef(column, other)[0, 1] for column, other in zip(np.transpose(seen), np.transpose(true), strict=True)
    ]
    assert min(correlations) > 0.95, correlations


@pytest.mark.parametrize("kwargs", [{}, {"indicators": True}])
def test_a_repeated_action_gives_every_fourth_frame_and_the_sum_of_the_rewards(kwargs):
    repeated = wm.EnvConfig(CAR, kwargs=kwargs, action_repeat=4).make()
    single = gym.make(CAR, **kwargs)
    assert repeated.reset(seed=4)[1] == single.reset(seed=4)[1]
    drawn = []
    draw = repeated.unwrapped._draw
    repeated.unwrapped._draw = lambda: drawn.append(1) or draw()
    for action in actions(12):
        observation, reward, *_ = repeated.step(action)
        found = [single.step(action) for _ in range(4)]
        assert reward == pytest.approx(sum(one[1] for one in found), abs=1e-12)
        for path in ("image", "indicators") if kwargs else (None,):
            one, other = ((value if path is None else value[path]) for value in (observation, found[-1][0]))
            assert (one == other).all()
    assert len(drawn) == 12


def test_the_slow_driver_stays_on_the_road_longer_than_brownian_actions():
    env = wm.EnvConfig(CAR, action_repeat=4, max_steps=30)
    scores = {
        policy: np.mean([episode.rewards.sum() for episode in rollouts(env, policy, episode_ids=range(4), seed=0)])
        for policy in ("slow-driver", "brownian")
    }
    assert scores["slow-driver"] > scores["brownian"] + 5
