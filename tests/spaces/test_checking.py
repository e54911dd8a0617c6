"""Spaces are checked by a round trip before anything is collected, and casts stay inside every space."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.spaces import FlatSpace, check_space, leaf_values, leaves, space_from_json, space_to_json, to_numpy

NUM_SPACES = 300
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
FLOATS = [np.float16, np.float32, np.float64]


def random_box(rng):
    shape = tuple(rng.integers(1, 4, size=rng.integers(0, 4)))
    if rng.random() < 0.5:
        dtype = INTEGERS[rng.integers(len(INTEGERS))]
        info = np.iinfo(dtype)
        low = [info.min, info.max - 6, info.max // 2, max(info.min, -3)][rng.integers(4)]
        high = [info.max, min(info.max, low + 5)][rng.integers(2)]
        return spaces.Box(np.full(shape, low, dtype), np.full(shape, high, dtype), shape, dtype)
    dtype = FLOATS[rng.integers(len(FLOATS))]
    largest = np.finfo(dtype).max
    low = rng.choice([-np.inf, -largest, -0.1, 0.0, 5.0e3], size=shape)
    high = np.maximum(low, rng.choice([np.inf, largest, 0.2, 1.0, 5.1e3], size=shape))
    return spaces.Box(np.asarray(low, dtype), np.asarray(high, dtype), shape, dtype)


def random_space(rng, depth=0):
    kind = rng.integers(6 if depth < 2 else 4)
    if kind == 0:
        return random_box(rng)
    if kind == 1:
        dtype = INTEGERS[rng.integers(len(INTEGERS))]
        return spaces.Discrete(int(rng.integers(1, 9)), start=int(rng.choice([0, 3])), dtype=dtype)
    if kind == 2:
        shape = tuple(rng.integers(1, 4, size=rng.integers(1, 3)))
        return spaces.MultiDiscrete(rng.integers(1, 6, size=shape), dtype=INTEGERS[rng.integers(len(INTEGERS))])
    if kind == 3:
        return spaces.MultiBinary(tuple(rng.integers(1, 4, size=rng.integers(1, 3))))
    parts = [random_space(rng, depth + 1) for _ in range(rng.integers(1, 4))]
    return spaces.Tuple(parts) if kind == 4 else spaces.Dict({f"part{i}": part for i, part in enumerate(parts)})


@pytest.mark.parametrize("block", range(10))
def test_random_spaces_pass_the_check_and_contain_what_is_decoded(block):
    for number in range(NUM_SPACES // 10):
        space = random_space(np.random.default_rng([block, number]))
        assert check_space(space, "space") is space
        assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space
        flat = FlatSpace(space, exact=True)
        generator = torch.Generator().manual_seed(number)
        far = [scale * torch.randn(flat.size, generator=generator, dtype=torch.float64) for scale in (1.0, 1e5, 1e30)]
        sampled = flat.flatten(flat.sample(4, generator=generator))
        for features in (*far, *(features.float() for features in far), *sampled):
            found = leaf_values(to_numpy(flat.unflatten(features)))
            for path, leaf in leaves(space):
                value = np.asarray(found[path]) if isinstance(leaf, spaces.Box) else found[path]
                assert leaf.contains(value), (leaf, value, features)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_samples_of_wide_integers_do_not_wrap(dtype):
    highest = np.iinfo(dtype).max
    space = spaces.Box(highest - 5, highest, (1,), dtype)
    sampled = FlatSpace(space).sample(200, generator=torch.Generator().manual_seed(0)).numpy()
    assert (sampled >= space.low).all()
    if np.dtype(dtype).itemsize == 4:  # float64 tells neighbours of 64 bits apart only below 2^53
        assert set(sampled[:, 0].tolist()) == set(range(highest - 5, highest + 1))


def test_wide_integer_bounds_make_a_round_trip():
    for dtype in (np.int64, np.uint64):
        space = spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, (1,), dtype)
        flat, ends = FlatSpace(space, exact=True), np.stack([space.low, space.high])
        flat.check(ends, 2)
        np.testing.assert_array_equal(flat.unflatten(flat.flatten(ends)).numpy(), ends)


def test_a_number_outside_a_uint64_box_is_refused():
    flat = FlatSpace(spaces.Box(1, 2**64 - 2, (1,), np.uint64))
    for wrong in (np.array([[2**64 - 1]], np.uint64), np.array([[-1]])):
        with pytest.raises(ValueError, match=r"value\[0\]: expected a value of Box"):
            flat.check(wrong, 1)


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        (spaces.Dict({}), TypeError, "space: expected a Dict of at least one space, got an empty one"),
        (spaces.Tuple([]), TypeError, "space: expected a Tuple of at least one space"),
        (spaces.Dict({"a": spaces.Tuple([])}), TypeError, "space at 'a': expected a Tuple of at least one space"),
        (spaces.Dict({"m": spaces.Text(3)}), TypeError, r"""at 'm': .*leave_out=\("m",\)"""),
        (spaces.Dict({0: spaces.Discrete(2)}), TypeError, "expected a Dict with strings as keys, got 0"),
        (spaces.Box(0, 255, (4, 84, 84, 3), np.uint8), ValueError, "at most three dimensions, got uint8 .*FramesAsChannels"),
        (spaces.Box(0, 1, (4, 84, 84, 1), np.float32), ValueError, "at most three dimensions, got float32"),
        (spaces.Discrete(2**40), ValueError, "expected at most 1,000,000 choices"),
        (spaces.MultiDiscrete([2, 2**30]), ValueError, "expected at most 1,000,000 choices"),
    ],
)
def test_a_space_that_a_later_stage_would_refuse_is_refused_at_once(space, error, message):
    with pytest.raises(error, match=message):
        check_space(space, "observation_space")


def test_long_doubles_are_refused_with_the_fix():
    bound = np.ones(2, np.longdouble)
    with pytest.raises(TypeError, match=r"expected a dtype of .* convert it to float64"):
        check_space(spaces.Box(-bound, bound, dtype=np.longdouble), "action_space")


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_rounding_error_beyond_a_bound_is_clipped(kind):
    space = spaces.Box(-0.1, 0.2, (2,), np.float32)
    above = np.nextafter(space.high, np.float32(np.inf))
    below = np.nextafter(space.low, np.float32(-np.inf))
    given = kind(np.stack([above, below, space.low]))
    checked = FlatSpace(space).check(given, 3)
    assert type(checked) is type(given)
    np.testing.assert_array_equal(np.asarray(checked), np.stack([space.high, space.low, space.low]))
    with pytest.raises(ValueError, match=r"value\[0\]"):
        FlatSpace(space).check(kind(np.stack([space.high * np.float32(1.00001)] * 3)), 3)


def test_a_batch_within_the_bounds_is_returned_as_it_is():
    given = np.zeros((3, 2), np.float32)
    assert FlatSpace(spaces.Box(-1, 1, (2,))).check(given, 3) is given


def test_lists_take_the_place_of_tuples():
    space = spaces.Dict({"pair": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))])})
    numbers, points = np.array([0, 2]), np.zeros((2, 2))
    flat = FlatSpace(space)
    expected = flat.flatten({"pair": (numbers, points)})
    torch.testing.assert_close(flat.flatten({"pair": [numbers, points]}), expected)
    assert isinstance(flat.check({"pair": [numbers, points]}, 2)["pair"], tuple)


@pytest.mark.parametrize("factor", [0.0, 1 + 1e-6], ids=["contained, but others", "the same, but beyond the bounds"])
def test_values_that_come_back_changed_or_outside_of_the_space_are_an_error(monkeypatch, factor):
    plain, factors = FlatSpace.unflatten, iter([1.0, factor])  # the first call makes the samples
    monkeypatch.setattr(FlatSpace, "unflatten", lambda self, features: plain(self, features) * next(factors))
    with pytest.raises(ValueError, match="expected values that survive a round trip"):
        check_space(spaces.Box(-1.0, 1.0, (1,), np.float64), "action_space")
