"""Recorded data at the ends of their types, and files that were changed: the same numbers or an error, never other numbers."""

import csv
import os

import numpy as np
import pytest
from gymnasium import spaces
from recorded_files import write_lerobot

from worldmodel.data import from_arrays, from_csv, from_hdf5, from_lerobot, from_parquet, to_parquet
from worldmodel.runtime import InvalidFileError, LockedError, locked

COLUMN = np.arange(5, dtype=np.float32)[:, None]


def converted(tmp_path, observations, actions=COLUMN, rewards=COLUMN[:, 0], **columns):
    return from_arrays(observations, actions, rewards, out=tmp_path / "store", **columns)


class TestEndsOfTypes:
    @pytest.mark.parametrize(
        "values",
        [
            np.array([2**63 + 5, 2**63 + 6, 2**63, 2**63, 2**63 + 9], np.uint64),
            np.array([-(2**63), 0, 1, 2, 2**63 - 1], np.int64),
            np.array([[0, 2**64 - 1]] * 5, np.uint64),
            np.array([[-(2**63), 0], [1, 0], [1, 1], [0, 0], [2**63 - 1, 1]], np.int64),
            np.array([[1e300], [-1e308], [1.7e308], [0], [1]]),
            np.array([[0], [-128], [127], [0], [1]], np.int8),
        ],
    )
    def test_observations_stay_what_they_were(self, tmp_path, values):
        store = converted(tmp_path, values)
        (episode,) = store
        assert np.array_equal(episode.observations, values)
        assert episode.observations.dtype == values.dtype or isinstance(store.observation_space, spaces.Discrete)

    @pytest.mark.parametrize(
        "values",
        [
            np.array([-(2**63), 0, 1, 2**63 - 1, 2], np.int64),
            np.array([[-(2**63), 0], [1, 0], [1, 1], [2**63 - 1, 0], [0, 1]], np.int64),
            np.array([[1e300], [-1e308], [1.7e308], [0], [1]]),
            np.array([2**63 + 5, 2**63 + 6, 2**63, 2**63, 2**63 + 9], np.uint64),
        ],
    )
    def test_actions_stay_what_they_were(self, tmp_path, values):
        (episode,) = converted(tmp_path, COLUMN, values)
        assert np.array_equal(episode.actions, values[:-1])

    def test_few_integers_are_choices(self, tmp_path):
        store = converted(tmp_path, COLUMN, np.array([[3, -1], [4, 0], [3, 0], [4, -1], [3, 0]]))
        assert store.action_space == spaces.MultiDiscrete([2, 2], start=[3, -1])


class TestNumbersOfEpisodes:
    @pytest.mark.parametrize(
        "episodes",
        [
            np.array([2.0**53] * 2 + [2.0**53 + 2] * 3),
            np.array([1e300] * 5),
            np.array([0, 0, np.nan, 1, 1]),
            np.array([0, 0, 0.5, 1, 1]),
            np.zeros((5, 1), np.int64),
            np.array(["a", "a", "", "b", "b"], object),
            np.array(["a", "a", None, "b", "b"], object),
        ],
    )
    def test_a_number_that_is_none_is_refused(self, tmp_path, episodes):
        with pytest.raises(ValueError, match=r"expected (the name of an episode|one name or number per row) in 'episodes'"):
            converted(tmp_path, COLUMN, episodes=episodes)
        assert not (tmp_path / "store").exists()

    @pytest.mark.parametrize(
        ("episodes", "ids"),
        [
            (np.array([False] * 2 + [True] * 3), [0, 1]),
            (np.array([2**63] * 2 + [2**63 + 1] * 3, np.uint64), [0, 1]),
            (np.array([2**53] * 2 + [2**53 + 1] * 3), [2**53, 2**53 + 1]),
            (np.array([-2] * 2 + [-1] * 3), [-2, -1]),
            (np.array([7] * 2 + [2**63 - 1] * 3), [7, 2**63 - 1]),
        ],
    )
    def test_numbers_of_any_type_separate_episodes(self, tmp_path, episodes, ids):
        assert converted(tmp_path, COLUMN, episodes=episodes).episode_ids.tolist() == ids

    def test_long_numbers_in_text_separate_episodes(self, tmp_path):
        names = ["9007199254740992", "9007199254740993", "last"]
        rows = [f"{i},{i},{name}" for i, name in enumerate(np.repeat(names, 2))]
        (tmp_path / "log.csv").write_text("\n".join(["x,action,run", *rows]), encoding="utf-8")
        assert len(from_csv(tmp_path / "log.csv", tmp_path / "store")) == 3

    def test_an_episode_without_a_name_is_refused(self, tmp_path):
        (tmp_path / "log.csv").write_text("x,action,run\n1,1,a\n2,2,a\n3,3,\n4,4,\n", encoding="utf-8")
        with pytest.raises(ValueError, match="line 4: expected the name of an episode in 'run'"):
            from_csv(tmp_path / "log.csv", tmp_path / "store")


