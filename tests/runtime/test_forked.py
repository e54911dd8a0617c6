"""Workers in a process that was forked after it, or its parent, had used workers."""

import multiprocessing
import os

import pytest
from toy_envs import CountEnv

from worldmodel.data import EpisodeStore, collect

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks")


def test_workers_start_in_a_fork_of_a_process_that_has_used_workers(tmp_path):
    collect(CountEnv, out=tmp_path / "parent", num_episodes=2, workers=1)
    pid = os.fork()
    if pid == 0:
        try:
            collect(CountEnv, out=tmp_path / "fork", num_episodes=2, workers=1)
            collect(CountEnv, out=tmp_path / "again", num_episodes=2, workers=1)
        except BaseException as error:
            (tmp_path / "error").write_text(repr(error), encoding="utf-8")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert not (tmp_path / "error").exists(), (tmp_path / "error").read_text("utf-8")
    collect(CountEnv, out=tmp_path / "parent again", num_episodes=2, workers=1)  # the parent's fork server still runs
    for name in ("fork", "again", "parent again"):
        assert len(EpisodeStore.open(tmp_path / name)) == 2
