r"""Distributions over plans: sequences of K actions for each of B episodes, which planners sample from and refit.

Numbers of a Box are Gaussian, with the mean m and the standard deviation s of each step; choices are categorical and bits
Bernoulli, with probabilities for each step. All are independent over steps and dimensions, except that the noise of Box numbers
may be coloured over time: its power falls with the frequency f as :math:`f^{-\beta}` (Pinneri et al. 2020, "Sample-efficient
Cross-Entropy Method for Real-time Planning"). With :math:`\beta = 0` it is white; with 2 and more, actions change slowly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldmodel.spaces import FlatSpace, Value, leaves

SMALLEST_PROBABILITY = 0.02  # of a choice, times the number of choices: no action is ruled out for good


@dataclass(frozen=True)
class ActionColumns:
    """What the columns of action features (..., A) mean to a planner.

    Args:
        box: (A,) bool, numbers of a Box.
        bits: (A,) bool, bits of a MultiBinary.
        choices: columns of each choice, one-hot.
        low: (A,) smallest feature of a Box number; -inf without a bound.
        high: (A,) largest.
        half_range: (A,) units of the action space in one unit of a feature.
    """

    box: Tensor
    bits: Tensor
    choices: tuple[slice, ...]
    low: Tensor
    high: Tensor
    half_range: Tensor

    @classmethod
    def of(cls, features: FlatSpace, limits: tuple[Value, Value] | None = None) -> ActionColumns:
        """Describe the features of an action space.

        Args:
            features: the action space.
            limits: smallest and largest action, values of the space, which narrow the bounds of its Boxes.

        Raises:
            ValueError: if the limits leave no action, or have another shape.
        """
        groups: list[slice] = []
        bits = torch.zeros(features.size, dtype=torch.bool, device=features.low.device)
        for path, leaf in leaves(features.space):
            part = features.features_of(path)
            if isinstance(leaf, gym.spaces.MultiBinary):
                bits[part] = True
            sizes = [leaf.n] if isinstance(leaf, gym.spaces.Discrete) else getattr(leaf, "nvec", np.empty(0)).reshape(-1)
            for first, size in zip(part.start + np.cumsum([0, *sizes]), sizes, strict=False):
                groups.append(slice(int(first), int(first + size)))
        box = ~bits
        for group in groups:
            box[group] = False
        low, high = ((bound - features.center) / features.half_range for bound in (features.low, features.high))
        if limits is not None:
            narrow, wide = _flat_limits(features, limits, low.device)
            low, high = torch.where(box, low.maximum(narrow), low), torch.where(box, high.minimum(wide), high)
        if bool((box & (low > high)).any()):
            raise ValueError(f"limits: expected a smallest and a largest action of {features.space}, got none in between")
        low, high = torch.where(box, low, 0.0), torch.where(box, high, 1.0)
        return cls(box, bits, tuple(groups), low, high, features.half_range)


def _flat_limits(features: FlatSpace, limits: tuple[Value, Value], device: torch.device) -> list[Tensor]:
    """Return the features of the smallest and the largest action."""
    expected = f"limits: expected a smallest and a largest action of {features.space}, got {' '.join(repr(limits).split())}"
    try:
        smallest, largest = limits
        found = [features.flatten(limit).to(device).float() for limit in (smallest, largest)]
    except (TypeError, ValueError) as error:
        raise ValueError(expected) from error
    if any(bool(one.isnan().any()) for one in found):
        raise ValueError(expected)
    return found


@dataclass(frozen=True)
class PlanDistribution:
    """Independent distributions of K actions of B episodes.

    Args:
        columns: meaning of the A features of an action.
        mean: (B, K, A) means of Box numbers, probabilities of choices and bits.
        std: (B, K, A) standard deviations of Box numbers; 0 in other columns.
    """

    columns: ActionColumns
    mean: Tensor
    std: Tensor

    @classmethod
    def initial(cls, columns: ActionColumns, num_episodes: int, steps: int, breadth: float) -> PlanDistribution:
        """Return the distribution before anything is known: wide around the middle, and uniform over choices.

        Args:
            columns: meaning of the features.
            num_episodes: B.
            steps: K.
            breadth: standard deviation, relative to half the range of a number, or to its unit if it has no bounds.
        """
        bounded = columns.low.isfinite() & columns.high.isfinite()
        middle = torch.where(bounded, (columns.low + columns.high) / 2, 0.0).clamp(columns.low, columns.high)
        half = torch.where(bounded, (columns.high - columns.low) / 2, 1.0)
        mean, std = torch.where(columns.box, middle, 0.5), torch.where(columns.box, breadth * half, 0.0)
        for group in columns.choices:
            mean[group] = 1 / (group.stop - group.start)
        return cls(columns, *(part.expand(num_episodes, steps, -1).clone() for part in (mean, std)))

    def sample(self, num_plans: int, colour: float, generator: torch.Generator) -> Tensor:
        """Sample N = ``num_plans`` plans for each episode: action features (N, B, K, A), within the bounds."""
        shape = (num_plans, *self.mean.shape)
        numbers = torch.empty(shape, device=self.mean.device)
        plans = self.mean + self.std * coloured_noise(shape, colour, generator, self.mean.device)
        plans = plans.clamp(self.columns.low, self.columns.high)
        if bool(self.columns.bits.any()):
            drawn = (numbers.uniform_(generator=generator) < self.mean).to(plans.dtype)
            plans = torch.where(self.columns.bits, drawn, plans)
        for group in self.columns.choices:  # the first of exponential clocks with these rates
            clocks = numbers[..., group].exponential_(generator=generator) / self.mean[..., group]
            index = clocks.argmin(dim=-1, keepdim=True)
            plans[..., group] = torch.zeros_like(clocks).scatter_(-1, index, 1.0)
        return plans

    def refit(self, plans: Tensor, weights: Tensor, *, momentum: float, smallest_std: Tensor | float) -> PlanDistribution:
        """Return the distribution that fits weighted plans best, mixed with this one.

        Args:
            plans: (N, B, K, A).
            weights: (N, B), which sum to 1 over N.
            momentum: share of this distribution in the result.
            smallest_std: lower bound of the standard deviations, in features, a number or (A,).
        """
        weight = weights[..., None, None]
        mean = (weight * plans).sum(dim=0)
        std = (weight * (plans - mean).square()).sum(dim=0).sqrt().clamp(min=smallest_std)
        mean, std = torch.lerp(mean, self.mean, momentum), torch.lerp(std, self.std, momentum)
        choice = ~self.columns.box
        least = torch.full_like(mean, SMALLEST_PROBABILITY / 2)
        for group in self.columns.choices:
            least[..., group] = SMALLEST_PROBABILITY / (group.stop - group.start)
        floored = torch.where(self.columns.bits, mean.clamp(least, 1 - least), mean.maximum(least))
        mean = torch.where(choice, floored, mean)
        for group in self.columns.choices:
            mean[..., group] = mean[..., group] / mean[..., group].sum(dim=-1, keepdim=True)
        return PlanDistribution(self.columns, mean, torch.where(choice, 0.0, std))

    def shifted(self, initial: PlanDistribution) -> PlanDistribution:
        """Return the distribution one step later: means move forward, and the last step repeats; widths start anew."""
        return replace(self, mean=torch.cat([self.mean[:, 1:], self.mean[:, -1:]], dim=1), std=initial.std)

    def rows(self, index: Tensor) -> PlanDistribution:
        """Return the distributions of some episodes."""
        return replace(self, mean=self.mean[index], std=self.std[index])

    def with_rows(self, index: Tensor, other: PlanDistribution) -> PlanDistribution:
        """Return the distributions with some episodes replaced by those of ``other``."""
        return replace(self, mean=self.mean.index_copy(0, index, other.mean), std=self.std.index_copy(0, index, other.std))


def coloured_noise(shape: tuple[int, ...], exponent: float, generator: torch.Generator, device: torch.device) -> Tensor:
    r"""Sample Gaussian noise of unit variance whose power falls with the frequency as :math:`f^{-exponent}`.

    Timmer & König 1995, "On generating power law noise". The frequency 0 gets the power of the lowest other one.

    Args:
        shape: (..., K, A); the noise is coloured over K and independent otherwise.
        exponent: beta >= 0; 0 is white noise.
        generator: source of randomness.
        device: device of the result and of the generator.
    """
    if exponent == 0 or shape[-2] == 1:
        return torch.empty(shape, device=device).normal_(generator=generator)
    steps = shape[-2]
    frequency = torch.fft.rfftfreq(steps, device=device).clamp(min=1 / steps)
    scale = frequency ** (-exponent / 2)
    parts = torch.empty(2, *shape[:-2], len(scale), shape[-1], device=device).normal_(generator=generator) * scale[:, None]
    real_only = torch.zeros(len(scale), dtype=torch.bool, device=device)
    real_only[0] = True
    real_only[-1] = steps % 2 == 0
    power = torch.where(real_only, 1.0, 4.0) * scale.square()
    signal = torch.complex(parts[0], torch.where(real_only[:, None], 0.0, parts[1]))
    return torch.fft.irfft(signal, n=steps, dim=-2) * (steps / math.sqrt(float(power.sum())))
