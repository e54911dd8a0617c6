"""Arrays to stores: the shapes that logs have, the spaces that are inferred, and what is refused."""

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.data import ConversionConfig, EpisodeStore, describe_conversion, from_arrays

LENGTHS = (5, 9, 1, 14)


def recorded(rng, extra=1):
    """Observations (T + extra) and actions, rewards (T) of episodes of irregular lengths."""
    observations = [rng.normal(size=(n + extra, 3)).astype(np.float32) for n in LENGTHS]
    actions = [rng.uniform(-1, 1, size=(n, 2)) for n in LENGTHS]
    return observations, actions, [rng.normal(size=n) for n in LENGTHS]


def test_lists_with_one_more_observation_than_actions_keep_every_value(tmp_path):
    observations, actions, rewards = recorded(np.random.default_rng(0))
    ends = [np.arange(n) == n - 1 for n in LENGTHS]
    store = from_arrays(observations, actions, rewards, out=tmp_path / "s", terminations=ends)
    assert store.lengths.tolist() == list(LENGTHS)
    for index, episode in enumerate(store):
        np.testing.assert_array_equal(episode.observations, observations[index])
        np.testing.assert_array_equal(episode.actions, actions[index])
        np.testing.assert_array_equal(episode.rewards, rewards[index])
        assert episode.terminations.tolist() == ends[index].tolist()
        assert not episode.truncations.any()
    assert "dropped" not in describe_conversion(store)


def test_of_as_many_observations_as_actions_the_last_action_is_dropped_and_this_is_said(tmp_path):
    rng = np.random.default_rng(0)
    observations = [rng.normal(size=(n, 3)) for n in (5, 9)]
    actions = [rng.normal(size=(n, 2)) for n in (5, 9)]
    store = from_arrays(observations, actions, out=tmp_path / "s", terminations=[np.arange(n) == n - 1 for n in (5, 9)])
    assert store.lengths.tolist() == [4, 8]
    for index, episode in enumerate(store):
        np.testing.assert_array_equal(episode.observations, observations[index])
        np.testing.assert_array_equal(episode.actions, actions[index][:-1])
        assert episode.terminations.tolist() == [False] * (len(episode) - 1) + [True]
    said = describe_conversion(store)
    assert "dropped the last action, as the observation after it was not recorded (2 times; 2 episodes)" in said
    assert "moved 'terminations' of the last row one step back" in said


