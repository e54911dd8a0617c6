"""Trainings that end in a bad state: what is checked at the end, and the warning.

Nothing is judged before `LEAST_UPDATES` updates, or without held-out data: a short trial is not a failure.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from worldmodel.models import IN_USE, MDNRNN, SequenceBatch
from worldmodel.training.likelihood import MIN_TERMINATIONS, termination_logits, termination_scores
from worldmodel.training.loop import TrainingResult

LEAST_UPDATES = 200
MAX_JUDGED = 20  # held-out episodes that show whether V has collapsed
FEW_IN_USE = 8  # one latent in so many must be in use
MARGIN = 0.01  # nats by which a loss may exceed that of a trivial model
PAGE = "docs/explanations/calibration_and_trust.md"


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
        "docs/tutorials/pixels.md"
    ]


def loss_problems(result: TrainingResult, *, evaluate_every: int) -> list[str]:
    """Say if the held-out loss never improved after the first of at least three evaluations."""
    if result.best_update > evaluate_every or result.updates < 3 * evaluate_every:
        return []
    return [
        f"the held-out loss is lowest after update {result.best_update} of {result.updates} and rose from there. Likely "
        f"causes: a learning rate that is too high, or too few episodes; lower learning_rate or collect more; see {PAGE}"
    ]


def model_problems(metrics: Mapping[str, float], baselines: Mapping[str, float]) -> list[str]:
    """Say if M predicts z worse than a linear Gaussian that was fitted in one pass."""
    own, linear = metrics.get("nll_per_dim", math.nan), baselines.get("linear_gaussian", math.nan)
    if not own > linear + MARGIN:
        return []
    return [
        f"M predicts worse than a linear Gaussian: {own:.3f} nats per dimension of held-out z, not below {linear:.3f}. Likely "
        f"causes: too few updates, a learning rate that is too high or too low, or too few episodes; see {PAGE}"
    ]


@torch.no_grad()
def termination_problems(model: MDNRNN, batches: Iterable[SequenceBatch]) -> list[str]:
    """Say if the termination head predicts held-out terminations worse than their rate does."""
    if model.termination_head is None:
        return []
    logits, ended = termination_logits(model, batches)
    count, steps = float(ended.sum()), len(ended)
    if count < MIN_TERMINATIONS or count == steps:
        return []
    rate = count / steps
    base = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    own = termination_scores(logits, ended)["nll"]
    if not own > base * (1 + MARGIN):
        return []
    return [
        f"the termination head predicts worse than the rate of terminations: {own:.5f} nats per step, not below {base:.5f}. "
        "Likely causes: too few episodes that terminate, or a termination_weight other than 1; calibrate it (calibrate=True, "
        f"--calibrate) or collect more; see {PAGE}"
    ]


def world_problems(
    model: MDNRNN,
    result: TrainingResult,
    baselines: Mapping[str, float],
    batches: Callable[[], Iterable[SequenceBatch]],
    posteriors: Iterable[tuple[Tensor, Tensor]],
    evaluate_every: int,
) -> list[str]:
    """Say which parts of a world model are in a bad state after `fit`.

    Args:
        model: M, with the best weights.
        result: how the training ended.
        baselines: held-out scores of trivial models.
        batches: makes the held-out batches of an evaluation.
        posteriors: mean (N, D) and log-variance (N, D) of V for some held-out observations.
        evaluate_every: updates between evaluations.
    """
    return [
        *posterior_problems(posteriors),
        *loss_problems(result, evaluate_every=evaluate_every),
        *model_problems(result.best_metrics, baselines),
        *termination_problems(model.eval(), batches()),
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
