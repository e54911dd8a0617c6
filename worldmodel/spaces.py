"""Gymnasium spaces <-> flat float feature vectors, as torch tensors with any leading dimensions.

A value of a space is what the environment gives: an array, or a dict or tuple of values. `FlatSpace` turns batches of
such values into one float32 vector each and back. Networks see only these vectors; environments see only values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from worldmodel.membership import as_numbers, check_kind, check_leaf, check_range

Value = Any  # np.ndarray | Tensor | dict[str, Value] | tuple[Value, ...]: a space's value, or a batch of values

WIDEST_SCALED_RANGE = 1e6  # Box dimensions with wider bounds count as unbounded: "3.4e38" means "no bound" in practice

_NEAREST = {
    "Text": "MultiDiscrete over character codes",
    "Graph": "Dict of fixed-size Box arrays for nodes and edges",
    "Sequence": "Box of a fixed maximal length with a mask",
    "OneOf": "Dict of the alternatives with a Discrete selector",
}


def leaves(space: gym.Space, path: str = "") -> list[tuple[str, gym.Space]]:
    """List the leaf spaces in a fixed order with their paths: ``""`` for a bare space, else e.g. ``"arm/angle"``, ``"0"``.

    Raises:
        TypeError: if a leaf is not Box, Discrete, MultiDiscrete or MultiBinary; the message names the nearest that is.
    """
    children: list[tuple[str, gym.Space]] | None = None
    if isinstance(space, spaces.Dict):
        children = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        children = [(str(index), child) for index, child in enumerate(space.spaces)]
    if children is not None:
        return [leaf for key, child in children for leaf in leaves(child, f"{path}/{key}" if path else key)]
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        kind = type(space).__name__
        nearest = _NEAREST.get(kind, "Box")
        raise TypeError(
            f"space{f' at {path!r}' if path else ''}: expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple "
            f"of them, got {kind}; the nearest supported space is {nearest}: wrap the environment to convert it"
        )
    if 0 in (space.shape or ()):
        raise TypeError(f"space{f' at {path!r}' if path else ''}: expected at least one number, got shape {space.shape}")
    return [(path, space)]


def map_leaves(function: Callable[..., Any], *values: Value) -> Value:
    """Apply ``function`` to the leaves of equally nested values, keeping the dicts and tuples around them."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: map_leaves(function, *(value[key] for value in values)) for key in first}
    if isinstance(first, tuple):
        return tuple(map_leaves(function, *children) for children in zip(*values, strict=True))
    return function(*values)


def leaf_values(value: Value, path: str = "") -> dict[str, Any]:
    """Flatten a nested value to ``{path: leaf}`` with the paths of :func:`leaves`."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, tuple):
        items = [(str(index), child) for index, child in enumerate(value)]
    else:
        return {path: value}
    result: dict[str, Any] = {}
    for key, child in items:
        result |= leaf_values(child, f"{path}/{key}" if path else key)
    return result


def build_value(space: gym.Space, leaf: Mapping[str, Any], path: str = "") -> Value:
    """Nest ``{path: leaf}`` as ``space`` does: the inverse of :func:`leaf_values`."""
    if isinstance(space, spaces.Dict):
        return {k: build_value(child, leaf, f"{path}/{k}" if path else k) for k, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(build_value(child, leaf, f"{path}/{i}" if path else str(i)) for i, child in enumerate(space.spaces))
    return leaf[path]


def to_numpy(value: Value) -> Value:
    """Turn the tensors in a nested value into arrays; a single integer becomes a NumPy scalar, as environments expect."""
    return map_leaves(lambda leaf: _leaf_to_numpy(leaf) if isinstance(leaf, Tensor) else leaf, value)


def _leaf_to_numpy(leaf: Tensor) -> np.ndarray | np.generic:
    array = leaf.detach().cpu().numpy()
    return array if leaf.is_floating_point() else array[()]  # a Box of shape () wants an array, a Discrete a number


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


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """Describe a supported space as JSON-able data. Infinite bounds become the strings "inf" and "-inf"."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_json(child) for key, child in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(child) for child in space.spaces]}
    leaves(space)  # raises for an unsupported leaf
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    assert isinstance(space, spaces.Box)
    bounds = {"low": _bound_to_json(space.low), "high": _bound_to_json(space.high)}
    return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}


def space_from_json(data: Mapping[str, Any]) -> gym.Space:
    """Build the space that :func:`space_to_json` described; the result equals the original.

    Raises:
        ValueError: if the description is of an unknown type.
    """
    kind = data.get("type")
    if kind == "Dict":
        return spaces.Dict({key: space_from_json(child) for key, child in data["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(child) for child in data["spaces"]])
    if kind == "Discrete":
        dtype = data.get("dtype", "int64")
        other_dtype = {} if dtype == "int64" else {"dtype": np.dtype(dtype).type}  # Gymnasium before 1.3 has no such argument
        return spaces.Discrete(data["n"], start=data["start"], **other_dtype)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], start=data["start"], dtype=np.dtype(data["dtype"]).type)
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Box":
        dtype, shape = np.dtype(data["dtype"]), tuple(data["shape"])
        low, high = (_bound_from_json(data[name], shape, dtype) for name in ("low", "high"))
        return spaces.Box(low=low, high=high, shape=shape, dtype=dtype.type)
    raise ValueError(f"space: expected a description of Dict, Tuple, Discrete, MultiDiscrete, MultiBinary or Box, got {kind!r}")


def _bound_to_json(bound: np.ndarray) -> Any:
    uniform = bound.size > 0 and bool((bound == bound.flat[0]).all())
    values = [bound.flat[0].item()] if uniform else bound.reshape(-1).tolist()
    said = [value if np.isfinite(value) else ("inf" if value > 0 else "-inf") for value in values]
    return said[0] if uniform else said


def _bound_from_json(bound: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    values = np.array(
        [float(v) if isinstance(v, str) else v for v in (bound if isinstance(bound, list) else [bound])], dtype=dtype
    )
    return np.full(shape, values[0]) if values.size == 1 else values.reshape(shape)
