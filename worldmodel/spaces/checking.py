"""Check that a space is supported, before hours of collection: round trips of its bounds and of samples."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from worldmodel.spaces.flat import FlatSpace
from worldmodel.spaces.images import has_image_shape, is_image
from worldmodel.spaces.json import space_from_json, space_to_json
from worldmodel.spaces.nested import leaves
from worldmodel.spaces.validation import leaf_bounds

SAMPLES = 8  # of the round trip
MAX_CHOICES = 1_000_000  # larger one-hot vectors are refused
DTYPES = frozenset(
    ["bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
)


def check_space(space: gym.Space, name: str) -> gym.Space:
    """Return a space that every stage supports (a store, V, M, dreams and agents), or raise.

    Bounds and samples of every leaf make a round trip through `FlatSpace`, and the space itself one
    through JSON.

    Args:
        space: an observation or action space.
        name: its name in error messages.

    Raises:
        TypeError: if a leaf has an unsupported kind or dtype, or a Dict has a key that is not a string.
        ValueError: if the images of a leaf are stacked along an axis of their own, a Discrete space
            is too large, or a value of the space does not survive the round trip.
    """
    _check_keys(space, name)
    for path, leaf in leaves(space):
        where = f"{name} at {path!r}" if path else name
        if np.dtype(leaf.dtype).name not in DTYPES:
            raise TypeError(
                f"{where}: expected a dtype of {sorted(DTYPES)}, got {np.dtype(leaf.dtype).name}; convert it to float64 "
                "(gymnasium.wrappers.TransformObservation or TransformAction)"
            )
        if leaf.shape == (0,):
            if name != "action_space":
                raise TypeError(f"{where}: expected at least one number, got shape (0,)")
            continue
        _check_size(leaf, where)
        _refuse_stacked_images(leaf, where)
        if not is_image(leaf):
            _check_round_trip(leaf, where)
    back = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    if back != space:
        raise ValueError(f"{name}: expected a space that can be saved as JSON, got {space}, which comes back as {back}")
    return space


def _check_keys(space: gym.Space, name: str) -> None:
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            if not isinstance(key, str):
                raise TypeError(f"{name}: expected a Dict with strings as keys, got {key!r}; rename it")
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for child in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            _check_keys(child, name)


def _check_size(leaf: gym.Space, where: str) -> None:
    choices = int(leaf.n) if isinstance(leaf, spaces.Discrete) else 0
    if isinstance(leaf, spaces.MultiDiscrete):
        choices = int(leaf.nvec.astype(np.int64).sum())
    if choices > MAX_CHOICES:
        raise ValueError(
            f"{where}: expected at most {MAX_CHOICES:,} choices, as each is an entry of a one-hot vector, got {choices:,}; "
            "make it a Box of integers"
        )


def _refuse_stacked_images(leaf: gym.Space, where: str) -> None:
    """Raise for stacked frames, such as uint8 (4, 84, 84, 3): as a vector they would ask for hundreds of GB of weights."""
    shape = leaf.shape or ()
    if isinstance(leaf, spaces.Box) and len(shape) > 3 and (has_image_shape(shape[-3:]) or has_image_shape(shape[-2:])):
        raise ValueError(
            f"{where}: expected images with at most three dimensions, got {leaf.dtype} of shape {shape}; put stacked frames "
            "on the channel axis with the wrapper worldmodel.envs.FramesAsChannels, after the one that stacks them"
        )


def _check_round_trip(leaf: gym.Space, where: str) -> None:
    """Raise unless bounds and samples of a leaf survive `FlatSpace`, contained in the space."""
    flat = FlatSpace(leaf, exact=True)
    samples = flat.sample(SAMPLES, generator=torch.Generator().manual_seed(0)).numpy()
    values = np.concatenate([_bounds(leaf), samples])
    try:
        flat.check(values, len(values), name=where)
        back = flat.unflatten(flat.flatten(values)).numpy()
    except (OverflowError, RuntimeError) as error:
        raise ValueError(f"{where}: expected a space whose values convert to features, got {leaf}: {error}") from error
    for value, result in zip(values, back, strict=True):
        given, found = np.asarray(value, dtype=np.float64), np.asarray(result, dtype=np.float64)
        contained = leaf.contains(np.asarray(result) if isinstance(leaf, spaces.Box) else result)
        if not contained or not np.allclose(found, given, rtol=1e-5, atol=1e-5 * flat.half_range.max().item()):
            raise ValueError(f"{where}: expected values that survive a round trip through features, got {value} and {result}")


def _bounds(leaf: gym.Space) -> np.ndarray:
    """Smallest and largest value of a leaf, 0 or the other bound where there is none: (2, *shape)."""
    rows: list[Any] = []
    for bound in leaf_bounds(leaf):
        row = np.broadcast_to(np.asarray(bound), leaf.shape or ())
        if isinstance(leaf, spaces.Box) and np.issubdtype(leaf.dtype, np.floating):
            row = np.where(np.isfinite(row), row, np.clip(np.zeros_like(row), leaf.low, leaf.high))
        rows.append(row.astype(leaf.dtype))
    return np.stack(rows)
