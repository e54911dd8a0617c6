"""Optimisers of V and M: Adam, and Muon for their matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Optimizer = Literal["adam", "muon"]
OPTIMIZERS = ("adam", "muon")
MIN_MATRIX_SIZE = 16  # minimum of rows and columns; Adam updates smaller matrices
MOMENTUM = 0.95
# Rows and columns from which a kernel is split. As one matrix, it takes twice the time of V's update
# (dev/LOG.md).
SPLIT_KERNEL_SIZE = 512
ADAM_RMS = 0.2  # root mean square of Adam's usual step per learning rate (Liu et al. 2025)
NEWTON_SCHULZ, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. (2024)


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, learning_rate: float, precision: str = "float32"
) -> torch.optim.Optimizer:
    """Build an optimiser by name: "adam", or "muon" for `MuonAndAdam`.

    Args:
        name: one of `OPTIMIZERS`.
        parameters: parameters of the model.
        learning_rate: learning rate.
        precision: "float32" or "bfloat16", for Muon's matrix products.

    Raises:
        ValueError: if no optimiser has this name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {OPTIMIZERS}, got {name!r}")
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)  # one kernel: 3 % of an update of a small M
    return MuonAndAdam(parameters, learning_rate=learning_rate, precision=precision)


class MuonAndAdam(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and kernels, Adam for all other parameters.

    Muon's step is the momentum with all singular values set to one. So directions that are rare in
    the gradient are learned as fast as dominant ones. The step is scaled to the root mean square of
    Adam's usual step (Liu et al. 2025, arXiv:2502.16982), so that both can share a learning rate. V
    and M need far fewer updates with it than with Adam (dev/LOG.md).

    A convolution kernel (M, N, ...) is updated as one matrix of M rows, or, if that is large, as
    one matrix (M, N) per position of the kernel.

    For matrices, the steps are those of `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``
    and no weight decay. PyTorch's version always computes in bfloat16. On CPUs without bfloat16
    instructions, that takes seconds per update of M at the paper's Doom size (dev/LOG.md).

    Args:
        parameters: parameters of the model.
        learning_rate: learning rate of both; `step` reads it from ``param_groups``, so schedulers
            work.
        precision: "float32" or "bfloat16", for the matrix products.
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
                direction = _direction(matrix.grad.lerp(momentum, MOMENTUM), self._dtype)  # Nesterov momentum
                matrix.add_(direction, alpha=-rate * ADAM_RMS)
        if self._adam is not None:
            self._adam.state = self.state  # shared, so that `state_dict` holds both
            self._adam.param_groups[0]["lr"] = rate
            self._adam.step()
        return loss


def _direction(ahead: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Muon's direction for a momentum (M, N, ...), with a root mean square of about 1."""
    rows, columns = len(ahead), ahead[0].numel()
    if ahead.ndim == 2 or min(rows, columns) < SPLIT_KERNEL_SIZE:
        direction = orthogonalize(ahead.flatten(1), dtype).to(ahead.dtype)
        return direction.reshape(ahead.shape) * math.sqrt(max(rows, columns))
    places = range(ahead.ndim - 2)
    direction = orthogonalize(ahead.permute(*(i + 2 for i in places), 0, 1), dtype).to(ahead.dtype)
    return direction.permute(-2, -1, *places) * math.sqrt(max(ahead.shape[:2]))


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Move all singular values of matrices to about 1 (0.7 to 1.2) and keep their singular vectors.

    Newton-Schulz iteration with a quintic polynomial that is steep at 0 (Jordan et al. 2024).
    Singular values below a few thousandths of the matrix norm stay smaller.

    Args:
        matrix: (..., M, N), one or several matrices.
        dtype: precision of the matrix products.

    Returns:
        (..., M, N) in ``dtype``.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = (matrix.mT if tall else matrix).to(dtype).contiguous()
    x = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if x.ndim > 2:
        x = x.flatten(0, -3)
    multiply_add = torch.baddbmm if x.ndim > 2 else torch.addmm
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.reshape(wide.shape)
    return x.mT if tall else x


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) >= MIN_MATRIX_SIZE
