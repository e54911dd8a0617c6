"""Images in spaces, and resizing by area."""

import contextlib

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.spaces import area_weights, find_images, image_layout, is_image, refuse_float_images, resize_by_area
from worldmodel.spaces.images import MIN_FLOAT_IMAGE_SIDE, MIN_IMAGE_SIDE


def box(*shape, dtype=np.uint8):
    return spaces.Box(0, 255, shape, dtype)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 48), (64, 48, 1, None)),
        ((64, 48, 3), (64, 48, 3, 2)),
        ((3, 64, 48), (64, 48, 3, 0)),
        ((1, 9, 9), (9, 9, 1, 0)),
        ((9, 12, 1), (9, 12, 1, 2)),
    ],
    ids=str,
)
def test_the_layout_of_an_image_is_found(shape, expected):
    layout = image_layout(box(*shape), "eye")
    assert (layout.height, layout.width, layout.channels, layout.channel_axis) == expected
    assert layout.shape == shape
    frames = torch.arange(2 * np.prod(shape)).reshape(2, *shape)
    last = layout.to_channels_last(frames)
    assert last.shape == (2, *expected[:3])
    assert torch.equal(layout.from_channels_last(last), frames)


@pytest.mark.parametrize(
    "space",
    [
        box(7, 64),
        box(64),
        box(2, 64, 64, 3),
        box(4, 3, 3),
        box(64, 64, dtype=np.float32),
        box(12, 12, 12),
        box(16, 8, 16),
        spaces.Discrete(3),
    ],
    ids=str,
)
def test_other_spaces_are_not_images(space):
    assert not is_image(space)
    if isinstance(space, spaces.Box):
        with pytest.raises(ValueError, match="image 'eye': expected a Box of uint8"):
            image_layout(space, "eye")


def test_images_are_found_wherever_they_are_nested():
    space = spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2), box(16, 16, 3)]), "b": box(4, 3, 3), "c": box(8, 8)})
    assert [layout.path for layout in find_images(space)] == ["a/1", "c"]


@pytest.mark.parametrize(("size", "new_size"), [(120, 64), (160, 64), (84, 64), (64, 64), (5, 64), (64, 1)])
def test_area_weights_average_each_part_of_the_axis_once(size, new_size):
    weights = area_weights(size, new_size)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(new_size))
    torch.testing.assert_close(weights.sum(dim=0), torch.full((size,), new_size / size))


def test_integer_ratios_are_block_means():
    image = torch.randint(0, 256, (2, 128, 192, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = image.float().reshape(2, 64, 2, 64, 3, 3).mean(dim=(2, 4))
    torch.testing.assert_close(resize_by_area(image, 64, 64), expected)


def test_autocast_does_not_change_resizing():
    image = torch.randint(0, 256, (2, 24, 20, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize_by_area(image, 64, 64)
    assert torch.equal(found, resize_by_area(image, 64, 64))


def test_other_ratios_weight_border_pixels_by_their_overlap():
    image = torch.tensor([0.0, 30.0, 90.0]).reshape(1, 1, 3, 1)
    torch.testing.assert_close(resize_by_area(image, 1, 2).flatten(), torch.tensor([10.0, 70.0]))


def test_two_channels_are_shown_as_the_first_one_in_grey():
    layout = image_layout(spaces.Box(0, 255, (16, 18, 2), np.uint8))
    image = torch.arange(2 * 16 * 18 * 2, dtype=torch.int32).reshape(2, 16, 18, 2)
    shown = layout.to_rgb(image)
    assert shown.shape == (2, 16, 18, 3)
    assert (shown == image[..., :1]).all()


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        ((MIN_IMAGE_SIDE, MIN_IMAGE_SIDE), False),  # a matrix
        ((MIN_FLOAT_IMAGE_SIDE, MIN_FLOAT_IMAGE_SIDE), True),
        ((MIN_IMAGE_SIDE, MIN_IMAGE_SIDE, 3), True),
        ((3, MIN_IMAGE_SIDE - 1, MIN_IMAGE_SIDE - 1), False),
    ],
)
def test_floats_of_the_shape_of_an_image_are_refused_and_small_matrices_are_not(shape, refused):
    with pytest.raises(ValueError, match="expected images as uint8") if refused else contextlib.nullcontext():
        refuse_float_images(spaces.Box(0, 1, shape))
