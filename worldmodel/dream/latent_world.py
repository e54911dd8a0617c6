"""Many worlds of one kind as one tensor, dreams or real environments: where they stand, a step, whole rollouts, scores.

At each step a policy acts on (z_t, h_t), where h_t has consumed (z_0, a_0) .. (z_{t-1}, a_{t-1}). State goes in and out of
`BatchedWorld.step`; nothing is kept inside, and nothing loops over the worlds.
"""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.models import FeatureKind, State, WorldModel, latent_features
from worldmodel.runtime import Listener, Progress, check_integer
from worldmodel.spaces import Value, map_leaves

Policy = Callable[[Tensor], Value]  # features (B, F) -> a batch of actions; an attribute `features` may name their kind

CHECK_EVERY = 16  # steps between looks at whether any world still lives: each look stalls a GPU once


@dataclass(frozen=True)
class LatentState:
    """Where B dreams stand.

    Args:
        z: (B, D) latents.
        lstm: M's state, having consumed everything before ``z``.
        alive: (B,) bool, False once a dream has terminated.
    """

    z: Tensor
    lstm: State
    alive: Tensor

    def features(self, kind: FeatureKind = "zh") -> Tensor:
        """What an agent sees: z, (z, h) or (z, h, c) of the LSTM's last layer, (B, F)."""
        return latent_features(self.z, self.lstm, kind)


@dataclass(frozen=True)
class Step:
    """One step of B dreams: actions (B, ...) taken in ``state``, expected reward (B,), end (B,) bool, and what came of it.

    In reality the reward is what was given, and an episode's end may be a truncation.
    """

    state: LatentState
    actions: Value
    reward: Tensor
    terminated: Tensor
    next_state: LatentState


@dataclass(frozen=True)
class Rollout:
    """B dreams of up to T steps. What comes after a dream's termination is frozen and masked.

    Args:
        z: (B, T + 1, D).
        actions: nested tensors (B, T, ...) in the action space's own form; after an end, what the policy makes of a frozen z.
        rewards: (B, T) expected rewards, 0 where the mask is False.
        terminated: (B, T) bool, True at the step that ended a dream (in reality also where an episode was truncated).
        mask: (B, T) bool, True where a step was dreamed.
    """

    z: Tensor
    actions: Value
    rewards: Tensor
    terminated: Tensor
    mask: Tensor

    @property
    def returns(self) -> Tensor:
        """Undiscounted sum of rewards of each dream: (B,)."""
        return self.rewards.sum(dim=1, dtype=torch.float64)

    @property
    def lengths(self) -> Tensor:
        """Steps of each dream: (B,)."""
        return self.mask.sum(dim=1)


class BatchedWorld(abc.ABC):
    """B worlds of one kind, stepped as one tensor. An agent acts on features and cannot tell which kind it is in.

    `Dreams` is one, `worldmodel.dream.reality.Reality` the other; so dreamed and real scores come from one and the same loop.

    Args:
        world: V, M and the spaces.
        batch_size: B.
    """

    def __init__(self, world: WorldModel, batch_size: int):
        self.world, self.batch_size = world, batch_size

    @abc.abstractmethod
    def start(self, *, generator: torch.Generator) -> LatentState:
        """Begin B episodes."""

    @abc.abstractmethod
    def step(self, state: LatentState, actions: Value, *, generator: torch.Generator) -> tuple[LatentState, Tensor, Tensor]:
        """Advance all that live by one step: the next state, rewards (B,), and which ended with this step (B,) bool."""

    def generator(self, seed: int) -> torch.Generator:
        """Make a seeded generator on the device of the world."""
        return torch.Generator(self.world.device).manual_seed(operator.index(seed))  # torch takes no NumPy integers

    @torch.no_grad()
    def rollout(self, policy: Policy, horizon: int, *, generator: torch.Generator, start: LatentState | None = None) -> Rollout:
        """Dream up to ``horizon`` steps, or until every dream has terminated.

        Args:
            policy: features (B, F) -> actions; its attribute ``features`` says which kind it wants ("zh" if it has none).
            horizon: largest number of steps T.
            generator: source of randomness.
            start: where to start; the bank if None.

        Raises:
            ValueError: if ``horizon`` is below 1.
        """
        columns: list[tuple[Tensor, Value, Tensor, Tensor, Tensor]] = []  # not whole steps: those hold M's state
        z = None
        for step in self.unroll(policy, horizon, generator=generator, start=start):
            columns.append((step.state.z, step.actions, step.reward, step.terminated, step.state.alive))
            z = step.next_state.z
        assert z is not None
        before, actions, rewards, terminated, alive = zip(*columns, strict=True)
        return Rollout(
            torch.stack([*before, z], dim=1),
            map_leaves(lambda *leaf: torch.stack([torch.as_tensor(part, device=z.device) for part in leaf], dim=1), *actions),
            *(torch.stack(column, dim=1) for column in (rewards, terminated, alive)),
        )

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
        """Dream as `rollout` does, keeping only the sums: returns (B,) and lengths in steps (B,).

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
        """Dream as `rollout` does, one step at a time.

        Yields:
            Each step, for all dreams.

        Raises:
            ValueError: if ``horizon`` is below 1, or ``start`` is of another number of dreams.
        """
        horizon = check_integer(horizon, "horizon", least=1)
        if start is not None and start.z.shape[0] != self.batch_size:
            raise ValueError(f"start: expected the states of {self.batch_size} dreams, got {start.z.shape[0]}")
        kind: FeatureKind = getattr(policy, "features", "zh")
        state = self.start(generator=generator) if start is None else start
        for t in range(horizon):
            if t % CHECK_EVERY == 0 and t > 0 and not bool(state.alive.any()):
                return
            actions = policy(state.features(kind))
            next_state, reward, terminated = self.step(state, actions, generator=generator)
            yield Step(state, actions, reward, terminated, next_state)
            state = next_state

    def flatten_actions(self, actions: Value) -> Tensor:
        """Turn a batch of B actions into features (B, A).

        Choices outside of their space are refused on a CPU; on a GPU a look at them would be a wait in each step. Bounds of
        a Box are not looked at: recorded data break them, and M takes any number.

        Raises:
            ValueError: if the shape is not that of B actions, or a choice lies outside; names its index and value.
            TypeError: if a choice is given as a floating-point number.
        """
        features = self.world.action_features.flatten(actions)
        if features.shape[:-1] != (self.batch_size,):
            raise ValueError(
                f"actions: expected a batch of {self.batch_size}, got leading dimensions {tuple(features.shape[:-1])}"
            )
        self.world.action_features.check_choices(actions, name="actions", values=features.device.type == "cpu")
        return features


class Drawn(NamedTuple):
    """What came of a step.

    Args:
        z: (B, D) latents drawn.
        lstm: M's state.
        reward: (B,) expected rewards; None without the head.
        termination_logit: (B,); None without the head.
    """

    z: Tensor
    lstm: State
    reward: Tensor | None
    termination_logit: Tensor | None
