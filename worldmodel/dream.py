"""Thousands of dreams at once, stepped as one tensor: reset, step, whole rollouts, at a temperature per dream.

A dream starts from a real first frame (the world model's bank of start states) or from a real prefix that primes the LSTM,
never from a made-up z. At each step a policy acts on (z_t, h_t), where h_t has consumed (z_0, a_0) .. (z_{t-1}, a_{t-1}); then
M advances once and z_{t+1} is drawn from its mixture. State goes in and out of `Dreams.step`; nothing is kept inside, and
nothing loops over the dreams.
"""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor

from worldmodel.features import FeatureKind, latent_features
from worldmodel.mdn import Factorization
from worldmodel.mdnrnn import State
from worldmodel.mixture import GaussianMixture, check_temperature, shared_draws
from worldmodel.spaces import Value, map_leaves
from worldmodel.streams import Streams, fill_uniform
from worldmodel.vision import draw_latent
from worldmodel.world import WorldModel

TerminationRule = Literal["threshold", "sample"]
Policy = Callable[[Tensor], Value]  # features (B, F) -> a batch of actions; an attribute `features` may name their kind

DEFAULT_HORIZON = 1000  # steps of a dream where nothing says how long an episode may last
CHECK_EVERY = 16  # steps between looks at whether any dream still lives: each look stalls a GPU once


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