@pytest.mark.parametrize("chunk", [3, 7, 65_536])
def test_flat_transitions_are_divided_at_terminals_and_timeouts(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("worldmodel.data.formats.arrays.CHUNK_ROWS", chunk)
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    terminals, timeouts = np.isin(np.arange(20), [6, 19]), np.isin(np.arange(20), [11])
    ends = {"terminations": terminals, "truncations": timeouts}
    store = from_arrays(observations, actions, np.arange(20.0), out=tmp_path / "s", **ends)
    assert store.lengths.tolist() == [6, 4, 7]
    assert [bool(e.terminations[-1]) for e in store] == [True, False, True]
    assert [bool(e.truncations[-1]) for e in store] == [False, True, False]
    np.testing.assert_array_equal(np.concatenate([e.observations for e in store]), observations)
    assert store.read(1).rewards.tolist() == [7, 8, 9, 10]


def test_flat_arrays_are_divided_by_the_episode_of_each_row_which_numbers_it(tmp_path):
    store = from_arrays(np.arange(12.0).reshape(6, 2), out=tmp_path / "s", episodes=np.array([7, 7, 7, 3, 3, 3]))
    assert store.episode_ids.tolist() == [3, 7]
    assert store.read(0).observations.tolist() == [[6, 7], [8, 9], [10, 11]]


def test_spaces_are_inferred_with_widened_bounds_choices_and_constants(tmp_path):
    rng = np.random.default_rng(0)
    observations = {
        "camera": rng.integers(0, 255, size=(200, 32, 48, 3), dtype=np.uint8),
        "gear": np.arange(200) % 3 + 1,
        "count": np.arange(200) * 1000,
        "lamp": np.arange(200) % 2 == 0,
        "mass": np.full(200, 1.5),
        "speed": np.linspace(-1, 3, 200).astype(np.float32),
    }
    store = from_arrays(observations, np.arange(200) % 4, out=tmp_path / "s", config=ConversionConfig(resize=16))
    found = store.observation_space.spaces
    assert found["camera"] == spaces.Box(0, 255, (16, 16, 3), np.uint8)
    assert found["gear"] == spaces.Discrete(3, start=1)
    assert found["count"] == spaces.Box(-99_500, 298_500, (), np.int64)
    assert found["lamp"] == spaces.Discrete(2)
    assert found["state"] == spaces.Box(np.array([0.0, -3.0]), np.array([3.0, 5.0]), dtype=np.float64)
    assert store.action_space == spaces.Discrete(4)
    said = describe_conversion(store)
    assert "gear    choice of 3: 1, 2, 3" in said
    assert "mass    constant 1.5" in said
    assert "speed   real, -1 to 3" in said


def test_bounds_of_actions_are_those_of_the_data_rounded_outwards(tmp_path):
    actions = np.linspace(-0.998, 0.9951, 50)[:, None] * [1.0, 20.0]
    store = from_arrays(np.zeros((50, 1)), actions, out=tmp_path / "s")
    np.testing.assert_allclose(store.action_space.low, [-1.0, -20.0])
    np.testing.assert_allclose(store.action_space.high, [1.0, 20.0])


def test_a_long_episode_is_cut_without_a_loss(tmp_path):
    observations, actions = np.arange(23.0)[:, None], np.arange(22.0)[:, None]
    ends = np.arange(22) == 21
    store = from_arrays(
        [observations], [actions], out=tmp_path / "s", terminations=[ends], config=ConversionConfig(max_steps=5)
    )
    assert store.lengths.tolist() == [5, 5, 5, 5, 2]
    assert np.concatenate([e.actions for e in store])[:, 0].tolist() == list(range(22))
    assert [e.observations[0, 0] for e in store] == [0, 5, 10, 15, 20]
    assert [bool(e.terminations[-1]) for e in store] == [False] * 4 + [True]
    assert [bool(e.truncations[-1]) for e in store] == [True] * 4 + [False]


def test_the_parts_of_a_cut_episode_count_as_truncated_whatever_the_data_say(tmp_path):
    ends = np.isin(np.arange(12), [11])
    options = {"truncations": ends, "config": ConversionConfig(max_steps=5)}
    store = from_arrays(np.arange(12.0)[:, None], np.zeros(12), out=tmp_path / "s", **options)
    assert [episode.truncations.tolist() for episode in store] == [[False] * 4 + [True]] * 2 + [[True]]


def test_rows_that_lack_a_number_split_the_episode_if_requested(tmp_path):
    observations, actions = np.arange(12.0)[:, None], np.arange(12.0)[:, None]
    observations[4], observations[5], actions[8] = np.nan, np.nan, np.nan
    store = from_arrays(observations, actions, out=tmp_path / "s", config=ConversionConfig(missing="split"))
    assert [e.observations[:, 0].tolist() for e in store] == [[0, 1, 2, 3], [6, 7, 8], [9, 10, 11]]
    assert [e.actions[:, 0].tolist() for e in store] == [[0, 1, 2], [6, 7], [9, 10]]
    assert "left out rows that lack a number of the observation (2 times" in describe_conversion(store)


def test_a_gap_in_time_splits_the_episode_if_requested(tmp_path):
    time = np.array([0.0, 0.1, 0.2, 0.9, 1.0, 1.1])
    store = from_arrays(np.arange(6.0)[:, None], out=tmp_path / "s", time=time, config=ConversionConfig(max_gap=0.5))
    assert [e.observations[:, 0].tolist() for e in store] == [[0, 1, 2], [3, 4, 5]]


BAD = {
    "infinity": ({"observations": np.array([[0.0], [np.inf]])}, "row 1: expected finite numbers in 'observations'"),
    "no action": (
        {"observations": np.zeros((3, 1)), "actions": np.array([[0.0], [np.nan], [1.0]])},
        "row 1: expected a number in 'actions', as this is not the last row",
    ),
    "empty episode": ({"observations": [np.zeros((3, 2)), np.zeros((0, 2))]}, "episode 1: .* got an empty episode"),
    "no numbers": ({"observations": np.zeros((3, 0))}, r"row 0: expected at least one number per row in 'observations'"),
    "one row": ({"observations": [np.zeros((3, 2)), np.zeros((1, 2))]}, "episode 1, row 0: .* got an episode of one"),
    "mixed dtypes": (
        {"observations": [np.zeros((3, 2)), np.zeros((3, 2), int)]},
        r"episode 1, row 0: expected 'observations' to be float64 of shape \(2,\), as before, got int64",
    ),
    "mixed types": ({"observations": np.array([1.0, "a"], dtype=object)}, "mixed types, such as 'a'"),
    "mixed shapes": ({"observations": [np.zeros((3, 2)), np.zeros((3, 3))]}, r"got float64 of shape \(3,\)"),
    "repeated time": ({"observations": np.zeros((3, 1)), "time": np.array([0, 1, 1])}, "row 2: .* got a repeated time"),
    "unsorted time": ({"observations": np.zeros((3, 1)), "time": np.array([0, 2, 1])}, "row 2: .* got 1 after 2"),
    "scattered episode": ({"observations": np.zeros((5, 1)), "episodes": np.array([0, 0, 1, 1, 0])}, "row 4: .* 0 again"),
    "lengths": ({"observations": [np.zeros((3, 2))], "actions": [np.zeros((5, 2))]}, "expected T or T \\+ 1 observations"),
    "flat lengths": ({"observations": np.zeros((3, 2)), "actions": np.zeros((2, 2))}, "actions: expected 3 rows"),
    "early end": (
        {"observations": np.zeros((3, 1)), "terminations": np.array([0, 1, 0]), "episodes": np.zeros(3, int)},
        "row 1: expected termination and truncation only in the last row",
    ),
    "flag": ({"observations": np.zeros((3, 1)), "terminations": np.array([0, 0, 2])}, "row 2: expected 0 or 1"),
    "vector reward": ({"observations": np.zeros((3, 1)), "rewards": np.zeros((3, 2))}, "one number per row in 'rewards'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_row_is_named_and_nothing_is_written(tmp_path, name):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        from_arrays(**arguments, out=tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_unsigned_times_that_go_back_are_noticed(tmp_path):
    with pytest.raises(ValueError, match=r"row 1: .* got 1 after 5"):
        from_arrays(np.zeros((3, 1)), out=tmp_path / "s", time=np.array([5, 1, 7], dtype=np.uint64))


def test_a_long_vector_is_described_in_part(tmp_path):
    store = from_arrays(np.random.default_rng(0).normal(size=(5, 900)), out=tmp_path / "s")
    assert len(store.recipe["conversion"]["found"]["observation"]) == 500
    assert "  ..." in describe_conversion(store).splitlines()


def test_arrays_and_lists_are_not_mixed(tmp_path):
    with pytest.raises(TypeError, match="observations an array, actions a list"):
        from_arrays(np.zeros((3, 2)), [np.zeros((3, 2))], out=tmp_path / "s")


@pytest.mark.parametrize(("nothing", "name"), [(None, "NoneType"), ({}, "an empty mapping")])
def test_observations_that_are_missing_are_named(tmp_path, nothing, name):
    with pytest.raises(TypeError, match=f"observations: expected an array of rows, .* got {name}"):
        from_arrays(nothing, out=tmp_path / "s")


def test_a_failed_conversion_keeps_the_store_that_it_would_have_replaced(tmp_path):
    from worldmodel.runtime import RunConfig

    kept = from_arrays(np.arange(6.0)[:, None], out=tmp_path / "s").fingerprint
    with pytest.raises(ValueError, match="finite"):
        from_arrays(np.array([[np.inf], [0.0]]), out=tmp_path / "s", run=RunConfig(overwrite=True))
    assert EpisodeStore.open(tmp_path / "s").fingerprint == kept


def test_other_data_do_not_continue_a_conversion(tmp_path):
    from_arrays(np.arange(6.0)[:, None], out=tmp_path / "s")
    with pytest.raises(FileExistsError, match="expected source"):
        from_arrays(np.arange(7.0)[:, None], out=tmp_path / "s")


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes_come_back_as_they_are(tmp_path, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, size=rng.integers(1, 6))
    kinds = [np.float32, np.float64, np.int16, np.uint8, bool]
    leaf_shapes = [(), (3,), (2, 2), (1,)]
    chosen = [(kinds[rng.integers(5)], leaf_shapes[rng.integers(4)]) for _ in range(rng.integers(1, 4))]

    def made(count, kind, shape):
        return (rng.normal(size=(count, *shape)) * 3).astype(kind) if kind is not bool else rng.random((count, *shape)) > 0.5

    observations = {f"o{i}": [made(n + 1, *each) for n in lengths] for i, each in enumerate(chosen)}
    actions = [made(n, kinds[rng.integers(2)] if seed % 2 else kinds[seed % 5], ()) for n in lengths]
    actions = [one.astype(actions[0].dtype) for one in actions]
    store = from_arrays(observations, actions, out=tmp_path / "s", config=ConversionConfig(max_steps=int(rng.integers(20, 30))))
    assert store.lengths.tolist() == lengths.tolist()
    for index, episode in enumerate(store):
        np.testing.assert_array_equal(np.asarray(episode.actions).reshape(lengths[index], -1)[:, 0], actions[index])
        for name, listed in observations.items():
            whole = episode.observations
            if isinstance(whole, dict) and name in whole:
                whole = whole[name]
            elif isinstance(whole, dict):  # joined with other real numbers
                joined = [one for one, each in observations.items() if each[0].ndim == 1 and each[0].dtype.kind == "f"]
                whole = whole["state"][:, joined.index(name)]
            elif len(observations) > 1:
                whole = whole[:, list(observations).index(name)]
            np.testing.assert_array_equal(np.asarray(whole).reshape(-1), listed[index].reshape(-1))
