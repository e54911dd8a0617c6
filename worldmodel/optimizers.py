"""The optimisers of trainings: Adam, and Muon for the matrices of M."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("adam", "muon")
SMALLEST_MATRIX = 16  # rows and columns below which a matrix is a few vectors, which Adam serves
MOMENTUM = 0.95
ADAM_STEP = 0.2  # root mean square of Adam's usual step, as a part of the learning rate (Liu et al. 2025)
NEWTON_SCHULZ, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. (2024)


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, learning_rate: float, precision: str = "float32"
) -> torch.optim.Optimizer:
    """Build an optimiser by name: "adam", or "muon" for `MuonAndAdam`.

    Args:
        name: one of `OPTIMIZERS`.
        parameters: of the model.
        learning_rate: its rate.
        precision: "float32" or "bfloat16", of Muon's matrix products.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {OPTIMIZERS}, got {name!r}")
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    return MuonAndAdam(parameters, learning_rate=learning_rate, precision=precision)


class MuonAndAdam(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and Adam for all else, as one optimiser with one learning rate.

    Muon's step is the momentum with all its singular values made one, so that directions which the gradient seldom shows are
    learned as fast as the loud ones. It is scaled to the root mean square of Adam's usual step (Liu et al. 2025,
    arXiv:2502.16982), so that the two share a rate. M needs a fraction of Adam's updates with it (dev/LOG.md).

    It makes the steps of `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"`` and no decay, which always computes in
    bfloat16: on CPUs without units for it that takes seconds for each update of M at the paper's Doom size (dev/LOG.md).

    Args:
        parameters: of the model.
        learning_rate: of both; that in ``param_groups`` counts, as in every optimiser.
        precision: "float32" or "bfloat16", of the matrix products.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, learning_rate: float, precision: str = "float32"):
        super().__init__(parameters, {"lr": learning_rate})
        self._dtype: torch.dtype = getattr(torch, precision)
        (group,) = self.param_groups
        self._matrices = [p for p in group["params"] if _is_matrix(p)]
        others = [p for p in group["params"] if not _is_matrix(p)]
        self._adam = torch.optim.Adam(others) if others else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rate = self.param_groups[0]["lr"]
        for matrix in self._matrices:
            if matrix.grad is not None:
                momentum = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                direction = orthogonalize(matrix.grad.lerp(momentum, MOMENTUM), self._dtype)  # Nesterov's look ahead
                matrix.add_(direction.to(matrix.dtype), alpha=-rate * ADAM_STEP * math.sqrt(max(matrix.shape)))
        if self._adam is not None:
            self._adam.state = self.state  # one state for both, so that it is saved and loaded as one
            self._adam.param_groups[0]["lr"] = rate
            self._adam.step()
        return loss


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring all singular values of a matrix near 1, 0.7 to 1.2, and keep its singular vectors.

    Newton-Schulz iteration with a quintic that is steep at 0 (Jordan et al. 2024), so those below some thousandths of its
    norm stay smaller.

    Args:
        matrix: (M, N).
        dtype: of the products.

    Returns:
        (M, N), of that dtype.
    """
    a, b, c = NEWTON_SCHULZ
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).to(dtype)
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and min(parameter.shape) >= SMALLEST_MATRIX
