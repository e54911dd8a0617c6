"""Keys and drawings of spaces."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from toy_worlds import mixed_world, random_world

from worldmodel.agents import Controller
from worldmodel.play import controls_of
from worldmodel.play.controls import STEERING, base_name
from worldmodel.play.description import describe, recipe_of, view_of


def actions_of(controls, space):
    """Every action that the keys can choose, as values of the space."""
    idle = controls["idle"] if isinstance(controls["idle"], list) and controls["kind"] == "discrete" else [controls["idle"]]
    if controls["kind"] == "discrete":
        return [np.int64(one) for one in (*idle, *(button["choose"] for button in controls["buttons"]))]
    found = [np.array(controls["idle"], space.dtype)]
    for button in controls["buttons"]:
        found.append(found[0].copy())
        for index, value in button["set"]:
            found[-1][index] = value
    return found


@pytest.mark.parametrize(
    ("space", "env"),
    [
        (spaces.Discrete(2), "CartPole-v1"),
        (spaces.Discrete(3), "MountainCar-v0"),
        (spaces.Discrete(4), "LunarLander-v3"),
        (spaces.Discrete(3), "worldmodel.environments:DoomTakeCover-v0"),
        (spaces.Discrete(2, start=5), "CartPole-v1"),
        (spaces.Discrete(10), ""),
        (spaces.Discrete(1), ""),
        (spaces.Box(-2, 2, (1,)), "Pendulum-v1"),
        (spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32)), "worldmodel.environments:CarRacing64-v0"),
        (spaces.Box(-np.inf, np.inf, (2,)), ""),
        (spaces.Box(1, 3, (4,)), ""),
        (spaces.Box(0, 5, (2,), np.int32), ""),
    ],
)
def test_every_key_chooses_an_action_of_the_space(space, env):
    controls = controls_of(space, env)
    keys = [button["key"] for button in controls["buttons"]]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & set(" .bnar+-=")  # keys of the page
    assert all(space.contains(action) for action in actions_of(controls, space))


def test_named_actions_are_those_of_gymnasium():
    assert controls_of(spaces.Discrete(2), "CartPole-v1")["idle"] == [0, 1]
    assert [one["choose"] for one in controls_of(spaces.Discrete(3), "MountainCar-v0")["buttons"]] == [0, 2]
    assert len(controls_of(spaces.Box(-1, 1, (3,)), "CarRacing-v3")["buttons"]) == len(STEERING)
    (left, right) = controls_of(spaces.Box(-2, 2, (1,)), "Pendulum-v1")["buttons"]
    assert (left["key"], left["set"], right["set"]) == ("ArrowLeft", [[0, 2.0]], [[0, -2.0]])  # counter-clockwise
    assert base_name("worldmodel.environments:CarRacing64-v0") == "CarRacing64"


def test_the_left_key_moves_the_cart_and_the_car_left():
    for name, env in (("CartPole-v1", gym.make("CartPole-v1")), ("MountainCar-v0", gym.make("MountainCar-v0"))):
        (left, _) = controls_of(env.action_space, name)["buttons"]
        env.reset(seed=0)
        before = env.unwrapped.state[1]
        env.step(left["choose"])
        assert env.unwrapped.state[1] < before
        env.close()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(11),
        spaces.Box(-1, 1, (5,)),
        spaces.Box(-1, 1, (2, 2)),
        spaces.MultiBinary(2),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
)
def test_other_spaces_need_a_controller(space):
    assert controls_of(space) is None
    world = random_world(space)
    with pytest.raises(ValueError, match=r"action_space: expected a Discrete of at most 10 actions .*--controller"):
        describe(world, None)
    assert describe(world, Controller.for_world(world))["controls"] is None


def test_a_world_without_actions_needs_neither_keys_nor_a_controller():
    controls = describe(random_world(spaces.Box(-1, 1, (0,))), None)["controls"]
    assert (controls["buttons"], controls["idle"]) == ([], [])


def test_classic_control_is_drawn_images_are_pixels_and_other_numbers_curves():
    cart = random_world(observation_space=spaces.Box(-1, 1, (4,)))
    assert view_of(cart, "CartPole-v1") == {"kind": "classic", "name": "CartPole", "leaf": "observation", "numbers": []}
    assert view_of(cart, "Other-v1")["kind"] == "numbers"
    assert view_of(random_world(), "CartPole-v1")["kind"] == "numbers"  # an environment of the name with other numbers
    assert [one["name"] for one in view_of(cart, "")["numbers"]] == [f"observation[{i}]" for i in range(4)]
    named = view_of(mixed_world(), "")["numbers"]
    assert (named[-1]["name"], named[-1]["leaf"], named[-1]["index"]) == ("d[1]", "observation/d", 1)
    assert {"name": "b", "leaf": "observation/b", "index": 0} in named


def test_the_environment_is_that_of_the_data_with_its_wrappers():
    world = random_world()
    recipe = {"env": "CartPole-v1", "env_kwargs": {}, "wrappers": [], "max_steps": None, "policy": "random", "action_repeat": 2}
    world.provenance = {"recipes": [recipe]}
    assert recipe_of(world) == {"env": "CartPole-v1", "action_repeat": 2, "leave_out": []}
    assert describe(world, None)["fps"] == 25
    world.provenance = {"recipes": [{**recipe, "wrappers": ["my.Wrapper"]}]}
    assert recipe_of(world)["wrappers"] == ["my.Wrapper"]
    world.provenance = {}
    assert recipe_of(world) is None
