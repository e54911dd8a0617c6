"""The real environment as an agent sees a dream: B episodes in lockstep, their observations encoded to z, M's state beside.

Each environment plays exactly one episode and is not stepped after its end. M is advanced exactly once per step, by what really
happened, so that h_t has consumed (z_0, a_0) .. (z_{t-1}, a_{t-1}) as it has in a dream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldmodel.data import EnvConfig, EnvMaker
from worldmodel.dream.latent_world import BatchedWorld, LatentState
from worldmodel.models import State, WorldModel
from worldmodel.rng import episode_seed
from worldmodel.runtime import check_integer
from worldmodel.spaces import Value, leaf_values, leaves, map_leaves, stack_values, to_numpy


class Reality(BatchedWorld):
    """B real environments of one kind, stepped one after the other in this process and encoded as one batch.

    Unlike a dream it has a state of its own, the environments: `start` resets them, always with the same seeds, and `step`
    must be given the latest state.

    Args:
        world: V and M.
        env: id, constructor, or `EnvConfig`.
        num_episodes: B.
        seed: episode k is reset with ``episode_seed(seed, k)``, as in a collection.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if there is no such environment, its spaces are not the world model's, or a number is out of range.
    """

    def __init__(
        self,
        world: WorldModel,
        env: str | EnvMaker | EnvConfig,
        num_episodes: int,
        *,
        seed: int,
    ):
        num_episodes, config = check_integer(num_episodes, "num_episodes", least=1), EnvConfig.of(env)
        super().__init__(world, num_episodes)
        self._seed, self._max_steps = check_integer(seed, "seed", least=0), config.max_steps
        self._leaves = leaves(world.observation_space)
        self._envs: list[gym.Env] = []
        try:
            for _ in range(num_episodes):
                self._envs.append(config.make())
                world.check_spaces(self._envs[-1].observation_space, self._envs[-1].action_space, source="env")
        except BaseException:
            self.close()
            raise
        self._observations: list[Value] = []
        self._steps = 0

    def start(self, *, generator: torch.Generator) -> LatentState:
        """Reset every environment; ``generator`` serves the draws from V's posterior.

        Raises:
            RuntimeError: if an environment raises; names the episode and its seed.
        """
        self._steps = 0
        self._observations = [self._reset_one(k) for k in range(self.batch_size)]
        alive = torch.ones(self.batch_size, dtype=torch.bool, device=self.world.device)
        return LatentState(
            self._encode(range(self.batch_size), generator), self.world.mdnrnn.initial_state(self.batch_size), alive
        )

    @torch.no_grad()
    def step(self, state: LatentState, actions: Value, *, generator: torch.Generator) -> tuple[LatentState, Tensor, Tensor]:
        """Step the environments whose episode lives, and advance M by what happened.

        Raises:
            RuntimeError: if an environment raises; names the episode, its seed and the step.
            ValueError: if the shape of ``actions`` is not that of B actions.
            TypeError: if a choice is given as a floating-point number.
        """
        features = self.flatten_actions(actions)
        self._steps += 1
        alive = state.alive.tolist()
        rewards, ended = np.zeros(self.batch_size), np.zeros(self.batch_size, dtype=bool)
        chosen = to_numpy(actions)
        for k in np.flatnonzero(alive):
            rewards[k], ended[k] = self._step_one(int(k), map_leaves(lambda leaf, k=k: _row(leaf, k), chosen))
        lstm = self.world.mdnrnn.advance(state.z, features, state.lstm)
        kept = state.alive.unsqueeze(-1)
        lstm = State(*(torch.where(kept, new, old) for new, old in zip(lstm, state.lstm, strict=True)))
        ended_now = torch.as_tensor(ended, device=state.z.device)
        z = state.z.clone()
        if any(alive):  # whether all is over is only looked at now and then
            z[state.alive] = self._encode(np.flatnonzero(alive), generator)
        reward = torch.as_tensor(rewards, dtype=state.z.dtype, device=state.z.device)
        return LatentState(z, lstm, state.alive & ~ended_now), reward, ended_now

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()

    def _reset_one(self, k: int) -> Value:
        seed = episode_seed(self._seed, k)
        try:
            return self._checked(self._envs[k].reset(seed=seed)[0])
        except Exception as error:
            raise RuntimeError(f"env: expected to reset episode {k} (seed {seed}), but that failed: {error!r}") from error

    def _checked(self, observation: Value) -> Value:
        """An observation, which must have the shapes of its space and be finite."""
        given = leaf_values(observation)
        for path, space in self._leaves:
            leaf = np.asarray(given[path])
            if leaf.shape != space.shape or not np.isfinite(leaf).all():
                raise ValueError(f"expected a finite observation of shape {space.shape}, got shape {leaf.shape}: {leaf}")
        return observation

    def _step_one(self, k: int, action: Any) -> tuple[float, bool]:
        try:
            observation, reward, terminated, truncated, _ = self._envs[k].step(action)
            self._observations[k] = self._checked(observation)
            if not np.isfinite(float(reward)):
                raise ValueError(f"expected a finite reward, got {reward}")
        except Exception as error:
            seed = episode_seed(self._seed, k)
            raise RuntimeError(
                f"env: expected to step episode {k} (seed {seed}), but step {self._steps} failed: {error!r}"
            ) from error
        return float(reward), terminated or truncated or self._steps == self._max_steps

    def _encode(self, rows: Iterable[int], generator: torch.Generator) -> Tensor:
        return self.world.encode(stack_values([self._observations[k] for k in rows]), generator=generator)


def _row(leaf: Any, k: int) -> np.ndarray | np.generic:
    """Entry k, as environments expect it: a number for a Discrete space, but an array for a Box of shape ()."""
    leaf = np.asarray(leaf)
    row: np.ndarray = leaf[k, ...]
    return row if np.issubdtype(leaf.dtype, np.floating) else row[()]
