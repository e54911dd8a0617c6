"""Recorded data in which numbers of the observation are missing: kept, refused, split or interpolated."""

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.data import (
    Columns,
    ConversionConfig,
    Episode,
    EpisodeCollection,
    EpisodeStore,
    describe_conversion,
    from_arrays,
    from_csv,
    from_parquet,
    held,
    missing_numbers,
    summarise_store,
    to_parquet,
)

NAN = np.nan
ROWS = np.array([[0.0, NAN], [1.5, 10.0], [NAN, NAN], [2.5, 30.0], [3.0, 40.0]])
TIME = np.array([0.0, 1.0, 1.5, 3.0, 4.0])


def convert(path, observations=ROWS, *, missing="mask", **columns):
    return from_arrays(observations, out=path, config=ConversionConfig(missing=missing), **columns)


def test_rows_that_lack_a_number_are_kept_and_the_recipe_names_the_numbers(tmp_path):
    store = convert(tmp_path / "store", {"a": ROWS[:, 0], "b": np.arange(5.0), "c": ROWS[:, 1]})
    (episode,) = store
    assert store.missing == {"": (0, 2)} == missing_numbers(store.recipe, store.observation_space)
    np.testing.assert_array_equal(episode.observations[:, [0, 2]], ROWS)
    text = describe_conversion(store)
    assert "kept rows that lack a number of the observation (2 times; 1 episodes)" in text
    assert "real, 0 to 3, missing in some rows" in text
    assert EpisodeCollection([store]).missing == store.missing


def test_data_without_missing_numbers_are_converted_as_before(tmp_path):
    stores = [convert(tmp_path / one, np.arange(6.0)[:, None], missing=one) for one in ("mask", "error")]
    assert stores[0].fingerprint == stores[1].fingerprint
    assert "missing" not in stores[0].recipe
    assert stores[0].observation_space == stores[1].observation_space


def test_a_column_of_whole_numbers_that_are_missing_is_real(tmp_path):
    (tmp_path / "log.csv").write_text("gear,x\n1,0.5\n,0.7\n2,0.1\n", encoding="utf-8")
    store = from_csv(tmp_path / "log.csv", tmp_path / "store")
    assert isinstance(store.observation_space, spaces.Box)
    np.testing.assert_array_equal(next(iter(store)).observations[:, 0], [1, NAN, 2])


def test_missing_numbers_are_interpolated_in_time_and_whole_ones_held(tmp_path):
    observations = {"a": ROWS[:, 0], "gear": np.array([1.0, NAN, NAN, 2.0, 3.0])}
    (episode,) = convert(tmp_path / "store", observations, missing="interpolate", time=TIME)
    np.testing.assert_allclose(episode.observations[:, 0], [0.0, 1.5, 1.75, 2.5, 3.0])
    assert episode.observations[:, 1].tolist() == [1, 1, 1, 2, 3]
    (first_missing,) = convert(tmp_path / "ends", ROWS[:, 1:] + 0.5, missing="interpolate")
    np.testing.assert_allclose(first_missing.observations[:, 0], [10.5, 10.5, 20.5, 30.5, 40.5])
    assert "missing" not in EpisodeStore.open(tmp_path / "store").recipe


def test_rows_are_left_out_if_the_episode_shall_be_split(tmp_path):
    store = convert(tmp_path / "store", missing="split")
    assert [episode.observations.tolist() for episode in store] == [[[2.5, 30.0], [3.0, 40.0]]]


