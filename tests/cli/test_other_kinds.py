"""A directory of another kind than expected is one line that says what it holds; exit code 2, and nothing is written."""

import gymnasium as gym
import pytest
from toy_worlds import random_world

import worldmodel as wm
from worldmodel.agents import Controller
from worldmodel.models import feature_size


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A directory with a store, a world model and a controller."""
    path, env = tmp_path_factory.mktemp("outputs"), gym.make("CartPole-v1")
    wm.collect("CartPole-v1", out=path / "data", num_episodes=2, run=wm.RunConfig(progress=False))
    world = random_world(env.action_space, env.observation_space)
    world.save_pretrained(path / "world")
    Controller(feature_size(world, "zh"), world.action_space).save_pretrained(path / "controller")
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train-mdnrnn --data world --out new", "an episode store, got none; this directory holds worldmodel.world"),
        ("store inspect controller", "an episode store, got none; this directory holds worldmodel.controller"),
        ("dream --model data --out new.npz", "a world model directory with world.json, found none; this directory holds "),
        ("dream --model world --controller data --out new.npz", "found none; this directory holds worldmodel.episodes"),
        ("encode --data data --vision world --out new", "this directory holds worldmodel.world"),
        (
            "collect --env CartPole-v1 --episodes 2 --out world",
            "choose another directory; this directory holds worldmodel.world",
        ),
        ("train-controller --model world --out data --population 2 --generations 1", "another directory; this directory holds"),
        ("train-mdnrnn --data data --out controller", "this directory holds worldmodel.controller"),
    ],
)
def test_a_directory_of_another_kind_is_named(outputs, run, monkeypatch, words, expected):
    monkeypatch.chdir(outputs)
    before = sorted(path for path in outputs.rglob("*"))
    code, printed, said = run(words)
    assert (code, printed, said.count("\n")) == (2, "", 1)
    assert expected in said
    assert sorted(path for path in outputs.rglob("*")) == before
