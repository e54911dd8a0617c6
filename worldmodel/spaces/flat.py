"""Gymnasium spaces <-> flat float feature vectors, as torch tensors with any leading dimensions.

A value of a space is what the environment gives: an array, or a dict or tuple of values. `FlatSpace` turns batches of
such values into one float32 vector each and back. Networks see only these vectors; environments see only values.
"""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from worldmodel.spaces.nested import Value, build_value, leaf_values, leaves
from worldmodel.spaces.validation import as_numbers, check_kind, check_leaf, check_range

WIDEST_SCALED_RANGE = 1e6  # Box dimensions with wider bounds count as unbounded: "3.4e38" means "no bound" in practice


class FlatSpace(nn.Module):
    """The map between a space's values and flat feature vectors of ``size`` floats.

    Discrete and MultiDiscrete become one-hot vectors, MultiBinary zeros and ones, Box its numbers; a Box dimension with
    finite bounds is scaled linearly from [low, high] to [-1, 1]. Leaves of a Dict or Tuple are concatenated in the space's
    order. A module only so that its constants follow the model to a device; it has no weights and saves none.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them.

    Raises:
        TypeError: if the space holds an unsupported one.
    """

    center: Tensor
    half_range: Tensor
    low: Tensor
    high: Tensor
    is_box: Tensor
    is_binary: Tensor
    bounded: Tensor
    is_integer: Tensor

    def __init__(self, space: gym.Space):
        super().__init__()
        self.space = space
        self._leaves = leaves(space)
        self._sizes = [_leaf_size(leaf) for _, leaf in self._leaves]
        self.size = sum(self._sizes)
        bounds = [_leaf_bounds(leaf, size) for (_, leaf), size in zip(self._leaves, self._sizes, strict=True)]
        low, high = (torch.as_tensor(np.concatenate(part), dtype=torch.float64) for part in zip(*bounds, strict=True))
        inner_low, inner_high = -_round_down(-low), _round_down(high)  # what is clipped to them is then within the exact ones
        representable = inner_low <= inner_high
        is_box = self._per_feature(lambda leaf: isinstance(leaf, spaces.Box))
        is_binary = self._per_feature(lambda leaf: isinstance(leaf, spaces.MultiBinary))
        is_integer = self._per_feature(lambda leaf: np.issubdtype(leaf.dtype, np.integer))
        scaled = is_box & (high > low) & (high - low <= WIDEST_SCALED_RANGE)
        constants = {
            "center": torch.where(scaled, (low + high) / 2, 0.0),
            "half_range": torch.where(scaled, (high - low) / 2, 1.0),
            "low": torch.where(representable, inner_low, low),
            "high": torch.where(representable, inner_high, high),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant.float(), persistent=False)
        for name, mask in {"is_box": is_box, "is_binary": is_binary, "bounded": scaled, "is_integer": is_integer}.items():
            self.register_buffer(name, mask, persistent=False)

    def _per_feature(self, question: Callable[[gym.Space], bool]) -> Tensor:
        """Answer a question about each leaf for each of its features: (size,) bool."""
        return torch.cat(
            [torch.full((n,), bool(question(leaf))) for (_, leaf), n in zip(self._leaves, self._sizes, strict=True)]
        )

    def flatten(self, value: Value) -> Tensor:
        """Turn a batch of values into features.

        Args:
            value: a value of the space with any leading dimensions (...), the same for every leaf; arrays or tensors.

        Returns:
            (..., size) float32, on the device of this module.

        Raises:
            ValueError: if a leaf is missing or does not end in its space's shape.
            TypeError: if a leaf is not made of numbers, or a choice is a boolean.
        """
        given = leaf_values(value)
        parts = []
        for path, leaf in self._leaves:
            if path not in given:
                raise ValueError(f"value: expected a leaf {path!r} of {self.space}, got leaves {sorted(given)}")
            name = f"value at {path!r}" if path else "value"
            parts.append(_flatten_leaf(leaf, as_numbers(given[path], name).to(self.low.device), name))
        return (torch.cat(parts, dim=-1) - self.center) / self.half_range  # (..., size)

    def check(self, value: Value, batch_size: int, *, name: str = "value") -> None:
        """Refuse what is not a batch of B values of the space. Looks at every number, which stalls a GPU.

        Args:
            value: anything.
            batch_size: B.
            name: what it is called in the message.

        Raises:
            ValueError: if a leaf is missing, has another shape, or holds a value outside the space; names its index and value.
            TypeError: if a leaf is not made of numbers, or a choice is given as a floating-point number or a boolean.
        """
        given = leaf_values(value)
        if sorted(given) != sorted(path for path, _ in self._leaves):
            raise ValueError(f"{name}: expected leaves {[path for path, _ in self._leaves]} of {self.space}, got {list(given)}")
        for path, leaf in self._leaves:
            where = f"{name} at {path!r}" if path else name
            check_leaf(leaf, as_numbers(given[path], where), batch_size, where)

    def check_choices(self, value: Value, *, name: str = "value", values: bool = True) -> None:
        """Refuse choices (all but Box) that are floating-point numbers or, if ``values`` are looked at, outside of their space.

        Args:
            value: what `flatten` takes, with at least one leading dimension.
            name: what it is called in the message.
            values: look at every number, which stalls a GPU.

        Raises:
            ValueError: if a value lies outside; names its index and value.
            TypeError: if a leaf is not made of numbers, or a choice is given as a floating-point number or a boolean.
        """
        given = leaf_values(value)
        for path, leaf in self._leaves:
            if not isinstance(leaf, spaces.Box):
                where = f"{name} at {path!r}" if path else name
                tensor = as_numbers(given[path], where)
                check_kind(leaf, tensor, where)
                if values:
                    check_range(leaf, tensor, where)

    def squash(self, outputs: Tensor) -> Tensor:
        """Turn a network's outputs (..., size) into features: tanh for Box, a step at 0 for MultiBinary, else as they are.

        `unflatten` then reads them as is usual: argmax for Discrete and MultiDiscrete, the bounds at tanh = -1 and 1 for Box.
        """
        return torch.where(self.is_box, outputs.tanh(), torch.where(self.is_binary, (outputs > 0).to(outputs.dtype), outputs))

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Value:
        """Draw values as Gymnasium's ``Space.sample`` does, as nested tensors (num_samples, ...).

        Uniform where the space is discrete or bounded; a Box dimension with one bound is that bound plus or minus a standard
        exponential, one with none (or with bounds wider than `WIDEST_SCALED_RANGE`) a standard normal.
        """
        shape = (num_samples, self.size)
        uniform = torch.empty(shape, device=self.low.device).uniform_(generator=generator)
        exponential = torch.empty(shape, device=self.low.device).exponential_(generator=generator)
        natural = torch.empty(shape, device=self.low.device).normal_(generator=generator)
        natural = torch.where(torch.isfinite(self.low) & torch.isinf(self.high), self.low + exponential, natural)
        natural = torch.where(torch.isinf(self.low) & torch.isfinite(self.high), self.high - exponential, natural)
        widened = self.half_range + 0.5 * self.is_integer  # rounding then gives the ends as much as what lies between
        natural = torch.where(self.bounded, self.center + (2 * uniform - 1) * widened, natural)
        features = (natural - self.center) / self.half_range
        return self.unflatten(torch.where(self.is_box, features, uniform))  # largest of n uniforms: a uniform choice of n

    def unflatten(self, features: Tensor) -> Value:
        """Turn features into the nearest values of the space: largest entry, threshold 0.5, clipping to the bounds.

        Args:
            features: (..., size) float.

        Returns:
            Nested tensors with the leading dimensions (...), in the dtypes of the space.

        Raises:
            ValueError: if the last dimension is not ``size``.
        """
        if features.ndim == 0 or features.shape[-1] != self.size:
            raise ValueError(f"features: expected shape (..., {self.size}), got {tuple(features.shape)}")
        natural = (features * self.half_range + self.center).clamp(self.low, self.high)
        parts = natural.split(self._sizes, dim=-1)
        return build_value(
            self.space, {path: _unflatten_leaf(leaf, part) for (path, leaf), part in zip(self._leaves, parts, strict=True)}
        )


