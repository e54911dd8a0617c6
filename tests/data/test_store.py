"""Episodes on disk: round trip, windows, damage and repair, killed writers."""

import json
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from gymnasium import spaces
from toy_envs import NESTED_ACTION, NESTED_OBSERVATION, nested_env

from worldmodel.data import EnvConfig, Episode, EpisodeCollection, EpisodeStore, repair, rollouts, verify
from worldmodel.data import store as store_module
from worldmodel.runtime import files
from worldmodel.spaces import leaf_values, leaves

OBSERVATION = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = spaces.Discrete(3)


def make(episode_id, steps=4, seed=None):
    rng = np.random.default_rng(episode_id)
    last = np.arange(steps) == steps - 1
    return Episode(
        observations=rng.standard_normal((steps + 1, 2)).astype(np.float32),
        actions=rng.integers(3, size=steps),
        rewards=rng.standard_normal(steps),
        terminations=last & (episode_id % 2 == 0),
        truncations=last & (episode_id % 2 == 1),
        episode_id=episode_id,
        seed=seed,
    )


def create(path, *shards, **options):
    store = EpisodeStore.create(path, observation_space=OBSERVATION, action_space=ACTION, **options)
    for ids in shards:
        store.append([make(i, steps=3 + i % 4, seed=100 + i) for i in ids])
    return store


def shard_paths(path):
    return sorted((Path(path) / "shards").glob("*.safetensors"))


