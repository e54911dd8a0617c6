"""Sizes, limits and alignment of stores, and what is said of long episodes."""

import dataclasses
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from gymnasium import spaces
from toy_data import labelled_episode, write_store

from worldmodel.data import Episode, EpisodeStore, collect, remains, repair, summarise_store, verify
from worldmodel.data.formats.arrays import ArraySource
from worldmodel.data.formats.config import Columns, ConversionConfig
from worldmodel.data.formats.rows import Rows
from worldmodel.data.formats.splitting import Episodes
from worldmodel.data.runner import LONG_EPISODE, _warn_long
from worldmodel.data.shard_table import MAX_STEPS, NO_SEED, Shard


def episode(number, observations, length):
    """Observations with actions and rewards of 0, and a termination."""
    ends = np.arange(length) == length - 1
    return Episode(
        observations=observations,
        actions=np.zeros(length, np.int64),
        rewards=np.zeros(length),
        terminations=ends,
        truncations=ends & False,
        episode_id=number,
    )


def test_the_header_of_a_shard_ends_where_numbers_of_8_bytes_may_begin(tmp_path):
    for number in range(8):  # names of different lengths
        box = spaces.Dict({"x" * (number + 1): spaces.Box(-1, 1, (1,))})
        store = EpisodeStore.create(tmp_path / str(number), observation_space=box, action_space=spaces.Discrete(2))
        store.append([episode(0, {"x" * (number + 1): np.zeros((3, 1), np.float32)}, 2)])
        (path,) = (tmp_path / str(number) / "shards").glob("*.safetensors")
        assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


def test_the_size_of_episodes_is_that_of_their_arrays(tmp_path):
    episodes = [labelled_episode(number, 3 + number) for number in range(3)]
    store = write_store(tmp_path / "store", episodes)
    arrays = [array for one in store for array in store._schema.arrays(one).values()]
    assert store._schema.unpacked_bytes(store.lengths) == sum(array.nbytes for array in arrays)


def shard(**fields):
    one = np.ones(1, dtype=np.int64)
    given = {"episode_ids": one, "lengths": one, "seeds": one, "checksums": one, **fields}
    return Shard(name="a", size=1, **given)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"lengths": np.array([MAX_STEPS])}, False),
        ({"lengths": np.array([MAX_STEPS + 1])}, True),
        ({"lengths": np.array([1])}, False),
        ({"lengths": np.array([0])}, True),
        ({"seeds": np.array([NO_SEED])}, False),
        ({"seeds": np.array([NO_SEED - 1])}, True),
    ],
)
def test_lengths_and_seeds_lie_in_their_ranges(fields, wrong):
    if wrong:
        with pytest.raises(ValueError, match=r"a: expected lengths from 1 to .* and seeds of at least"):
            shard(**fields)
    else:
        assert shard(**fields).starts.tolist() == [0]


def test_two_strangers_are_moved_away_by_one_repair_and_two_by_the_next(tmp_path):
    path = write_store(tmp_path / "store", [labelled_episode(0, 3)]).path
    for number in range(2):
        for name in "ab":
            (path / "shards" / f"{name}{number}.safetensors").mkdir()
        repair(path)
    assert verify(path) == []
    assert sorted(one.name for one in (path / "damaged").iterdir()) == [f"{n}{i}.safetensors" for n in "ab" for i in (0, 1)]


def test_a_manifest_of_a_newer_version_is_not_repaired(tmp_path):
    path = write_store(tmp_path / "store", [labelled_episode(0, 3)]).path
    manifest = next(path.glob("*.json"))
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**content, "version": content["version"] + 1}), encoding="utf-8")
    before = manifest.read_bytes()
    with pytest.raises(ValueError, match="upgrade"):
        repair(path)
    assert manifest.read_bytes() == before


def test_a_long_episode_is_told_with_the_memory_that_it_takes():
    with pytest.warns(RuntimeWarning, match=r"env: episode 7 has taken 100,000 steps \(95 MiB\) without an end"):
        _warn_long(7, 1000)
    assert pytest.approx(95, abs=0.5) == 1000 * LONG_EPISODE / 2**20


@pytest.mark.parametrize(("lengths", "frames"), [([24], [*range(0, 20, 2)]), ([4], [0, 1, 2, 3, 4]), ([4, 6], [2, 3])])
def test_pictures_of_a_store_are_of_one_episode_from_its_start_or_of_the_middle_of_several(tmp_path, lengths, frames):
    box = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    store = EpisodeStore.create(tmp_path / "store", observation_space=box, action_space=spaces.Discrete(2))
    for number, length in enumerate(lengths):
        images = np.zeros((length + 1, 16, 16, 3), np.uint8) + np.arange(length + 1, dtype=np.uint8)[:, None, None, None]
        store.append([episode(number, images, length)])
    (found,) = summarise_store(store).frames.values()
    assert found[:, 0, 0, 0].tolist() == frames


