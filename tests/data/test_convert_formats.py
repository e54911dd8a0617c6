"""Parquet, HDF5, LeRobot and video files to stores, and stores to parquet."""

import numpy as np
import pytest
from gymnasium import spaces
from recorded_files import bars, write_lerobot, write_video

from worldmodel.data import (
    Columns,
    ConversionConfig,
    Episode,
    EpisodeStore,
    describe_conversion,
    from_arrays,
    from_hdf5,
    from_lerobot,
    from_parquet,
    from_video,
    to_parquet,
)
from worldmodel.data.formats.video import Video

for package in ("pyarrow", "h5py", "av"):
    pytest.importorskip(package, reason="needs worldmodel[formats]")


def toy_store(path, *, steps=(3, 7, 1)):
    """A store of every kind of leaf, with seeds on some episodes, and ids with gaps."""
    rng = np.random.default_rng(0)
    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (16, 12, 3), np.uint8),
            "gear": spaces.Discrete(4, start=-1),
            "inner": spaces.Dict({"x": spaces.Box(-9, 9, (2, 2), np.float32), "y": spaces.Box(-9, 9, (), np.float64)}),
            "lamps": spaces.MultiBinary(3),
        }
    )
    action_space = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float64), "b": spaces.MultiDiscrete([3, 2])})
    store = EpisodeStore.create(path, observation_space=observation_space, action_space=action_space, recipe={"robot": "r2"})
    for number, length in enumerate(steps):
        rows = length + 1
        episode = Episode(
            observations={
                "camera": rng.integers(0, 256, (rows, 16, 12, 3), dtype=np.uint8),
                "gear": rng.integers(-1, 3, rows),
                "inner": {"x": rng.normal(size=(rows, 2, 2)).astype(np.float32), "y": rng.normal(size=rows)},
                "lamps": rng.integers(0, 2, (rows, 3), dtype=np.int8),
            },
            actions={"a": rng.uniform(-1, 1, (length, 2)), "b": rng.integers(0, 2, (length, 2))},
            rewards=rng.normal(size=length),
            terminations=np.arange(length) == (length - 1 if number else -1),
            truncations=np.zeros(length, bool),
            episode_id=3 * number,
            seed=None if number == 1 else 2**62 + number,
        )
        store.append([episode])
    return store


@pytest.mark.parametrize("group", [1, 2**25])
def test_a_store_comes_back_from_parquet_without_loss(tmp_path, monkeypatch, group):
    monkeypatch.setattr("worldmodel.data.formats.parquet.GROUP_BYTES", group)
    monkeypatch.setattr("worldmodel.data.formats.parquet.BATCH_BYTES", 3 * group)
    store = toy_store(tmp_path / "s")
    back = from_parquet(to_parquet(store, tmp_path / "s.parquet"), tmp_path / "t")
    assert back.fingerprint == store.fingerprint
    assert (back.observation_space, back.action_space) == (store.observation_space, store.action_space)
    assert back.recipe == store.recipe
    assert [episode.seed for episode in back] == [episode.seed for episode in store]


def test_a_store_without_actions_comes_back_from_parquet(tmp_path):
    store = from_arrays(np.arange(8.0)[:, None], out=tmp_path / "s")
    assert from_parquet(to_parquet(store, tmp_path / "s.parquet"), tmp_path / "t").fingerprint == store.fingerprint


