r"""Heads for the discrete parts of z: choices, as one-hot vectors, and bits.

A temperature divides the log-weights, so at 0 the sample is the most likely value. Samples are exactly 0 and 1. Gradients
through samples are straight-through (Bengio et al. 2013): those of the probabilities at the temperature, or at temperature 1
where it is 0. They are biased; the gradients through continuous parts are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from worldmodel.mixtures.gaussian import at_least_float32, categorical, check_temperature, shared_draws
from worldmodel.mixtures.heads import BELOW_ONE
from worldmodel.mixtures.latent_head import LatentHead
from worldmodel.rng import Source, fill_uniform
from worldmodel.runtime import check_integer


def align_temperature(temperature: float | Tensor, logits: Tensor, *, event_dims: int = 1) -> Tensor:
    """Return a temperature with trailing dimensions of 1, to divide logits (..., event).

    Raises:
        ValueError: if a number is negative or not finite, or a tensor's shape is not a prefix of the batch shape.
    """
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
        return logits.new_full((1,) * logits.ndim, float(temperature))
    batch = logits.shape[: logits.ndim - event_dims]
    if temperature.shape != batch[: temperature.ndim]:
        raise ValueError(
            f"temperature: expected a shape that is a prefix of the batch shape {tuple(batch)}, got {tuple(temperature.shape)}"
        )
    return temperature.to(logits.dtype).reshape(*temperature.shape, *(1,) * (logits.ndim - temperature.ndim))


class _StraightThrough(torch.autograd.Function):
    """Forward pass: the sample. Backward pass: that of the probabilities."""

    @staticmethod
    def forward(ctx: Any, sample: Tensor, probabilities: Tensor) -> Tensor:
        return sample.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def straight_through(sample: Tensor, probabilities: Tensor) -> Tensor:
    """Return ``sample`` with the gradient of ``probabilities``, both of one shape."""
    return _StraightThrough.apply(sample, probabilities)


class Segments:
    """Convert between C choices of sizes n_c side by side, (..., sum n_c), and one row each, (..., C, max n_c).

    Args:
        sizes: number of values of each choice.
    """

    def __init__(self, sizes: Sequence[int]):
        self.sizes, self.count, self.longest = tuple(sizes), len(sizes), max(sizes)
        self.equal = len(set(sizes)) == 1
        self.total = sum(sizes)
        index = torch.full((self.count, self.longest), self.total)
        first = 0
        for row, size in enumerate(sizes):
            index[row, :size] = torch.arange(first, first + size)
            first += size
        self._pad = index  # (C, max n), `total` where a choice has no such value
        rows = [torch.arange(row * self.longest, row * self.longest + size) for row, size in enumerate(sizes)]
        self._flat = torch.cat(rows)  # (total,), positions in (C * max n)

    def rows(self, flat: Tensor, fill: float) -> Tensor:
        """Return (..., C, max n) of (..., sum n_c), a view if all sizes are equal; missing values are ``fill``."""
        if self.equal:
            return flat.unflatten(-1, (self.count, self.longest))
        padded = torch.cat([flat, flat.new_full((*flat.shape[:-1], 1), fill)], dim=-1)
        return padded[..., self._on(flat.device)]

    def flat(self, rows: Tensor) -> Tensor:
        """Return (..., sum n_c) of (..., C, max n)."""
        joined = rows.flatten(-2)
        return joined if self.equal else joined[..., self._flat_on(rows.device)]

    def _on(self, device: torch.device) -> Tensor:
        self._pad = self._pad.to(device)
        return self._pad

    def _flat_on(self, device: torch.device) -> Tensor:
        self._flat = self._flat.to(device)
        return self._flat


class OneHot:
    """A batch of C independent categorical distributions over one-hot vectors, side by side in one vector.

    Args:
        logits: (..., sum n_c).
        segments: the sizes n_c.
    """

    def __init__(self, logits: Tensor, segments: Segments):
        self._segments = segments
        self.log_weights = segments.rows(at_least_float32(logits), -torch.inf).log_softmax(dim=-1)  # (..., C, max n)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of ``x`` (..., sum n_c) in nats, summed over the choices; -inf unless each is one-hot: (...)."""
        return self.log_probs(x).sum(dim=-1)

    def log_probs(self, x: Tensor) -> Tensor:
        """Log-probability of each choice, (..., C)."""
        rows = self._segments.rows(x, 0.0)
        index = rows.argmax(dim=-1, keepdim=True)
        valid = (rows.gather(-1, index) == 1)[..., 0] & ((rows != 0).sum(dim=-1) == 1)
        weights = self.log_weights.expand(*rows.shape)
        return torch.where(valid, weights.gather(-1, index)[..., 0], -torch.inf)

    @property
    def first_numbers(self) -> list[int]:
        """Place of the first number of each choice in the vector, (C,)."""
        return [sum(self._segments.sizes[:number]) for number in range(self._segments.count)]

    def chosen(self, observed: Tensor) -> Tensor:
        """Return for which choices all numbers of a mask (..., sum n_c) are true: (..., C)."""
        return self._segments.rows(observed, True).all(dim=-1)

    def expectation(self) -> Tensor:
        """Probabilities of all values, (..., sum n_c)."""
        return self._segments.flat(self.log_weights.exp())

    def mode(self) -> Tensor:
        """The most likely values, the first of equally likely ones, one-hot: (..., sum n_c)."""
        return self._one_hot(self.log_weights.argmax(dim=-1))

    def entropy(self) -> Tensor:
        """Entropy of each choice in nats, (..., C)."""
        return torch.special.entr(self.log_weights.exp()).sum(dim=-1)

    @torch.no_grad()
    def sample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample one-hot vectors (..., sum n_c) from p^(1 / tau), normalised; see `LatentDistribution.sample`."""
        if not isinstance(temperature, Tensor) and temperature == 0:
            return self.mode()
        tau = align_temperature(temperature, self.log_weights, event_dims=2)
        smallest = torch.finfo(self.log_weights.dtype).tiny
        shifted = self.log_weights - self.log_weights.amax(dim=-1, keepdim=True)
        index = categorical(shifted / tau.clamp(min=smallest), num_groups=num_groups, generator=generator)
        return self._one_hot(torch.where(tau[..., 0] >= smallest, index, shifted.argmax(dim=-1)))

    def rsample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample the same vectors as `sample`, with straight-through gradients."""
        sample = self.sample(temperature, num_groups=num_groups, generator=generator)
        tau = align_temperature(temperature, self.log_weights, event_dims=2)
        tau = torch.where(tau >= torch.finfo(tau.dtype).tiny, tau, 1.0)
        return straight_through(sample, self._segments.flat((self.log_weights / tau).softmax(dim=-1)))

    def affine(self, shift: Tensor, scale: Tensor) -> OneHot:
        """Return itself: a choice has no units."""
        return self

    def _one_hot(self, index: Tensor) -> Tensor:
        values = torch.arange(self._segments.longest, device=index.device)
        return self._segments.flat((index.unsqueeze(-1) == values).to(self.log_weights.dtype))


