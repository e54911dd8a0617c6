"""`HalfPrecisionLayer` equals `nn.LSTM`: outputs, states and gradients."""

import pytest
import torch
from torch import nn

from worldmodel.models import HalfPrecisionLayer, run_lstm

T, B, X, H = 6, 3, 4, 5


def make(num_layers=1, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.LSTM(X, H, num_layers, batch_first=True).to(dtype)


def draw(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_layer_equals_nn_lstm_in_float64():
    lstm, x, h, c = make(), draw(B, T, X).requires_grad_(), draw(B, H, seed=2), draw(B, H, seed=3)
    h.requires_grad_()
    c.requires_grad_()
    inputs = [x, h, c, *lstm.parameters()]
    expected, (last_h, last_c) = lstm(x, (h.unsqueeze(0), c.unsqueeze(0)))
    output, cell = HalfPrecisionLayer.apply(x.transpose(0, 1), h, c, *lstm.parameters(), [B] * T, torch.float64)
    torch.testing.assert_close(output.transpose(0, 1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output[-1], last_h[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cell, last_c[0], rtol=1e-12, atol=1e-12)
    weights, weight = draw(B, T, H, seed=4), draw(B, H, seed=5)
    theirs = torch.autograd.grad((weights * expected).sum() + (weight * last_c).sum(), inputs)
    ours = torch.autograd.grad((weights * output.transpose(0, 1)).sum() + (weight * cell).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_rows_keep_their_state_after_their_length():
    lstm, x, h, c = make(), draw(B, T, X).requires_grad_(), draw(B, H, seed=2), draw(B, H, seed=3)
    h.requires_grad_()
    c.requires_grad_()
    inputs, lengths, weights = [x, h, c, *lstm.parameters()], [5, 3, 0], draw(B, T, H, seed=4)
    running = [sum(t < length for length in lengths) for t in range(T)]
    output, cell = HalfPrecisionLayer.apply(x.transpose(0, 1), h, c, *lstm.parameters(), running, torch.float64)
    rows, last_c = [], []
    for row, length in enumerate(lengths):
        last, state = h[row], (h[None, row], c[None, row])
        steps = []
        for t in range(T):
            if t < length:
                _, state = lstm(x[row, None, t], state)
                last = state[0][0]
            steps.append(last)
        rows.append(torch.stack(steps))
        last_c.append(state[1][0])
    expected, last_cell = torch.stack(rows), torch.stack(last_c)
    torch.testing.assert_close(output.transpose(0, 1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cell, last_cell, rtol=1e-12, atol=1e-12)
    theirs = torch.autograd.grad((weights * expected).sum() + last_cell.square().sum(), inputs)
    ours = torch.autograd.grad((weights * output.transpose(0, 1)).sum() + cell.square().sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("given", [False, True])
def test_run_lstm_under_autocast_equals_nn_lstm_up_to_rounding(num_layers, given):
    lstm, x = make(num_layers, torch.float32), draw(B, T, X, dtype=torch.float32)
    state = tuple(draw(num_layers, B, H, seed=seed, dtype=torch.float32) for seed in (2, 3)) if given else None
    expected, last = run_lstm(lstm, x, state)
    assert torch.equal(expected, lstm(x, state)[0])
    with torch.autocast("cpu", torch.bfloat16):
        output, ours = run_lstm(lstm, x, state)
    assert output.dtype == torch.bfloat16
    assert output.shape == (B, T, H)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.02)
    for one, other in zip(ours, last, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0.02)
    weights = draw(B, T, H, seed=4, dtype=torch.float32)
    theirs = torch.autograd.grad((weights * expected).sum(), list(lstm.parameters()))
    found = torch.autograd.grad((weights * output).sum(), list(lstm.parameters()))
    for one, other in zip(found, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.03 * other.norm()


def test_long_memory_works_in_half_precision():
    lstm = make(dtype=torch.float32)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        lstm.bias_ih_l0[H : 2 * H] = 6.0  # a forget gate of 0.9975, which bfloat16 would round to 0.9961 or 1
    state = (torch.zeros(1, B, H), torch.ones(1, B, H))
    with torch.autocast("cpu", torch.bfloat16):
        _, (_, cell) = run_lstm(lstm, torch.zeros(B, 500, X), state)
    torch.testing.assert_close(cell, torch.full_like(cell, torch.tensor(6.0).sigmoid() ** 500), rtol=1e-3, atol=0)


def test_a_second_backward_raises():
    lstm, x = make(), draw(B, T, X)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = run_lstm(lstm.float(), x.float())
    output.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_inputs_and_states_are_not_changed():
    lstm, x, h, c = make(), draw(B, T, X), draw(1, B, H), draw(1, B, H)
    lstm, values = lstm.float(), [tensor.float() for tensor in (x, h, c)]
    before = [tensor.clone() for tensor in values]
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = run_lstm(lstm, values[0], (values[1], values[2]))
    output.sum().backward()
    assert all(torch.equal(one, other) for one, other in zip(before, values, strict=True))
