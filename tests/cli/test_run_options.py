"""Threads and warnings of runs on the command line, and modules of the user's directory."""

import json
import subprocess
import sys

import pytest
import torch
from toy_worlds import random_world

import worldmodel as wm
from worldmodel.cli.info import run_record
from worldmodel.cli.options import Run

TINY = "--hidden-size 4 --num-components 1 --window 8 --batch-size 4 --num-updates 3 --latent-head MixtureHead"
USERS = """
import gymnasium as gym
import numpy as np

class Mine(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}

gym.register("Mine-v0", entry_point="users_module:Mine", max_episode_steps=5)
"""


@pytest.fixture
def data(tmp_path):
    wm.collect("CartPole-v1", out=tmp_path / "data", num_episodes=4, seed=0)
    return tmp_path / "data"


def test_threads_is_an_option_of_every_run():
    assert Run(threads=2).config().threads == 2
    assert Run().config().threads is None


def test_a_run_records_the_threads_that_are_asked_for_and_refuses_others(run, data, tmp_path):
    before = torch.get_num_threads()
    command = f"train-mdnrnn --data {data} --out {tmp_path / 'world'} {TINY}"
    assert run(f"{command} --threads 2")[0] == 0
    assert torch.get_num_threads() == before
    assert run_record(str(tmp_path / "world"))["threads"] == 2
    code, _, said = run(f"{command} --threads 1")
    assert code == 2
    assert "threads: expected 2" in said
    assert "threads" not in run(command)[2]  # a complete run is opened


def test_info_shows_the_warnings_of_a_training(run, tmp_path):
    world = random_world()
    world.provenance["warnings"] = ["V has collapsed: 0 of 8 latents are in use"]
    world.save_pretrained(tmp_path / "world")
    code, printed, _ = run(f"info {tmp_path / 'world'}")
    assert code == 0
    assert "V has collapsed: 0 of 8 latents are in use" in printed
    assert json.loads(run(f"info {tmp_path / 'world'} --json")[1])["warnings"] == world.provenance["warnings"]


def test_what_is_not_known_is_not_printed(run, tmp_path, monkeypatch):
    monkeypatch.setattr("worldmodel.runtime.provenance.source_commit", lambda: None)  # as in an installed package
    assert run(f"collect --env CartPole-v1 --episodes 1 --out {tmp_path / 'data'}")[0] == 0
    for command in (f"info {tmp_path / 'data'}", f"store inspect {tmp_path / 'data'}"):
        assert "None" not in run(command)[1]
    assert json.loads(run(f"info {tmp_path / 'data'} --json")[1])["made by"][0]["commit"] is None


@pytest.mark.parametrize("provenance", [None, [], {"warnings": 3}, {"warnings": None}, {}])
def test_info_reads_any_provenance(provenance, tmp_path):
    content = {"format": "worldmodel.world", "version": 3, "provenance": provenance}
    (tmp_path / "world.json").write_text(json.dumps(content), encoding="utf-8")
    assert "warnings" not in run_record(str(tmp_path))


def test_a_program_finds_a_module_of_the_directory_it_is_started_in(tmp_path):
    (tmp_path / "users_module.py").write_text(USERS, encoding="utf-8")
    code = "import sys; sys.path.remove(''); from worldmodel.cli.main import main; main()"
    words = ["collect", "--env", "users_module:Mine-v0", "--episodes", "2", "--out", "data", "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert wm.EpisodeStore.open(tmp_path / "data").recipe["time_limit"] == 5


def test_a_script_with_workers_and_without_a_guard_gets_one_clear_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import worldmodel as wm\nwm.collect('CartPole-v1', out='data', num_episodes=2, workers=1)\n", "utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert 'put the script\'s calls under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
