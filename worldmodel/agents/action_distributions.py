r"""A controller's outputs as a distribution over its actions, for learning by trial; alone, they choose without chance.

With outputs y and breadth s, choice k of n ordered ones, whose bounds are :math:`b_k = \operatorname{artanh}(2 k / n - 1)`,
has probability :math:`\sigma((b_{k+1} - y) / s) - \sigma((b_k - y) / s)`; one of n with an output each :math:`softmax(y / s)`;
and the outputs for a Box are drawn from :math:`N(y, s^2)` before they are squashed to its bounds.
"""

from __future__ import annotations

import abc
import math

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn import functional

from worldmodel.agents.controller import Controller
from worldmodel.rng import Source, fill_exponential, fill_normal

SMALLEST_PROBABILITY = 1e-8


class Choices(abc.ABC):
    """What a controller may choose, and how likely.

    Args:
        controller: whose outputs they are.
        breadth: s > 0.
    """

    def __init__(self, controller: Controller, breadth: float):
        self._space, self._breadth = controller.action_features, breadth

    @abc.abstractmethod
    def draw(self, outputs: Tensor, source: Source) -> Tensor:
        """Draw one choice for each row of outputs (B, A): (B,) or (B, A), as `log_prob` takes them."""

    @abc.abstractmethod
    def features(self, choice: Tensor) -> Tensor:
        """Turn choices into action features (B, size of the action)."""

    @abc.abstractmethod
    def log_prob(self, outputs: Tensor, choice: Tensor) -> Tensor:
        """Log-probability, or log-density, of choices: (B,) in nats."""

    @abc.abstractmethod
    def entropy(self, outputs: Tensor) -> Tensor:
        """Entropy of the choice, (B,) in nats."""


class DiscreteChoices(Choices):
    """Choices of a Discrete space, ordered or not, counted from 0."""

    def __init__(self, controller: Controller, breadth: float):
        super().__init__(controller, breadth)
        assert isinstance(controller.action_features.space, gym.spaces.Discrete)
        self._first, n = int(controller.action_features.space.start), int(controller.action_features.space.n)
        self._bounds = [math.atanh(2 * k / n - 1) for k in range(1, n)] if controller.ordered else None

    def draw(self, outputs: Tensor, source: Source) -> Tensor:
        """Draw by exponential races."""
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
        """Log-probabilities of all choices: (B, n)."""
        if self._bounds is None:
            return (outputs / self._breadth).log_softmax(dim=1)
        beyond = (outputs.new_tensor(self._bounds) - outputs) / self._breadth  # (B, n - 1)
        below, above = functional.logsigmoid(beyond), functional.logsigmoid(-beyond)
        between = below[:, 1:].exp() - below[:, :-1].exp()
        return torch.cat([below[:, :1], between.clamp(min=SMALLEST_PROBABILITY).log(), above[:, -1:]], dim=1)


class BoxChoices(Choices):
    """Outputs of a controller of a Box, with Gaussian noise."""

    def draw(self, outputs: Tensor, source: Source) -> Tensor:
        """Draw outputs."""
        return outputs + self._breadth * fill_normal(torch.empty_like(outputs), source)

    def features(self, choice: Tensor) -> Tensor:
        """The action that the controller would take by these outputs."""
        return self._space.flatten(self._space.unflatten(self._space.squash(choice)))

    def log_prob(self, outputs: Tensor, choice: Tensor) -> Tensor:
        """Log-density of the outputs before they are squashed."""
        return torch.distributions.Normal(outputs, self._breadth).log_prob(choice).sum(dim=1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Entropy of the same; always one number."""
        return torch.distributions.Normal(outputs, self._breadth).entropy().sum(dim=1)


def make_choices(controller: Controller, breadth: float) -> Choices:
    """The distribution over the actions of a controller.

    Raises:
        ValueError: if the action space is neither Discrete with two choices or more nor a Box.
    """
    space = controller.action_features.space
    if isinstance(space, gym.spaces.Discrete) and space.n > 1:
        return DiscreteChoices(controller, breadth)
    if isinstance(space, gym.spaces.Box):
        return BoxChoices(controller, breadth)
    raise ValueError(f"controller: expected a Discrete action space of two or more choices, or a Box, got {space}")