def test_a_parquet_file_is_replaced_only_if_requested(tmp_path):
    store = from_arrays(np.arange(8.0)[:, None], out=tmp_path / "s")
    to_parquet(store, tmp_path / "s.parquet")
    with pytest.raises(FileExistsError, match="overwrite"):
        to_parquet(store, tmp_path / "s.parquet")
    to_parquet(store, tmp_path / "s.parquet", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.parquet"]


def test_named_columns_of_parquet_are_converted_like_those_of_other_tools(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(20, 2)).astype(np.float32), "gear": np.arange(20) % 3}
    store = from_arrays(arrays, rng.normal(size=(20, 2)), rng.normal(size=20), out=tmp_path / "s", episodes=np.arange(20) // 10)
    path = to_parquet(store, tmp_path / "s.parquet")
    back = from_parquet(path, tmp_path / "t", columns=Columns())
    assert "dropped" not in describe_conversion(back)
    for index in range(2):
        one, other = store.read(index), back.read(index)
        np.testing.assert_array_equal(one.observations["x"], other.observations["x"])
        np.testing.assert_array_equal(one.observations["gear"], other.observations["gear"])
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert one.truncations.tolist() == other.truncations.tolist()


def test_parquet_may_hold_lists_dates_names_and_missing_values(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    seconds = [0, 1, 2, 3, 4, 5]
    columns = {
        "trial": ["a", "a", "a", "b", "b", "b"],
        "time": pa.array([10**9 * (1_700_000_000 + s) for s in seconds], pa.timestamp("ns")),
        "position": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]] * 2, pa.list_(pa.float32())),
        "action": pa.array([1, 2, None, 3, 4, None], pa.int64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    store = from_parquet(tmp_path / "log.parquet", tmp_path / "s", config=ConversionConfig(max_gap=1.5))
    assert store.lengths.tolist() == [2, 2]
    assert store.read(1).actions.tolist() == [3, 4]
    assert store.action_space == spaces.Discrete(4, start=1)
    assert store.observation_space.dtype == np.float32


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0], [2.0, 3.0]], "expected lists of one length, got lengths 1 and 2"),
        ([{"a": 1}, {"a": 2}], "expected numbers or lists of numbers, got struct"),
        ([1.0, float("inf")], "row 1: expected finite numbers in 'x', got inf"),
        ([1, None], "row 1: expected a number in 'x', got none"),
        (["a", "b"], "row 0: expected numbers in 'x', got mixed types, such as 'a'"),
    ],
)
def test_a_bad_column_of_parquet_is_named(tmp_path, column, message):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": column}), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=rf"log\.parquet.*{message}"):
        from_parquet(tmp_path / "log.parquet", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def write_d4rl(path, rows=100, **others):
    import h5py

    rng = np.random.default_rng(0)
    observations = rng.normal(size=(rows + 1, 4)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = observations[:-1], rng.normal(size=(rows, 2)).astype(np.float32)
        file["rewards"] = np.arange(rows, dtype=np.float32)
        file["terminals"], file["timeouts"] = np.arange(rows) % 40 == 39, np.arange(rows) == rows - 1
        file["infos/qpos"] = rng.normal(size=(rows, 7))
        for name, value in others.items():
            file[name] = value
    return observations


def test_d4rl_files_are_divided_at_terminals_and_timeouts(tmp_path):
    observations = write_d4rl(tmp_path / "d4rl.hdf5")
    store = from_hdf5(tmp_path / "d4rl.hdf5", tmp_path / "s")
    assert store.lengths.tolist() == [39, 39, 19]
    np.testing.assert_array_equal(store.read(1).observations, observations[40:80])
    assert store.observation_space.dtype == np.float32


def test_the_next_observations_of_d4rl_complete_each_episode(tmp_path):
    following = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    observations = write_d4rl(tmp_path / "d4rl.hdf5", next_observations=following)
    store = from_hdf5(tmp_path / "d4rl.hdf5", tmp_path / "s")
    assert store.lengths.tolist() == [40, 40, 20]
    np.testing.assert_array_equal(store.read(1).observations, np.concatenate([observations[40:80], following[79:80]]))
    assert [bool(episode.terminations[-1]) for episode in store] == [True, True, False]
    assert store.read(1).rewards[-1] == 79


@pytest.mark.parametrize("extra", [0, 1])
def test_groups_of_an_hdf5_file_are_episodes_in_natural_order(tmp_path, extra):
    import h5py

    with h5py.File(tmp_path / "robo.hdf5", "w") as file:
        for number in range(12):
            group, steps = file.create_group(f"data/demo_{number}"), 5 + number
            group["obs/eef"] = np.full((steps + extra, 3), number, np.float64) + np.arange(steps + extra)[:, None] / 100
            group["obs/image"] = np.full((steps + extra, 32, 32, 3), number, np.uint8)
            group["actions"] = np.full((steps, 7), number, np.float64)
            group["states"] = np.zeros((steps, 9))
    store = from_hdf5(tmp_path / "robo.hdf5", tmp_path / "s", config=ConversionConfig(resize=16))
    assert store.episode_ids.tolist() == list(range(12))
    assert store.lengths.tolist() == [4 + extra + number for number in range(12)]
    assert store.observation_space["image"].shape == (16, 16, 3)
    assert (store.read(10).observations["image"] == 10).all()
    assert store.read(10).observations["eef"][0, 0] == 10


def test_a_truncated_file_is_refused_by_name(tmp_path):
    write_d4rl(tmp_path / "d.hdf5")
    to_parquet(from_arrays(np.arange(800.0)[:, None], out=tmp_path / "s"), tmp_path / "p.parquet")
    write_video(tmp_path / "v.mp4", bars(20))
    for name, reader in (("d.hdf5", from_hdf5), ("p.parquet", from_parquet), ("v.mp4", from_video)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{name}: expected a complete .* got a damaged one") as raised:
            reader(tmp_path / name, tmp_path / "out")
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "out").exists()


def test_a_lerobot_data_set_becomes_images_and_vectors(tmp_path):
    state, action, images = write_lerobot(tmp_path / "lerobot")
    store = from_lerobot(tmp_path / "lerobot", tmp_path / "s")
    assert store.lengths.tolist() == [7, 5, 10]
    for index, first in enumerate((0, 8, 14)):
        episode = store.read(index)
        rows = slice(first, first + len(episode) + 1)
        np.testing.assert_array_equal(episode.observations["state"], state[rows])
        np.testing.assert_array_equal(episode.actions, action[rows][:-1])
        assert np.abs(episode.observations["images.front"].astype(int) - images[rows]).mean() < 3


def test_another_version_of_lerobot_is_refused(tmp_path):
    write_lerobot(tmp_path / "lerobot", version="v2.1")
    with pytest.raises(ValueError, match=r"expected LeRobot version 3, got v2\.1; convert it"):
        from_lerobot(tmp_path / "lerobot", tmp_path / "s")


def test_a_video_shorter_than_its_table_is_refused(tmp_path):
    write_lerobot(tmp_path / "lerobot")
    write_video(next((tmp_path / "lerobot").rglob("file-001.mp4")), bars(6))
    with pytest.raises(ValueError, match=r"file-001\.mp4: expected at least 11 frames, as the episode of row 14 .* got 6"):
        from_lerobot(tmp_path / "lerobot", tmp_path / "s")
    (tmp_path / "t.csv").write_text("x\n" + "1.5\n" * 12, encoding="utf-8")
    write_video(tmp_path / "v.mp4", bars(9))
    with pytest.raises(ValueError, match=r"t\.csv: expected one video frame for each of its 12 rows, got 9 in .*v\.mp4"):
        from_video(tmp_path / "v.mp4", tmp_path / "s", table=tmp_path / "t.csv")
    assert not (tmp_path / "s").exists()


def test_videos_alone_are_episodes_of_an_action_free_model(tmp_path):
    for number, frames in enumerate((12, 9)):
        write_video(tmp_path / "videos" / f"{number}.mp4", bars(frames, offset=20 * number))
    store = from_video(tmp_path / "videos", tmp_path / "s")
    assert store.lengths.tolist() == [11, 8]
    assert store.action_space.shape == (0,)
    assert np.abs(store.read(1).observations.astype(int) - bars(9, offset=20)).mean() < 3


def test_several_cameras_and_a_table_are_one_observation(tmp_path):
    for camera in ("front", "wrist"):
        for number, frames in enumerate((12, 9)):
            write_video(tmp_path / camera / f"{number}.mp4", bars(frames, offset=20 * (camera == "wrist")))
    rows = [f"{i / 2},{i / 10}" for i in range(21)]
    (tmp_path / "t.csv").write_text("action,x\n" + "\n".join(rows), encoding="utf-8")
    cameras = {"front": tmp_path / "front", "wrist": tmp_path / "wrist"}
    store = from_video(cameras, tmp_path / "s", table=tmp_path / "t.csv", config=ConversionConfig(resize=16))
    assert {name: space.shape for name, space in store.observation_space.items()} == {
        "front": (16, 16, 3),
        "wrist": (16, 16, 3),
        "x": (1,),
    }
    episode = store.read(1)
    assert episode.observations["x"][:, 0].tolist() == [i / 10 for i in range(12, 21)]
    widths = [(episode.observations[name][..., 0].mean(axis=1) > 100).sum(axis=1) for name in cameras]
    assert (widths[1] > widths[0] + 4).all()


def test_frames_are_found_by_their_number_wherever_reading_begins(tmp_path):
    write_video(tmp_path / "v.mp4", bars(40))
    video = Video(tmp_path / "v.mp4")
    assert video.length == 40
    for first, count in ((0, 5), (5, 3), (30, 10), (3, 4), (7, 1)):
        found = video.read(first, count)
        assert ((found[:, 0, :, 0] > 100).sum(axis=1) - np.arange(first + 1, first + count + 1) == 0).all()
    with pytest.raises(ValueError, match="expected at least 41 frames, got 40"):
        video.read(38, 3)
