"""Images in a space: which leaf is one, where its channels are; and resizing by area.

An image is a Box of uint8 with two or three dimensions: (height, width), (height, width, channels) or (channels, height,
width). The channel axis is the first or last one, whichever is shorter than the other two. What is tiny (a side below
`SMALLEST_SIDE`), or has no such axis, as a board of 12 x 12 x 12 has not, is a vector of numbers like any other.
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

SMALLEST_SIDE = 8
SMALLEST_FLOAT_SIDE = 32  # a matrix of floats with such sides is an image in the wrong dtype rather than a vector


@dataclass(frozen=True)
class ImageLayout:
    """How an image lies in an array.

    Args:
        path: of the leaf in its space, as in `worldmodel.spaces.nested.leaves`.
        height: H, in pixels.
        width: W, in pixels.
        channels: C; 1 for grey, 3 for colour.
        channel_axis: 0 or 2; None where there is no such axis.
    """

    path: str
    height: int
    width: int
    channels: int
    channel_axis: int | None

    def to_channels_last(self, image: Tensor) -> Tensor:
        """Turn images (N, *shape of the leaf) into (N, H, W, C)."""
        if self.channel_axis is None:
            return image.unsqueeze(-1)
        return image.permute(0, 2, 3, 1) if self.channel_axis == 0 else image

    def from_channels_last(self, image: Tensor) -> Tensor:
        """Turn images (N, H, W, C) into (N, *shape of the leaf)."""
        if self.channel_axis is None:
            return image[..., 0]
        return image.permute(0, 3, 1, 2) if self.channel_axis == 0 else image

    def to_rgb(self, image: Tensor) -> Tensor:
        """Turn images (N, *shape of the leaf) into (N, H, W, 3); where there are not three channels, the first as grey."""
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
    """Whether a leaf space is an image: a Box of uint8 with the shape of one."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and has_image_shape(space.shape)


def has_image_shape(shape: tuple[int, ...], *, smallest_side: int = SMALLEST_SIDE) -> bool:
    """Whether a shape has two or three dimensions, channels first or last, and sides of at least ``smallest_side``."""
    if len(shape) == 2:
        return min(shape) >= smallest_side
    if len(shape) != 3:
        return False
    channels, side, _ = sorted(shape)
    return channels < side >= smallest_side and shape[1] != channels


def image_layout(space: spaces.Box, path: str = "") -> ImageLayout:
    """Find out how an image lies in its array.

    Raises:
        ValueError: if it is none.
    """
    if not is_image(space):
        raise ValueError(
            f"image {path!r}: expected a Box of uint8 with shape (height, width), (height, width, channels) or (channels, "
            f"height, width) and sides of at least {SMALLEST_SIDE}, got {space}"
        )
    if len(space.shape) == 2:
        return ImageLayout(path, *space.shape, channels=1, channel_axis=None)
    first, middle, last = space.shape
    if last < min(first, middle):
        return ImageLayout(path, first, middle, last, channel_axis=2)
    return ImageLayout(path, middle, last, first, channel_axis=0)


def find_images(space: gym.Space) -> list[ImageLayout]:
    """The images among the leaves of a space."""
    return [image_layout(leaf, path) for path, leaf in leaves(space) if isinstance(leaf, spaces.Box) and is_image(leaf)]


def refuse_float_images(space: gym.Space) -> None:
    """Refuse what looks like an image in floats, of which V would make a vector of thousands of numbers.

    Raises:
        ValueError: naming the leaf, and what to do.
    """
    for path, leaf in leaves(space):
        shape = leaf.shape or ()
        side = SMALLEST_FLOAT_SIDE if len(shape) == 2 else SMALLEST_SIDE
        if isinstance(leaf, spaces.Box) and leaf.dtype.kind == "f" and has_image_shape(shape, smallest_side=side):
            raise ValueError(
                f"observation {path!r}: expected images as uint8 and vectors with one dimension, got floats of shape {shape}; "
                "collect frames of uint8 (gymnasium.wrappers.TransformObservation), or flatten it if a vector is meant "
                "(gymnasium.wrappers.FlattenObservation; one part of several: TransformObservation)"
            )


@functools.lru_cache(maxsize=16)
def area_weights(size: int, new_size: int) -> Tensor:
    """(new_size, size) float32: what share each old pixel has in each new one by the length of their overlap; rows sum to 1."""
    edges = np.arange(new_size + 1) * (size / new_size)
    overlap = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
    return torch.as_tensor(overlap.clip(min=0) * (new_size / size), dtype=torch.float32)


def resize_by_area(image: Tensor, height: int, width: int) -> Tensor:
    """Average images (N, H, W, C) over the area of each new pixel, exactly, whatever the ratio: (N, height, width, C) float32.

    ``interpolate(mode="area")`` of torch does so for whole ratios only; otherwise it counts pixels at the border twice.
    Autocast does not reach in here: half precision would put what V is trained on off by up to two steps of 1/255.
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
