"""Find the images in a space, convert their layouts, and resize them by area.

An image is a uint8 Box of shape (height, width), (height, width, channels) or (channels, height,
width). The channel axis is the first or the last one, and it is shorter than the other two. A Box
with a side below `MIN_IMAGE_SIDE`, or without such an axis (a board of 12 x 12 x 12), counts as a
vector.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.spaces.nested import leaves

MIN_IMAGE_SIDE = 8  # pixels
MIN_FLOAT_IMAGE_SIDE = 32  # a float matrix with such sides is probably an image in the wrong dtype


@dataclass(frozen=True)
class ImageLayout:
    """Position, size and channel axis of an image in a space.

    Args:
        path: path of the leaf in its space, as in `worldmodel.spaces.leaves`.
        height: H, in pixels.
        width: W, in pixels.
        channels: C; 1 for grey, 3 for colour.
        channel_axis: 0 or 2; None if the image has no channel axis.
    """

    path: str
    height: int
    width: int
    channels: int
    channel_axis: int | None

    def to_channels_last(self, image: Tensor) -> Tensor:
        """Convert images (N, *shape) to (N, H, W, C)."""
        if self.channel_axis is None:
            return image.unsqueeze(-1)
        return image.permute(0, 2, 3, 1) if self.channel_axis == 0 else image

    def from_channels_last(self, image: Tensor) -> Tensor:
        """Convert images (N, H, W, C) to (N, *shape)."""
        if self.channel_axis is None:
            return image[..., 0]
        return image.permute(0, 3, 1, 2) if self.channel_axis == 0 else image

    def to_rgb(self, image: Tensor) -> Tensor:
        """Convert images (N, *shape) to (N, H, W, 3); if C is not 3, channel 0 as grey."""
        last = self.to_channels_last(image)
        return last if self.channels == 3 else last[..., :1].expand(*last.shape[:-1], 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the leaf."""
        if self.channel_axis is None:
            return (self.height, self.width)
        if self.channel_axis == 0:
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)


def is_image(space: gym.Space) -> bool:
    """Return whether a leaf space is an image: a uint8 Box with the shape of an image."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and has_image_shape(space.shape)


def has_image_shape(shape: tuple[int, ...], *, min_side: int = MIN_IMAGE_SIDE) -> bool:
    """Return whether a shape is (H, W), (H, W, C) or (C, H, W), with C < H, W >= ``min_side``."""
    if len(shape) == 2:
        return min(shape) >= min_side
    if len(shape) != 3:
        return False
    channels, side, _ = sorted(shape)
    return channels < side >= min_side and shape[1] != channels


def image_layout(space: spaces.Box, path: str = "") -> ImageLayout:
    """Return the layout of an image space.

    Raises:
        ValueError: if the space is not an image.
    """
    if not is_image(space):
        raise ValueError(
            f"image {path!r}: expected a Box of uint8 with shape (height, width), (height, width, channels) or (channels, "
            f"height, width) and sides of at least {MIN_IMAGE_SIDE}, got {space}"
        )
    if len(space.shape) == 2:
        return ImageLayout(path, *space.shape, channels=1, channel_axis=None)
    first, middle, last = space.shape
    if last < min(first, middle):
        return ImageLayout(path, first, middle, last, channel_axis=2)
    return ImageLayout(path, middle, last, first, channel_axis=0)


def find_images(space: gym.Space) -> list[ImageLayout]:
    """Return the layouts of all images among the leaves of a space."""
    return [image_layout(leaf, path) for path, leaf in leaves(space) if isinstance(leaf, spaces.Box) and is_image(leaf)]


def refuse_float_images(space: gym.Space) -> None:
    """Raise if a leaf looks like an image in floats, which V would encode as a huge vector.

    Raises:
        ValueError: if a float Box has the shape of an image. The message names the leaf and the
            fix.
    """
    for path, leaf in leaves(space):
        shape = leaf.shape or ()
        side = MIN_FLOAT_IMAGE_SIDE if len(shape) == 2 else MIN_IMAGE_SIDE
        if isinstance(leaf, spaces.Box) and leaf.dtype.kind == "f" and has_image_shape(shape, min_side=side):
            raise ValueError(
                f"observation {path!r}: expected images as uint8 and vectors with one dimension, got floats of shape {shape}; "
                "for images, collect uint8 frames (gymnasium.wrappers.TransformObservation); for vectors, flatten the "
                "observation (gymnasium.wrappers.FlattenObservation, or TransformObservation for one leaf of several)"
            )


@functools.lru_cache(maxsize=16)
def area_weights(size: int, new_size: int) -> Tensor:
    """Weight of each old pixel in each new pixel along one axis, proportional to their overlap.

    Args:
        size: number of old pixels.
        new_size: number of new pixels.

    Returns:
        (new_size, size) float32; rows sum to 1.
    """
    edges = np.arange(new_size + 1) * (size / new_size)
    overlap = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
    return torch.as_tensor(overlap.clip(min=0) * (new_size / size), dtype=torch.float32)


def resize_by_area(image: Tensor, height: int, width: int) -> Tensor:
    """Average images over the area of each new pixel, exactly for any ratio of sizes.

    ``torch.nn.functional.interpolate(mode="area")`` is exact for integer ratios only; otherwise it
    counts pixels at the borders twice. Autocast is disabled here: half precision would change V's
    training images by up to 2/255.

    Args:
        image: (N, H, W, C).
        height: new height, in pixels.
        width: new width, in pixels.

    Returns:
        (N, height, width, C) float32.
    """
    with torch.autocast(image.device.type, enabled=False):
        return _resized(image.float(), height, width)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    n, old_height, old_width, c = image.shape
    if old_height != height:
        rows = area_weights(old_height, height).to(image.device)
        image = (rows @ image.reshape(n, old_height, old_width * c)).reshape(n, height, old_width, c)
    if old_width != width:
        columns = area_weights(old_width, width).to(image.device)
        flat = image.transpose(2, 3).reshape(n * height * c, old_width)  # one matrix product instead of N * H small ones
        image = (flat @ columns.T).reshape(n, height, c, width).transpose(2, 3)
    return image
