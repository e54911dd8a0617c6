"""Convert between values of Gymnasium spaces and flat feature vectors.

A value of a space is an array, or a dict or tuple of values. `FlatSpace` converts each value of a
batch to one vector, and back. Networks see only these vectors; environments see only values. The
vectors are float32, or float64 where the numbers need it until they are centred: coordinates of
5,000,000 m that change by 2 cm, or Unix times.
"""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.spaces.buffers import Float64Buffers
from worldmodel.spaces.nested import Value, build_value, leaf_values, leaves
from worldmodel.spaces.selection import as_tuples
from worldmodel.spaces.validation import as_numbers, check_kind, check_leaf, check_range, leaf_bounds

MAX_SCALED_RANGE = 1e6  # wider Box dimensions count as unbounded: bounds of 3.4e38 mean "no bound" in practice
FLOAT32_INTEGERS = 2**24  # float32 represents all integers up to this magnitude


class FlatSpace(Float64Buffers):
    """Map between the values of a space and flat feature vectors of ``size`` floats.

    Discrete and MultiDiscrete become one-hot vectors, MultiBinary becomes zeros and ones, and Box
    keeps its numbers. A Box dimension with finite bounds is scaled linearly from [low, high] to
    [-1, 1]. The leaves of a Dict or Tuple are concatenated in the order of the space.

    This is a module so that its constants move to a device with the model. It has no weights, and
    its constants are not in the state dict.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them.
        exact: whether `flatten` returns float64 by default if ``needs_float64``.

    Attributes:
        needs_float64: whether float32 cannot represent the values of a Box: its numbers are
            float64, or integers above 2^24.

    Raises:
        TypeError: if the space contains an unsupported space.
    """

    center: Tensor
    half_range: Tensor
    low: Tensor
    high: Tensor
    exact_center: Tensor
    exact_half_range: Tensor
    exact_low: Tensor
    exact_high: Tensor
    is_box: Tensor
    is_binary: Tensor
    bounded: Tensor
    is_integer: Tensor

    def __init__(self, space: gym.Space, *, exact: bool = False):
        super().__init__()
        self.space, self.exact = space, exact
        self._leaves = leaves(space)
        self._sizes = [_leaf_size(leaf) for _, leaf in self._leaves]
        self.size = sum(self._sizes)
        self.needs_float64 = any(_needs_float64(leaf) for _, leaf in self._leaves)
        self._wide_integers = any(_needs_float64(leaf) and np.issubdtype(leaf.dtype, np.integer) for _, leaf in self._leaves)
        bounds = [_feature_bounds(leaf, size) for (_, leaf), size in zip(self._leaves, self._sizes, strict=True)]
        low, high = (torch.as_tensor(np.concatenate(part), dtype=torch.float64) for part in zip(*bounds, strict=True))
        inner_low, inner_high = -_round_down(-low), _round_down(high)  # float32 bounds inside the exact ones
        representable = inner_low <= inner_high
        is_box = self._per_feature(lambda leaf: isinstance(leaf, spaces.Box))
        is_binary = self._per_feature(lambda leaf: isinstance(leaf, spaces.MultiBinary))
        is_integer = self._per_feature(lambda leaf: np.issubdtype(leaf.dtype, np.integer))
        scaled = is_box & (high > low) & (high - low <= MAX_SCALED_RANGE)
        constants = {
            "center": torch.where(scaled, (low + high) / 2, 0.0),
            "half_range": torch.where(scaled, (high - low) / 2, 1.0),
            "low": torch.where(representable, inner_low, low),
            "high": torch.where(representable, inner_high, high),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant.float(), persistent=False)
        for name, constant in {**constants, "low": low, "high": high}.items():
            self.register_buffer(f"exact_{name}", constant, persistent=False)
        for name, mask in {"is_box": is_box, "is_binary": is_binary, "bounded": scaled, "is_integer": is_integer}.items():
            self.register_buffer(name, mask, persistent=False)

    def _per_feature(self, predicate: Callable[[gym.Space], bool]) -> Tensor:
        """Evaluate a predicate on each leaf and repeat it for the leaf's features: (size,) bool."""
        return torch.cat(
            [torch.full((n,), bool(predicate(leaf))) for (_, leaf), n in zip(self._leaves, self._sizes, strict=True)]
        )

    def features_of(self, path: str) -> slice:
        """Return the features of a leaf.

        Raises:
            KeyError: if there is no such leaf.
        """
        first = 0
        for (own, _), size in zip(self._leaves, self._sizes, strict=True):
            if own == path:
                return slice(first, first + size)
            first += size
        raise KeyError(path)

    def flatten(self, value: Value, *, exact: bool | None = None) -> Tensor:
        """Convert a batch of values to features.

        Args:
            value: arrays or tensors, nested as the space, with leading dimensions (...) that are
                the same for every leaf. A list may take the place of a tuple.
            exact: return float64 if ``needs_float64``; None takes the choice of the constructor.

        Returns:
            (..., size) float32 or float64, on the device of this module.

        Raises:
            ValueError: if a leaf is missing, or its last dimensions differ from the shape of its
                space.
            TypeError: if a leaf is not numeric, or a Discrete or MultiDiscrete leaf is boolean.
        """
        wide = self.needs_float64 and (self.exact if exact is None else exact) and self.exact_low.dtype is torch.float64
        dtype = torch.float64 if wide else torch.float32
        center, half_range = (self.exact_center, self.exact_half_range) if wide else (self.center, self.half_range)
        given = leaf_values(as_tuples(self.space, value))
        parts = []
        for path, leaf in self._leaves:
            if path not in given:
                raise ValueError(f"value: expected a leaf {path!r} of {self.space}, got leaves {sorted(given)}")
            name = f"value at {path!r}" if path else "value"
            parts.append(_flatten_leaf(leaf, as_numbers(given[path], name).to(self.low.device), name, dtype))
        return (torch.cat(parts, dim=-1) - center) / half_range  # (..., size)

    def check(self, value: Value, batch_size: int, *, name: str = "value") -> Value:
        """Validate a batch of B values of the space. This synchronises the GPU.

        Args:
            value: the batch to validate.
            batch_size: B.
            name: name of the batch in error messages.

        Returns:
            The batch. Where floating-point arithmetic, such as the rescaling of actions, exceeded a
            bound of a Box by a rounding error, the numbers are clipped to the bound.

        Raises:
            ValueError: if a leaf is missing or has a wrong shape, or if a value lies outside the
                space. The message names the index and the value.
            TypeError: if a leaf is not numeric, if a leaf of integers is floating-point, or if a
                Discrete or MultiDiscrete leaf is boolean.
        """
        given = leaf_values(as_tuples(self.space, value))
        if sorted(given) != sorted(path for path, _ in self._leaves):
            raise ValueError(f"{name}: expected leaves {[path for path, _ in self._leaves]} of {self.space}, got {list(given)}")
        for path, leaf in self._leaves:
            where = f"{name} at {path!r}" if path else name
            numbers = as_numbers(given[path], where)
            checked = check_leaf(leaf, numbers, batch_size, where)
            if checked is not numbers:
                given[path] = checked if isinstance(given[path], Tensor) else checked.numpy()
        return build_value(self.space, given)

    def check_choices(self, value: Value, *, name: str = "value", values: bool = True) -> None:
        """Validate the leaves that are not Box: their dtypes and, if ``values``, their ranges.

        Args:
            value: as in `flatten`, with at least one leading dimension.
            name: name of the batch in error messages.
            values: also check the range of every number, which synchronises the GPU.

        Raises:
            ValueError: if a value lies outside its space. The message names the index and the
                value.
            TypeError: if a leaf is not numeric or is floating-point, or if a Discrete or
                MultiDiscrete leaf is boolean.
        """
        given = leaf_values(as_tuples(self.space, value))
        for path, leaf in self._leaves:
            if not isinstance(leaf, spaces.Box):
                where = f"{name} at {path!r}" if path else name
                tensor = as_numbers(given[path], where)
                check_kind(leaf, tensor, where)
                if values:
                    check_range(leaf, tensor, where)

    def squash(self, outputs: Tensor) -> Tensor:
        """Convert network outputs (..., size) to features (..., size).

        Box outputs pass through tanh, MultiBinary outputs through a step at 0; the others are
        unchanged. `unflatten` then maps tanh = -1 and 1 to the bounds of a Box and takes the argmax
        for Discrete and MultiDiscrete.
        """
        return torch.where(self.is_box, outputs.tanh(), torch.where(self.is_binary, (outputs > 0).to(outputs.dtype), outputs))

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Value:
        """Sample nested tensors (num_samples, ...) as Gymnasium's ``Space.sample`` does.

        Discrete spaces, bounded Box dimensions and integers are uniform. A Box dimension with one
        bound is that bound plus or minus a standard exponential. A Box dimension of floats without
        bounds, or with bounds wider than `MAX_SCALED_RANGE`, is standard normal.
        """
        shape, device = (num_samples, self.size), self.low.device
        uniform = torch.empty(shape, dtype=torch.float32, device=device).uniform_(generator=generator)
        exponential = torch.empty(shape, dtype=torch.float32, device=device).exponential_(generator=generator)
        natural = torch.empty(shape, dtype=torch.float32, device=device).normal_(generator=generator)
        low, high, center, half_range = self.low, self.high, self.center, self.half_range
        if self._wide_integers:
            uniform = uniform.double()
            low, high, center, half_range = self.exact_low, self.exact_high, self.exact_center, self.exact_half_range
        natural = torch.where(torch.isfinite(low) & torch.isinf(high), low + exponential, natural)
        natural = torch.where(torch.isinf(low) & torch.isfinite(high), high - exponential, natural)
        widened = torch.where(self.is_integer, half_range + 0.5, half_range)  # rounding gives both ends the full probability
        natural = torch.where(self.bounded, center + (2 * uniform - 1) * widened, natural)
        if self._wide_integers:  # those whose range is too wide to be scaled
            unscaled = self.is_box & self.is_integer & ~self.bounded
            natural = torch.where(unscaled, low + uniform * (high - low + 1) - 0.5, natural)
        features = (natural - center) / half_range
        return self.unflatten(torch.where(self.is_box, features, uniform))  # argmax of n uniforms is uniform over n

    def unflatten(self, features: Tensor) -> Value:
        """Convert features to the nearest values of the space.

        Takes the argmax for Discrete and MultiDiscrete, thresholds MultiBinary at 0.5, and clips
        Box to its bounds.

        Args:
            features: (..., size) float; float64 for the precision of float64.

        Returns:
            Nested tensors with the leading dimensions (...), in the dtypes of the space.

        Raises:
            ValueError: if the last dimension is not ``size``.
        """
        if features.ndim == 0 or features.shape[-1] != self.size:
            raise ValueError(f"features: expected shape (..., {self.size}), got {tuple(features.shape)}")
        if features.dtype is torch.float64 and self.needs_float64:
            natural = (features * self.exact_half_range + self.exact_center).clamp(self.exact_low, self.exact_high)
        else:
            natural = (features * self.half_range + self.center).clamp(self.low, self.high)
        parts = natural.split(self._sizes, dim=-1)
        return build_value(
            self.space, {path: _unflatten_leaf(leaf, part) for (path, leaf), part in zip(self._leaves, parts, strict=True)}
        )