class TestUnknownEnds:
    def test_an_end_that_is_missing_in_the_middle_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="row 1: expected a number in 'terminations', got none"):
            converted(tmp_path, COLUMN, terminations=np.array([0, np.nan, 0, 0, 1]))

    def test_a_null_is_no_end(self, tmp_path):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"x": [1.0, 2, 3], "action": [1.0, 2, 3], "done": [False, None, True]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="row 1: expected a number in 'done', got none"):
            from_parquet(tmp_path / "a.parquet", tmp_path / "store")

    def test_a_null_is_no_episode(self, tmp_path):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = {"x": [1.0, 2, 3, 4], "action": [1.0, 2, 3, 4], "episode": [0, 0, None, None]}
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="row 2: expected the name of an episode in 'episode'"):
            from_parquet(tmp_path / "a.parquet", tmp_path / "store")


@pytest.mark.parametrize("rewards", [5, np.array(5.0), None.__class__])
def test_what_is_no_column_is_named(tmp_path, rewards):
    with pytest.raises(TypeError, match=r"rewards: expected an array of rows|arrays: expected arrays of all episodes"):
        converted(tmp_path, COLUMN, COLUMN, rewards)


@pytest.mark.parametrize("header", [False, True])
def test_a_cell_that_is_too_long_is_one_error(tmp_path, header):
    long = '"' + "x" * (csv.field_size_limit() + 1) + '"'
    lines = [f"{long if header else 'x'},action", f"{1 if header else long},1", "2,2"]
    (tmp_path / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InvalidFileError, match=f"log.csv, line {1 if header else 2}: expected"):
        from_csv(tmp_path / "log.csv", tmp_path / "store")


def test_a_header_of_the_most_characters_is_read(tmp_path):
    (tmp_path / "log.csv").write_text("x," * 2**21, encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: expected a header with different names of columns"):
        from_csv(tmp_path / "log.csv", tmp_path / "store")


def test_a_header_without_an_end_is_not_read_whole(tmp_path):
    (tmp_path / "log.csv").write_text("x," * 2**22, encoding="utf-8")
    with pytest.raises(InvalidFileError, match="line 1: expected a header with names of columns, got a line of more than 4 MB"):
        from_csv(tmp_path / "log.csv", tmp_path / "store")


class TestRestoredStores:
    """A file of `to_parquet` that another program changed."""

    @pytest.fixture
    def changed(self, tmp_path):
        """A function that changes a column of an exported store and restores it."""
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        store = from_arrays(np.arange(6), np.arange(6.0)[:, None], np.arange(6.0), out=tmp_path / "first")
        to_parquet(store, tmp_path / "a.parquet")
        table = pq.read_table(tmp_path / "a.parquet")

        def change(name, values, kind=None):
            place, field = table.schema.get_field_index(name), table.schema.field(name)
            column = pa.array(values, kind or field.type)
            made = table.set_column(place, pa.field(name, column.type, metadata=field.metadata), column)
            pq.write_table(made.replace_schema_metadata(table.schema.metadata), tmp_path / "b.parquet")
            return from_parquet(tmp_path / "b.parquet", tmp_path / "second")

        return change

    def test_the_same_column_is_restored(self, changed):
        (episode,) = changed("reward", [0.0, 1, 2, 3, 4, None])
        np.testing.assert_array_equal(episode.rewards, [0, 1, 2, 3, 4])

    @pytest.mark.parametrize(
        ("name", "values", "kind"),
        [
            ("reward", [0, None, 2, 3, 4, None], None),
            ("reward", [0, 1, 2, 3, 4, 5], None),
            ("termination", [False, None, False, False, False, None], None),
            ("termination", [0, 0, 0, 0, 1, None], "int8"),
            ("action", [[0], None, [2], [3], [4], None], None),
            ("observation", [0, 1, 2, 3, 4, 1.7], "float64"),
            ("observation", [0, 1, 2, 3, None, 5], None),
            ("episode", [0.5] * 6, "float64"),
            ("episode", [0, 0, 0, 1, 1, 1], None),
            ("episode", [0, 0, 0, None, 0, 0], None),
            ("step", [0, 1, 2, 4, 5, 6], None),
            ("step", [1, 2, 3, 4, 5, 6], None),
            ("seed", [1.5] * 6, "float64"),
            ("seed", [1, 1, 1, None, 1, 1], None),
            ("seed", [1, 1, 1, 2, 1, 1], None),
        ],
    )
    def test_another_column_is_refused(self, changed, tmp_path, name, values, kind):
        with pytest.raises(InvalidFileError, match=r"b\.parquet"):
            changed(name, values, kind)
        assert not (tmp_path / "second").exists()

    @pytest.mark.parametrize("shape", ["[2, 2]", "[1.0]", "[true]", "[-1]", "7", "[" * 5000, "{"])
    def test_a_shape_that_does_not_fit_is_refused(self, tmp_path, shape):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        kind = pa.list_(pa.float64(), 1)
        schema = pa.schema([pa.field("x", kind, metadata={b"shape": shape.encode()}), pa.field("action", pa.float64())])
        pq.write_table(pa.table([pa.array([[1.0], [2.0]], kind), pa.array([1.0, 2.0])], schema=schema), tmp_path / "a.parquet")
        with pytest.raises(InvalidFileError, match=r"a\.parquet"):
            from_parquet(tmp_path / "a.parquet", tmp_path / "store")

    @pytest.mark.parametrize("ours", ["[" * 100_000, "7", '{"recipe": NaN}'])
    def test_a_description_that_is_none_is_refused(self, tmp_path, ours):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pa.table({"x": [1.0, 2.0], "action": [1.0, 2.0]}).replace_schema_metadata({b"worldmodel": ours.encode()})
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(InvalidFileError, match=r"a\.parquet"):
            from_parquet(tmp_path / "a.parquet", tmp_path / "store")


class TestExport:
    @pytest.fixture
    def store(self, tmp_path):
        pytest.importorskip("pyarrow")
        return converted(tmp_path, COLUMN)

    def test_an_export_removes_what_an_interrupted_one_left(self, store, tmp_path):
        left = tmp_path / ".a.parquet.12345.tmp"
        left.write_bytes(b"half")
        to_parquet(store, tmp_path / "a.parquet")
        assert sorted(one.name for one in tmp_path.iterdir()) == ["a.parquet", "store"]

    def test_two_exports_of_one_file_exclude_each_other(self, store, tmp_path):
        import threading

        errors = []

        def export():
            try:
                to_parquet(store, tmp_path / "a.parquet")
            except LockedError as error:
                errors.append(error)

        with locked(tmp_path, name=".a.parquet.lock"):
            thread = threading.Thread(target=export)
            thread.start()
            thread.join()
        assert len(errors) == 1

    def test_a_full_disk_names_the_file(self, store, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("worldmodel.data.formats.parquet.os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*a\.parquet"):
            to_parquet(store, tmp_path / "a.parquet")
        assert not list(tmp_path.glob("*.parquet*"))
        assert not list(tmp_path.glob(".a.parquet.*.tmp"))


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "7", '{"codebase_version": "v3.0", "features": 7}'])
def test_a_description_of_lerobot_that_is_none_is_one_error(tmp_path, content):
    for package in ("pyarrow", "av"):
        pytest.importorskip(package)
    write_lerobot(tmp_path / "robot")
    (tmp_path / "robot" / "meta" / "info.json").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidFileError, match=r"info\.json"):
        from_lerobot(tmp_path / "robot", tmp_path / "store")


