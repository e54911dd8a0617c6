"""CMA-ES and OpenAI-ES on known functions."""

import numpy as np
import pytest

from worldmodel.agents import METHODS, OpenAIES, OpenAIESConfig, centred_ranks, estimate_gradient, make_strategy


def climb(strategy, function, generations):
    for _ in range(generations):
        strategy.tell(function(strategy.ask()))
    return strategy.mean


def make(method="openai-es", size=10, *, sigma=0.1, population=20, seed=0, **config):
    start = np.zeros(size)
    return make_strategy(method, start, sigma=sigma, population=population, seed=seed, openai_es=OpenAIESConfig(**config))


def test_openai_es_climbs_a_stretched_sphere_of_1000_dimensions():
    scales = np.geomspace(1, 30, 1000)
    target = np.random.default_rng(1).choice([-1.0, 1.0], 1000)

    def function(x):
        return -(scales * (x - target) ** 2).sum(axis=-1)

    found = climb(make(size=1000, population=100, sigma=0.05, learning_rate=0.02), function, 600)
    assert function(found) > 0.02 * function(np.zeros(1000))
    assert np.abs(found - target).max() < 0.6


def test_the_estimate_of_the_gradient_is_unbiased_on_a_linear_function():
    slope, sigma, population = np.array([1.0, -2.0, 0.0, 0.5]), 0.3, 10
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(20_000):
        half = rng.standard_normal((population // 2, 4))
        noise = np.concatenate([half, -half])
        estimates.append(estimate_gradient(noise, (noise * sigma) @ slope + 100.0, sigma))  # mirroring cancels the 100
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert np.all(np.abs(np.mean(estimates, axis=0) - slope) < 4 * error)
    assert error.max() < 0.02


def test_candidates_come_in_mirrored_pairs_of_the_given_width():
    strategy = make(size=5000, sigma=0.2)
    candidates = strategy.ask()
    assert np.array_equal(candidates[:10], -candidates[10:])  # the centre is 0
    assert candidates.std() == pytest.approx(0.2, rel=0.02)  # 50,000 samples: 6 standard errors


def test_ranks_are_centred_and_ties_share_their_mean():
    assert centred_ranks(np.array([3.0, -1e9, 7.0])).tolist() == [0.0, -0.5, 0.5]
    assert centred_ranks(np.array([1.0, 5.0, 5.0, 9.0, 5.0])).tolist() == [-0.5, 0.0, 0.0, 0.5, 0.0]


def test_equal_fitness_moves_nothing():
    strategy = make()
    assert not climb(strategy, lambda x: np.zeros(len(x)), 5).any()


def test_openai_es_depends_only_on_the_order_of_fitness():
    def function(x):
        return x.sum(axis=1)

    found = climb(make(), function, 5)
    assert np.array_equal(found, climb(make(), lambda x: np.exp(function(x)), 5))
    assert found.mean() > 0.05


def test_a_first_step_is_as_long_as_the_learning_rate():
    moved = climb(make(learning_rate=0.25), lambda x: x[:, 0], 1)
    assert np.abs(moved) == pytest.approx(0.25, abs=1e-6)


def test_weight_decay_pulls_towards_zero():
    strategies = [OpenAIES(np.full(4, 3.0), sigma=0.1, population=4, seed=0, config=OpenAIESConfig(weight_decay=decay))
                  for decay in (0.0, 0.1)]  # fmt: skip
    without, with_decay = (climb(strategy, lambda x: np.zeros(len(x)), 50) for strategy in strategies)
    assert without.tolist() == [3.0] * 4
    assert np.all(np.abs(with_decay) < 2.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_search_is_a_function_of_its_seed_and_of_fitness(method):
    def function(x):
        return -((x - 1) ** 2).sum(axis=1)

    a, b, other = (climb(make(method, seed=seed), function, 30) for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, other)
    assert function(a[None]) > -5  # -10 at the start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "sga"}, "method: expected one of cma, openai-es, got 'sga'"),
        ({"population": 7}, "population: expected an even number for openai-es, which mirrors candidates in pairs, got 7"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive finite number, got 0"),
        ({"weight_decay": -1.0}, "weight_decay: expected a finite number >= 0, got -1"),
    ],
)
def test_arguments_out_of_range_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("method", METHODS)
def test_every_strategy_refuses_a_fitness_that_is_nan(method):
    strategy = make(method, population=4)
    strategy.ask()
    with pytest.raises(ValueError, match="fitness: expected numbers, got NaN for candidate 1"):
        strategy.tell(np.array([1.0, np.nan, 0.0, 2.0]))
    with pytest.raises(ValueError, match=r"fitness: expected shape \(4,\), got \(3,\)"):
        strategy.tell(np.zeros(3))


@pytest.mark.parametrize("method", METHODS)
def test_every_strategy_takes_minus_infinity_as_the_worst_rank(method):
    means = []
    for worst in (-np.inf, -1000.0):
        strategy = make(method, population=4)
        strategy.ask()
        strategy.tell(np.array([1.0, worst, 0.0, 2.0]))
        means.append(strategy.mean)
    np.testing.assert_array_equal(*means)


def test_nan_has_no_rank():
    with pytest.raises(ValueError, match="fitness: expected numbers, got NaN for candidate 1"):
        centred_ranks([1, np.nan, 0])
    np.testing.assert_array_equal(centred_ranks([1, -np.inf, 0]), [0.5, -0.5, 0])
