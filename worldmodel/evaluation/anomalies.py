"""How surprised a world model is by each sensor at each step of an episode, and from when on that is a fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldmodel.data import Episode
from worldmodel.evaluation.held_out import open_held_out
from worldmodel.mixtures import COPIED, LatentPart, PartKind, log_prob_of_numbers
from worldmodel.models import Vision, WorldModel, draw_latent, encode_episodes, fill_missing, open_world
from worldmodel.runtime import Progress, RunConfig, check_integer, check_number


@dataclass(frozen=True)
class Threshold:
    """Nats above which a sensor's surprise is an alarm; `calibrate_surprise` makes it.

    Args:
        sensors: names of the S sensors.
        nats: (S,) thresholds; infinite where the held-out data are too few for the rate.
        false_alarm_rate: largest expected share of the steps of fault-free episodes that raise an alarm, for each sensor.
        num_steps: (S,) steps of held-out data behind each.
    """

    sensors: tuple[str, ...]
    nats: np.ndarray
    false_alarm_rate: float
    num_steps: np.ndarray


@dataclass(frozen=True)
class Surprise:
    """Surprise of an episode of L steps at S sensors.

    Args:
        sensors: names of the sensors: the numbers of the observation; a choice is one, and so is an image.
        nats: (L + 1, S) negative log-likelihood of what each sensor showed, given all that was observed before that step. NaN
            for the first observation and for missing numbers; infinite if a constant changed. Densities are those of z.
        alarms: (L + 1, S) bool, where the nats exceed the threshold; None without one.
    """

    sensors: tuple[str, ...]
    nats: np.ndarray
    alarms: np.ndarray | None = None

    def __str__(self) -> str:
        """Return a table of the sensors."""
        width = max(map(len, self.sensors))
        with np.errstate(invalid="ignore"):
            mean, most = (function(self.nats[1:], axis=0) for function in (np.nanmean, np.nanmax))
        lines = [f"surprise in nats, {len(self.nats) - 1} steps", f"{'sensor':{width}}      mean   largest  alarms"]
        counts = [""] * len(self.sensors) if self.alarms is None else self.alarms.sum(axis=0).tolist()
        rows = zip(self.sensors, mean, most, counts, strict=True)
        lines += [f"{name:{width}} {average:9.3f} {largest:9.3f}  {count}" for name, average, largest, count in rows]
        return "\n".join(lines)


@torch.no_grad()
def surprise(
    world: WorldModel | str | Path, episode: Episode, *, threshold: Threshold | None = None, seed: int = 0
) -> Surprise:
    """Compute how surprising each sensor of an episode is, step by step.

    The nats of a sensor are those of its marginal distribution, so that a fault of one sensor is not blamed on another of the
    same step. (With an ``AutoregressiveHead`` they are given the sensors before it in z.)

    Args:
        world: the world model, or its directory.
        episode: the episode, with observations of the world's space; numbers that may be missing may be NaN.
        threshold: from `calibrate_surprise`, to find alarms.
        seed: seed of the samples of z, if V has noise.

    Returns:
        The surprise of each sensor at each observation.

    Raises:
        ValueError: if the threshold is of other sensors.
    """
    world = open_world(world)
    found = _surprise(world, world.vision, episode, seed)
    if threshold is None:
        return found
    if threshold.sensors != found.sensors:
        raise ValueError(f"threshold: expected one of the sensors {list(found.sensors)}, got one of {list(threshold.sensors)}")
    return Surprise(found.sensors, found.nats, found.nats > threshold.nats)


@torch.no_grad()
def calibrate_surprise(
    world: WorldModel | str | Path,
    store: str | Path | Sequence[str | Path],
    *,
    false_alarm_rate: float = 0.01,
    seed: int = 0,
    run: RunConfig | None = None,
) -> Threshold:
    """Find the surprise above which a sensor shall raise an alarm, from fault-free episodes that M was not trained on.

    Of n steps of a sensor the threshold is the k-th smallest surprise, k = ceil((n + 1) (1 - rate)). A further step of the same
    distribution exceeds it with a probability of at most the rate (conformal prediction; Vovk et al. 2005).

    Args:
        world: the world model, or its directory.
        store: path of a store, or several, with the spaces of the world.
        false_alarm_rate: for each sensor and step, in (0, 1).
        seed: seed of the samples of z, if V has noise.
        run: how progress is shown; stage "calibrate", in episodes.

    Raises:
        ValueError: if the rate is out of range, or the spaces are not those of the world.
    """
    world, rate = open_world(world), float(check_number(false_alarm_rate, "false_alarm_rate", "(0, 1)"))
    episodes, reader = open_held_out(world, store)
    parts = []
    with (run or RunConfig()).reporter() as report:
        for index in range(len(episodes)):
            parts.append(_surprise(world, reader, episodes.read(index), seed).nats)
            report(Progress("calibrate", index + 1, len(episodes), "episode"))
    nats = np.concatenate(parts)
    columns = [column[~np.isnan(column)] for column in nats.T]
    limits = [_quantile(column, rate) for column in columns]
    names = tuple(name for name, _ in sensors_of(world))
    return Threshold(names, np.array(limits), rate, np.array([len(column) for column in columns]))


def sensors_of(world: WorldModel) -> list[tuple[str, list[int]]]:
    """Return the sensors by name, with their numbers of z. A conversion's names of columns are kept."""
    named: dict[str, list[str]] = {}
    for recipe in world.provenance.get("recipes", []):
        named |= recipe.get("conversion", {}).get("leaves", {}).get("observation", {})
    return [sensor for part in world.layout.parts for sensor in _sensors(part, named.get(part.path, []))]


