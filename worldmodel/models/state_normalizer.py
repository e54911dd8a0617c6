"""V for vector observations: z is the standardised feature vector, without noise."""

from __future__ import annotations

from collections.abc import Iterable

import gymnasium as gym
import torch
from torch import Tensor

from worldmodel.models.vision import Vision
from worldmodel.spaces import FlatSpace, Value

SMALLEST_STANDARD_DEVIATION = 1e-6  # a dimension that varies less in the data counts as constant and is not scaled up


class StateNormalizer(Vision):
    """V for vector observations: flat features, standardised to mean 0 and standard deviation 1 over the data.

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
        """Set mean and scale from batches of observations in one pass; sums are in float64 (Chan et al. 1979).

        Args:
            observations: batches with one leading dimension.

        Returns:
            Itself.

        Raises:
            ValueError: if there are no observations.
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
