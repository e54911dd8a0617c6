"""Figures of what the programs do: a training, a search, an evaluation, a probe, and the components of M."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from worldmodel.dream import Dreams, RandomActions, Scores
from worldmodel.evaluation import Evaluation, Probe
from worldmodel.mixtures import GaussianMixture
from worldmodel.models import WorldModel
from worldmodel.plots.report import DREAM, MAX_DIMENSIONS, NEUTRAL, REAL, Axes, Figure
from worldmodel.training import read_metrics

WARM_UP = 10  # random steps of a dream before the step whose components are drawn
SAMPLES = 4096  # of a distribution that has no components
MOST_CURVES = 6  # of a training


def draw_training_run(directory: str | Path) -> Figure:
    """Draw the curves of a training, one panel for each term of the loss: training and held out.

    Args:
        directory: of the training's log, such as ``runs/world/training``.

    Raises:
        ValueError: if there is no log.
    """
    rows = read_metrics(directory)
    if not rows:
        raise ValueError(f"{directory}: expected the log of a training, got none")
    names = list(dict.fromkeys(key.partition("/")[2] for row in rows for key in row if key.startswith("train/")))[:MOST_CURVES]
    figure, panels = _panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        for part, colour, style, label in (("train", DREAM, "-", "training"), ("test", REAL, "o-", "held out")):
            points = [(row["update"], row[f"{part}/{name}"]) for row in rows if f"{part}/{name}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, markersize=3, linewidth=1, label=label)
        _limit(axes, [row[f"train/{name}"] for row in rows if f"train/{name}" in row])
        axes.set(xlabel="update", ylabel=name.replace("_", " "))
        axes.legend(fontsize=8)
    return figure


def draw_search(rows: Sequence[Mapping[str, float]], *, unit: str) -> Figure:
    """Draw the scores of a search.

    Args:
        rows: one per generation or iteration: ``done``, and of ``best``, ``mean``, ``test`` and ``best_test`` what it has.
        unit: name of a row, such as "generation".
    """
    figure, (axes,) = _panels(1)
    styles = {
        "best": (DREAM, ":", "best candidate"),
        "mean": (DREAM, "-", "mean of the candidates"),
        "mean_return": (DREAM, "-", "mean return"),
        "test": (REAL, "o", "test of the centre"),
        "best_test": (REAL, "-", "best test so far"),
    }
    for name, (colour, style, label) in styles.items():
        points = [(row["done"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, markersize=4, linewidth=1, label=label)
    axes.set(xlabel=unit, ylabel="return")
    axes.legend(fontsize=8)
    return figure


def draw_evaluation(evaluation: Evaluation) -> Figure:
    """Draw an agent's returns in dreams and in reality, and those of random play, and their means with 95 % intervals."""
    figure, (left, right) = _panels(2)
    named = {
        f"dream (temperature {evaluation.temperature:g})": (evaluation.dream, DREAM),
        "reality": (evaluation.real, REAL),
        "random in reality": (evaluation.random, NEUTRAL),
    }
    for name, (scores, colour) in named.items():
        returns = np.sort(scores.returns)
        left.step([returns[0], *returns], np.arange(len(returns) + 1) / len(returns), color=colour, where="post", label=name)
    left.locator_params(axis="x", nbins=5)
    left.set(xlabel="return", ylabel="share of episodes below")
    left.legend(fontsize=8)
    for place, (scores, colour) in enumerate(named.values()):
        _bar(right, place, scores, colour)
    right.set_xticks(range(len(named)), [name.replace(" (", "\n(").replace(" in ", "\nin ") for name in named])
    right.set(ylabel="mean return (bar: 95 % interval)")
    return figure


def draw_probe(probe: Probe) -> Figure:
    """Draw the scores of fixed policies in dreams over those in reality, one panel per temperature."""
    figure, panels = _panels(len(probe.dreams))
    for axes, (temperature, dreams) in zip(panels, probe.dreams.items(), strict=True):
        means = [scores.mean for found in (probe.real, dreams) for scores in found.values()]
        axes.plot([min(means), max(means)], [min(means), max(means)], color=NEUTRAL, linewidth=1, label="dream = reality")
        for name, real in probe.real.items():
            dream = dreams[name]
            axes.errorbar(real.mean, dream.mean, xerr=real.standard_error, yerr=dream.standard_error, fmt="o", color=DREAM)
            axes.annotate(name, (real.mean, dream.mean), xytext=(4, 4), textcoords="offset points", fontsize=7)
        correlation = probe.rank_correlation(temperature)
        axes.set(title=f"temperature {temperature:g}, rank correlation {correlation:.2f}")
        axes.set(xlabel="return in reality", ylabel="return in dreams")
        axes.legend(fontsize=8)
    return figure


