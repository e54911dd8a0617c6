"""What `append` accepts: everything that is read back as it was given, and nothing else."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces
from toy_data import ACTION, OBSERVATION, labelled_episode, write_store

from worldmodel.data import EpisodeStore, repair, verify
from worldmodel.data import store as store_module


class Index:
    def __index__(self):
        return 7


def with_id(episode_id, **changes):
    return dataclasses.replace(labelled_episode(1, 4), episode_id=episode_id, **changes)


@pytest.mark.parametrize("wrong", [np.float64(7), 7.0, True, np.bool_(True), "07", "7", b"7", None, 7j, np.array([7]), [7]])
def test_ids_and_seeds_that_are_not_integers_are_refused(wrong):
    with pytest.raises(TypeError, match="episode_id: expected an integer"):
        with_id(wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match="seed: expected an integer"):
            with_id(7, seed=wrong)


@pytest.mark.parametrize("right", [7, np.int64(7), np.uint8(7), np.array(7), Index()])
def test_integers_of_every_kind_are_the_same_id_and_seed(tmp_path, right):
    store = write_store(tmp_path, [with_id(right, seed=right)])
    assert type(with_id(right).episode_id) is int
    assert store.fingerprint == write_store(tmp_path / "other", [with_id(7, seed=7)]).fingerprint
    assert verify(tmp_path) == []
    back = EpisodeStore.open(tmp_path).read(0)
    assert (back.episode_id, back.seed) == (7, 7)


def test_ids_and_seeds_that_do_not_fit_the_file_are_refused():
    for wrong in (2**63, -(2**63) - 1, 2**64):
        with pytest.raises(ValueError, match="episode_id: expected"):
            with_id(wrong)
    for wrong in (-1, 2**63):
        with pytest.raises(ValueError, match="seed: expected"):
            with_id(0, seed=wrong)


def test_failures_have_integer_ids(tmp_path):
    store = write_store(tmp_path, [])
    for wrong in (True, 1.0, "1"):
        with pytest.raises(TypeError, match="episode_id: expected an integer"):
            store.record_failures([{"episode_id": wrong, "seed": 1, "error": "e"}])
    store.record_failures([{"episode_id": np.int64(3), "seed": np.int64(5), "error": "e"}])
    assert EpisodeStore.open(tmp_path).failures == [{"episode_id": 3, "seed": 5, "error": "e"}]


def box():
    return spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize("keys", [(0, 1), (1, 2), (1,), ("a", 0)], ids=str)
@pytest.mark.parametrize("where", ["observation_space", "action_space"])
@pytest.mark.parametrize("depth", [0, 1])
def test_keys_that_are_not_strings_are_refused_before_anything_is_written(tmp_path, keys, where, depth):
    space = spaces.Dict()
    space.spaces = dict.fromkeys(keys, box())  # as spaces.Dict({0: ..., 1: ...}) has them
    for _ in range(depth):
        space = spaces.Tuple([space])
    given = {"observation_space": OBSERVATION, "action_space": ACTION, where: space}
    with pytest.raises(TypeError, match="key"):
        EpisodeStore.create(tmp_path / "store", **given)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "rewards",
    [
        np.array([1, 2, None, 4]),
        [1, 2, None, 4],
        [1, 2, "3", 4],
        np.array(["1", "2", "3", "4"]),
        np.array([1 + 0j, 2 + 3j, 3, 4]),
        np.array([1, 2, 3, 4], object),
        np.array([1, 2, 3, 4], "datetime64[s]"),
        np.full(4, np.finfo(np.longdouble).max),
        np.full(4, 2**63 - 1),
    ],
    ids=lambda value: str(getattr(value, "dtype", "list")),
)
def test_rewards_that_are_not_real_numbers_are_refused_and_nothing_is_written(tmp_path, rewards):
    store = write_store(tmp_path, [labelled_episode(0, 3)])
    with pytest.raises(ValueError, match="episode 7 rewards: expected"):
        store.append([with_id(7, rewards=rewards)])
    assert store.episode_ids.tolist() == [0]
    assert len(list((tmp_path / "shards").iterdir())) == 1


@pytest.mark.parametrize("rewards", [[1, 2, 3, 4], [True, False, True, True], np.float16([1, 2, 3, 4]), np.uint8([1, 2, 3, 4])])
def test_rewards_of_every_real_dtype_are_kept(tmp_path, rewards):
    store = write_store(tmp_path, [with_id(7, rewards=rewards)])
    np.testing.assert_array_equal(store.read(0).rewards, np.asarray(rewards, dtype=np.float64))
    assert verify(tmp_path) == []


@pytest.mark.parametrize("name", ["terminations", "truncations"])
@pytest.mark.parametrize("flags", [[0, 0, 0, 0.5], [0, 0, 0, 2], ["", "", "", "False"], [None, None, None, 1], [0, 0, 0, 1j]])
def test_flags_that_are_not_boolean_are_refused(tmp_path, name, flags):
    store = write_store(tmp_path, [])
    with pytest.raises(ValueError, match=f"episode 7 {name}: expected"):
        store.append([with_id(7, **{name: flags})])


def test_flags_of_zeros_and_ones_are_kept(tmp_path):
    store = write_store(tmp_path, [with_id(7, terminations=np.uint8([0, 0, 0, 1]))])
    assert store.read(0).terminations.tolist() == [False, False, False, True]


def test_a_shard_that_does_not_read_back_is_no_success(tmp_path, monkeypatch):
    store = write_store(tmp_path, [labelled_episode(0, 3)])
    write = store_module.write_bytes

    def flipped(path, data):
        write(path, data[:-1] + bytes([data[-1] ^ 1]) if "shards" in str(path) else data)

    monkeypatch.setattr(store_module, "write_bytes", flipped)
    with pytest.raises(OSError, match="read back"):
        store.append([labelled_episode(1, 3)])
    monkeypatch.undo()
    assert store.episode_ids.tolist() == [0]
    assert verify(tmp_path) == []
    store.append([labelled_episode(1, 3)])
    assert EpisodeStore.open(tmp_path).episode_ids.tolist() == [0, 1]


def test_an_interruption_between_any_two_steps_never_records_a_shard_twice(tmp_path):
    """Ctrl-C at every line of the store's own code; the writer then goes on as after any exception."""
    import sys

    def interrupted_at(line, path):
        store, seen = write_store(path, []), 0

        def trace(frame, event, argument):
            nonlocal seen
            if frame.f_code.co_filename != store_module.__file__:
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()  # of coverage
        sys.settrace(trace)
        try:
            store.append([labelled_episode(0, 3)])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        store.append_missing([labelled_episode(0, 3)])
        assert store.episode_ids.tolist() == [0]
        assert EpisodeStore.open(path).episode_ids.tolist() == [0]
        assert verify(path) == []
        return seen >= line

    line = 1
    while interrupted_at(line, tmp_path / str(line)):
        line += 1
    assert line > 10


def rewrite_manifest(path, change):
    manifest = path / "manifest.json"
    import json

    content = json.loads(manifest.read_bytes())
    stamp = {name: content.pop(name) for name in ("format", "version")}
    del content["checksum"]
    change(content)
    content = {**stamp, "checksum": store_module._checksum(content), **content}
    manifest.write_text(json.dumps(content), encoding="utf-8")


def test_a_manifest_that_lists_a_shard_or_an_episode_twice_is_refused_and_repaired(tmp_path):
    def twice(content):
        content["shards"].append(dict(content["shards"][0]))

    def same_id(content):
        content["shards"][1]["episode_ids"] = content["shards"][0]["episode_ids"]

    for name, change in (("shard", twice), ("id", same_id)):
        path = tmp_path / name
        write_store(path, [labelled_episode(0, 3)]).append([labelled_episode(1, 3)])
        rewrite_manifest(path, change)
        with pytest.raises(ValueError, match=r"manifest\.json: expected .*once"):
            EpisodeStore.open(path)
        assert verify(path)[0].kind == "manifest"
        repair(path)
        assert verify(path) == []
        assert EpisodeStore.open(path).episode_ids.tolist() == [0, 1]