def _round_down(bound: Tensor) -> Tensor:
    """Round float64 numbers down to the nearest float32 numbers; the result is float64."""
    nearest = bound.float()
    return torch.where(nearest.double() > bound, nearest.nextafter(torch.full_like(nearest, -torch.inf)), nearest).double()


def _leaf_size(space: gym.Space) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(np.prod(space.shape or (), dtype=int))


def _feature_bounds(space: gym.Space, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a leaf's features before scaling, float64 (size,) each: finite only for Box."""
    if isinstance(space, spaces.Box):
        low, high = (bound.reshape(-1).astype(np.float64) for bound in leaf_bounds(space))
        return low, high
    return np.full(size, -np.inf), np.full(size, np.inf)


def _needs_float64(space: gym.Space) -> bool:
    """Return whether float32 cannot represent the numbers of a Box."""
    if not isinstance(space, spaces.Box):
        return False
    if space.dtype.kind == "f":
        return space.dtype.itemsize > 4
    return bool(max(abs(int(space.low.min())), abs(int(space.high.max()))) > FLOAT32_INTEGERS)


def _torch_dtype(space: gym.Space) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=space.dtype)).dtype


def _start(space: spaces.MultiDiscrete) -> np.ndarray:
    """First values of a MultiDiscrete; torch cannot calculate with unsigned integers of 16 bits and more."""
    return space.start.astype(np.int64)


