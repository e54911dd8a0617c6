"""Compressed frames in a store: windows, damage and repair, uncompressed shards of version 1."""

import importlib
import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from gymnasium import spaces
from test_store import assert_same, flip, shard_paths
from toy_images import DotEnv

from worldmodel.data import EnvConfig, Episode, EpisodeStore, collect, compression, pack, repair, shards, unpack, verify
from worldmodel.rng import episode_seed
from worldmodel.runtime import RunConfig

collect_module = importlib.import_module("worldmodel.data.collecting")  # the package has a function of this name
SCREEN = spaces.Box(0, 255, (10, 9, 3), np.uint8)
SPACE = spaces.Dict(
    {"map": spaces.Box(0, 255, (8, 8), np.uint8), "screen": SCREEN, "speed": spaces.Box(-1, 1, (2,), np.float32)}
)


def frames_of(rows, shape=(10, 9, 3), seed=0):
    """Frames that compress: blocks that change from one to the next."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.integers(0, 256, (rows, 1, 1, shape[2]), dtype=np.uint8), shape[0], axis=1).repeat(shape[1], axis=2)


def make(episode_id, steps):
    rng = np.random.default_rng(episode_id)
    last = np.arange(steps) == steps - 1
    return Episode(
        observations={
            "map": frames_of(steps + 1, (8, 8, 1), seed=episode_id + 100)[..., 0],
            "screen": frames_of(steps + 1, seed=episode_id),
            "speed": rng.uniform(-1, 1, (steps + 1, 2)).astype(np.float32),
        },
        actions=rng.integers(2, size=steps),
        rewards=rng.standard_normal(steps),
        terminations=last,
        truncations=last & False,
        episode_id=episode_id,
        seed=episode_id + 7,
    )


EPISODES = [make(0, 5), make(1, 23), make(2, 8), make(3, 1)]


@pytest.fixture
def chunks_of_4(monkeypatch):
    monkeypatch.setattr(compression, "CHUNK", 4)


def create(path, *groups):
    store = EpisodeStore.create(path, observation_space=SPACE, action_space=spaces.Discrete(2), recipe={"env": "toy"})
    for group in groups or (EPISODES[:3], EPISODES[3:]):
        store.append(group)
    return store


def create_raw(path, monkeypatch, *groups):
    """Write a store in the format of version 1."""
    with monkeypatch.context() as context:
        context.setattr(shards, "is_image", lambda space: False)
        return create(path, *groups)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 17])
def test_any_window_of_packed_frames_is_the_slice_of_its_episode(rows, chunks_of_4):
    frames = frames_of(rows)
    data = b"before" + pack(frames) + b"after"
    for start in range(rows):
        for stop in range(start + 1, rows + 1):
            window = np.empty((stop - start, *frames.shape[1:]), np.uint8)
            unpack(io.BytesIO(data), 6, len(data) - 11, rows, window, start)
            assert (window == frames[start:stop]).all()


def test_a_window_reads_its_own_chunks_only(chunks_of_4):
    frames = np.random.default_rng(0).integers(0, 256, (40, 10, 9, 3), dtype=np.uint8)
    data = pack(frames)

    class Counting(io.BytesIO):
        count = 0

        def readinto(self, buffer):
            self.count += len(buffer)
            return super().readinto(buffer)

    file, window = Counting(data), np.empty((3, 10, 9, 3), np.uint8)
    unpack(file, 0, len(data), 40, window, 21)
    assert (window == frames[21:24]).all()
    assert file.count < 0.2 * len(data)


def test_packed_episodes_and_their_windows_are_read_back_bit_by_bit(tmp_path, chunks_of_4):
    create(tmp_path)
    store = EpisodeStore.open(tmp_path)
    for episode, expected in zip(store, EPISODES, strict=True):
        assert_same(episode, expected)
    for start, stop in [(0, 4), (3, 5), (4, 23), (11, 12)]:
        window = store.read(1, start, stop)
        assert (window.observations["screen"] == EPISODES[1].observations["screen"][start : stop + 1]).all()
        assert (window.observations["map"] == EPISODES[1].observations["map"][start : stop + 1]).all()
    assert verify(tmp_path) == []


def test_a_packed_shard_is_a_smaller_safetensors_file(tmp_path, monkeypatch):
    create(tmp_path / "packed", EPISODES)
    create_raw(tmp_path / "raw", monkeypatch, EPISODES)
    (packed,), (raw,) = shard_paths(tmp_path / "packed"), shard_paths(tmp_path / "raw")
    assert packed.stat().st_size < 0.6 * raw.stat().st_size
    assert safetensors.numpy.load_file(packed)["observations/screen"].dtype == np.uint8


def test_the_fingerprint_does_not_depend_on_compression(tmp_path, monkeypatch):
    packed, raw = create(tmp_path / "packed"), create_raw(tmp_path / "raw", monkeypatch)
    monkeypatch.setattr(compression, "LEVEL", 1)
    assert packed.fingerprint == raw.fingerprint == create(tmp_path / "other").fingerprint


def test_shards_of_version_1_are_read_and_packed_ones_can_be_added(tmp_path, monkeypatch):
    create_raw(tmp_path, monkeypatch, EPISODES[:2])
    store = EpisodeStore.open(tmp_path)
    store.append(EPISODES[2:])
    store = EpisodeStore.open(tmp_path)
    for episode, expected in zip(store, EPISODES, strict=True):
        assert_same(episode, expected)
    assert verify(tmp_path) == []
    (tmp_path / "manifest.json").unlink()
    assert [problem.kind for problem in repair(tmp_path)] == ["manifest"]
    assert EpisodeStore.open(tmp_path).fingerprint == store.fingerprint


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_any_flipped_byte_is_found_and_costs_at_most_one_episode(tmp_path, mask, chunks_of_4):
    create(tmp_path / "whole")
    shard = shard_paths(tmp_path / "whole")[0]
    for offset in range(0, shard.stat().st_size, 23):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "whole", copy)
        flip(copy / "shards" / shard.name, offset, mask)
        problems = verify(copy)
        assert [problem.shard for problem in problems] == [shard.name], offset
        lost = set(problems[0].episode_ids)
        assert len(lost) <= 1
        assert problems[0].kind == ("data" if lost else "header")
        repair(copy)
        assert verify(copy) == []
        store = EpisodeStore.open(copy)
        assert set(store.episode_ids.tolist()) == {0, 1, 2, 3} - lost
        for episode in store:
            assert_same(episode, EPISODES[episode.episode_id])
        shutil.rmtree(copy)


def test_a_window_of_damaged_frames_raises_and_the_rest_of_the_episode_is_read(tmp_path, chunks_of_4):
    store = create(tmp_path, EPISODES)
    (path,) = shard_paths(tmp_path)
    packed = pack(EPISODES[1].observations["screen"])
    offset = path.read_bytes().index(packed)
    flip(path, offset + len(packed) - 3)  # in the last of six chunks
    message = rf"{path.name}: expected an undamaged episode 1, .*: the chunk that starts at frame 20 does not match.* repair"
    with pytest.raises(ValueError, match=message):
        store.read(1, 19, 23)
    assert_same(store.read(1, 2, 18), replace_window(EPISODES[1], 2, 18))
    flip(path, offset)
    with pytest.raises(ValueError, match="the chunk sizes of the packed frames do not add up"):
        store.read(1, 0, 3)


def replace_window(episode, start, stop):
    steps = {name: getattr(episode, name)[start:stop] for name in ("actions", "rewards", "terminations", "truncations")}
    return replace(episode, observations={k: v[start : stop + 1] for k, v in episode.observations.items()}, **steps)


@pytest.mark.parametrize("share", [0.4, 0.8, 0.99])
def test_repair_keeps_the_undamaged_episodes_of_a_truncated_shard(tmp_path, share):
    create(tmp_path)
    path = shard_paths(tmp_path)[0]
    with open(path, "r+b") as file:
        file.truncate(int(share * path.stat().st_size))
    assert [problem.kind for problem in verify(tmp_path)] == ["cut"]
    repair(tmp_path)
    assert verify(tmp_path) == []
    for episode in EpisodeStore.open(tmp_path):
        assert_same(episode, EPISODES[episode.episode_id])


def test_a_collection_that_the_disk_cannot_hold_raises_before_it_starts(tmp_path, monkeypatch):
    free = 10**6
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    collect(DotEnv, out=tmp_path / "few", num_episodes=3)
    message = r"expected \d+\.\d+ GiB of free disk for 1000000 episodes, judging by 8 of them, got 0\.00 GiB"
    with pytest.raises(OSError, match=message):
        collect(DotEnv, out=tmp_path / "many", num_episodes=1_000_000)
    assert not (tmp_path / "many").exists()


class NoiseEnv(DotEnv):
    """Frames of noise, which do not compress; the episode with the given seed differs in length from all others."""

    def __init__(self, seed, length, others):
        self.special, self.length, self.others = seed, length, others

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        self.left = self.length if seed == self.special else self.others
        return result

    def step(self, action):
        self.left -= 1
        return self._picture(), 1.0, self.left == 0, False, {}

    def _picture(self):
        return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("first", "others", "fits"), [(60, 6, True), (1, 30, False)])
def test_the_needed_disk_space_is_estimated_from_several_episodes(tmp_path, monkeypatch, workers, first, others, fits):
    frame = 24 * 20 * 3
    free = 16 * 15 * frame  # the mean is 14 frames in the first case, 28 in the second; the first alone says 61 and 2
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    made, kwargs = [], {"seed": episode_seed(0, 0), "length": first, "others": others}
    env, options = EnvConfig(NoiseEnv, kwargs=kwargs), {"workers": workers, "run": RunConfig(on_progress=made.append)}
    if fits:
        assert len(collect(env, out=tmp_path, num_episodes=16, **options)) == 16
        assert len(made) == 16  # no episode was collected twice
        return
    with pytest.raises(OSError, match="GiB of free disk for 16 episodes, judging by 8 of them, got"):
        collect(env, out=tmp_path, num_episodes=16, **options)
    assert shard_paths(tmp_path) == []
    assert len(collect(env, out=tmp_path, num_episodes=7, **options)) == 7  # the estimate from all episodes fits


def test_only_a_bounded_amount_waits_for_the_estimate_of_the_disk_space(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_module, "FLUSH_BYTES", 1)  # exceeded by the first episode, which is then written
    store = collect(DotEnv, out=tmp_path, num_episodes=3)
    assert len(shard_paths(tmp_path)) == len(store) == 3


def test_ctrl_c_keeps_the_episodes_collected_before_the_estimate(tmp_path):
    def interrupt(progress):
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(DotEnv, out=tmp_path, num_episodes=20, run=RunConfig(on_progress=interrupt))
    assert EpisodeStore.open(tmp_path).episode_ids.tolist() == [0, 1, 2]
