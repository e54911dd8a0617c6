"""An environment with image observations, and small stores of its episodes, for the tests."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import worldmodel as wm

COLOUR = spaces.Box(0, 255, (24, 20, 3), np.uint8)
GREY = spaces.Box(0, 255, (24, 20), np.uint8)
MIXED = spaces.Dict({"screen": COLOUR, "speed": spaces.Box(-np.inf, np.inf, (2,), np.float32), "gear": spaces.Discrete(3)})


class DotEnv(gym.Env):
    """Bright dot that falls over a dark image; the action moves it by -2, 0 or 2 columns."""

    observation_space = COLOUR
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.column = int(self.np_random.integers(4)), int(self.np_random.integers(20))
        return self._picture(), {}

    def step(self, action):
        self.row += 2
        self.column = int(np.clip(self.column + 2 * (int(action) - 1), 0, 19))
        return self._picture(), 1.0, self.row >= 22, False, {}

    def _picture(self):
        picture = np.full((24, 20, 3), 40, np.uint8)
        picture[self.row : self.row + 4, max(0, self.column - 3) : self.column + 3] = (250, 200, 60)
        return picture


def dot_store(path, num_episodes=12, seed=0):
    return wm.collect(DotEnv, out=path, num_episodes=num_episodes, seed=seed)


def random_images(space, leading, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(*leading, *space.shape), dtype=np.uint8)
