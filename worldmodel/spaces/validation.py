"""Validate batched values against a leaf of a space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.spaces.nested import leaf_values, leaves
from worldmodel.spaces.selection import as_tuples

LARGEST = torch.finfo(torch.float32).max
SIGNED_DTYPE = {torch.uint16: torch.int32, torch.uint32: torch.int64}  # torch supports few operations on unsigned ones


def as_numbers(value: Any, name: str) -> Tensor:
    """Convert an array, a tensor or nested lists to a tensor of real numbers, on the same device.

    Unsigned integers of 16 and 32 bits become signed integers, because torch supports few
    operations on the unsigned ones. Those of 64 bits stay: no signed dtype holds them all.

    Args:
        value: an array, a tensor or nested lists.
        name: name of the value in error messages.

    Raises:
        TypeError: if the value is not numeric, or is complex.
    """
    try:
        tensor = torch.as_tensor(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array or tensor of numbers, got {value!r} ({error})") from error
    if tensor.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    return tensor.to(SIGNED_DTYPE.get(tensor.dtype, tensor.dtype))


def check_leaf(space: gym.Space, value: Tensor, batch_size: int, name: str) -> Tensor:
    """Validate a batch (B, ...) of values of a leaf: shape, dtype and range.

    Returns:
        The batch, with rounding errors at the bounds of a Box clipped; see `check_range`.

    Raises:
        ValueError: if the shape is wrong, or a value lies outside the space. The message names the
            index and the value.
        TypeError: if the dtype is wrong; see `check_kind`.
    """
    expected = (batch_size, *(space.shape or ()))
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {expected} for a batch of {space}, got {tuple(value.shape)}")
    check_kind(space, value, name)
    return check_range(space, value, name)


def check_kind(space: gym.Space, value: Tensor, name: str) -> None:
    """Validate the kind of dtype of values of a leaf.

    Raises:
        TypeError: if the values are floating-point in a space of integers, or boolean in a Discrete
            or MultiDiscrete space. The message names the space and the dtype.
    """
    wrong = value.dtype is torch.bool and isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    if wrong or (value.dtype.is_floating_point and not np.issubdtype(space.dtype, np.floating)):
        raise TypeError(f"{name}: expected integers for {space}, got {value.dtype}")


def check_range(space: gym.Space, value: Tensor, name: str) -> Tensor:
    """Validate the range of values (B, ...) of a leaf. This synchronises the GPU.

    Returns:
        The values. Floats that exceed a bound by no more than the rounding error of arithmetic with
        numbers of the bounds' size are clipped to the bound.

    Raises:
        ValueError: if a value lies outside the space or is NaN. The message names the index and the
            value.
    """
    low, high = leaf_bounds(space)
    if torch.uint64 in (value.dtype, *(torch.as_tensor(bound).dtype for bound in (low, high))):
        numbers = value.cpu().numpy()  # NumPy compares signed and unsigned integers exactly
        inside = torch.as_tensor((numbers >= low) & (numbers <= high))
    else:
        if isinstance(low, np.ndarray):
            low, high = (as_numbers(bound, name).to(value.device) for bound in (low, high))
        inside = (value >= low) & (value <= high)  # False for NaN
    if bool(inside.all()):
        return value
    if isinstance(low, Tensor) and value.is_floating_point():
        clipped = value.clamp(low.to(torch.float64), high.to(torch.float64)).to(torch.promote_types(value.dtype, low.dtype))
        inside = inside | ((value - clipped).abs() <= _rounding_error(low, high, value.dtype))
    if bool(inside.all()):
        return clipped
    row = int((~inside).reshape(len(inside), -1).any(dim=1).nonzero()[0])
    raise ValueError(f"{name}[{row}]: expected a value of {space}, got {value[row].tolist()}")


def _rounding_error(low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of the larger bound, in the coarser of two dtypes."""
    size = torch.stack([low, high]).double().abs()
    size = torch.where(size.isfinite(), size, 0.0).amax(dim=0)
    return size * max(torch.finfo(dtype).eps, torch.finfo(low.dtype).eps)


def check_magnitude(space: gym.Space, value: Any, name: str) -> None:
    """Raise if a number of a batch of values is beyond the range of float32. This synchronises the GPU.

    Args:
        space: the space of the values.
        value: a batch of values (N, ...); other leaves than those of ``space`` are ignored.
        name: name of the batch in error messages.

    Raises:
        ValueError: naming the leaf, the dimension, the value and the fix.
    """
    given = leaf_values(as_tuples(space, value))
    for path, leaf in leaves(space):
        if path in given and isinstance(leaf, spaces.Box) and leaf.dtype.kind == "f":
            check_float32_range(as_numbers(given[path], name), f"{name} at {path!r}" if path else name)


def check_float32_range(values: Tensor, name: str) -> None:
    """Raise if a float (N, ...) is beyond the range of float32; NaN and infinity are for other checks.

    Raises:
        ValueError: naming the row, the dimension, the value and the fix.
    """
    if values.dtype is not torch.float64 or values.numel() == 0:
        return
    too_large = values.isfinite() & (values.abs() > LARGEST)
    if bool(too_large.any()):
        row, *dimension = (int(index) for index in too_large.nonzero()[0])
        where = f"{name}, dimension {dimension[0] if len(dimension) == 1 else tuple(dimension)}" if dimension else name
        raise ValueError(
            f"{where}: expected numbers of at most {LARGEST:.3g}, the range of float32, got {values[(row, *dimension)]:g} in "
            f"row {row}; rescale it in the environment (gymnasium.wrappers.TransformObservation, TransformAction or "
            "TransformReward), or collect again without it"
        )


def leaf_bounds(space: gym.Space) -> tuple[Any, Any]:
    """Return the smallest and the largest value of a leaf space, both inclusive.

    Args:
        space: Box, Discrete, MultiDiscrete or MultiBinary.

    Returns:
        Arrays of the leaf's shape for Box and MultiDiscrete, ints for Discrete and MultiBinary.
    """
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start) + int(space.n) - 1
    start = space.start.astype(np.int64)  # their own dtype may be too small for the sum
    return start, start + space.nvec.astype(np.int64) - 1
