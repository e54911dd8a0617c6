"""The loss of a batch over several ranks: each computes it on its rows of the batch, and their gradients are summed.

N ranks make the update of one process. All build the same batch, with the same samples of its latents, and take their rows of
it; noise is drawn for the whole batch; and a rank weighs in the gradient as much as the examples that count among its rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from worldmodel.rng import BatchRows
from worldmodel.runtime import Ranks

Terms = dict[str, Tensor]


class SharedLoss:
    """A model's loss, with the gradient of the whole batch on every rank.

    Args:
        model: has ``loss(batch, generator=...) -> (scalar, terms)``, averages over the examples that count.
        ranks: the processes, several; all have the same weights.
    """

    def __init__(self, model: nn.Module, ranks: Ranks):
        self._ranks, self._parallel = ranks, DistributedDataParallel(_Loss(model))

    def __call__(self, batch: Any, *, generator: torch.Generator | None = None) -> tuple[Tensor, Terms]:
        """Compute the loss of a batch.

        Args:
            batch: the same on all ranks: a dataclass of tensors with one row per window or image.
            generator: source of the loss's randomness, in the same state on all ranks.

        Returns:
            The scalar to start from backwards, and the terms with ``loss``, averaged over all examples.
        """
        ranks = self._ranks
        total = len(next(iter(vars(batch).values())))
        rows = ranks.rows(total)
        empty = rows.start == rows.stop
        rows = slice(0, 1) if empty else rows  # computed, as all ranks exchange gradients, and not counted
        part = replace(batch, **{name: value[rows] for name, value in vars(batch).items()})
        share = 0.0 if empty else part.weight / max(batch.weight, 1)
        loss, terms = self._parallel(part, BatchRows(generator, rows, total))
        names = ["loss", *terms]
        found = ranks.sum(share * torch.stack([value.detach().double() for value in (loss, *terms.values())]))
        return ranks.size * share * loss, dict(zip(names, found.to(loss.dtype).unbind(), strict=True))


class _Loss(nn.Module):
    """A loss as the forward pass that `DistributedDataParallel` watches."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Any, generator: Any) -> tuple[Tensor, Terms]:
        """Return the model's loss and its terms."""
        return cast(tuple[Tensor, Terms], cast(Any, self.model).loss(batch, generator=generator))
