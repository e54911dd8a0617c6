"""Models that are fitted in one pass, as a yardstick for M's heads: of the termination and of the reward.

The regressors are z_t, its squares, the action and a constant, standardised. Often a z_t that is large in either direction ends
an episode, which no model that is linear in z_t could say. Coefficients have a normal prior, so few examples give a cautious
model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.models import SequenceBatch

MAX_ROWS = 50_000  # steps on which they are fitted
NEWTON_STEPS = 12
PRIOR = 1.0  # precision of the coefficients of standardised regressors; of the constant's, a thousandth


@dataclass(frozen=True)
class TrivialModels:
    """A logistic regression of the termination and a linear one of the reward.

    Args:
        mean: (F,) of the regressors.
        scale: (F,) standard deviations of the regressors.
        termination: (F + 1,) coefficients of the log-odds, the constant's last.
        reward: (F + 1,) coefficients of the reward, the constant's last.
    """

    mean: Tensor
    scale: Tensor
    termination: Tensor
    reward: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, batches: Iterable[SequenceBatch]) -> TrivialModels | None:
        """Fit both on at most about `MAX_ROWS` steps; None if there are none.

        Args:
            batches: of training data.
        """
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        count = 0
        for batch in batches:
            rows = regressors(batch)
            parts.append((rows, *outcomes(batch)))
            count += len(rows)
            if count >= MAX_ROWS:
                break
        if count == 0:
            return None
        x, ended, reward = (torch.cat(part) for part in zip(*parts, strict=True))
        mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
        scale = torch.where(scale > 1e-9 * (1 + mean.abs()), scale, torch.inf)  # of a constant regressor: no effect
        x = torch.cat([(x - mean) / scale, torch.ones_like(ended).unsqueeze(-1)], dim=-1)
        precision = torch.full_like(x[0], PRIOR)
        precision[-1] *= 1e-3
        prior = torch.diag(precision)
        linear = torch.linalg.solve(x.T @ x + prior, x.T @ reward)
        return cls(mean, scale, _logistic(x, ended, prior), linear)

    def predict(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Predict the log-odds of termination and the reward of the N steps that count, (N,) float64 each."""
        x = (regressors(batch) - self.mean) / self.scale
        log_odds, reward = (x @ weights[:-1] + weights[-1] for weights in (self.termination, self.reward))
        return log_odds, reward


def regressors(batch: SequenceBatch) -> Tensor:
    """Return z_t, its squares and the action of the N steps that count, (N, F) float64, on the CPU."""
    z, action = (values[batch.mask].cpu().double() for values in (batch.z[:, :-1], batch.action))
    return torch.cat([z, z.square(), action], dim=-1)


def outcomes(batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    """Return whether each of the N steps that count terminated, 0 or 1, and its reward; (N,) float64 each, on the CPU."""
    return batch.terminated[batch.mask].cpu().double(), batch.reward[batch.mask].cpu().double()


def _logistic(x: Tensor, ended: Tensor, prior: Tensor) -> Tensor:
    """Fit log-odds x @ w by Newton's method with step halving."""

    def objective(w: Tensor) -> Tensor:
        logits = x @ w
        return (torch.nn.functional.softplus(logits) - ended * logits).sum() + 0.5 * w @ prior @ w

    w = torch.zeros_like(x[0])
    value = objective(w)
    for _ in range(NEWTON_STEPS):
        p = (x @ w).sigmoid()
        gradient = x.T @ (p - ended) + prior @ w
        step = torch.linalg.solve(x.T @ ((p * (1 - p)).unsqueeze(-1) * x) + prior, gradient)
        size = 1.0
        while size > 1e-4 and not (new := objective(w - size * step)) <= value:
            size /= 2
        if size <= 1e-4:
            break
        w, value = w - size * step, new
    return w
