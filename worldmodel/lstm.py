"""An LSTM with layer normalisation, which `nn.LSTM` lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNormLSTM(nn.Module):
    """An LSTM with layer normalisation of the four gates and of the cell (Ba et al. 2016), as `nn.LSTM` with ``batch_first``.

    It follows ``LayerNormBasicLSTMCell`` of TensorFlow 1, which the authors' code can use: each gate's pre-activation is
    normalised on its own, the new cell is normalised before its tanh and kept so, and the forget gate has a bias of 1.

    Args:
        input_size: size of the inputs.
        hidden_size: H.
        num_layers: stacked layers.
        batch_first: must be True; there for the same signature as `nn.LSTM`.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, batch_first: bool = True):
        super().__init__()
        if not batch_first:
            raise ValueError("batch_first: expected True, got False")
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.gates = nn.ModuleList(nn.Linear(size + hidden_size, 4 * hidden_size, bias=False) for size in sizes)
        self.gate_norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(4)) for _ in sizes)
        self.cell_norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in sizes)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over ``inputs`` (B, T, input_size): outputs (B, T, H) and the state, ``h`` and ``c``, (num_layers, B, H) each."""
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
