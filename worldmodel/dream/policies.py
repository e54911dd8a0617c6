"""Agents from policies on features, and agents that need no training: random, cyclic, repeated and recorded actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.data import CyclicPolicy
from worldmodel.dream.agent import Agent, LatentState
from worldmodel.models import FEATURE_KINDS, FeatureKind, WorldModel
from worldmodel.spaces import Value, map_leaves

METHODS = ("reset", "act", "save_pretrained")  # of an agent


class FeaturePolicy:
    """An agent made of a policy on features: it acts on z, (z, h) or (z, h, c) alone and keeps no state.

    Args:
        policy: features (B, F) -> a batch of B actions.
        features: kind of features; if None, the policy's attribute ``features``, or "zh" if it has none.

    Raises:
        ValueError: if ``features`` is unknown.
    """

    def __init__(self, policy: Callable[[Tensor], Value], features: FeatureKind | None = None):
        self.policy = policy
        self.features: FeatureKind = getattr(policy, "features", "zh") if features is None else features
        if self.features not in FEATURE_KINDS:
            raise ValueError(f"features: expected 'z', 'zh' or 'zhc', got {self.features!r}")

    def reset(self, num_episodes: int) -> None:
        """Do nothing: there is no state."""

    def act(self, state: LatentState) -> Value:
        """Return the policy's actions for B states."""
        return self.policy(state.features(self.features))

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Save the policy, if it can save itself.

        Raises:
            TypeError: if it cannot.
        """
        save = getattr(self.policy, "save_pretrained", None)
        if save is None:
            raise _cannot_save(self.policy)
        save(path, overwrite=overwrite)

    def check_world(self, world: WorldModel) -> None:
        """Raise if the policy has a method ``check_world`` and was not made for this world."""
        check = getattr(self.policy, "check_world", None)
        if check is not None:
            check(world)


def as_agent(policy: Agent | Callable[[Tensor], Value]) -> Agent:
    """Return an agent as it is, and wrap a policy on features as a `FeaturePolicy`.

    Raises:
        TypeError: if it is neither; names the missing methods.
    """
    missing = [name for name in METHODS if not callable(getattr(policy, name, None))]
    if not missing:
        return policy  # type: ignore[return-value]
    if callable(policy) and "act" in missing:
        return FeaturePolicy(policy)
    raise TypeError(
        f"agent: expected an agent with reset(num_episodes), act(state) and save_pretrained(path), or a function of features, "
        f"got {type(policy).__name__} without {', '.join(missing)}"
    )


def agent_of(policy: Agent | Callable[[Tensor], Value], world: WorldModel) -> Agent:
    """Return a policy as an agent after checking that it was made for a world, if it knows for which.

    Raises:
        TypeError: see `as_agent`.
        ValueError: from the agent's ``check_world``, if it has this method and was not made for the world.
    """
    agent = as_agent(policy)
    check = getattr(agent, "check_world", None)
    if check is not None:
        check(world)
    return agent


class _ActionSource:
    """An agent whose actions do not depend on the state."""

    def reset(self, num_episodes: int) -> None:
        """Begin episodes."""

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Raise: there is nothing to save.

        Raises:
            TypeError: always.
        """
        raise _cannot_save(self)


class RandomActions(_ActionSource):
    """An agent that samples actions uniformly from the space.

    Args:
        world: gives the action space and the device.
        generator: source of randomness.
    """

    def __init__(self, world: WorldModel, *, generator: torch.Generator):
        self._space, self._generator = world.action_features, generator

    def act(self, state: LatentState) -> Value:
        """Sample one action for each of B states."""
        return self._space.sample(len(state.z), generator=self._generator)


class RecordedActions(_ActionSource):
    """An agent that plays recorded actions, the same in every episode.

    Args:
        actions: nested arrays (T, ...), for episodes of up to T steps.
    """

    def __init__(self, actions: Value):
        self._actions, self._t = actions, 0

    def reset(self, num_episodes: int) -> None:
        """Begin episodes: the first action is next."""
        self._t = 0

    def act(self, state: LatentState) -> Value:
        """Return the next action for each of B states."""
        t, self._t, num = self._t, self._t + 1, len(state.z)
        return map_leaves(
            lambda leaf: torch.as_tensor(leaf[t], device=state.z.device).expand(num, *leaf.shape[1:]), self._actions
        )


class CyclicActions(_ActionSource):
    """An agent that repeats a cycle of actions, the same in every episode; see `worldmodel.data.CyclicPolicy`.

    Args:
        actions: values of the action space.
        hold: steps that each action is held for.
    """

    def __init__(self, actions: Sequence[Any], hold: int = 1):
        self._cycle, self._policy = (actions, hold), CyclicPolicy(actions, hold)

    def reset(self, num_episodes: int) -> None:
        """Begin episodes: the first action is next."""
        self._policy = CyclicPolicy(*self._cycle)

    def act(self, state: LatentState) -> Value:
        """Return the next action for each of B states."""
        action = torch.as_tensor(self._policy(None), device=state.z.device)
        return action.expand(len(state.z), *action.shape)


class RepeatedActions(_ActionSource):
    """An agent that samples actions uniformly and holds each for 1 to ``max_repeat`` steps; see `worldmodel.data.RepeatPolicy`.

    Args:
        world: gives the action space and the device.
        generator: source of randomness.
        max_repeat: longest hold, in steps.
    """

    def __init__(self, world: WorldModel, *, generator: torch.Generator, max_repeat: int = 10):
        self._random, self._generator, self._max_repeat = RandomActions(world, generator=generator), generator, max_repeat
        self._actions: Value = None
        self._left: Tensor | None = None

    def reset(self, num_episodes: int) -> None:
        """Begin episodes: all actions are sampled again."""
        self._actions = self._left = None

    def act(self, state: LatentState) -> Value:
        """Return the held actions (B, ...), or new ones in rows whose hold is over."""
        new = self._random.act(state)
        holds = torch.randint(1, self._max_repeat + 1, (len(state.z),), generator=self._generator, device=state.z.device)
        if self._left is None:
            self._actions, self._left = new, holds
        else:
            over = self._left == 0
            self._left = torch.where(over, holds, self._left)
            self._actions = map_leaves(
                lambda new, old: torch.where(over.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, self._actions
            )
        self._left = self._left - 1
        return self._actions


def _cannot_save(policy: object) -> TypeError:
    name = getattr(policy, "__qualname__", type(policy).__name__)
    return TypeError(f"agent: expected one that can be saved, got {name}; write a class with reset, act and save_pretrained")