class TestHdf5:
    @pytest.mark.parametrize("group", ["", "data/demo_0/"])
    def test_data_that_were_never_written_do_not_fill_the_memory(self, tmp_path, group):
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            for name in ("obs", "actions"):
                file.create_dataset(f"{group}{name}", (10**10, 3), "f8", chunks=(1000, 3))
        with pytest.raises(InvalidFileError, match=r"'.*' has 240,000,000,000 bytes, but only 0"):
            from_hdf5(tmp_path / "a.hdf5", tmp_path / "store")

    def test_an_episode_that_lacks_a_data_set_is_named(self, tmp_path):
        h5py = pytest.importorskip("h5py", reason="needs worldmodel[formats]")
        with h5py.File(tmp_path / "log.hdf5", "w") as file:
            file["demo_0/observations"], file["demo_0/actions"] = np.zeros((5, 2)), np.zeros((5, 1))
            file["demo_1/observations"] = np.zeros((5, 2))
        with pytest.raises(ValueError, match=r"log\.hdf5, demo_1: expected a data set 'actions', got observations"):
            from_hdf5(tmp_path / "log.hdf5", tmp_path / "s")

    @pytest.mark.parametrize("values", [np.array([b"left"] * 5), np.zeros(5, complex), np.zeros(5, [("x", "f4")])])
    def test_actions_that_are_no_numbers_are_refused_instead_of_left_out(self, tmp_path, values):
        h5py = pytest.importorskip("h5py", reason="needs worldmodel[formats]")
        with h5py.File(tmp_path / "log.hdf5", "w") as file:
            file["observations"], file["actions"] = np.zeros((5, 2)), values
        with pytest.raises(ValueError, match=r"log\.hdf5, row 0: expected numbers in 'actions', got "):
            from_hdf5(tmp_path / "log.hdf5", tmp_path / "s")

    def test_a_digit_that_is_no_number_is_a_name(self, tmp_path):
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            for name in ("run1²", "run2²"):
                file[f"data/{name}/obs"], file[f"data/{name}/actions"] = COLUMN, COLUMN
        assert len(from_hdf5(tmp_path / "a.hdf5", tmp_path / "store")) == 2
