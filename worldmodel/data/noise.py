"""Autocorrelated noise on actions, and a random driver for CarRacing that uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.runtime import check_numbers
from worldmodel.spaces import Value


@dataclass(frozen=True, kw_only=True)
class ActionNoise:
    """Noise on the actions of a Box, whose size differs by episode.

    n_0 = s e_0 and n_{t+1} = c n_t + s sqrt(1 - c^2) e_{t+1}, with e ~ N(0, 1) in each dimension, so that n has the standard
    deviation s at every step. The size s is uniform between 0 and ``scale`` in each episode: some episodes show how well an
    agent plays, and others the states that it reaches by mistakes.

    Args:
        scale: largest standard deviation, in units of half the range of an action.
        correlation: c, the correlation of successive steps.

    Raises:
        TypeError: if a field is not a number.
        ValueError: if ``scale`` is negative, or ``correlation`` outside of [0, 1).
    """

    scale: float = 0.3
    correlation: float = 0.8

    def __post_init__(self) -> None:
        """Check both fields."""
        check_numbers(self, {"scale": "[0, inf)", "correlation": "[0, 1)"})

    def check(self, action_space: gym.Space[Any]) -> None:
        """Raise unless the action space is a Box of floats with bounds.

        Raises:
            TypeError: if it is another space.
        """
        box = isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating)
        if not box or not action_space.is_bounded():  # type: ignore[attr-defined]
            raise TypeError(f"noise: expected a Box of floats with bounds as action space, got {action_space}")

    def describe(self) -> str:
        """Return the name in a data set's recipe."""
        return f"noise up to {self.scale:g} with correlation {self.correlation:g}"


class NoiseProcess:
    """The noise of one episode after the other.

    Args:
        config: size and correlation.
        action_space: a Box of floats with bounds.

    Raises:
        TypeError: if the action space is another one.
    """

    def __init__(self, config: ActionNoise, action_space: gym.Space[Any]):
        config.check(action_space)
        assert isinstance(action_space, spaces.Box)
        self._config, self._space = config, action_space
        self._half = (action_space.high.astype(np.float64) - action_space.low) / 2
        self._rng: np.random.Generator | None = None
        self.size, self._noise = 0.0, np.zeros(action_space.shape)

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode; draws the size."""
        self._rng, self.size = rng, self._config.scale * rng.random()
        self._noise = self.size * rng.standard_normal(self._space.shape)

    def __call__(self, action: Any) -> np.ndarray:
        """Return an action with noise, within the bounds; the noise moves on by one step."""
        if self._rng is None:
            raise RuntimeError("noise: expected reset(rng) before the first action, got no generator")
        noisy = np.clip(action + self._half * self._noise, self._space.low, self._space.high).astype(self._space.dtype)
        fresh = self.size * np.sqrt(1 - self._config.correlation**2)
        self._noise = self._config.correlation * self._noise + fresh * self._rng.standard_normal(self._space.shape)
        return noisy


class SlowDriver:
    """A random driver for CarRacing that is slow enough to see much road.

    Steering is autocorrelated noise; its size differs by episode. Gas and brake are held for some decisions. Independent or
    Brownian actions brake half of the time, or leave the road in a second, so their episodes show little else than grass.

    Args:
        action_space: Box of steering in [-1, 1], gas in [0, 1] and brake in [0, 1], as that of CarRacing.

    Raises:
        TypeError: if the action space is another one.
    """

    description = "slow-driver"

    def __init__(self, action_space: gym.Space[Any]):
        expected = spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))
        if action_space != expected:
            raise TypeError(f"action_space: expected that of CarRacing for policy 'slow-driver', got {action_space}")
        steering = spaces.Box(-1, 1, (1,), np.float32)
        self._steering = NoiseProcess(ActionNoise(scale=0.5, correlation=0.8), steering)
        self._rng: np.random.Generator | None = None
        self._level, self._pedals, self._remaining = 0.0, (0.0, 0.0), 0

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode; draws how much it steers and how fast it drives."""
        self._steering.reset(rng)
        self._rng, self._remaining = rng, 0
        self._level = float(np.exp(rng.uniform(np.log(0.03), np.log(0.3))))

    def __call__(self, observation: Value) -> np.ndarray:
        """Return the next action; ignores the observation."""
        rng = self._rng
        if rng is None:
            raise RuntimeError("policy: expected reset(rng) before the first action, got no generator")
        if self._remaining == 0:
            kind = rng.random()
            if kind < 0.15:  # also both at once: M must see that the car stands then, or dreams reward it
                gas = rng.uniform(0.0, 1.0) if kind < 0.05 else 0.0
                self._pedals, self._remaining = (gas, rng.uniform(0.05, 1.0)), int(rng.integers(1, 5))
            else:
                gas = 0.0 if kind < 0.3 else min(1.0, self._level * rng.uniform(0.3, 1.7))
                self._pedals, self._remaining = (gas, 0.0), int(rng.integers(3, 16))
        self._remaining -= 1
        return np.array([*self._steering(np.zeros(1)), *self._pedals], dtype=np.float32)
