"""Agents belong to the world model in which they were trained."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from toy_worlds import WalkEnv, random_world

import worldmodel as wm
from worldmodel.agents import check_agent, load_agent
from worldmodel.dream import Reality, StartBank, score
from worldmodel.models import Origin

SEARCH = wm.SearchConfig(population=4, generations=1, test_dreams=4)
SMALL = wm.EvaluationConfig(num_episodes=2, num_dreams=4)
ENV = wm.EnvConfig(WalkEnv, max_steps=4)


def evolved(world, features="zh"):
    return wm.evolve(wm.Dreams(world, 8), wm.ControllerConfig(features=features), config=SEARCH, horizon=4)


def with_other_m(world):
    other = random_world(seed=0)
    with torch.no_grad():
        next(other.mdnrnn.parameters()).add_(1.0)
    return other


OTHER_V = {"vision_scale": 2.0}
USES = {
    "evaluate": lambda agent, world: wm.evaluate(agent, world, env=ENV, config=SMALL),
    "LatentPolicy": lambda agent, world: wm.LatentPolicy(world, agent),
    "score in dreams": lambda agent, world: score(wm.Dreams(world, 4), agent, horizon=4, seed=0),
    "score in reality": lambda agent, world: score(Reality(world, ENV, 2, seed=0), agent, horizon=4, seed=0),
    "rollout": lambda agent, world: wm.Dreams(world, 4).rollout(agent, 4, generator=torch.Generator()),
    "expected_return": lambda agent, world: wm.Dreams(world, 4).expected_return(agent, 4, generator=torch.Generator()),
    "check_agent": check_agent,
}


@pytest.mark.parametrize("use", USES)
def test_an_agent_is_refused_in_another_world_everywhere(use):
    world = random_world()
    agent = evolved(world)
    USES[use](agent, world)
    for other, part in ((random_world(**OTHER_V), "V"), (with_other_m(world), "M")):
        with pytest.raises(ValueError, match=f"another {part} .*use its own world model"):
            USES[use](agent, other)


def test_an_agent_on_z_depends_on_v_only():
    world = random_world()
    agent = evolved(world, "z")
    check_agent(agent, with_other_m(world))
    with pytest.raises(ValueError, match="another V"):
        check_agent(agent, random_world(**OTHER_V))


def test_a_saved_controller_keeps_its_origin_and_one_of_an_earlier_version_has_none(tmp_path):
    world = random_world()
    agent = evolved(world)
    agent.save_pretrained(tmp_path / "new")
    assert load_agent(tmp_path / "new").origin == agent.origin == Origin.of(world)
    old = wm.Controller.for_world(world)
    assert old.origin == Origin.of(world)
    old.origin = None
    old.save_pretrained(tmp_path / "old")
    assert "origin" not in json.loads((tmp_path / "old" / "controller.json").read_text())
    old = load_agent(tmp_path / "old")
    assert old.origin is None
    check_agent(old, random_world(**OTHER_V))


@pytest.mark.parametrize("origin", [{"vision": "0"}, {"vision": "0", "world": "1", "more": "2"}, "text"])
def test_a_damaged_origin_is_refused(origin, tmp_path):
    evolved(random_world()).save_pretrained(tmp_path / "agent")
    file = tmp_path / "agent" / "controller.json"
    content = json.loads(file.read_text()) | {"origin": origin}
    del content["sha256"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="undamaged controller"):
        load_agent(tmp_path / "agent")


@pytest.mark.parametrize("train", ["evolve", "ppo"])
def test_training_in_another_world_makes_an_agent_of_that_world(train):
    first, second = random_world(), random_world(**OTHER_V)
    agent = evolved(first)
    if train == "evolve":
        moved = wm.evolve(wm.Dreams(second, 8), agent, config=SEARCH, horizon=4)
    else:
        settings = wm.PPOConfig(iterations=1, steps=4, horizon=4, test_every=1, test_dreams=4, minibatches=1)
        moved = wm.ppo(agent, wm.Dreams(second, 8), StartBank.of(second), config=settings, horizon=4)
    assert moved.origin == Origin.of(second)
    assert agent.origin == Origin.of(first)
    check_agent(moved, second)


def test_an_m_that_was_trained_further_is_still_the_agents(tmp_path):
    wm.collect("CartPole-v1", out=tmp_path / "data", num_episodes=4, seed=0)
    tiny = {"data_config": wm.DataConfig(window=8, batch_size=4), "training_config": wm.TrainingConfig(num_updates=2)}
    world = wm.fit(tmp_path / "data", out=tmp_path / "a", config=wm.MDNRNNConfig(hidden_size=4), **tiny)
    agent = evolved(world)
    check_agent(agent, wm.fit(tmp_path / "data", out=tmp_path / "b", initial=world, **tiny))
    config = wm.MDNRNNConfig(hidden_size=4)
    with pytest.raises(ValueError, match="another M"):
        check_agent(agent, wm.fit(tmp_path / "data", out=tmp_path / "c", config=config, vision=world.vision, seed=1, **tiny))


def test_the_origin_is_the_same_on_disk_and_in_memory(tmp_path):
    world = random_world()
    world.save_pretrained(tmp_path / "world")
    assert Origin.of(wm.WorldModel.from_pretrained(tmp_path / "world")) == Origin.of(world)
    assert dataclasses.asdict(Origin.of(world)) == {"vision": world.vision.fingerprint, "world": world.fingerprint}
    assert np.isfinite(score(wm.Dreams(world, 4), evolved(world), horizon=3, seed=0).mean)
