r"""How much the members of an ensemble disagree about a step, and a penalty for it in the rewards of dreams.

- **Variance of means**: of the members' mean next z, over the members, in units of the typical change; averaged over the random
  numbers in z. 0 where all agree, 1 where they are as far apart as z usually moves in a step.
- **Mutual information** between the next z and the member that predicts it: the entropy of the mixture of all members minus the
  mean of their entropies, from 0 to :math:`\log K` nats,

  .. math:: I = \frac{1}{K} \sum_k E_{z \sim p_k} \left[\log p_k(z) - \log \frac{1}{K} \sum_j p_j(z)\right],

  by Monte Carlo. It measures disagreement relative to the noise that the members predict: where they are nearly certain, a
  small difference already separates them.

An agent that is trained in dreams finds the states in which M is wrong and pays too much. There the members, which were trained
on different data, usually disagree. So a penalty on disagreement keeps the agent where the model can be trusted: MOPO (Yu et
al. 2020) subtracts the uncertainty from the reward, MOReL (Kidambi et al. 2020) pays a constant penalty where it exceeds a
threshold, and ends the episode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldmodel.mixtures import MemberMixture
from worldmodel.models import MDNRNN, MDNRNNEnsemble, State, WorldModel
from worldmodel.rng import Source
from worldmodel.runtime import check_integers, check_numbers

Measure = Literal["variance", "information"]
MEASURES: tuple[Measure, ...] = ("variance", "information")


class Information(NamedTuple):
    """A Monte Carlo estimate of the mutual information.

    Args:
        nats: (...) the estimate.
        standard_error: (...) its standard error.
    """

    nats: Tensor
    standard_error: Tensor


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """A penalty for the disagreement of an ensemble, in the rewards of dreams.

    Args:
        weight: penalty per unit of the measure, in standard deviations of the rewards of the training data
            (`DataStatistics.reward_scale`).
        measure: "variance" of the members' means, or mutual "information", which costs more time and adds noise to the reward.
        threshold: with a number, a step pays ``weight`` where the measure exceeds it, and nothing elsewhere.
        num_samples: of each member, for the information.

    Raises:
        ValueError: naming the field that is out of range.
        TypeError: naming the field of another type.
    """

    weight: float = 1.0
    measure: Measure = "variance"
    threshold: float | None = None
    num_samples: int = 2

    def __post_init__(self) -> None:
        """Check every field."""
        check_numbers(self, {"weight": "[0, inf)"})
        check_numbers(self, {"threshold": "[0, inf)"}, optional=("threshold",))
        check_integers(self, {"num_samples": 2})
        if self.measure not in MEASURES:
            raise ValueError(f"measure: expected one of {', '.join(MEASURES)}, got {self.measure!r}")

    @classmethod
    def of(cls, given: Penalty | float | None, world: WorldModel) -> Penalty | None:
        """Return the penalty that an argument means: a number is a weight; None or a weight of 0 is none.

        Raises:
            ValueError: if there is a penalty, but M is no ensemble.
        """
        penalty = given if isinstance(given, Penalty) else cls(weight=0.0 if given is None else given)
        if penalty.weight == 0:
            return None
        _check_ensemble(world.mdnrnn, "penalty")
        return penalty

    def of_steps(
        self, world: WorldModel, z: Tensor, action: Tensor, after: State, *, num_groups: int = 1, generator: Source = None
    ) -> Tensor:
        """Return what is subtracted from the reward of each step: (B,).

        Args:
            world: a world model with an ensemble.
            z: (B, D) before the step.
            action: (B, A) action features.
            after: M's state after the step.
            num_groups: as in `Dreams`.
            generator: source of the samples for the information.
        """
        model = world.mdnrnn
        if self.measure == "variance":
            found = variance_of_means(model, z, action, after)
        else:
            options = {"num_samples": self.num_samples, "num_groups": num_groups}
            found = mutual_information(model, z, action, after, generator=generator, **options).nats
        if self.threshold is not None:
            found = (found > self.threshold).to(found.dtype)
        return self.weight * model.reward_scale * found


def variance_of_means(model: MDNRNN, z: Tensor, action: Tensor, after: State) -> Tensor:
    """Variance of the members' mean next z, in squared units of the typical change, averaged over the numbers in z: (B,).

    Args:
        model: an ensemble.
        z: (B, D) before the step.
        action: (B, A) action features.
        after: M's state after the step, which `MDNRNN.advance` returns.

    Raises:
        ValueError: if ``model`` is no ensemble.
    """
    means = _latent(model, z, action, after).means() / model.frame.units(model.change_scale)  # (B, K, D)
    return means.var(dim=-2).sum(dim=-1) / model.frame.num_variables


def mutual_information(
    model: MDNRNN,
    z: Tensor,
    action: Tensor,
    after: State,
    *,
    num_samples: int = 32,
    num_groups: int = 1,
    generator: Source = None,
) -> Information:
    """Mutual information of the next z and the member that predicts it, in nats, with its standard error: (B,) each.

    Args:
        model: an ensemble.
        z: (B, D) before the step.
        action: (B, A) action features.
        after: M's state after the step.
        num_samples: of each member, at least 2.
        num_groups: groups of rows that share their random numbers; see `worldmodel.mixtures.shared_draws`.
        generator: source of randomness.

    Raises:
        ValueError: if ``model`` is no ensemble.
    """
    latent = _latent(model, z, action, after)
    rows = [_gains(latent, number, num_groups, generator) for number in range(len(latent.members)) for _ in range(num_samples)]
    gains = torch.stack(rows, dim=-1).unflatten(-1, (len(latent.members), num_samples))  # (B, K, S)
    variance = gains.var(dim=-1).mean(dim=-1) / (len(latent.members) * num_samples)
    return Information(gains.mean(dim=(-2, -1)), variance.sqrt())


def _gains(latent: MemberMixture, number: int, num_groups: int, generator: Source) -> Tensor:
    """Log-density of a sample of one member, minus its log-density in the mixture of all: (B,)."""
    x = latent.members[number].sample(num_groups=num_groups, generator=generator)
    each = torch.stack([member.log_prob(x) for member in latent.members], dim=-1)  # (B, K)
    return each[..., number] - each.logsumexp(dim=-1) + math.log(each.shape[-1])


def _latent(model: MDNRNN, z: Tensor, action: Tensor, after: State) -> MemberMixture:
    return _check_ensemble(model, "model").predict_from(z, action, after)


def _check_ensemble(model: MDNRNN, name: str) -> MDNRNNEnsemble:
    """Return an ensemble, or raise if it is none."""
    if not isinstance(model, MDNRNNEnsemble):
        raise ValueError(
            f"{name}: expected an ensemble in the world model, got a single M; fit it with ensemble=5 (--ensemble 5)"
        )
    return model
