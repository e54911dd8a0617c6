"""LSTM with layer normalisation, and bfloat16 that is fast on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CLOSED = -1e4  # pre-activation of a gate that is exactly 0, also in bfloat16


class LayerNormLSTM(nn.Module):
    """LSTM with layer normalisation (Ba et al. 2016) and the interface of `nn.LSTM`.

    Follows ``LayerNormBasicLSTMCell`` of TensorFlow 1, an option of the authors' code. Each gate's
    pre-activation is normalised separately. The new cell is normalised before its tanh and stored
    in this form. The forget gate has a bias of 1.

    Args:
        input_size: size of the inputs.
        hidden_size: H, size of the outputs.
        num_layers: number of stacked layers.
        batch_first: must be True; exists for compatibility with `nn.LSTM`.
        eps: added to the variances; the default is TensorFlow's.

    Raises:
        ValueError: if ``batch_first`` is False.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, batch_first: bool = True, eps: float = 1e-12):
        super().__init__()
        if not batch_first:
            raise ValueError("batch_first: expected True, got False")
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.gates = nn.ModuleList(nn.Linear(size + hidden_size, 4 * hidden_size, bias=False) for size in sizes)
        self.gate_norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(hidden_size, eps=eps) for _ in range(4)) for _ in sizes)
        self.cell_norms = nn.ModuleList(nn.LayerNorm(hidden_size, eps=eps) for _ in sizes)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the LSTM over a sequence.

        Args:
            inputs: (B, T, input_size).
            state: ``h`` and ``c``, (num_layers, B, H) each; None means zeros.

        Returns:
            Outputs (B, T, H), and ``h`` and ``c`` after the last step, (num_layers, B, H) each.
        """
        if state is None:
            zeros = inputs.new_zeros(self.num_layers, inputs.shape[0], self.hidden_size)
            state = (zeros, zeros)
        outputs, last_h, last_c = inputs, [], []
        for layer in range(self.num_layers):
            h, c = state[0][layer], state[1][layer]
            steps = []
            for x in outputs.unbind(dim=1):
                h, c = self._cell(layer, x, h, c)
                steps.append(h)
            outputs = torch.stack(steps, dim=1)
            last_h.append(h)
            last_c.append(c)
        return outputs, (torch.stack(last_h), torch.stack(last_c))

    def _cell(self, layer: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.gates[layer](torch.cat([x, h], dim=-1)).chunk(4, dim=-1)
        norms = self.gate_norms[layer]
        assert isinstance(norms, nn.ModuleList)
        i, g, f, o = (norm(gate) for norm, gate in zip(norms, raw, strict=True))
        c = self.cell_norms[layer](c * torch.sigmoid(f + 1.0) + torch.sigmoid(i) * torch.tanh(g))
        return torch.tanh(c) * torch.sigmoid(o), c


@torch.no_grad()
def forget_past(lstm: nn.LSTM) -> None:
    """Make each step of an LSTM start from the zero state, whatever its state is.

    The forget gates are 0, and the recurrent weights too. As the weights say so, every computation with them is the usual one,
    also in half precision and in exported files. Training does not change these weights: closed gates get no gradient, and the
    recurrent weights do not require one.
    """
    forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)
    for w_ih, w_hh, _, b_hh in lstm.all_weights:
        w_hh.zero_().requires_grad_(False)
        w_ih[forget], b_hh[forget] = 0, CLOSED


def runs_in_loop(lstm: nn.Module, device: torch.device) -> bool:
    """Return True if `run_lstm` uses `HalfPrecisionLayer`: `nn.LSTM` under autocast on a CPU."""
    return isinstance(lstm, nn.LSTM) and device.type == "cpu" and torch.is_autocast_enabled("cpu")


def run_lstm(
    lstm: nn.LSTM | LayerNormLSTM,
    inputs: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM over a sequence; under autocast on a CPU by `HalfPrecisionLayer`.

    Under autocast on a CPU, PyTorch's implementation rounds the cell to bfloat16 at every step,
    which destroys long-term memory. It is also slower at the paper's sizes (dev/LOG.md).

    Args:
        lstm: a module with ``batch_first=True``.
        inputs: (B, T, input_size).
        state: ``h`` and ``c``, (num_layers, B, H) each; None means zeros.
        lengths: (B,) number of steps of each row, in descending order; later steps keep the row's
            state and output. None means T for all rows. Supported only if `runs_in_loop`.

    Returns:
        Outputs (B, T, H), and the state after the last step, (num_layers, B, H) each.
    """
    if not isinstance(lstm, nn.LSTM) or not runs_in_loop(lstm, inputs.device):
        assert lengths is None
        return cast(tuple[Tensor, tuple[Tensor, Tensor]], lstm(inputs, state))
    if state is None:
        zeros = inputs.new_zeros(lstm.num_layers, inputs.shape[0], lstm.hidden_size)
        state = (zeros, zeros)
    steps = torch.arange(inputs.shape[1]).unsqueeze(1)  # (T, 1)
    running = [len(inputs)] * len(steps) if lengths is None else (steps < lengths).sum(dim=1).tolist()
    outputs, last_h, last_c = inputs.transpose(0, 1), [], []
    for weights, h, c in zip(lstm.all_weights, *state, strict=True):
        outputs, cell = HalfPrecisionLayer.apply(outputs, h, c, *weights, running, torch.get_autocast_dtype("cpu"))
        last_h.append(outputs[-1].to(h.dtype))
        last_c.append(cell)
    return outputs.transpose(0, 1), (torch.stack(last_h), torch.stack(last_c))