def _round_down(bound: Tensor) -> Tensor:
    """The largest float32 number that is not above a float64 one, in float64."""
    nearest = bound.float()
    return torch.where(nearest.double() > bound, nearest.nextafter(torch.full_like(nearest, -torch.inf)), nearest).double()


def _leaf_size(space: gym.Space) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(np.prod(space.shape or (), dtype=int))


def _leaf_bounds(space: gym.Space, size: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(space, spaces.Box):
        return space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
    return np.full(size, -np.inf), np.full(size, np.inf)


def _torch_dtype(space: gym.Space) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=space.dtype)).dtype


def _flatten_leaf(space: gym.Space, value: Tensor, name: str) -> Tensor:
    shape = tuple(space.shape or ())
    if value.ndim < len(shape) or tuple(value.shape[value.ndim - len(shape) :]) != shape:
        raise ValueError(f"{name}: expected shape (..., {shape}), got {tuple(value.shape)}")
    if value.dtype is torch.bool:
        check_kind(space, value, name)
    leading = value.shape[: value.ndim - len(shape)]
    if isinstance(space, spaces.Discrete):
        return _one_hot(value - int(space.start), int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        index = value.reshape(*leading, len(space.nvec.reshape(-1)))
        index = index - torch.as_tensor(space.start.reshape(-1), device=value.device)
        return torch.cat([_one_hot(index[..., i], int(n)) for i, n in enumerate(space.nvec.reshape(-1))], dim=-1)
    return value.reshape(*leading, _leaf_size(space)).float()


def _one_hot(index: Tensor, n: int) -> Tensor:
    return (index.unsqueeze(-1) == torch.arange(n, device=index.device)).float()  # unlike F.one_hot: no sync on a GPU


def _unflatten_leaf(space: gym.Space, part: Tensor) -> Tensor:
    leading = part.shape[:-1]
    if isinstance(space, spaces.Discrete):
        return (part.argmax(dim=-1) + int(space.start)).to(_torch_dtype(space))
    if isinstance(space, spaces.MultiDiscrete):
        groups = part.split([int(n) for n in space.nvec.reshape(-1)], dim=-1)
        index = torch.stack([group.argmax(dim=-1) for group in groups], dim=-1)
        start = torch.as_tensor(space.start, device=part.device)
        return (index.reshape(*leading, *space.shape) + start).to(_torch_dtype(space))
    if isinstance(space, spaces.MultiBinary):
        return (part > 0.5).reshape(*leading, *space.shape).to(_torch_dtype(space))
    value = part.reshape((*leading, *(space.shape or ())))
    dtype = _torch_dtype(space)
    return value.to(dtype) if dtype.is_floating_point else value.round().to(dtype)