def usual_horizon(world: WorldModel) -> int:
    """Longest episode of the environment that a world model's data came from, as far as its provenance says; else 1000.

    Only looked up among the ids that are registered already: a model directory must not make anything be imported.
    """
    recipe: dict[str, Any] = next(iter(world.provenance.get("recipes", [])), {})
    spec = gym.registry.get(recipe.get("env", ""))
    asked = (recipe.get("env_kwargs") or {}).get("max_episode_steps")  # goes before what is registered; -1 is no limit
    limits = (recipe.get("max_steps"), (spec and spec.max_episode_steps) if asked is None else asked)
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=DEFAULT_HORIZON)


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

    `Dreams` is one, `worldmodel.reality.Reality` the other; so dreamed and real scores come from one and the same loop.

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
        on_step: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Dream as `rollout` does, keeping only the sums: returns (B,) and lengths in steps (B,).

        ``on_step`` is called with the steps done and the number of episodes that still run; it stalls a GPU at every step.
        """
        returns = torch.zeros(self.batch_size, dtype=torch.float64, device=self.world.device)
        lengths = torch.zeros(self.batch_size, dtype=torch.int64, device=self.world.device)
        for t, step in enumerate(self.unroll(policy, horizon, generator=generator, start=start)):
            returns += step.reward
            lengths += step.state.alive
            if on_step is not None:
                on_step(t + 1, int(step.next_state.alive.sum()))
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
        if horizon < 1:
            raise ValueError(f"horizon: expected an integer >= 1, got {horizon}")
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


class Dreams(BatchedWorld):
    """A batch of dreams in a world model, on the device of that model.

    Without a termination head no dream ends before its horizon; without a reward head every reward is 0.

    Args:
        world: the world model.
        num_dreams: B.
        temperature: tau >= 0, a number or one value per dream (B,). 1 is what M learned; more is harder, 0 is the mode.
        termination: "sample" draws the end with probability p; "threshold" ends a dream when p > 0.5, as in the paper.
            Temperature does not touch it. dev/LOG.md has the measurement behind the default.
        num_groups: the dreams are so many equal groups that share their start states and random numbers, for comparing
            candidates under common random numbers: dream g * R + r has the luck of dream r.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        world: WorldModel,
        num_dreams: int,
        *,
        temperature: float | Tensor = 1.0,
        termination: TerminationRule = "sample",
        num_groups: int = 1,
    ):
        check_temperature(temperature)
        if num_dreams < 1 or num_groups < 1 or num_dreams % num_groups:
            raise ValueError(f"num_dreams, num_groups: expected B >= 1 and a divisor of it, got {num_dreams} and {num_groups}")
        if isinstance(temperature, Tensor) and temperature.shape not in ((), (num_dreams,)):
            raise ValueError(f"temperature: expected a number or shape ({num_dreams},), got {tuple(temperature.shape)}")
        if termination not in ("threshold", "sample"):
            raise ValueError(f"termination: expected 'threshold' or 'sample', got {termination!r}")
        super().__init__(world, num_dreams)
        self.temperature = temperature.to(world.device) if isinstance(temperature, Tensor) else temperature
        self.termination = termination
        self.num_groups = num_groups

    def variant(self, *, num_dreams: int | None = None, num_groups: int = 1) -> Dreams:
        """The same world, temperature and termination with another number of dreams or groups."""
        return Dreams(
            self.world,
            self.batch_size if num_dreams is None else num_dreams,
            temperature=self.temperature,
            termination=self.termination,
            num_groups=num_groups,
        )

    @torch.no_grad()
    def start(self, *, generator: torch.Generator) -> LatentState:
        """Start every dream at the first frame of a real episode, drawn from the world model's bank."""
        world, once = self.world, self.batch_size // self.num_groups
        index = torch.randint(world.start_mean.shape[0], (once,), generator=generator, device=world.device)
        z = draw_latent(world.start_mean[index], world.start_log_variance[index], generator=generator)
        return self._alive(z.repeat(self.num_groups, 1), world.mdnrnn.initial_state(self.batch_size))

    @torch.no_grad()
    def start_from(self, observations: Value, actions: Value, *, generator: torch.Generator) -> LatentState:
        """Start the dreams where real prefixes end; the prefix primes the LSTM.

        Args:
            observations: values of the observation space, (P + 1, ...) for all dreams, which then share the draw of z, or
                (B, P + 1, ...) one prefix each.
            actions: values of the action space, (P, ...) or (B, P, ...); P may be 0.
            generator: source of the draws from V's posterior.

        Raises:
            ValueError: if the shapes do not fit.
        """
        world, b = self.world, self.batch_size
        z = world.encode(observations, generator=generator)
        action = world.action_features.flatten(actions)
        z, action = (part.expand(b, *part.shape) if part.ndim == 2 else part for part in (z, action))
        if z.ndim != 3 or z.shape[0] != b or action.shape[:2] != (b, z.shape[1] - 1):
            raise ValueError(
                f"observations, actions: expected leading dimensions (P + 1,) and (P,), or ({b}, P + 1) and ({b}, P), "
                f"got {tuple(z.shape[:-1])} and {tuple(action.shape[:-1])}"
            )
        lstm = world.mdnrnn.initial_state(b)
        for t in range(action.shape[1]):
            lstm = world.mdnrnn.advance(z[:, t], action[:, t], lstm)
        return self._alive(z[:, -1], lstm)

    @torch.no_grad()
    def step(
        self, state: LatentState, actions: Value, *, generator: torch.Generator | Streams
    ) -> tuple[LatentState, Tensor, Tensor]:
        """Advance every dream by one step; those that have ended stay as they are.

        Args:
            state: where the dreams stand.
            actions: a batch of B values of the action space.
            generator: source of randomness; `Streams` give every dream its own.

        Returns:
            The next state, the expected reward (B,), and whether the dream terminated with this step (B,). Dreams that had
            ended before get reward 0 and False.

        Raises:
            ValueError: if the shape of ``actions`` is not that of B actions.
            TypeError: if a choice is given as a floating-point number.
        """
        return self.step_features(state, self.flatten_actions(actions), generator=generator)

    @torch.no_grad()
    def step_features(
        self, state: LatentState, action: Tensor, *, generator: torch.Generator | Streams
    ) -> tuple[LatentState, Tensor, Tensor]:
        """`step` for action features (B, A), which are not checked."""
        if isinstance(generator, Streams):
            generator.reserve(self._numbers_per_step)
        prediction, lstm = self.world.mdnrnn.step(state.z, action, state.lstm)
        z = self.bound(prediction.latent.sample(self.temperature, num_groups=self.num_groups, generator=generator))
        ended = torch.zeros_like(state.alive)
        if prediction.termination_logit is not None:
            ended = self._ends(prediction.termination_logit, generator) & state.alive
        reward = torch.zeros_like(z[:, 0])
        if prediction.reward is not None:
            reward = torch.where(state.alive, self.expected_reward(prediction.reward), 0.0)
        alive = state.alive.unsqueeze(-1)
        kept = State(*(torch.where(alive, new, old) for new, old in zip(lstm, state.lstm, strict=True)))
        return LatentState(torch.where(alive, z, state.z), kept, state.alive & ~ended), reward, ended

    @property
    def _numbers_per_step(self) -> int:
        """Random numbers that a step takes per dream: for the choice of components, for the noise (in pairs), for the end."""
        config = self.world.mdnrnn.config
        d, k = config.latent_size, config.num_components
        return (k * d if config.factorization is Factorization.PER_DIMENSION else k) + d + d % 2 + 1

    def bound(self, z: Tensor) -> Tensor:
        """Keep latents (B, D) within what a dream may reach; see `DataStatistics`."""
        return z.clamp(self.world.mdnrnn.latent_low, self.world.mdnrnn.latent_high)

    def expected_reward(self, reward: GaussianMixture) -> Tensor:
        """Expected reward (B,), within the bounds of dreams, of what M predicts."""
        return reward.expectation().clamp(self.world.mdnrnn.reward_low, self.world.mdnrnn.reward_high)[:, 0]

    def _alive(self, z: Tensor, lstm: State) -> LatentState:
        return LatentState(z, lstm, torch.ones(self.batch_size, dtype=torch.bool, device=z.device))

    def _ends(self, logit: Tensor, generator: torch.Generator | Streams) -> Tensor:
        if self.termination == "threshold":
            return logit > 0
        return shared_draws(logit, self.num_groups, lambda noise: fill_uniform(noise, generator)) < logit.sigmoid()


class RandomActions:
    """A policy for dreams that draws actions uniformly from the space, whatever the features.

    Args:
        world: says the action space and the device.
        generator: source of randomness.
    """

    features: FeatureKind = "z"

    def __init__(self, world: WorldModel, *, generator: torch.Generator):
        self._space, self._generator = world.action_features, generator

    def __call__(self, features: Tensor) -> Value:
        """Draw one action for each row of ``features`` (B, F)."""
        return self._space.sample(features.shape[0], generator=self._generator)
