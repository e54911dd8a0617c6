"""One writer per directory: other processes are refused, dead owners have no effect, readers never wait."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from test_store import create, make

from worldmodel.data import EpisodeStore, collect, repair, verify
from worldmodel.runtime import LockedError, RunConfig, locked
from worldmodel.runtime.locks import LOCK_FILE

HOLD = """
import sys, time
from worldmodel.runtime import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path``, which holds a store."""
    create(tmp_path, [0])
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_writers_are_refused_next_to_another_process_and_its_files_stay(tmp_path, holder):
    (tmp_path / ".manifest.json.77.tmp").touch()
    for write in (
        lambda: repair(tmp_path),
        lambda: collect("CartPole-v1", out=tmp_path, num_episodes=2),
        lambda: collect("CartPole-v1", out=tmp_path, num_episodes=2, run=RunConfig(overwrite=True)),
        lambda: EpisodeStore.open(tmp_path).append([make(1)]),
        lambda: EpisodeStore.open(tmp_path).record_failures([]),
    ):
        with pytest.raises(LockedError, match=rf"expected no other writer in this directory, got process {holder.pid} on host"):
            write()
    assert (tmp_path / ".manifest.json.77.tmp").exists()
    assert EpisodeStore.open(tmp_path).read(0, 0, 1).episode_id == 0
    assert [problem.kind for problem in verify(tmp_path)] == ["temporary"]


def test_the_lock_of_a_killed_process_has_no_effect(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    EpisodeStore.open(tmp_path).append([make(1)])
    assert not (tmp_path / LOCK_FILE).exists()


def test_the_lock_of_another_host_is_broken_on_request_only(tmp_path):
    create(tmp_path, [0])
    owner = {"host": "elsewhere", "pid": os.getpid(), "started": "1", "since": "yesterday"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner))
    with pytest.raises(LockedError, match=r"on host 'elsewhere', since yesterday; .*break_lock=True \(--break-lock\)"):
        repair(tmp_path)
    assert repair(tmp_path, break_lock=True) == []
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "\x00", "[" * 3000])
def test_an_unreadable_lock_has_no_effect(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    with locked(tmp_path):
        content = json.loads((tmp_path / LOCK_FILE).read_text())
    assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())


def test_a_thread_may_lock_again_and_another_thread_may_not(tmp_path):
    seen = []

    def other():
        try:
            with locked(tmp_path):
                seen.append("locked")
        except LockedError:
            seen.append("refused")

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert seen == ["refused", "locked"]


def test_folders_that_were_made_for_a_lock_disappear_with_it(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).exists()
    assert os.listdir(tmp_path) == []


def test_without_locks_of_the_file_system_the_process_decides(tmp_path, monkeypatch):
    from worldmodel.runtime import locks

    monkeypatch.setattr(locks, "_lock", lambda descriptor: False)
    running = {"host": socket.gethostname(), "pid": os.getppid(), "started": locks._start_time(os.getppid())}
    (tmp_path / LOCK_FILE).write_text(json.dumps(running))
    with pytest.raises(LockedError), locked(tmp_path):
        pass
    (tmp_path / LOCK_FILE).write_text(json.dumps({**running, "started": "another process of that number"}))
    with locked(tmp_path):
        pass
