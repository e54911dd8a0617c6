"""Repair of stores with several faults at a time, and what readers verify."""

import errno
import os
import shutil

import numpy as np
import pytest
from gymnasium import spaces
from test_store import create, flip, make, shard_paths

from worldmodel.data import Episode, EpisodeStore, remains, repair, shards, verify


@pytest.mark.parametrize("place", [30, 200, 420, 500])
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_header_and_a_damaged_manifest_together_lose_nothing(tmp_path, place, number):
    create(tmp_path, *([[0, 1], [2, 3]][: number + 1]))
    manifest = tmp_path / "manifest.json"
    flip(manifest, (place + 400) % manifest.stat().st_size, 0x01)
    flip(shard_paths(tmp_path)[0], place, 0x01)
    repair(tmp_path)
    assert EpisodeStore.open(tmp_path).episode_ids.tolist() == list(range(2 + 2 * number))
    assert verify(tmp_path) == []


@pytest.mark.parametrize("manifest", ["damaged", "missing"])
def test_a_shard_of_another_store_that_sorts_first_is_not_taken_for_the_store(tmp_path, manifest):
    create(tmp_path / "mine", [5, 6], [7, 8, 9])
    other = create(tmp_path / "other", [0], recipe={"other": True})
    shutil.copy(shard_paths(other.path)[0], tmp_path / "mine" / "shards")
    if manifest == "damaged":
        flip(tmp_path / "mine" / "manifest.json", -20, 0x01)
    else:
        (tmp_path / "mine" / "manifest.json").unlink()
    repair(tmp_path / "mine")
    store = EpisodeStore.open(tmp_path / "mine")
    assert (store.episode_ids.tolist(), store.recipe) == ([5, 6, 7, 8, 9], {})
    assert len(list((tmp_path / "mine" / "damaged").iterdir())) == 1


def test_shards_with_each_others_names_are_renamed(tmp_path):
    create(tmp_path, [0, 1], [2, 3], [4])
    one, two, three = shard_paths(tmp_path)
    one.rename(tmp_path / "x")
    two.rename(one)
    three.rename(two)
    (tmp_path / "x").rename(three)
    assert {problem.kind for problem in repair(tmp_path)} == {"misplaced"}
    assert verify(tmp_path) == []
    assert EpisodeStore.open(tmp_path).episode_ids.tolist() == [0, 1, 2, 3, 4]
    assert not (tmp_path / "damaged").exists()


def test_a_bad_sector_is_a_problem_and_the_other_episodes_are_kept(tmp_path, monkeypatch):
    create(tmp_path, [0, 1], [2, 3])
    fill, disk = shards.fill, shard_paths(tmp_path)[0].stat().st_ino

    def bad(file, array):
        if os.fstat(file.fileno()).st_ino == disk and file.tell() > os.fstat(file.fileno()).st_size - 6:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fill(file, array)

    monkeypatch.setattr(shards, "fill", bad)
    (problem,) = verify(tmp_path)
    assert problem.kind == "data"
    assert problem.episode_ids
    repair(tmp_path)
    kept = EpisodeStore.open(tmp_path).episode_ids.tolist()
    assert set(kept) == {0, 1, 2, 3} - set(problem.episode_ids)


def test_what_is_no_regular_file_is_moved_away_and_blocks_nobody(tmp_path):
    store = create(tmp_path, [0])
    folder = tmp_path / "shards"
    os.mkfifo(folder / "a.safetensors")
    (folder / "b.safetensors").mkdir()
    (folder / "c.safetensors").symlink_to("c.safetensors")
    (folder / "d.safetensors").symlink_to("/dev/zero")
    store.append([make(1)])
    assert [problem.kind for problem in verify(tmp_path)] == ["stranger"] * 4
    repair(tmp_path)
    assert verify(tmp_path) == []
    assert EpisodeStore.open(tmp_path).episode_ids.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_a_flip_outside_a_window_and_inside_it_is_found_by_every_reader(tmp_path, name):
    store = create(tmp_path, [0, 1, 2])
    shard = store._index.shards[0]
    leaf = [leaf.name for leaf in store._schema.leaves].index(name)
    path = shard_paths(tmp_path)[0]
    assert store.read(0, 0, 2).episode_id == 0
    flip(path, shard.offsets[leaf], 0x01)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="expected an undamaged episode 0"):
        store.read(0, 0, 2)
    with pytest.raises(ValueError, match="expected an undamaged episode 0"):
        EpisodeStore.open(tmp_path).read(0, 1, 2)
    assert EpisodeStore.open(tmp_path).read(1, 0, 2).episode_id == 1


def test_the_streamed_checksum_is_that_of_the_whole_episode(tmp_path):
    space = spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), np.uint8), "v": spaces.Box(-1, 1, (3,), np.float32)})
    store = EpisodeStore.create(tmp_path, observation_space=space, action_space=spaces.Discrete(3))
    rng = np.random.default_rng(0)
    episodes = []
    for number, steps in enumerate((1, 63, 64, 200)):
        ends = np.arange(steps) == steps - 1
        observations = {
            "image": rng.integers(256, size=(steps + 1, 8, 8, 3), dtype=np.uint8),
            "v": rng.random((steps + 1, 3), dtype=np.float32),
        }
        parts = {"actions": rng.integers(3, size=steps), "rewards": rng.random(steps), "terminations": ends}
        episodes.append(Episode(observations=observations, **parts, truncations=ends & False, episode_id=number))
    store.append(episodes)
    (shard,) = store._index.shards
    for position in range(4):
        store._schema.check(shard_paths(tmp_path)[0], shard, position)
        assert store._schema.checksum(episodes[position]) == shard.checksums[position]


def test_of_two_tables_that_keep_as_many_episodes_the_one_of_the_header_counts(tmp_path):
    mine = create(tmp_path / "mine", [0, 1], recipe={"part": 1})
    other = create(tmp_path / "other", [0], recipe={"part": 2})  # a header of the same length
    (path,) = shard_paths(mine.path)
    flip(path, -1)  # in the data of one episode
    metadata = {name: other._schema.metadata[name] for name in remains.SPACES}
    schema, shard = remains.Remains(metadata).restore(path, [mine._schema, other._schema])
    assert schema.metadata == mine._schema.metadata
    assert shard.episode_ids.tolist() == [0, 1]
