"""Training batches of M (the MDN-RNN), and the statistics of the data that it stores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-6  # targets with a smaller scale get unit scale
MEDIAN_ROWS = 2_048  # steps of each batch of which the median of the changes is computed, spread evenly
DREAM_MARGIN = 3.0  # distance of the bounds of dreams from the range of the data, in half-ranges


@dataclass(frozen=True)
class SequenceBatch:
    """Windows of encoded episodes with T transitions each, padded on the right.

    Args:
        z: (B, T + 1, D) latents, one sample per observation; z[:, t] is the input and z[:, t + 1]
            the target of step t.
        action: (B, T, A) action features.
        reward: (B, T) rewards.
        terminated: (B, T) bool, True where the step ended in a terminal state.
        mask: (B, T) bool, True where a step counts in the loss; False for padding and burn-in.
    """

    z: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    mask: Tensor

    @property
    def weight(self) -> int:
        """Number of steps that count in the loss."""
        return int(self.mask.sum())

    def longest_first(self) -> tuple[SequenceBatch, Tensor]:
        """Sort the windows by length, longest first.

        Returns:
            The sorted batch, and (B,) the number of steps of each window up to the last that
            counts.
        """
        step = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        lengths, order = (self.mask * step).amax(dim=1).sort(descending=True, stable=True)
        return SequenceBatch(*(value[order] for value in vars(self).values())), lengths


@dataclass(frozen=True)
class DataStatistics:
    """Statistics of the training data that M stores in addition to its weights.

    Args:
        change_scale: (D,) median of the absolute values of z_{t+1} - z_t that are not 0, the unit of predicted changes.
            Unlike the standard deviation, it does not grow with rare jumps, and neither does the floor of sigma.
        reward_mean: (1,) mean reward.
        reward_scale: (1,) standard deviation of the reward, the unit of predicted rewards.
        latent_low: (D,) lower bound of latents in dreams: far outside of the data. It keeps dreams
            finite if M diverges.
        latent_high: (D,) upper bound of latents in dreams.
        reward_low: (1,) lower bound of rewards in dreams, by the same rule; a constant reward stays
            constant.
        reward_high: (1,) upper bound of rewards in dreams.
    """

    change_scale: Tensor
    reward_mean: Tensor
    reward_scale: Tensor
    latent_low: Tensor
    latent_high: Tensor
    reward_low: Tensor
    reward_high: Tensor

    @classmethod
    def neutral(cls, latent_size: int) -> DataStatistics:
        """Return unit scales and infinite bounds."""
        high, reward_high = torch.full((latent_size,), torch.inf), torch.full((1,), torch.inf)
        return cls(torch.ones(latent_size), torch.zeros(1), torch.ones(1), -high, high, -reward_high, reward_high)

    @classmethod
    @torch.no_grad()
    def of(cls, batches: Iterable[SequenceBatch]) -> DataStatistics:
        """Compute the statistics of batches, with one batch in memory at a time.

        Changes of 0 and constant rewards get unit scales. The bounds lie `DREAM_MARGIN` half-ranges
        outside of the data.

        Raises:
            ValueError: if no step of any batch counts in the loss.
        """
        parts, changes = [], []
        for batch in batches:
            if batch.weight > 0:
                parts.append(_summarise(batch))
                changes.append(_some_changes(batch))
        if not parts:
            raise ValueError("batches: expected at least one step that counts, got none")
        unit = _typical_size(torch.cat(changes))
        count, means, variance, lows, highs = (torch.stack(part) for part in zip(*parts, strict=True))  # (batches, D + 1) each
        weight = count / count.sum(dim=0)
        mean = (weight * means).sum(dim=0)
        scale = (weight * (variance + (means - mean).square())).sum(dim=0).sqrt().to(lows.dtype)
        scale = torch.cat([unit.to(scale.dtype), scale[-1:]])
        scale = torch.where(scale > SMALLEST_SCALE, scale, 1.0)
        low, high = lows.amin(dim=0), highs.amax(dim=0)
        min_range = torch.ones_like(low).index_fill(0, torch.tensor([len(low) - 1], device=low.device), 0.0)  # 0 for the reward
        margin = DREAM_MARGIN / 2 * (high - low).clamp(min=min_range)
        low, high = low - margin, high + margin
        return cls(scale[:-1], mean[-1:].to(low.dtype), scale[-1:], low[:-1], high[:-1], low[-1:], high[-1:])


def _summarise(batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Summarise a batch.

    Returns:
        Count, mean and variance of the changes and the reward, then minimum and maximum of the
        latents and the reward; (D + 1,) each.
    """
    before, after = batch.z[:, :-1][batch.mask], batch.z[:, 1:][batch.mask]  # (N, D)
    reward = batch.reward[batch.mask].unsqueeze(-1)  # (N, 1)
    values = torch.cat([after - before, reward], dim=-1).double()
    low = torch.cat([torch.minimum(before, after), reward], dim=-1).amin(dim=0)
    high = torch.cat([torch.maximum(before, after), reward], dim=-1).amax(dim=0)
    mean = values.mean(dim=0)
    return torch.full_like(mean, len(values)), mean, values.var(dim=0, correction=0), low, high


def _some_changes(batch: SequenceBatch) -> Tensor:
    """Return the changes of at most `MEDIAN_ROWS` steps that count: (N, D)."""
    change = (batch.z[:, 1:] - batch.z[:, :-1])[batch.mask]
    return change[:: -(-len(change) // MEDIAN_ROWS)]


def _typical_size(change: Tensor) -> Tensor:
    """Return the median of the absolute changes (N, D) that are not 0 in each dimension, or 0 if all are: (D,)."""
    size = change.abs()
    return torch.where(size > 0, size, torch.nan).nanmedian(dim=0).values.nan_to_num(nan=0.0)
