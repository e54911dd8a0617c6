"""Scores of plans: each plan is dreamed from the present state, and its rewards, or negative costs, are summed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from worldmodel.agents.planner_config import PlannerConfig
from worldmodel.dream import Dreams, LatentState, Reward
from worldmodel.models import State, WorldModel
from worldmodel.spaces import Value, as_numbers

MOST_DREAMS = 16384  # at once: more episodes are planned for one after the other, so that memory stays bounded


@dataclass(frozen=True)
class PlannedStep:
    """One step of N dreams, for a user's cost function. Observations and actions are decoded when they are read.

    Args:
        world: the world model.
        z: (N, D) latents before the step.
        action_features: (N, A).
        next_z: (N, D) latents after the step.
        reward: (N,) reward that M expects; zeros without a reward head.
    """

    world: WorldModel
    z: Tensor
    action_features: Tensor
    next_z: Tensor
    reward: Tensor

    @cached_property
    def observation(self) -> Value:
        """Decoded observations before the step, (N, ...)."""
        return self.world.vision.decode(self.z)

    @cached_property
    def action(self) -> Value:
        """Actions in the form of the action space, (N, ...)."""
        return self.world.action_features.unflatten(self.action_features)

    @cached_property
    def next_observation(self) -> Value:
        """Decoded observations after the step, (N, ...)."""
        return self.world.vision.decode(self.next_z)


Cost = Callable[[PlannedStep], Tensor]  # costs (N,) of a dreamed step
TerminalValue = Callable[[LatentState], Tensor]  # values (N,) of the states at the end of plans


class OutOfTimeError(Exception):
    """The time for a decision was over before the plans of an iteration had been dreamed."""


class PlanScorer:
    """Dream plans and score them.

    Plans of one episode share the random numbers of their dreams, so that their scores differ by the plans only. No
    termination is sampled: rewards are weighted by the probability that the episode has not ended.

    Args:
        world: the world model.
        config: horizon, particles, discount and risk.
        cost: a function of `PlannedStep` that replaces the rewards; its result is minimised.
        reward: a reward function of the dreams, as in `Dreams`.
        terminal_value: value of the state at the end of a plan, in rewards.
    """

    def __init__(
        self,
        world: WorldModel,
        config: PlannerConfig,
        *,
        cost: Cost | None = None,
        reward: Reward | None = None,
        terminal_value: TerminalValue | None = None,
    ):
        self.world, self._config = world, config
        self._cost, self._terminal_value = _callable(cost, "cost"), _callable(terminal_value, "terminal_value")
        self._one = Dreams(
            world,
            1,
            temperature=config.temperature,
            reward=reward,
            member_per=config.member_per,
            penalty=config.penalty,
        )
        self.user_reward = self._one.reward
        self._dreams: dict[tuple[int, int], Dreams] = {}

    def __call__(
        self, state: LatentState, plans: Tensor, phase: int, generator: torch.Generator, deadline: float = math.inf
    ) -> Tensor:
        """Score plans.

        Args:
            state: of B episodes.
            plans: (N, B, K, A) action features.
            phase: steps for which the first action of the plans has already been held.
            generator: source of randomness.
            deadline: time by `time.perf_counter` after which `OutOfTimeError` is raised.

        Returns:
            (N, B), larger is better; the worst possible score where numbers overflow.

        Raises:
            OutOfTimeError: if the deadline has passed.
            ValueError: if a function of the user returns another shape or a number that is not finite.
        """
        num_plans, batch = plans.shape[:2]
        size = max(1, MOST_DREAMS // (num_plans * self._config.particles))
        parts = []
        for first in range(0, batch, size):
            rows = slice(first, first + size)
            lstm = State(*(part[:, rows] for part in state.lstm))
            part = LatentState(state.z[rows], lstm, state.alive[rows])
            parts.append(self._returns(part, plans[:, rows], phase, generator, deadline))
        scores = self._risk(torch.cat(parts, dim=1))
        return scores.nan_to_num(nan=-math.inf, posinf=-math.inf).clamp(min=-torch.finfo(scores.dtype).max / 4)

    def _returns(self, state: LatentState, plans: Tensor, phase: int, generator: torch.Generator, deadline: float) -> Tensor:
        """Dream the plans of some episodes: (N, B, P) sums of rewards for P particles."""
        (num_plans, batch), particles, config = plans.shape[:2], self._config.particles, self._config
        total = num_plans * batch * particles
        dreams = self._of_size(total, num_plans)
        lstm = State(*(part.repeat_interleave(particles, dim=1).repeat(1, num_plans, 1) for part in state.lstm))
        z = state.z.repeat_interleave(particles, dim=0).repeat(num_plans, 1)
        now = LatentState(z, lstm, torch.ones(total, dtype=torch.bool, device=z.device))
        returns, weight = z.new_zeros(total), z.new_ones(total)
        for t in range(config.horizon):
            if time.perf_counter() > deadline:
                raise OutOfTimeError
            action = plans[:, :, (phase + t) // config.hold].repeat_interleave(particles, dim=1).flatten(0, 1)
            drawn = dreams.draw(now, action, generator=generator)
            payoff = self._payoff(now.z, action, drawn.z, drawn.reward)
            if self._cost is not None:  # rewards have it already
                payoff = payoff - dreams.penalties(now.z, action, drawn.lstm, generator=generator)
            returns += weight * payoff
            survival = 1.0 if drawn.termination_logit is None else dreams.continuation(drawn.termination_logit)
            weight = weight * config.discount * survival
            now = LatentState(drawn.z, drawn.lstm, now.alive)
        if self._terminal_value is not None:
            returns += weight * _checked(self._terminal_value(now), now.z, "terminal_value", self._terminal_value)
        return returns.view(num_plans, batch, particles)

    def _payoff(self, z: Tensor, action: Tensor, next_z: Tensor, reward: Tensor | None) -> Tensor:
        reward = torch.zeros_like(z[:, 0]) if reward is None else reward
        if self._cost is None:
            return reward
        step = PlannedStep(self.world, z, action, next_z, reward)
        given = {"z": z, "action_features": action, "next_z": next_z, "reward": reward}
        before = [_version(part) for part in given.values()]
        result = self._cost(step)
        changed = [name for (name, part), old in zip(given.items(), before, strict=True) if _version(part) != old]
        if changed:  # the dream would go on from them
            raise ValueError(
                f"cost: expected a function that leaves the step as it is, got changed {', '.join(changed)} from "
                f"{_name(self._cost)}; compute with new tensors"
            )
        return -_checked(result, z, "cost", self._cost)

    def _risk(self, returns: Tensor) -> Tensor:
        """Mean of the worst share of the particles: (N, B, P) -> (N, B)."""
        worst = math.ceil(self._config.cvar * returns.shape[-1])
        return returns.mean(dim=-1) if worst == returns.shape[-1] else returns.sort(dim=-1).values[..., :worst].mean(dim=-1)

    def _of_size(self, total: int, num_groups: int) -> Dreams:
        key = (total, num_groups)
        if key not in self._dreams:
            self._dreams[key] = self._one.variant(num_dreams=total, num_groups=num_groups)
        return self._dreams[key]


def _callable(function: Any, name: str) -> Any:
    """Return a function of the user, or None.

    Raises:
        TypeError: if it is something else.
    """
    if function is not None and not callable(function):
        raise TypeError(f"{name}: expected a function, got {function!r}")
    return function


def _version(tensor: Tensor) -> int:
    """Number of times that a tensor was written to in place; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _name(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _checked(result: object, like: Tensor, name: str, function: object) -> Tensor:
    """Return the result of a user's function as numbers (N,), or raise an error that names it."""
    source = _name(function)
    try:
        numbers = as_numbers(result, name).to(like.device, like.dtype)
    except TypeError as error:
        raise TypeError(
            f"{name}: expected a function that returns numbers ({len(like)},), got {type(result).__name__} from {source}; "
            "return a tensor of one real number per step of the batch"
        ) from error
    if numbers.shape != like.shape[:1]:
        raise ValueError(
            f"{name}: expected a function that returns shape ({len(like)},), got {tuple(numbers.shape)} from {source}; return "
            "one number per step of the batch"
        )
    wrong = ~numbers.isfinite()
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise ValueError(
            f"{name}: expected finite numbers, got {float(numbers[row])} at index {row} from {source}; it must be defined for "
            "every state that a dream can reach"
        )
    return numbers
