"""Run an agent in the real environment as a policy for `collect` and `rollouts`."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.agents.registry import check_agent
from worldmodel.data import ActionNoise, NoiseProcess, RandomPolicy
from worldmodel.dream import Agent, FeaturePolicy, LatentTracker, Policy
from worldmodel.models import WorldModel
from worldmodel.runtime import describe, digest_tensors
from worldmodel.spaces import Value, as_tuples, map_leaves, select_leaves, stack_values, to_numpy


class LatentPolicy:
    """An agent in the real environment: a `LatentTracker` encodes each observation and advances M, and the agent acts.

    A policy for `collect` and `rollouts`: their ``reset`` starts an episode, for M's state and for the agent.

    Args:
        world: V and M.
        agent: an agent, or a function of features (1, F).
        exploration: probability of replacing an action by a random one; M takes in the action that was taken.
        noise: added to the actions of a Box, with another size in each episode; M takes in the action that was taken.
        description: name in a data set's recipe, followed by a digest of the agent and the world's fingerprint, so that other
            weights are another recipe.

    Raises:
        TypeError: if ``agent`` is not an agent, or ``noise`` is given for actions that are not a Box of floats with bounds.
        ValueError: if the agent was not made for the world, or ``exploration`` is not a probability.
    """

    def __init__(
        self,
        world: WorldModel,
        agent: Policy,
        *,
        exploration: float = 0.0,
        noise: ActionNoise | None = None,
        description: str = "controller",
    ):
        self.agent = check_agent(agent, world)
        if not 0 <= exploration <= 1:
            raise ValueError(f"exploration: expected a probability from 0 to 1, got {exploration}")
        self.world, self.exploration = world, exploration
        self.description = f"{description} {digest_agent(self.agent)[:8]}{world.fingerprint[:8]}"
        if exploration:
            self.description += f", {exploration:g} of its actions random"
            self._random = RandomPolicy(world.action_space)
        self._noise = None if noise is None else NoiseProcess(noise, world.action_space)
        if noise is not None:
            self.description += f", {noise.describe()}"
        self._tracker = LatentTracker(world)
        self._generator = torch.Generator(world.device)
        self._started, self._last_action = False, None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode; V's noise, exploration and the numbers of an agent with a method ``seed`` follow from ``rng``."""
        self._generator.manual_seed(int(rng.integers(2**63)))
        self._tracker.reset()
        if callable(seed := getattr(self.agent, "seed", None)):  # an agent that samples
            seed(int(rng.integers(2**63)))
        self.agent.reset(1)
        self._started, self._last_action = True, None
        if self._noise is not None:
            self._noise.reset(rng)
        if self.exploration:
            self._random.reset(rng)
            self._rng = rng

    @torch.no_grad()
    def __call__(self, observation: Value) -> Any:
        """Choose the action for one observation.

        Raises:
            RuntimeError: if the episode was not started with `reset`.
            ValueError: if the observation is not finite.
        """
        if not self._started:
            raise RuntimeError("LatentPolicy: expected reset(rng) before the first observation of an episode, got none")
        observed = stack_values([select_leaves(self.world.observation_space, observation)])
        state = self._tracker.observe(observed, self._last_action, generator=self._generator)
        self._last_action = as_tuples(
            self.world.action_space, self.agent.act(state)
        )  # also if it is replaced: a recurrent agent sees every step
        if self.exploration and self._rng.random() < self.exploration:
            action = self._random(observation)
            self._last_action = stack_values([action])
            return action
        action = to_numpy(map_leaves(lambda leaf: leaf[0], self._last_action))
        if self._noise is not None:
            action = self._noise(action)
            self._last_action = stack_values([action])
        return action


def digest_agent(agent: Agent) -> str:
    """Digest what an agent computes with: its ``state_dict``, the name of a function, or else the files that it saves."""
    source = agent.policy if isinstance(agent, FeaturePolicy) else agent
    if hasattr(source, "state_dict"):
        return digest_tensors(source.state_dict())
    result = hashlib.sha256()
    if isinstance(agent, FeaturePolicy) and not hasattr(source, "save_pretrained"):
        result.update(describe(source).encode())
        return result.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "agent"
        agent.save_pretrained(directory)
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            result.update(f"{file.relative_to(directory).as_posix()} {file.stat().st_size}\n".encode())
            result.update(file.read_bytes())
    return result.hexdigest()
