"""Defaults, boundaries and notes of conversions, and of the writer of episodes."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces
from toy_data import labelled_episode, write_store

from worldmodel.data import Columns, ConversionConfig, EpisodeWriter, from_arrays, from_csv, from_hdf5, from_parquet
from worldmodel.data.formats import hdf5
from worldmodel.data.formats.config import GUESSES
from worldmodel.data.formats.inference import FEW_VALUES, MAX_CHOICES, NO_ACTIONS, VISITS
from worldmodel.runtime import RunConfig


def numbers(store, part="observation"):
    return {one["name"]: one for one in store.recipe["conversion"]["found"][part]}


def test_the_defaults_are_those_of_the_page():
    assert dataclasses.asdict(ConversionConfig()) == {
        "time_unit": "s",
        "elapsed": False,
        "missing": "mask",
        "max_gap": None,
        "max_steps": None,
        "widen": 0.5,
        "resize": None,
        "dtype": "keep",
        "like": None,
    }
    assert Columns().used == []
    assert list(GUESSES) == ["action", "reward", "termination", "truncation", "episode", "time", "next_observation"]


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConversionConfig().widen = 1.0


def test_data_without_actions_have_a_space_without_numbers(tmp_path):
    store = from_arrays(np.arange(4.0)[:, None], out=tmp_path / "store")
    assert store.action_space == NO_ACTIONS == spaces.Box(-1.0, 1.0, (0,), np.float32)


@pytest.mark.parametrize(("count", "few"), [(VISITS * 2, True), (VISITS * 2 - 1, False)])
def test_real_numbers_that_recur_often_look_like_choices(tmp_path, count, few):
    store = from_arrays(np.resize([0.5, 1.5], count)[:, None], out=tmp_path / "store")
    assert (numbers(store)["observations"]["kind"] == "real, few values") == few


@pytest.mark.parametrize(("count", "few"), [(FEW_VALUES, True), (FEW_VALUES + 1, False)])
def test_many_real_numbers_are_real(tmp_path, count, few):
    store = from_arrays(np.tile(np.arange(count) + 0.5, VISITS)[:, None], out=tmp_path / "store")
    assert (numbers(store)["observations"]["kind"] == "real, few values") == few


@pytest.mark.parametrize(("count", "kind"), [(MAX_CHOICES, "choice"), (MAX_CHOICES + 1, "integer")])
def test_integers_of_more_values_are_numbers(tmp_path, count, kind):
    store = from_arrays(np.arange(count), out=tmp_path / "store")
    assert numbers(store)["observations"]["kind"] == kind
    assert isinstance(store.observation_space, spaces.Discrete) == (kind == "choice")


def test_two_booleans_are_a_choice_of_0_and_1(tmp_path):
    store = from_arrays({"lamp": np.array([True, False, True]), "x": np.arange(3.0)}, out=tmp_path / "store")
    assert numbers(store)["lamp"]["values"] == [0.0, 1.0]
    assert store.observation_space["lamp"] == spaces.Discrete(2)


def test_words_for_true_and_false_are_1_and_0(tmp_path):
    lines = ["x,action,done", "yes,1,false", "no,2,no", "TRUE,3,yes"]
    (tmp_path / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    (episode,) = from_csv(tmp_path / "log.csv", tmp_path / "store")
    assert episode.observations.tolist() == [1, 0, 1]
    assert episode.terminations.tolist() == [False, True]


def test_bounds_are_wider_than_the_data_by_half_their_range(tmp_path):
    box = from_arrays(np.array([[2.0], [6.0], [4.0]]), out=tmp_path / "store").observation_space
    assert (box.low, box.high) == (0.0, 8.0)
    box = from_arrays(np.array([[2.0], [2.0]]), out=tmp_path / "constant").observation_space
    assert (box.low, box.high) == (0.0, 4.0)


def test_an_episode_of_the_longest_length_is_whole_and_a_longer_one_is_cut(tmp_path):
    config = ConversionConfig(max_steps=4)
    whole = from_arrays(np.arange(5.0)[:, None], out=tmp_path / "whole", config=config)
    assert (len(whole), whole.recipe["conversion"]["assumed"][0][:3]) == (1, "no ")
    cut = from_arrays(np.arange(7.0)[:, None], out=tmp_path / "cut", config=config)
    assert [len(episode) for episode in cut] == [4, 2]
    assert [episode.truncations.tolist() for episode in cut] == [[False] * 3 + [True], [False, True]]
    assert any("cut episodes that are longer than the limit (1 times; 2 episodes)" in one for one in numbers_of_notes(cut))


def numbers_of_notes(store):
    return store.recipe["conversion"]["assumed"]


def test_a_conversion_without_a_run_shows_nothing_and_resumes(tmp_path, capsys):
    first = from_arrays(np.arange(4.0)[:, None], out=tmp_path / "store", run=RunConfig(progress=False))
    again = from_arrays(np.arange(4.0)[:, None], out=tmp_path / "store")
    assert again.fingerprint == first.fingerprint


def test_flags_of_one_column_and_vectors_of_one_number_are_told_apart(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"], file["actions"] = np.arange(6.0)[:, None], np.arange(6.0)
        file["terminals"] = np.array([[False], [False], [True]] * 2)
    store = from_hdf5(tmp_path / "a.hdf5", tmp_path / "store")
    assert store.observation_space.shape == (1,)
    assert [len(episode) for episode in store] == [2, 2]
    assert [bool(episode.terminations[-1]) for episode in store] == [True, True]


def test_progress_of_a_file_ends_at_the_number_of_its_rows(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"], file["actions"] = np.arange(6.0)[:, None], np.arange(6.0)
    seen = []
    from_hdf5(tmp_path / "a.hdf5", tmp_path / "store", run=RunConfig(on_progress=seen.append))
    assert {one.stage: (one.done, one.total) for one in seen} == {"check": (6, 6), "convert": (6, 6)}


@pytest.mark.parametrize(("rows", "refused"), [(2**25, False), (2**25 + 1, True)])
def test_a_quarter_of_a_gibibyte_need_not_be_written(tmp_path, rows, refused):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("observations", (rows,), "f8", chunks=(1000,))
        if refused:
            with pytest.raises(ValueError, match="but only 0 of them were written"):
                hdf5._check_sizes(file)
        else:
            hdf5._check_sizes(file)


def test_an_hdf5_file_without_rows_is_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["scalar"] = 1.0
    with pytest.raises(ValueError, match=r"a\.hdf5: expected data sets with a row per step, got none"):
        from_hdf5(tmp_path / "a.hdf5", tmp_path / "store")


def test_lists_that_are_missing_at_the_end_have_the_shape_of_the_others(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("worldmodel.data.formats.parquet.BATCH_BYTES", 1)  # one row at a time
    table = pa.table({"x": [1.0, 2.0, 3.0], "action": pa.array([[1.0, 2.0], [3.0, 4.0], None])})
    pq.write_table(table, tmp_path / "a.parquet")
    (episode,) = from_parquet(tmp_path / "a.parquet", tmp_path / "store")
    assert episode.actions.tolist() == [[1.0, 2.0], [3.0, 4.0]]


class TestWriter:
    def test_without_limits_nothing_is_written_before_the_end(self, tmp_path):
        store = write_store(tmp_path / "store", [])
        with EpisodeWriter(store) as writer:
            for number in range(3):
                writer.add(labelled_episode(number, 3))
                writer.write_if_due()
            assert len(store) == 0
        assert len(store) == 3

    @pytest.mark.parametrize("limit", [{"max_steps": 6}, {"max_steps": 4}, {"max_bytes": labelled_episode(0, 3).nbytes + 1}])
    def test_a_shard_is_written_when_it_reaches_its_size_and_counting_begins_again(self, tmp_path, limit):
        store, written = write_store(tmp_path / "store", []), []
        with EpisodeWriter(store, **limit) as writer:
            for number in range(5):
                writer.add(labelled_episode(number, 3))
                writer.write_if_due()
                written.append(len(store))
        assert written == [0, 2, 2, 4, 4]

    def test_a_sample_of_one_episode_is_written_at_once(self, tmp_path):
        store = write_store(tmp_path / "store", [])
        with EpisodeWriter(store, total=2, sample=1) as writer:
            writer.add(labelled_episode(0, 3))
            writer.write_if_due()
            assert len(store) == 1
            writer.add(labelled_episode(1, 3))
            writer.write_if_due()
            assert len(store) == 1
