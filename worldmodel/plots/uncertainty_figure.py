"""Figure of the disagreement of an ensemble: by step of dreams, and along a real episode."""

from __future__ import annotations

import numpy as np
import torch

from worldmodel.dream import Dreams, RandomActions, Rollout
from worldmodel.models import WorldModel
from worldmodel.plots.report import DREAM, REAL, Figure

NUM_DREAMS, HORIZON = 64, 100


def draw_uncertainty(rollout: Rollout, *, real: torch.Tensor | None = None) -> Figure:
    """Draw the variance of the members' means by step: median and 90 % of the dreams that are running.

    Args:
        rollout: of a world model with an ensemble.
        real: (T,) the same along a real episode, from `worldmodel.evaluation.episode_uncertainty`.

    Raises:
        ValueError: if the rollout has no uncertainty.
    """
    if rollout.uncertainty is None:
        raise ValueError("rollout: expected one of a world model with an ensemble, got one without uncertainty")
    values = torch.where(rollout.mask, rollout.uncertainty, torch.nan).cpu().numpy()
    values = values[:, np.isfinite(values).any(axis=0)]  # until the last dream ends
    lower, median, upper = np.nanquantile(values, [0.05, 0.5, 0.95], axis=0)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes, steps = figure.add_subplot(), np.arange(1, len(median) + 1)
    axes.fill_between(steps, lower, upper, color=DREAM, alpha=0.2, linewidth=0, label=f"90 % of {len(values)} dreams")
    axes.plot(steps, median, color=DREAM, label="median of the dreams")
    if real is not None:
        axes.plot(np.arange(1, len(real) + 1), real.cpu().numpy(), color=REAL, linewidth=1, label="real episode")
    axes.set(xlabel="step", ylabel="variance of the means", yscale="log")
    axes.legend(fontsize=8)
    return figure


def draw_dream_uncertainty(world: WorldModel, *, seed: int = 0) -> Figure:
    """Draw the uncertainty of dreams with random actions.

    Args:
        world: with an ensemble.
        seed: seed of the dreams.

    Raises:
        ValueError: if M is no ensemble.
    """
    dreams = Dreams(world, NUM_DREAMS)
    generator = dreams.generator(seed)
    return draw_uncertainty(dreams.rollout(RandomActions(world, generator=generator), HORIZON, generator=generator))
