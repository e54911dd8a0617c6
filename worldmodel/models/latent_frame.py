"""Origin and units in which M's latent head predicts each part of z."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from worldmodel.mixtures import (
    COPIED,
    DENSITIES,
    CompositeHead,
    LatentHead,
    LatentLayout,
    PartKind,
    SubHead,
    latent_head_class,
)
from worldmodel.models.mdnrnn_config import MDNRNNConfig


class LatentFrame(nn.Module):
    """Convert between z and what the latent head predicts: z_{t+1} = origin + unit * prediction.

    Densities predict the change in units of `DataStatistics.change_scale` (with ``predict_change``; else z itself), as do
    numbers that are mostly unchanged. Choices and bits are predicted as they are. Constants are copied from z_t.

    Args:
        latent_size: D.
        predict_change: whether densities predict changes.
        layout: the parts of z; None for one density.

    Raises:
        ValueError: if the layout is of another size.
    """

    def __init__(self, latent_size: int, *, predict_change: bool, layout: LatentLayout | None):
        super().__init__()
        self.latent_size, self.predict_change, self.layout = latent_size, predict_change, layout
        self._changing: list[int] | None = None if layout is None else layout.columns(PartKind.MOSTLY_UNCHANGED, *DENSITIES)
        if layout is None:
            return
        if layout.latent_size != latent_size:
            raise ValueError(f"layout: expected one of {latent_size} numbers, got one of {layout.latent_size}")
        changing = (PartKind.MOSTLY_UNCHANGED, *(DENSITIES if predict_change else ()))
        for name, kinds in {"follows": (*changing, *COPIED), "scaled": changing, "copied": COPIED}.items():
            mask = torch.zeros(latent_size, dtype=torch.bool)
            mask[layout.columns(*kinds)] = True
            self.register_buffer(name, mask, persistent=False)

    @property
    def num_variables(self) -> int:
        """Number of random variables in z, by which the loss of the latent is divided; D without a layout."""
        return self.latent_size if self.layout is None else max(1, self.layout.num_variables)

    def new_head(self, in_features: int, config: MDNRNNConfig) -> LatentHead:
        """Make the latent head that predicts z from F features."""
        make = latent_head_class(config.latent_head).from_config
        if self.layout is None:
            return make(in_features, self.latent_size, config)
        return CompositeHead(in_features, self.layout, config, make)

    def of(self, z: Tensor, change_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return origin (..., D) and unit (D,) of the prediction for the present ``z`` (..., D)."""
        if self.layout is not None:
            return torch.where(cast(Tensor, self.follows), z, 0.0), self.units(change_scale)
        return (z if self.predict_change else torch.zeros_like(z)), self.units(change_scale)

    def units(self, change_scale: Tensor) -> Tensor:
        """Return the units of the prediction (D,); 1 for choices, bits, constants and numbers that are predicted directly."""
        if self.layout is not None:
            return torch.where(cast(Tensor, self.scaled), change_scale, 1.0)
        return change_scale if self.predict_change else torch.ones_like(change_scale)

    def next_z(self, prediction: Tensor, z: Tensor, change_scale: Tensor) -> Tensor:
        """Turn a sample of the head (B, D) into the next z; overwrites it. Constants are copied from ``z`` bit for bit."""
        if self.layout is None and not self.predict_change:
            return prediction
        origin, unit = self.of(z, change_scale)
        moved = prediction.mul_(unit).add_(origin)
        return moved if self.layout is None else torch.where(cast(Tensor, self.copied), z, moved)

    @property
    def num_changes(self) -> int:
        """Number of numbers of z with a change in units, C."""
        return self.latent_size if self._changing is None else len(self._changing)

    def changes(self, z: Tensor, next_z: Tensor, change_scale: Tensor) -> Tensor:
        """Return the changes from ``z`` to ``next_z`` (..., D) in their units, of numbers that have one: (..., C)."""
        change = (next_z - z) / change_scale
        return change if self._changing is None else change[..., self._changing]

    def sub_heads(self, head: LatentHead) -> list[SubHead]:
        """Return the terms of the latent's loss; one without a layout."""
        if isinstance(head, CompositeHead):
            return head.sub_heads
        return [SubHead("nll_per_dim", head, slice(None), self.latent_size)]