def assert_same(one, other):
    for name in ("observations", "actions"):
        left, right = leaf_values(getattr(one, name)), leaf_values(getattr(other, name))
        assert list(left) == list(right)
        for path in left:
            assert left[path].dtype == right[path].dtype, (name, path)
            np.testing.assert_array_equal(left[path], right[path])
    for name in ("rewards", "terminations", "truncations"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert (one.episode_id, one.seed) == (other.episode_id, other.seed)


def flip(path, offset, mask=0xFF):
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


class Killed(BaseException):
    """Simulates ``kill -9``: no code of the library catches it."""


def test_episodes_of_every_kind_of_space_come_back_bit_by_bit(tmp_path):
    episodes = list(rollouts(EnvConfig(nested_env, max_steps=6), episode_ids=range(5), seed=3))
    store = EpisodeStore.create(
        tmp_path, observation_space=NESTED_OBSERVATION, action_space=NESTED_ACTION, recipe={"env": [1, None]}
    )
    store.append(episodes[3:])
    store.append(episodes[:3])
    back = EpisodeStore.open(tmp_path)
    assert (back.observation_space, back.action_space) == (NESTED_OBSERVATION, NESTED_ACTION)
    assert back.recipe == {"env": [1, None]}
    assert back.episode_ids.tolist() == [0, 1, 2, 3, 4]
    for found, given in zip(back, episodes, strict=True):
        assert_same(found, given)
    image = dict(leaves(back.observation_space))["image"]
    assert image.dtype == np.uint8
    assert NESTED_OBSERVATION["image"].contains(back.read(0).observations["image"][0])


def test_a_shard_is_a_safetensors_file_that_the_library_reads(tmp_path):
    store = create(tmp_path, [0, 1])
    tensors = safetensors.numpy.load_file(shard_paths(tmp_path)[0])
    assert set(tensors) == {"observations", "actions", "rewards", "terminations", "truncations"}
    assert len(tensors["observations"]) == store.num_steps + 2
    np.testing.assert_array_equal(tensors["rewards"], np.concatenate([episode.rewards for episode in store]))


def test_ids_lengths_and_seeds_are_in_the_order_of_the_ids(tmp_path):
    store = create(tmp_path, [5, 2], [9, 0])
    for each in (store, EpisodeStore.open(tmp_path)):
        assert each.episode_ids.tolist() == [0, 2, 5, 9]
        assert each.lengths.tolist() == [3, 5, 4, 4]
        assert (len(each), each.num_steps) == (4, 16)
        assert [episode.seed for episode in each] == [100, 102, 105, 109]


def test_a_window_is_the_slice_of_its_episode(tmp_path):
    store = create(tmp_path, [3, 1], [0, 2])
    for index in range(len(store)):
        whole = store.read(index)
        for start in range(len(whole)):
            for stop in range(start + 1, len(whole) + 1):
                window = store.read(index, start, stop)
                np.testing.assert_array_equal(window.observations, whole.observations[start : stop + 1])
                for name in ("actions", "rewards", "terminations", "truncations"):
                    np.testing.assert_array_equal(getattr(window, name), getattr(whole, name)[start:stop])
                assert window.episode_id == whole.episode_id


def test_windows_outside_of_an_episode_raise(tmp_path):
    store = create(tmp_path, [4])
    for start, stop in ((-1, 2), (0, 4), (2, 2), (3, None)):
        with pytest.raises(ValueError, match="window of episode 4: expected 0 <= start < stop <= 3"):
            store.read(0, start, stop)
    for index in (-1, 1):
        with pytest.raises(IndexError, match="expected 0 to 0"):
            store.read(index)


def test_the_fingerprint_depends_on_the_content_and_not_on_the_division_into_shards(tmp_path):
    one = create(tmp_path / "a", [0, 1, 2, 3]).fingerprint
    assert create(tmp_path / "b", [3], [1, 0], [2]).fingerprint == one
    assert EpisodeStore.open(tmp_path / "b").fingerprint == one
    assert create(tmp_path / "c", [0, 1, 2]).fingerprint != one
    other = create(tmp_path / "d", [0, 1, 2])
    other.append([make(3, steps=6, seed=104)])
    assert other.fingerprint != one


def test_invalid_episodes_raise_and_nothing_is_added(tmp_path):
    store = create(tmp_path, [0, 1])
    before = store.fingerprint
    broken = make(7)
    broken.observations[2, 1] = np.nan
    for episodes, message in (
        ([make(6), broken], "episode 7 observations: .* at step 2"),
        ([make(6), make(1)], r"episode_id: .*got \[1\] again"),
        ([make(6), make(6)], r"episode_id: .*got \[6\] again"),
    ):
        with pytest.raises(ValueError, match=message):
            store.append(episodes)
    assert store.fingerprint == EpisodeStore.open(tmp_path).fingerprint == before
    assert verify(tmp_path) == []


def test_failures_are_kept_until_their_episode_succeeds(tmp_path):
    store = create(tmp_path, [0])
    store.record_failures(
        [{"episode_id": 4, "seed": 1, "error": "e", "attempts": 2}, {"episode_id": 2, "seed": None, "error": "f"}]
    )
    expected = [{"episode_id": 2, "seed": None, "error": "f"}, {"episode_id": 4, "seed": 1, "error": "e"}]
    assert store.failures == EpisodeStore.open(tmp_path).failures == expected
    store.append([make(2)])
    assert EpisodeStore.open(tmp_path).failures == expected[1:]


def test_reading_a_window_allocates_memory_for_that_window_only(tmp_path):
    space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    store = EpisodeStore.create(tmp_path, observation_space=space, action_space=ACTION)
    frames = np.zeros((501, 32, 32, 3), np.uint8)
    for i in range(4):
        steps = {"actions": np.zeros(500, int), "rewards": np.zeros(500), "terminations": np.zeros(500, bool)}
        store.append([Episode(observations=frames, **steps, truncations=np.zeros(500, bool), episode_id=i)])
    store = EpisodeStore.open(tmp_path)
    rng = np.random.default_rng(0)
    store.read(0, 0, 8)
    tracemalloc.start()
    for _ in range(200):
        start = int(rng.integers(490))
        store.read(int(rng.integers(4)), start, start + 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 64 * 32 * 32 * 3  # some chunks, of 6 MB


def test_a_store_can_be_pickled(tmp_path):
    store = create(tmp_path, [0, 1])
    assert pickle.loads(pickle.dumps(store)).read(1, 1, 3).rewards.tolist() == store.read(1, 1, 3).rewards.tolist()


def test_a_directory_with_other_files_is_never_changed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="with other files"):
            create(tmp_path, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_an_earlier_store_is_replaced_only_on_request(tmp_path):
    create(tmp_path, [0])
    with pytest.raises(FileExistsError, match="overwrite"):
        create(tmp_path)
    assert len(create(tmp_path, overwrite=True)) == 0
    assert shard_paths(tmp_path) == []


def test_unsupported_spaces_and_ambiguous_names_raise(tmp_path):
    with pytest.raises(TypeError, match="nearest supported"):
        EpisodeStore.create(tmp_path, observation_space=spaces.Text(3), action_space=ACTION)
    twice = spaces.Dict({"a/b": ACTION, "a": spaces.Dict({"b": ACTION})})
    with pytest.raises(ValueError, match="observations/a/b' twice"):
        EpisodeStore.create(tmp_path, observation_space=twice, action_space=ACTION)
    assert os.listdir(tmp_path) == []


def test_opening_a_directory_without_a_store_raises(tmp_path):
    for attempt in (EpisodeStore.open, verify, repair):
        with pytest.raises(FileNotFoundError, match=r"expected the manifest of an episode store, got none$"):
            attempt(tmp_path)


def newer_manifest(path):
    content = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path / "manifest.json").write_text(json.dumps(content | {"version": 3}), encoding="utf-8")


def newer_shards(path):
    (path / "manifest.json").unlink()
    for shard in shard_paths(path):
        shard.write_bytes(shard.read_bytes().replace(b'"version":"1"', b'"version":"3"'))


@pytest.mark.parametrize("attempt", [EpisodeStore.open, verify, repair])
def test_a_newer_version_raises_and_is_left_unchanged(tmp_path, attempt):
    create(tmp_path, [0, 1])
    newer_manifest(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="newer worldmodel wrote it: upgrade"):
        attempt(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_newer_shards_without_a_manifest_are_left_unchanged(tmp_path):
    create(tmp_path, [0, 1])
    newer_shards(tmp_path)
    with pytest.raises(ValueError, match="upgrade worldmodel"):
        repair(tmp_path)
    assert len(shard_paths(tmp_path)) == 1
    assert not (tmp_path / "damaged").exists()


def damages(tmp_path, ids=((0, 1, 2), (3, 4))):
    """Yield pairs (new copy of a store, its paths) without end."""
    create(tmp_path / "whole", *ids)
    for number in range(10**6):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "whole", copy)
        yield copy
        shutil.rmtree(copy)


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_any_flipped_byte_of_a_shard_is_found_and_costs_at_most_one_episode(tmp_path, mask):
    copies = damages(tmp_path)
    size = shard_paths((tmp_path / "whole") if (tmp_path / "whole").exists() else next(copies))[0].stat().st_size
    whole = {episode.episode_id: episode for episode in EpisodeStore.open(tmp_path / "whole")}
    for offset in range(0, size, 13):
        copy = next(copies)
        shard = shard_paths(copy)[0]
        flip(shard, offset, mask)
        problems = verify(copy)
        assert [problem.shard for problem in problems] == [shard.name], offset
        lost = set(problems[0].episode_ids)
        assert len(lost) <= 1
        assert problems[0].kind == ("data" if lost else "header")
        assert [(p.kind, p.episode_ids) for p in repair(copy)] == [(p.kind, p.episode_ids) for p in problems]
        assert verify(copy) == []
        store = EpisodeStore.open(copy)
        assert set(store.episode_ids.tolist()) == set(whole) - lost
        for episode in store:
            assert_same(episode, whole[episode.episode_id])
        assert [file.name for file in (copy / "damaged").iterdir()] == [shard.name]


def test_without_a_manifest_a_flipped_byte_of_a_header_never_makes_wrong_episodes(tmp_path):
    create(tmp_path / "whole", [0, 1, 2], [3, 4], recipe={"env": "toy"})
    whole = {episode.episode_id: episode for episode in EpisodeStore.open(tmp_path / "whole")}
    header = 8 + int.from_bytes(shard_paths(tmp_path / "whole")[0].read_bytes()[:8], "little")
    for offset in range(0, header, 7):
        copy = tmp_path / str(offset)
        shutil.copytree(tmp_path / "whole", copy)
        (copy / "manifest.json").unlink()
        flip(shard_paths(copy)[0], offset, 0x01)
        try:
            repair(copy)
        except ValueError as error:
            assert "upgrade" in str(error)  # noqa: PT017
            continue
        store = EpisodeStore.open(copy)
        assert store.recipe == {"env": "toy"}
        assert {3, 4} <= set(store.episode_ids.tolist()) <= set(whole)  # those that the header still describes
        for episode in store:
            assert_same(episode, whole[episode.episode_id])
        assert verify(copy) == []


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_any_flipped_byte_of_the_manifest_is_found_and_nothing_is_lost(tmp_path, mask):
    copies = damages(tmp_path)
    next(copies)
    whole = EpisodeStore.open(tmp_path / "whole").fingerprint
    for offset in range(0, (tmp_path / "whole" / "manifest.json").stat().st_size, 11):
        copy = next(copies)
        flip(copy / "manifest.json", offset, mask)
        with pytest.raises(ValueError, match=r"manifest.json: expected"):
            EpisodeStore.open(copy)
        assert [problem.kind for problem in verify(copy)] == ["manifest"], offset
        assert [problem.kind for problem in repair(copy)] == ["manifest"]
        assert verify(copy) == []
        assert EpisodeStore.open(copy).fingerprint == whole


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_shard_is_found_on_reading_and_by_verify_and_is_repaired(tmp_path, share):
    create(tmp_path, [0, 1, 2], [3, 4])
    whole = {episode.episode_id: episode for episode in EpisodeStore.open(tmp_path)}
    cut = shard_paths(tmp_path)[0]
    os.truncate(cut, int(share * cut.stat().st_size))
    with pytest.raises(
        ValueError, match=f"{cut.name}: expected a complete shard, got a file that was cut short; run .* repair"
    ):
        list(EpisodeStore.open(tmp_path))
    (problem,) = verify(tmp_path)
    assert (problem.shard, problem.kind) == (cut.name, "cut")
    assert len(repair(tmp_path)) == 1
    assert verify(tmp_path) == []
    store = EpisodeStore.open(tmp_path)
    assert set(store.episode_ids.tolist()) == set(whole) - set(problem.episode_ids) >= {3, 4}
    for episode in store:
        assert_same(episode, whole[episode.episode_id])


def test_a_missing_shard_is_found_on_reading_and_by_verify_and_its_episodes_can_be_added_again(tmp_path):
    create(tmp_path, [0, 1, 2], [3, 4])
    whole = EpisodeStore.open(tmp_path).fingerprint
    missing = shard_paths(tmp_path)[1]
    missing.unlink()
    with pytest.raises(ValueError, match=f"{missing.name}: expected a complete shard, got no file; run .* repair"):
        EpisodeStore.open(tmp_path).read(4)
    (problem,) = verify(tmp_path)
    assert (problem.shard, problem.kind, problem.episode_ids) == (missing.name, "missing", (3, 4))
    repair(tmp_path)
    assert verify(tmp_path) == []
    store = EpisodeStore.open(tmp_path)
    assert store.episode_ids.tolist() == [0, 1, 2]
    store.append([make(i, steps=3 + i % 4, seed=100 + i) for i in (3, 4)])
    assert store.fingerprint == whole


def test_a_lost_manifest_is_rebuilt_from_the_shards_alone(tmp_path):
    whole = create(tmp_path, [0, 1, 2], [3, 4], recipe={"env": "toy"}).fingerprint
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"its shards exist: .* repair"):
        EpisodeStore.open(tmp_path)
    assert [problem.kind for problem in verify(tmp_path)] == ["manifest"]
    repair(tmp_path)
    store = EpisodeStore.open(tmp_path)
    assert (store.fingerprint, store.recipe) == (whole, {"env": "toy"})


