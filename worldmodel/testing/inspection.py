"""Check the return values of single calls of `reset` and `step`: shapes, dtypes, bounds, infos.

Each function yields findings: the broken contract, the value that breaks it, and "expected X, got
Y".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from worldmodel.spaces import leaf_bounds
from worldmodel.testing.recording import short, snapshot

Finding = tuple[str, str, str]  # contract, name of the value, "expected X, got Y"


def inspect_reset(env: VectorEnv, returned: Any) -> Iterator[Finding]:
    """Check the return value of `reset`."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        yield "shapes", "reset", f"expected a tuple (observations, infos), got {short(returned)}"
        return
    yield from _inspect_value(env.observation_space, returned[0], "observation")
    yield from _inspect_infos(returned[1], env.num_envs)


def inspect_step(env: VectorEnv, mode: AutoresetMode, returned: Any) -> Iterator[Finding]:
    """Check the return value of `step`."""
    if not isinstance(returned, tuple) or len(returned) != 5:
        expected = "a tuple (observations, rewards, terminations, truncations, infos)"
        yield "shapes", "step", f"expected {expected}, got {short(returned)}"
        return
    observations, rewards, terminations, truncations, infos = returned
    yield from _inspect_value(env.observation_space, observations, "observation")
    sound = True
    for name, value in {"rewards": rewards, "terminations": terminations, "truncations": truncations}.items():
        for finding in _inspect_numbers(name, value, env.num_envs):
            sound &= finding[0] != "shapes"
            yield finding
    yield from _inspect_infos(infos, env.num_envs)
    if sound and mode is AutoresetMode.SAME_STEP and isinstance(infos, Mapping):
        ended = as_array(terminations).astype(bool) | as_array(truncations).astype(bool)
        yield from _inspect_finals(env, infos, ended)


def as_array(value: Any) -> Any:
    """Copy an array or tensor to an array; return None for other values."""
    return snapshot(value) if isinstance(value, (np.ndarray, Tensor)) else None


def _inspect_value(space: gym.Space, value: Any, what: str) -> Iterator[Finding]:
    """Compare a batch of observations with the batched space, leaf by leaf."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or set(value) != set(space.spaces):
            got = sorted(value) if isinstance(value, Mapping) else short(value)
            yield "shapes", what, f"expected a dict with the keys {sorted(space.spaces)}, got {got}"
            return
        for key, child in space.spaces.items():
            yield from _inspect_value(child, value[key], f"{what}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple) or len(value) != len(space.spaces):
            yield "shapes", what, f"expected a tuple of {len(space.spaces)}, got {short(value)}"
            return
        for index, child in enumerate(space.spaces):
            yield from _inspect_value(child, value[index], f"{what}[{index}]")
    elif isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        yield from _inspect_leaf(space, value, what)
    elif not space.contains(value):
        yield "values", what, f"expected a value of {space}, got {short(value)}"


def _inspect_leaf(space: gym.Space, value: Any, what: str) -> Iterator[Finding]:
    array = as_array(value)
    if array is None or array.shape != space.shape:
        got = f"{type(value).__name__} {short(value)}" if array is None else f"shape {array.shape}"
        yield "shapes", what, f"expected an array of shape {space.shape}, got {got}"
        return
    if array.dtype != space.dtype:
        yield "dtypes", what, f"expected dtype {space.dtype} of its space, got {array.dtype}"
    outside = _outside(space, array)
    if outside.any():
        row = int(outside.argmax())
        got = f"{short(array[row])} in sub-environment {row}"
        yield "values", what, f"expected a value inside its space {short(space)}, got {got}"


def _outside(space: gym.Space, array: np.ndarray) -> np.ndarray:
    """Return which rows of a leaf lie outside its batched space or are NaN: (num_envs,) bool."""
    low, high = leaf_bounds(space)
    inside = (array >= low) & (array <= high)
    if not isinstance(space, spaces.Box):
        inside &= array == np.floor(array)
    return np.asarray(~inside.reshape(len(array), -1).all(axis=1))


def _inspect_numbers(name: str, value: Any, num_envs: int) -> Iterator[Finding]:
    """Check the rewards, the terminations or the truncations."""
    array = as_array(value)
    if array is None or array.shape != (num_envs,):
        got = f"{type(value).__name__} {short(value)}" if array is None else f"shape {array.shape}"
        yield "shapes", name, f"expected an array of shape ({num_envs},), got {got}"
    elif name != "rewards" and array.dtype != np.bool_:
        yield "dtypes", name, f"expected dtype bool, got {array.dtype}; ~{name} is wrong for other dtypes"
    elif name == "rewards" and not np.issubdtype(array.dtype, np.floating):
        yield "dtypes", name, f"expected a floating-point dtype, got {array.dtype}"
    elif name == "rewards" and not np.isfinite(array).all():
        yield "values", name, f"expected finite numbers, got {short(array)}"


def _inspect_infos(infos: Any, num_envs: int) -> Iterator[Finding]:
    """Check that each key of the infos has a mask ``_key`` and one value per sub-environment."""
    if not isinstance(infos, Mapping):
        yield "infos", "infos", f"expected one dict for all sub-environments, got {type(infos).__name__}"
        return
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = as_array(infos.get(f"_{key}"))
        if mask is None or mask.shape != (num_envs,) or mask.dtype != np.bool_:
            got = "none" if f"_{key}" not in infos else short(infos[f"_{key}"])
            expected = f"a mask infos['_{key}'] of the sub-environments that have it, bool of shape ({num_envs},)"
            yield "infos", f"infos[{key!r}]", f"expected {expected}, got {got}"
        if not isinstance(value, Mapping) and (not hasattr(value, "__len__") or len(value) != num_envs):
            yield "infos", f"infos[{key!r}]", f"expected one value for each of {num_envs} sub-environments, got {short(value)}"


def _inspect_finals(env: VectorEnv, infos: Mapping[str, Any], ended: np.ndarray) -> Iterator[Finding]:
    """Check SAME_STEP: exactly the rows that ended have final_obs and final_info, with masks."""
    for key in ("final_obs", "final_info"):
        mask = as_array(infos.get(f"_{key}"))
        if ended.any() and key not in infos:
            expected = f"infos[{key!r}] for the ended sub-environments {np.flatnonzero(ended).tolist()}"
            yield "SAME_STEP", key, f"expected {expected}, got the keys {sorted(infos)}"
        elif mask is not None and not np.array_equal(mask, ended):
            yield "SAME_STEP", key, f"expected infos['_{key}'] to mark the rows that ended, {ended}, got {mask}"
    finals = infos.get("final_obs")
    if finals is None or not ended.any():
        return
    if isinstance(finals, Mapping) or not hasattr(finals, "__getitem__"):
        yield "SAME_STEP", "final_obs", f"expected infos['final_obs'][i] to belong to row i, got {type(finals).__name__}"
        return
    for row in np.flatnonzero(ended):
        final = snapshot(finals[row])
        if differing_rows(env) or env.single_observation_space.contains(final):
            continue
        got = f"{short(final)} in sub-environment {row}"
        yield "SAME_STEP", "final_obs", f"expected an observation of single_observation_space, got {got}"
        return


def differing_rows(env: VectorEnv) -> bool:
    """Return whether ``observation_mode`` allows sub-environments with different bounds."""
    return getattr(env.unwrapped, "observation_mode", "same") != "same"
