"""Figure of a store: lengths, rewards, actions, ranges, constants, choices, gaps and frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldmodel.data import EpisodeStore, Number, StoreSummary, describe_number, summarise_store
from worldmodel.plots.pictures import grid
from worldmodel.plots.report import DREAM, NEUTRAL, REAL, Axes, Figure

MOST_ROWS = 24  # numbers whose ranges are drawn
MOST_ACTIONS = 4  # whose histograms are drawn
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LINE = 46  # characters of a note
COLOURS = (DREAM, "#2a6f97", "#6a994e", "#8d99ae")


def draw_store(store: EpisodeStore | StoreSummary, *, num_episodes: int = 200) -> Figure:
    """Draw what is in a store.

    Args:
        store: the store, or its summary.
        num_episodes: most episodes that are read, spread evenly.
    """
    summary = summarise_store(store, num_episodes=num_episodes) if isinstance(store, EpisodeStore) else store
    shown = summary.observation[:MOST_ROWS]
    heights = [2.6, 0.6 + 0.24 * max(6, len(shown)), *(1.3 for _ in summary.frames)]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    top = rows[0].subgridspec(1, 4)
    draw_lengths(figure.add_subplot(top[0]), summary)
    draw_rewards(figure.add_subplot(top[1]), summary)
    draw_actions(figure.add_subplot(top[2]), summary)
    draw_ends(figure.add_subplot(top[3]), summary)
    middle = rows[1].subgridspec(1, 2, width_ratios=(3, 2))
    draw_ranges(figure.add_subplot(middle[0]), shown, hidden=len(summary.observation) - len(shown))
    draw_notes(figure.add_subplot(middle[1]), summary)
    for number, (path, frames) in enumerate(summary.frames.items(), start=2):
        axes = figure.add_subplot(rows[number])
        axes.imshow(grid([frames]), interpolation="nearest")
        axes.set_title(path or "image", fontsize=9, loc="left")
        axes.axis("off")
    return figure


def draw_lengths(axes: Axes, summary: StoreSummary) -> None:
    """Draw the distribution of the lengths of all episodes."""
    lengths = summary.lengths
    axes.hist(lengths, bins=min(40, max(1, int(lengths.max() - lengths.min()) + 1)), color=NEUTRAL)
    axes.set(title=f"{len(lengths)} episodes, {int(lengths.sum()):,} steps", xlabel="steps", ylabel="episodes")


def draw_rewards(axes: Axes, summary: StoreSummary) -> None:
    """Draw the distribution of the rewards of the sampled steps."""
    if not len(summary.rewards):
        _empty(axes, "rewards", "none recorded")
        return
    values, counts = np.unique(summary.rewards, return_counts=True)
    if len(values) <= 12:
        axes.bar([f"{value:g}" for value in values], counts, color=DREAM)
    else:
        axes.hist(summary.rewards, bins=40, color=DREAM)
    axes.set_yscale("log")
    returns = summary.returns
    axes.set(title=f"rewards; returns {returns.min():.4g} to {returns.max():.4g}", xlabel="reward", ylabel="steps")


def draw_actions(axes: Axes, summary: StoreSummary) -> None:
    """Draw the distribution of each number of the action."""
    if not summary.action:
        _empty(axes, "actions", "none recorded")
        return
    drawn = summary.action[:MOST_ACTIONS]
    for number, colour in zip(drawn, COLOURS, strict=False):
        values, counts = np.unique(number.values, return_counts=True)
        if number.found["kind"] == "choice" and len(drawn) == 1:
            axes.bar([f"{value:g}" for value in values], counts, color=colour, label=number.name)
        else:
            axes.hist(number.values, bins=40, histtype="step", color=colour, label=number.name)
    more = f"; {len(summary.action) - len(drawn)} more" if len(summary.action) > len(drawn) else ""
    axes.set(title=f"actions{more}", xlabel="action", ylabel="steps")
    axes.legend(fontsize=7)


def draw_ends(axes: Axes, summary: StoreSummary) -> None:
    """Draw how the sampled episodes end."""
    axes.bar(list(summary.ends), list(summary.ends.values()), color=[DREAM, NEUTRAL, REAL])
    axes.set(title="ends of episodes", ylabel="episodes")


def draw_ranges(axes: Axes, numbers: Sequence[Number], *, hidden: int = 0) -> None:
    """Draw quantiles of each number between its smallest and largest value; choices as their shares.

    Args:
        axes: where to draw.
        numbers: the numbers, from top to bottom.
        hidden: how many are not drawn, for the title.
    """
    for row, number in enumerate(numbers):
        low, high = float(number.values.min()), float(number.values.max())
        if low == high:
            continue
        scaled = (number.values.astype(np.float64) - low) / (high - low)
        if number.found["kind"] == "choice":
            values, counts = np.unique(scaled, return_counts=True)
            axes.scatter(values, [row] * len(values), s=6 + 120 * counts / counts.sum(), color=DREAM, zorder=3)
            continue
        q = np.quantile(scaled, QUANTILES)
        axes.plot([0, 1], [row, row], color=NEUTRAL, linewidth=0.6)
        axes.plot([q[0], q[4]], [row, row], color=REAL, linewidth=1.5)
        axes.plot([q[1], q[3]], [row, row], color=REAL, linewidth=6, solid_capstyle="butt")
        axes.plot(q[2], row, "|", color="white", markersize=6)
    axes.set_yticks(range(len(numbers)), [f"{number.name}: {describe_number(number.found)}" for number in numbers], fontsize=7)
    axes.set_ylim(len(numbers) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.5, 1], ["smallest", "", "largest"], fontsize=7)
    more = f"; {hidden} more" if hidden > 0 else ""
    axes.set_title(f"observation: 5, 25, 50, 75 and 95 % of the values; choices by their share{more}", fontsize=9, loc="left")


def draw_notes(axes: Axes, summary: StoreSummary) -> None:
    """Write constants, gaps and assumptions as text."""
    constant = [one.name for one in (*summary.observation, *summary.action) if one.found["kind"] == "constant"]
    lines = [f"constant: {', '.join(constant)}"] if constant else []
    few = [one.name for one in summary.observation if one.found["kind"] == "real, few values"]
    lines += [f"real numbers of few values, perhaps choices: {', '.join(few)}"] if few else []
    lines += summary.notes or ["no gaps"]
    if summary.num_sampled < len(summary.lengths):
        lines.insert(0, f"figures of {summary.num_sampled} of {len(summary.lengths)} episodes")
    axes.axis("off")
    axes.set_title("constants, gaps and assumptions", fontsize=9, loc="left")
    axes.text(0, 1, "\n".join(_wrapped(line) for line in lines), fontsize=7.5, va="top", transform=axes.transAxes)


def _wrapped(text: str) -> str:
    """Break a note into lines; the first begins with a dash."""
    lines, rest = [], text.split()
    while rest:
        line = rest.pop(0)
        while rest and len(line) + 1 + len(rest[0]) <= LINE * 1.6:
            line += " " + rest.pop(0)
        lines.append(line)
    return "- " + "\n   ".join(lines)


def _empty(axes: Axes, title: str, text: str) -> None:
    axes.set_title(title)
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
