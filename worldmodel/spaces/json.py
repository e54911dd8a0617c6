"""Gymnasium spaces as JSON-serialisable data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.spaces.nested import leaves

MAX_ELEMENTS = 2**27  # of an array; an uncompressed 8K colour image has 1e8


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """Return a JSON-serialisable description of a space. Infinite bounds become "inf" and "-inf".

    Raises:
        TypeError: if the space contains an unsupported space.
    """
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            if not isinstance(key, str):
                raise TypeError(f"space: expected strings as keys of a Dict, as JSON has no others, got the key {key!r}")
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


def with_sorted_keys(space: gym.Space) -> gym.Space:
    """Return an equal space with the keys of each Dict in alphabetical order, as `space_from_json` returns it.

    Gymnasium sorts the keys of a dict, but not those of keywords or of an OrderedDict.
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: with_sorted_keys(child) for key, child in space.spaces.items()})
    return spaces.Tuple([with_sorted_keys(child) for child in space.spaces]) if isinstance(space, spaces.Tuple) else space


def space_from_json(data: Mapping[str, Any]) -> gym.Space:
    """Build a space from its description by `space_to_json`; the result equals the original space.

    Raises:
        ValueError: if the type in the description is unknown.
    """
    _check_size(data)
    kind = data.get("type")
    if kind == "Dict":
        return spaces.Dict({key: space_from_json(child) for key, child in data["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(child) for child in data["spaces"]])
    if kind == "Discrete":
        dtype = data.get("dtype", "int64")
        other_dtype = {} if dtype == "int64" else {"dtype": np.dtype(dtype).type}  # an argument since Gymnasium 1.3
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


def json_features(data: Mapping[str, Any]) -> int:
    """Return the number of flat features of a described space, as `FlatSpace.size`, without making the space."""
    kind = data["type"]
    if kind in ("Dict", "Tuple"):
        children = data["spaces"].values() if kind == "Dict" else data["spaces"]
        return sum(map(json_features, children))
    if kind == "Discrete":
        return int(data["n"])
    if kind == "MultiDiscrete":
        return int(np.sum(data["nvec"], dtype=object))
    return math.prod(np.atleast_1d(data["n"]).tolist() if kind == "MultiBinary" else data["shape"])


def _check_size(data: Mapping[str, Any]) -> None:
    """Raise before a space is made that would take more memory than any real one."""
    if data.get("type") in ("Box", "MultiBinary"):
        elements = json_features(data)
        if not 0 <= elements <= MAX_ELEMENTS:
            raise ValueError(f"space: expected at most {MAX_ELEMENTS:,} numbers in a {data['type']}, got {elements:,}")


def _bound_to_json(bound: np.ndarray) -> Any:
    uniform = bound.size > 0 and bool((bound == bound.flat[0]).all())
    values = [bound.flat[0].item()] if uniform else bound.reshape(-1).tolist()
    numbers = [value if np.isfinite(value) else ("inf" if value > 0 else "-inf") for value in values]
    return numbers[0] if uniform else numbers


def _bound_from_json(bound: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    values = np.array(
        [float(v) if isinstance(v, str) else v for v in (bound if isinstance(bound, list) else [bound])], dtype=dtype
    )
    return np.full(shape, values[0]) if values.size == 1 else values.reshape(shape)
