"""Convolutions as matrix products give torch's own numbers, forwards and backwards."""

import pytest
import torch
from torch.nn import functional

from worldmodel import convolution
from worldmodel.convolution import convolve, convolve_transposed

SHAPES = [(2, 64, 64, 3, 5, 4), (3, 31, 14, 4, 2, 4), (1, 6, 6, 3, 7, 4), (5, 11, 13, 2, 3, 5), (2, 12, 8, 1, 3, 6)]


def operands(shape, *, transposed, dtype=torch.float64):
    n, height, width, big, small, k = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=dtype).requires_grad_()

    image = draw(n, (height - k) // 2 + 1, (width - k) // 2 + 1, small) if transposed else draw(n, height, width, big)
    return image, draw(small, big, k, k), draw(big if transposed else small)


def reference(image, weight, bias, *, transposed):
    function = functional.conv_transpose2d if transposed else functional.conv2d
    return function(image.permute(0, 3, 1, 2), weight, bias, stride=2).permute(0, 2, 3, 1)


@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("buffer_bytes", [1, 2**20])
def test_outputs_and_gradients_are_those_of_torch(shape, transposed, buffer_bytes, monkeypatch):
    monkeypatch.setattr(convolution, "BUFFER_BYTES", buffer_bytes)
    parts = operands(shape, transposed=transposed)
    expected = reference(*parts, transposed=transposed)
    factor = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected * factor).sum().backward()
    gradients = [part.grad for part in parts]
    for part in parts:
        part.grad = None
    output = (convolve_transposed if transposed else convolve)(*parts)
    (output * factor).sum().backward()
    torch.testing.assert_close(output, expected)
    for part, gradient in zip(parts, gradients, strict=True):
        torch.testing.assert_close(part.grad, gradient)


@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients(transposed):
    parts = operands(SHAPES[0], transposed=transposed, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = (convolve_transposed if transposed else convolve)(*parts)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), reference(*parts, transposed=transposed), rtol=0.05, atol=0.1)
    output.sum().backward()
    assert parts[1].grad.dtype == parts[2].grad.dtype == torch.float32


def test_an_image_that_needs_no_gradient_gets_none():
    image, weight, bias = operands(SHAPES[0], transposed=False)
    convolve(image.detach(), weight, bias).sum().backward()
    assert weight.grad is not None
    assert image.grad is None