def test_without_a_manifest_a_shard_with_a_damaged_header_is_restored_and_its_file_is_set_aside(tmp_path):
    create(tmp_path, [0, 1, 2], [3, 4])
    (tmp_path / "manifest.json").unlink()
    flip(shard_paths(tmp_path)[0], 30)
    assert sorted(problem.kind for problem in verify(tmp_path)) == ["header", "manifest"]
    repair(tmp_path)
    assert EpisodeStore.open(tmp_path).episode_ids.tolist() == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_an_orphan_is_adopted_by_repair_and_by_the_next_append(tmp_path):
    create(tmp_path / "a", [0], [1, 2])
    for way in (lambda path: repair(path), lambda path: EpisodeStore.open(path).append([make(7)])):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        store = create(tmp_path / "only", [0])
        shutil.copy(store.path / "manifest.json", tmp_path / "b")
        assert EpisodeStore.open(tmp_path / "b").episode_ids.tolist() == [0]
        assert [problem.kind for problem in verify(tmp_path / "b")] == ["orphan"]
        way(tmp_path / "b")
        assert EpisodeStore.open(tmp_path / "b").episode_ids.tolist()[:3] == [0, 1, 2]
        assert verify(tmp_path / "b") == []
        shutil.rmtree(tmp_path / "b")
        shutil.rmtree(tmp_path / "only")


