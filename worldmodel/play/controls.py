"""Which keys of a player mean which action, for the spaces that keys can control."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LEFT, RIGHT, UP, DOWN = "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"
DIGITS = "1234567890"
AXES = ((LEFT, RIGHT), (DOWN, UP), ("j", "l"), ("k", "i"))  # keys that lower and raise each number of a Box
ARROWS = {LEFT: "left", RIGHT: "right", UP: "up", DOWN: "down"}

Choices = dict[str, tuple[str, int]]  # key: label and action
DISCRETE: dict[str, tuple[Choices, int | list[int]]] = {  # environment: keys, and the action without a key
    "CartPole": ({LEFT: ("left", 0), RIGHT: ("right", 1)}, [0, 1]),  # in turn: no force on average
    "MountainCar": ({LEFT: ("left", 0), RIGHT: ("right", 2)}, 1),
    "Acrobot": ({LEFT: ("left", 0), RIGHT: ("right", 2)}, 1),
    "LunarLander": ({LEFT: ("left", 1), UP: ("main engine", 2), RIGHT: ("right", 3)}, 0),
    "FrozenLake": ({LEFT: ("left", 0), DOWN: ("down", 1), RIGHT: ("right", 2), UP: ("up", 3)}, 0),
    "DoomTakeCover": ({LEFT: ("left", 0), RIGHT: ("right", 2)}, 1),
}
STEERING = {  # CarRacing: key: label, number of the action, value
    LEFT: ("left", 0, -1.0),
    RIGHT: ("right", 0, 1.0),
    UP: ("gas", 1, 1.0),
    DOWN: ("brake", 2, 0.8),
}


def base_name(env: str) -> str:
    """Return the name of an environment id without module and version: "a.b:CartPole-v1" is "CartPole"."""
    return re.sub(r"-v\d+$", "", env.rpartition(":")[2])


def controls_of(space: gym.Space, env: str = "") -> dict[str, Any] | None:
    """Describe how keys control an action space, as JSON-serialisable data.

    Args:
        space: a Discrete of at most 10 actions or a Box of at most 4 numbers in one row; none if the data have no actions.
        env: id of the environment, whose actions may have names.

    Returns:
        ``kind``, ``leaf`` (the input of the exported step), ``buttons`` (key, label, and ``choose`` or ``set``) and ``idle``,
        the action without a key: several are taken in turn. None if keys cannot control the space.
    """
    if isinstance(space, spaces.Discrete):
        return _discrete(space, base_name(env))
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.shape[0] <= len(AXES):
        return _box(space, base_name(env))
    return None


def _discrete(space: spaces.Discrete, env: str) -> dict[str, Any] | None:
    count, first = int(space.n), int(space.start)
    if count > len(DIGITS):
        return None
    choices, idle = DISCRETE.get(env, ({}, 0))
    known = [action for _, action in choices.values()]
    if not choices or max(known) >= count or first:
        choices = {DIGITS[number]: (str(first + number), first + number) for number in range(count)}
        idle = first
        if count in (2, 3):  # the outer ones are left and right, the inner one is neither
            choices = {LEFT: (str(first), first), RIGHT: (str(first + count - 1), first + count - 1)}
            idle = first + 1 if count == 3 else [first, first + 1]
    buttons = [{"key": key, "label": label, "choose": action} for key, (label, action) in choices.items()]
    return {"kind": "discrete", "leaf": "action", "buttons": buttons, "idle": idle}


def _box(space: spaces.Box, env: str) -> dict[str, Any]:
    size = space.shape[0]
    low, high = (np.where(np.isfinite(bound), bound, other) for bound, other in ((space.low, -1), (space.high, 1)))
    idle = np.clip(0, low, high).tolist()
    if env.startswith("CarRacing") and size == 3:
        buttons = [{"key": key, "label": label, "set": [[index, value]]} for key, (label, index, value) in STEERING.items()]
        return {"kind": "box", "leaf": "action", "buttons": buttons, "idle": idle}
    buttons = []
    for index, (lower, raise_) in enumerate(AXES[:size]):
        ends = (high[index], low[index]) if env == "Pendulum" else (low[index], high[index])  # positive torque turns left
        for key, value in zip((lower, raise_), ends, strict=True):
            label = ARROWS.get(key, f"{'+' if value > idle[index] else '-'} number {index}")
            buttons.append({"key": key, "label": label, "set": [[index, float(value)]]})
    return {"kind": "box", "leaf": "action", "buttons": buttons, "idle": idle}
