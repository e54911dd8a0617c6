"""Flips, crafted files and large numbers: one error type, little memory, nothing silent."""

import json
import math
import os
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest
import torch
import zstandard
from gymnasium import spaces
from toy_data import labelled_episode, walking_episode, write_store
from toy_worlds import walk_world

import worldmodel as wm
from worldmodel.agents import Controller
from worldmodel.data import Episode, EpisodeStore, compression, repair, verify
from worldmodel.models import StateNormalizer, WorldModel
from worldmodel.runtime import InvalidFileError, RunConfig, files, load_tensors, read_json, save_tensors, write_json
from worldmodel.training import read_metrics

SECONDS = float(os.environ.get("WORLDMODEL_FUZZ_SECONDS", "3"))


def test_every_flip_of_a_tensor_file_raises_or_changes_no_number(tmp_path):
    path = tmp_path / "t.safetensors"
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    save_tensors(path, tensors, {"state": "{}"})
    data = path.read_bytes()
    refused = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            found, _ = load_tensors(path)
        except InvalidFileError:
            refused += 1
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert refused > len(data) - 12  # a flip in the name of the digest makes it a file of an earlier version


def test_every_flip_of_a_json_file_raises_or_changes_no_field(tmp_path):
    path, content = tmp_path / "a.json", {"min_scale": 0.03, "name": "x", "list": [1, 2]}
    write_json(path, content, format="f", version=1)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            found = read_json(path, format="f", version=1)
        except InvalidFileError:
            continue
        assert {name: found[name] for name in content} == content


def test_files_without_digest_of_earlier_versions_are_read(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"state": "{}"})
    tensors, metadata = load_tensors(tmp_path / "a.safetensors")
    assert (tensors["a"].tolist(), metadata) == ([1.0, 1.0], {"state": "{}"})
    (tmp_path / "a.json").write_text('{"format": "f", "version": 1, "x": 1}')
    assert read_json(tmp_path / "a.json", format="f", version=1) == {"version": 1, "x": 1}


def test_a_changed_best_state_is_refused_when_a_run_is_resumed(tmp_path):
    write_store(tmp_path / "data", [walking_episode(i, 20) for i in range(5)])

    def stop(progress):
        if progress.done == 20:
            raise KeyboardInterrupt

    def fit(run):
        config = wm.MDNRNNConfig(hidden_size=2, num_components=1)
        training = wm.TrainingConfig(num_updates=30, evaluate_every=5)
        return wm.fit(tmp_path / "data", out=tmp_path / "run", config=config, training_config=training, run=run)

    with pytest.raises(KeyboardInterrupt):
        fit(RunConfig(on_progress=stop))
    for name in ("best.safetensors", "state.safetensors"):
        path = tmp_path / "run" / "training" / name
        data = path.read_bytes()
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        with pytest.raises(InvalidFileError, match="digest"):
            load_tensors(path)
        path.write_bytes(data)
    log = tmp_path / "run" / "training" / "metrics.jsonl"
    rows = len(read_metrics(log.parent))
    log.write_bytes(log.read_bytes().replace(b"{", b"\xff", 1) + b"[1]\n{}\n")
    with pytest.warns(UserWarning, match="left out 3 damaged lines"):
        assert len(read_metrics(log.parent)) == rows - 1
    with pytest.warns(UserWarning, match="damaged lines"):
        fit(RunConfig())


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a":' * 100_000, b'{"format": "f", "version": 1, "x": 1e999}', b"\xff", b""]
)
def test_json_that_is_too_deep_or_not_json_is_one_error(tmp_path, text):
    for name in ("manifest.json", "world.json", "vision.json", "controller.json"):
        (tmp_path / name).write_bytes(text)
    for call in (
        lambda: read_json(tmp_path / "world.json", format="f", version=1),
        lambda: EpisodeStore.open(tmp_path),
        lambda: repair(tmp_path),
        lambda: WorldModel.from_pretrained(tmp_path),
        lambda: StateNormalizer.from_pretrained(tmp_path),
        lambda: Controller.from_pretrained(tmp_path),
    ):
        with pytest.raises(InvalidFileError):
            call()
    with pytest.raises(FileExistsError):
        walk_world().save_pretrained(tmp_path, overwrite=True)


