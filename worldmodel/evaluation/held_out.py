"""Likelihood of episodes that a world model was not trained on, by kind of what it predicts; no environment is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from worldmodel.data import EpisodeCollection
from worldmodel.mixtures import (
    COPIED,
    LIKELIHOODS,
    LatentDistribution,
    count_observed,
    log_probs_by_kind,
    marginal_log_probs,
)
from worldmodel.models import (
    Filled,
    SequenceBatch,
    State,
    Vision,
    WorldModel,
    encode_episodes,
    encoded_form,
    fill_missing,
    gather,
    open_world,
)
from worldmodel.runtime import Progress, RunConfig, check_integer
from worldmodel.spaces import known_leaves

BATCH_EPISODES, BATCH_STEPS = 64, 64  # predicted at once
UNITS = {**LIKELIHOODS, "reward_nll": "nats per reward", "termination_nll": "nats per termination or not"}


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of held-out episodes.

    Args:
        nats: mean of each kind, in the unit of `UNITS`: per observed number, choice or bit, per reward or step.
        standard_errors: of these means, over episodes; NaN for one episode.
        nats_per_step: the sum of all kinds, per step.
        num_episodes: number of episodes.
        num_steps: number of steps.
        changed_constants: share of the steps in which a number changed that was constant in training; the model says that this
            is impossible, and the other figures leave it out.
    """

    nats: dict[str, float]
    standard_errors: dict[str, float]
    nats_per_step: float
    num_episodes: int
    num_steps: int
    changed_constants: float

    def __str__(self) -> str:
        """Return a table."""
        rows = [f"{value:9.4f} +- {self.standard_errors[name]:.4f}  {UNITS[name]}" for name, value in self.nats.items()]
        rows.append(f"{self.nats_per_step:9.4f}            nats per step, all together")
        if self.changed_constants:
            rows.append(f"constants of the training data changed in {100 * self.changed_constants:.2g} % of the steps")
        return "\n".join([f"held-out negative log-likelihood, {self.num_episodes} episodes, {self.num_steps} steps", *rows])

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON-serialisable data."""
        return dict(vars(self))


@torch.no_grad()
def likelihood(
    world: WorldModel | str | Path, store: str | Path | Sequence[str | Path], *, seed: int = 0, run: RunConfig | None = None
) -> Likelihood:
    r"""Compute the negative log-likelihood of all steps of episodes, each given everything before it.

    For every step of every episode :math:`-\log p(z_{t+1}, r_t, d_t \mid z_{\le t}, a_{\le t})`, with M's state carried from
    the beginning of the episode. Densities are those of z; the units of z depend on V, so compare models with the same V. Of a
    z with missing numbers it is the marginal density of the observed ones, given those observed before.

    Args:
        world: the world model, or its directory.
        store: path of a store, or several: another day, another robot. Its spaces are those of the world; see
            `worldmodel.data.ConversionConfig.like`.
        seed: seed of the samples of z, if V has noise.
        run: how progress is shown; stage "likelihood", in episodes.

    Returns:
        The likelihood by kind.

    Raises:
        ValueError: if the spaces are not those of the world.
    """
    world = open_world(world)
    episodes, reader = open_held_out(world, store)
    generator = torch.Generator(world.device).manual_seed(check_integer(seed, "seed", least=0))
    sums: dict[str, list[np.ndarray]] = {}
    counts: dict[str, list[np.ndarray]] = {}
    steps, changed, done = [], 0.0, 0
    order = np.argsort(-episodes.lengths, kind="stable")
    with (run or RunConfig()).reporter() as report:
        for first in range(0, len(order), BATCH_EPISODES):
            chosen = order[first : first + BATCH_EPISODES]
            found, moved = _batch(world, episodes, reader, chosen, generator)
            for name, (total, count) in found.items():
                sums.setdefault(name, []).append(total)
                counts.setdefault(name, []).append(count)
            steps.append(episodes.lengths[chosen])
            changed, done = changed + moved, done + len(chosen)
            report(Progress("likelihood", done, len(order), "episode"))
    totals, variables = ({name: np.concatenate(parts) for name, parts in each.items()} for each in (sums, counts))
    return _result(totals, variables, np.concatenate(steps), changed)


def open_held_out(
    world: WorldModel, store: str | Path | Sequence[str | Path], *, min_length: int = 1
) -> tuple[EpisodeCollection, Vision]:
    """Open stores of a world's observations, or of their encodings, and return the V that reads them.

    Raises:
        ValueError: if the spaces are not those of the world.
    """
    first = EpisodeCollection.open(store, min_length=min_length)
    left = known_leaves(first.observation_space, world.left_out)
    episodes = EpisodeCollection(first.stores, min_length=min_length, leave_out=left) if left else first
    episodes.reads_time = episodes.reads_time and world.mdnrnn.extras.sees_time
    encoded = encoded_form(episodes.stores, world.vision)
    space = episodes.observation_space if encoded is None else world.observation_space
    source = ", ".join(str(one.path) for one in episodes.stores)
    try:
        world.check_spaces(space, episodes.action_space, source=source)
    except ValueError as error:
        converted = all("conversion" in one.recipe for one in episodes.stores)
        hint = (
            "; convert the data with the spaces of the training data (ConversionConfig(like=...), --like)" if converted else ""
        )
        raise ValueError(f"{error}{hint}") from error
    return episodes, world.vision if encoded is None else encoded.to(world.device)


def _batch(
    world: WorldModel, episodes: EpisodeCollection, reader: Vision, chosen: np.ndarray, generator: torch.Generator
) -> tuple[dict[str, np.ndarray], float]:
    """Return sums over the steps of episodes, longest first, by kind, and the steps in which a constant changed.

    A sum is (2, episodes): negative log-likelihoods in nats, and the number of random variables.
    """
    lengths = episodes.lengths[chosen]
    totals: dict[str, np.ndarray] = {}
    moved, state, before = 0.0, None, None
    for start in range(0, int(lengths[0]), BATCH_STEPS):
        running = int((lengths > start).sum())
        stops = np.minimum(start + BATCH_STEPS, lengths[:running])
        parts = [episodes.read(int(i), start, int(stop)) for i, stop in zip(chosen[:running], stops, strict=True)]
        steps = encode_episodes(parts, reader, world.action_features)
        count = stops - start
        first = np.cumsum(count) - count
        batch = gather(steps, first + np.arange(running), first, count, np.zeros_like(count), generator=generator)
        if state is not None:
            state = State(*(part[:, :running].contiguous() for part in state))
        before = fill_missing(world.mdnrnn, batch.z, batch.action, state, before=before)
        found, changed, state = _predict(world, batch, before, state)
        moved += changed
        for name, value in found.items():
            totals.setdefault(name, np.zeros((2, len(chosen))))[:, :running] += value.double().cpu().numpy()
    return totals, moved


def _predict(
    world: WorldModel, batch: SequenceBatch, filled: Filled, state: State | None
) -> tuple[dict[str, Tensor], float, State]:
    """Return sums over the steps of a batch by kind (2, B), the steps in which a constant changed, and M's state."""
    model, mask = world.mdnrnn, batch.mask
    prediction, state = model(filled.z[:, :-1], filled.action, state)
    after, observed = filled.z[:, 1:], filled.observed[:, 1:]
    nats, counts = step_nats(prediction.latent, after, observed)
    outcome = prediction.outcome(after)
    if outcome.reward is not None:
        nats["reward_nll"] = -outcome.reward.log_prob(batch.reward.unsqueeze(-1))
    if outcome.termination_logit is not None:
        ended = batch.terminated.to(after.dtype)
        nats["termination_nll"] = functional.binary_cross_entropy_with_logits(
            outcome.termination_logit, ended, reduction="none"
        )
    copied = [] if model.layout is None else model.layout.columns(*COPIED)
    both = observed & filled.observed[:, :-1]
    changed = (((after != filled.z[:, :-1]) & both)[..., copied].any(dim=-1) & mask).sum().item()
    one = torch.ones_like(mask, dtype=torch.int64)
    pairs = {name: torch.stack([value.double(), counts.get(name, one).double()]) for name, value in nats.items()}
    return {name: torch.where(mask, pair, 0.0).sum(dim=-1) for name, pair in pairs.items()}, changed, state


