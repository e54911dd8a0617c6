"""The optimisers of trainings: Adam, and Muon for the matrices of M."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("adam", "muon")
SMALLEST_MATRIX = 16  # rows and columns below which a matrix is a few vectors, which Adam serves


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], *, learning_rate: float) -> torch.optim.Optimizer:
    """Build an optimiser by name: "adam", or "muon" for `MuonAndAdam`.

    Raises:
        ValueError: if there is none of this name, or PyTorch is too old for it.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {OPTIMIZERS}, got {name!r}")
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer: expected 'adam' with PyTorch {torch.__version__}, got 'muon', which needs 2.9 or later")
    return MuonAndAdam(parameters, learning_rate=learning_rate)


class MuonAndAdam(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and Adam for all else, as one optimiser with one learning rate.

    Muon's step is the momentum with all its singular values made one, so that directions which the gradient seldom shows are
    learned as fast as the loud ones. It is scaled to the root mean square of Adam's usual step (Liu et al. 2025,
    arXiv:2502.16982), so that the two share a rate. M needs a fraction of Adam's updates with it (dev/LOG.md).

    Args:
        parameters: of the model.
        learning_rate: of both; that in ``param_groups`` counts, as in every optimiser.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, learning_rate: float):
        super().__init__(parameters, {"lr": learning_rate})
        (group,) = self.param_groups
        matrices = [p for p in group["params"] if p.ndim == 2 and min(p.shape) >= SMALLEST_MATRIX]
        others = [p for p in group["params"] if p.ndim != 2 or min(p.shape) < SMALLEST_MATRIX]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._parts.append(torch.optim.Adam(others))

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.state = self.state  # one state for both, so that it is saved and loaded as one
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()
        return loss