class HalfPrecisionLayer(torch.autograd.Function):
    """One layer of `nn.LSTM` with matrix products in reduced precision.

    All other operations have the precision of ``c``.

    The input, a 1 for the biases, and h are stored side by side. So a step is one product with the
    stacked weights, and the gradient of the weights is one product for all steps. Backward
    recomputes the gates instead of reading them from memory. It overwrites the pre-activations with
    their gradients, so it can run only once: PyTorch raises the second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor,
        b_hh: Tensor,
        running: list[int],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer over a sequence.

        Args:
            ctx: context of autograd.
            x: (T, B, I) inputs.
            h: (B, H) first output.
            c: (B, H) first cell.
            w_ih: (4 H, I) input weights, as in `nn.LSTM`.
            w_hh: (4 H, H) recurrent weights.
            b_ih: (4 H,) first bias.
            b_hh: (4 H,) second bias.
            running: T integers; step t advances the first ``running[t]`` rows and keeps the others.
            dtype: precision of the matrix products.

        Returns:
            Outputs (T, B, H) in ``dtype`` and the last cell (B, H).
        """
        (steps, b, size), hidden = x.shape, h.shape[-1]
        weight = stack_weights(w_ih, w_hh, b_ih, b_hh).to(dtype).t().contiguous()  # (I + 1 + H, 4 H)
        joined = torch.empty(steps + 1, b, size + 1 + hidden, dtype=dtype)
        joined[-1, :, :size] = 0
        joined[:-1, :, :size], joined[:, :, size], joined[0, :, size + 1 :] = x, 1, h
        cells, gates, tanh_cell = c.new_empty(steps + 1, b, hidden), c.new_empty(b, 4 * hidden), torch.empty_like(c)
        raw = torch.empty(steps, b, 4 * hidden, dtype=dtype)
        cells[0] = c
        for t, n in enumerate(running):
            before, after, out = cells[t], cells[t + 1], joined[t + 1, :, size + 1 :]
            torch.mm(joined[t, :n], weight, out=raw[t, :n])
            i, f, g, o = activate_gates(raw[t, :n], gates[:n])
            torch.mul(f, before[:n], out=after[:n]).addcmul_(i, g)
            torch.mul(torch.tanh(after[:n], out=tanh_cell[:n]), o, out=out[:n])
            if n < b:
                raw[t, n:], after[n:], out[n:] = 0, before[n:], joined[t, n:, size + 1 :]
        ctx.running = running
        ctx.save_for_backward(joined, raw, cells, w_ih, w_hh)
        return joined[1:, :, size + 1 :], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_output: Tensor, by_cell: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to the tensor arguments of `forward`."""
        joined, raw, cells, w_ih, w_hh = ctx.saved_tensors
        dtype, size = joined.dtype, w_ih.shape[1]
        recurrent, by_cell = w_hh.to(dtype), by_cell.clone()  # (4 H, H)
        by_h, through = torch.zeros_like(by_output[0]), torch.empty_like(by_cell)
        gates, tanh_cell = cells.new_empty(raw.shape[1:]), torch.empty_like(by_cell)
        slopes = torch.empty_like(gates)
        for t, n in reversed(list(enumerate(ctx.running))):
            activated = activate_gates(raw[t, :n], gates[:n])
            torch.add(by_output[t, :n], by_h[:n], out=through[:n])
            torch.tanh(cells[t + 1, :n], out=tanh_cell[:n])
            _step_backward(activated, slopes[:n], cells[t, :n], tanh_cell[:n], through[:n], by_cell[:n])
            raw[t, :n] = slopes[:n]
            torch.mm(raw[t, :n], recurrent, out=by_h[:n])
            by_h[n:] += by_output[t, n:]
        flat = raw.flatten(0, 1)  # now the gradient of the pre-activations, (T B, 4 H)
        by_weight = joined[:-1].flatten(0, 1).t().contiguous() @ flat  # contiguous, as a transposed view is slower in bfloat16
        by_weight = by_weight.t().to(w_ih.dtype)  # (4 H, I + 1 + H)
        by_x = (flat @ w_ih.to(dtype)).unflatten(0, raw.shape[:2]) if ctx.needs_input_grad[0] else None
        weights = by_weight[:, :size], by_weight[:, size + 1 :], by_weight[:, size], by_weight[:, size]
        return by_x, by_h.to(w_hh.dtype), by_cell, *weights, None, None


def stack_layers(parts: Sequence[Tensor]) -> Tensor:
    """Stack the h or c (B, H) of all layers: (num_layers, B, H), for one layer without a copy."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(list(parts))


