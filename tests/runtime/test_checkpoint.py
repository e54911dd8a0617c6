"""Atomic writes, strict reads and output directories."""

import errno
import json
import os
import shutil

import pytest
import torch

from worldmodel.runtime import (
    files,
    load_tensors,
    prepare_directory,
    read_json,
    remove_temporaries,
    save_tensors,
    write_bytes,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_bytes(tmp_path / "file", b"old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_json_comes_back_with_its_version(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2]}, format="f", version=2)
    assert read_json(tmp_path / "a.json", format="f", version=3) == {"version": 2, "x": [1, 2]}


def test_json_rejects_nan_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")}, format="f", version=1)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "f", "vers', "damaged file or another format"),
        ("\udcff", "damaged file or another format"),
        ('{"format": "other", "version": 1}', "expected format 'f', got 'other'"),
        ("[1]", "expected format 'f', got None"),
        ('{"format": "f", "version": "1"}', "expected a version number"),
        ('{"format": "f", "version": 2}', "newer worldmodel wrote it: upgrade"),
    ],
)
def test_other_files_are_rejected_with_the_reason(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json", format="f", version=1)


def test_a_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a f file, found none"):
        read_json(tmp_path / "a.json", format="f", version=1)
    with pytest.raises(FileNotFoundError, match="expected a safetensors file"):
        load_tensors(tmp_path / "a.safetensors")


def test_tensors_come_back_bit_by_bit(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor([True, False]), "c": torch.zeros(0, 2, dtype=torch.float16)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"about": "a test"})
    back, about = load_tensors(tmp_path / "t.safetensors")
    assert about == {"about": "a test"}
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_a_truncated_tensor_file_is_rejected(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.zeros(10)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="expected a safetensors file, got a damaged file"):
        load_tensors(path)


OURS = {"marker": "manifest.json", "format": "worldmodel.test"}
STAMP = json.dumps({"format": "worldmodel.test", "version": 1})


@pytest.mark.parametrize("marker", [None, "{}", '{"name": "a web app"}', "[]", "no JSON"])
def test_a_directory_with_other_files_is_not_changed(tmp_path, marker):
    (tmp_path / "thesis.tex").write_text("years of work")
    if marker is not None:
        (tmp_path / "manifest.json").write_text(marker)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="with other files"):
            prepare_directory(tmp_path, **OURS, overwrite=overwrite, replaces=("*",))
    with pytest.raises(FileExistsError, match="got a file"):
        prepare_directory(tmp_path / "thesis.tex", **OURS, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_earlier_output_is_replaced_only_on_request(tmp_path):
    (tmp_path / "manifest.json").write_text(STAMP)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0").write_text("data")
    replaces = ("manifest.json", "shards")
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_directory(tmp_path, **OURS, replaces=replaces)
    assert list(prepare_directory(tmp_path, **OURS, overwrite=True, replaces=replaces).iterdir()) == []
    assert prepare_directory(tmp_path / "deep" / "new", **OURS).is_dir()


def test_other_files_in_an_earlier_output_prevent_its_replacement(tmp_path):
    (tmp_path / "manifest.json").write_text(STAMP)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"got also 'notes.txt'; move it elsewhere"):
        prepare_directory(tmp_path, **OURS, overwrite=True, replaces=("manifest.json",))
    assert {path.name for path in prepare_directory(tmp_path, **OURS, overwrite=True).iterdir()} == {
        "manifest.json",
        "notes.txt",
    }


def test_the_working_directory_can_be_an_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.json").write_text(STAMP)
    assert list(prepare_directory(".", **OURS, overwrite=True, replaces=("manifest.json",)).iterdir()) == []


def test_a_broken_link_is_rejected(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="broken link"):
        prepare_directory(tmp_path / "link", **OURS)


def test_temporaries_are_removed_and_nothing_else(tmp_path):
    for name in (".a.123.tmp", "b.tmp", ".c"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".c", "b.tmp"]


def test_an_interrupted_replacement_can_be_repeated(tmp_path, monkeypatch):
    (tmp_path / "round-1").mkdir()
    write_json(tmp_path / "a.json", {}, format="ours", version=1)

    def kill(path):
        raise KeyboardInterrupt

    replace = {"marker": "a.json", "format": "ours", "overwrite": True, "replaces": ("a.json", "round-*")}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            prepare_directory(tmp_path, **replace)
    prepare_directory(tmp_path, **replace)
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*state\.json'"):
        write_json(tmp_path / "state.json", {}, format="toy", version=1)
    assert list(tmp_path.iterdir()) == []
