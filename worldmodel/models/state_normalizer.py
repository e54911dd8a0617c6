"""V for vector observations: z is the feature vector without noise, with standardised numbers and one-hot choices.

Where float32 cannot represent the observations (see `FlatSpace.needs_float64`), mean and scale are
float64, and numbers become float32 only after they are centred. Those of earlier versions are
float32 everywhere; they open and encode as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from worldmodel.models.value_choices import ValueChoices
from worldmodel.models.vision import Vision
from worldmodel.spaces import FlatSpace, Float64Buffers, Value, check_magnitude, leaf_values, map_paths

SMALLEST_STANDARD_DEVIATION = 1e-6  # a dimension that varies less in the data counts as constant and is not scaled up
SMALLEST_RELATIVE_DEVIATION = 1e-12  # the same for float64, relative to the larger of 1 and the mean


class StateNormalizer(Float64Buffers, Vision):
    """V for vector observations: flat features; numbers are standardised to mean 0 and standard deviation 1 over the data.

    Choices and bits are zeros and ones. (Files of earlier versions standardise them, too; they open as they are.)

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them.
        choices: the numbers of Box leaves that are choices, by path of the leaf and index in it, with their values, ascending.
            Each is one-hot in z; another value counts as the nearest.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, observation_space: gym.Space, choices: Mapping[tuple[str, int], tuple[float, ...]] | None = None):
        super().__init__()
        self.flat_space = FlatSpace(observation_space)
        self.choices = dict(choices or {})
        self._values = ValueChoices(self.flat_space, self.choices) if choices else None
        self.latent_size = self.flat_space.size if self._values is None else self._values.latent_size
        dtype = torch.float64 if self.flat_space.needs_float64 else torch.float32
        self.register_buffer("mean", torch.zeros(self.flat_space.size, dtype=dtype))
        self.register_buffer("scale", torch.ones(self.flat_space.size, dtype=dtype))

    @classmethod
    def from_config(cls, observation_space: gym.Space, config: Mapping[str, Any]) -> StateNormalizer:
        """Make a V that is not fitted from what `config_to_json` returned."""
        choices = {(path, index): tuple(values) for path, index, values in config.get("choices", [])}
        return cls(observation_space, choices)

    def config_to_json(self) -> dict[str, Any]:
        """Return the choices as JSON-serialisable data; nothing if there are none."""
        rows = [[path, index, list(values)] for (path, index), values in self.choices.items()]
        return {"choices": rows} if rows else {}

    def form_to_json(self) -> dict[str, Any]:
        """Return the choices, which change encodings."""
        return self.config_to_json()

    @property
    def vector_part(self) -> StateNormalizer:
        """Itself."""
        return self

    def keeps_choices(self, path: str) -> bool:
        """Whether the choices or bits of a leaf are zeros and ones in z."""
        own = self.flat_space.features_of(path)
        return bool((self.mean[own] == 0).all() and (self.scale[own] == 1).all())

    @property
    def observation_space(self) -> gym.Space:
        """Space of the observations."""
        return self.flat_space.space

    @torch.no_grad()
    def fit(self, observations: Iterable[Value]) -> StateNormalizer:
        """Set mean and scale from batches of observations in one pass; sums are in float64 (Chan et al. 1979).

        Missing numbers (NaN) do not count.

        Args:
            observations: batches with one leading dimension.

        Returns:
            Itself.

        Raises:
            ValueError: if there are no observations, or a number is too large for float32. The
                message names the dimension and the value.
        """
        mean = torch.zeros_like(self.mean, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        count: int | Tensor = 0  # (D,) if numbers are missing
        for batch in observations:
            check_magnitude(self.observation_space, batch, "observations")
            features = self.flat_space.flatten(batch, exact=True).double()  # (N, D)
            if len(features) == 0:
                continue
            n, batch_mean, batch_squares = _moments(features)
            delta, total = batch_mean - mean, count + n
            total = total.clamp(min=1) if isinstance(total, Tensor) else total
            squares += batch_squares + delta.square() * count * n / total
            mean += delta * n / total
            count = count + n
        if isinstance(count, int) and count == 0:
            raise ValueError("observations: expected at least one, got none")
        deviation = (squares / (count.clamp(min=1) if isinstance(count, Tensor) else count)).sqrt()
        numbers = self.flat_space.is_box  # the others are choices and bits, which stay zeros and ones
        least = torch.full_like(mean, SMALLEST_STANDARD_DEVIATION)
        if self.flat_space.needs_float64:
            least = SMALLEST_RELATIVE_DEVIATION * mean.abs().clamp(min=1.0)
        self.mean.copy_(torch.where(numbers, mean, 0.0))
        self.scale.copy_(torch.where(numbers & (deviation > least), deviation, 1.0))
        return self

    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Turn observations with any leading dimensions (...) into the mean and log-variance (-inf) of z, (..., D) each."""
        features = self.flat_space.flatten(observation, exact=self.mean.dtype is torch.float64)
        mean = ((features - self.mean) / self.scale).to(self.flat_space.low.dtype)  # that of the other weights
        if self._values is not None:
            mean = self._values.expand(mean, features)
        return mean, torch.full_like(mean, -torch.inf)

    def decode(self, z: Tensor) -> Value:
        """Turn latents (..., D) into the nearest observations of the space, as nested tensors."""
        if self._values is None:
            return self.flat_space.unflatten(z * self.scale + self.mean)
        numbers, index = self._values.collapse(z)
        value = self.flat_space.unflatten(numbers * self.scale + self.mean)
        exact = self._values.exact(leaf_values(value), index)
        return map_paths(lambda path, leaf: exact.get(path, leaf), value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Take the dtype of the file: with the float32 statistics of earlier versions, encodings keep their bits."""
        for name in ("mean", "scale"):
            given = state_dict.get(prefix + name)
            if given is not None and given.dtype in (torch.float32, torch.float64):
                setattr(self, name, getattr(self, name).to(given.dtype))
        super()._load_from_state_dict(state_dict, prefix, *others)


def _moments(features: Tensor) -> tuple[int | Tensor, Tensor, Tensor]:
    """Return the number of rows (N, D), or (D,) of known numbers if some are missing, and mean and sum of squares (D,)."""
    known = ~features.isnan()
    if bool(known.all()):
        mean = features.mean(dim=0)
        return features.shape[0], mean, (features - mean).square().sum(dim=0)
    count = known.sum(dim=0)
    mean = torch.where(known, features, 0.0).sum(dim=0) / count.clamp(min=1)
    return count, mean, torch.where(known, features - mean, 0.0).square().sum(dim=0)
