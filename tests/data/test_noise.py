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


def decisions_of(driver, level, count=6000):
    """Gas, brake and the number of steps of each new decision of a driver."""
    driver.reset(np.random.default_rng(1))
    driver._level, found = level, []
    for _ in range(count):
        driver._remaining = 0
        _, gas, brake = driver(None)
        found.append((gas, brake, driver._remaining + 1))
    return np.array(found).T


def test_the_slow_driver_presses_its_pedals_as_often_and_as_long_as_it_says():
    gas, brake, steps = decisions_of(SlowDriver(CAR), 0.2)
    braked, coasted = brake > 0, (brake == 0) & (gas == 0)
    driven = ~braked & ~coasted
    for share, expected in ((braked, 0.15), (braked & (gas > 0), 0.05), (coasted, 0.15), (driven, 0.7)):
        assert share.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 6000))
    assert (gas[driven].min(), gas[driven].max()) == pytest.approx((0.2 * 0.3, 0.2 * 1.7), abs=1e-3)
    both = gas[braked & (gas > 0)]
    assert (both.min(), both.max(), both.mean()) == pytest.approx((0, 1, 0.5), abs=0.07)
    assert (brake[braked].min(), brake[braked].max()) == pytest.approx((0.05, 1), abs=0.01)
    assert sorted(set(steps[~braked])) == [*range(3, 16)]
    assert sorted(set(steps[braked])) == [*range(1, 5)]


def test_a_fast_driver_presses_the_pedal_at_most_fully():
    gas, brake, _ = decisions_of(SlowDriver(CAR), 0.9, 500)
    assert (gas[(gas > 0) & (brake == 0)] >= 1).mean() == pytest.approx((1.7 - 1 / 0.9) / 1.4, abs=0.1)
    assert gas.max() == 1


def test_the_level_of_a_slow_driver_is_spread_evenly_in_its_logarithm():
    driver = SlowDriver(CAR)
    levels = []
    for seed in range(2000):
        driver.reset(np.random.default_rng(seed))
        levels.append(np.log(driver._level))
    low, high = np.log(0.03), np.log(0.3)
    assert (min(levels), max(levels)) == pytest.approx((low, high), abs=0.01)
    assert np.mean(levels) == pytest.approx((low + high) / 2, abs=0.06)
