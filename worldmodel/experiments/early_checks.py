"""Checks of a loop's first round that save the hours of a search with nothing to learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from worldmodel.data import EpisodeCollection
from worldmodel.evaluation import replay_rewards
from worldmodel.models import WorldModel

HORIZONS = (1, 5)  # steps over which M must follow the rewards of recorded actions
MIN_CORRELATION = 0.1


def check_data(data: Path, *, termination_head: bool | None) -> None:
    """Raise if no agent can do better than another by the rewards of the data.

    Args:
        data: store of the first round.
        termination_head: field of `MDNRNNConfig`; False hides how long episodes last.

    Raises:
        ValueError: if all rewards are 0, or all are equal and no episode terminates or M ignores it.
    """
    episodes = EpisodeCollection.open(data)
    found, terminated = set[float](), False
    for index in range(len(episodes)):
        episode = episodes.read(index)
        found.update(episode.rewards.tolist())
        terminated = terminated or bool(episode.terminations[-1])
        if len(found) > 1:
            return
    reward = found.pop()
    if reward == 0 or not terminated or termination_head is False:
        raise ValueError(
            f"data: expected rewards that depend on the actions, got {reward:g} at every step of the {len(episodes)} episodes "
            "of round 1; use another first policy (first_policy), more episodes, or a reward function (reward)"
        )


def warn_unlearnt_rewards(world: WorldModel, stores: Sequence[Path]) -> None:
    """Warn if M does not follow the rewards of recorded actions over a few steps, of the data that it was trained on."""
    if world.mdnrnn.reward_head is None or world.mdnrnn.reward_low.item() == world.mdnrnn.reward_high.item():
        return
    longest = int(EpisodeCollection.open(list(stores)).lengths.max())
    horizons = [horizon for horizon in HORIZONS if horizon <= longest]
    found = replay_rewards(world, list(stores), horizons=horizons)
    if max(found.correlation) < MIN_CORRELATION:
        warnings.warn(
            "world: expected dreamed rewards that follow the real ones under recorded actions, got correlations of at most "
            f"{max(found.correlation):.2f} over {' and '.join(map(str, horizons))} steps; agents will hardly learn in such "
            "dreams. Train M longer, or collect other data",
            RuntimeWarning,
            stacklevel=2,
        )
