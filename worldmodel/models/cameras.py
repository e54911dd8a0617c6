"""V for observations with several images: a `ConvVAE` for each, and a `StateNormalizer` for all other numbers.

z is the latents of the cameras in the order of the space, then the numbers. `worldmodel.training.train_cameras` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from worldmodel.models.state_normalizer import StateNormalizer
from worldmodel.models.vae import ConvVAE
from worldmodel.models.vision import Vision
from worldmodel.spaces import (
    ImageLayout,
    Value,
    as_tuples,
    build_value,
    find_images,
    leaf_values,
    leaves,
    refuse_float_images,
    select_leaves,
    without_leaves,
)


class Cameras(Vision):
    """One V for each image of an observation.

    Args:
        observation_space: a Dict or Tuple that holds several images.
        visions: V of each image, in the order of the space; the observation space of each holds that image alone.

    Raises:
        ValueError: if the images of the space and of the Vs differ.
    """

    def __init__(self, observation_space: gym.Space, visions: Sequence[ConvVAE]):
        super().__init__()
        refuse_float_images(observation_space)
        self._space, self._images = observation_space, find_images(observation_space)
        expected, got = [image.path for image in self._images], [vision.layout.path for vision in visions]
        if expected != got:
            raise ValueError(f"visions: expected one V for each image {expected} of {observation_space}, got {got}")
        for vision in visions:
            if vision.observation_space != camera_space(observation_space, vision.layout.path):
                raise ValueError(
                    f"visions: expected a V of the image {vision.layout.path!r} alone, "
                    f"{camera_space(observation_space, vision.layout.path)}, got {vision.observation_space}"
                )
        self.visions = nn.ModuleList(visions)
        rest = {path: leaf for path, leaf in leaves(observation_space) if path not in expected}
        self.vectors = StateNormalizer(spaces.Dict(rest)) if rest else None
        self.latent_size = self.image_latent_size + (0 if self.vectors is None else self.vectors.latent_size)

    @classmethod
    def from_config(cls, observation_space: gym.Space, config: Mapping[str, Any]) -> Cameras:
        """Build an untrained V from the output of `config_to_json`."""
        cameras = config["cameras"]
        visions = [ConvVAE.from_config(camera_space(observation_space, path), own) for path, own in cameras.items()]
        return cls(observation_space, visions)

    def _parts(self) -> list[ConvVAE]:
        return [cast(ConvVAE, vision) for vision in self.visions]

    @property
    def observation_space(self) -> gym.Space:
        """Space of the observations."""
        return self._space

    @property
    def image_layout(self) -> ImageLayout:
        """The first image."""
        return self._images[0]

    @property
    def image_layouts(self) -> list[ImageLayout]:
        """All images."""
        return list(self._images)

    @property
    def image_latent_size(self) -> int:
        """Number of the latents, from the first, that encode images."""
        return sum(self.image_latent_sizes)

    @property
    def image_latent_sizes(self) -> list[int]:
        """Number of the latents of each image."""
        return [vision.latent_size for vision in self._parts()]

    @property
    def vector_part(self) -> StateNormalizer | None:
        """The part of V that standardises everything but the images."""
        return self.vectors

    def config_to_json(self) -> dict[str, Any]:
        """Return the configuration of each camera as JSON-serialisable data."""
        return {"cameras": {vision.layout.path: vision.config_to_json() for vision in self._parts()}}

    def form_to_json(self) -> dict[str, Any]:
        """Return the fields of the configurations that change encodings."""
        return {vision.layout.path: vision.form_to_json() for vision in self._parts()}

    @torch.no_grad()
    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Encode observations (...) as the mean and log-variance of z, (..., D) each.

        Raises:
            ValueError: if a leaf is missing or has another shape, or if an image is not uint8.
        """
        given = leaf_values(as_tuples(self._space, observation))
        missing = [path for path, _ in leaves(self._space) if path not in given]
        if missing:
            raise ValueError(f"observation: expected a leaf {missing[0]!r}, got {sorted(given)}")
        nested = build_value(self._space, given)
        parts = [vision.encode(select_leaves(vision.observation_space, nested)) for vision in self._parts()]
        if self.vectors is not None:
            parts.append(self.vectors.encode({path: given[path] for path, _ in leaves(self.vectors.observation_space)}))
        mean, log_variance = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        return mean, log_variance

    @torch.no_grad()
    def decode(self, z: Tensor) -> Value:
        """Decode latents (..., D) to observations as nested tensors.

        Raises:
            ValueError: if the last dimension of ``z`` is not the latent size.
        """
        if z.shape[-1] != self.latent_size:
            raise ValueError(f"z: expected shape (..., {self.latent_size}), got {tuple(z.shape)}")
        found: dict[str, Tensor] = {}
        first = 0
        for vision in self._parts():
            found |= leaf_values(vision.decode(z[..., first : first + vision.latent_size]))
            first += vision.latent_size
        if self.vectors is not None:
            found |= self.vectors.decode(z[..., first:])
        return build_value(self._space, found)


def camera_space(space: gym.Space, path: str) -> gym.Space:
    """Return a space with one of its leaves only."""
    return without_leaves(space, [other for other, _ in leaves(space) if other != path])
