"""Whether a batch of values belongs to a leaf of a space, and what to say where it does not."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

WIDENED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}  # torch computes with few of these


def as_numbers(value: Any, name: str) -> Tensor:
    """Turn an array, a tensor or nested lists into a tensor, where they are; unsigned integers of 16 bits and more as signed.

    Raises:
        TypeError: if it is not made of real numbers; ``name`` is what it is called in the message.
    """
    try:
        tensor = torch.as_tensor(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array or tensor of numbers, got {value!r} ({error})") from error
    if tensor.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    return tensor.to(WIDENED.get(tensor.dtype, tensor.dtype))


def check_leaf(space: gym.Space, value: Tensor, batch_size: int, name: str) -> None:
    """Refuse what is not a batch of B values of a leaf.

    Raises:
        ValueError: if it has another shape, or a value lies outside; names its index and value.
        TypeError: as `check_kind`.
    """
    expected = (batch_size, *(space.shape or ()))
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {expected} for a batch of {space}, got {tuple(value.shape)}")
    check_kind(space, value, name)
    check_range(space, value, name)


def check_kind(space: gym.Space, value: Tensor, name: str) -> None:
    """Refuse floating-point numbers where the space has integers, and booleans for a choice, which no environment takes.

    Raises:
        TypeError: naming the space and the dtype.
    """
    wrong = value.dtype is torch.bool and isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    if wrong or (value.dtype.is_floating_point and not np.issubdtype(space.dtype, np.floating)):
        raise TypeError(f"{name}: expected integers for {space}, got {value.dtype}")


def check_range(space: gym.Space, value: Tensor, name: str) -> None:
    """Refuse values (B, ...) outside of the space; looks at every number, which stalls a GPU.

    Raises:
        ValueError: naming the index and the value.
    """
    low, high = _value_bounds(space)
    if isinstance(low, np.ndarray):
        low, high = (as_numbers(bound, name).to(value.device) for bound in (low, high))
    inside = (value >= low) & (value <= high)  # False for NaN
    if not bool(inside.all()):
        row = int((~inside).reshape(len(inside), -1).any(dim=1).nonzero()[0])
        raise ValueError(f"{name}[{row}]: expected a value of {space}, got {value[row].tolist()}")


def _value_bounds(space: gym.Space) -> tuple[Any, Any]:
    """Smallest and largest value of a leaf, as numbers or in its shape."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start + space.n) - 1
    return space.start, space.start + space.nvec - 1
