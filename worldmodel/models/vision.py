"""V: an observation becomes the mean and log-variance of a latent z, and z becomes an observation again.

For vector observations V is a `StateNormalizer`: z is the standardised feature vector, without noise. For images it is a
`worldmodel.models.vae.ConvVAE`. What is deterministic says so by a log-variance of minus infinity, so one rule,
z ~ N(mean, exp(log_variance)), holds for every V.
"""

from __future__ import annotations

import abc
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from worldmodel import models
from worldmodel.rng import Source, fill_normal
from worldmodel.runtime import digest_tensors
from worldmodel.spaces import FlatSpace, Value, space_to_json

_REGISTRY: dict[str, type[Vision]] = {}  # every V by its class name
SMALLEST_STANDARD_DEVIATION = 1e-6  # a dimension that varies less in the data is constant and is not scaled up


def draw_latent(mean: Tensor, log_variance: Tensor, *, generator: Source = None) -> Tensor:
    """Draw z ~ N(mean, exp(log_variance)), elementwise; a log-variance of -inf gives the mean exactly.

    Args:
        mean: (..., D).
        log_variance: (..., D).
        generator: source of randomness, on the device of ``mean``.

    Returns:
        (..., D).
    """
    noise = fill_normal(torch.empty_like(mean), generator)
    return mean + (0.5 * log_variance).exp() * noise


class Vision(nn.Module, abc.ABC):
    """What every V is: a module that encodes observations of a space into ``latent_size`` numbers and decodes them."""

    latent_size: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class, so that a saved world model can name it."""
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.__name__] = cls

    @classmethod
    def from_config(cls, observation_space: gym.Space, config: Mapping[str, Any]) -> Vision:
        """Make an untrained V from its observation space and what `config_to_json` returned."""
        return cls(observation_space, **config)

    @property
    @abc.abstractmethod
    def observation_space(self) -> gym.Space:
        """Space of the observations."""

    @abc.abstractmethod
    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Turn observations with any leading dimensions (...) into the mean and log-variance of z, (..., D) each."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Value:
        """Turn latents (..., D) into observations of the space, as nested tensors."""

    def config_to_json(self) -> dict[str, Any]:
        """What it is made with beside the observation space, as JSON-able data."""
        return {}

    def form_to_json(self) -> dict[str, Any]:
        """What of it decides how it encodes, beside class, space and weights, as JSON-able data."""
        return {}

    @property
    def fingerprint(self) -> str:
        """A hex digest of class, form, space and weights; equal ones encode alike, on any device."""
        content = [type(self).__name__, self.form_to_json(), space_to_json(self.observation_space)]
        return hashlib.sha256((json.dumps(content) + digest_tensors(self.state_dict())).encode()).hexdigest()


class StateNormalizer(Vision):
    """V for vector observations: flat features, shifted and scaled to mean 0 and standard deviation 1 over the data.

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, observation_space: gym.Space):
        super().__init__()
        self.flat_space = FlatSpace(observation_space)
        self.latent_size = self.flat_space.size
        self.register_buffer("mean", torch.zeros(self.latent_size))
        self.register_buffer("scale", torch.ones(self.latent_size))

    @property
    def observation_space(self) -> gym.Space:
        """Space of the observations."""
        return self.flat_space.space

    @torch.no_grad()
    def fit(self, observations: Iterable[Value]) -> StateNormalizer:
        """Set mean and scale from batches of observations in one pass, float32 features summed in float64 (Chan et al. 1979).

        Args:
            observations: batches with one leading dimension.

        Returns:
            Itself.

        Raises:
            ValueError: if there is no observation.
        """
        count, mean, squares = (
            0,
            torch.zeros_like(self.mean, dtype=torch.float64),
            torch.zeros_like(self.mean, dtype=torch.float64),
        )
        for batch in observations:
            features = self.flat_space.flatten(batch).double()  # (N, D)
            if len(features) == 0:
                continue
            n, batch_mean = features.shape[0], features.mean(dim=0)
            delta = batch_mean - mean
            squares += (features - batch_mean).square().sum(dim=0) + delta.square() * count * n / (count + n)
            mean += delta * n / (count + n)
            count += n
        if count == 0:
            raise ValueError("observations: expected at least one, got none")
        deviation = (squares / count).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > SMALLEST_STANDARD_DEVIATION, deviation, 1.0))
        return self

    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Turn observations with any leading dimensions (...) into the mean and log-variance (-inf) of z, (..., D) each."""
        mean = (self.flat_space.flatten(observation) - self.mean) / self.scale
        return mean, torch.full_like(mean, -torch.inf)

    def decode(self, z: Tensor) -> Value:
        """Turn latents (..., D) into the nearest observations of the space, as nested tensors."""
        return self.flat_space.unflatten(z * self.scale + self.mean)


def vision_to_json(vision: Vision) -> dict[str, Any]:
    """Name a V and its configuration, without weights."""
    return {"class": type(vision).__name__, "config": vision.config_to_json()}


def vision_from_json(data: Any, observation_space: gym.Space) -> Vision:
    """Make the V that `vision_to_json` named, with weights of its own; version 1 of the format gave the class alone.

    Raises:
        ValueError: if no V of that name is registered.
    """
    name, config = (data, {}) if isinstance(data, str) else (data["class"], data["config"])
    return vision_class(name).from_config(observation_space, config)


def vision_class(name: str) -> type[Vision]:
    """Look up a V by its class name: one of this package's modules, or any subclass of `Vision` imported so far.

    Raises:
        ValueError: if there is none; names those that there are.
    """
    if name not in _REGISTRY:
        for module in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
            importlib.import_module(module.name)
    if name not in _REGISTRY:
        raise ValueError(f"vision: expected one of {', '.join(map(repr, sorted(_REGISTRY)))}, got {name!r}")
    return _REGISTRY[name]
