"""Repeat each action for several steps of an environment, and draw only the frames that somebody sees."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from worldmodel.data.episode import as_reward
from worldmodel.runtime import check_integer

FRAMELESS = (TimeLimit, OrderEnforcing, PassiveEnvChecker)  # wrappers that pass observations on unseen


class ActionRepeat(gym.Wrapper, RecordConstructorArgs):
    """Wrapper whose step repeats an action, and whose reward is the sum over the repeated steps.

    An episode that ends within a repetition ends there: no further step is taken, and the observation is the last one. All
    rules of the environment, such as its time limit, count its own steps, so the sum of the rewards is its own score.

    Only the last observation of a repetition is returned. An environment (`gymnasium.Env.unwrapped`) with an attribute
    ``drawing`` need not draw the others: False allows it to return the frame before, unless the episode terminates. It is set
    to False only if no wrapper looks at frames, that is if each is one of `FRAMELESS` or has an attribute ``skips_frames`` that
    is True.

    Args:
        env: the environment.
        repeat: number of steps per action, >= 1.

    Raises:
        TypeError: if ``repeat`` is not an integer.
        ValueError: if it is below 1.
    """

    def __init__(self, env: gym.Env, repeat: int):
        RecordConstructorArgs.__init__(self, repeat=repeat)
        gym.Wrapper.__init__(self, env)
        self.repeat = check_integer(repeat, "action_repeat", least=1)
        wrappers: list[Any] = []
        while isinstance(env, gym.Wrapper):
            wrappers.append(env)
            env = env.env
        frameless = all(isinstance(one, FRAMELESS) or getattr(one, "skips_frames", False) for one in wrappers)
        self._drawn: Any = env if frameless and hasattr(env, "drawing") else None
        self._limits = {one._max_episode_steps for one in wrappers if isinstance(one, TimeLimit)}
        self._steps = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._steps = 0
        self._draw(True)
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Repeat an action; the information is that of the last step."""
        total = 0.0
        for number in range(1, self.repeat + 1):
            self._steps += 1
            self._draw(number == self.repeat or self._steps in self._limits)
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += as_reward(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info

    def _draw(self, drawing: bool) -> None:
        if self._drawn is not None:
            self._drawn.drawing = drawing