def _flatten_leaf(space: gym.Space, value: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    shape = tuple(space.shape or ())
    if value.ndim < len(shape) or tuple(value.shape[value.ndim - len(shape) :]) != shape:
        raise ValueError(f"{name}: expected shape (..., {shape}), got {tuple(value.shape)}")
    if value.dtype is torch.bool:
        check_kind(space, value, name)
    leading = value.shape[: value.ndim - len(shape)]
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and value.dtype is torch.uint64:
        value = value.long()
    if isinstance(space, spaces.Discrete):
        return _one_hot(value - int(space.start), int(space.n), dtype)
    if isinstance(space, spaces.MultiDiscrete):
        index = value.reshape(*leading, len(space.nvec.reshape(-1)))
        index = index - torch.as_tensor(_start(space).reshape(-1), device=value.device)
        return torch.cat([_one_hot(index[..., i], int(n), dtype) for i, n in enumerate(space.nvec.reshape(-1))], dim=-1)
    return value.reshape(*leading, _leaf_size(space)).to(dtype)


def _one_hot(index: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    return (index.unsqueeze(-1) == torch.arange(n, device=index.device)).to(dtype)  # F.one_hot would synchronise the GPU


def _unflatten_leaf(space: gym.Space, part: Tensor) -> Tensor:
    leading = part.shape[:-1]
    if isinstance(space, spaces.Discrete):
        return (part.argmax(dim=-1) + int(space.start)).to(_torch_dtype(space))
    if isinstance(space, spaces.MultiDiscrete):
        groups = part.split([int(n) for n in space.nvec.reshape(-1)], dim=-1)
        index = torch.stack([group.argmax(dim=-1) for group in groups], dim=-1)
        start = torch.as_tensor(_start(space), device=part.device)
        return (index.reshape(*leading, *space.shape) + start).to(_torch_dtype(space))
    if isinstance(space, spaces.MultiBinary):
        return (part > 0.5).reshape(*leading, *space.shape).to(_torch_dtype(space))
    value = part.reshape((*leading, *(space.shape or ())))
    dtype = _torch_dtype(space)
    if dtype.is_floating_point:
        limit = torch.finfo(dtype).max
        return (value.clamp(-limit, limit) if limit < torch.finfo(value.dtype).max else value).to(dtype)
    return _wide_integers(space, value, dtype) if _needs_float64(space) else value.round().to(dtype)


def _wide_integers(space: gym.Space, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Round floats to the integers of a Box, clamped in its own dtype: float64 cannot represent all bounds of 64 bits.

    A number that reaches the float64 nearest to a bound becomes the bound itself.
    """
    value = value.double().round()
    low, high = (torch.as_tensor(bound, device=value.device) for bound in leaf_bounds(space))
    nearest_low, nearest_high = low.double(), high.double()
    toward_zero = torch.zeros_like(nearest_low)
    inner = value.clamp(nearest_low.nextafter(toward_zero), nearest_high.nextafter(toward_zero)).to(dtype)
    return torch.where(value >= nearest_high, high, torch.where(value <= nearest_low, low, inner))