def test_the_identity_of_arrays_is_their_checksum():
    array = np.arange(200_000, dtype=np.int32)
    assert ArraySource({"x": array}).identity() == {"x": ["int32", [200_000], zlib.crc32(array.tobytes())]}
    other = np.arange(3.0)
    text = f"float64 (3,) {zlib.crc32(other.tobytes())}".encode()
    assert ArraySource({"x": [other]}).identity() == {"x": [1, zlib.crc32(text)]}
    assert ArraySource({"x": [other, other]}).identity() == {"x": [2, zlib.crc32(text, zlib.crc32(text))]}


class Pieces:
    """A source of two pieces of one episode."""

    format, described, images = "pieces", "pieces", {}

    def __init__(self, *columns):
        self._columns = columns

    def names(self):
        return ["x"]

    def pieces(self, names):
        for first, column in zip((0, 2), self._columns, strict=True):
            yield Rows({"x": np.array(column)}, "pieces", first=first, begins=first == 0), first + 2


def recordings(source, **config):
    columns = Columns(observation=("x",), action=(), reward="", termination="", truncation="", episode="", time="")
    return Episodes(source, columns, ConversionConfig(**config), max_steps=100)


def test_an_episode_whose_dtype_changes_is_named_by_its_first_row():
    with pytest.raises(ValueError, match=r"pieces, row 0: expected 'x' to be int64 of shape \(\) in all rows, got float64"):
        list(recordings(Pieces([1, 2], [3.5, 4.5])))
    (whole,) = recordings(Pieces([1, 2], [3, 4]))
    assert whole.values["x"].tolist() == [1, 2, 3, 4]
    assert not whole.fragment


def test_parts_of_a_split_episode_are_fragments_and_whole_ones_are_not():
    found = list(recordings(Pieces([1.0, 2.0], [np.nan, 4.0]), missing="split"))
    assert [(one.values["x"].tolist(), one.fragment) for one in found] == [([1.0, 2.0], True)]
    split = recordings(Pieces([1.0, 2.0, np.nan, 3.0], [4.0, 5.0]), missing="split")
    assert [(one.values["x"].tolist(), one.fragment) for one in split] == [([1.0, 2.0], True), ([3.0, 4.0, 5.0], True)]


def test_indices_of_a_store_count_from_both_ends(tmp_path):
    store = write_store(tmp_path / "store", [labelled_episode(number, 4) for number in range(3)])
    assert [store[index].episode_id for index in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for index in (3, -4):
        with pytest.raises(IndexError):
            store[index]


def test_the_packed_sizes_in_a_header_are_found():
    text = '{"episode_ids": "1 2", "lengths": "3 4", "packed": {"observations": "5 6"}}'
    assert remains._columns(text) == {"episode_ids": "1 2", "lengths": "3 4", "packed": '{"observations": "5 6"}'}
    assert remains._columns('"lengths": "3"') == {"lengths": "3"}


def test_a_table_that_says_more_than_its_file_holds_allocates_nothing(tmp_path):
    store = write_store(tmp_path / "store", [labelled_episode(0, 3)])
    (known,) = store._index.shards
    claimed = dataclasses.replace(known, lengths=np.array([10**7]))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"cut short|damaged"):
        store._schema.read(tmp_path / "store" / "shards" / known.name, claimed, 0, 0, 10**7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_a_store_holds_an_episode_of_the_same_content_only(tmp_path):
    store = write_store(tmp_path / "store", [labelled_episode(1, 3)])
    assert store.holds(labelled_episode(1, 3))
    for other in (labelled_episode(1, 4), labelled_episode(0, 3), labelled_episode(2, 3)):
        assert not store.holds(other)


def test_one_episode_can_be_collected_and_none_cannot(tmp_path):
    assert len(collect("CartPole-v1", out=tmp_path / "one", num_episodes=1)) == 1
    with pytest.raises(ValueError, match="num_episodes: expected an integer >= 1, got 0"):
        collect("CartPole-v1", out=tmp_path / "none", num_episodes=0)
    assert not (tmp_path / "none").exists()


def test_a_dict_space_with_keys_in_any_order_is_stored_in_alphabetical_order(tmp_path):
    box = spaces.Box(-1, 1, (1,))
    parts = spaces.Tuple([spaces.Dict(y=box, x=spaces.Discrete(3))])
    space = spaces.Dict(b=box, a=parts)  # keywords keep their order
    store = EpisodeStore.create(tmp_path / "data", observation_space=space, action_space=spaces.Dict(v=box, u=box))
    values = {"b": np.ones((3, 1), np.float32), "a": ({"y": np.zeros((3, 1), np.float32), "x": np.arange(3)},)}
    given = dataclasses.replace(
        episode(0, values, 2), actions={"v": np.zeros((2, 1), np.float32), "u": np.ones((2, 1), np.float32)}
    )
    store.append([given])
    opened = EpisodeStore.open(tmp_path / "data")
    assert opened.observation_space == space
    assert list(opened.observation_space.spaces) == list(store.observation_space.spaces) == ["a", "b"]
    found = opened.read(0)
    np.testing.assert_array_equal(found.observations["a"][0]["x"], [0, 1, 2])
    np.testing.assert_array_equal(found.actions["u"], [[1], [1]])
    assert verify(tmp_path / "data") == []
