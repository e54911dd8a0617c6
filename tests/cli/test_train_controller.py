"""The script that searches a controller: in dreams, in the real environment, and after Ctrl-C."""

import runpy
import signal
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from toy_controllers import weights
from toy_worlds import random_world

from worldmodel.agents import Controller, DreamPopulation

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def train(tmp_path, monkeypatch):
    env = gym.make("CartPole-v1")
    random_world(env.action_space, env.observation_space).save_pretrained(tmp_path / "world")
    monkeypatch.syspath_prepend(SCRIPTS)

    def run(out, *options):
        small = "--population 4 --rollouts 2 --generations 4 --horizon 20 --test-dreams 8 --sigma 0.5 --device cpu"
        arguments = ["--model", str(tmp_path / "world"), "--out", str(tmp_path / out), *small.split(), *options]
        monkeypatch.setattr(sys, "argv", ["train_controller.py", *arguments])
        runpy.run_path(str(SCRIPTS / "train_controller.py"), run_name="__main__")
        return Controller.from_pretrained(tmp_path / out)

    return run


def test_ctrl_c_and_resume_give_the_controller_of_a_run_that_was_not_stopped(train, tmp_path, monkeypatch, capsys):
    whole = train("whole")
    fitness, calls = DreamPopulation.fitness, []

    def interrupt(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return fitness(self, *arguments, **options)

    monkeypatch.setattr(DreamPopulation, "fitness", interrupt)
    with pytest.raises(SystemExit) as stopped:
        train("c")
    assert stopped.value.code == 130
    assert "interrupted after 2 generations" in capsys.readouterr().err
    assert torch.equal(weights(train("c")), weights(whole))  # the same command resumes
    assert len(calls) == 4
    other = ("--method", "openai-es", "--hidden-size", "3")
    assert torch.equal(weights(train("c", "--overwrite", *other)), weights(train("other", *other)))
    calls.clear()
    with pytest.raises(SystemExit):
        train("c", "--overwrite")
    assert torch.equal(weights(train("c", "--overwrite", "--resume")), weights(whole))  # the same command with --resume
    assert len(calls) == 4
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"controller.json", "controller.safetensors"}


def test_the_controller_is_trained_in_the_real_environment_too(train):
    found = [train(f"c{workers}", "--env", "CartPole-v1", "--workers", str(workers), "--features", "z") for workers in (0, 1)]
    assert weights(found[0]).any()
    assert torch.equal(weights(found[0]), weights(found[1]))


@pytest.mark.parametrize("option", ["--horizon", "--test-dreams"])
def test_zero_is_rejected_and_not_replaced_by_the_default(train, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        train("c", option, "0")
    assert stopped.value.code == 2
    assert "expected an integer >= 1, got 0" in capsys.readouterr().err
