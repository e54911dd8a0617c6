"""Surprise of each sensor against the exact density, and faults that are found at a known rate of false alarms."""

import numpy as np
import pytest
from gymnasium import spaces
from linear_worlds import DECAY, SD, episode, linear_world
from scipy.stats import norm

from worldmodel.data import EpisodeStore
from worldmodel.evaluation import Threshold, calibrate_surprise, surprise
from worldmodel.models import ExtraInputs

RATE = 0.01


def simulate(steps, seed, correlation=0.8):
    rng = np.random.default_rng(seed)
    y, factor = [rng.normal(size=2)], SD * np.array([[1, 0], [correlation, np.sqrt(1 - correlation**2)]])
    for _ in range(steps):
        y.append(DECAY * y[-1] + factor @ rng.normal(size=2))
    return np.stack(y)


def write_store(path, count, steps):
    box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    store = EpisodeStore.create(path, observation_space=box, action_space=spaces.Box(-1, 1, (1,)))
    store.append([episode(simulate(steps, seed), seed) for seed in range(count)])
    return path


def test_the_nats_of_a_sensor_are_those_of_its_marginal():
    y = simulate(50, 1)
    found = surprise(linear_world(2, 0.8), episode(y))
    assert found.sensors == ("[0]", "[1]")
    assert np.isnan(found.nats[0]).all()
    np.testing.assert_allclose(found.nats[1:], -norm(DECAY * y[:-1], SD).logpdf(y[1:]), rtol=1e-6)


def test_missing_numbers_have_no_surprise_and_the_next_ones_do():
    y = simulate(6, 2)
    y[3, 0] = np.nan
    found = surprise(linear_world(2, 0.8, ExtraInputs(maskable=(0, 1))), episode(y))
    assert np.isnan(found.nats[1:]).tolist() == [[row == 2, False] for row in range(6)]
    mean = DECAY * y[2, 0] + 0.8 * (y[3, 1] - DECAY * y[2, 1])  # of the missing number, given the other
    assert found.nats[4, 0] == pytest.approx(-norm(DECAY * mean, SD).logpdf(y[4, 0]), rel=1e-6)


def test_a_planted_fault_is_found_and_fault_free_episodes_raise_few_alarms(tmp_path):
    world = linear_world(2, 0.8)
    threshold = calibrate_surprise(world, write_store(tmp_path / "held-out", 20, 500), false_alarm_rate=RATE)
    assert threshold.false_alarm_rate == RATE
    assert threshold.num_steps.tolist() == [10_000, 10_000]
    exact = -norm(0, SD).logpdf(SD * norm.isf(RATE / 2))
    np.testing.assert_allclose(threshold.nats, exact, atol=0.2)
    clean = [surprise(world, episode(simulate(500, seed)), threshold=threshold).alarms for seed in range(100, 120)]
    rate = np.concatenate(clean)[1:].mean(axis=0)
    assert (abs(rate - RATE) < 5 * np.sqrt(RATE / 10_000) + 0.002).all()
    y = simulate(500, 99)
    y[300:, 1] += 8 * SD  # a sensor that jumps
    found = surprise(world, episode(y), threshold=threshold)
    assert found.alarms[300].tolist() == [False, True]
    assert "[1]" in str(found)


def test_too_few_steps_for_a_rate_give_no_alarm(tmp_path):
    threshold = calibrate_surprise(linear_world(2, 0.8), write_store(tmp_path / "few", 1, 50), false_alarm_rate=RATE)
    assert threshold.nats.tolist() == [np.inf, np.inf]


def test_a_threshold_of_other_sensors_and_a_rate_out_of_range_are_refused(tmp_path):
    other = Threshold(("speed",), np.zeros(1), RATE, np.ones(1))
    with pytest.raises(ValueError, match=r"threshold: expected one of the sensors .*, got one of \['speed'\]"):
        surprise(linear_world(2), episode(np.zeros((3, 2))), threshold=other)
    with pytest.raises(ValueError, match=r"false_alarm_rate: expected a number in \(0, 1\), got 1"):
        calibrate_surprise(linear_world(2), tmp_path, false_alarm_rate=1.0)
