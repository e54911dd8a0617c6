"""Figure of open-loop forecasts: error, CRPS and coverage by step, against repeating the last observation."""

from __future__ import annotations

import numpy as np

from worldmodel.evaluation import OpenLoop
from worldmodel.plots.report import DREAM, NEUTRAL, REAL, Figure


def draw_open_loop(result: OpenLoop) -> Figure:
    """Draw the scores of open-loop forecasts by step.

    Args:
        result: what `worldmodel.evaluation.open_loop` returned.
    """
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    steps = np.arange(1, len(result.error) + 1)
    panels = [
        ("root mean squared error", result.error, result.repeat_last_error),
        ("CRPS", result.crps, result.repeat_last_crps),
    ]
    if result.choice_error is not None and result.repeat_last_choice_error is not None:
        panels.append(("wrong choices, share", result.choice_error, result.repeat_last_choice_error))
    shown = [panel for panel in panels if not np.isnan(panel[1]).all()]
    axes = [figure.add_subplot(1, len(shown) + 1, number + 1) for number in range(len(shown) + 1)]
    for panel, (title, dreamed, repeated) in zip(axes, shown, strict=False):
        panel.plot(steps, dreamed, color=DREAM, label="dreams")
        panel.plot(steps, repeated, color=NEUTRAL, linestyle="--", label="repeat last")
        panel.set(title=title, xlabel="step", ylim=(0, None))
        panel.legend(fontsize=8)
    axes[-1].plot(steps, result.coverage, color=REAL)
    axes[-1].axhline(result.nominal, color=NEUTRAL, linestyle="--", label=f"{result.nominal:.0%}")
    axes[-1].set(title="share within the interval", xlabel="step", ylim=(0, 1.02))
    axes[-1].legend(fontsize=8)
    return figure
