"""V for vector observations: z is the standardised feature vector, without noise.

Where float32 cannot represent the observations (see `FlatSpace.needs_float64`), mean and scale are
float64, and numbers become float32 only after they are centred. Those of earlier versions are
float32 everywhere; they open and encode as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from worldmodel.models.vision import Vision
from worldmodel.spaces import FlatSpace, Float64Buffers, Value, check_magnitude

SMALLEST_STANDARD_DEVIATION = 1e-6  # a dimension that varies less in the data counts as constant and is not scaled up
SMALLEST_RELATIVE_DEVIATION = 1e-12  # the same for float64, relative to the larger of 1 and the mean


class StateNormalizer(Float64Buffers, Vision):
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
        dtype = torch.float64 if self.flat_space.needs_float64 else torch.float32
        self.register_buffer("mean", torch.zeros(self.latent_size, dtype=dtype))
        self.register_buffer("scale", torch.ones(self.latent_size, dtype=dtype))

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
            ValueError: if there are no observations, or a number is too large for float32. The
                message names the dimension and the value.
        """
        count, mean, squares = (
            0,
            torch.zeros_like(self.mean, dtype=torch.float64),
            torch.zeros_like(self.mean, dtype=torch.float64),
        )
        for batch in observations:
            check_magnitude(self.observation_space, batch, "observations")
            features = self.flat_space.flatten(batch, exact=True).double()  # (N, D)
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
        least = torch.full_like(mean, SMALLEST_STANDARD_DEVIATION)
        if self.flat_space.needs_float64:
            least = SMALLEST_RELATIVE_DEVIATION * mean.abs().clamp(min=1.0)
        self.scale.copy_(torch.where(deviation > least, deviation, 1.0))
        return self

    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Turn observations with any leading dimensions (...) into the mean and log-variance (-inf) of z, (..., D) each."""
        features = self.flat_space.flatten(observation, exact=self.mean.dtype is torch.float64)
        mean = ((features - self.mean) / self.scale).to(self.flat_space.low.dtype)  # that of the other weights
        return mean, torch.full_like(mean, -torch.inf)

    def decode(self, z: Tensor) -> Value:
        """Turn latents (..., D) into the nearest observations of the space, as nested tensors."""
        return self.flat_space.unflatten(z * self.scale + self.mean)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Take the dtype of the file: with the float32 statistics of earlier versions, encodings keep their bits."""
        for name in ("mean", "scale"):
            given = state_dict.get(prefix + name)
            if given is not None and given.dtype in (torch.float32, torch.float64):
                setattr(self, name, getattr(self, name).to(given.dtype))
        super()._load_from_state_dict(state_dict, prefix, *others)
