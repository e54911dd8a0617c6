"""Rewards of dreams: M's expected reward, a sample of it, or a user's reward function.

A reward function replaces M's reward head, in dreams, searches and environments alike. It maps a batch of decoded
(observation, action, next observation) to rewards (B,). A `LatentReward` maps latents and action features instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from worldmodel.models import WorldModel
from worldmodel.spaces import Value, as_numbers, map_leaves

RewardMode = Literal["expected", "sampled"]
REWARD_MODES: tuple[RewardMode, ...] = ("expected", "sampled")
RewardFunction = Callable[[Value, Value, Value], Tensor]  # batches of (observation, action, next observation) -> rewards (B,)


@dataclass(frozen=True)
class LatentReward:
    """A reward function of latents, which needs no decoder.

    Args:
        function: maps z (B, D), action features (B, A) and the next z (B, D) to rewards (B,).
    """

    function: Callable[[Tensor, Tensor, Tensor], Tensor]


Reward = RewardFunction | LatentReward | str  # a string is the name of one, "module:function"


def load_reward(reward: Reward | None) -> RewardFunction | LatentReward | None:
    """Return a reward function, imported if it is given by name; None stays None.

    Raises:
        ValueError: if it is neither a function nor the name "module:function" of one that can be imported.
    """
    if not isinstance(reward, str):
        if reward is None or isinstance(reward, LatentReward) or callable(reward):
            return reward
        raise ValueError(f"reward: expected None, a function or its name, 'module:function', got {reward!r}")
    module, _, name = reward.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"reward: expected a function or its name, 'module:function', got {reward!r}") from error
    if not (isinstance(function, LatentReward) or callable(function)):
        raise ValueError(f"reward: expected the name of a function, got {reward!r}, which is {function!r}")
    return function


def reward_name(reward: Reward) -> str:
    """Return "module:name" of a reward function, for the record of a run; of an object, that of its class."""
    if isinstance(reward, str):
        return reward
    function: Any = reward.function if isinstance(reward, LatentReward) else reward
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


class UserReward:
    """A user's reward function for the dreams of a world model.

    Args:
        reward: the function, or its name.
        world: the world model; its V needs a decoder unless the function is a `LatentReward`.

    Raises:
        ValueError: if the function cannot be imported, or V has no decoder.
    """

    def __init__(self, reward: Reward, world: WorldModel):
        self.reward, self._world = load_reward(reward), world
        self.name = reward_name(reward)
        if not isinstance(self.reward, LatentReward) and not world.vision.has_decoder:
            raise ValueError(
                f"reward: expected a V with a decoder for {self.name}, got {type(world.vision).__name__} without one; give a "
                "function of latents: LatentReward(function)"
            )

    def of_dreams(self, z: Tensor, action: Tensor, next_z: Tensor, running: Tensor, actions: Value | None = None) -> Tensor:
        """Evaluate the function on a dreamed step, with gradients if they are enabled: (B,).

        Args:
            z: (B, D) before the step.
            action: (B, A) action features.
            next_z: (B, D) after the step.
            running: (B,) bool; rewards of dreams that have ended must have the right shape only.
            actions: the actions in the form of the action space; from ``action`` if None.

        Raises:
            ValueError: if the result has another shape, or is not finite for a running dream.
            TypeError: if the result is not numeric.
        """
        if isinstance(self.reward, LatentReward):
            return self._checked(self.reward.function(z, action, next_z), z, running)
        given = self._world.action_features.unflatten(action) if actions is None else actions
        decode = self._world.vision.decode
        return self.of_observations(decode(z), given, decode(next_z), running, like=z)

    def of_observations(self, before: Value, actions: Value, after: Value, running: Tensor, *, like: Tensor) -> Tensor:
        """Evaluate a function of observations on B steps, as arrays or tensors; raises as `of_dreams` does."""
        assert self.reward is not None
        assert not isinstance(self.reward, LatentReward)
        parts = (map_leaves(lambda leaf: torch.as_tensor(leaf, device=like.device), part) for part in (before, actions, after))
        return self._checked(self.reward(*parts), like, running)

    def _checked(self, result: Any, like: Tensor, running: Tensor) -> Tensor:
        reward = as_numbers(result, "reward").to(like.device, like.dtype)
        if reward.shape != running.shape:
            raise ValueError(
                f"reward: expected a function that returns shape {tuple(running.shape)}, got {tuple(reward.shape)} from "
                f"{self.name}; return one number per step of the batch"
            )
        wrong = running & ~reward.isfinite()
        if bool(wrong.any()):
            row = int(wrong.int().argmax())
            raise ValueError(
                f"reward: expected finite numbers, got {float(reward[row])} at index {row} from {self.name}; it must be "
                "defined for every observation that a dream can reach"
            )
        return torch.where(running, reward, 0.0)


def check_rewards(world: WorldModel, reward: UserReward | None) -> None:
    """Raise if a search has nothing to maximise: no rewards, or rewards that are the same whatever an agent does.

    Raises:
        ValueError: if there is neither a reward head nor a reward function; if all rewards of the data were 0; or if they were
            all equal and no episode terminates.
    """
    model, fix = world.mdnrnn, "or give a reward function: Dreams(..., reward=...)"
    if reward is not None:
        return
    if model.reward_head is None:
        raise ValueError(
            "dreams: expected a world model that predicts rewards, got one without a reward head; fit it with "
            f"reward_head=True, {fix}"
        )
    low, high = model.reward_low.item(), model.reward_high.item()
    if low != high or (low != 0 and model.termination_head is not None):
        return
    better = "with rewards" if low == 0 else "in which episodes terminate, such as longer ones or of another policy ('repeat')"
    ends = "" if model.termination_head is not None else " and that predicts no terminations"
    raise ValueError(
        f"dreams: expected rewards that depend on the actions, got a world model whose data had the reward {low:g} at every "
        f"step{ends}; collect data {better}, {fix}"
    )