BAD = {
    "refused": ({}, "error", r"row 0: expected a number in 'observations', got none; keep such rows.*missing='mask'.*'split'"),
    "always missing": (
        {"observations": {"a": ROWS[:, 0], "c": np.full(5, NAN)}},
        "mask",
        r"expected a number in 'c' in some row, got none; leave the column out \(observation, --observation\)",
    ),
    "infinite": (
        {"observations": np.array([[NAN], [np.inf]])},
        "mask",
        "row 1: expected finite numbers in 'observations'",
    ),
    "no time": (
        {"time": np.array([0.0, 1.0, NAN, 3.0, 4.0])},
        "mask",
        "row 2: expected a number in 'time', got none; fill it, or leave such rows out",
    ),
    "no action": (
        {"actions": np.array([0.0, NAN, 1.0, 1.0, 1.0])},
        "mask",
        "row 1: expected a number in 'actions', as this is not the last row of an episode, got none; fill it",
    ),
    "nothing to interpolate": (
        {"observations": [np.array([[NAN], [NAN]]), np.array([[0.5], [1.5]])]},
        "interpolate",
        r"episode 0, row 0: expected a number in 'observations' in some row of the episode, to interpolate.*missing='mask'",
    ),
    "repeated time": ({"time": np.array([0.0, 1.0, 1.0, 3.0, 4.0])}, "mask", "row 2: .* got a repeated time"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_row_is_named_with_the_fix_and_nothing_is_written(tmp_path, name):
    arguments, missing, message = BAD[name]
    with pytest.raises(ValueError, match=message) as raised:
        convert(tmp_path / "store", **({"observations": ROWS} | arguments), missing=missing)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_choices_of_another_store_cannot_be_missing(tmp_path):
    convert(tmp_path / "one", {"gear": np.array([0, 1, 2, 0])})
    with pytest.raises(ValueError, match=r"expected 'gear' in every row, as it is Discrete\(3\) in the other store"):
        from_arrays(
            {"gear": np.array([0, NAN, 2.0])}, out=tmp_path / "two", config=ConversionConfig(like=str(tmp_path / "one"))
        )


def episode(observations):
    zeros, flags = np.zeros(len(observations) - 1), np.zeros(len(observations) - 1, dtype=bool)
    return Episode(observations=observations, actions=zeros[:, None], rewards=zeros, terminations=flags, truncations=flags)


def create(path, missing):
    box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    recipe = {} if missing is None else {"missing": missing}
    return EpisodeStore.create(path, observation_space=box, action_space=spaces.Box(-1, 1, (1,)), recipe=recipe)


def test_a_store_takes_only_the_missing_numbers_that_its_recipe_names(tmp_path):
    create(tmp_path / "both", {"": [0, 1]}).append([episode(ROWS)])
    for name, missing in {"none": None, "first": {"": [0]}}.items():
        with pytest.raises(ValueError, match="episode 0 observations: expected finite numbers, got NaN or infinity at step 0"):
            create(tmp_path / name, missing).append([episode(ROWS)])
    with pytest.raises(ValueError, match="expected finite numbers, got NaN or infinity at step 1"):
        create(tmp_path / "infinite", {"": [0, 1]}).append([episode(np.where(ROWS == 10, np.inf, ROWS))])


@pytest.mark.parametrize(
    ("missing", "message"),
    [({"": [2]}, "expected numbers 0 to 1 of '', got 2"), ({"": [-1]}, "missing: expected an integer >= 0")],
)
def test_a_recipe_that_names_other_numbers_is_refused(tmp_path, missing, message):
    with pytest.raises(ValueError, match=message):
        create(tmp_path / "store", missing)


def test_parquet_keeps_what_is_missing(tmp_path):
    pytest.importorskip("pyarrow")
    store = convert(tmp_path / "store")
    copy = from_parquet(to_parquet(store, tmp_path / "store.parquet"), tmp_path / "copy")
    assert copy.fingerprint == store.fingerprint
    assert copy.missing == store.missing


def test_nulls_of_parquet_are_missing_numbers(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"x": [0.5, None, 2.5]}), tmp_path / "log.parquet")
    (found,) = from_parquet(tmp_path / "log.parquet", tmp_path / "store")
    np.testing.assert_array_equal(found.observations[:, 0], [0.5, NAN, 2.5])


def test_a_conversion_that_refused_missing_numbers_is_the_same_as_one_that_keeps_them(tmp_path):
    first = convert(tmp_path / "store", np.arange(4.0)[:, None], missing="error")
    again = convert(tmp_path / "store", np.arange(4.0)[:, None])
    assert again.fingerprint == first.fingerprint


def test_a_summary_leaves_out_what_is_missing(tmp_path):
    summary = summarise_store(convert(tmp_path / "store"))
    assert [number.values.tolist() for number in summary.observation] == [[0.0, 1.5, 2.5, 3.0], [10.0, 30.0, 40.0]]


def test_the_last_value_is_held():
    rows = np.array([[NAN, 1.0, NAN], [2.0, NAN, NAN], [NAN, 3.0, NAN]])
    assert held(rows, np.array([7.0, 8.0, 9.0])).tolist() == [[2.0, 1.0, 9.0], [2.0, 1.0, 9.0], [2.0, 3.0, 9.0]]


def test_columns_of_the_observation_are_named_as_before(tmp_path):
    (tmp_path / "log.csv").write_text("run,x,u\n0,1.5,0\n0,,1\n0,2.5,1\n", encoding="utf-8")
    columns = Columns(observation=("x",), action=("u",), episode="run")
    assert from_csv(tmp_path / "log.csv", tmp_path / "store", columns=columns).missing == {"": (0,)}
