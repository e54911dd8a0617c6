"""A stand-in for MiniGrid: a small image, a direction, and a mission in words."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MISSION = "go to the green goal"


class GridEnv(gym.Env):
    """Walk along a line of 5 cells to the goal: action 2 moves forward, 0 and 1 turn."""

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
            "direction": spaces.Discrete(2),
            "mission": spaces.Text(max_length=40, charset="abcdefghijklmnopqrstuvwxyz "),
        }
    )
    action_space = spaces.Discrete(3)

    def _observe(self):
        image = np.zeros((7, 7, 3), np.uint8)
        image[self._at, 3] = [10, 2, 1]
        return {"image": image, "direction": self._direction, "mission": MISSION}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._at, self._direction, self._steps = 0, int(self.np_random.integers(2)), 0
        return self._observe(), {}

    def step(self, action):
        self._steps += 1
        if action == 2:
            self._at = min(4, max(0, self._at + (1 if self._direction else -1)))
        else:
            self._direction = int(action)
        done = self._at == 4
        return self._observe(), float(done), done, self._steps == 20, {}
