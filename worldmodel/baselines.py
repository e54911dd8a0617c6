"""Trivial predictors of the next latent, whose likelihoods make a model's readable.

- **repeat-last**: z_{t+1} ~ N(z_t, diag(s^2)), s^2 the mean squared change in the training data;
- **linear Gaussian**: z_{t+1} ~ N(W [z_t, a_t, 1], diag(s^2)), W by least squares and s^2 the mean squared residual.

Both are fitted by maximum likelihood on the training windows, with the same floor on sigma as the model, in units of the
change's standard deviation, so that a constant dimension is as cheap for them as for M.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from worldmodel.batches import SequenceBatch
from worldmodel.mixture import HALF_LOG_TWO_PI


class _Moments:
    """Sums over steps of products of the regressors x = [z_t, a_t, 1] and the target y = z_{t+1}, in float64."""

    def __init__(self, batches: Iterable[SequenceBatch]):
        self.count = 0
        for batch in batches:
            x, y = _regression(batch)
            if self.count == 0:
                self.xx, self.xy = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1], y.shape[1])
                self.yy, self.changes = y.new_zeros(y.shape[1]), y.new_zeros(y.shape[1])
            self.count += x.shape[0]
            self.xx += x.T @ x
            self.xy += x.T @ y
            self.yy += y.square().sum(dim=0)
            self.changes += (y - x[:, : y.shape[1]]).square().sum(dim=0)


@torch.no_grad()
def baseline_nll(train: Iterable[SequenceBatch], test: Iterable[SequenceBatch], *, min_scale: Tensor) -> dict[str, float]:
    """Fit the baselines on training batches and report their held-out negative log-likelihood.

    Args:
        train: batches to fit on.
        test: batches to score.
        min_scale: (D,) floor of each sigma.

    Returns:
        ``repeat_last`` and ``linear_gaussian``, in nats per dimension.

    Raises:
        ValueError: if either has no step.
    """
    moments = _Moments(train)
    if moments.count == 0:
        raise ValueError("train: expected at least one step, got none")
    inverse = torch.linalg.pinv(moments.xx, rtol=1e-12, hermitian=True)  # one-hot actions and the constant 1 are collinear
    weights = inverse @ moments.xy  # (D + A + 1, D)
    residual = moments.yy - 2 * (weights * moments.xy).sum(dim=0) + (weights * (moments.xx @ weights)).sum(dim=0)
    latent_size = weights.shape[1]
    repeat = torch.eye(weights.shape[0], latent_size, dtype=weights.dtype, device=weights.device)
    predictors = {"repeat_last": (repeat, moments.changes), "linear_gaussian": (weights, residual)}
    floor = min_scale.to(weights.dtype).square()
    totals, count = dict.fromkeys(predictors, 0.0), 0
    for batch in test:
        x, y = _regression(batch)
        count += x.shape[0]
        for name, (coefficients, squares) in predictors.items():
            variance = (squares / moments.count).clamp(min=0) + floor
            nll = 0.5 * (y - x @ coefficients).square() / variance + 0.5 * variance.log() + HALF_LOG_TWO_PI
            totals[name] += nll.sum().item()
    if count == 0:
        raise ValueError("test: expected at least one step, got none")
    return {name: total / (count * latent_size) for name, total in totals.items()}


def _regression(batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    """The regressors (N, D + A + 1) and targets (N, D) of the steps that count."""
    ones = torch.ones_like(batch.reward).unsqueeze(-1)
    x = torch.cat([batch.z[:, :-1], batch.action, ones], dim=-1)[batch.mask]
    return x.double(), batch.z[:, 1:][batch.mask].double()
