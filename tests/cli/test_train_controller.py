"""The script that searches a controller: in dreams, in the real environment, and after Ctrl-C."""

import json
import signal

import gymnasium as gym
import pytest
import torch
from toy_controllers import weights
from toy_worlds import random_world

from worldmodel.agents import Controller, DreamPopulation


@pytest.fixture
def train(tmp_path, run):
    env = gym.make("CartPole-v1")
    random_world(env.action_space, env.observation_space).save_pretrained(tmp_path / "world")

    def call(out, *options):
        small = "--population 4 --rollouts 2 --generations 4 --horizon 20 --test-dreams 8 --sigma 0.5 --device cpu"
        arguments = ["--model", str(tmp_path / "world"), "--out", str(tmp_path / out), *small.split(), *options]
        code, _, said = run(["train-controller", *arguments])
        return Controller.from_pretrained(tmp_path / out) if code == 0 else (code, said)

    return call


def test_ctrl_c_and_resume_give_the_controller_of_a_run_that_was_not_stopped(train, tmp_path, monkeypatch):
    whole = train("whole")
    fitness, calls = DreamPopulation.fitness, []

    def interrupt(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return fitness(self, *arguments, **options)

    monkeypatch.setattr(DreamPopulation, "fitness", interrupt)
    code, said = train("c")
    assert code == 130
    assert "interrupted after 2 generations" in said
    assert torch.equal(weights(train("c")), weights(whole))  # the same command resumes
    assert len(calls) == 4
    other = ("--method", "openai-es", "--hidden-size", "3")
    assert torch.equal(weights(train("c", "--overwrite", *other)), weights(train("other", *other)))
    calls.clear()
    assert train("c", "--overwrite")[0] == 130
    assert torch.equal(weights(train("c", "--overwrite", "--resume")), weights(whole))  # the same command with --resume
    assert len(calls) == 4
    written = json.loads((tmp_path / "c" / "controller.json").read_text(encoding="utf-8"))["weights"]
    assert {path.name for path in (tmp_path / "c").iterdir()} >= {"controller.json", written}


def test_the_search_also_works_in_the_real_environment(train):
    found = [train(f"c{workers}", "--env", "CartPole-v1", "--workers", str(workers), "--features", "z") for workers in (0, 1)]
    assert weights(found[0]).any()
    assert torch.equal(weights(found[0]), weights(found[1]))


@pytest.mark.parametrize("option", ["--horizon", "--test-dreams"])
def test_a_zero_is_rejected_and_is_not_the_default(train, option):
    code, said = train("c", option, "0")
    assert code == 2
    assert "expected an integer >= 1, got 0" in said
