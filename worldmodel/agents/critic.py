"""Critic of PPO, which learns in units of the returns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TINY = 1e-12  # smallest spread of returns: if all returns are equal to the last bit, the initial critic explains them
ADAPTATION = 0.1  # share of the latest iteration in the mean and the spread of the returns


class Critic(nn.Module):
    """A hidden layer and a linear one, whose output is in units of the returns (PopArt: van Hasselt et al. 2016).

    Rewards differ by orders of magnitude between worlds, and Adam's steps do not: the value of a goal that pays 1 once in a
    hundred steps is below the noise of a critic that learns values near 1.

    Args:
        size: F, size of the features.
        hidden: units of the hidden layer.
        value: the initial value of all features.
        generator: samples the hidden layer.
    """

    mean: Tensor
    unit: Tensor
    adapted: Tensor  # (), bool: whether returns were seen that differ

    def __init__(self, size: int, hidden: int, value: float, generator: torch.Generator):
        super().__init__()
        made = {"device": generator.device, "dtype": torch.float32}
        self.first, self.last = (nn.utils.skip_init(nn.Linear, *pair, **made) for pair in ((size, hidden), (hidden, 1)))
        nn.init.normal_(self.first.weight, std=size**-0.5, generator=generator)
        for parameter in (self.first.bias, self.last.weight, self.last.bias):
            nn.init.zeros_(parameter)
        for name, number in {"mean": value, "unit": 1.0}.items():
            self.register_buffer(name, torch.tensor(number, device=generator.device, dtype=torch.float32))
        self.register_buffer("adapted", torch.tensor(False, device=generator.device))

    def forward(self, features: Tensor) -> Tensor:
        """Values (B,) of features (B, F)."""
        return self.mean + self.unit * self._relative(features)

    def loss(self, features: Tensor, returns: Tensor) -> Tensor:
        """Mean squared error of the values of N steps, in units of the returns (N,)."""
        return (self._relative(features) - (returns - self.mean) / self.unit).square().mean()

    @torch.no_grad()
    def adapt(self, returns: Tensor) -> None:
        """Move mean and unit towards those of returns (N,), and the last layer so that no value changes."""
        rate = ADAPTATION if bool(self.adapted) else 1.0
        mean, spread = self.mean.lerp(returns.mean(), rate), returns.std(correction=0)
        unit = self.unit.square().lerp(spread.square(), rate).sqrt() if spread > TINY else self.unit
        self.last.weight *= self.unit / unit
        self.last.bias.mul_(self.unit).add_(self.mean - mean).div_(unit)
        self.mean.copy_(mean)
        self.unit.copy_(unit)
        self.adapted |= spread > TINY

    def _relative(self, features: Tensor) -> Tensor:
        relative: Tensor = self.last(torch.tanh(self.first(features)))[:, 0]
        return relative
