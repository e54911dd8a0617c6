"""Damaged files of every format: one line that names the file, or a store; never a traceback, never half a store."""

import shutil

import numpy as np
import pytest
from recorded_files import bars, write_csv, write_lerobot, write_video

from worldmodel.data import from_arrays, from_csv, from_hdf5, from_lerobot, from_parquet, from_video, to_parquet, verify

for package in ("pyarrow", "h5py", "av"):
    pytest.importorskip(package, reason="needs worldmodel[formats]")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each format, and its reader."""
    import h5py

    path, rng = tmp_path_factory.mktemp("damage"), np.random.default_rng(0)
    write_csv(path / "log.csv")
    with h5py.File(path / "log.hdf5", "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(200, 3)), rng.normal(size=(200, 1))
        file["timeouts"] = np.arange(200) % 50 == 49
    store = from_arrays(rng.normal(size=(200, 3)), rng.normal(size=200), out=path / "store", episodes=np.arange(200) // 50)
    to_parquet(store, path / "log.parquet")
    write_video(path / "log.mp4", bars(20))
    write_lerobot(path / "lerobot")
    readers = {"log.csv": from_csv, "log.hdf5": from_hdf5, "log.parquet": from_parquet, "log.mp4": from_video}
    return path, readers | {"lerobot": from_lerobot}


def is_refused(reader, source, out):
    """Convert and verify the store, or check the error; return whether there was one."""
    message = None
    try:
        reader(source, out)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    if message is None:
        assert verify(out) == []
        shutil.rmtree(out)
    else:
        assert "\n" not in message
        assert source.name in message
        assert not out.exists()
    return message is not None


@pytest.mark.parametrize("name", ["log.csv", "log.hdf5", "log.parquet", "log.mp4"])
@pytest.mark.parametrize("kind", ["cut", "flips"])
def test_a_damaged_file_is_refused_on_one_line_or_read(files, tmp_path, name, kind):
    path, readers = files
    rng, content = np.random.default_rng(0), (path / name).read_bytes()
    refused = 0
    for _ in range(12):
        damaged = bytearray(content)
        if kind == "cut":
            del damaged[rng.integers(len(damaged)) :]
        else:
            for place in rng.integers(len(damaged), size=3):
                damaged[place] ^= 1 << rng.integers(8)
        (tmp_path / name).write_bytes(bytes(damaged))
        refused += is_refused(readers[name], tmp_path / name, tmp_path / "out")
    assert refused > 0  # flips may leave the content readable
    (tmp_path / name).write_bytes(content)
    assert not is_refused(readers[name], tmp_path / name, tmp_path / "out")


def test_a_damaged_lerobot_data_set_is_refused_on_one_line_or_read(files, tmp_path):
    path, _ = files
    rng = np.random.default_rng(0)
    parts = sorted(one.relative_to(path) for one in (path / "lerobot").rglob("*") if one.is_file())
    found = dict.fromkeys(("cut", "gone", "flip"), 0)
    for part in parts:
        for kind in ("cut", "gone", "flip"):
            shutil.rmtree(tmp_path / "lerobot", ignore_errors=True)
            shutil.copytree(path / "lerobot", tmp_path / "lerobot")
            content = bytearray((tmp_path / part).read_bytes())
            if kind == "gone":
                (tmp_path / part).unlink()
            else:
                if kind == "cut":
                    del content[rng.integers(len(content)) :]
                else:
                    content[rng.integers(len(content))] ^= 16
                (tmp_path / part).write_bytes(bytes(content))
            found[kind] += is_refused(from_lerobot, tmp_path / "lerobot", tmp_path / "out")
    assert found["cut"] > 0  # some files are not needed, and flips may leave the content readable
    assert found["gone"] > 0