def stack_weights(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """Concatenate input weights, biases and recurrent weights of a layer: (4 H, I + 1 + H)."""
    return torch.cat([w_ih, (b_ih + b_hh).unsqueeze(1), w_hh], dim=1)


def activate_gates(pre: Tensor, gates: Tensor) -> tuple[Tensor, ...]:
    """Activate pre-activations (B, 4 H) into ``gates``; return i, f, g, o as views (B, H) of it."""
    gates.copy_(pre)
    i, f, g, o = gates.chunk(4, dim=1)
    gates[:, : 2 * i.shape[1]].sigmoid_()
    g.tanh_()
    o.sigmoid_()
    return i, f, g, o


def _step_backward(
    gates: tuple[Tensor, ...], slopes: Tensor, before: Tensor, tanh_cell: Tensor, by_h: Tensor, by_cell: Tensor
) -> None:
    """Backpropagate through one step of the cell, in place.

    Args:
        gates: i, f, g and o, (B, H) each.
        slopes: (B, 4 H), filled with the gradient of the pre-activations.
        before: (B, H) cell before the step.
        tanh_cell: (B, H) tanh of the cell after the step.
        by_h: (B, H) gradient of the output; overwritten.
        by_cell: (B, H) gradient of the cell after the step; becomes the gradient of the cell before
            it.
    """
    i, f, g, o = gates
    by_i, by_f, by_g, by_o = slopes.chunk(4, dim=1)
    torch.mul(by_h, tanh_cell, out=by_o)
    by_cell += torch.ops.aten.tanh_backward(by_h.mul_(o), tanh_cell)
    torch.mul(by_cell, g, out=by_i)
    torch.mul(by_cell, before, out=by_f)
    torch.mul(by_cell, i, out=by_g)
    by_cell *= f
    for slope, gate in ((by_i, i), (by_f, f), (by_o, o)):
        torch.ops.aten.sigmoid_backward.grad_input(slope, gate, grad_input=slope)
    torch.ops.aten.tanh_backward.grad_input(by_g, g, grad_input=by_g)
