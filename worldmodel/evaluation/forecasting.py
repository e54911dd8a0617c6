"""Open-loop forecasts of recorded episodes: error, CRPS and coverage by step, against repeating the last observation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data import EpisodeCollection
from worldmodel.dream import Dreams, LatentState, primed_states
from worldmodel.evaluation.held_out import open_held_out, windows_of
from worldmodel.mixtures import DENSITIES, PartKind
from worldmodel.models import (
    State,
    Vision,
    WorldModel,
    draw_latent,
    encode_episodes,
    fill_missing,
    hold_last,
    open_world,
)
from worldmodel.runtime import Progress, RunConfig, check_integer

TAIL = 0.05  # on each side of the interval whose coverage is measured
ROWS = 4096  # dreams at once
NUMBERS = (*DENSITIES, PartKind.MOSTLY_UNCHANGED)
CHOICES = (PartKind.CHOICE, PartKind.BITS)


def crps(samples: Tensor, value: Tensor) -> Tensor:
    r"""Estimate the continuous ranked probability score of a forecast from its samples, without bias.

    :math:`E|X - y| - \tfrac12 E|X - X'|`, the second mean over pairs of different samples (the "fair" estimator, Ferro 2014).
    For a point forecast it is the absolute error. Smaller is better; the unit is that of y.

    Args:
        samples: (K, ...) samples of the forecast, K >= 2.
        value: (...) what happened.

    Returns:
        (...).

    Raises:
        ValueError: if there are fewer than two samples.
    """
    count = samples.shape[0]
    if count < 2:
        raise ValueError(f"samples: expected at least two, got {count}")
    ordered = samples.sort(dim=0).values
    rank = torch.arange(1, count + 1, dtype=samples.dtype, device=samples.device).reshape(-1, *(1,) * value.ndim)
    spread = ((2 * rank - count - 1) * ordered).sum(dim=0) / (count * (count - 1))  # half of E|X - X'|
    return (samples - value).abs().mean(dim=0) - spread


@dataclass(frozen=True)
class OpenLoop:
    """Forecasts of 1 to H steps; errors of numbers are in units of their standard deviation over the data.

    Args:
        error: (H,) root mean squared error of the mean of the dreams.
        crps: (H,) continuous ranked probability score, averaged over numbers.
        coverage: (H,) share of the numbers within the interval of the dreams.
        nominal: share that would be right.
        repeat_last_error: (H,) error of the last observation before the forecast.
        repeat_last_crps: (H,) its score, which is its absolute error.
        choice_error: (H,) share of the choices and bits that dreams get wrong; None if there are none.
        repeat_last_choice_error: (H,) the same for the last observation.
        crps_by_number: name of each part of z -> (H,) its score.
        num_forecasts: number of forecasts.
    """

    error: np.ndarray
    crps: np.ndarray
    coverage: np.ndarray
    nominal: float
    repeat_last_error: np.ndarray
    repeat_last_crps: np.ndarray
    choice_error: np.ndarray | None
    repeat_last_choice_error: np.ndarray | None
    crps_by_number: dict[str, np.ndarray]
    num_forecasts: int

    def __str__(self) -> str:
        """Return a table of some steps."""
        horizon = len(self.error)
        steps = sorted({1, 2, 5, 10, 20, 50, 100, 200, 500, horizon} & set(range(1, horizon + 1)))
        columns = {
            "error": self.error,
            "repeat last": self.repeat_last_error,
            "CRPS": self.crps,
            "repeat last ": self.repeat_last_crps,
            f"within {self.nominal:.0%}": self.coverage,
        }
        if self.choice_error is not None and self.repeat_last_choice_error is not None:
            columns |= {"wrong choices": self.choice_error, "repeat last  ": self.repeat_last_choice_error}
        lines = [f"open loop, {self.num_forecasts} forecasts, in standard deviations of the data"]
        lines.append("step" + "".join(f"{name:>15}" for name in columns))
        lines += [f"{step:4d}" + "".join(f"{value[step - 1]:15.3f}" for value in columns.values()) for step in steps]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON-serialisable data."""
        listed = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}
        return {**listed, "crps_by_number": {name: value.tolist() for name, value in self.crps_by_number.items()}}