class ChoiceHead(LatentHead, registered=False):
    """A linear layer from features to C categorical distributions.

    Args:
        in_features: F, size of the features.
        sizes: number of values of each choice.
    """

    def __init__(self, in_features: int, sizes: Sequence[int]):
        super().__init__()
        for size in sizes:
            check_integer(size, "sizes", least=1)
        self.segments = Segments(sizes)
        self.linear = nn.Linear(in_features, self.segments.total)

    @classmethod
    def from_config(cls, in_features: int, dim: int, config: Any) -> ChoiceHead:
        """Make one choice among ``dim`` values."""
        return cls(in_features, [dim])

    def forward(self, features: Tensor) -> OneHot:
        """Turn features (..., F) into distributions over one-hot vectors (..., sum n_c)."""
        return OneHot(self.linear(features), self.segments)

    @property
    def numbers_per_sample(self) -> int:
        """One exponential number per value."""
        return self.segments.count * self.segments.longest

    @property
    def supports_raw(self) -> bool:
        """Always."""
        return True

    @property
    def num_uniforms(self) -> int:
        """One per choice."""
        return self.segments.count

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum -log p of one-hot targets (N, sum n_c), in nats, summed over the choices; see `LatentHead.raw_nll`."""
        rows = self.segments.rows(raw, -torch.inf)  # (N, C, n)
        hot = self.segments.rows(target, 0.0)
        log_weights = rows.log_softmax(dim=-1)
        index = hot.argmax(dim=-1, keepdim=True)
        nll = -log_weights.gather(-1, index).sum()
        if gradient:
            raw.copy_(self.segments.flat(log_weights.exp_()))
            raw.sub_(target)
        return nll

    def log_volume(self, target: Tensor, log_unit: Tensor) -> Tensor:
        """0: probabilities have no units."""
        return target.new_zeros(())

    def sample_raw(self, raw: Tensor, *, temperature: float | Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sample one-hot vectors (B, sum n_c); see `LatentHead.sample_raw`."""
        rows = self.segments.rows(raw, -torch.inf)  # (B, C, n)
        tau = torch.as_tensor(temperature, dtype=raw.dtype, device=raw.device).reshape(-1, 1, 1)
        smallest = torch.finfo(raw.dtype).tiny
        passed = ((rows - rows.amax(dim=-1, keepdim=True)) / tau.clamp(min=smallest)).exp_().cumsum(dim=-1)
        aim = uniform.unsqueeze(-1) * BELOW_ONE * passed[..., -1:] * (tau >= smallest)  # below the sum; 0 finds the first
        index = (passed <= aim).sum(dim=-1, keepdim=True)
        values = torch.arange(self.segments.longest, device=raw.device)
        return self.segments.flat((index == values).to(raw.dtype))


