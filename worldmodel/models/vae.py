"""V for images: the convolutional variational autoencoder of Ha & Schmidhuber (2018), for any image observation.

The image is cropped if asked, resized to 64x64 by area, and encoded by four convolutions (32, 64, 128, 256 channels, kernel 4,
stride 2, ReLU) and two linear maps into mean and log-variance of z; the decoder goes back by a linear map to 1024 numbers and
four transposed convolutions (128, 64, 32 channels and the image's own, kernels 5, 5, 6, 6, stride 2) into a sigmoid. Of an
observation that holds more than an image, the rest is standardised as by `StateNormalizer` and stands behind the image's
latents in z, without noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.models.state_normalizer import StateNormalizer
from worldmodel.models.vision import Vision, draw_latent
from worldmodel.runtime import check_integers
from worldmodel.spaces import (
    ImageLayout,
    Value,
    build_value,
    find_images,
    leaf_values,
    leaves,
    refuse_float_images,
    resize_by_area,
)

SIDE = 64  # height and width of what the network sees
CHANNELS = (32, 64, 128, 256)
FEATURES = 1024  # 2 x 2 x 256 numbers after the last convolution
DECODER_CHANNELS = (FEATURES, 128, 64, 32)
DECODER_KERNELS = (5, 5, 6, 6)
FORM = ("latent_size", "crop_top", "crop_bottom", "crop_left", "crop_right")  # fields that decide how V encodes
ENCODE_IMAGES = 256  # so many at once, so that memory does not grow with the batch
IN_USE = 0.01  # variance of a dimension's posterior mean over the data from which it counts as used (Burda et al. 2016)


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes and loss of a `ConvVAE`.

    Args:
        latent_size: numbers that an image becomes; the paper has 64 for VizDoom and 32 for CarRacing.
        kl_tolerance: nats per dimension that the KL divergence may have at no cost; 0 is the plain KL.
        free_bits: "total" gives an image that many nats times the latent size, for its latents to share as they like (the
            authors' code); "dimension" gives each latent its own, on the average of a batch (Kingma et al. 2016).
        large_error_weight: what an error's fourth power weighs beside its square, in the sum over pixels with values in [0, 1];
            0 is the paper's squared error. The fourth power is for what is small, bright and decides, such as a distant
            fireball: for the square alone, missing it costs V less than the nats that tell where it is (dev/LOG.md).
        min_nats: latents with less KL than this, in nats on the average over images, are cut off when `train_vae` is done. They
            tell nothing, which M would have to find out, and learns all else more slowly meanwhile (dev/LOG.md).
        crop_top: rows of the image that are cut off at its upper edge.
        crop_bottom: rows that are cut off at its lower edge.
        crop_left: columns that are cut off on the left.
        crop_right: columns that are cut off on the right.

    Raises:
        ValueError: naming the field that is out of range.
    """

    latent_size: int = 32
    kl_tolerance: float = 0.5
    free_bits: Literal["total", "dimension"] = "total"
    large_error_weight: float = 0.0
    min_nats: float = 0.0
    crop_top: int = 0
    crop_bottom: int = 0
    crop_left: int = 0
    crop_right: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        crops = ("crop_top", "crop_bottom", "crop_left", "crop_right")
        check_integers(self, {"latent_size": 1, **dict.fromkeys(crops, 0)})
        for name in ("kl_tolerance", "large_error_weight", "min_nats"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, got {getattr(self, name)}")
        if self.free_bits not in ("total", "dimension"):
            raise ValueError(f"free_bits: expected 'total' or 'dimension', got {self.free_bits!r}")


@dataclass(frozen=True)
class FrameBatch:
    """Images to train on.

    Args:
        image: (N, *shape of the image in its space) uint8.
    """

    image: Tensor

    @property
    def weight(self) -> int:
        """Number of images."""
        return self.image.shape[0]


class ConvVAE(Vision):
    """V for images.

    Args:
        observation_space: an image (`worldmodel.spaces.images`), or a Dict or Tuple that holds one.
        config: sizes and loss.

    Raises:
        ValueError: if there is no image in the space, or several, or one of floats, or the crop leaves nothing.
    """

    def __init__(self, observation_space: gym.Space, config: VAEConfig | None = None):
        super().__init__()
        self.config = config or VAEConfig()
        self._space = observation_space
        refuse_float_images(observation_space)
        found = find_images(observation_space)
        if len(found) != 1:
            raise ValueError(
                "observation_space: expected one image, a Box of uint8 with shape (height, width), (height, width, channels) "
                f"or (channels, height, width), or a Dict with one, got {len(found)} in {observation_space}"
            )
        self.layout = found[0]
        rest = {path: leaf for path, leaf in leaves(observation_space) if path != self.layout.path}
        self.vectors = StateNormalizer(spaces.Dict(rest)) if rest else None
        self.latent_size = self.config.latent_size + (self.vectors.latent_size if self.vectors is not None else 0)
        self._rows = slice(self.config.crop_top, self.layout.height - self.config.crop_bottom)
        self._columns = slice(self.config.crop_left, self.layout.width - self.config.crop_right)
        if self._rows.stop <= self._rows.start or self._columns.stop <= self._columns.start:
            raise ValueError(f"crop: expected some of the image to be left, got {self.config} for shape {self.layout.shape}")
        channels = self.layout.channels
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2) for a, b in pairwise((channels, *CHANNELS)))
        self.mean_head = nn.Linear(FEATURES, self.config.latent_size)
        self.log_variance_head = nn.Linear(FEATURES, self.config.latent_size)
        self.expand = nn.Linear(self.config.latent_size, FEATURES)
        sizes = zip(pairwise((*DECODER_CHANNELS, channels)), DECODER_KERNELS, strict=True)
        self.deconvolutions = nn.ModuleList(nn.ConvTranspose2d(a, b, k, stride=2) for (a, b), k in sizes)

    @classmethod
    def from_config(cls, observation_space: gym.Space, config: Mapping[str, Any]) -> ConvVAE:
        """Make an untrained V from its observation space and what `config_to_json` returned."""
        return cls(observation_space, VAEConfig(**config))

    @property
    def observation_space(self) -> gym.Space:
        """Space of the observations."""
        return self._space

    @property
    def image_layout(self) -> ImageLayout:
        """The image in the observations."""
        return self.layout

    @property
    def image_latent_size(self) -> int:
        """Number of the latents, from the first, that encode the image."""
        return self.config.latent_size

    def config_to_json(self) -> dict[str, Any]:
        """The configuration."""
        return asdict(self.config)

    def form_to_json(self) -> dict[str, Any]:
        """What of the configuration decides how it encodes: not how it was trained."""
        return {name: value for name, value in self.config_to_json().items() if name in FORM}

    @torch.no_grad()
    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Turn observations with any leading dimensions (...) into the mean and log-variance of z, (..., D) each.

        Raises:
            ValueError: if a leaf is missing, has another shape, or the image is not of uint8.
        """
        given = leaf_values(observation)
        if self.layout.path not in given:
            raise ValueError(f"observation: expected a leaf {self.layout.path!r}, got {sorted(given)}")
        image = torch.as_tensor(given[self.layout.path], device=self.mean_head.weight.device)
        leading = image.shape[: image.ndim - len(self.layout.shape)]
        mean, log_variance = (part.reshape(*leading, -1) for part in self.encode_images(self._flat(image)))
        if self.vectors is None:
            return mean, log_variance
        rest = self.vectors.encode({path: leaf for path, leaf in given.items() if path != self.layout.path})
        return torch.cat([mean, rest[0]], dim=-1), torch.cat([log_variance, rest[1]], dim=-1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Value:
        """Turn latents (..., D) into observations of the space, as nested tensors; what a crop cut off is black.

        Raises:
            ValueError: if ``z`` does not end in the latent size.
        """
        if z.shape[-1] != self.latent_size:
            raise ValueError(f"z: expected shape (..., {self.latent_size}), got {tuple(z.shape)}")
        latents = z[..., : self.config.latent_size]
        parts = latents.reshape(-1, self.config.latent_size).split(ENCODE_IMAGES)
        image = torch.cat([self._full_images(self.decode_images(part)) for part in parts])
        found = {self.layout.path: image.reshape(*z.shape[:-1], *self.layout.shape)}
        if self.vectors is not None:
            found |= self.vectors.decode(z[..., self.config.latent_size :])
        return build_value(self._space, found)

    def loss(self, batch: FrameBatch, *, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the negative evidence bound of images as the authors' code weighs it, averaged over images.

        An image costs the sum of squared errors over its pixels, scaled to [0, 1], plus `VAEConfig.large_error_weight` times
        that of their fourth powers, plus max(KL, tolerance * latent size), KL in nats and summed over the latents; or, with
        free bits for each dimension, plus the sum over latents of max(KL, tolerance), KL averaged over the images.

        Args:
            batch: the images.
            generator: source of the draws from the posterior.

        Returns:
            The scalar, and: ``squared_error`` (summed over an image), ``error_per_pixel`` (root of the mean squared error of a
            pixel's channel, in steps of 1/255), ``kl`` (nats, without tolerance) and ``dimensions_in_use`` (latents whose
            posterior mean has a variance over the batch above `IN_USE`; `train_vae` counts them over all held-out batches).
        """
        target = self.small_images(batch.image)
        mean, log_variance = self._encode_small_images(target)
        z = draw_latent(mean, log_variance, generator=generator)
        squares = (self.decode_images(z) - target).square()  # (N, 64, 64, C)
        squared_error = squares.sum() / batch.weight
        large_errors = squares.square().sum() / batch.weight
        kl = divergence(mean, log_variance)  # (N, D)
        if self.config.free_bits == "total":
            costly = kl.sum(dim=-1).clamp(min=self.config.kl_tolerance * self.config.latent_size).mean()
        else:
            costly = kl.mean(dim=0).clamp(min=self.config.kl_tolerance).sum()
        metrics = {
            "squared_error": squared_error,
            "error_per_pixel": 255 * (squared_error / target[0].numel()).sqrt(),
            "kl": kl.sum(dim=-1).mean(),
            "dimensions_in_use": (mean.var(dim=0, correction=0) > IN_USE).sum().to(kl.dtype),
        }
        return squared_error + self.config.large_error_weight * large_errors + costly, metrics

    @torch.no_grad()
    def encode_images(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Turn frames (N, *shape) into the mean and log-variance of an image's latents, (N, latent size) each."""
        parts = [self._encode_small_images(self.small_images(part)) for part in image.split(ENCODE_IMAGES)]
        mean, log_variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, log_variance

    @torch.no_grad()
    def with_latents(self, kept: Tensor, others: Tensor) -> ConvVAE:
        """Copy V with some of its images' latents; what the decoder sees of the others is constant.

        Args:
            kept: (K,) int64, numbers of those that stay, ascending.
            others: (latent size of an image,) what the others are, such as their means over the data.
        """
        config, state = self.config, self.state_dict()
        tolerance = config.kl_tolerance * (config.latent_size / len(kept) if config.free_bits == "total" else 1)
        for head in ("mean_head", "log_variance_head"):
            state |= {f"{head}.{part}": state[f"{head}.{part}"][kept] for part in ("weight", "bias")}
        state["expand.bias"] = state["expand.bias"] + self.expand.weight @ others.index_fill(0, kept, 0)
        state["expand.weight"] = self.expand.weight[:, kept]
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced at once
            vision = ConvVAE(self._space, replace(config, latent_size=len(kept), kl_tolerance=tolerance))
        vision.load_state_dict(state)
        return vision.to(others.device).train(self.training)

    def small_images(self, image: Tensor) -> Tensor:
        """Turn frames (N, *shape) into what the network sees: cropped, resized by area, in [0, 1], (N, 64, 64, C) float32."""
        cropped = self.layout.to_channels_last(self._flat(image))[:, self._rows, self._columns]
        return resize_by_area(cropped, SIDE, SIDE) / 255

    def decode_images(self, latents: Tensor) -> Tensor:
        """Turn the latents of images (N, latent size) into (N, 64, 64, C) in [0, 1], float32."""
        first, *others = self.deconvolutions
        assert isinstance(first, nn.ConvTranspose2d)
        assert first.bias is not None
        # Of a single pixel a transposed convolution is a linear map, and as that several times as fast (dev/LOG.md).
        c, k = first.out_channels, DECODER_KERNELS[0]
        weight = first.weight.permute(2, 3, 1, 0).reshape(k * k * c, FEATURES)
        image = functional.linear(self.expand(latents), weight, first.bias.repeat(k * k))
        image = image.reshape(len(latents), k, k, c).permute(0, 3, 1, 2)
        for layer in others:
            image = layer(image.relu())
        return image.permute(0, 2, 3, 1).float().sigmoid()

    def _encode_small_images(self, image: Tensor) -> tuple[Tensor, Tensor]:
        image = image.permute(0, 3, 1, 2)  # channels stay innermost in memory, which torch's convolutions like best
        for layer in self.convolutions:
            image = layer(image).relu()
        features = image.permute(0, 2, 3, 1).flatten(1)
        return self.mean_head(features).float(), self.log_variance_head(features).float()

    def _flat(self, image: Tensor) -> Tensor:
        if image.dtype != torch.uint8:
            raise ValueError(f"image: expected frames of uint8, got {image.dtype}")
        shape = self.layout.shape
        if image.shape[max(0, image.ndim - len(shape)) :] != shape:
            raise ValueError(f"image: expected frames of shape {shape}, got {tuple(image.shape)}")
        return image.reshape(-1, *shape)

    def _full_images(self, image: Tensor) -> Tensor:
        """Turn (N, 64, 64, C) in [0, 1] into frames (N, *shape) of uint8."""
        rows, columns = self._rows, self._columns
        resized = resize_by_area(255 * image, rows.stop - rows.start, columns.stop - columns.start)
        full = resized.new_zeros(len(image), self.layout.height, self.layout.width, self.layout.channels)
        full[:, rows, columns] = resized
        return self.layout.from_channels_last(full.round().to(torch.uint8))


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of a normal distribution from the standard one, of each latent, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
