"""A directory that is replaced as a whole holds the old output or the new one, whatever happens meanwhile."""

import contextlib
import json
import os
import shutil
import threading

import pytest

from worldmodel.runtime import LockedError, files

MARKER = "export.json"


def opened(path, overwrite=True):
    return files.fresh_directory(path, marker=MARKER, format="export", overwrite=overwrite, replaces=(MARKER, "*.onnx"))


def write(path, text, **options):
    with opened(path, **options) as fresh:
        for name in ("step", "encoder"):
            files.write_bytes(fresh / f"{name}.onnx", text.encode())
        files.write_json(fresh / MARKER, {"text": text}, format="export", version=1)


def found(path):
    """The text of an export, all of whose files must have it."""
    texts = {(path / f"{name}.onnx").read_text(encoding="utf-8") for name in ("step", "encoder")}
    (text,) = texts | {json.loads((path / MARKER).read_text(encoding="utf-8"))["text"]}
    return text


class Killed(BaseException):
    """Nothing after it is done."""


OPERATIONS = [(os, "replace"), (os, "mkdir"), (os, "unlink"), (os, "fsync"), (shutil, "rmtree")]


class KillAt:
    """Counts file operations and ends the call at one of them."""

    def __init__(self, number):
        self.number, self.count = number, 0

    def wrapped(self, original):
        def operation(*arguments, **options):
            self.count += 1
            if self.count >= self.number:
                raise Killed
            return original(*arguments, **options)

        return operation


@pytest.mark.parametrize("before", [False, True])
def test_a_kill_at_any_operation_leaves_an_export_that_the_next_call_finds(tmp_path, monkeypatch, before):
    states = set()
    for number in range(1, 100):
        path, kill = tmp_path / str(number) / "out", KillAt(number)
        if before:
            write(path, "old")
        with monkeypatch.context() as patch:
            for module, name in OPERATIONS:
                patch.setattr(module, name, kill.wrapped(getattr(module, name)))
            with contextlib.suppress(Killed):
                write(path, "new")
        if kill.count < number:
            break
        with contextlib.suppress(ZeroDivisionError), opened(path):
            raise ZeroDivisionError
        states.add(found(path) if path.exists() else None)
        write(path, "third")
        assert found(path) == "third"
        assert sorted(one.name for one in path.parent.iterdir()) == ["out"]
    assert 5 < number < 99
    assert states == ({"old", "new"} if before else {None, "new"})


def test_an_export_that_can_not_be_renamed_keeps_the_old_one(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    replace = os.replace

    def refused(source, target):
        if str(target) == str(tmp_path / "out") and ".new." in str(source):
            raise OSError(16, "Device or resource busy", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match="busy"):
        write(tmp_path / "out", "new")
    assert found(tmp_path / "out") == "old"


def test_a_link_to_an_export_stays_a_link(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert found(tmp_path / "real") == "new"


def test_two_exports_exclude_each_other(tmp_path):
    errors = []

    def other():
        try:
            write(tmp_path / "out", "other")
        except LockedError as error:
            errors.append(error)

    with contextlib.suppress(ZeroDivisionError), opened(tmp_path / "out"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        raise ZeroDivisionError
    assert len(errors) == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new", overwrite=False)
    assert found(tmp_path / "out") == "new"
    with pytest.raises(FileExistsError, match="got an earlier output"):
        write(tmp_path / "out", "other", overwrite=False)
