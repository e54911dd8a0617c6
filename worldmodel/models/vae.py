"""V for images: the convolutional variational autoencoder of Ha & Schmidhuber (2018).

- Input: the image, optionally cropped, resized to 64x64 by area.
- Encoder: four convolutions (32, 64, 128, 256 channels, kernel 4, stride 2, ReLU), then two linear
  maps to the mean and the log-variance of z.
- Decoder: a linear map to 1024 numbers, four transposed convolutions (128, 64, 32 and the image's
  channels, kernels 5, 5, 6, 6, stride 2), then a sigmoid.

If an observation holds more than an image, `StateNormalizer` standardises the rest. These numbers
follow the latents of the image in z, without noise.
"""

from __future__ import annotations

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
from worldmodel.runtime import check_integers, check_numbers, float32_default
from worldmodel.spaces import (
    ImageLayout,
    Value,
    as_tuples,
    build_value,
    find_images,
    leaf_values,
    leaves,
    refuse_float_images,
    resize_by_area,
)

SIDE = 64  # height and width of the network's input, in pixels
CHANNELS = (32, 64, 128, 256)
FEATURES = 1024  # outputs of the last convolution, 2 x 2 x 256
DECODER_CHANNELS = (FEATURES, 128, 64, 32)
DECODER_KERNELS = (5, 5, 6, 6)
# Fields of `VAEConfig` that change encodings.
ENCODING_FIELDS = ("latent_size", "crop_top", "crop_bottom", "crop_left", "crop_right")
ENCODE_IMAGES = 256  # images encoded at once, which bounds memory
# A latent is in use if the variance of its posterior mean over the data is larger (Burda et al. 2016).
IN_USE = 0.01


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes and loss of a `ConvVAE`.

    Args:
        latent_size: latents per image; the paper has 64 for VizDoom and 32 for CarRacing.
        kl_tolerance: KL divergence without cost, in nats per latent; 0 is the plain KL.
        free_bits: "total" applies the tolerance, times the latent size, to the KL of an image (the
            authors' code). "dimension" applies it to the KL of each latent, averaged over a batch
            (Kingma et al. 2016).
        large_error_weight: weight of the fourth power of an error relative to its square, summed
            over pixels with values in [0, 1]; 0 is the paper's squared error. The fourth power is
            for small, bright, decisive objects such as a distant fireball. With the square alone,
            missing it costs less than the nats that encode its position (dev/LOG.md).
        min_nats: `train_vae` removes latents whose KL, in nats averaged over images, is smaller
            after training. They carry no information and slow down the training of M (dev/LOG.md).
        crop_top: rows to crop at the upper edge of the image.
        crop_bottom: rows to crop at the lower edge.
        crop_left: columns to crop on the left.
        crop_right: columns to crop on the right.

    Raises:
        TypeError: if a field has another type.
        ValueError: if a field is out of range.
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
        """Validate every field."""
        check_integers(self, {"latent_size": 1, "crop_top": 0, "crop_bottom": 0, "crop_left": 0, "crop_right": 0})
        check_numbers(self, dict.fromkeys(("kl_tolerance", "large_error_weight", "min_nats"), "[0, inf)"))
        if self.free_bits not in ("total", "dimension"):
            raise ValueError(f"free_bits: expected 'total' or 'dimension', got {self.free_bits!r}")


@dataclass(frozen=True)
class FrameBatch:
    """Images to train on.

    Args:
        image: (N, *shape) uint8, with the shape of the image in its space.
    """

    image: Tensor

    @property
    def weight(self) -> int:
        """Number of images."""
        return self.image.shape[0]


class ConvVAE(Vision):
    """V for images, a convolutional variational autoencoder.

    Args:
        observation_space: an image (`worldmodel.spaces.images`), or a Dict or Tuple that holds one.
        config: sizes and loss; None means the defaults.

    Raises:
        ValueError: if the space does not hold exactly one image, if an image has floats, or if the
            crop is too large.
    """

    @float32_default()
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
                + ("; train one V per image with train_cameras (worldmodel train-vae does)" if len(found) > 1 else "")
            )
        self.layout = found[0]
        rest = {path: leaf for path, leaf in leaves(observation_space) if path != self.layout.path}
        self.vectors = StateNormalizer(spaces.Dict(rest)) if rest else None
        self.latent_size = self.config.latent_size + (self.vectors.latent_size if self.vectors is not None else 0)
        self._rows = slice(self.config.crop_top, self.layout.height - self.config.crop_bottom)
        self._columns = slice(self.config.crop_left, self.layout.width - self.config.crop_right)
        if self._rows.stop <= self._rows.start or self._columns.stop <= self._columns.start:
            raise ValueError(
                f"crop: expected at least one row and one column to remain, got {self.config} for shape {self.layout.shape}"
            )
        channels = self.layout.channels
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2) for a, b in pairwise((channels, *CHANNELS)))
        self.mean_head = nn.Linear(FEATURES, self.config.latent_size)
        self.log_variance_head = nn.Linear(FEATURES, self.config.latent_size)
        self.expand = nn.Linear(self.config.latent_size, FEATURES)
        sizes = zip(pairwise((*DECODER_CHANNELS, channels)), DECODER_KERNELS, strict=True)
        self.deconvolutions = nn.ModuleList(nn.ConvTranspose2d(a, b, k, stride=2) for (a, b), k in sizes)

    @classmethod
    def from_config(cls, observation_space: gym.Space, config: Mapping[str, Any]) -> ConvVAE:
        """Build an untrained V from the output of `config_to_json`."""
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

    @property
    def vector_part(self) -> StateNormalizer | None:
        """The part of V that standardises everything but the image."""
        return self.vectors

    def config_to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON-serialisable data."""
        return asdict(self.config)

    def form_to_json(self) -> dict[str, Any]:
        """Return the fields of the configuration that change encodings."""
        return {name: value for name, value in self.config_to_json().items() if name in ENCODING_FIELDS}

    @torch.no_grad()
    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Encode observations (...) as the mean and log-variance of z, (..., D) each.

        Raises:
            ValueError: if a leaf is missing or has another shape, or if the image is not uint8.
        """
        given = leaf_values(as_tuples(self._space, observation))
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
        """Decode latents (..., D) to observations as nested tensors; cropped areas are black.

        Raises:
            ValueError: if the last dimension of ``z`` is not the latent size.
        """
        if z.shape[-1] != self.latent_size:
            raise ValueError(f"z: expected shape (..., {self.latent_size}), got {tuple(z.shape)}")
        latents = z[..., : self.config.latent_size]
        parts = _pieces(latents.reshape(-1, self.config.latent_size))
        image = torch.cat([self._full_images(self.decode_images(part)) for part in parts])
        found = {self.layout.path: image.reshape(*z.shape[:-1], *self.layout.shape)}
        if self.vectors is not None:
            found |= self.vectors.decode(z[..., self.config.latent_size :])
        return build_value(self._space, found)

    def loss(self, batch: FrameBatch, *, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted negative evidence lower bound of the authors' code, per image.

        The loss of an image is a sum of three terms:

        - The squared errors, summed over its pixels, with values in [0, 1].
        - `VAEConfig.large_error_weight` times the fourth powers of these errors, summed over its
          pixels.
        - max(KL, tolerance * latent size), with the KL in nats, summed over latents. With
          ``free_bits="dimension"``, the sum over latents of max(KL, tolerance), with the KL
          averaged over images.

        Args:
            batch: the images.
            generator: source of randomness for the samples from the posterior.

        Returns:
            The scalar loss and its metrics. ``squared_error``: summed over an image.
            ``error_per_pixel``: root mean squared error per pixel and channel, in units of 1/255.
            ``kl``: nats, without tolerance. ``dimensions_in_use``: number of latents whose
            posterior mean has a variance above `IN_USE` over the batch; `train_vae` counts them
            over all held-out batches.
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
        """Encode frames (N, *shape) as mean and log-variance, (N, latent size) each."""
        parts = [self._encode_small_images(self.small_images(part)) for part in _pieces(image)]
        mean, log_variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, log_variance

    @torch.no_grad()
    def with_latents(self, kept: Tensor, others: Tensor) -> ConvVAE:
        """Copy V with a subset of the image's latents and constants for the others.

        Args:
            kept: (K,) int64, indices of the latents to keep, ascending.
            others: (latent size,) constants for the other latents, such as their means over the
                data.

        Returns:
            A V with K latents per image.
        """
        config, state = self.config, self.state_dict()
        tolerance = config.kl_tolerance * (config.latent_size / len(kept) if config.free_bits == "total" else 1)
        for head in ("mean_head", "log_variance_head"):
            state |= {f"{head}.{part}": state[f"{head}.{part}"][kept] for part in ("weight", "bias")}
        state["expand.bias"] = state["expand.bias"] + self.expand.weight @ others.index_fill(0, kept, 0)
        state["expand.weight"] = self.expand.weight[:, kept]
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced next
            vision = ConvVAE(self._space, replace(config, latent_size=len(kept), kl_tolerance=tolerance))
        vision.load_state_dict(state)
        return vision.to(others.device).train(self.training)

    def small_images(self, image: Tensor) -> Tensor:
        """Crop and resize frames (N, *shape) to (N, 64, 64, C) float32 in [0, 1]."""
        cropped = self.layout.to_channels_last(self._flat(image))[:, self._rows, self._columns]
        return resize_by_area(cropped, SIDE, SIDE) / 255

    def decode_images(self, latents: Tensor) -> Tensor:
        """Decode latents (N, latent size) to images (N, 64, 64, C) float32 in [0, 1]."""
        first, *others = self.deconvolutions
        assert isinstance(first, nn.ConvTranspose2d)
        assert first.bias is not None
        # A transposed convolution of a single pixel is a linear map, which is several times as fast
        # (dev/LOG.md).
        c, k = first.out_channels, DECODER_KERNELS[0]
        weight = first.weight.permute(2, 3, 1, 0).reshape(k * k * c, FEATURES)
        image = functional.linear(self.expand(latents), weight, first.bias.repeat(k * k))
        image = image.reshape(latents.shape[0], k, k, c).permute(0, 3, 1, 2)
        for layer in others:
            image = layer(image.relu())
        return image.permute(0, 2, 3, 1).float().sigmoid()

    def _encode_small_images(self, image: Tensor) -> tuple[Tensor, Tensor]:
        image = image.permute(0, 3, 1, 2)  # channels stay innermost in memory, the fastest layout
        for layer in self.convolutions:
            image = layer(image).relu()
        features = image.permute(0, 2, 3, 1).flatten(1)
        return self.mean_head(features).float(), self.log_variance_head(features).float()

    def _flat(self, image: Tensor) -> Tensor:
        if image.dtype != torch.uint8:
            raise ValueError(f"image: expected uint8 frames, got {image.dtype}")
        shape = self.layout.shape
        if image.shape[max(0, image.ndim - len(shape)) :] != shape:
            raise ValueError(f"image: expected frames of shape {shape}, got {tuple(image.shape)}")
        return image.reshape(-1, *shape)

    def _full_images(self, image: Tensor) -> Tensor:
        """Resize images (N, 64, 64, C) in [0, 1] to frames (N, *shape) uint8."""
        rows, columns = self._rows, self._columns
        resized = resize_by_area(255 * image, rows.stop - rows.start, columns.stop - columns.start)
        full = resized.new_zeros(image.shape[0], self.layout.height, self.layout.width, self.layout.channels)
        full[:, rows, columns] = resized
        return self.layout.from_channels_last(full.round().to(torch.uint8))


def _pieces(batch: Tensor) -> tuple[Tensor, ...]:
    """Split a batch into pieces that bound the memory; an exported network is of any batch size, so it takes all at once."""
    return (batch,) if torch.compiler.is_compiling() else batch.split(ENCODE_IMAGES)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, element by element."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
