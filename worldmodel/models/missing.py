r"""Episodes in which numbers of z are missing (NaN): what M reads in their place, and its loss of what was observed.

In place of a missing number M reads its mean, given the numbers that were observed in the same step, by M's own prediction of
that step (`worldmodel.mixtures.mean_given`), and an indicator that it is missing. So what M reads is a function of what was
observed before, and by the chain rule the sum over the steps

.. math:: \log p(x_{o}) = \sum_t \log p(x_{t,o} \mid x_{<t,o})

is the exact log-likelihood of the observed numbers under a distribution of them alone; `worldmodel.mixtures.marginal_log_prob`
has each term. Samples in place of means would add noise that M must learn to ignore (dev/LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from worldmodel.mixtures import (
    LatentDistribution,
    LatentHead,
    LatentLayout,
    PartKind,
    RewardHead,
    TerminationHead,
    count_observed,
    marginal_log_probs,
    mean_given,
    sample_given,
)
from worldmodel.models.batch import SequenceBatch, hold_last
from worldmodel.models.extra_inputs import ExtraInputs
from worldmodel.models.outcome import Prediction
from worldmodel.rng import Source


class Model(Protocol):
    """What these functions need of M; `worldmodel.models.MDNRNN` describes it."""

    extras: ExtraInputs
    action_size: int
    latent_low: Tensor
    latent_high: Tensor
    reward_head: RewardHead | None
    termination_head: TerminationHead | None

    def initial_state(self, batch_size: int) -> Any:
        """Return the state at the start of an episode."""
        ...

    def step(self, z: Tensor, action: Tensor, state: Any) -> tuple[Prediction, Any]:
        """Predict one step."""
        ...

    def __call__(
        self, z: Tensor, action: Tensor, state: Any = None, *, generator: torch.Generator | None = None
    ) -> tuple[Prediction, Any]:
        """Predict each step of sequences."""
        ...


class Filled(NamedTuple):
    """Steps whose missing numbers are filled.

    Args:
        z: (B, T + 1, D) without NaN.
        action: (B, T, A + E) action features, followed by M's extra inputs.
        observed: (B, T + 1, D) bool, True where the number was observed.
    """

    z: Tensor
    action: Tensor
    observed: Tensor


@torch.no_grad()
def fill_missing(
    model: Model,
    z: Tensor,
    action: Tensor,
    state: Any = None,
    *,
    before: Filled | None = None,
    generator: Source = None,
) -> Filled:
    """Fill the missing numbers of z by their means given the observed ones, step by step.

    The first z of all has no prediction; its missing numbers become 0, the mean of the data.

    Args:
        model: M.
        z: (B, T + 1, D); NaN where a number is missing.
        action: (B, T, A) action features, or with the time of the step (B, T, A + 1).
        state: M's state before the first step; zeros if None.
        before: what was returned for the steps before these, at least for B rows; its last z takes the place of the first one.
        generator: samples the missing numbers of the last z, from which dreams may begin; None: their means there, too.

    Raises:
        ValueError: if a number is missing that M knows only as complete.
    """
    observed, rows = ~z.isnan(), [torch.where(z[:, 0].isnan(), 0.0, z[:, 0])]
    if before is not None:
        observed[:, 0], rows = before.observed[: len(z), -1], [before.z[: len(z), -1]]
    check_maskable(model, observed)
    action = with_indicators(model, action, observed[:, :-1])
    if bool(observed[:, 1:].all()):
        return Filled(torch.cat([rows[0].unsqueeze(1), z[:, 1:]], dim=1), action, observed)
    state = model.initial_state(len(z)) if state is None else state
    for t in range(action.shape[1]):
        prediction, state = model.step(rows[-1], action[:, t], state)
        last = generator if t == action.shape[1] - 1 else None
        rows.append(fill_step(model, prediction.latent, z[:, t + 1], generator=last))
    return Filled(torch.stack(rows, dim=1), action, observed)


def fill_step(model: Model, latent: LatentDistribution, z: Tensor, *, generator: Source = None) -> Tensor:
    """Fill the missing numbers (NaN) of one step.

    Args:
        model: M.
        latent: its prediction of z, batch shape (B,).
        z: (B, D).
        generator: source of samples; None: their means.
    """
    observed = ~z.isnan()
    fill = mean_given if generator is None else partial(sample_given, generator=generator)
    filled = fill(latent, z, observed)
    return torch.where(observed, z, filled.clamp(model.latent_low, model.latent_high))


def with_indicators(model: Model, action: Tensor, observed: Tensor) -> Tensor:
    """Append the indicators of the missing numbers to action features.

    Args:
        model: M.
        action: (..., A), or with the time of the step (..., A + 1).
        observed: (..., D) bool, of the z in which the action is taken.
    """
    extras = model.extras
    if not extras.maskable:
        return action
    if extras.usual_time is not None and action.shape[-1] == model.action_size:
        action = torch.cat([action, torch.full_like(observed[..., :1], extras.usual_time, dtype=action.dtype)], dim=-1)
    return torch.cat([action, (~observed[..., list(extras.maskable)]).to(action.dtype)], dim=-1)


def check_maskable(model: Model, observed: Tensor) -> None:
    """Raise unless every missing number (..., D) is one that may be missing.

    Raises:
        ValueError: naming the first one that may not.
    """
    lacking = (~observed).flatten(0, -2).any(dim=0)
    lacking[list(model.extras.maskable)] = False
    if bool(lacking.any()):
        column = int(lacking.nonzero()[0])
        raise ValueError(
            f"z: expected number {column} to be observed in every row, as in the data that M was trained on, got NaN; train on "
            "data in which it is missing, too, or fill it (missing='interpolate')"
        )


def check_head(head: LatentHead, extras: ExtraInputs) -> None:
    """Raise if numbers may be missing and a latent head does not know the distribution of the others.

    Raises:
        ValueError: naming the head.
    """
    if extras.maskable and not head.has_conditionals:
        raise ValueError(
            f"latent_head: expected one with conditionals in closed form, such as 'MixtureHead', as numbers of z may be "
            f"missing, got {type(head).__name__!r}; or fill the data (missing='interpolate')"
        )


def filled_batches(model: Model, batches: Iterable[SequenceBatch]) -> Iterator[SequenceBatch]:
    """Fill the missing numbers of batches as `fill_missing` does; batches of other models stay as they are."""
    for batch in batches:
        if model.extras.maskable:
            filled = fill_missing(model, batch.z, batch.action)
            yield replace(batch, z=filled.z, action=filled.action)
        else:
            yield batch


def held_batches(model: Model, batches: Iterable[SequenceBatch], *, complete: bool = True) -> Iterator[SequenceBatch]:
    """Fill the missing numbers of batches by the last observed ones.

    It needs no trained model, so it is for statistics, baselines and initial weights.

    Args:
        model: M; batches of one without missing numbers stay as they are.
        batches: the batches.
        complete: whether only steps to a complete z count.
    """
    for batch in batches:
        if model.extras.maskable:
            observed = ~batch.z.isnan()
            mask = batch.mask & observed[:, 1:].all(dim=-1) if complete else batch.mask
            action = with_indicators(model, batch.action, observed[:, :-1])
            yield replace(batch, z=hold_last(batch.z), action=action, mask=mask)
        else:
            yield batch


class MaskedTerms(NamedTuple):
    """Losses of each step of a batch, (B, T) each, of what was observed.

    Args:
        latent: negative log-likelihood of the observed numbers, by kind.
        counts: how many random variables these are, by kind.
        reward: of the reward; zeros without the head.
        termination: of the termination; zeros without the head.
    """

    latent: dict[str, Tensor]
    counts: dict[str, Tensor]
    reward: Tensor
    termination: Tensor

    @property
    def total_latent(self) -> Tensor:
        """Sum over all kinds, (B, T)."""
        return torch.stack([torch.zeros_like(self.reward), *self.latent.values()]).sum(dim=0)


def masked_terms(model: Model, batch: SequenceBatch, generator: torch.Generator | None = None) -> MaskedTerms:
    """Compute the losses of each step of a batch whose z may have missing numbers."""
    filled = fill_missing(model, batch.z, batch.action)
    prediction, _ = model(filled.z[:, :-1], filled.action, generator=generator)
    after, seen = filled.z[:, 1:], filled.observed[:, 1:]
    latent = {name: -value for name, value in marginal_log_probs(prediction.latent, after, seen).items()}
    outcome = prediction.outcome(after)
    reward = termination = after.new_zeros(after.shape[:-1])
    if outcome.reward is not None:
        reward = -outcome.reward.log_prob(batch.reward.unsqueeze(-1))
    if outcome.termination_logit is not None:
        assert model.termination_head is not None
        termination = model.termination_head.loss(outcome.termination_logit, batch.terminated)
    return MaskedTerms(latent, count_observed(prediction.latent, seen), reward, termination)


def masked_loss(
    model: Model, batch: SequenceBatch, generator: torch.Generator | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`MDNRNN.loss` of a batch whose z may have missing numbers; the latent loss is an average over observed variables."""
    terms, mask = masked_terms(model, batch, generator), batch.mask
    sums = {name: torch.where(mask, value, 0.0).sum() for name, value in terms.latent.items()}
    counts = {name: torch.where(mask, value, 0).sum().clamp(min=1) for name, value in terms.counts.items()}
    steps = mask.sum().clamp(min=1)
    reward, termination = (torch.where(mask, value, 0.0).sum() / steps for value in (terms.reward, terms.termination))
    variables = torch.stack([torch.zeros_like(steps), *counts.values()]).sum().clamp(min=1)
    latent = torch.where(mask, terms.total_latent, 0.0).sum() / variables
    metrics = {name: sums[name].detach() / counts[name] for name in sums}
    if model.reward_head is not None:
        metrics["reward_nll"] = reward.detach()
    if model.termination_head is not None:
        metrics["termination_loss"] = termination.detach()
    return latent + reward + termination, metrics


def maskable_columns(layout: LatentLayout, missing: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Return the columns of z that are missing where numbers of the observation are.

    Args:
        layout: the parts of z.
        missing: numbers of the observation that may be missing, by leaf (`worldmodel.data.EpisodeCollection.missing`).
    """
    columns: list[int] = []
    for part in layout.parts:
        if part.kind is not PartKind.IMAGE:
            width = part.size // part.count  # numbers of z for each number of the leaf
            inside = (index - part.first for index in missing.get(part.path, ()))
            starts = [part.start + place * width for place in inside if 0 <= place < part.count]
            columns += [start + column for start in starts for column in range(width)]
    return tuple(sorted(columns))
