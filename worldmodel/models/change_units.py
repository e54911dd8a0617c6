"""Units of predicted changes that rare jumps do not inflate.

The floor of the standard deviations is a fraction of a unit. With the standard deviation of the changes as the unit, rare jumps
raise the floor above the noise of ordinary steps. So a unit is at most a few medians of the non-zero absolute changes. (One
median would be the simpler rule, but loses 0.1 nats per dimension in Pendulum-v1: dev/LOG.md.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldmodel.mixtures import COPIED, LatentLayout, PartKind

SMALLEST_SCALE = 1e-6  # a smaller scale counts as no variation
MEDIANS = 4.0  # largest unit in medians; a standard deviation is 1.5 medians of Gaussian changes and 2.1 in Pendulum-v1
MAX_RATIO = 100.0  # standard deviations per unit: the heads must be able to express the jumps
SAMPLES = 2**22  # numbers that the medians are computed from


def sample_rows(changes: Tensor, batches: int) -> Tensor:
    """Return evenly spread rows of changes (N, D), so that ``batches`` of them have at most about `SAMPLES` numbers."""
    count = max(16, SAMPLES // (batches * changes.shape[1]))
    return changes[:: max(1, len(changes) // count)]


def robust_units(samples: Sequence[Tensor], deviation: Tensor, layout: LatentLayout) -> Tensor:
    """Return the unit of each number of z, (D,).

    - Densities: the standard deviation, at most `MEDIANS` medians of the non-zero absolute changes but at least a hundredth of
      the standard deviation; the median if the changes are all equal.
    - Latents of images: the standard deviation.
    - Mostly unchanged numbers: the same as densities, with the standard deviation of the non-zero changes.
    - Choices, bits and constants: 1.

    Args:
        samples: (n, D) changes each.
        deviation: (D,) standard deviation of all changes; 0 where they are constant.
        layout: the kinds of the parts.
    """
    changes = torch.cat(list(samples)).to(deviation.dtype)
    moved = torch.where(changes != 0, changes, torch.nan)
    median = moved.abs().nanmedian(dim=0).values.nan_to_num(0.0)  # (D,)
    mean = moved.nanmean(dim=0)
    among_moved = (moved - mean).square().nanmean(dim=0).sqrt().nan_to_num(0.0)
    mostly_unchanged = _mask(layout, deviation, PartKind.MOSTLY_UNCHANGED)
    spread = torch.where(mostly_unchanged, among_moved, deviation)
    unit = torch.where(spread > SMALLEST_SCALE, (MEDIANS * median).minimum(spread).maximum(spread / MAX_RATIO), median)
    unit = torch.where(_mask(layout, deviation, PartKind.IMAGE), deviation, unit)
    unit = torch.where(unit > SMALLEST_SCALE, unit, 1.0)
    return torch.where(_mask(layout, deviation, PartKind.CHOICE, PartKind.BITS, *COPIED), 1.0, unit)


def _mask(layout: LatentLayout, like: Tensor, *kinds: PartKind) -> Tensor:
    mask = torch.zeros_like(like, dtype=torch.bool)
    mask[layout.columns(*kinds)] = True
    return mask