def edit(path, change):
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["mdnrnn"].update(num_layers=10**8),
        lambda content: content["mdnrnn"].update(num_layers=2),
        lambda content: content["mdnrnn"].update(hidden_size=10**9),
        lambda content: content["mdnrnn"].update(hidden_size=900),
        lambda content: content["mdnrnn"].update(num_components=10**9),
        lambda content: content["mdnrnn"].update(latent_size=10**12),
        lambda content: content.update(num_start_states=10**12),
        lambda content: content.update(action_space={"type": "Discrete", "n": 10**12, "start": 0, "dtype": "int64"}),
        lambda content: content["observation_space"].update(shape=[10**6, 10**6], low=0.0, high=1.0),
        lambda content: content["observation_space"].update(shape=[-1]),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused_before_anything_is_made(tmp_path, change):
    walk_world().save_pretrained(tmp_path)
    edit(tmp_path / "world.json", change)
    tracemalloc.start()
    with pytest.raises(InvalidFileError):
        WorldModel.from_pretrained(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(("name", "value"), [("change_scale", -1.0), ("change_scale", 0.0), ("reward_scale", -1.0)])
def test_scales_that_are_not_positive_are_refused(tmp_path, name, value):
    world = walk_world()
    getattr(world.mdnrnn, name).fill_(value)
    with pytest.raises(ValueError, match=f"{name}: expected positive"):
        world.save_pretrained(tmp_path)


@pytest.mark.parametrize("value", [1e30, -1e38, 1e8])
def test_huge_finite_weights_are_refused(tmp_path, value):
    world = walk_world()
    next(world.mdnrnn.parameters()).data.fill_(value)
    world.save_pretrained(tmp_path)
    with pytest.raises(InvalidFileError, match="expected weights of at most"):
        WorldModel.from_pretrained(tmp_path)


def test_a_fifo_and_a_device_are_refused_and_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.symlink("/dev/zero", tmp_path / "device")
    os.symlink("loop", tmp_path / "loop")
    for name in ("fifo", "device", "loop"):
        for read in (lambda path: read_json(path, format="f", version=1), load_tensors, files.digest):
            with pytest.raises(InvalidFileError):
                read(tmp_path / name)


def frames_store(path):
    space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    store = EpisodeStore.create(path, observation_space=space, action_space=spaces.Discrete(2))
    ends = np.arange(64) == 63
    parts = {"actions": np.zeros(64, int), "rewards": np.zeros(64), "terminations": ends, "truncations": ends & False}
    store.append([Episode(observations=np.zeros((65, 16, 16, 3), np.uint8), **parts)])
    return store


def test_frames_that_say_to_be_larger_than_they_are_take_no_memory(tmp_path, monkeypatch):
    bomb = zstandard.ZstdCompressor().compress(bytes(2**28))
    table = np.array([(len(bomb), compression.zlib.crc32(bomb))] * 2, dtype="<u4").tobytes()
    path = tmp_path / "x"
    path.write_bytes(table + bomb + bomb)
    tracemalloc.start()
    with open(path, "rb") as file:
        with pytest.raises(ValueError, match="does not hold"):
            list(compression.stream(file, 0, path.stat().st_size, 65, 768))
        with pytest.raises(ValueError, match="does not hold"):
            compression.unpack(file, 0, path.stat().st_size, 65, np.empty((3, 768), np.uint8), 0)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def damage(rng, data):
    """Return a damaged copy: flips, a cut, an insertion, or numbers exchanged for others."""
    data = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        place = rng.randrange(len(data))
        data[place:place] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 3:
        place = rng.randrange(len(data))
        data[place : place + 8] = struct.pack("<q", rng.choice((-1, 0, 2**31, 2**62)))
    else:
        digits = [place for place, byte in enumerate(data) if 48 <= byte < 58]
        if digits:
            place = rng.choice(digits)
            data[place : place + 1] = rng.choice((b"-1", b"99999999999", b"1e99", b"null", b"[]", b"0"))
    return bytes(data)


def read_store(path):
    verify(path)
    for episode in EpisodeStore.open(path):
        assert math.isfinite(episode.rewards.sum())


FUZZED = {
    "store": (lambda path: write_store(path, [labelled_episode(i, 4) for i in range(3)]), read_store),
    "frames": (frames_store, read_store),
    "world": (lambda path: walk_world().save_pretrained(path), WorldModel.from_pretrained),
    "controller": (lambda path: Controller(3, spaces.Discrete(2)).save_pretrained(path), Controller.from_pretrained),
    "v": (lambda path: StateNormalizer(spaces.Box(-1, 1, (2,))).save_pretrained(path), StateNormalizer.from_pretrained),
}


@pytest.mark.parametrize("kind", FUZZED)
def test_damaged_files_of_every_kind_raise_one_error_type(tmp_path, kind):
    make, read = FUZZED[kind]
    make(tmp_path)
    rng, whole = (
        random.Random(kind),
        {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.name != "README.md"},
    )
    end, trials, refused = time.monotonic() + SECONDS / len(FUZZED), 0, 0
    while trials < 20 or time.monotonic() < end:
        path = rng.choice(list(whole))
        path.write_bytes(damage(rng, whole[path]))
        try:
            read(tmp_path)
        except (InvalidFileError, FileNotFoundError):
            refused += 1
        path.write_bytes(whole[path])
        trials += 1
    assert refused > 0.8 * trials  # damage may leave the content as it was
    read(tmp_path)
