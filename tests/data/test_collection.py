"""Several stores as one list of episodes, their split, and permutations without memory."""

import numpy as np
import pytest
from toy_data import labelled_episode, write_store

from worldmodel.data import EpisodeCollection, permuted, positive_limits, split_episodes


@pytest.fixture
def collection(tmp_path):
    """Two stores with episodes of 1 to 6 steps; the id of an episode is its length."""
    stores = [
        write_store(tmp_path / str(number), [labelled_episode(length, length) for length in lengths])
        for number, lengths in enumerate([(3, 1, 2), (4, 6, 5)])
    ]
    return EpisodeCollection(stores, min_length=3)


def test_episodes_of_the_least_length_are_kept_and_shorter_ones_left_out(collection):
    assert collection.lengths.tolist() == [3, 4, 5, 6]
    assert [collection.read(i).episode_id for i in range(len(collection))] == [3, 4, 5, 6]


def test_spaces_are_those_of_the_stores(collection):
    assert collection.action_space == collection.stores[0].action_space
    assert collection.observation_space == collection.stores[0].observation_space


def test_the_action_space_of_one_store_is_known(tmp_path):
    store = write_store(tmp_path / "one", [labelled_episode(0, 2)])
    assert EpisodeCollection([store]).action_space == store.action_space


def test_indices_count_from_the_end_and_end_there(collection):
    assert collection[-1].episode_id == 6
    with pytest.raises(IndexError):
        collection[4]


def test_without_a_fraction_nothing_is_held_out():
    train, test = split_episodes(5, test_fraction=0.0, seed=0)
    assert (train.tolist(), test.tolist()) == ([0, 1, 2, 3, 4], [])


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.3, 3), (3, 0.5, 2)]
)
def test_both_sets_hold_an_episode_where_there_are_two(count, fraction, held_out):
    train, test = split_episodes(count, test_fraction=fraction, seed=3)
    assert len(test) == held_out
    assert sorted([*train, *test]) == list(range(count))


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.1), (1.0, 0.1), (True, 0.1), (3, 1.0), (3, -0.1), (3, np.nan)])
def test_a_split_of_other_numbers_is_refused(count, fraction):
    with pytest.raises((TypeError, ValueError), match=r"num_episodes: expected|test_fraction: expected"):
        split_episodes(count, test_fraction=fraction, seed=0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_a_permutation_takes_each_number_once(size):
    assert sorted(permuted(np.arange(size), size, key=[1, 2])) == list(range(size))


def test_a_permutation_is_the_same_in_every_version():
    assert permuted(np.arange(3), 3, key=[7]).tolist() == [1, 2, 0]
    assert permuted(np.arange(5), 5, key=[7]).tolist() == [1, 0, 3, 4, 2]
    assert permuted(np.arange(6), 1000, key=[7, 1]).tolist() == [52, 627, 11, 504, 937, 236]


@pytest.mark.parametrize(
    ("value", "limits"), [(5, [5]), (np.int64(5), [5]), (0, []), (-1, []), (None, []), (True, []), (5.0, [5]), (np.inf, [])]
)
def test_a_limit_is_a_positive_number_of_steps(value, limits):
    found = positive_limits(value)
    assert found == limits
    assert all(type(one) is int for one in found)
