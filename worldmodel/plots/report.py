"""Figures of `iterate`: training curves of M, trajectories, and dream and real scores."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.data import Episode
from worldmodel.dream import Dreams, Rollout
from worldmodel.evaluation import replay
from worldmodel.experiments import Round, best_round
from worldmodel.mixtures import LIKELIHOODS
from worldmodel.models import WorldModel
from worldmodel.runtime import missing_extra, write_bytes
from worldmodel.spaces import FlatSpace, Value
from worldmodel.training import read_metrics

try:
    from matplotlib import image
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
except ImportError as error:
    raise missing_extra("plots") from error

REAL, DREAM, NEUTRAL = "#1b1b1b", "#d1495b", "#8d99ae"
NUM_DREAMS = 256  # dreams from which the quantiles of the trajectory are computed
MAX_DIMENSIONS = 4  # dimensions of the observation that are drawn
PANELS_PER_ROW = 4


def draw_report(
    rounds: Sequence[Round], episode: Episode, *, target: float | None = None, horizon: int = 80, seed: int = 0
) -> Figure:
    """Draw the training, a trajectory and the scores of the rounds of `iterate`, in three panels.

    Args:
        rounds: the rounds; the dreams use the world model of the best one.
        episode: a real episode of that round's controller, not in any training data.
        target: target of the mean real return.
        horizon: number of steps of the trajectory to draw.
        seed: seed of the dreams.
    """
    world = WorldModel.from_pretrained(best_round(rounds).directory / "world")
    shown = min(MAX_DIMENSIONS, world.vision.latent_size)
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    panels = figure.add_gridspec(1, 3, width_ratios=(1, 1.25, 1))
    draw_training(figure.add_subplot(panels[0]), rounds)
    rows = panels[1].subgridspec(shown, 1, hspace=0.1)
    axes = [figure.add_subplot(rows[i]) for i in range(shown)]
    draw_trajectory(axes, world, episode, horizon=horizon, seed=seed)
    draw_scores(figure.add_subplot(panels[2]), rounds, target)
    return figure


def draw_loop(rounds: Sequence[Round], *, target: float | None = None) -> Figure:
    """Draw the training and the scores of the rounds of `iterate`, for observations of any kind.

    Args:
        rounds: the rounds.
        target: target of the mean real return.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    draw_training(figure.add_subplot(1, 2, 1), rounds)
    draw_scores(figure.add_subplot(1, 2, 2), rounds, target)
    return figure


def draw_training(axes: Axes, rounds: Sequence[Round]) -> None:
    """Draw training and held-out losses of each round, and the baselines of the last round."""
    logs = [read_metrics(round_.directory / "world" / "training") for round_ in rounds]
    measured = {key.removeprefix("train/") for log in logs for row in log for key in row}
    metric = next((name for name in LIKELIHOODS if name in measured), "loss")  # densities first, else choices
    for round_, log in zip(rounds, logs, strict=True):
        rows = [row for row in log if f"train/{metric}" in row]
        updates, values = [row["update"] for row in rows], [row[f"train/{metric}"] for row in rows]
        shade = 0.3 + 0.7 * round_.number / len(rounds)
        axes.plot(updates, values, color=DREAM, alpha=shade, linewidth=1, label=f"round {round_.number}, training")
        held_out = [(row["update"], row[f"test/{metric}"]) for row in rows if f"test/{metric}" in row]
        tested = [update for update, _ in held_out]  # empty if nothing was held out
        values = [value for _, value in held_out]
        axes.plot(tested, values, "o", color=REAL, alpha=shade, markersize=4, label=f"round {round_.number}, held out")
    baselines = WorldModel.from_pretrained(rounds[-1].directory / "world").provenance["baselines"]
    for (name, value), style in zip(baselines.items(), ("--", ":"), strict=False):  # none if there are no densities
        axes.axhline(value, color=NEUTRAL, linestyle=style, label=name.replace("_", " "))
    axes.set(title="What M learned", xlabel="update", ylabel=f"negative log-likelihood, {LIKELIHOODS.get(metric, metric)}")
    axes.legend(fontsize=8)


def draw_trajectory(axes: Sequence[Axes], world: WorldModel, episode: Episode, *, horizon: int, seed: int) -> None:
    """Draw the observations of a real episode and of dreams with the same start and actions.

    Args:
        axes: one for each dimension of the observation that is drawn.
        world: V and M.
        episode: the real episode.
        horizon: maximum number of steps.
        seed: seed of the dreams.
    """
    rollout = replay(Dreams(world, NUM_DREAMS), episode, horizon=horizon, seed=seed)
    mode = replay(Dreams(world, 1, temperature=0.0, termination="threshold"), episode, horizon=horizon, seed=seed)
    dreamed, most_likely = _until_end(world, rollout), _until_end(world, mode)  # (B, T + 1, F)
    dreamed = dreamed[:, np.isfinite(dreamed[..., 0]).any(axis=0)]  # until the last dream ends
    lower, upper = np.nanquantile(dreamed, [0.05, 0.95], axis=0)
    real = _natural(world, episode.observations)[: horizon + 1]
    for i, panel in enumerate(axes):
        steps = np.arange(len(lower))
        label = f"90 % of {NUM_DREAMS} dreams"
        panel.fill_between(steps, lower[:, i], upper[:, i], color=DREAM, alpha=0.2, linewidth=0, label=label)
        panel.plot(most_likely[0, :, i], color=DREAM, linewidth=1.2, label="dream at temperature 0")
        panel.plot(real[:, i], color=REAL, linewidth=1.2, linestyle=(0, (4, 3)), label="reality")
        panel.set_ylabel(_dimension_name(world, i), fontsize=8)
        panel.tick_params(labelsize=8, labelbottom=i == len(axes) - 1)
    axes[0].set_title("The same actions, dreamed and real")
    axes[0].legend(fontsize=7, ncols=3, loc="upper left")
    axes[-1].set_xlabel("step")


