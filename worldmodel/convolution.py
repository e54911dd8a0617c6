"""Convolutions of stride 2 as matrix products, for CPUs.

With stride 2, four neighbouring pixels can be laid side by side as the channels of one (a *block*); a kernel of 4 or 6 pixels
then covers 2x2 or 3x3 blocks with stride 1, so the windows under it are rows of a matrix, gathered by one strided copy. Both
directions are the same operation seen from the larger or the smaller image, and each is the other's gradient. Gathering goes
image by image through a small buffer that stays in the cache. Against torch's own convolutions this is up to 1.6 times as
fast in bfloat16 (dev/LOG.md), with the same weights: of shape (small, big, k, k), as `nn.Conv2d` has them from big to small
and `nn.ConvTranspose2d` from small to big. Images are (N, H, W, C). On other devices torch's own convolutions are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BUFFER_BYTES = 2**20  # of the buffer that windows are gathered in


def convolve(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with stride 2 and no padding.

    Args:
        image: (N, H, W, big).
        weight: (small, big, k, k).
        bias: (small,).

    Returns:
        (N, (H - k) // 2 + 1, (W - k) // 2 + 1, small), in the precision of autocast where that is on.
    """
    if image.device.type == "cpu":
        return _Down.apply(_cast(image), weight, bias)
    return functional.conv2d(image.permute(0, 3, 1, 2), weight, bias, stride=2).permute(0, 2, 3, 1)


def convolve_transposed(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply the transpose of a convolution with stride 2 and no padding.

    Args:
        image: (N, h, w, small).
        weight: (small, big, k, k).
        bias: (big,).

    Returns:
        (N, 2 (h - 1) + k, 2 (w - 1) + k, big), in the precision of autocast where that is on.
    """
    if image.device.type == "cpu":
        return _Up.apply(_cast(image), weight, bias)
    return functional.conv_transpose2d(image.permute(0, 3, 1, 2), weight, bias, stride=2).permute(0, 2, 3, 1)


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(image, weight)
        return _down(image, weight.to(image.dtype)) + bias.to(image.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        image, weight = ctx.saved_tensors
        gradient_image = None
        if ctx.needs_input_grad[0]:
            gradient_image = _up(gradient, weight.to(gradient.dtype))
            missing = [have - got for have, got in zip(image.shape[1:3], gradient_image.shape[1:3], strict=True)]
            if any(missing):  # pixels at the border that no window reached
                gradient_image = functional.pad(gradient_image, (0, 0, 0, missing[1], 0, missing[0]))
        return gradient_image, _correlate(image, gradient, weight), gradient.sum(dim=(0, 1, 2)).to(weight.dtype)


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(image, weight)
        return _up(image, weight.to(image.dtype)) + bias.to(image.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        image, weight = ctx.saved_tensors
        gradient_image = _down(gradient, weight.to(gradient.dtype)) if ctx.needs_input_grad[0] else None
        return gradient_image, _correlate(gradient, image, weight), gradient.sum(dim=(0, 1, 2)).to(weight.dtype)


def _cast(image: Tensor) -> Tensor:
    return image.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else image


def _down(image: Tensor, weight: Tensor) -> Tensor:
    small = weight.shape[0]
    windows = _Windows(_to_blocks(_made_even(image, weight)), _blocks_across(weight))
    matrix = _blocked(weight).reshape(small, -1).T.contiguous()
    result = image.new_empty(*windows.shape, small)
    for part, rows in windows:
        torch.mm(rows, matrix, out=result[part].view(-1, small))
    return result


def _up(image: Tensor, weight: Tensor) -> Tensor:
    small, big, k, _ = weight.shape
    across = _blocks_across(weight)
    border = across - 1
    windows = _Windows(functional.pad(image, (0, 0, border, border, border, border)), across)
    matrix = _blocked(weight).flip(1, 2).permute(1, 2, 0, 3).reshape(across * across * small, 4 * big)
    blocks = image.new_empty(*windows.shape, 4 * big)
    for part, rows in windows:
        torch.mm(rows, matrix, out=blocks[part].view(-1, 4 * big))
    n, h, w, _ = blocks.shape
    result = blocks.view(n, h, w, 2, 2, big).transpose(2, 3).reshape(n, 2 * h, 2 * w, big)
    return result[:, :-1, :-1] if k % 2 else result


def _correlate(image: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight (small, big, k, k), from the larger image and the smaller, summed in float32 over the parts."""
    small, big, k, _ = weight.shape
    across = _blocks_across(weight)
    windows = _Windows(_to_blocks(_made_even(image, weight)), across)
    gradient = gradient.contiguous()
    total = torch.zeros(small, across * across * 4 * big, dtype=weight.dtype)
    for part, rows in windows:
        total += gradient[part].view(-1, small).T @ rows
    total = total.reshape(small, across, across, 2, 2, big).permute(0, 5, 1, 3, 2, 4)
    return total.reshape(small, big, 2 * across, 2 * across)[:, :, :k, :k]


class _Windows:
    """The windows of ``across`` x ``across`` blocks in images (N, H, W, C), as rows of matrices, some images at a time."""

    def __init__(self, blocks: Tensor, across: int):
        blocks = blocks.contiguous()
        n, h, w, c = blocks.shape
        self.shape = (n, h - across + 1, w - across + 1)
        strides = (h * w * c, w * c, c, w * c, 1)
        self._view = blocks.as_strided((*self.shape, across, across * c), strides)
        self._row = across * across * c
        image_bytes = self.shape[1] * self.shape[2] * self._row * blocks.element_size()
        self._images = min(n, max(1, BUFFER_BYTES // image_bytes))
        self._buffer = blocks.new_empty(self._images, *self._view.shape[1:])

    def __iter__(self) -> Any:
        """Yield which images, and the matrix of their windows; the matrix is overwritten by the next."""
        for first in range(0, self.shape[0], self._images):
            part = slice(first, min(first + self._images, self.shape[0]))
            rows = self._buffer[: part.stop - part.start]
            rows.copy_(self._view[part])
            yield part, rows.view(-1, self._row)


def _blocks_across(weight: Tensor) -> int:
    return (weight.shape[-1] + 1) // 2


def _blocked(weight: Tensor) -> Tensor:
    """(small, blocks, blocks, 4 big), of an odd kernel with zeros at its end."""
    if weight.shape[-1] % 2:
        weight = functional.pad(weight, (0, 1, 0, 1))
    small, big, k, _ = weight.shape
    across = k // 2
    return weight.reshape(small, big, across, 2, across, 2).permute(0, 2, 4, 3, 5, 1).reshape(small, across, across, 4 * big)


def _made_even(image: Tensor, weight: Tensor) -> Tensor:
    """An image with even sides: cut where an even kernel does not reach, padded with zeros that an odd kernel's zeros meet."""
    odd_height, odd_width = image.shape[1] % 2, image.shape[2] % 2
    if not (odd_height or odd_width):
        return image
    if weight.shape[-1] % 2:
        return functional.pad(image, (0, 0, 0, odd_width, 0, odd_height))
    return image[:, : image.shape[1] - odd_height, : image.shape[2] - odd_width]


def _to_blocks(image: Tensor) -> Tensor:
    """(N, H, W, C) -> (N, H / 2, W / 2, 4 C)."""
    n, h, w, c = image.shape
    return image.reshape(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(n, h // 2, w // 2, 4 * c)
