"""Options of dreams and of the device that all commands share: rewards, their mode, threads."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from toy_worlds import random_world

import worldmodel as wm
from worldmodel.agents import Controller
from worldmodel.models import feature_size

REWARD = """def ten(observation, action, next_observation):
    return 0 * action + 10.0
"""
SEARCH = "train-controller --model world --population 4 --generations 1 --rollouts 2 --horizon 5 --test-dreams 4 --features z"


@pytest.fixture
def call(run, tmp_path, monkeypatch):
    """Return a function that runs a command which succeeds, where there is a world of CartPole."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(REWARD, encoding="utf-8")
    env = gym.make("CartPole-v1")
    world = random_world(env.action_space, env.observation_space)
    world.save_pretrained("world")
    Controller(feature_size(world, "z"), world.action_space, features="z").save_pretrained("controller")

    def succeed(words):
        code, printed, said = run(words)
        assert code == 0, said
        return printed

    return succeed


def rewards(path):
    with np.load(path) as arrays:
        return arrays["rewards"][arrays["mask"]]


def test_dreams_pay_expected_sampled_or_own_rewards(call):
    for name, options in {"expected": "", "sampled": "--reward-mode sampled", "own": "--reward my_rewards:ten"}.items():
        call(f"dream --model world --out {name}.npz --num-dreams 64 --horizon 4 {options}")
    assert rewards("sampled.npz").std() > rewards("expected.npz").std()
    assert set(rewards("own.npz").tolist()) == {10.0}


def test_dreams_are_written_completely_or_not_at_all(call, run, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    words = "dream --model world --out new/dreams.npz --num-dreams 2 --horizon 2"
    with monkeypatch.context() as patched:
        patched.setattr("worldmodel.cli.dream.write_bytes", full)
        assert run(words)[0] == 2
    assert list(Path("new").iterdir()) == []
    call(words)
    assert rewards("new/dreams.npz").size


def test_a_search_records_its_rewards_and_refuses_to_resume_with_others(call, run):
    call(f"{SEARCH} --out found --reward-mode sampled")
    code, _, said = run(f"{SEARCH} --out found")
    assert code == 2
    assert "expected reward_mode sampled, as in the run that is there, got None" in said
    printed = call(f"{SEARCH} --out own --reward my_rewards:ten")
    assert "dream return  " in printed


def test_an_evaluation_takes_an_own_reward(call):
    where = "evaluate --model world --controller controller --env CartPole-v1 --episodes 2 --num-dreams 4 --max-steps 5"
    printed = call(f"{where} --reward my_rewards:ten --out scores.json")
    found = wm.evaluate(
        Controller.from_pretrained("controller"),
        wm.WorldModel.from_pretrained("world"),
        env=wm.EnvConfig("CartPole-v1", max_steps=5),
        config=wm.EvaluationConfig(num_episodes=2, num_dreams=4, reward="my_rewards:ten"),
    )
    assert str(found) in printed


def test_the_number_of_threads_is_an_option(call, run):
    before = torch.get_num_threads()
    try:
        call("dream --model world --out a.npz --num-dreams 2 --horizon 2 --threads 2")
        assert torch.get_num_threads() == 2
        code, _, said = run("dream --model world --out b.npz --threads 0")
        assert code == 2
        assert "threads: expected an integer >= 1, got 0" in said
    finally:
        torch.set_num_threads(before)


def test_a_horizon_of_zero_is_refused(call, run):
    code, _, said = run("improve-controller --model world --controller controller --data data --out o --whole-horizon 0")
    assert code == 2
    assert said == "error: whole_horizon: expected an integer >= 1, got 0\n"
