"""Training batches of M (the MDN-RNN), and the statistics of the data that it stores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.mixtures import COPIED, LatentLayout
from worldmodel.models.change_units import SMALLEST_SCALE, robust_units, sample_rows

MAX_BATCHES = 100  # number of batches that the sample of changes is sized for
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
        change_scale: (D,) unit of predicted changes z_{t+1} - z_t: see `worldmodel.models.change_units`, or their standard
            deviation if there is no layout.
        reward_mean: (1,) mean of the rewards that are no atoms; of all, if there are no atoms.
        reward_scale: (1,) their standard deviation, the unit of predicted rewards.
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
        one, reward_one = (torch.ones(size, dtype=torch.float32) for size in (latent_size, 1))
        high, reward_high = torch.inf * one, torch.inf * reward_one
        return cls(one, torch.zeros_like(reward_one), reward_one, -high, high, -reward_high, reward_high)

    @classmethod
    @torch.no_grad()
    def of(
        cls, batches: Iterable[SequenceBatch], layout: LatentLayout | None = None, *, atoms: Sequence[float] = ()
    ) -> DataStatistics:
        """Compute the statistics of batches, with one batch in memory at a time.

        Constant changes and rewards get unit scales. The bounds lie `DREAM_MARGIN` half-ranges
        outside of the data; numbers that dreams copy have none. Changes are those from the last
        observed value, if numbers are missing (NaN).

        Args:
            batches: the data.
            layout: the parts of z; None takes standard deviations as units of all changes.

        Args:
            batches: the data, or enough of them.
            atoms: rewards that do not count in ``reward_mean`` and ``reward_scale``; they lie within the bounds.

        Raises:
            ValueError: if no step of any batch counts in the loss.
        """
        parts, samples = [], []
        for batch in batches:
            if batch.weight > 0:
                parts.append(_summarise(batch, atoms))
                if layout is not None:
                    changes = (batch.z[:, 1:] - hold_last(batch.z)[:, :-1])[batch.mask]
                    samples.append(sample_rows(changes, MAX_BATCHES))
        if not parts:
            raise ValueError("batches: expected at least one step that counts, got none")
        count, means, variance, lows, highs = (torch.stack(part) for part in zip(*parts, strict=True))  # (batches, D + 1) each
        weight = count / count.sum(dim=0).clamp(min=1)
        mean = (weight * means).sum(dim=0)
        deviation = (weight * (variance + (means - mean).square())).sum(dim=0).sqrt().to(lows.dtype)
        scale = torch.where(deviation > SMALLEST_SCALE, deviation, 1.0)
        low, high = lows.amin(dim=0), highs.amax(dim=0)
        if atoms:
            low[-1:], high[-1:] = low[-1:].clamp(max=min(atoms)), high[-1:].clamp(min=max(atoms))
        min_range = torch.ones_like(low).index_fill(0, torch.tensor([len(low) - 1], device=low.device), 0.0)  # 0 for the reward
        margin = DREAM_MARGIN / 2 * (high - low).clamp(min=min_range)
        low, high = low - margin, high + margin
        unit = scale[:-1]
        if layout is not None:
            unit = robust_units(samples, deviation[:-1], layout)
            copied = layout.columns(*COPIED)
            low[copied], high[copied] = -torch.inf, torch.inf
        return cls(unit, mean[-1:].to(low.dtype), scale[-1:], low[:-1], high[:-1], low[-1:], high[-1:])


def hold_last(z: Tensor) -> Tensor:
    """Fill the missing numbers (NaN) of z (B, T + 1, D) by the last observed ones, and by 0 before the first."""
    known = ~z.isnan()
    if bool(known.all()):
        return z
    step = torch.arange(z.shape[1], device=z.device).reshape(-1, 1)
    last = torch.where(known, step, 0).cummax(dim=1).values
    return z.gather(1, last).nan_to_num(0.0)


def _summarise(batch: SequenceBatch, atoms: Sequence[float]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Summarise a batch.

    Returns:
        Count, mean and variance of the changes and the reward, then minimum and maximum of the
        latents and the reward; (D + 1,) each.
    """
    before, after = hold_last(batch.z)[:, :-1][batch.mask], batch.z[:, 1:][batch.mask]  # (N, D)
    reward = batch.reward[batch.mask].unsqueeze(-1)  # (N, 1)
    values = torch.cat([after - before, reward], dim=-1).double()
    known = ~values.isnan()
    low = torch.cat([torch.fmin(before, after), reward], dim=-1).amin(dim=0)
    high = torch.cat([torch.fmax(before, after), reward], dim=-1).amax(dim=0)
    mean, variance = values.mean(dim=0), values.var(dim=0, correction=0)
    count = torch.full_like(mean, len(values))
    if not bool(known.all()):
        count = known.sum(dim=0).to(mean.dtype)
        mean = values.nansum(dim=0) / count.clamp(min=1)
        variance = (values - mean).square().nansum(dim=0) / count.clamp(min=1)
    if atoms:
        others = reward[(reward != torch.as_tensor(atoms, dtype=reward.dtype, device=reward.device)).all(dim=-1)].double()
        count[-1] = len(others)
        mean[-1], variance[-1] = (others.mean(), others.var(correction=0)) if len(others) else (0.0, 0.0)
    return count, mean, variance, low, high
