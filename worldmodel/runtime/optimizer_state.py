"""State of an optimiser as named tensors, as files of training states keep it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Return the moments and counters of an optimiser, named ``prefix.parameter.name``."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{number}.{name}": tensor for number, moments in state.items() for name, tensor in moments.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned; other names are ignored, and learning rates stay those of ``optimizer``."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            number, key = name.removeprefix(f"{prefix}.").split(".")
            moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
