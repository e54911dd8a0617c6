r"""Calibration of the termination head, and baselines of the held-out loss.

Terminations are rare, so the termination head overfits its few examples long before the latent head
has converged. A ``termination_weight`` other than 1 also biases its probabilities.

Platt scaling (Platt 1999) replaces the log-odds x by :math:`a x + b` with a > 0, fitted on held-out
episodes. It fixes overconfidence; it does not improve ranking. As the head is linear, a and b are
merged into its weights, so dreams take the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from worldmodel.mixtures import HALF_LOG_TWO_PI
from worldmodel.models import MDNRNN, SequenceBatch

MIN_TERMINATIONS = 10  # minimum number of terminations in each half of the cross-validation


@torch.no_grad()
def termination_logits(model: MDNRNN, batches: Iterable[SequenceBatch]) -> tuple[Tensor, Tensor]:
    """Predict the log-odds of termination for every step that counts.

    Args:
        model: M, in evaluation mode.
        batches: batches with N steps that count in the loss.

    Returns:
        (N,) log-odds, and (N,) whether the step terminated, 0 or 1; float64.

    Raises:
        ValueError: if M has no termination head.
    """
    logits, ended = [], []
    for batch in batches:
        prediction, _ = model(batch.z[:, :-1], batch.action)
        logit = prediction.outcome(batch.z[:, 1:]).termination_logit
        if logit is None:
            raise ValueError("model: expected a termination head, got none")
        logits.append(logit[batch.mask])
        ended.append(batch.terminated[batch.mask])
    return torch.cat(logits).double(), torch.cat(ended).double()


def termination_scores(logits: Tensor, ended: Tensor) -> dict[str, float]:
    """Score predicted log-odds of termination.

    Args:
        logits: (N,) predicted log-odds.
        ended: (N,) whether the step terminated, 0 or 1.

    Returns:
        ``nll`` (nats per step, unweighted), ``brier`` (mean squared error of p), ``recall``
        (fraction of the terminations with p > 1/2), ``expected`` (sum of p) and ``observed``
        (number of terminations). The last two are equal if p is calibrated.
    """
    p = logits.sigmoid()
    return {
        "nll": functional.binary_cross_entropy_with_logits(logits, ended).item(),
        "brier": (p - ended).square().mean().item(),
        "recall": ((logits > 0) * ended).sum().item() / max(1.0, ended.sum().item()),
        "expected": p.sum().item(),
        "observed": ended.sum().item(),
    }


def platt_scaling(logits: Tensor, ended: Tensor) -> tuple[float, float]:
    """Fit the calibrated log-odds a x + b, a > 0, by maximum likelihood.

    The targets are Platt's, slightly inside of (0, 1), so that a and b stay finite if x separates
    the classes perfectly.

    Args:
        logits: (N,) log-odds x.
        ended: (N,) whether the step terminated, 0 or 1.

    Returns:
        a and b.
    """
    count = ended.sum()
    target = torch.where(ended > 0, (count + 1) / (count + 2), 1 / (len(ended) - count + 2)).double()
    unit = logits.std(correction=0).clamp(min=1e-12).double()
    numbers = torch.stack([unit.new_zeros(()), (count / len(ended)).clamp(1e-9, 1 - 1e-9).logit().double()])  # log a and b
    numbers.requires_grad_()
    optimizer = torch.optim.LBFGS([numbers], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)
    centred = (logits.double() - logits.mean()) / unit

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(numbers[0].exp() * centred + numbers[1], target)
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    slope = (numbers[0].exp() / unit).item()
    return slope, numbers[1].item() - slope * logits.mean().item()


@torch.no_grad()
def calibrate_termination(model: MDNRNN, batches: Iterable[SequenceBatch]) -> dict[str, dict[str, float]]:
    """Calibrate the termination head in place on held-out batches.

    Calibration is applied only if its gain exceeds its standard error. Otherwise, or if a half of
    the steps has fewer than `MIN_TERMINATIONS` terminations, the model stays unchanged, and the
    scale is 1 and the shift 0.

    Args:
        model: M, in evaluation mode.
        batches: batches of episodes that M was not trained on, with at least some tens of
            terminations.

    Returns:
        Four records. ``before`` and ``after`` are `termination_scores` without and with calibration,
        by two-fold cross-validation. ``fitted`` holds ``scale`` a and ``shift`` b, fitted on all
        steps. ``gain`` holds the ``nll`` that calibration saves in the cross-validation, in nats per
        step, its ``standard_error``, and ``applied``, 1 if the model was calibrated, else 0.

    Raises:
        ValueError: if M has no termination head.
    """
    logits, ended = termination_logits(model, batches)
    halves = slice(0, len(ended) // 2), slice(len(ended) // 2, None)
    scale, shift, after, gain, error = 1.0, 0.0, logits.clone(), 0.0, 0.0
    if all(ended[half].sum() >= MIN_TERMINATIONS for half in halves):
        for one, other in (halves, halves[::-1]):
            a, b = platt_scaling(logits[other], ended[other])
            after[one] = a * logits[one] + b
        gain, error = _paired_gain(logits, after, ended)
    if gain > error:
        scale, shift = platt_scaling(logits, ended)
        assert model.termination_head is not None
        model.termination_head.weight *= scale
        model.termination_head.bias.mul_(scale).add_(shift)
    return {
        "before": termination_scores(logits, ended),
        "after": termination_scores(after, ended),
        "fitted": {"scale": scale, "shift": shift},
        "gain": {"nll": gain, "standard_error": error, "applied": float(gain > error)},
    }


def _paired_gain(before: Tensor, after: Tensor, ended: Tensor) -> tuple[float, float]:
    """Return the mean gain in likelihood of one set of log-odds (N,) over another, and its standard error, in nats per step."""
    before, after = (functional.binary_cross_entropy_with_logits(x, ended, reduction="none") for x in (before, after))
    difference = before - after
    return difference.mean().item(), difference.std().item() / len(difference) ** 0.5


class _Moments:
    """Second moments of the regressors x = [z_t, a_t, 1] and the target y = z_{t+1}, in float64."""

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
def baseline_nll(
    train: Iterable[SequenceBatch],
    test: Iterable[SequenceBatch],
    *,
    min_scale: Tensor,
    columns: Sequence[int] | None = None,
) -> dict[str, float]:
    """Fit two baselines on training batches and return their held-out negative log-likelihood.

    Args:
        train: batches to fit on.
        test: held-out batches.
        min_scale: (D,) added in quadrature to each standard deviation, as a floor.
        columns: the numbers of z that are scored; all if None.

    Returns:
        ``repeat_last`` (z_{t+1} = z_t plus noise) and ``linear_gaussian`` (linear in z_t and a_t
        plus noise), in nats per dimension.

    Raises:
        ValueError: if ``train`` or ``test`` has no step that counts.
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
    scored = list(range(latent_size)) if columns is None else list(columns)
    totals, count = dict.fromkeys(predictors, 0.0), 0
    for batch in test:
        x, y = _regression(batch)
        count += x.shape[0]
        for name, (coefficients, squares) in predictors.items():
            variance = (squares / moments.count).clamp(min=0) + floor
            nll = 0.5 * (y - x @ coefficients).square() / variance + 0.5 * variance.log() + HALF_LOG_TWO_PI
            totals[name] += nll[:, scored].sum().item()
    if count == 0:
        raise ValueError("test: expected at least one step, got none")
    return {name: total / (count * len(scored)) for name, total in totals.items()}


def _regression(batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    """Return regressors (N, D + A + 1) and targets (N, D) of the steps that count."""
    ones = torch.ones_like(batch.reward).unsqueeze(-1)
    x = torch.cat([batch.z[:, :-1], batch.action, ones], dim=-1)[batch.mask]
    return x.double(), batch.z[:, 1:][batch.mask].double()
