"""Environments that hang, one per place and per way of hanging."""

import os
import signal
import threading

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.rng import episode_seed

WAYS = {
    "sleep": lambda: threading.Event().wait(),
    "busy": lambda: max(iter(lambda: 0, 1)),
    "holding the interpreter": lambda: 3 ** (3**20),  # one call in C, hours long, during which no other thread runs
}


class HangingEnv(gym.Env):
    """Environment of 3 steps that hangs in episode ``episode`` of seed 0.

    Args:
        place: "reset", "step" or "construct".
        way: a name in `WAYS`.
        episode: number of the episode that hangs.
        deaf: ignore SIGTERM.
        once: path of a file that the first hang creates; if the file exists, nothing hangs.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, place="step", way="sleep", episode=1, deaf=False, once=None):
        self.place, self.way, self.bad_seed, self.once = place, way, episode_seed(0, episode), once
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if place == "construct":
            self.hang()

    def hang(self):
        if self.once is not None:
            if os.path.exists(self.once):
                return
            open(self.once, "w", encoding="utf-8").close()
        WAYS[self.way]()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad, self.steps = seed == self.bad_seed, 0
        if self.bad and self.place == "reset":
            self.hang()
        return np.zeros(1), {}

    def step(self, action):
        self.steps += 1
        if self.bad and self.place == "step":
            self.hang()
        return np.full(1, float(self.steps)), 1.0, self.steps == 3, False, {}

    def close(self):
        if self.place == "close":
            self.hang()


class HangingSteps(gym.Wrapper):
    """Wrapper whose third step hangs."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            WAYS["sleep"]()
        return super().step(action)


class EndlessEnv(gym.Env):
    """Environment without an end, except in episodes other than 0 of seed 0, which have 2 steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, size=1, leak=0):
        self.observation_space = spaces.Box(0, 255, (size,), np.uint8)
        self.leak, self.kept = leak, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.endless, self.steps = seed == episode_seed(0, 0), 0
        return self.observation_space.low, {}

    def step(self, action):
        self.steps += 1
        if self.leak:
            self.kept.append(np.ones(self.leak, np.uint8))
        return self.observation_space.high, 1.0, not self.endless and self.steps == 2, False, {}
