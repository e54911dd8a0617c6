"""Conversion of spaces to flat features and to JSON, and validation of batches."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_envs import NESTED_ACTION, NESTED_OBSERVATION

from worldmodel.spaces import (
    FlatSpace,
    build_value,
    check_space,
    leaf_values,
    leaves,
    map_leaves,
    space_from_json,
    space_to_json,
    to_numpy,
)

SPACES = [
    spaces.Box(-2.0, 3.0, (2, 3), np.float32),
    spaces.Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    spaces.Box(0, 255, (4, 3, 3), np.uint8),
    spaces.Discrete(4, start=-1),
    spaces.Discrete(3, dtype=np.int32),
    spaces.MultiDiscrete([3, 2], start=[1, -1]),
    spaces.MultiDiscrete(np.array([[3, 2], [4, 5]]), dtype=np.int32),
    spaces.MultiBinary(3),
    spaces.MultiBinary((2, 2)),
    NESTED_OBSERVATION,
    NESTED_ACTION,
]


def assert_same(one, other):
    one, other = leaf_values(one), leaf_values(other)
    assert list(one) == list(other)
    for path in one:
        np.testing.assert_array_equal(np.asarray(one[path]), np.asarray(other[path]))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_json_gives_back_an_equal_space_with_equal_dtypes(space):
    back = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    assert back == space
    assert [leaf.dtype for _, leaf in leaves(back)] == [leaf.dtype for _, leaf in leaves(space)]


def test_an_unknown_description_is_rejected():
    with pytest.raises(ValueError, match="got 'Circle'"):
        space_from_json({"type": "Circle"})


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_unflatten_inverts_flatten_for_any_leading_dimensions(space):
    space.seed(0)
    flat = FlatSpace(space)
    samples = [space.sample() for _ in range(6)]
    batch = map_leaves(lambda *rows: np.stack([np.asarray(row) for row in rows]).reshape(2, 3, *np.shape(rows[0])), *samples)
    features = flat.flatten(batch)
    assert features.shape == (2, 3, flat.size)
    assert features.dtype == torch.float32
    back = to_numpy(flat.unflatten(features))
    for (path, leaf), given in zip(leaves(space), leaf_values(batch).values(), strict=True):
        found = leaf_values(back)[path]
        assert found.dtype == leaf.dtype, path
        np.testing.assert_allclose(found, given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (3,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=str
)
def test_empty_batches_flatten_to_empty_features(space):
    """The actions of a prefix of 0 steps, for example."""
    flat = FlatSpace(space)
    values = np.zeros((2, 0, *space.shape), space.dtype)
    assert flat.flatten(values).shape == (2, 0, flat.size)


def test_bounded_dimensions_are_scaled_to_one_and_unbounded_ones_kept():
    flat = FlatSpace(spaces.Box(np.float32([0.0, -np.inf, -3.4e38]), np.float32([10.0, np.inf, 3.4e38])))
    features = flat.flatten(np.array([[0.0, 7.0, 8.0], [10.0, -7.0, 9.0], [5.0, 0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(features, [[-1, 7, 8], [1, -7, 9], [0, 0, 0]], atol=1e-6)


def test_discrete_becomes_one_hot_counted_from_its_start():
    np.testing.assert_array_equal(FlatSpace(spaces.Discrete(3, start=5)).flatten(np.array([5, 7])), [[1, 0, 0], [0, 0, 1]])


def test_a_single_action_has_the_type_that_environments_expect():
    assert isinstance(to_numpy(FlatSpace(spaces.Discrete(3)).unflatten(torch.zeros(3))), np.int64)
    assert isinstance(to_numpy(FlatSpace(spaces.Box(-1, 1, ())).unflatten(torch.zeros(1))), np.ndarray)


def test_unflatten_stays_inside_the_space():
    flat = FlatSpace(NESTED_ACTION)
    action = to_numpy(flat.unflatten(torch.full((flat.size,), 9.0)))
    assert NESTED_ACTION.contains(action)


@pytest.mark.parametrize(
    ("space", "nearest"),
    [
        (spaces.Text(5), "MultiDiscrete"),
        (spaces.Graph(spaces.Box(0, 1), None), "Dict of fixed-size Box"),
        (spaces.Sequence(spaces.Discrete(2)), "Box of a fixed maximal length"),
        (spaces.OneOf([spaces.Discrete(2)]), "Dict of the alternatives"),
    ],
)
def test_an_unsupported_space_is_named_with_its_path_and_the_nearest_supported_one(space, nearest):
    with pytest.raises(TypeError, match=f"at 'a/0': expected Box.* got {type(space).__name__}; the nearest .*{nearest}"):
        FlatSpace(spaces.Dict({"a": spaces.Tuple([space])}))


def test_wrong_shapes_and_missing_leaves_are_rejected():
    flat = FlatSpace(NESTED_OBSERVATION)
    with pytest.raises(ValueError, match=r"expected a leaf 'image'"):
        flat.flatten({"switches": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"expected shape \(..., \(2,\)\), got \(3,\)"):
        FlatSpace(spaces.Box(0, 1, (2,))).flatten(np.zeros(3))
    with pytest.raises(ValueError, match=rf"expected shape \(..., {flat.size}\), got \(2, 1\)"):
        flat.unflatten(torch.zeros(2, 1))


def test_leaf_values_and_build_value_are_inverse():
    NESTED_OBSERVATION.seed(0)
    value = NESTED_OBSERVATION.sample()
    assert_same(build_value(NESTED_OBSERVATION, leaf_values(value)), value)
    assert [path for path, _ in leaves(NESTED_OBSERVATION)] == list(leaf_values(value))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.Box(0, 2, (2,), np.int64),
        spaces.Box(-1, 3, (2,), np.float32),
        spaces.Box(0, np.inf, (1,), np.float32),
        spaces.Box(-np.inf, 1, (1,), np.float32),
        spaces.Box(-np.inf, np.inf, (1,), np.float32),
        spaces.MultiDiscrete([2, 4]),
        spaces.MultiBinary(2),
    ],
    ids=str,
)
def test_sample_has_the_distribution_of_gymnasiums_sample(space):
    n = 20_000
    space.seed(0)
    theirs = np.stack([space.sample() for _ in range(n)]).reshape(n, -1)
    ours = FlatSpace(space).sample(n, generator=torch.Generator().manual_seed(0)).numpy().reshape(n, -1)
    for a, b in zip(ours.T, theirs.T, strict=True):
        edges = np.quantile(theirs, [0.1, 0.3, 0.5, 0.7, 0.9])
        for edge in edges:  # both fractions have a standard error of at most 0.0036; 0.02 is four of their difference
            assert abs((a <= edge).mean() - (b <= edge).mean()) < 0.02


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2, 0)), spaces.Dict({"a": spaces.Box(-1, 1, (0,))})])
def test_spaces_without_elements_are_rejected(space):
    with pytest.raises(TypeError, match=r"expected at least one number, got shape \("):
        FlatSpace(space)


def test_only_the_actions_of_data_without_actions_may_have_no_elements():
    nothing = spaces.Box(-1, 1, (0,), np.float32)
    assert FlatSpace(check_space(nothing, "action_space")).sample(3).shape == (3, 0)
    with pytest.raises(TypeError, match=r"observation_space: expected at least one number, got shape \(0,\)"):
        check_space(nothing, "observation_space")


CHECKED = spaces.Dict(
    {
        "push": spaces.Box(-1.0, 2.0, (2,), np.float32),
        "kind": spaces.Discrete(3, start=1),
        "parts": spaces.MultiDiscrete([2, 4]),
        "switches": spaces.MultiBinary(2),
    }
)


def checked_batch(**changes):
    batch = {
        "push": np.zeros((3, 2)),
        "kind": np.array([1, 2, 3]),
        "parts": np.array([[0, 0], [1, 3], [0, 2]]),
        "switches": np.eye(3, 2, dtype=np.int8),
    }
    return batch | {key: np.asarray(value) for key, value in changes.items()}


def test_a_batch_of_the_space_passes_the_check():
    FlatSpace(CHECKED).check(checked_batch(), 3)
    FlatSpace(CHECKED).check(FlatSpace(CHECKED).sample(50, generator=torch.Generator().manual_seed(0)), 50)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": [1, 4, 3]}, ValueError, r"actions at 'kind'\[1\]: expected a value of Discrete\(3, start=1\), got 4"),
        ({"kind": [1, 2, 0]}, ValueError, r"\[2\].*got 0"),
        ({"kind": [1.0, 2.0, 3.0]}, TypeError, "actions at 'kind': expected integers"),
        ({"kind": [1, 2]}, ValueError, r"expected shape \(3,\) .*got \(2,\)"),
        ({"push": [[0, 0], [0, 0], [0, 2.5]]}, ValueError, r"actions at 'push'\[2\].*got \[0.0, 2.5\]"),
        ({"push": [[0, 0], [0, np.nan], [0, 0]]}, ValueError, r"\[1\].*got \[0.0, nan\]"),
        ({"push": np.zeros((3, 1))}, ValueError, r"expected shape \(3, 2\)"),
        ({"parts": [[0, 0], [1, 3], [2, 0]]}, ValueError, r"actions at 'parts'\[2\].*got \[2, 0\]"),
        ({"switches": [[0, 1], [0, 2], [0, 0]]}, ValueError, r"actions at 'switches'\[1\].*got \[0, 2\]"),
        ({"more": [0, 0, 0]}, ValueError, "expected leaves"),
        ({"kind": [True, True, True]}, TypeError, r"actions at 'kind': expected integers for Discrete.*got torch.bool"),
        ({"kind": None}, TypeError, "actions at 'kind': expected an array or tensor of numbers, got"),
        ({"kind": ["a", "b", "c"]}, TypeError, "actions at 'kind': expected an array or tensor of numbers"),
        ({"kind": [1j, 1j, 1j]}, TypeError, "actions at 'kind': expected real numbers"),
    ],
)
def test_a_batch_outside_the_space_is_rejected_by_index_and_value(changes, error, message):
    with pytest.raises(error, match=message):
        FlatSpace(CHECKED).check(checked_batch(**changes), 3, name="actions")


def test_a_batch_that_is_not_numeric_is_rejected_by_name():
    for value in (None, "up", [[0, 1], [2]]):
        with pytest.raises(TypeError, match="value: expected an array or tensor of numbers"):
            FlatSpace(spaces.Discrete(3)).flatten(value)
    with pytest.raises(TypeError, match=r"value: expected integers for Discrete\(3\), got torch.bool"):
        FlatSpace(spaces.Discrete(3)).flatten(torch.tensor([True, False]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_unsigned_integers_are_accepted(dtype):
    flat, value = FlatSpace(spaces.Discrete(3, start=1)), np.array([1, 3], dtype)
    flat.check(value, 2)
    assert torch.equal(flat.flatten(value), flat.flatten(value.astype(np.int64)))
    with pytest.raises(ValueError, match=r"value\[1\]"):
        flat.check(value + np.array([0, 1], dtype), 2)
    box = spaces.Box(0, 100, (2,), dtype)
    FlatSpace(box).check(np.stack([box.low, box.high]), 2)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-0.1, 0.1, (2,), np.float64),  # float32's nearest number to 0.1 is above it
        spaces.Box(-(2**31), 2**31 - 1, (2,), np.int32),  # float32's nearest number to the highest is one more, which overflows
        spaces.Box(-1e300, 1e300, (2,), np.float64),
        spaces.Box(0, np.inf, (2,), np.float64),
    ],
)
def test_unflatten_clips_inside_bounds_that_float32_cannot_represent(space):
    flat = FlatSpace(space)
    for far in (-1e30, 1e30):
        assert space.contains(flat.unflatten(torch.full((2,), far)).numpy())


@pytest.mark.parametrize(("width", "scaled"), [(1e6, True), (1.000001e6, False), (0.0, False)])
def test_a_box_is_scaled_if_its_range_is_positive_and_at_most_a_million(width, scaled):
    flat = FlatSpace(spaces.Box(-5.0, -5.0 + width, (1,), np.float64))
    assert bool(flat.bounded) is scaled
    assert flat.exact_half_range.item() == (width / 2 if scaled else 1)