def test_repair_keeps_the_undamaged_episodes_of_a_damaged_orphan(tmp_path):
    create(tmp_path / "a", [0], [1, 2, 3])
    shutil.copy(create(tmp_path / "only", [0]).path / "manifest.json", tmp_path / "a")
    flip(shard_paths(tmp_path / "a")[1], -1)  # the last byte: a flag of the last episode
    (problem,) = repair(tmp_path / "a")
    assert (problem.kind, problem.episode_ids) == ("orphan", (3,))
    assert EpisodeStore.open(tmp_path / "a").episode_ids.tolist() == [0, 1, 2]
    assert verify(tmp_path / "a") == []


def test_a_shard_of_another_collection_is_not_adopted(tmp_path):
    create(tmp_path / "a", [0])
    create(tmp_path / "b", [1], recipe={"env": "other"})
    shutil.copy(shard_paths(tmp_path / "b")[0], tmp_path / "a" / "shards")
    store = EpisodeStore.open(tmp_path / "a")
    assert store.adopt() == []
    (problem,) = repair(tmp_path / "a")
    assert "belongs to another collection" in problem.detail
    assert EpisodeStore.open(tmp_path / "a").episode_ids.tolist() == [0]


def test_leftover_temporaries_are_found_and_removed(tmp_path):
    create(tmp_path, [0])
    for folder in (tmp_path, tmp_path / "shards"):
        (folder / ".x.safetensors.1.tmp").write_bytes(b"half")
    assert [problem.kind for problem in verify(tmp_path)] == ["temporary", "temporary"]
    repair(tmp_path)
    assert verify(tmp_path) == []