@torch.no_grad()
def draw_components(world: WorldModel, *, temperature: float = 1.0, seed: int = 0) -> Figure:
    """Draw M's prediction of the next z in one state of a dream: densities with their components, or histograms of samples.

    Args:
        world: the world model.
        temperature: of the dream that leads to the state; the densities are those at temperature 1.
        seed: seed of the dream.
    """
    dreams = Dreams(world, 1, temperature=temperature)
    generator = dreams.generator(seed)
    rollout = dreams.rollout(RandomActions(world, generator=generator), WARM_UP, generator=generator)
    actions = world.action_features.flatten(rollout.actions)
    prediction, _ = world.mdnrnn(rollout.z[:, :-1], actions)
    latent = prediction.latent
    mixtures = {
        column: (part, place)
        for _, part, columns in getattr(latent, "parts", [("", latent, list(range(world.mdnrnn.latent_size)))])
        if isinstance(part, GaussianMixture)
        for place, column in enumerate(range(world.mdnrnn.latent_size)[columns] if isinstance(columns, slice) else columns)
    }
    shown = list(range(min(MAX_DIMENSIONS, world.mdnrnn.latent_size)))
    figure, panels = _panels(len(shown))
    many = latent.sample(1.0, generator=generator) if not mixtures else None
    for axes, column in zip(panels, shown, strict=True):
        if column in mixtures:
            _draw_mixture(axes, *mixtures[column])
        elif many is not None:
            axes.hist(_samples(latent, column), bins=60, density=True, color=DREAM)
        axes.axvline(rollout.z[0, -1, column].item(), color=REAL, linewidth=1, label="sample")
        axes.set(xlabel=f"next z[{column}]", ylabel="density")
        axes.legend(fontsize=8)
    return figure


def _samples(latent: object, column: int) -> np.ndarray:
    """Return samples of one number of the last step's distribution."""
    draw = getattr(latent, "sample")  # noqa: B009 (of any latent distribution)
    return np.concatenate([draw(1.0)[0, -1:, column].cpu().numpy() for _ in range(SAMPLES // 16)])


def _draw_mixture(axes: Axes, mixture: GaussianMixture, place: int) -> None:
    """Draw the marginal density of one number in the last step, and its components."""
    mean, scale = (part[0, -1, :, place].double().cpu().numpy() for part in (mixture.mean, mixture.log_scale.exp()))
    weights = mixture.log_weights.exp()[0, -1].double().cpu().numpy()
    weights = weights[:, place] if mixture.per_dimension else weights
    heavy = weights > 0.01
    low, high = (mean - 4 * scale)[heavy].min(), (mean + 4 * scale)[heavy].max()
    x = np.linspace(low, high, 400)
    parts = weights * np.exp(-0.5 * ((x[:, None] - mean) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    axes.plot(x, parts.sum(axis=1), color=DREAM, label="density")
    axes.plot(x, parts[:, heavy], color=NEUTRAL, linewidth=0.8, linestyle="--")


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels, three in a row."""
    columns = min(3, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * lines), layout="constrained")
    return figure, [figure.add_subplot(lines, columns, number) for number in range(1, count + 1)]


def _bar(axes: Axes, place: int, scores: Scores, colour: str) -> None:
    """Draw a mean with its 95 % interval."""
    axes.errorbar(place, scores.mean, yerr=1.96 * scores.standard_error, fmt="o", color=colour, capsize=4)
    axes.margins(x=0.2)


def _limit(axes: Axes, values: Sequence[float]) -> None:
    """Leave the first updates of a training outside, where a loss may be a hundred times larger than later."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if len(finite) < 20:
        return
    low, high = finite.min(), np.quantile(finite[len(finite) // 20 :], 0.98)
    if high > low:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
