"""Trainings that end in a bad state: what is checked at the end, and the warning.

Nothing is judged before `LEAST_UPDATES` updates, or without held-out data: a short trial is not a failure.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from worldmodel.mixtures import CompositeDistribution, GaussianMixture
from worldmodel.models import IN_USE, MDNRNN, SequenceBatch
from worldmodel.training.likelihood import MIN_TERMINATIONS
from worldmodel.training.loop import TrainingResult
from worldmodel.training.trivial_models import TrivialModels, outcomes

LEAST_UPDATES = 200
MAX_JUDGED = 20  # held-out episodes that show whether V has collapsed
FEW_IN_USE = 8  # one latent in so many must be in use
MARGIN = 0.01  # nats by which M may be worse than a linear Gaussian, and share by which a head may be worse than the base rate
TOLERANCE = 0.1  # share of a linear Gaussian's gain over the repetition of the last z that M may lack
LEAST_SHARE = 0.25  # share of a regression's gain over the best constant that a head must have
LEAST_WEIGHT = 0.01  # mean weight of a component that is in use
PAGE = "docs/how_to/training_warnings.md"


class TrainingQualityWarning(UserWarning):
    """A training ended in a bad state: its result is complete, but hardly usable."""


def judge(result: TrainingResult, *, held_out: bool) -> bool:
    """Whether the end of a training says something: it had held-out data and `LEAST_UPDATES` updates."""
    return held_out and result.updates >= LEAST_UPDATES


def warn(messages: Sequence[str]) -> list[str]:
    """Issue one `TrainingQualityWarning` per message, and return them for the provenance."""
    for message in messages:
        warnings.warn(message, TrainingQualityWarning, stacklevel=3)
    return list(messages)


def latents_in_use(mean: Tensor, log_variance: Tensor) -> int:
    """Count the latents that carry information: the variance of V's mean over observations exceeds `IN_USE` of the total.

    Args:
        mean: (N, D) means of V's posterior for N observations.
        log_variance: (N, D).
    """
    signal = mean.var(dim=0, correction=0)
    return int((signal > IN_USE * (signal + log_variance.exp().mean(dim=0))).sum())


def vision_problems(in_use: int, size: int) -> list[str]:
    """Say if V has collapsed: fewer than one latent in `FEW_IN_USE` carries information."""
    if size == 0 or (in_use * FEW_IN_USE >= size and in_use > 0):
        return []
    return [
        f"V has collapsed: {in_use} of {size} latents are in use, so its z says little about an image. Likely causes: a KL "
        "term that outweighs the pixel error (raise kl_tolerance), too few updates, or images that hardly change; see "
        f"{PAGE}"
    ]


def loss_problems(result: TrainingResult, *, evaluate_every: int) -> list[str]:
    """Say if the held-out loss never improved after the first of at least three evaluations."""
    if result.best_update > evaluate_every or result.updates < 3 * evaluate_every:
        return []
    return [
        f"the held-out loss is lowest after update {result.best_update} of {result.updates} and rose from there. Likely "
        f"causes: a learning rate that is too high, or too few episodes; lower learning_rate or collect more; see {PAGE}"
    ]


def model_problems(metrics: Mapping[str, float], baselines: Mapping[str, float], components: str = "") -> list[str]:
    """Say if M predicts z worse than a linear Gaussian that was fitted in one pass.

    Where the data are linear, no model is better than a linear one, and a good M is close to it. So M must have most of what
    the linear model gains over the repetition of the last z.

    Args:
        metrics: M's held-out scores.
        baselines: those of the trivial models.
        components: what to add about M's mixture.
    """
    own, linear = metrics.get("nll_per_dim", math.nan), baselines.get("linear_gaussian", math.nan)
    gain = baselines.get("repeat_last", linear) - linear
    if not own > linear + max(MARGIN, TOLERANCE * gain):
        return []
    return [
        f"M predicts worse than a linear Gaussian: {own:.3f} nats per dimension of held-out z, not below {linear:.3f}"
        f"{components}. Likely causes: too few updates, a learning rate that is too high or too low, or too few episodes; see "
        f"{PAGE}"
    ]


@dataclass(frozen=True)
class Predictions:
    """What M and the trivial models predict for N held-out steps, on the CPU.

    Args:
        ended: (N,) whether the step terminated, 0 or 1.
        log_odds: (N,) of M; None without a termination head.
        trivial_log_odds: (N,) of a logistic regression.
        reward: (N,) rewards.
        mean_reward: (N,) mean of M's distribution; None without a reward head.
        trivial_reward: (N,) of a linear regression.
        weights: (K,) mean weight of each component of M's mixture, in the dimension where it has most; None without a mixture.
    """

    ended: Tensor
    log_odds: Tensor | None
    trivial_log_odds: Tensor
    reward: Tensor
    mean_reward: Tensor | None
    trivial_reward: Tensor
    weights: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, model: MDNRNN, batches: Iterable[SequenceBatch], trivial: TrivialModels) -> Predictions:
        """Predict the steps of held-out batches that count.

        Args:
            model: M, in evaluation mode.
            batches: held-out batches.
            trivial: fitted on training data.
        """
        columns: list[list[Tensor]] = [[], [], [], [], [], []]
        weights, count = None, 0
        for batch in batches:
            prediction, _ = model(batch.z[:, :-1], batch.action)
            mask = batch.mask
            outcome = prediction.outcome(batch.z[:, 1:])
            logit = outcome.termination_logit
            mean = None if outcome.reward is None else outcome.reward.expectation().squeeze(-1)
            own = [None if values is None else values[mask].cpu().double() for values in (logit, mean)]
            for column, values in zip(columns, (*outcomes(batch), *trivial.predict(batch), *own), strict=True):
                if values is not None:
                    column.append(values)
            found = _mixture(prediction.latent)
            if found is not None:
                total = found.log_weights[mask].exp().double().sum(dim=0).cpu()  # (K,) or (K, D)
                weights = total if weights is None else weights + total
                count += int(mask.sum())
        ended, reward, log_odds, linear, own_log_odds, own_reward = (torch.cat(part) if part else None for part in columns)
        assert ended is not None and reward is not None and log_odds is not None and linear is not None  # noqa: PT018
        if weights is not None:
            weights = (weights / count).reshape(len(weights), -1).amax(dim=-1)
        return cls(ended, own_log_odds, log_odds, reward, own_reward, linear, weights)


def _mixture(latent: Any) -> GaussianMixture | None:
    """Return the Gaussian mixture of M's prediction of z, if it has one."""
    parts = [part for _, part, _ in latent.parts] if isinstance(latent, CompositeDistribution) else [latent]
    return next((part for part in parts if isinstance(part, GaussianMixture)), None)


