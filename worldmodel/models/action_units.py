"""Standardisation of actions: M sees (a - mean) / scale, whatever the units of the environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from worldmodel.models.batch import SequenceBatch
from worldmodel.models.extra_inputs import ExtraInputs
from worldmodel.spaces import Float64Buffers

SMALLEST_RELATIVE_SCALE = 1e-12  # of the mean: rounding errors of a constant action are no variation


class ActionUnits(Float64Buffers):
    """Mean and scale of action features over the training data; 0 and 1 leave them as they are.

    They are float64, so that actions with a large offset keep their variation. They are in the state
    dict only if they differ from 0 and 1. So models of earlier versions open without them, and keep
    their fingerprints.

    Args:
        size: A, size of the action features.
        extras: the inputs of M that may follow them; None for none.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, extras: ExtraInputs | None = None):
        super().__init__()
        self.extras = extras or ExtraInputs()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(size, dtype=torch.float64))

    @property
    def is_neutral(self) -> bool:
        """Whether actions are left as they are."""
        if self.mean.is_meta:
            return False  # without values; so the state dict names all that there may be
        return not bool(self.mean.any()) and bool((self.scale == 1).all())

    def forward(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """Standardise action features (..., A) in float64 and return them in ``dtype``, that of z.

        With extra inputs the result is (..., A + E), and those that are not given have their usual values.
        """
        size = len(self.mean)
        if not self.extras.accepts(action.shape[-1] - size):
            return action  # of a wrong size, which M reports with all of its shape
        if self.extras.size == 0:
            return ((action - self.mean) / self.scale).to(dtype)
        own, more = ((action[..., :size] - self.mean) / self.scale).to(dtype), action[..., size:]
        return torch.cat([own, self.extras.features(more, dtype)], dim=-1)

    @torch.no_grad()
    def fit(self, batches: Iterable[SequenceBatch], standardised: Tensor) -> None:
        """Set mean and scale from batches in one pass; sums are in float64 (Chan et al. 1979).

        Args:
            batches: training batches; their steps in the mask count.
            standardised: (A,) bool, the features that are numbers. Entries of one-hot vectors and
                bits keep mean 0 and scale 1. A constant number keeps scale 1.
        """
        count, mean, squares = 0, torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for batch in batches:
            actions = batch.action[batch.mask][:, : len(mean)].double()  # (N, A)
            n = len(actions)
            if n == 0:
                continue
            batch_mean = actions.mean(dim=0)
            delta = batch_mean - mean
            squares += (actions - batch_mean).square().sum(dim=0) + delta.square() * count * n / (count + n)
            mean += delta * n / (count + n)
            count += n
        deviation = (squares / max(count, 1)).sqrt()
        varies = deviation > SMALLEST_RELATIVE_SCALE * mean.abs()
        self.mean.copy_(torch.where(standardised, mean, 0.0))
        self.scale.copy_(torch.where(standardised & varies, deviation, 1.0))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not self.is_neutral:
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if prefix + "mean" in state_dict or prefix + "scale" in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *others)
        else:
            self.mean.zero_()
            self.scale.fill_(1.0)
