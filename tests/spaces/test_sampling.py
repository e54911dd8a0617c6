"""Random values, including integers for which Gymnasium's own sampling overflows."""

import copy

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.spaces import sample_value


@pytest.mark.parametrize("shape", [(), (3, 2)])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (np.uint64, 0, 2**63 - 1),  # Gymnasium raises
        (np.uint64, 2**63 - 5, 2**63 + 5),  # Gymnasium raises
        (np.uint64, 0, 2**64 - 1),  # Gymnasium returns zeros
        (np.uint64, 2**64 - 3, 2**64 - 1),
        (np.int64, -(2**63), 2**63 - 1),  # Gymnasium returns the lower bound
        (np.int64, 2**63 - 3, 2**63 - 1),
    ],
)
def test_integers_up_to_the_largest_are_uniform_between_their_bounds(shape, dtype, low, high):
    space = spaces.Box(low, high, shape, dtype)
    space.seed(0)
    samples = [sample_value(space) for _ in range(300)]
    assert all(space.contains(one) for one in samples)
    values = np.array(samples).astype(object).reshape(-1)
    assert abs(np.mean((values - low) / (high - low)) - 0.5) < 4 * 12**-0.5 / len(values) ** 0.5 * 1.5  # small ranges vary more
    if high - low < 20:
        assert set(values) == set(range(low, high + 1))


def test_other_spaces_give_the_samples_of_gymnasium():
    space = spaces.Dict(
        {
            "arm": spaces.Box(-1, 1, (2,)),
            "pair": spaces.Tuple([spaces.Discrete(5, start=-2), spaces.MultiDiscrete([3, 4])]),
            "bits": spaces.MultiBinary(3),
            "whole": spaces.Box(0, 2**63 - 2, (2,), np.int64),
            "free": spaces.Box(-np.inf, np.inf, (2,), np.int64),
        }
    )
    space.seed(3)
    other = copy.deepcopy(space)
    for _ in range(5):
        np.testing.assert_equal(sample_value(space), other.sample())