@torch.no_grad()
def open_loop(
    world: WorldModel | str | Path,
    store: str | Path | Sequence[str | Path],
    burn_in: int = 10,
    horizon: int = 50,
    *,
    num_dreams: int = 99,
    num_forecasts: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    run: RunConfig | None = None,
) -> OpenLoop:
    """Dream the continuation of recorded episodes under their actions, and compare with what happened.

    M is primed with ``burn_in`` real steps; then it dreams ``horizon`` steps without seeing an observation. Terminations are
    ignored. Numbers are compared in z, so images by their latents.

    Args:
        world: the world model, or its directory.
        store: path of a store, or several, with the spaces of the world.
        burn_in: steps before the forecast, >= 0.
        horizon: H, steps of the forecast.
        num_dreams: K, dreams of each forecast; 99 make an interval of exactly 90 %.
        num_forecasts: most forecasts, spread evenly over the episodes.
        temperature: of the dreams; 1 is what M learned.
        seed: seed of the dreams.
        run: how progress is shown; stage "open loop", in forecasts.

    Returns:
        The scores by step.

    Raises:
        ValueError: if no episode has ``burn_in + horizon`` steps, or the spaces are not those of the world.
    """
    world, burn_in = open_world(world), check_integer(burn_in, "burn_in", least=0)
    horizon, num_dreams = check_integer(horizon, "horizon", least=1), check_integer(num_dreams, "num_dreams", least=19)
    length = burn_in + horizon
    episodes, reader = open_held_out(world, store)
    chosen = list(windows_of(episodes, length, check_integer(num_forecasts, "num_forecasts", least=1)))
    if not chosen:
        longest = int(episodes.lengths.max())
        raise ValueError(
            f"burn_in, horizon: expected at most {longest} steps together, as the longest episode has, got {length}"
        )
    deviation = _deviation(episodes, reader, world, chosen, length)
    at_once = max(1, ROWS // num_dreams)
    scores = _Scores(world, deviation, horizon)
    with (run or RunConfig()).reporter() as report:
        for first in range(0, len(chosen), at_once):
            part = chosen[first : first + at_once]
            dreams = Dreams(world, len(part) * num_dreams, temperature=temperature)
            generator = dreams.generator(check_integer(seed, "seed", least=0) + first)
            _forecast(dreams, episodes, reader, part, burn_in, horizon, generator, scores)
            report(Progress("open loop", first + len(part), len(chosen), "forecast"))
    return scores.result(len(chosen))


def _deviation(
    episodes: EpisodeCollection, reader: Vision, world: WorldModel, chosen: Sequence[tuple[int, int]], length: int
) -> Tensor:
    """Return the standard deviation of each number of z over the windows, (D,)."""
    count, mean, squares = 0, torch.zeros(0), torch.zeros(0)
    for episode, start in chosen:
        z = encode_episodes([episodes.read(episode, start, start + length)], reader, world.action_features).mean.double()
        z = hold_last(z.unsqueeze(0))[0]
        if count == 0:
            mean, squares = torch.zeros_like(z[0]), torch.zeros_like(z[0])
        delta = z.mean(dim=0) - mean
        squares += (z - z.mean(dim=0)).square().sum(dim=0) + delta.square() * count * len(z) / (count + len(z))
        mean, count = mean + delta * len(z) / (count + len(z)), count + len(z)
    return (squares / count).sqrt().to(world.start_mean.dtype)


def _forecast(
    dreams: Dreams,
    episodes: EpisodeCollection,
    reader: Vision,
    part: Sequence[tuple[int, int]],
    burn_in: int,
    horizon: int,
    generator: torch.Generator,
    scores: _Scores,
) -> None:
    """Dream S forecasts and score each step."""
    world, size = dreams.world, len(part)
    repeats = dreams.batch_size // size
    read = [episodes.read(episode, start, start + burn_in + horizon) for episode, start in part]
    steps = encode_episodes(read, reader, world.action_features)
    mean = steps.mean.reshape(size, burn_in + horizon + 1, -1)
    log_variance = steps.log_variance.reshape(mean.shape)
    action = steps.action.reshape(size, burn_in + horizon, -1)
    seen = draw_latent(mean[:, : burn_in + 1], log_variance[:, : burn_in + 1], generator=generator)
    incomplete = bool(seen.isnan().any())
    known = [part.repeat_interleave(repeats, dim=0) if incomplete else part for part in (seen, action[:, :burn_in])]
    filled = fill_missing(world.mdnrnn, *known, generator=generator)  # what is missing in the last z differs between dreams
    *_, lstm = primed_states(world.mdnrnn, filled.z, filled.action)
    z = filled.z[:, -1]
    if not incomplete:
        z, lstm = z.repeat_interleave(repeats, dim=0), State(*(one.repeat_interleave(repeats, dim=1) for one in lstm))
    last = hold_last(mean)[:, burn_in]
    alive = torch.ones(len(z), dtype=torch.bool, device=z.device)
    for step in range(horizon):
        given = action[:, burn_in + step].repeat_interleave(repeats, dim=0)
        z, lstm, _, _ = dreams.draw(LatentState(z, lstm, alive), given, generator=generator)
        scores.add(step, z.reshape(size, repeats, -1).transpose(0, 1), mean[:, burn_in + 1 + step], last)


class _Scores:
    """Sums of the scores of each step.

    Args:
        world: whose z is scored.
        deviation: (D,) units of the numbers.
        horizon: H.
    """

    def __init__(self, world: WorldModel, deviation: Tensor, horizon: int):
        layout, varies = world.layout, (deviation > 0).tolist()
        self._columns = [column for column in layout.columns(*NUMBERS) if varies[column]]
        self._groups = [list(range(part.start, part.stop)) for part in layout.parts if part.kind is PartKind.CHOICE]
        self._groups += [[column] for column in layout.columns(PartKind.BITS)]
        position = {column: i for i, column in enumerate(self._columns)}
        parts = {part.name or "observation": range(part.start, part.stop) for part in layout.parts}
        named = {name: [position[column] for column in columns if column in position] for name, columns in parts.items()}
        self._named = {name: columns for name, columns in named.items() if columns}
        self._unit = deviation[self._columns]
        self._sums: dict[str, np.ndarray] = {}
        self._weight: dict[str, np.ndarray] = {}
        self._horizon = horizon
        self._nominal = 0.0

    def add(self, step: int, samples: Tensor, real: Tensor, last: Tensor) -> None:
        """Add samples (K, S, D) of a step, what happened (S, D), and the last observation before the forecast (S, D).

        Missing numbers (NaN) of what happened do not count.
        """
        if self._columns:
            dreamed, truth, repeated = (z[..., self._columns].double() / self._unit for z in (samples, real, last))
            cut, count = round(TAIL * (len(samples) + 1)), len(samples)  # so many samples lie outside on each side
            self._nominal = 1 - 2 * cut / (count + 1)
            below = (dreamed < truth).sum(dim=0) + 0.5 * (dreamed == truth).sum(dim=0)  # a number that stays equal is within
            self._add("error", step, (dreamed.mean(dim=0) - truth).square())
            self._add("crps", step, crps(dreamed, truth))
            within = ((below >= cut) & (below <= count - cut)).double()
            self._add("coverage", step, torch.where(truth.isnan(), torch.nan, within))
            self._add("repeat_last_error", step, (repeated - truth).square())
            self._add("repeat_last_crps", step, (repeated - truth).abs())
        if self._groups:
            decided = [torch.stack([_decided(z[..., group]) for group in self._groups], dim=-1) for z in (samples, real, last)]
            unknown = torch.stack([real[..., group[0]].isnan() for group in self._groups], dim=-1)
            wrong = (decided[0] != decided[1]).double().mean(dim=0), (decided[2] != decided[1]).double()
            for name, value in zip(("choice_error", "repeat_last_choice_error"), wrong, strict=True):
                self._add(name, step, torch.where(unknown, torch.nan, value))

    def _add(self, name: str, step: int, value: Tensor) -> None:
        """Add scores (S, N); NaN does not count."""
        for sums, added in ((self._sums, value.nansum(dim=0)), (self._weight, (~value.isnan()).sum(dim=0))):
            sums.setdefault(name, np.zeros((self._horizon, len(added))))[step] += added.cpu().numpy()

    def result(self, num_forecasts: int) -> OpenLoop:
        """Return the averages."""
        means = {name: total / np.maximum(self._weight[name], 1) for name, total in self._sums.items()}  # (H, N)
        scores = {name: mean.mean(axis=1) for name, mean in means.items()}
        nothing = np.full(self._horizon, np.nan)  # if all numbers are choices or constant
        return OpenLoop(
            error=np.sqrt(scores.get("error", nothing)),
            crps=scores.get("crps", nothing),
            coverage=scores.get("coverage", nothing),
            nominal=self._nominal,
            repeat_last_error=np.sqrt(scores.get("repeat_last_error", nothing)),
            repeat_last_crps=scores.get("repeat_last_crps", nothing),
            choice_error=scores.get("choice_error"),
            repeat_last_choice_error=scores.get("repeat_last_choice_error"),
            crps_by_number={name: means["crps"][:, columns].mean(axis=1) for name, columns in self._named.items()},
            num_forecasts=num_forecasts,
        )


def _decided(z: Tensor) -> Tensor:
    """Return the choice of one-hot numbers or the value of a bit: (..., n) -> (...)."""
    return z.argmax(dim=-1) if z.shape[-1] > 1 else (z[..., 0] > 0.5).long()