class Bits:
    """A batch of independent Bernoulli distributions, (..., D) log-odds of 1.

    Args:
        logits: (..., D).
    """

    def __init__(self, logits: Tensor):
        self.logits = at_least_float32(logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of ``x`` (..., D) in nats, summed over D; -inf unless all are 0 or 1: (...)."""
        return self.log_probs(x).sum(dim=-1)

    def log_probs(self, x: Tensor) -> Tensor:
        """Log-probability of each bit, (..., D)."""
        found = functional.logsigmoid(torch.where(x == 1, self.logits, -self.logits))
        return torch.where((x == 0) | (x == 1), found, -torch.inf)

    def expectation(self) -> Tensor:
        """Probability of 1, (..., D)."""
        return self.logits.sigmoid()

    def mode(self) -> Tensor:
        """The more likely values, 0 if equally likely: (..., D)."""
        return (self.logits > 0).to(self.logits.dtype)

    def entropy(self) -> Tensor:
        """Entropy of each bit in nats, (..., D)."""
        return torch.special.entr(self.logits.sigmoid()) + torch.special.entr((-self.logits).sigmoid())

    @torch.no_grad()
    def sample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample bits (..., D) with log-odds divided by tau; see `LatentDistribution.sample`."""
        if not isinstance(temperature, Tensor) and temperature == 0:
            return self.mode()
        tau = align_temperature(temperature, self.logits)
        uniform = shared_draws(self.logits, num_groups, lambda noise: fill_uniform(noise, generator))
        return bernoulli(self.logits, tau, uniform)

    def rsample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample the same bits as `sample`, with straight-through gradients."""
        sample = self.sample(temperature, num_groups=num_groups, generator=generator)
        tau = align_temperature(temperature, self.logits)
        tau = torch.where(tau >= torch.finfo(tau.dtype).tiny, tau, 1.0)
        return straight_through(sample, (self.logits / tau).sigmoid())

    def affine(self, shift: Tensor, scale: Tensor) -> Bits:
        """Return itself: a bit has no units."""
        return self


def bernoulli(logits: Tensor, tau: Tensor, uniform: Tensor) -> Tensor:
    """Return 1 with log-odds ``logits`` / tau, else 0; at tau = 0 the more likely value.

    Args:
        logits: (..., D).
        tau: >= 0, broadcast to (..., D).
        uniform: (..., D) in [0, 1).
    """
    smallest = torch.finfo(logits.dtype).tiny
    drawn = (uniform < (logits / tau.clamp(min=smallest)).sigmoid()).to(logits.dtype)
    return torch.where(tau >= smallest, drawn, (logits > 0).to(logits.dtype))  # of floats: onnxruntime chooses no booleans


class BitsHead(LatentHead, registered=False):
    """A linear layer from features to D Bernoulli distributions.

    Args:
        in_features: F, size of the features.
        dim: D.
    """

    def __init__(self, in_features: int, dim: int):
        super().__init__()
        self.dim, self.linear = dim, nn.Linear(in_features, dim)

    @classmethod
    def from_config(cls, in_features: int, dim: int, config: Any) -> BitsHead:
        """Make a head of ``dim`` bits."""
        return cls(in_features, dim)

    def forward(self, features: Tensor) -> Bits:
        """Turn features (..., F) into distributions over bits (..., D)."""
        return Bits(self.linear(features))

    @property
    def numbers_per_sample(self) -> int:
        """One uniform number per bit."""
        return self.dim

    @property
    def supports_raw(self) -> bool:
        """Always."""
        return True

    @property
    def num_uniforms(self) -> int:
        """One per bit."""
        return self.dim

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum -log p of bits (N, D), in nats; see `LatentHead.raw_nll`."""
        nll = functional.binary_cross_entropy_with_logits(raw, target, reduction="sum")
        if gradient:
            raw.sigmoid_().sub_(target)
        return nll

    def log_volume(self, target: Tensor, log_unit: Tensor) -> Tensor:
        """0: probabilities have no units."""
        return target.new_zeros(())

    def sample_raw(self, raw: Tensor, *, temperature: float | Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sample bits (B, D); see `LatentHead.sample_raw`."""
        tau = torch.as_tensor(temperature, dtype=raw.dtype, device=raw.device).reshape(-1, 1)
        return bernoulli(raw, tau, uniform)
