"""A path where an open world model is expected is an error that names the call that opens it."""

import re

import pytest
from toy_worlds import random_world

import worldmodel as wm
from worldmodel.agents import Controller, RealPopulation
from worldmodel.dream import LatentTracker, Reality, StartBank
from worldmodel.models import require_world

MESSAGE = "world: expected a WorldModel, got 'runs/world'; open it first, WorldModel.from_pretrained('runs/world')"


@pytest.mark.parametrize(
    "call",
    [
        lambda path, agent: wm.Dreams(path, 4),
        lambda path, agent: LatentTracker(path),
        lambda path, agent: Reality(path, "CartPole-v1", 2, seed=0),
        lambda path, agent: RealPopulation(path, "CartPole-v1"),
        lambda path, agent: StartBank.of(path),
        lambda path, agent: StartBank.along(path, "data"),
        lambda path, agent: StartBank.after_prefixes(path, "data", 3),
        lambda path, agent: wm.LatentPolicy(path, agent),
        lambda path, agent: wm.evaluate(agent, path, env="CartPole-v1"),
        lambda path, agent: wm.probe(path, env="CartPole-v1"),
    ],
)
def test_a_path_in_place_of_a_world_is_named(call):
    world = random_world()
    agent = Controller(2, world.action_space, features="z")
    with pytest.raises(TypeError, match=re.escape(MESSAGE)):
        call("runs/world", agent)


def test_another_object_is_named_by_its_type():
    with pytest.raises(TypeError, match="world: expected a WorldModel, got MDNRNN; fit returns one"):
        require_world(random_world().mdnrnn)
    require_world(random_world())
