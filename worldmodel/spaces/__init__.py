"""Gymnasium spaces and their values: nested, flattened, stored as JSON, with images or without.

The library supports Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them. Code that asks which kind of
space it has belongs here; other packages see paths of leaves, or vectors. Spaces know neither episodes nor models.

Example:
    >>> import torch
    >>> from gymnasium.spaces import Box, Dict, Discrete
    >>> from worldmodel.spaces import FlatSpace, leaves
    >>> space = Dict({"arm": Box(-1.0, 1.0, (2,)), "grip": Discrete(3)})
    >>> [path for path, _ in leaves(space)]
    ['arm', 'grip']
    >>> FlatSpace(space).flatten({"arm": torch.zeros(1, 2), "grip": torch.tensor([1])})
    tensor([[0., 0., 0., 1., 0.]])
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.spaces.buffers import Float64Buffers as Float64Buffers
    from worldmodel.spaces.checking import check_space as check_space
    from worldmodel.spaces.flat import FlatSpace as FlatSpace
    from worldmodel.spaces.images import ImageLayout as ImageLayout
    from worldmodel.spaces.images import area_weights as area_weights
    from worldmodel.spaces.images import find_images as find_images
    from worldmodel.spaces.images import has_image_shape as has_image_shape
    from worldmodel.spaces.images import image_layout as image_layout
    from worldmodel.spaces.images import is_image as is_image
    from worldmodel.spaces.images import refuse_float_images as refuse_float_images
    from worldmodel.spaces.images import resize_by_area as resize_by_area
    from worldmodel.spaces.json import json_features as json_features
    from worldmodel.spaces.json import space_from_json as space_from_json
    from worldmodel.spaces.json import space_to_json as space_to_json
    from worldmodel.spaces.json import with_sorted_keys as with_sorted_keys
    from worldmodel.spaces.nested import Value as Value
    from worldmodel.spaces.nested import build_value as build_value
    from worldmodel.spaces.nested import leaf_values as leaf_values
    from worldmodel.spaces.nested import leaves as leaves
    from worldmodel.spaces.nested import map_leaves as map_leaves
    from worldmodel.spaces.nested import map_paths as map_paths
    from worldmodel.spaces.nested import stack_values as stack_values
    from worldmodel.spaces.nested import take_row as take_row
    from worldmodel.spaces.nested import to_numpy as to_numpy
    from worldmodel.spaces.sampling import sample_value as sample_value
    from worldmodel.spaces.selection import as_tuples as as_tuples
    from worldmodel.spaces.selection import known_leaves as known_leaves
    from worldmodel.spaces.selection import select_leaves as select_leaves
    from worldmodel.spaces.selection import without_leaves as without_leaves
    from worldmodel.spaces.validation import as_numbers as as_numbers
    from worldmodel.spaces.validation import check_float32_range as check_float32_range
    from worldmodel.spaces.validation import check_magnitude as check_magnitude
    from worldmodel.spaces.validation import leaf_bounds as leaf_bounds
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "buffers": "Float64Buffers",
            "checking": "check_space",
            "flat": "FlatSpace",
            "images": (
                "ImageLayout area_weights find_images has_image_shape image_layout is_image refuse_float_images resize_by_area"
            ),
            "json": "json_features space_from_json space_to_json with_sorted_keys",
            "nested": "Value build_value leaf_values leaves map_leaves map_paths stack_values take_row to_numpy",
            "sampling": "sample_value",
            "selection": "as_tuples known_leaves select_leaves without_leaves",
            "validation": "as_numbers check_float32_range check_magnitude leaf_bounds",
        },
    )