def _until_end(world: WorldModel, rollout: Rollout) -> np.ndarray:
    """Return dreamed observations (B, T + 1, F) in natural units; NaN after the end of a dream."""
    running = np.pad(rollout.mask.cpu().numpy(), ((0, 0), (1, 0)), constant_values=True)[..., None]
    return np.where(running, _natural(world, world.decode(rollout.z)), np.nan)


def draw_scores(axes: Axes, rounds: Sequence[Round], target: float | None) -> None:
    """Draw the real score of each round over its dream score, with standard deviations."""
    low = min(round_.random.mean for round_ in rounds)
    high = max(max(round_.dream.mean, round_.real.mean) for round_ in rounds)
    axes.plot([low, high], [low, high], color=NEUTRAL, linewidth=1, label="dream = reality")
    axes.axhline(low, color=NEUTRAL, linestyle=":", label="random play")
    if target is not None:
        axes.axhline(target, color=NEUTRAL, linestyle="--", label="target")
    for round_ in rounds:
        axes.errorbar(
            round_.dream.mean,
            round_.real.mean,
            xerr=round_.dream.std,
            yerr=round_.real.std,
            fmt="o",
            color=DREAM,
            ecolor=REAL,
            elinewidth=0.8,
            capsize=2,
        )
        point = (round_.dream.mean, round_.real.mean)
        axes.annotate(f"round {round_.number}", point, xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8)
    axes.set(title="Dream score against real score", xlabel="return in the dream", ylabel="return in reality")
    axes.margins(0.12)
    axes.legend(fontsize=8, loc="center right")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    write_bytes(path, data.getvalue())


def save_image(picture: np.ndarray, path: str | Path, *, enlarge: int = 1) -> None:
    """Write a picture (H, W, 3) uint8 as PNG, enlarged by the integer factor ``enlarge``."""
    data = io.BytesIO()
    image.imsave(data, picture.repeat(enlarge, axis=0).repeat(enlarge, axis=1), format="png")
    write_bytes(path, data.getvalue())


def draw_learning(runs: Mapping[str, tuple[Path, str, str]]) -> Figure:
    """Draw the learning curves of training runs or searches, one panel each: training and held out.

    Args:
        runs: maps the title of a panel to (directory of the log, name of the metric, label of the x
            axis).
    """
    columns = min(PANELS_PER_ROW, len(runs))
    lines = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(4 * columns, 3.2 * lines), layout="constrained")
    for number, (title, (directory, name, unit)) in enumerate(runs.items(), start=1):
        axes = figure.add_subplot(lines, columns, number)
        rows = read_metrics(directory)
        for part, colour, style in (("train", DREAM, "-"), ("test", REAL, "o-")):
            points = [(row["update"], row[f"{part}/{name}"]) for row in rows if f"{part}/{name}" in row]
            if points:
                label = {"train": "training", "test": "held out"}[part]
                axes.plot(*zip(*points, strict=True), style, color=colour, markersize=3, linewidth=1, label=label)
        axes.set(title=title, xlabel=unit, ylabel=name.replace("_", " "))
        axes.legend(fontsize=8)
    return figure


def draw_rounds(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the scores of a loop's rounds over the real steps so far: in validation episodes, and in dreams.

    Args:
        rows: rounds as in ``results.json`` of `worldmodel.experiments.LoopExperiment`.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [row["real_steps"] for row in rows]
    for name, colour, label in (("validation", REAL, "real environment"), ("dream", DREAM, "dreams")):
        mean, error = (np.array([row[name][key] for row in rows]) for key in ("mean", "standard_error"))
        axes.plot(steps, mean, "o-", color=colour, markersize=3, linewidth=1, label=label)
        axes.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="real steps", ylabel="return (band: standard error)")
    axes.legend(fontsize=8)
    return figure


def _natural(world: WorldModel, observations: Value) -> np.ndarray:
    """Return the features of observations in the units of the observation: (..., F)."""
    space = FlatSpace(world.observation_space).to(world.device)
    features = space.flatten(observations, exact=True)
    exact = features.dtype == space.exact_center.dtype
    half_range, center = (space.exact_half_range, space.exact_center) if exact else (space.half_range, space.center)
    return (features * half_range + center).cpu().numpy()


def _dimension_name(world: WorldModel, index: int) -> str:
    return f"observation[{index}]" if isinstance(world.observation_space, spaces.Box) else f"feature {index}"
