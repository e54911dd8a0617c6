"""Interface of latent heads: the layer on M's features that predicts a distribution over the next latent.

A new head is one file: a subclass of `LatentHead`, which registers itself under its class name, and the distribution that it
returns. `MDNRNNConfig.latent_head` names it. Only three members are required: `LatentHead.from_config`, `LatentHead.forward`
and `LatentHead.numbers_per_sample`; training then differentiates ``log_prob`` by autograd, and dreams call ``sample``. A head
that also implements the members on raw outputs (``supports_raw``) is trained by `worldmodel.mixtures.fused` and can be dreamed
in half precision.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from worldmodel.rng import Source
from worldmodel.runtime import Registry

CONSTANTS = ("below_scale", "floors")  # names that `LatentHead.constants` may use
REACH = 100.0  # units: the largest value of an earlier dimension that a coupling sees, far beyond data; see `within_reach`


class LatentDistribution(Protocol):
    """A batch of distributions over vectors of D numbers, batch shape (...)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of ``x`` (..., D) in nats, summed over D, constants included: (...)."""
        ...

    def sample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample (..., D) without gradient.

        Args:
            temperature: tau >= 0, a number, or a tensor whose shape is a prefix of the batch shape; 1 is the distribution
                itself, 0 its mode.
            num_groups: number of equal groups of the first batch dimension, which share their random numbers; see
                `worldmodel.mixtures.shared_draws`.
            generator: source of randomness.
        """
        ...

    def rsample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample the same numbers as `sample`, with a gradient to the parameters; only `imagine` needs it."""
        ...

    def affine(self, shift: Tensor, scale: Tensor) -> LatentDistribution:
        """Return the distribution of ``shift`` + ``scale`` * x, elementwise; both broadcast to (..., D)."""
        ...


class LatentHead(nn.Module, abc.ABC):
    """A head that predicts the next latent from M's features.

    The members on *raw* outputs work on what ``linear`` computes from the features, (N, O), in the units of the target.
    """

    linear: nn.Linear  # the layer that computes the raw outputs; required with `supports_raw` only

    def __init_subclass__(cls, *, registered: bool = True, **kwargs: Any) -> None:
        """Register the class under its name, for `MDNRNNConfig.latent_head`, unless ``registered`` is False."""
        super().__init_subclass__(**kwargs)
        if registered:
            _REGISTRY.add(cls)

    @classmethod
    @abc.abstractmethod
    def from_config(cls, in_features: int, dim: int, config: Any) -> LatentHead:
        """Make a head with fresh weights.

        Args:
            in_features: F, size of the features.
            dim: D, size of the latent.
            config: an `MDNRNNConfig`, of which the head reads the fields that it needs, such as ``num_components``.
        """

    @abc.abstractmethod
    def forward(self, features: Tensor) -> LatentDistribution:
        """Turn features (..., F) into a batch of distributions with batch shape (...), in float32 or better."""

    def initialise(self, features: Tensor, target: Tensor, ridge: Tensor, *, fit_floors: bool = False) -> None:
        """Set initial weights by a sample of the training data, so that training starts near it; does nothing by default.

        Args:
            features: (N, F) features of the untrained network.
            target: (N, D) the targets, in their units.
            ridge: (F,) penalties of the features' squared coefficients, see `fit_components`; infinite ones are not used.
            fit_floors: lower the floors of the sigmas where the data show less noise, if the head can.
        """

    def constants(self) -> dict[str, Any]:
        """Return JSON-serialisable numbers that are neither in the configuration nor weights; M saves them. {} by default."""
        return {}

    def set_constants(self, values: Mapping[str, Any]) -> None:
        """Set what `constants` returned; what is missing gets the value that it had before it existed.

        Args:
            values: constants by name, of the names in `CONSTANTS`.

        Raises:
            ValueError: if a value is out of range.
            TypeError: if a value has another type.
        """

    @property
    @abc.abstractmethod
    def numbers_per_sample(self) -> int:
        """Number of uniform numbers that one sample takes from `worldmodel.rng.Streams`, per element of the batch.

        Dreams reserve them in one call, which is faster; a wrong number changes the samples but not their distribution.
        """

    @property
    def target_weight(self) -> Tensor | None:
        """Coefficients (O, D) of the target in the raw outputs, which training adds; None if it adds nothing."""
        return None

    @property
    def has_conditionals(self) -> bool:
        """Whether `worldmodel.mixtures.conditioning` knows its distributions, as data with missing numbers need."""
        return False

    @property
    def supports_raw(self) -> bool:
        """Whether the head implements the members below."""
        return False

    @property
    def num_uniforms(self) -> int:
        """Uniform numbers that `sample_raw` takes per row."""
        return 0

    @property
    def num_normals(self) -> int:
        """Normal numbers that `sample_raw` takes per row."""
        return 0

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum -log p(target) over everything, in nats, and overwrite ``raw`` with the gradient if requested.

        Args:
            raw: (N, O) raw outputs, float32 or better.
            target: (N, D).
            gradient: whether to overwrite ``raw`` with the derivative of the sum with respect to it.

        Returns:
            A scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement raw_nll")

    def log_volume(self, target: Tensor, log_unit: Tensor) -> Tensor:
        """Return what the units of the target add to the sum of -log p, in nats: the logs of the units, for densities.

        Args:
            target: (N, D), in units.
            log_unit: (D,) log of the units.

        Returns:
            A scalar.
        """
        return len(target) * log_unit.sum()

    def sample_raw(self, raw: Tensor, *, temperature: float | Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sample from the distributions of raw outputs: the same distribution as ``forward(...).sample``.

        Args:
            raw: (B, O) raw outputs.
            temperature: tau >= 0, a number or (B,).
            uniform: (B, `num_uniforms`) in [0, 1).
            normal: (B, `num_normals`) standard normal.

        Returns:
            (B, D).
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement sample_raw")


_REGISTRY: Registry[LatentHead] = Registry("latent_head", "worldmodel.mixtures")


def latent_head_class(name: str) -> type[LatentHead]:
    """Return the latent head of a class name: one of this package, or any subclass of `LatentHead` imported so far.

    Raises:
        UnknownClassError: if there is none; names the heads that there are.
    """
    return _REGISTRY.find(name)


def within_reach(target: Tensor) -> Tensor:
    """Clip the earlier dimensions of a target (..., D), in its units, to what a coupling sees of them."""
    return target.clamp(-REACH, REACH)
