"""Real environments with the interface of dreams: B episodes in lockstep, with z and M's state kept by a `LatentTracker`.

Each environment plays exactly one episode and is not stepped after its end.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldmodel.data import EnvConfig, EnvMaker, as_flag, as_reward
from worldmodel.dream.agent import LatentState
from worldmodel.dream.horizon import check_action_repeat
from worldmodel.dream.latent_world import BatchedWorld
from worldmodel.dream.rewards import LatentReward, Reward, UserReward
from worldmodel.dream.tracking import LatentTracker, check_finite
from worldmodel.models import WorldModel
from worldmodel.rng import episode_seed
from worldmodel.runtime import StepWatch, check_integer
from worldmodel.spaces import Value, as_tuples, leaf_values, leaves, map_leaves, select_leaves, stack_values, to_numpy


class Reality(BatchedWorld):
    """B real environments of one kind, stepped one after the other in this process and encoded as one batch.

    Unlike dreams it has a state of its own, the environments: `start` resets them, always with the same seeds, and `step` takes
    the latest state only.

    Args:
        world: V and M.
        env: id, constructor, or `EnvConfig`.
        num_episodes: B.
        seed: episode k is reset with ``episode_seed(seed, first + k)``, as in a collection.
        first: number of the first episode.
        reward: a function that replaces the environment's reward, as in `Dreams`; it gets the real observations.
        watch: called before each step, reset and construction; None for no timeout and no limit on the memory.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if there is no such environment, its spaces or its ``action_repeat`` are not those of the world model's
            data, or a number is out of range.
    """

    def __init__(
        self,
        world: WorldModel,
        env: str | EnvMaker | EnvConfig,
        num_episodes: int,
        *,
        seed: int,
        first: int = 0,
        reward: Reward | None = None,
        watch: StepWatch | None = None,
    ):
        num_episodes, config = check_integer(num_episodes, "num_episodes", least=1), EnvConfig.of(env)
        super().__init__(world, num_episodes)
        check_action_repeat(world, config)
        self._seed, self._max_steps = check_integer(seed, "seed", least=0), config.max_steps
        self._first = check_integer(first, "first", least=0)
        self._leaves = leaves(world.observation_space)
        self._reward = None if reward is None else UserReward(reward, world)
        self._envs: list[gym.Env] = []
        self._watch = watch or StepWatch()
        try:
            for _ in range(num_episodes):
                self._watch.step()
                self._envs.append(config.make())
                spaces = self._envs[-1].observation_space, self._envs[-1].action_space
                world.check_spaces(*spaces, source="env", leave_out=config.leave_out)
        except BaseException:
            self.close()
            raise
        self._tracker = LatentTracker(world, num_episodes)
        self._observations: list[Value] = []
        self._steps = 0

    def start(self, *, generator: torch.Generator) -> LatentState:
        """Reset every environment; ``generator`` is the source of V's noise.

        Raises:
            RuntimeError: if an environment raises; names the episode and its seed.
        """
        self._steps = 0
        self._observations = [self._reset_one(k) for k in range(self.batch_size)]
        self._tracker.reset()
        return self._tracker.observe(stack_values(self._observations), generator=generator)

    @torch.no_grad()
    def step(self, state: LatentState, actions: Value, *, generator: torch.Generator) -> tuple[LatentState, Tensor, Tensor]:
        """Step the environments of running episodes and advance M.

        Raises:
            RuntimeError: if an environment raises; names the episode, its seed and the step.
            ValueError: if ``state`` is not the latest, or the shape of ``actions`` is not that of B actions.
            TypeError: if a discrete action is a floating-point number.
        """
        if state.z is not self._tracker.state.z:
            raise ValueError("state: expected the latest one that start or step returned, got another")
        actions = as_tuples(self.world.action_space, actions)
        features = self.flatten_actions(actions)  # checks them before an environment is stepped
        before = list(self._observations)
        self._steps += 1
        alive = state.alive.tolist()
        rewards, ended = np.zeros(self.batch_size), np.zeros(self.batch_size, dtype=bool)
        chosen = to_numpy(actions)
        for k in np.flatnonzero(alive):
            rewards[k], ended[k] = self._step_one(int(k), map_leaves(lambda leaf, k=k: _row(leaf, k), chosen))
        self._tracker.observe(stack_values(self._observations), actions, generator=generator)
        self._tracker.end(ended)
        reward = torch.as_tensor(rewards, dtype=state.z.dtype, device=state.z.device)
        if self._reward is not None:
            reward = self._user_reward(self._reward, state, features, (stack_values(before), chosen))
        return self._tracker.state, reward, torch.as_tensor(ended, device=state.z.device)

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()

    def _user_reward(self, reward: UserReward, state: LatentState, features: Tensor, seen: tuple[Value, Value]) -> Tensor:
        """Evaluate a reward function on the step of the running episodes: (B,)."""
        if isinstance(reward.reward, LatentReward):
            return reward.of_dreams(state.z, features, self._tracker.state.z, state.alive)
        return reward.of_observations(*seen, stack_values(self._observations), state.alive, like=state.z)

    def _reset_one(self, k: int) -> Value:
        name, seed = self._name(k)
        self._watch.step()
        try:
            return self._checked(self._envs[k].reset(seed=seed)[0], k)
        except (Exception, SystemExit) as error:
            raise RuntimeError(f"env: expected to reset {name}, but that failed: {error!r}") from error

    def _name(self, k: int) -> tuple[str, int]:
        """Return the name of episode k for messages, and its seed."""
        number = self._first + k
        seed = episode_seed(self._seed, number)
        return f"episode {number} (seed {seed})", seed

    def _checked(self, observation: Value, k: int) -> Value:
        """Return V's leaves of the observation of environment k; raise unless they have the space's shapes and are finite."""
        observation = select_leaves(self.world.observation_space, observation)
        given = leaf_values(observation)
        for path, space in self._leaves:
            if np.shape(given[path]) != space.shape:
                raise ValueError(f"observation: expected shape {space.shape}, got {np.shape(given[path])}: {given[path]}")
        may_lack = bool(self.world.mdnrnn.extras.maskable)
        check_finite(map_leaves(lambda leaf: np.asarray(leaf)[None], observation), rows=[k], may_lack=may_lack)
        return observation

    def _step_one(self, k: int, action: Any) -> tuple[float, bool]:
        self._watch.step()
        try:
            observation, reward, terminated, truncated, _ = self._envs[k].step(action)
            self._observations[k] = self._checked(observation, k)
            number, ended = as_reward(reward), as_flag(terminated, "terminated") or as_flag(truncated, "truncated")
            if not np.isfinite(number):
                raise ValueError(f"expected a finite reward, got {reward}")
        except (Exception, SystemExit) as error:
            raise RuntimeError(f"env: expected to step {self._name(k)[0]}, but step {self._steps} failed: {error!r}") from error
        return number, ended or self._steps == self._max_steps


def _row(leaf: Any, k: int) -> np.ndarray | np.generic:
    """Return action k in the form that environments expect: a number for a Discrete space, an array for a Box of shape ()."""
    leaf = np.asarray(leaf)
    row: np.ndarray = leaf[k, ...]
    return row if np.issubdtype(leaf.dtype, np.floating) else row[()]
