"""Validate batched values against a leaf of a space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

SIGNED_DTYPE = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}  # of ill-supported dtypes


def as_numbers(value: Any, name: str) -> Tensor:
    """Convert an array, a tensor or nested lists to a tensor of real numbers, on the same device.

    Unsigned integers of 16 bits and more become signed integers, because torch supports few
    operations on the unsigned ones.

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


def check_leaf(space: gym.Space, value: Tensor, batch_size: int, name: str) -> None:
    """Validate a batch (B, ...) of values of a leaf: shape, dtype and range.

    Raises:
        ValueError: if the shape is wrong, or a value lies outside the space. The message names the
            index and the value.
        TypeError: if the dtype is wrong; see `check_kind`.
    """
    expected = (batch_size, *(space.shape or ()))
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {expected} for a batch of {space}, got {tuple(value.shape)}")
    check_kind(space, value, name)
    check_range(space, value, name)


def check_kind(space: gym.Space, value: Tensor, name: str) -> None:
    """Validate the kind of dtype of values of a leaf.

    Raises:
        TypeError: if the values are floating-point in a space of integers, or boolean in a Discrete
            or MultiDiscrete space. The message names the space and the dtype.
    """
    wrong = value.dtype is torch.bool and isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    if wrong or (value.dtype.is_floating_point and not np.issubdtype(space.dtype, np.floating)):
        raise TypeError(f"{name}: expected integers for {space}, got {value.dtype}")


def check_range(space: gym.Space, value: Tensor, name: str) -> None:
    """Validate the range of values (B, ...) of a leaf. This synchronises the GPU.

    Raises:
        ValueError: if a value lies outside the space or is NaN. The message names the index and the
            value.
    """
    low, high = leaf_bounds(space)
    if isinstance(low, np.ndarray):
        low, high = (as_numbers(bound, name).to(value.device) for bound in (low, high))
    inside = (value >= low) & (value <= high)  # False for NaN
    if not bool(inside.all()):
        row = int((~inside).reshape(len(inside), -1).any(dim=1).nonzero()[0])
        raise ValueError(f"{name}[{row}]: expected a value of {space}, got {value[row].tolist()}")


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
    return space.start, space.start + space.nvec - 1