def _sensors(part: LatentPart, columns: Sequence[str]) -> list[tuple[str, list[int]]]:
    if part.kind is PartKind.IMAGE:
        return [(part.name or "image", list(range(part.start, part.stop)))]
    one_hot = part.kind in (PartKind.CHOICE, *COPIED)
    width, found = part.size // part.count if one_hot else 1, []
    count = part.size // width
    for place in range(count):
        index = part.first + place
        own = columns[index] if len(columns) > max(index, 1) else f"{part.path}[{index}]"
        name = own if count > 1 or len(columns) > 1 or "[" in part.name else part.name or "observation"
        found.append((name, list(range(part.start + place * width, part.start + (place + 1) * width))))
    return found


def _surprise(world: WorldModel, reader: Vision, episode: Episode, seed: int) -> Surprise:
    generator = torch.Generator(world.device).manual_seed(check_integer(seed, "seed", least=0))
    episode = episode if world.mdnrnn.extras.sees_time else replace(episode, elapsed=None)
    steps = encode_episodes([episode], reader, world.action_features)
    z = draw_latent(steps.mean, steps.log_variance, generator=generator).unsqueeze(0)
    filled = fill_missing(world.mdnrnn, z, steps.action.unsqueeze(0))
    prediction, _ = world.mdnrnn(filled.z[:, :-1], filled.action)
    each = -log_prob_of_numbers(prediction.latent, filled.z[:, 1:], filled.observed[:, 1:])[0]
    sensors = sensors_of(world)
    nats = torch.stack([_total(each, columns) for _, columns in sensors], dim=-1).double().cpu().numpy()
    first = np.full((1, len(sensors)), np.nan)
    return Surprise(tuple(name for name, _ in sensors), np.concatenate([first, nats]))


def _total(each: Tensor, columns: list[int]) -> Tensor:
    return each[:, columns].sum(dim=-1)


def _quantile(values: np.ndarray, rate: float) -> float:
    """Return the k-th smallest of n values, k = ceil((n + 1) (1 - rate)); infinity if there are too few."""
    k = math.ceil((len(values) + 1) * (1 - rate))
    return float(np.sort(values)[k - 1]) if k <= len(values) else math.inf
