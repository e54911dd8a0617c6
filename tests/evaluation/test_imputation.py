"""Imputation against a process whose smoothing distribution is known, and its promises."""

import numpy as np
import pytest
from linear_worlds import DECAY, SD, episode, linear_world

from worldmodel.evaluation import impute
from worldmodel.models import ExtraInputs

NAN = np.nan


def test_a_gap_is_filled_from_both_sides():
    given = episode(np.array([[1.0], [NAN], [2.0], [NAN], [NAN]]))
    samples = impute(linear_world(), given, 4000, candidates=20, seed=1)
    assert samples.shape == (4000, 5, 1)
    assert (samples[:, [0, 2], 0] == [1.0, 2.0]).all()
    mean, variance = DECAY * (1 + 2) / (1 + DECAY**2), SD**2 / (1 + DECAY**2)
    assert samples[:, 1].mean() == pytest.approx(mean, abs=0.05)
    assert samples[:, 1].var() == pytest.approx(variance, rel=0.1)
    assert samples[:, 4].mean() == pytest.approx(DECAY**2 * 2, abs=0.06)
    assert samples[:, 4].var() == pytest.approx(SD**2 * (1 + DECAY**2), rel=0.1)


def test_numbers_of_one_row_are_filled_given_the_others():
    given = episode(np.array([[0.0, 0.0], [1.0, NAN]]))
    samples = impute(linear_world(2, correlation=0.8), given, 4000, candidates=1, seed=0)[:, 1]
    assert (samples[:, 0] == 1.0).all()
    assert samples[:, 1].mean() == pytest.approx(0.8, abs=0.03)
    assert samples[:, 1].var() == pytest.approx(SD**2 * (1 - 0.64), rel=0.1)


def test_a_first_row_that_is_missing_comes_from_real_ones_that_fit_the_next():
    samples = impute(linear_world(), episode(np.array([[NAN], [0.9]])), 500, seed=2)
    assert samples[:, 0].mean() > 0.15
    assert samples[:, 0].min() >= -1
    assert samples[:, 0].max() <= 1


def test_a_seed_gives_the_same_samples_and_a_complete_episode_stays():
    given = episode(np.array([[1.0], [NAN], [2.0]]))
    world = linear_world(extras=ExtraInputs(maskable=(0,)))
    one, same, other = (impute(world, given, 3, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    complete = episode(np.array([[1.0], [1.5], [2.0]]))
    assert np.array_equal(impute(world, complete, 2), np.stack([complete.observations] * 2))


def test_the_number_of_samples_is_at_least_one():
    with pytest.raises(ValueError, match="num_samples: expected an integer >= 1"):
        impute(linear_world(), episode(np.zeros((2, 1))), 0)