def step_nats(latent: LatentDistribution, after: Tensor, observed: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return negative log-likelihood and number of the observed random variables of each step by kind, (B, T) each."""
    found = log_probs_by_kind(latent, after) if bool(observed.all()) else marginal_log_probs(latent, after, observed)
    return {name: -value for name, value in found.items()}, count_observed(latent, observed)


def _result(sums: dict[str, np.ndarray], counts: dict[str, np.ndarray], steps: np.ndarray, changed: float) -> Likelihood:
    total, n = int(steps.sum()), len(steps)
    nats, errors = {}, {}
    for name, value in sums.items():
        variables = max(float(counts[name].sum()), 1.0)
        nats[name] = float(value.sum() / variables)
        residual = value - nats[name] * counts[name]
        errors[name] = float(np.sqrt((residual**2).sum() * n / (n - 1)) / variables) if n > 1 else float("nan")
    per_step = float(sum(value.sum() for value in sums.values()) / total)
    return Likelihood(nats, errors, per_step, n, total, changed / total)


def windows_of(episodes: EpisodeCollection, length: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield episode and first step of at most ``most`` windows of ``length`` steps, spread evenly over the episodes.

    Windows of an episode follow each other without overlap.
    """
    counts = episodes.lengths // length
    total = int(counts.sum())
    number = min(most, total)
    ends = np.cumsum(counts)
    for k in range(number):
        which = k * total // number
        episode = int(np.searchsorted(ends, which, side="right"))
        yield episode, int(which - (ends[episode] - counts[episode])) * length
