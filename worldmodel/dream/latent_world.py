"""Batches of worlds, dreams or real environments, stepped as one tensor: states, steps, rollouts and scores of agents.

At each step an agent acts on z_t and M's state h_t, c_t, which has consumed (z_0, a_0) .. (z_{t-1}, a_{t-1}). The state goes in
and out of `BatchedWorld.step`, and no code loops over the worlds.
"""

from __future__ import annotations

import abc
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldmodel.dream.agent import LatentState, Policy
from worldmodel.dream.policies import agent_of
from worldmodel.dream.uncertainty import variance_of_means
from worldmodel.models import MDNRNNEnsemble, State, WorldModel, require_world
from worldmodel.runtime import Listener, Progress, check_integer
from worldmodel.spaces import Value, as_tuples, map_leaves

CHECK_EVERY = 16  # steps between checks whether any world is still running: each check synchronises a GPU


@dataclass(frozen=True)
class Step:
    """One step of B episodes: actions (B, ...) taken in ``state``, reward (B,), termination (B,) bool, and the next state.

    In dreams the reward is an expectation, unless they sample it. In reality a truncation counts as a termination too.
    """

    state: LatentState
    actions: Value
    reward: Tensor
    terminated: Tensor
    next_state: LatentState


@dataclass(frozen=True)
class Rollout:
    """B episodes of up to T steps. After the end of an episode its state is frozen and its steps are masked.

    Args:
        z: (B, T + 1, D).
        actions: nested tensors (B, T, ...) in the action space's own form; after the end, those in the frozen state.
        rewards: (B, T) rewards, 0 where the mask is False; expected rewards in dreams, unless they sample them.
        terminated: (B, T) bool, True at the last step of an episode that terminated (in reality also: was truncated).
        mask: (B, T) bool, True for steps before the end.
        uncertainty: (B, T) of each step, `variance_of_means`, if M is an ensemble; 0 after the end.
    """

    z: Tensor
    actions: Value
    rewards: Tensor
    terminated: Tensor
    mask: Tensor
    uncertainty: Tensor | None = None

    def __repr__(self) -> str:
        b, t = self.mask.shape
        ended = int(self.terminated.any(dim=1).sum())
        return f"Rollout: {b} episodes of up to {t} steps, {ended} terminated; z {tuple(self.z.shape)}, rewards {(b, t)}"

    @property
    def returns(self) -> Tensor:
        """Undiscounted sum of rewards of each episode: (B,)."""
        return self.rewards.sum(dim=1, dtype=torch.float64)

    @property
    def lengths(self) -> Tensor:
        """Length of each episode in steps: (B,)."""
        return self.mask.sum(dim=1)