def dead_components(predictions: Predictions) -> str:
    """Say how many components of M's mixture are in use, if not all are."""
    if predictions.weights is None:
        return ""
    size, in_use = len(predictions.weights), int((predictions.weights > LEAST_WEIGHT).sum())
    return "" if in_use == size else f", with {in_use} of {size} components of the mixture in use"


def termination_problems(predictions: Predictions) -> list[str]:
    """Say if the termination head predicts held-out terminations worse than their rate, or than a logistic regression does."""
    ended, logits = predictions.ended, predictions.log_odds
    count, steps = float(ended.sum()), len(ended)
    if logits is None or count < MIN_TERMINATIONS or count == steps:
        return []
    rate = count / steps
    base = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    own, trivial = (
        binary_cross_entropy_with_logits(x, ended, reduction="none") for x in (logits, predictions.trivial_log_odds)
    )
    if own.mean() > base * (1 + MARGIN):
        reason = f"predicts worse than the rate of terminations: {float(own.mean()):.5f} nats per step, not below {base:.5f}"
    elif _gains_little(own, trivial, base):
        reason = (
            f"hardly predicts better than the rate of terminations: {float(own.mean()):.5f} nats per step, where the rate has "
            f"{base:.5f} and a logistic regression on z and the action {float(trivial.mean()):.5f}"
        )
    else:
        return []
    return [
        f"the termination head {reason}. Likely causes: too few episodes that terminate, too few updates, or a "
        f"termination_weight other than 1; calibrate it (calibrate=True, --calibrate) or collect more; see {PAGE}"
    ]


def reward_problems(predictions: Predictions) -> list[str]:
    """Say if M's mean reward explains little of the held-out variance that a linear regression explains."""
    reward, mean = predictions.reward, predictions.mean_reward
    if mean is None:
        return []
    variance = float(reward.var(correction=0))
    own, linear = (values.sub(reward).square() for values in (mean, predictions.trivial_reward))
    if variance <= 1e-12 * float(reward.square().mean()) or not _gains_little(own, linear, variance):
        return []
    return [
        f"the reward head has learnt little: its mean squared error is {float(own.mean()):.4g} on held-out steps, where a "
        f"linear regression on z and the action has {float(linear.mean()):.4g} (variance of the rewards {variance:.4g}). "
        f"Likely causes: too few updates, or rewards that are rare in the data; train longer or collect more; see {PAGE}"
    ]


def _gains_little(own: Tensor, trivial: Tensor, constant: float) -> bool:
    """Whether a loss (N,) is above that of a trivial model by most of what that gains over the best constant.

    The difference must exceed two standard errors, and the gain a hundredth of the constant's loss.
    """
    gain = constant - float(trivial.mean())
    difference = own - trivial
    clear = difference.mean() > 2 * difference.std() / len(difference) ** 0.5
    return bool(clear and gain > MARGIN * constant and own.mean() > constant - LEAST_SHARE * gain)


def world_problems(
    result: TrainingResult,
    baselines: Mapping[str, float],
    predictions: Predictions,
    posteriors: Iterable[tuple[Tensor, Tensor]],
    evaluate_every: int,
) -> list[str]:
    """Say which parts of a world model are in a bad state after `fit`.

    Args:
        result: how the training ended.
        baselines: held-out scores of trivial models.
        predictions: of M and of trivial models on held-out steps.
        posteriors: mean (N, D) and log-variance (N, D) of V for some held-out observations.
        evaluate_every: updates between evaluations.
    """
    return [
        *posterior_problems(posteriors),
        *loss_problems(result, evaluate_every=evaluate_every),
        *model_problems(result.best_metrics, baselines, dead_components(predictions)),
        *termination_problems(predictions),
        *reward_problems(predictions),
    ]


@torch.no_grad()
def posterior_problems(posteriors: Iterable[tuple[Tensor, Tensor]]) -> list[str]:
    """Say if V has collapsed, given mean (N, D) and log-variance (N, D) of observations; a V without noise has not."""
    mean, log_variance = (torch.cat(part) for part in zip(*posteriors, strict=True))
    noisy = ~log_variance.isneginf().all(dim=0)
    if not bool(noisy.any()):
        return []
    return vision_problems(latents_in_use(mean[:, noisy], log_variance[:, noisy]), int(noisy.sum()))


def record(problems: Sequence[str], provenance: dict[str, Any]) -> None:
    """Issue a warning for each problem and add them to the provenance as ``warnings``, if there is one."""
    if problems:
        provenance["warnings"] = warn(problems)
