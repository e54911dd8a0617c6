"""The value that is learnt in dreams is that of the agent, and a planner uses and keeps it."""

import functools
import json

import numpy as np
import pytest
import torch

from tests.toy_worlds import random_world, walk_world
from worldmodel.agents import LatentValue, Planner, PlannerConfig, ValueConfig, fit_value, load_agent
from worldmodel.dream import Dreams, LatentState, StartBank

RIGHT, STAY = 2, 1
SMALL = ValueConfig(iterations=60, horizon=8, discount=0.5, features="z", size=16, learning_rate=1e-2)


def always(action):
    def policy(features):
        return torch.full_like(features[:, 0], action, dtype=torch.long)

    return policy


@functools.cache
def fitted(action, config=SMALL, seed=0):
    world = walk_world()
    return world, fit_value(always(action), Dreams(world, 64, temperature=0.0), StartBank.of(world), config=config, seed=seed)


def at(world, x, y=0.0):
    z = world.encode(np.array([[x, y]]), generator=torch.Generator().manual_seed(0))
    return LatentState(z, world.mdnrnn.initial_state(1), torch.ones(1, dtype=torch.bool))


def exact(x, action, y=0.0, discount=0.5):
    value = 0.0
    for t in range(100):
        value += discount**t * (x - y / 2)
        x, y = x + (action - 1) / 4, y + x / 8
        if x >= 1:
            break
    return value


@pytest.mark.parametrize("action", [RIGHT, STAY])
def test_the_value_is_the_discounted_return_of_the_agent(action):
    world, value = fitted(action)
    for x in (-0.5, -0.25, 0.0, 0.25, 0.5):
        assert value(at(world, x)).item() == pytest.approx(exact(x, action), abs=0.08)


def test_a_plan_of_one_step_sees_with_the_value_what_comes_later():
    world, value = fitted(STAY)
    config = PlannerConfig(horizon=1, candidates=30, iterations=1, discount=0.5, temperature=0.0)
    planner = Planner(world, config, terminal_value=value)
    planner.reset(1)
    assert planner.act(at(world, -0.25)).item() == RIGHT  # rewards of the step itself are the same for all actions


def test_the_same_seed_gives_the_same_value():
    config = ValueConfig(iterations=2, horizon=3, size=4)
    states = [fitted(RIGHT, config, seed)[1].state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(part, states[1][name]) for name, part in states[0].items())
    assert not torch.equal(states[0]["critic.last.weight"], states[2]["critic.last.weight"])


def test_a_planner_keeps_its_value(tmp_path):
    world, value = fitted(STAY, ValueConfig(iterations=2, horizon=3, size=4))
    planner = Planner(world, PlannerConfig(horizon=1, candidates=8), terminal_value=value)
    planner.save_pretrained(tmp_path / "planner")
    opened = load_agent(tmp_path / "planner")
    assert isinstance(opened._functions["terminal_value"], LatentValue)
    state = at(world, 0.25)
    assert torch.equal(opened._functions["terminal_value"](state), value(state))
    content = json.loads((tmp_path / "planner" / "planner.json").read_text(encoding="utf-8"))
    assert content["functions"]["terminal_value"] is None


def test_the_agent_does_not_change_and_the_value_needs_no_gradient():
    world, value = fitted(RIGHT, ValueConfig(iterations=1, horizon=2, size=4))
    assert not any(parameter.requires_grad for parameter in value.parameters())
    assert not value(at(world, 0.0)).requires_grad


@pytest.mark.parametrize("fields", [{"iterations": 0}, {"horizon": 0}, {"discount": 1.0}, {"lambda_": 2.0}, {"features": "x"}])
def test_wrong_fields_are_refused(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        ValueConfig(**fields)


def test_a_world_without_rewards_has_no_value():
    world = random_world(reward_head=False)
    with pytest.raises(ValueError, match="expected a world model that predicts rewards"):
        fit_value(always(STAY), Dreams(world, 4), StartBank.of(world))
