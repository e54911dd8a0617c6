r"""Distributions over actions from an agent's outputs, for policy gradients; outside of training the agent is deterministic.

With outputs y and breadth s, which is a number or depends on the state: action k of n ordered ones, with the bounds
:math:`b_k = \operatorname{artanh}(2 k / n - 1)`, has probability :math:`\sigma((b_{k+1} - y) / s) - \sigma((b_k - y) / s)`; n
actions with an output each have probabilities :math:`softmax(y / s)`; and for a Box the outputs are sampled from
:math:`N(y, s^2)` before they are squashed to its bounds.
"""

from __future__ import annotations

import abc
import copy
import math
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn import functional

from worldmodel.rng import Source, fill_exponential, fill_normal

SMALLEST_PROBABILITY = 1e-8


class Choices(abc.ABC):
    """A distribution over actions.

    Args:
        agent: agent with ``action_features``, and ``ordered`` if its actions are ordered.
        breadth: s > 0; `with_breadth` gives each state another one.
    """

    def __init__(self, agent: Any, breadth: float):
        self._space = agent.action_features
        self._breadth: float | Tensor = breadth

    @property
    @abc.abstractmethod
    def num_breadths(self) -> int:
        """Number of breadths that may differ."""

    def with_breadth(self, breadth: Tensor) -> Choices:
        """Return the same distribution with a breadth for each row of outputs: (B, `num_breadths`)."""
        made = copy.copy(self)
        made._breadth = breadth
        return made

    @abc.abstractmethod
    def draw(self, outputs: Tensor, source: Source) -> Tensor:
        """Sample one action for each row of outputs (B, A): (B,) or (B, A), in the form that `log_prob` takes."""

    @abc.abstractmethod
    def features(self, choice: Tensor) -> Tensor:
        """Turn sampled actions into action features (B, size of the action)."""

    @abc.abstractmethod
    def log_prob(self, outputs: Tensor, choice: Tensor) -> Tensor:
        """Log-probability, or log-density, of actions: (B,) in nats."""

    @abc.abstractmethod
    def entropy(self, outputs: Tensor) -> Tensor:
        """Entropy of the distribution, (B,) in nats."""


class DiscreteChoices(Choices):
    """Actions of a Discrete space, ordered or not, counted from 0."""

    num_breadths = 1

    def __init__(self, agent: Any, breadth: float):
        super().__init__(agent, breadth)
        assert isinstance(agent.action_features.space, gym.spaces.Discrete)
        self._first, n = int(agent.action_features.space.start), int(agent.action_features.space.n)
        self._bounds = [math.atanh(2 * k / n - 1) for k in range(1, n)] if getattr(agent, "ordered", False) else None

    def draw(self, outputs: Tensor, source: Source) -> Tensor:
        """Sample by an exponential race."""
        log_probs = self.log_probs(outputs)
        return (log_probs - fill_exponential(torch.empty_like(log_probs), source).log()).argmax(dim=1)

    def features(self, choice: Tensor) -> Tensor:
        """One-hot."""
        return self._space.flatten(choice + self._first)

    def log_prob(self, outputs: Tensor, choice: Tensor) -> Tensor:
        """Log-probability."""
        return self.log_probs(outputs).gather(1, choice.unsqueeze(1))[:, 0]

    def entropy(self, outputs: Tensor) -> Tensor:
        """Entropy."""
        log_probs = self.log_probs(outputs)
        return -(log_probs.exp() * log_probs).sum(dim=1)

    def log_probs(self, outputs: Tensor) -> Tensor:
        """Log-probabilities of all actions: (B, n)."""
        if self._bounds is None:
            return (outputs / self._breadth).log_softmax(dim=1)
        beyond = (outputs.new_tensor(self._bounds) - outputs) / self._breadth  # (B, n - 1)
        below, above = functional.logsigmoid(beyond), functional.logsigmoid(-beyond)
        between = below[:, 1:].exp() - below[:, :-1].exp()
        return torch.cat([below[:, :1], between.clamp(min=SMALLEST_PROBABILITY).log(), above[:, -1:]], dim=1)


class BoxChoices(Choices):
    """Outputs for a Box, with Gaussian noise."""

    @property
    def num_breadths(self) -> int:
        """One per number of an action."""
        return int(self._space.size)

    def draw(self, outputs: Tensor, source: Source) -> Tensor:
        """Sample outputs."""
        return outputs + self._breadth * fill_normal(torch.empty_like(outputs), source)

    def features(self, choice: Tensor) -> Tensor:
        """Squash the outputs to an action, as the agent does, and flatten it."""
        return self._space.flatten(self._space.unflatten(self._space.squash(choice)))

    def log_prob(self, outputs: Tensor, choice: Tensor) -> Tensor:
        """Log-density of the outputs before they are squashed."""
        return torch.distributions.Normal(outputs, self._breadth).log_prob(choice).sum(dim=1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Entropy of the outputs before they are squashed; the same for all if the breadth is."""
        return torch.distributions.Normal(outputs, self._breadth).entropy().sum(dim=1)


def make_choices(agent: Any, breadth: float) -> Choices:
    """Make the distribution over the actions of an agent.

    Args:
        agent: agent with ``action_features``, and ``ordered`` if its actions are ordered.
        breadth: s > 0.

    Raises:
        ValueError: if the action space is neither Discrete with at least two actions nor a Box.
    """
    space = agent.action_features.space
    if isinstance(space, gym.spaces.Discrete) and space.n > 1:
        return DiscreteChoices(agent, breadth)
    if isinstance(space, gym.spaces.Box):
        return BoxChoices(agent, breadth)
    raise ValueError(f"agent: expected a Discrete action space of at least two actions, or a Box, got {space}")
