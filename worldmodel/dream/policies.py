"""Policies for dreams that need no training: random, cyclic, repeated and recorded actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worldmodel.data import CyclicPolicy
from worldmodel.models import FeatureKind, WorldModel
from worldmodel.spaces import Value, map_leaves


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


class _Recorded:
    """A policy for dreams that plays recorded actions (T, ...), the same in every dream, whatever the features."""

    features: FeatureKind = "z"

    def __init__(self, actions: Value):
        self._actions, self._t = actions, 0

    def __call__(self, features: Tensor) -> Value:
        t, self._t = self._t, self._t + 1
        return map_leaves(
            lambda leaf: torch.as_tensor(leaf[t], device=features.device).expand(len(features), *leaf.shape[1:]), self._actions
        )


class CyclicActions:
    """`CyclicPolicy` in dreams, all of which do the same."""

    features: FeatureKind = "z"

    def __init__(self, actions: Sequence[Any], hold: int = 1):
        self._policy = CyclicPolicy(actions, hold)

    def __call__(self, features: Tensor) -> Value:
        """Return the action whose turn it is for each row of ``features`` (B, F)."""
        action = torch.as_tensor(self._policy(None), device=features.device)
        return action.expand(features.shape[0], *action.shape)


class RepeatedActions:
    """`RepeatPolicy` in dreams: uniform actions, each held for 1 to ``max_repeat`` steps."""

    features: FeatureKind = "z"

    def __init__(self, world: WorldModel, *, generator: torch.Generator, max_repeat: int = 10):
        self._draw, self._generator, self._max_repeat = RandomActions(world, generator=generator), generator, max_repeat
        self._actions: Value = None
        self._left: Tensor | None = None

    def __call__(self, features: Tensor) -> Value:
        """Return the held actions (B, ...), or fresh ones where their time is over."""
        fresh = self._draw(features)
        times = (features.shape[0],)
        holds = torch.randint(1, self._max_repeat + 1, times, generator=self._generator, device=features.device)
        if self._left is None:
            self._actions, self._left = fresh, holds
        else:
            over = self._left == 0
            self._left = torch.where(over, holds, self._left)
            self._actions = map_leaves(
                lambda new, old: torch.where(over.reshape(-1, *[1] * (new.ndim - 1)), new, old), fresh, self._actions
            )
        self._left = self._left - 1
        return self._actions