def killing(monkeypatch, count):
    """Kill at the ``count``-th file operation of a writer, counted over flushes, renames and copies."""
    left = [count]

    def wrap(owner, name):
        original = getattr(owner, name)

        def operation(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            if left[0] < 0:
                raise Killed  # killed writers do not clean up either
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, operation)

    wrap(files.os, "fsync")
    wrap(files.os, "replace")
    wrap(shutil, "copy2")
    wrap(Path, "unlink")


def killed_at_every_moment(monkeypatch, action):
    """Yield after each run of ``action`` that was killed one moment later than the last, until one gets through."""
    for count in range(1, 100):
        with monkeypatch.context() as patched:
            killing(patched, count)
            try:
                action()
            except Killed:
                finished = False
            else:
                finished = True
        yield
        if finished:
            assert count > 5
            return
    raise AssertionError("it never got through")


def test_a_writer_killed_at_any_time_loses_no_complete_shard(tmp_path, monkeypatch):
    copies = damages(tmp_path)
    copy = [next(copies)]
    for _ in killed_at_every_moment(monkeypatch, lambda: EpisodeStore.open(copy[0]).append([make(5), make(6)])):
        shards_there = len(shard_paths(copy[0]))
        store = EpisodeStore.open(copy[0])
        store.adopt()
        assert store.episode_ids.tolist()[:5] == [0, 1, 2, 3, 4]
        assert len(store) == (7 if shards_there == 3 else 5)
        for episode in store:
            assert len(episode.observations) == len(episode) + 1
        repair(copy[0])
        assert verify(copy[0]) == []
        copy[0] = next(copies)


