"""The optimisers of trainings: Adam, and Muon for the matrices of V and M."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("adam", "muon")
SMALLEST_MATRIX = 16  # rows and columns below which a matrix is a few vectors, which Adam serves
MOMENTUM = 0.95
LARGEST_KERNEL = 512  # rows and columns from which on a kernel is split: as one matrix it costs twice V's update (dev/LOG.md)
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
    """Muon (Jordan et al. 2024) for matrices and kernels and Adam for all else, as one optimiser with one learning rate.

    Muon's step is the momentum with all its singular values made one, so that directions which the gradient seldom shows are
    learned as fast as the loud ones. It is scaled to the root mean square of Adam's usual step (Liu et al. 2025,
    arXiv:2502.16982), so that the two share a rate. The kernel of a convolution (M, N, ...) is a matrix of M rows, or, where
    that is large, one (M, N) for each place. V and M need a fraction of Adam's updates with it (dev/LOG.md).

    Of matrices it makes the steps of `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"`` and no decay, which always
    computes in bfloat16: on CPUs without units for it that takes seconds for each update of M at the paper's Doom size
    (dev/LOG.md).

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
                direction = _direction(matrix.grad.lerp(momentum, MOMENTUM), self._dtype)  # Nesterov's look ahead
                matrix.add_(direction, alpha=-rate * ADAM_STEP)
        if self._adam is not None:
            self._adam.state = self.state  # one state for both, so that it is saved and loaded as one
            self._adam.param_groups[0]["lr"] = rate
            self._adam.step()
        return loss


def _direction(ahead: Tensor, dtype: torch.dtype) -> Tensor:
    """Muon's step along a momentum (M, N, ...), with a root mean square of about 1."""
    rows, columns = len(ahead), ahead[0].numel()
    if ahead.ndim == 2 or min(rows, columns) < LARGEST_KERNEL:
        direction = orthogonalize(ahead.flatten(1), dtype).to(ahead.dtype)
        return direction.reshape(ahead.shape) * math.sqrt(max(rows, columns))
    places = range(ahead.ndim - 2)
    direction = orthogonalize(ahead.permute(*(i + 2 for i in places), 0, 1), dtype).to(ahead.dtype)
    return direction.permute(-2, -1, *places) * math.sqrt(max(ahead.shape[:2]))


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring all singular values of matrices near 1, 0.7 to 1.2, and keep their singular vectors.

    Newton-Schulz iteration with a quintic that is steep at 0 (Jordan et al. 2024), so those below some thousandths of its
    norm stay smaller.

    Args:
        matrix: (M, N), or many of them, (..., M, N).
        dtype: of the products.

    Returns:
        The same shape, of that dtype.
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
    return parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) >= SMALLEST_MATRIX