class BatchedWorld(abc.ABC):
    """B worlds of one kind, stepped as one tensor: `Dreams`, or real environments (`Reality`).

    Both run the same loop over an agent, so dreamed and real scores are comparable.

    Args:
        world: V, M and the spaces.
        batch_size: B.
    """

    def __init__(self, world: WorldModel, batch_size: int):
        require_world(world)
        self.world, self.batch_size = world, batch_size

    @abc.abstractmethod
    def start(self, *, generator: torch.Generator) -> LatentState:
        """Begin B episodes."""

    @abc.abstractmethod
    def step(self, state: LatentState, actions: Value, *, generator: torch.Generator) -> tuple[LatentState, Tensor, Tensor]:
        """Advance the running episodes: the next state, rewards (B,), and which ended with this step (B,) bool."""

    def generator(self, seed: int) -> torch.Generator:
        """Make a seeded generator on the device of the world."""
        return torch.Generator(self.world.device).manual_seed(operator.index(seed))  # torch takes no NumPy integers

    @torch.no_grad()
    def rollout(self, policy: Policy, horizon: int, *, generator: torch.Generator, start: LatentState | None = None) -> Rollout:
        """Run an agent for up to ``horizon`` steps, or until every episode has ended.

        Args:
            policy: an agent, which is reset first, or a function of features (B, F); see `as_agent`.
            horizon: largest number of steps T.
            generator: source of randomness.
            start: initial state; from `start` if None.

        Raises:
            ValueError: if ``horizon`` is below 1.
        """
        columns: list[tuple[Any, ...]] = []  # not `Step`s, which would keep all of M's states
        z = None
        for step in self.unroll(policy, horizon, generator=generator, start=start):
            columns.append((step.state.z, step.actions, step.reward, step.terminated, step.state.alive, *self.unsure(step)))
            z = step.next_state.z
        assert z is not None
        before, actions, *others = zip(*columns, strict=True)
        return Rollout(
            torch.stack([*before, z], dim=1),
            map_leaves(lambda *leaf: torch.stack([torch.as_tensor(part, device=z.device) for part in leaf], dim=1), *actions),
            *(torch.stack(column, dim=1) for column in others),
        )

    def unsure(self, step: Step) -> tuple[Tensor, ...]:
        """How much the members of an ensemble disagree about a step, (B,), as a tuple of one; of none for a single M."""
        model = self.world.mdnrnn
        if not isinstance(model, MDNRNNEnsemble):
            return ()
        action = self.world.action_features.flatten(step.actions)
        variance = variance_of_means(model, step.state.z, action, step.next_state.lstm)
        return (torch.where(step.state.alive, variance, 0.0),)

    @torch.no_grad()
    def score(
        self,
        policy: Policy,
        horizon: int,
        *,
        generator: torch.Generator,
        start: LatentState | None = None,
        on_progress: Listener | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run as `rollout` does and keep only the sums: returns (B,) and lengths in steps (B,).

        ``on_progress`` gets a record of stage "score" after every step, with the number of episodes that are ``running``; this
        synchronises a GPU at every step.
        """
        returns = torch.zeros(self.batch_size, dtype=torch.float64, device=self.world.device)
        lengths = torch.zeros(self.batch_size, dtype=torch.int64, device=self.world.device)
        for t, step in enumerate(self.unroll(policy, horizon, generator=generator, start=start)):
            returns += step.reward
            lengths += step.state.alive
            if on_progress is not None:
                on_progress(Progress("score", t + 1, horizon, "step", {"running": int(step.next_state.alive.sum())}))
        return returns, lengths

    def unroll(
        self, policy: Policy, horizon: int, *, generator: torch.Generator, start: LatentState | None = None
    ) -> Iterator[Step]:
        """Run as `rollout` does and iterate over the steps.

        Yields:
            Each step, of all episodes.

        Raises:
            ValueError: if ``horizon`` is below 1, ``start`` is of another number of dreams, or the agent was not made for the
                world.
            TypeError: if ``policy`` is neither an agent nor a function.
        """
        horizon = check_integer(horizon, "horizon", least=1)
        if start is not None and start.z.shape[0] != self.batch_size:
            raise ValueError(f"start: expected the states of {self.batch_size} dreams, got {start.z.shape[0]}")
        agent = agent_of(policy, self.world)
        agent.reset(self.batch_size)
        state = self.start(generator=generator) if start is None else start
        for t in range(horizon):
            if t % CHECK_EVERY == 0 and t > 0 and not bool(state.alive.any()):
                return
            actions = as_tuples(self.world.action_space, agent.act(state))
            next_state, reward, terminated = self.step(state, actions, generator=generator)
            yield Step(state, actions, reward, terminated, next_state)
            state = next_state

    def flatten_actions(self, actions: Value) -> Tensor:
        """Turn a batch of B actions into features (B, A).

        The values of discrete actions are checked on a CPU only: on a GPU each check would synchronise. The bounds of a Box are
        not checked, because recorded data exceed them and M accepts any number.

        Raises:
            ValueError: if the shape is not that of B actions, or a discrete action is out of range; names index and value.
            TypeError: if a discrete action is a floating-point number.
        """
        features = self.world.action_features.flatten(actions)
        if features.shape[:-1] != (self.batch_size,):
            raise ValueError(
                f"actions: expected a batch of {self.batch_size}, got leading dimensions {tuple(features.shape[:-1])}"
            )
        self.world.action_features.check_choices(actions, name="actions", values=features.device.type == "cpu")
        return features


class Drawn(NamedTuple):
    """Result of a step before its termination is sampled.

    Args:
        z: (B, D) sampled latents.
        lstm: M's state.
        reward: (B,) expected or sampled rewards, or those of a reward function; None without head and function.
        termination_logit: (B,); None without the head.
    """

    z: Tensor
    lstm: State
    reward: Tensor | None
    termination_logit: Tensor | None