def test_a_repair_killed_at_any_time_can_be_run_again(tmp_path, monkeypatch):
    for offset, lost in ((20, set()), (-1, {2})):
        copies = damages(tmp_path / str(offset))

        def damaged():
            copy = next(copies)  # noqa: B023
            flip(shard_paths(copy)[0], offset)  # noqa: B023
            return copy

        copy = [damaged()]
        whole = {episode.episode_id: episode for episode in EpisodeStore.open(tmp_path / str(offset) / "whole")}
        for _ in killed_at_every_moment(monkeypatch, lambda: repair(copy[0])):  # noqa: B023
            repair(copy[0])
            assert verify(copy[0]) == []
            store = EpisodeStore.open(copy[0])
            assert set(store.episode_ids.tolist()) == set(whole) - lost
            for episode in store:
                assert_same(episode, whole[episode.episode_id])
            assert list((copy[0] / "damaged").iterdir())
            copy[0] = damaged()


@pytest.mark.parametrize("name", ["../../victim.safetensors", "/victim.safetensors", "shard.txt"])
def test_a_manifest_cannot_name_files_outside_the_store(tmp_path, name):
    victim = tmp_path / "victim.safetensors"
    victim.write_text("somebody else's", encoding="utf-8")
    store = create(tmp_path / "a" / "s", [0])
    manifest = store.path / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["shards"][0]["name"] = name
    bare = {key: value for key, value in content.items() if key not in ("format", "version", "checksum")}
    content["checksum"] = store_module._checksum(bare)
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="expected the name of a shard"):
        EpisodeStore.open(store.path)
    repair(store.path)
    assert victim.read_text(encoding="utf-8") == "somebody else's"


def test_reading_a_damaged_episode_raises(tmp_path):
    store = create(tmp_path / "s", [0, 1])
    (path,) = shard_paths(tmp_path / "s")
    flip(path, os.path.getsize(path) - 1)
    with pytest.raises(ValueError, match=r"expected an undamaged episode 1, got a damaged one; run `worldmodel store repair`"):
        list(store)


def test_other_files_in_a_store_prevent_its_replacement(tmp_path):
    create(tmp_path / "s", [0])
    (tmp_path / "s" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"got also 'notes.txt'"):
        create(tmp_path / "s", overwrite=True)
    assert len(EpisodeStore.open(tmp_path / "s")) == 1


def test_terminated_tells_how_each_episode_ended_in_the_order_of_the_ids(tmp_path):
    store = create(tmp_path / "s", [7, 4, 3], [2, 8], [5])
    assert store.terminated().tolist() == [True, False, True, False, False, True] == [i % 2 == 0 for i in store.episode_ids]
    assert create(tmp_path / "empty").terminated().tolist() == []
    many = EpisodeCollection([store, create(tmp_path / "t", [0, 1, 2])], min_length=4)
    assert many.terminated().tolist() == [bool(episode.terminations[-1]) for episode in many]


def test_terminated_reads_one_byte_of_each_episode(tmp_path, monkeypatch):
    store = create(tmp_path, [0, 1], [2])
    monkeypatch.setattr(EpisodeStore, "read", None)
    assert store.terminated().tolist() == [True, False, True]
    first, second = shard_paths(tmp_path)
    second.write_bytes(second.read_bytes()[:-40])
    expected = "expected a complete shard, got"
    with pytest.raises(ValueError, match=f"{second.name}: {expected} a file that was cut short; run .* repair"):
        store.terminated()
    first.unlink()
    with pytest.raises(ValueError, match=f"{first.name}: {expected} no file; run .* repair"):
        store.terminated()
