"""Small environments with known behaviour for the tests."""

import os
import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.spaces import sample_value


class DictEnv(gym.Env):
    """Point on a square that the agent pushes, with a drift that depends on a random mode.

    Observation: Dict(position in [-1, 1]^2, mode 0..2). Action: MultiDiscrete([3, 2]), the push (0,
    1 or 2) and its axis. Each step adds 0.2 (push - 1) along the axis, 0.05 (mode - 1) along both
    axes, and noise with a standard deviation of 0.02. With probability 0.1 the mode becomes a
    random one. The reward is 1 minus the distance from the centre. Leaving the square terminates.
    """

    def __init__(self):
        self.observation_space = spaces.Dict({"position": spaces.Box(-1.0, 1.0, (2,), np.float32), "mode": spaces.Discrete(3)})
        self.action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.2, 0.2, 2)
        self.mode = int(self.np_random.integers(3))
        return self._observation(), {}

    def step(self, action):
        push, axis = int(action[0]), int(action[1])
        self.position[axis] += 0.2 * (push - 1)
        self.position += 0.05 * (self.mode - 1) + 0.02 * self.np_random.standard_normal(2)
        if self.np_random.random() < 0.1:
            self.mode = int(self.np_random.integers(3))
        terminated = bool(np.abs(self.position).max() > 1)
        self.position = self.position.clip(-1, 1)
        return self._observation(), 1 - float(np.linalg.norm(self.position)), terminated, False, {}

    def _observation(self):
        return {"position": self.position.astype(np.float32), "mode": self.mode}


class CountEnv(gym.Env):
    """Step counter that terminates after 3 to 6 steps, with a fault in the episodes of some seeds.

    The observation is the same array at every step, as Gymnasium allows.

    Args:
        trouble: fault at the second step of an episode with one of ``seeds``: "raise" an error,
            return "nan", or "die" (end the process).
        seeds: reset seeds of the episodes with a fault.
        once: path of a file that the first fault creates; if the file exists, there is no fault.
        pids: path of a file to which each process that builds the environment appends its id.
        delay: duration of a step in seconds.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, trouble="", seeds=(), once=None, pids=None, delay=0.0):
        self.trouble, self.seeds, self.once, self.delay = trouble, set(seeds), once, delay
        self.buffer = np.zeros(2)
        self.closed = False
        if pids:
            with open(pids, "a") as file:
                file.write(f"{os.getpid()}\n")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.troubled = seed in self.seeds
        self.length = int(self.np_random.integers(3, 7))
        self.buffer[:] = 0, self.np_random.random()
        return self.buffer, {}

    def step(self, action):
        time.sleep(self.delay)
        self.buffer[0] += 1
        if self.troubled and self.buffer[0] == 2 and self._is_trouble_due():
            if self.trouble == "raise":
                raise ArithmeticError("the toy broke")
            if self.trouble == "die":
                os._exit(7)
            if self.trouble == "nan":
                self.buffer[1] = np.nan
        return self.buffer, float(action), bool(self.buffer[0] == self.length), False, {}

    def close(self):
        self.closed = True

    def _is_trouble_due(self):
        if self.once is None:
            return True
        if os.path.exists(self.once):
            return False
        open(self.once, "w").close()
        return True


class SpaceEnv(gym.Env):
    """Environment that samples observations from a space and never terminates."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return sample_value(self.observation_space), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return sample_value(self.observation_space), self.np_random.random(), False, False, {}


NESTED_OBSERVATION = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (4, 3, 3), np.uint8),
        "parts": spaces.Tuple([spaces.Box(-2.0, 2.0, (2,), np.float64), spaces.Discrete(5, start=-2)]),
        "switches": spaces.MultiBinary((2, 2)),
    }
)
NESTED_ACTION = spaces.Tuple(
    [spaces.MultiDiscrete([3, 2]), spaces.Dict({"push": spaces.Box(-1.0, 1.0, (), np.float32), "kind": spaces.Discrete(4)})]
)


def nested_env():
    """Return an environment with every supported kind of space, nested."""
    return SpaceEnv(NESTED_OBSERVATION, NESTED_ACTION)
