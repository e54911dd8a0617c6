r"""What a step brings beside z_{t+1}: the reward and the termination, given z_{t+1} or not.

.. math:: p(z_{t+1}, r_t, d_t \mid h) = p(z_{t+1} \mid h) \; p(r_t \mid h, z_{t+1}) \; p(d_t \mid h, z_{t+1})

If an environment is stochastic, reward and termination often depend on where the step led. Heads that do not see
z_{t+1} can only predict their mean over all places: a dream then enters a hole of a frozen lake without ending, and ends
elsewhere. In training z_{t+1} is the true one, in a dream the sampled one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from worldmodel.mixtures import LatentDistribution, MemberMixture, RewardDistribution
from worldmodel.models.mdnrnn_config import MDNRNNConfig

DEFAULT_OUTCOME_SIZE = 16  # units of the layer in a new fit (dev/LOG.md)


class Outcome(NamedTuple):
    """Reward and termination of a step, for every element of the batch shape (...).

    Args:
        reward: distribution over r_t, over one number, batch shape (...): a `GaussianMixture`, or a `MixedDistribution` if M
            has ``reward_atoms``, or a `MemberMixture` of these of an ensemble; None without the head.
        termination_logit: (...) log-odds that the episode terminates with this step; None without the head.
    """

    reward: RewardDistribution | MemberMixture | None
    termination_logit: Tensor | None


class Prediction:
    """M's prediction of the next step, for every element of the batch shape (...).

    ``latent`` is the distribution over z_{t+1}, batch shape (...).

    Args:
        latent: that distribution.
        outcome: returns reward and termination for the next latent (..., D), or for None if M's heads do not see it.
    """

    def __init__(self, latent: LatentDistribution, outcome: Callable[[Tensor | None], Outcome]):
        self.latent, self._outcome = latent, outcome

    def outcome(self, next_z: Tensor) -> Outcome:
        """Predict reward and termination given the next latent ``next_z`` (..., D): a true one, or a sample of ``latent``.

        With ``outcome_size`` 0 in M's configuration they do not depend on it.

        Raises:
            ValueError: if ``next_z`` is of another shape.
        """
        return self._outcome(next_z)

    @property
    def reward(self) -> RewardDistribution | MemberMixture | None:
        """`Outcome.reward`, if M's heads do not see the next latent.

        Raises:
            ValueError: if they do.
        """
        return self._marginal.reward

    @property
    def termination_logit(self) -> Tensor | None:
        """`Outcome.termination_logit`, if M's heads do not see the next latent.

        Raises:
            ValueError: if they do.
        """
        return self._marginal.termination_logit

    @cached_property
    def _marginal(self) -> Outcome:
        return self._outcome(None)


class OutcomeLayer(nn.Module):
    """Features of a head that sees the next latent: M's features f, followed by tanh(W [f, z_{t+1}, u] + b).

    u is the change of those numbers of z whose change is predicted, in its units. As tanh is bounded, a z_{t+1} far from the
    data, as at a high temperature, does not send the heads far from what they learned.

    Args:
        in_features: F, size of M's features.
        latent_size: D.
        num_changes: C, how many changes u holds.
        size: U, units of the layer.
    """

    def __init__(self, in_features: int, latent_size: int, num_changes: int, size: int):
        super().__init__()
        self.linear = nn.Linear(in_features + latent_size + num_changes, size)

    def forward(self, features: Tensor, next_z: Tensor, change: Tensor) -> Tensor:
        """Turn features (..., F), z_{t+1} (..., D) and changes (..., C) into features (..., F + U)."""
        return torch.cat([features, torch.tanh(self.linear(torch.cat([features, next_z, change], dim=-1)))], dim=-1)


def new_outcome_layers(config: MDNRNNConfig, features: int, latent_size: int, num_changes: int) -> nn.ModuleDict:
    """Make the layers of the heads that there are, by the name of the head; none if ``outcome_size`` is 0.

    Args:
        config: M's configuration.
        features: F, size of the features that all heads see.
        latent_size: D.
        num_changes: C.
    """
    present = {"reward": config.reward_head, "termination": bool(config.termination_head)}
    names = [name for name, there in present.items() if there and config.outcome_size]
    return nn.ModuleDict({name: OutcomeLayer(features, latent_size, num_changes, config.outcome_size or 0) for name in names})


def through_layers(layers: nn.ModuleDict, features: dict[str, Tensor], next_z: Tensor, change: Tensor) -> dict[str, Tensor]:
    """Apply the layers of the heads; those whose heads see the same features are one product.

    Args:
        layers: `OutcomeLayer` by the name of the head.
        features: of each head, (..., F).
        next_z: z_{t+1}, (..., D).
        change: the changes, (..., C).

    Returns:
        (..., F + U) by the name of the head.
    """
    first = next(iter(features.values()))
    if any(each is not first for each in features.values()):
        return {name: layers[name](seen, next_z, change) for name, seen in features.items()}
    linears = [cast(nn.Linear, layers[name].linear) for name in features]
    weight, bias = torch.cat([each.weight for each in linears]), torch.cat([each.bias for each in linears])
    units = torch.tanh(nn.functional.linear(torch.cat([first, next_z, change], dim=-1), weight, bias))
    parts = units.split([each.out_features for each in linears], dim=-1)
    return {name: torch.cat([first, part], dim=-1) for name, part in zip(features, parts, strict=True)}


def check_next(z: Tensor, next_z: Tensor | None) -> Tensor:
    """Return the next latent (..., D) if it is given and has the shape of ``z``.

    Raises:
        ValueError: otherwise.
    """
    if next_z is None:
        raise ValueError("next_z: expected the next latent, on which the heads depend; call Prediction.outcome(next_z)")
    if next_z.shape != z.shape:
        raise ValueError(f"next_z: expected shape {tuple(z.shape)}, got {tuple(next_z.shape)}")
    return next_z


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return the same numbers, with their gradient multiplied by ``factor``."""
    return x if factor == 1 else x.detach().lerp(x, factor)
