"""Autocorrelated noise on actions, and the slow driver."""

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.data import ActionNoise, NoiseProcess, SlowDriver, make_policy

BOX = spaces.Box(np.float32([-10.0, 0.0]), np.float32([10.0, 40.0]))
CAR = spaces.Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]))


def noise_of(process, middle, steps, seed):
    process.reset(np.random.default_rng(seed))
    return np.array([process(middle) for _ in range(steps)], dtype=np.float64) - middle


def test_noise_has_the_size_of_its_episode_at_every_step_and_the_correlation_of_the_configuration():
    config = ActionNoise(scale=0.2, correlation=0.7)
    middle, half = np.array([0.0, 20.0]), np.array([10.0, 20.0])
    process, first, last, products = NoiseProcess(config, BOX), [], [], []
    for seed in range(3000):
        noise = noise_of(process, middle, 12, seed) / half / process.size
        first.append(noise[0])
        last.append(noise[-1])
        products.append((noise[1:] * noise[:-1]).mean(axis=0))
    for parts in (first, last):
        assert np.std(parts, axis=0) == pytest.approx([1, 1], abs=4 / np.sqrt(2 * 3000))
    assert np.mean(products, axis=0) == pytest.approx([0.7, 0.7], abs=0.03)


def test_the_size_is_uniform_over_episodes():
    process, sizes = NoiseProcess(ActionNoise(scale=0.5), BOX), []
    for seed in range(4000):
        process.reset(np.random.default_rng(seed))
        sizes.append(process.size)
    assert 0 <= min(sizes) < 0.005
    assert 0.495 < max(sizes) <= 0.5
    assert np.mean(sizes) == pytest.approx(0.25, abs=4 * 0.5 / np.sqrt(12 * 4000))


def test_noisy_actions_stay_within_the_bounds_and_no_noise_changes_nothing():
    process = NoiseProcess(ActionNoise(scale=5.0), BOX)
    process.reset(np.random.default_rng(0))
    assert all(BOX.contains(process(BOX.high)) for _ in range(50))
    silent = NoiseProcess(ActionNoise(scale=0.0), BOX)
    silent.reset(np.random.default_rng(0))
    assert (silent(BOX.high) == BOX.high).all()


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-np.inf, 1, (2,)), spaces.Box(0, 5, (2,), np.int64)])
def test_other_spaces_are_rejected(space):
    with pytest.raises(TypeError, match="noise: expected a Box of floats with bounds"):
        NoiseProcess(ActionNoise(), space)


@pytest.mark.parametrize(("fields", "name"), [({"scale": -0.1}, "scale"), ({"correlation": 1.0}, "correlation")])
def test_numbers_out_of_range_are_rejected(fields, name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        ActionNoise(**fields)


def test_the_slow_driver_steers_smoothly_and_holds_its_pedals():
    policy = make_policy("slow-driver", CAR)
    policy.reset(np.random.default_rng(1))
    steering, gas, brake = np.transpose([policy(None) for _ in range(3000)])
    assert np.corrcoef(steering[1:], steering[:-1])[0, 1] == pytest.approx(0.8, abs=0.05)
    assert np.mean(gas[1:] != gas[:-1]) < 0.35
    assert 0.01 < np.mean(brake > 0) < 0.2
    assert 0.001 < np.mean(np.minimum(gas, brake) > 0.05) < 0.1  # both at once, sometimes


def test_the_slow_driver_drives_nothing_but_cars():
    with pytest.raises(TypeError, match="expected that of CarRacing for policy 'slow-driver'"):
        SlowDriver(spaces.Box(-1, 1, (2,)))
